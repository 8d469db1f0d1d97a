// Package futex lets a thread sleep on a word of shared memory.
//
// The word's other users are distrusted: they can wake the sleeper for nothing or not at all, so every wait has a bound
// and its caller looks again. A word whose page is gone is an ordinary return.
package futex

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	opWait = 0 // FUTEX_WAIT; without FUTEX_PRIVATE_FLAG, for the word is shared between processes
	opWake = 1 // FUTEX_WAKE
)

// Wait sleeps while *word is value, at most for timeout. It may return early for no reason.
func Wait(word *atomic.Uint32, value uint32, timeout time.Duration) {
	ts := unix.NsecToTimespec(int64(timeout))
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), opWait, uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// Wake wakes everybody who sleeps on word.
func Wake(word *atomic.Uint32) {
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), opWake, math.MaxInt32, 0, 0, 0)
}
