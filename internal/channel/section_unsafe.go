package channel

import (
	"encoding/binary"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"unsafe"

	"sallyport/internal/memfd"
	"sallyport/ntstatus"
)

// The section, as docs/protocol.md has it: one page of state, then a ring each way.
const (
	sectionMagic   = 0x52594C53 // "SLYR"
	sectionVersion = 1
	pageSize       = 4096
	ringSize       = 128 << 10 // bytes of one ring; a power of two, and room for two of the longest frames
	slotAlign      = 64        // frames begin at multiples of it, so that a header never wraps

	// SectionSize is the length of every section in bytes.
	SectionSize = pageSize + 2*ringSize
)

// CreateSection makes the section of one connection: sealed, and holding the given epoch of the server's incarnation.
func CreateSection(epoch uint64) (*os.File, error) {
	f, err := memfd.Create("sallyport-ring", SectionSize)
	if err != nil {
		return nil, err
	}
	var head [24]byte
	binary.LittleEndian.PutUint32(head[0:], sectionMagic)
	binary.LittleEndian.PutUint32(head[4:], sectionVersion)
	binary.LittleEndian.PutUint64(head[8:], epoch)
	binary.LittleEndian.PutUint32(head[16:], ringSize)
	if _, err := f.WriteAt(head[:], 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// section is a mapped section. Its bytes are the peer's as much as ours: read once, copied, checked.
type section struct {
	mem   []byte
	rings [2]ring // by side that writes
}

// ring is one direction. The four words lie on cache lines of their own.
type ring struct {
	data         []byte
	tail         *atomic.Uint32 // bytes ever written, modulo 2^32; the writer's
	head         *atomic.Uint32 // bytes ever read; the reader's
	readerSleeps *atomic.Uint32 // 1: wake the reader after writing
	writerSleeps *atomic.Uint32 // 1: wake the writer after reading
}

// mapSection verifies f and maps it. It doesn't take f.
func mapSection(f *os.File) (*section, error) {
	mem, err := memfd.Map(f, SectionSize, true)
	if err != nil {
		return nil, ntstatus.Errorf("channel.Attach", "", ntstatus.InvalidParameter, "section: %w", err)
	}
	s := layOut(mem)
	if err := s.check(); err != nil {
		s.unmap()
		return nil, err
	}
	return s, nil
}

func layOut(mem []byte) *section {
	s := &section{mem: mem}
	for i := range s.rings {
		state := 256 + i*512
		s.rings[i] = ring{
			data:         mem[pageSize+i*ringSize:][:ringSize:ringSize],
			tail:         word(mem, state),
			head:         word(mem, state+64),
			readerSleeps: word(mem, state+128),
			writerSleeps: word(mem, state+192),
		}
	}
	return s
}

func (s *section) check() (err error) {
	defer fault(s, debug.SetPanicOnFault(true), &err)
	var head [24]byte
	copy(head[:], s.mem)
	le := binary.LittleEndian
	if le.Uint32(head[0:]) != sectionMagic || le.Uint32(head[4:]) != sectionVersion || le.Uint32(head[16:]) != ringSize {
		return ntstatus.Errorf("channel.Attach", "", ntstatus.InvalidParameter, "not a section of version %d", sectionVersion)
	}
	return nil
}

func (s *section) unmap() { memfd.Unmap(s.mem) }

func word(mem []byte, offset int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&mem[offset]))
}

// fault is deferred around every access to a section: where the kernel has no page any more (a hole that can't be
// filled), it makes an error of the fault. Any other panic goes on.
func fault(s *section, previous bool, err *error) {
	debug.SetPanicOnFault(previous)
	r := recover()
	if r == nil {
		return
	}
	f, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	})
	start := uintptr(unsafe.Pointer(unsafe.SliceData(s.mem)))
	if !ok || f.Addr() < start || f.Addr() >= start+uintptr(len(s.mem)) {
		panic(r)
	}
	*err = ntstatus.Errorf("channel.Access", "", ntstatus.InvalidMessage, "the section's memory is gone")
}
