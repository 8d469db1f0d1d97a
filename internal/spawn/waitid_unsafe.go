package spawn

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childInfo is the kernel's siginfo_t as waitid fills it (asm-generic/siginfo.h, 64-bit layout).
type childInfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [100]byte
}

// The values of si_code for a child that ended (bits/siginfo-consts.h).
const (
	cldExited = 1
	cldDumped = 3
)

// waitid asks for the exit of the child behind a pidfd; EAGAIN while it runs and options have WNOHANG.
func waitid(fd, options int) (Exit, error) {
	var info childInfo
	for {
		err := unix.Waitid(unix.P_PIDFD, fd, (*unix.Siginfo)(unsafe.Pointer(&info)), options, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Exit{}, os.NewSyscallError("waitid", err)
		}
		break
	}
	switch {
	case info.pid == 0:
		return Exit{}, os.NewSyscallError("waitid", unix.EAGAIN)
	case info.code == cldExited:
		return Exit{Code: int(info.status)}, nil
	}
	return Exit{Signal: syscall.Signal(info.status), CoreDumped: info.code == cldDumped}, nil
}
