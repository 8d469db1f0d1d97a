package alpctest

import (
	"sync/atomic"
	"unsafe"

	"sallyport/internal/futex"
)

func storeWord(mem []byte, offset int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&mem[offset])), v)
}

func wakeWord(mem []byte, offset int) {
	futex.Wake((*atomic.Uint32)(unsafe.Pointer(&mem[offset])))
}
