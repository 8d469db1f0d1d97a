package unixsock

import (
	"os"

	"golang.org/x/sys/unix"
)

// Dup returns another descriptor of f's open file, close-on-exec. The caller closes it.
func Dup(f *os.File) (*os.File, error) {
	fd, err := dup(f)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// FromFile makes a Conn of a connected SOCK_SEQPACKET socket in a file, which it takes over.
func FromFile(f *os.File) (*Conn, error) {
	fd, err := Detach(f)
	if err != nil {
		return nil, err
	}
	return NewConn(fd)
}

func dup(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return -1, cerr
	}
	return fd, os.NewSyscallError("fcntl", err)
}

// Detach returns f's open file as a bare descriptor that the caller owns; f is closed.
func Detach(f *os.File) (int, error) {
	defer f.Close()
	return dup(f)
}
