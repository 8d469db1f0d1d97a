// Package pidfd has what the kernel knows about a process through a descriptor that never becomes another's.
//
// A number of type pid is only a hint: it may be another process by now. A pidfd is a proof.
package pidfd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidfsMagic is the file system of pidfds since Linux 6.9, whose inode numbers are never reused in one boot.
const pidfsMagic = 0x50494446

// Key names one process of this boot for good: comparable, and different for every process that ever lives.
type Key struct {
	Inode uint64 // pidfs inode; 0 before Linux 6.9
	PID   int    // where there is no pidfs: the pid and
	Start uint64 // the start time in clock ticks since boot
}

// Open returns a pidfd of the process that has the pid now. Whoever got the pid from elsewhere must prove afterwards that
// it is the process meant. The caller closes it.
func Open(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Self returns a pidfd of the calling process. The caller closes it.
func Self() (*os.File, error) { return Open(os.Getpid()) }

// Alive reports whether the process has not exited; a zombie isn't alive.
func Alive(p *os.File) bool {
	alive := false
	withFD(p, func(fd int) error {
		alive = !readable(fd)
		return nil
	})
	return alive
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n > 0
	}
}

// Wait returns nil when the process has exited, or the context's error. Any number of goroutines may wait; each costs a
// descriptor and no thread.
func Wait(ctx context.Context, p *os.File) error {
	own, err := reopen(p)
	if err != nil || own == nil {
		return err
	}
	defer own.Close()
	raw, err := own.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { own.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// reopen returns a descriptor of p's process with flags of its own: the netpoller wants O_NONBLOCK, which would make waitid fail with
// EAGAIN for whoever shares p. It is nil when the process is gone.
func reopen(p *os.File) (*os.File, error) {
	pid, err := PID(p)
	if err != nil {
		if !Alive(p) {
			return nil, nil
		}
		return nil, err // this namespace can't see it
	}
	own, err := Open(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	is, err := KeyOf(own)
	if err == nil {
		var want Key
		if want, err = KeyOf(p); err == nil && is == want {
			return own, nil
		}
	}
	own.Close()
	if !Alive(p) {
		err = nil // the number is another's by now, or nobody's
	}
	return nil, err
}

// Signal sends sig to the process. It is ESRCH when the process is gone.
func Signal(p *os.File, sig syscall.Signal) error {
	return withFD(p, func(fd int) error {
		return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(fd, sig, nil, 0))
	})
}

// PID returns the process's pid in the caller's pid namespace: ESRCH when it is gone and reaped, and also when that
// namespace can't see it. It is for showing, and for comparing with what the kernel attached to a message.
func PID(p *os.File) (int, error) {
	in, err := info(p)
	return in.pid, err
}

// Parent returns the pid of the process's parent at this moment, 0 where the caller's namespace can't see it.
func Parent(p *os.File) (int, error) {
	in, err := info(p)
	if err != nil || in.ppid >= 0 {
		return in.ppid, err
	}
	stat, err := procStat(in.pid)
	if err == nil && !Alive(p) {
		err = unix.ESRCH // the pid may have been another's when it was read
	}
	return stat.ppid, err
}

// EUID returns the process's effective user id at this moment, in the caller's user namespace.
func EUID(p *os.File) (uint32, error) {
	in, err := info(p)
	if err != nil || in.euid >= 0 {
		return uint32(in.euid), err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.pid))
	if err == nil && !Alive(p) {
		err = unix.ESRCH // the pid may have been another's when it was read
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			uid, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(uid), err
		}
	}
	return 0, errors.New("no user id in status")
}

// KeyOf returns the process's unique identity. It holds while the process lives and after.
func KeyOf(p *os.File) (Key, error) {
	var key Key
	err := withFD(p, func(fd int) error {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return os.NewSyscallError("fstatfs", err)
		}
		if fs.Type != pidfsMagic {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		key.Inode = st.Ino
		return nil
	})
	if err != nil || key.Inode != 0 {
		return key, err
	}
	pid, err := PID(p)
	if err != nil {
		return Key{}, err
	}
	stat, err := procStat(pid)
	if err == nil && !Alive(p) {
		err = unix.ESRCH
	}
	return Key{PID: pid, Start: stat.start}, err
}

type processInfo struct {
	pid, ppid int   // ppid -1: not told
	euid      int64 // -1: not told
}

func info(p *os.File) (in processInfo, err error) {
	err = withFD(p, func(fd int) error {
		in, err = ioctlInfo(fd)
		if err != unix.ENOTTY && err != unix.EINVAL {
			return err
		}
		// Before Linux 6.13 only the text form has it.
		text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
		if err != nil {
			return err
		}
		in, err = parseInfo(string(text))
		return err
	})
	return in, err
}

func parseInfo(text string) (processInfo, error) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				return processInfo{}, err
			}
			if pid <= 0 {
				return processInfo{}, unix.ESRCH
			}
			return processInfo{pid: pid, ppid: -1, euid: -1}, nil
		}
	}
	return processInfo{}, errors.New("not a pidfd")
}

type statLine struct {
	ppid  int
	start uint64
}

func procStat(pid int) (statLine, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return statLine{}, err
	}
	return parseStat(string(text))
}

// parseStat reads proc_pid_stat(5); the command in brackets may hold anything, brackets too.
func parseStat(text string) (statLine, error) {
	i := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[i+1:])
	if i < 0 || len(fields) < 20 {
		return statLine{}, errors.New("malformed stat line")
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return statLine{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return statLine{ppid: ppid, start: start}, err
}

func withFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
