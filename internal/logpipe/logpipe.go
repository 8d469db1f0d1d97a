// Package logpipe moves what a program writes from a pipe into a file without holding it in between: splice(2) takes it out
// of the pipe and appends it to the file in one call, so that a reader that is killed at any moment has lost nothing.
//
// The writer is distrusted and never waits for a disk: the pipe is as big as the kernel allows, and what can't be written
// is taken out all the same. Functions hold no lock; one goroutine at a time moves from a pipe.
package logpipe

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sallyport/ntstatus"
)

// capacity of a pipe, in bytes: what an unprivileged process may ask for.
const capacity = 1 << 20

// New makes a pipe. The read end is non-blocking, for the Go netpoller; the write end blocks, as programs expect of their
// standard output. The caller closes both.
func New() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	// Less is granted to a user who has many pipes: then it is smaller, nothing worse.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, capacity)
	return os.NewFile(uintptr(fds[0]), "log pipe"), os.NewFile(uintptr(fds[1]), "log pipe"), nil
}

// Wait returns when the pipe has something to take out, or nobody can write to it any more. os.ErrClosed when r was closed.
func Wait(r *os.File) error {
	raw, err := r.SyscallConn()
	if err != nil {
		return err
	}
	if raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	}) != nil {
		return os.ErrClosed // no deadline is ever set: there is no other reason
	}
	return nil
}

// Append moves up to limit bytes from the pipe to dst, a regular file that is open for writing without O_APPEND, at offset. It
// does not wait: 0 and nil where the pipe is empty, io.EOF where nobody can write to it any more. After an error of dst nothing was
// taken from the pipe.
func Append(r, dst *os.File, limit int, offset int64) (n int, err error) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = move(int(fd), dst, limit, offset) }); cerr != nil {
		return 0, cerr
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return n, err
}

func move(from int, dst *os.File, limit int, offset int64) (n int, err error) {
	to, err := dst.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := to.Control(func(fd uintptr) {
		for {
			var moved int64
			at := offset
			moved, err = unix.Splice(from, nil, int(fd), &at, limit, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			n = int(moved)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}); cerr != nil {
		return 0, cerr
	}
	if errors.Is(err, unix.EINVAL) {
		return copyOut(from, dst, limit, offset)
	}
	return max(n, 0), err
}

// copyOut serves file systems that can't splice; here a kill between the two calls loses what was read.
func copyOut(from int, dst *os.File, limit int, offset int64) (int, error) {
	buf := make([]byte, min(limit, 64<<10))
	n, err := unix.Read(from, buf)
	if err != nil || n <= 0 {
		return 0, err
	}
	if _, err := dst.WriteAt(buf[:n], offset); err != nil {
		return 0, ntstatus.Wrap("logpipe.Append", dst.Name(), err)
	}
	return n, nil
}

// Discard takes up to len(buf) bytes out of the pipe without waiting, and returns how many.
func Discard(r *os.File, buf []byte) (n int) {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
	return max(n, 0)
}
