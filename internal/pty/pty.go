// Package pty makes pseudo-terminals and sets their line discipline: /dev/ptmx, TIOCSPTLCK, TIOCGPTPEER, winsize and
// termios.
//
// A master and its peer are held by parties that distrust each other: whoever holds the peer may change the modes and
// the size at any time, write without end, or hang it up. So a value read here is true only of the moment, and a
// reader of the master never relies on the modes that it set.
//
// The functions hold no state and take no locks; each may be called concurrently on the same file.
package pty

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Size is a terminal's size in character cells. The kernel accepts any value, also 0, which means unknown.
type Size struct {
	Columns, Rows uint16
}

// Open makes a pseudo-terminal of the given size and returns its master, which the caller owns. The master is
// non-blocking, so that reads and writes wait in the runtime's poller and end when it is closed.
func Open(size Size) (*os.File, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	err = control(master, "unlock", func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) })
	if err == nil {
		err = SetSize(master, size)
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	return master, nil
}

// Peer opens the slave side of a master and returns it; the caller owns it. It is a new, blocking open file
// description each time, fit to be the standard streams of a program. It needs neither a path nor a mounted devpts of
// the caller's, so it can't be another terminal of the same name.
func Peer(master *os.File) (*os.File, error) {
	name, err := Name(master)
	if err != nil {
		return nil, err
	}
	var peer *os.File
	err = control(master, "open peer", func(fd int) error {
		const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, flags)
		if errno != 0 {
			return errno
		}
		peer = os.NewFile(r, name)
		return nil
	})
	return peer, err
}

// Name returns the path of a master's slave side in its devpts, as "/dev/pts/3". It is for the eye: see Peer.
func Name(master *os.File) (string, error) {
	var n uint32
	err := control(master, "name peer", func(fd int) (err error) {
		n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		return err
	})
	return fmt.Sprintf("/dev/pts/%d", n), err
}

// Pollable returns a duplicate of f whose reads and writes wait in the runtime's poller, and so end when it is closed
// and honour deadlines. The caller owns it; f stays the caller's too. Being non-blocking is a property of the open
// file description, so every holder of that description sees it.
func Pollable(f *os.File) (*os.File, error) {
	var dup *os.File
	err := control(f, "duplicate", func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(n, true); err != nil {
			unix.Close(n)
			return err
		}
		dup = os.NewFile(uintptr(n), f.Name())
		return nil
	})
	return dup, err
}

// GetSize returns the size of the terminal, asked of either side.
func GetSize(f *os.File) (size Size, err error) {
	err = control(f, "get size", func(fd int) error {
		w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			size = Size{Columns: w.Col, Rows: w.Row}
		}
		return err
	})
	return size, err
}

// SetSize sets the size from either side; the foreground process group gets SIGWINCH if it changed.
func SetSize(f *os.File, size Size) error {
	return control(f, "set size", func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: size.Columns, Row: size.Rows})
	})
}

// control runs do on f's descriptor, which stays open meanwhile and keeps its mode (File.Fd would promise neither).
func control(f *os.File, op string, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	if inner != nil {
		return &os.PathError{Op: op, Path: f.Name(), Err: inner}
	}
	return nil
}
