package scrollback

import (
	"sync/atomic"
	"unsafe"
)

// word is the 8-byte word at an 8-byte-aligned offset of a mapping, which a kill can't tear.
func word(mem []byte, offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mem[offset : offset+8][0]))
}
