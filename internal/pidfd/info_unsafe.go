package pidfd

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is the first version of the kernel's struct pidfd_info (linux/pidfd.h), which later kernels still answer.
type pidfdInfo struct {
	mask, cgroup    uint64
	pid, tgid, ppid uint32
	ids             [8]uint32
	exitCode        int32
}

const getInfo = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xFF<<8 | 11 // _IOWR(0xFF, 11, struct pidfd_info)

func ioctlInfo(fd int) (processInfo, error) {
	in := pidfdInfo{mask: unix.PIDFD_INFO_PID | unix.PIDFD_INFO_CREDS}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getInfo, uintptr(unsafe.Pointer(&in)))
	switch {
	case errno == unix.ENOTTY, errno == unix.EINVAL:
		return processInfo{}, errno
	case errno != 0:
		return processInfo{}, os.NewSyscallError("ioctl", errno)
	case in.mask&unix.PIDFD_INFO_PID == 0 || in.tgid == 0:
		return processInfo{}, unix.ESRCH
	}
	out := processInfo{pid: int(in.tgid), ppid: int(in.ppid), euid: -1}
	if in.mask&unix.PIDFD_INFO_CREDS != 0 {
		out.euid = int64(in.ids[2]) // ruid, rgid, euid, …
	}
	return out, nil
}
