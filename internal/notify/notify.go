// Package notify receives the datagrams of sd_notify(3): how a program that knows nothing of us says that it is ready.
//
// Every sender is distrusted. The kernel says who sent a datagram (SCM_CREDENTIALS); whether that process may speak for a
// service is the caller's to decide. A datagram that is too long is refused whole, and descriptors that come with one are closed
// at once, which is also the answer that a barrier waits for. A Socket holds no lock; one goroutine receives.
package notify

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"sallyport/ntstatus"
)

// MaxDatagram is the longest message that is taken, in bytes.
const MaxDatagram = 4096

// maxExtend bounds EXTEND_TIMEOUT_USEC.
const maxExtend = time.Hour

// Message is what a datagram says. Fields that it doesn't name are zero.
type Message struct {
	Ready    bool
	Stopping bool
	Watchdog bool
	Status   string        // a sentence for people
	MainPID  int           // who the sender says is the service; a claim, nothing more
	Extend   time.Duration // EXTEND_TIMEOUT_USEC
}

// Parse reads a datagram: lines of NAME=value. Unknown names are ignored, as sd_notify(3) says; what is malformed is
// INVALID_MESSAGE as a whole.
func Parse(datagram []byte) (Message, error) {
	var m Message
	invalid := func(what string) (Message, error) {
		return Message{}, ntstatus.Errorf("notify.Parse", "", ntstatus.InvalidMessage, "%s", what)
	}
	if len(datagram) > MaxDatagram {
		return invalid("the datagram is too long")
	}
	if !utf8.Valid(datagram) || bytes.IndexByte(datagram, 0) >= 0 {
		return invalid("the datagram is not text")
	}
	for line := range strings.SplitSeq(string(datagram), "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" {
			return invalid("a line is not NAME=value")
		}
		switch name {
		case "READY":
			m.Ready = m.Ready || value == "1"
		case "STOPPING":
			m.Stopping = m.Stopping || value == "1"
		case "WATCHDOG":
			m.Watchdog = m.Watchdog || value == "1"
		case "STATUS":
			m.Status = value
		case "MAINPID":
			pid, err := strconv.ParseInt(value, 10, 32)
			if err != nil || pid <= 0 {
				return invalid("MAINPID is not a process number")
			}
			m.MainPID = int(pid)
		case "EXTEND_TIMEOUT_USEC":
			usec, err := strconv.ParseUint(value, 10, 63)
			if err != nil {
				return invalid("EXTEND_TIMEOUT_USEC is not a number")
			}
			m.Extend = maxExtend
			if usec < uint64(maxExtend/time.Microsecond) {
				m.Extend = time.Duration(usec) * time.Microsecond
			}
		}
	}
	return m, nil
}

// Socket is a bound datagram socket, non-blocking and known to the Go netpoller.
type Socket struct{ file *os.File }

// Listen binds path, which must not exist and must fit a socket address, or an abstract name with a leading @. Anybody who
// can reach it can send: mode 0666, as the sender is proven by the kernel.
func Listen(path string) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Before bind, so that no datagram comes without its sender.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil && !strings.HasPrefix(path, "@") {
			err = unix.Chmod(path, 0o666)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "bind", Path: path, Err: err}
	}
	return &Socket{os.NewFile(uintptr(fd), "notify:"+path)}, nil
}

// Fits reports whether path is short enough for a socket address.
func Fits(path string) bool { return len(path) < len(unix.RawSockaddrUnix{}.Path) }

// Adopt takes ownership of a socket that Listen made in another process.
func Adopt(f *os.File) (*Socket, error) {
	raw, err := f.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), true) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		return nil, ntstatus.Wrap("notify.Adopt", f.Name(), err)
	}
	return &Socket{f}, nil
}

// File is the socket itself, for keeping it elsewhere; it stays the Socket's.
func (s *Socket) File() *os.File { return s.file }

// Close ends a pending Peek with os.ErrClosed. Holders of a duplicate keep the socket alive.
func (s *Socket) Close() error { return s.file.Close() }

// Peek waits for the next datagram and returns it with its sender's pid in the caller's namespace; it stays the next until Drop,
// so that what its reader has not dealt with when it dies is its successor's. INVALID_MESSAGE is a datagram that was refused, with its
// sender: drop it. Any other error is the socket's end.
func (s *Socket) Peek(buf []byte) (datagram []byte, pid int, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*253))
	var n, controls, flags int
	var rerr error
	if raw.Read(func(fd uintptr) bool {
		n, controls, flags, _, rerr = unix.Recvmsg(int(fd), buf, control, unix.MSG_CMSG_CLOEXEC|unix.MSG_PEEK)
		return !errors.Is(rerr, unix.EAGAIN)
	}) != nil {
		return nil, 0, os.ErrClosed // no deadline is ever set: there is no other reason
	}
	if errors.Is(rerr, unix.EINTR) {
		return s.Peek(buf)
	}
	if rerr != nil {
		return nil, 0, os.NewSyscallError("recvmsg", rerr)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil {
		flags |= unix.MSG_CTRUNC
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			pid = int(cred.Pid)
		} else if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || pid == 0 {
		return nil, pid, ntstatus.Errorf("notify.Peek", strconv.Itoa(pid), ntstatus.InvalidMessage, "the datagram is too long, or has no sender")
	}
	return buf[:n], pid, nil
}

// Drop forgets the datagram that Peek returned.
func (s *Socket) Drop() {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_, _, _, _, _ = unix.Recvmsg(int(fd), nil, nil, unix.MSG_DONTWAIT)
	})
}

// Send sends text to the socket at path, as sd_notify does. It waits for room no longer than timeout.
func Send(path, text string, timeout time.Duration) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return os.NewSyscallError("sendto", unix.Sendto(fd, []byte(text), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path}))
}

// Session returns the number of the session that a process is in: the pid of the process that called setsid.
func Session(pid int) (int, error) { return unix.Getsid(pid) }
