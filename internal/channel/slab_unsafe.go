package channel

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"sallyport/internal/memfd"
	"sallyport/ntstatus"
)

// LineLen is the length of a connection's line in a slab: one cache line.
const LineLen = 64

// Counters are a line's values. All but Pending only grow.
type Counters struct {
	MessagesIn, MessagesOut uint64
	BytesIn, BytesOut       uint64
	Pending                 uint64 // requests received and not yet replied to
}

// Line is the live counters of one connection: in a slab, where the core can read them, or private (the zero value).
type Line struct {
	counts *lineWords
	own    lineWords
	slab   *Slab
}

type lineWords struct {
	messagesIn, messagesOut, bytesIn, bytesOut, pending atomic.Uint64
	_                                                   [LineLen - 40]byte
}

func (l *Line) words() *lineWords {
	if l.counts != nil {
		return l.counts
	}
	return &l.own
}

// Each user of words keeps the line, and so its slab, until it is through: counts is no pointer to the collector.

func (l *Line) sent(bytes uint32) {
	w := l.words()
	w.messagesOut.Add(1)
	w.bytesOut.Add(uint64(bytes))
	runtime.KeepAlive(l)
}

func (l *Line) received(bytes uint32) {
	w := l.words()
	w.messagesIn.Add(1)
	w.bytesIn.Add(uint64(bytes))
	runtime.KeepAlive(l)
}

// AddPending adds n to the number of requests that wait for this end's reply.
func (l *Line) AddPending(n int) {
	l.words().pending.Add(uint64(n))
	runtime.KeepAlive(l)
}

// Read returns the values.
func (l *Line) Read() Counters {
	c := l.words().read()
	runtime.KeepAlive(l)
	return c
}

func (w *lineWords) read() Counters {
	return Counters{
		MessagesIn: w.messagesIn.Load(), MessagesOut: w.messagesOut.Load(),
		BytesIn: w.bytesIn.Load(), BytesOut: w.bytesOut.Load(), Pending: w.pending.Load(),
	}
}

// Slab is a mapped array of lines, shared by one server, which writes, and the core, which reads. The core believes
// nothing of it but numbers to show. It is safe for concurrent use, and unmapped when nobody refers to it or to one of
// its lines any more.
type Slab struct {
	mem   []byte
	lines int
}

// CreateSlab makes the sealed memory of a slab of so many lines.
func CreateSlab(lines int) (*os.File, error) {
	return memfd.Create("sallyport-slab", lines*LineLen)
}

// MapSlab maps a slab of so many lines: writable for the server, not for the core. The file stays the caller's.
func MapSlab(f *os.File, lines int, writable bool) (*Slab, error) {
	if lines <= 0 || lines > math.MaxInt32/LineLen {
		return nil, ntstatus.New("channel.MapSlab", "", ntstatus.InvalidParameter)
	}
	mem, err := memfd.Map(f, lines*LineLen, writable)
	if err != nil {
		return nil, ntstatus.Errorf("channel.MapSlab", "", ntstatus.InvalidParameter, "%w", err)
	}
	s := &Slab{mem: mem, lines: lines}
	runtime.AddCleanup(s, func(mem []byte) { memfd.Unmap(mem) }, mem)
	return s, nil
}

// Line returns line i, zeroed, for a channel. Only the side that mapped the slab writable may ask.
func (s *Slab) Line(i int) (*Line, error) {
	if i < 0 || i >= s.lines {
		return nil, ntstatus.New("channel.Slab", "", ntstatus.InvalidParameter)
	}
	l := &Line{counts: (*lineWords)(unsafe.Pointer(&s.mem[i*LineLen])), slab: s}
	for _, v := range []*atomic.Uint64{&l.counts.messagesIn, &l.counts.messagesOut, &l.counts.bytesIn, &l.counts.bytesOut, &l.counts.pending} {
		v.Store(0)
	}
	runtime.KeepAlive(l)
	return l, nil
}

// Read returns the values of line i. They are the server's word.
func (s *Slab) Read(i int) (c Counters, err error) {
	if i < 0 || i >= s.lines {
		return c, ntstatus.New("channel.Slab", "", ntstatus.InvalidParameter)
	}
	defer runtime.KeepAlive(s)
	defer fault(&section{mem: s.mem}, debug.SetPanicOnFault(true), &err)
	return (*lineWords)(unsafe.Pointer(&s.mem[i*LineLen])).read(), nil
}
