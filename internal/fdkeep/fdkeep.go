// Package fdkeep holds descriptors for somebody else without using them.
//
// An *os.File of a non-blocking descriptor is in the runtime's poller, so that a terminal or socket that is merely kept
// would wake its keeper at each message. A Kept is outside of it. It belongs to one owner at a time and isn't safe for
// concurrent use.
package fdkeep

import (
	"os"

	"golang.org/x/sys/unix"
)

// Kept is a duplicate of a descriptor. The zero value holds nothing.
type Kept struct{ fd int } // the descriptor plus one, so that the zero value isn't 0

// Keep duplicates f, which stays the caller's.
func Keep(f *os.File) (Kept, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return Kept{}, err
	}
	var k Kept
	var derr error
	err = raw.Control(func(fd uintptr) { k.fd, derr = duplicate(int(fd)) })
	if err == nil {
		err = derr
	}
	if err != nil {
		return Kept{}, err
	}
	k.fd++
	return k, nil
}

func duplicate(fd int) (int, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return dup, os.NewSyscallError("fcntl", err)
}

// File returns a duplicate, which the caller closes.
func (k Kept) File() (*os.File, error) {
	if k.fd == 0 {
		return nil, os.ErrClosed
	}
	fd, err := duplicate(k.fd - 1)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "kept"), nil
}

// Close lets the descriptor go. It may be called again.
func (k *Kept) Close() error {
	if k.fd == 0 {
		return nil
	}
	fd := k.fd - 1
	k.fd = 0
	return os.NewSyscallError("close", unix.Close(fd))
}
