package channel

import (
	"math/bits"
	"sync"
)

// Long payloads lie in memory of a few sizes that their receiver may give back; short ones are the collector's.
const (
	shortPayload = 4 << 10
	memorySizes  = 4 // 8, 16, 32 and 64 KiB
)

// memories is a cache without observable state.
var memories [memorySizes]sync.Pool

// Memory is what a long payload lies in.
type Memory struct{ b []byte }

// payload makes room for n bytes. A short one has no Memory.
func payload(n int) ([]byte, *Memory) {
	if n <= shortPayload {
		return make([]byte, n), nil
	}
	class := bits.Len(uint(n-1) / (2 * shortPayload))
	m, _ := memories[class].Get().(*Memory)
	if m == nil {
		m = &Memory{make([]byte, 2*shortPayload<<class)}
	}
	return m.b[:n:n], m
}

// Free lets another payload have the memory. Nobody may use this one's any more. Nil is nothing.
func (m *Memory) Free() {
	if m != nil {
		memories[bits.Len(uint(len(m.b)-1)/(2*shortPayload))].Put(m)
	}
}
