// Package scrollback keeps the last bytes of an endless output in a sealed memory file, so that they survive the process
// that keeps them.
//
// The file's holders trust each other: the keeper, and who hands the file to its successor. The keeper may be killed
// between any two instructions; no byte that left the source is lost by it. To that end the source reads straight into
// the ring, into a landing of pageSize bytes after the end which holds a secret pattern beforehand. A successor finds
// there how far a read came that was not recorded: up to the last byte that differs. (A byte that equals its pattern at
// that place is missed: one chance in 256, in that window only.)
//
// Layout, little-endian: magic and version (8 bytes), end position (8 bytes) and zeroes up to pageSize; the pattern
// (pageSize bytes); the ring, a multiple of pageSize. The byte of position p is at p modulo the ring's size.
package scrollback

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"sallyport/internal/memfd"
)

const (
	pageSize = 4096
	header   = 2 * pageSize
	magic    = "SPSCROL\x01"

	// MinSize and MaxSize bound what a ring keeps, in bytes.
	MinSize = 16 << 10
	MaxSize = 4 << 20

	// maxPosition is further than any output comes.
	maxPosition = 1 << 62
)

// ErrDamaged is a file that is no ring, or one that can't be trusted.
var ErrDamaged = errors.New("not a scrollback ring")

// Ring is the keeper's view. One goroutine at a time may call Fill; everything else is safe for concurrent use.
type Ring struct {
	end *atomic.Uint64 // in the file; only Fill moves it, under mu

	mu      sync.RWMutex
	mem     []byte        // the whole file; nil after Close
	changed chan struct{} // closed and replaced when end moves or the ring is closed
}

// Create returns an empty ring that keeps size bytes, or a little more, and its file, which the caller owns.
func Create(size int) (*Ring, *os.File, error) {
	if size < MinSize || size > MaxSize {
		return nil, nil, fmt.Errorf("scrollback of %d bytes: it may have %d to %d", size, MinSize, MaxSize)
	}
	data := (size+pageSize-1)/pageSize*pageSize + pageSize
	f, err := memfd.Create("scrollback", header+data)
	if err != nil {
		return nil, nil, err
	}
	mem, err := memfd.Map(f, header+data, true)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	rand.Read(mem[pageSize:header])
	copy(mem[header:], mem[pageSize:header])
	copy(mem, magic)
	return newRing(mem), f, nil
}

// Open takes a ring over from its last keeper and recovers what that had read but not recorded. The file stays the
// caller's.
func Open(f *os.File) (*Ring, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	if data := size - header; data < MinSize+pageSize || data > MaxSize+pageSize || data%pageSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, size)
	}
	mem, err := memfd.Map(f, int(size), true)
	if err != nil {
		return nil, err
	}
	r := newRing(mem)
	if !bytes.HasPrefix(mem, []byte(magic)) || r.end.Load() > maxPosition {
		r.Close()
		return nil, ErrDamaged
	}
	end := r.end.Load()
	landed := uint64(0)
	for i := range uint64(pageSize) {
		if *r.at(end + i) != r.pattern(end+i) {
			landed = i + 1
		}
	}
	r.commit(end, landed)
	return r, nil
}

func newRing(mem []byte) *Ring {
	return &Ring{mem: mem, end: word(mem, 8), changed: make(chan struct{})}
}

func (r *Ring) size() uint64              { return uint64(len(r.mem) - header) }
func (r *Ring) at(pos uint64) *byte       { return &r.mem[header+pos%r.size()] }
func (r *Ring) pattern(pos uint64) byte   { return r.mem[pageSize+pos%pageSize] }
func (r *Ring) firstOf(end uint64) uint64 { return max(end+pageSize, r.size()) - r.size() }

// commit moves the end n bytes on. The new landing has its pattern before the end says that it is one: whoever dies in
// between leaves the old landing as it was.
func (r *Ring) commit(end, n uint64) {
	for i := range n {
		*r.at(end + pageSize + i) = r.pattern(end + i)
	}
	r.end.Store(end + n)
}

// Fill reads once from src straight into the ring, waiting as long as src does, and returns what src returned. A closed ring is
// io.ErrClosedPipe; Close must not be called during Fill.
func (r *Ring) Fill(src io.Reader) (int, error) {
	r.mu.RLock()
	if r.mem == nil {
		r.mu.RUnlock()
		return 0, io.ErrClosedPipe
	}
	end := r.end.Load()
	i := end % r.size()
	landing := r.mem[header+i : header+min(i+pageSize, r.size())]
	r.mu.RUnlock()

	// No lock is held meanwhile: nobody reads the landing.
	n, err := src.Read(landing)
	if n > 0 {
		r.mu.Lock()
		r.commit(end, uint64(n))
		r.broadcast()
		r.mu.Unlock()
	}
	return n, err
}

// ReadAt copies kept bytes from pos on into p: n bytes that begin at position at. at is pos, or the oldest kept position if pos
// is older. n is 0 where there is nothing (yet) at pos.
func (r *Ring) ReadAt(p []byte, pos uint64) (n int, at uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.mem == nil {
		return 0, pos
	}
	end := r.end.Load()
	if at = max(pos, r.firstOf(end)); at >= end {
		return 0, at
	}
	p = p[:min(uint64(len(p)), end-at)]
	ring := r.mem[header:]
	n = copy(p, ring[at%r.size():])
	n += copy(p[n:], ring)
	return n, at
}

// Bounds returns the position of the oldest kept byte and the one after the newest.
func (r *Ring) Bounds() (first, end uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.mem == nil {
		return 0, 0
	}
	end = r.end.Load()
	return r.firstOf(end), end
}

// Changed returns a channel that is closed when more has been kept after this call, or the ring is closed. Take it before
// reading, wait for it after.
func (r *Ring) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// broadcast needs mu.
func (r *Ring) broadcast() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Close gives the mapping back. The file, which the caller has, keeps the bytes.
func (r *Ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return nil
	}
	mem := r.mem
	r.mem = nil
	r.broadcast()
	return memfd.Unmap(mem)
}
