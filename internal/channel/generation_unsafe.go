package channel

import (
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"sallyport/internal/memfd"
	"sallyport/ntstatus"
)

// generationLen is the length of a connection's word in a page of generations.
const generationLen = 8

// Generations is a page of words, one for each connection of a port, that the core raises and the port's server reads: a word
// that has moved says that a notice about who speaks on the connection is on its way. The seals keep all but the core from
// writing. It is safe for concurrent use, and unmapped when nobody refers to it any more.
type Generations struct {
	mem   []byte
	lines int
}

// CreateGenerations makes a page of so many words, all zero, and the file for the server.
func CreateGenerations(lines int) (*Generations, *os.File, error) {
	if lines <= 0 || lines > math.MaxInt32/generationLen {
		return nil, nil, ntstatus.New("channel.CreateGenerations", "", ntstatus.InvalidParameter)
	}
	f, mem, err := memfd.CreateShown("sallyport-generations", lines*generationLen)
	if err != nil {
		return nil, nil, err
	}
	return generations(mem, lines), f, nil
}

// MapGenerations maps a page that the core made. The file stays the caller's.
func MapGenerations(f *os.File, lines int) (*Generations, error) {
	if lines <= 0 || lines > math.MaxInt32/generationLen {
		return nil, ntstatus.New("channel.MapGenerations", "", ntstatus.InvalidParameter)
	}
	mem, err := memfd.Map(f, lines*generationLen, false)
	if err != nil {
		return nil, ntstatus.Errorf("channel.MapGenerations", "", ntstatus.InvalidParameter, "%w", err)
	}
	return generations(mem, lines), nil
}

func generations(mem []byte, lines int) *Generations {
	g := &Generations{mem: mem, lines: lines}
	runtime.AddCleanup(g, func(mem []byte) { memfd.Unmap(mem) }, mem)
	return g
}

// Raise sets word i. Only who created the page may.
func (g *Generations) Raise(i int, to uint64) {
	if i >= 0 && i < g.lines {
		g.word(i).Store(to)
		runtime.KeepAlive(g)
	}
}

// Read returns word i; 0 of one that is not there.
func (g *Generations) Read(i int) uint64 {
	if i < 0 || i >= g.lines {
		return 0
	}
	n := g.word(i).Load()
	runtime.KeepAlive(g)
	return n
}

func (g *Generations) word(i int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&g.mem[i*generationLen]))
}
