// Package unixsock has SOCK_SEQPACKET sockets with what package net leaves out: who sent a message (SCM_CREDENTIALS), who
// the peer is (SO_PEERCRED, SO_PEERPIDFD, SO_PEERGROUPS), file descriptors, and no allocation per message.
//
// The peer is distrusted: descriptors that it sends are close-on-exec from the start, a message or control block that
// was cut short closes every descriptor that came with it, and nothing that the peer does can block the caller past the
// file's deadline.
//
// Lock order: Conn.recv.mu and Conn.send.mu are leaves and never held together.
package unixsock

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFDs is the most descriptors that one message can carry (the kernel's SCM_MAX_FD).
const MaxFDs = 253

var (
	// ErrTruncated is a datagram longer than the receiver's buffer; it is lost.
	ErrTruncated = errors.New("datagram longer than the buffer")
	// ErrControlTruncated is a control block that did not fit, or descriptors that the receiver's limit kept out.
	ErrControlTruncated = errors.New("control data truncated: descriptors were lost")
	// ErrWouldBlock is a socket buffer that is full (TrySend) or empty (TryRecv).
	ErrWouldBlock = errors.New("socket would block")
)

// Ucred is a sender as the kernel attached it to a message, in the receiver's namespaces. PID 0 means that the kernel
// attached none. A sender with CAP_SYS_ADMIN over its pid namespace may have stated another pid; see docs/security.md.
type Ucred struct {
	PID      int
	UID, GID uint32
}

// Conn is one end of a SOCK_SEQPACKET connection, non-blocking and known to the Go netpoller. It is safe for concurrent
// use; concurrent Recv calls take turns, and so do concurrent Send calls.
type Conn struct {
	file *os.File
	raw  syscall.RawConn
	recv receiver
	send sender
}

// NewConn takes ownership of fd, a connected SOCK_SEQPACKET socket; it is closed when NewConn fails.
func NewConn(fd int) (*Conn, error) {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		unix.Close(fd)
		if err == nil {
			err = unix.EPROTOTYPE
		}
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	c := &Conn{file: os.NewFile(uintptr(fd), "seqpacket")}
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.file.Close()
		return nil, err
	}
	c.raw = raw
	c.recv.prepare()
	c.send.prepare()
	return c, nil
}

// Pair returns two connected ends. Both attach and ask for credentials from the first message on.
func Pair() (a, b *Conn, err error) {
	fds, err := PairFDs()
	if err != nil {
		return nil, nil, err
	}
	if a, err = NewConn(fds[0]); err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	if b, err = NewConn(fds[1]); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// PairFDs returns the descriptors of two connected ends, for handing one or both to other processes. SO_PASSCRED is set
// on both, so that a message which is sent before the receiver has wrapped its end carries its sender too.
func PairFDs() ([2]int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fds, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return fds, os.NewSyscallError("setsockopt", err)
		}
	}
	return fds, nil
}

// CloseFDs closes descriptors that nobody owns yet.
func CloseFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Discard closes descriptors that a peer sent, without waiting: a file system of the peer's own may hold up a close.
func Discard(fds []int) {
	if len(fds) > 0 {
		go CloseFDs(fds)
	}
}

// Listener is a listening SOCK_SEQPACKET socket.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
}

// Listen binds path, which must not exist, and listens. A path longer than a socket address takes is bound through its
// directory's descriptor. The file's mode is the umask's business; the caller removes the file.
func Listen(path string) (*Listener, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	err = withAddress(path, func(sa unix.Sockaddr) error { return os.NewSyscallError("bind", unix.Bind(fd, sa)) })
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1024))
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "listen", Path: path, Err: err}
	}
	l := &Listener{file: os.NewFile(uintptr(fd), path)}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// Accept waits for the next connection. It returns os.ErrClosed after Close.
func (l *Listener) Accept() (*Conn, error) {
	var fd int
	var err error
	if rerr := l.raw.Read(func(s uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	}); rerr != nil {
		return nil, rerr
	}
	if err != nil {
		return nil, os.NewSyscallError("accept4", err)
	}
	return NewConn(fd)
}

// Close stops listening; a pending Accept returns.
func (l *Listener) Close() error { return l.file.Close() }

// Dial connects to the listener at path. It doesn't wait: a full backlog is EAGAIN.
func Dial(path string) (*Conn, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	err = withAddress(path, func(sa unix.Sockaddr) error {
		for {
			if err := unix.Connect(fd, sa); err != unix.EINTR {
				return os.NewSyscallError("connect", err)
			}
		}
	})
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "dial", Path: path, Err: err}
	}
	return NewConn(fd)
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// Before bind: accepted sockets inherit it, so that a client's first words carry their sender.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt", err)
	}
	return fd, nil
}

// withAddress runs fn with an address for path; one too long for sun_path goes through /proc/self/fd of its directory.
func withAddress(path string, fn func(unix.Sockaddr) error) error {
	if len(path) < len(unix.RawSockaddrUnix{}.Path) {
		return fn(&unix.SockaddrUnix{Name: path})
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(dir)
	return fn(&unix.SockaddrUnix{Name: procFD(dir) + "/" + filepath.Base(path)})
}

// Pool keeps receive buffers of one size, so that a connection which waits holds none.
type Pool struct{ pool sync.Pool }

// Buffer is room for one datagram and what the kernel attaches to it.
type Buffer struct {
	block controlBlock
	Data  []byte
}

// NewPool returns a pool of buffers of size bytes.
func NewPool(size int) *Pool {
	return &Pool{pool: sync.Pool{New: func() any { return &Buffer{Data: make([]byte, size)} }}}
}

// Put gives back a buffer of RecvPool; nil is nothing.
func (p *Pool) Put(b *Buffer) {
	if b != nil {
		p.pool.Put(b)
	}
}

// RecvPool is Recv into a buffer of pool, taken only when there is something to receive. The caller puts it back; it is
// nil when err isn't.
func (c *Conn) RecvPool(pool *Pool) (b *Buffer, n int, fds []int, cred Ucred, err error) {
	return c.receive(nil, pool, true, c.raw.Read)
}

// TryRecvPool is RecvPool that never waits, not even for a WaitHangup that is under way.
func (c *Conn) TryRecvPool(pool *Pool) (b *Buffer, n int, fds []int, cred Ucred, err error) {
	return c.receive(nil, pool, false, c.tryRead)
}

func (c *Conn) tryRead(attempt func(fd uintptr) bool) error {
	return c.raw.Control(func(fd uintptr) { attempt(fd) })
}

// WaitHangup takes nothing from the socket. It returns nil when the connection was shut down, by whichever side, even if
// messages are still queued; os.ErrDeadlineExceeded past the read deadline. Recv waits for it to return.
func (c *Conn) WaitHangup() error {
	return c.raw.Read(hungUp)
}

func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err != nil || fds[0].Revents != 0
		}
	}
}

// Recv waits for the next datagram and returns its length in buf, the descriptors that came with it (owned by the
// caller, close-on-exec) and its sender. io.EOF is the peer's close, or an empty datagram, which nobody may send.
func (c *Conn) Recv(buf []byte) (n int, fds []int, cred Ucred, err error) {
	_, n, fds, cred, err = c.receive(buf, nil, true, c.raw.Read)
	return n, fds, cred, err
}

// TryRecv is Recv that returns ErrWouldBlock where Recv would wait.
func (c *Conn) TryRecv(buf []byte) (n int, fds []int, cred Ucred, err error) {
	_, n, fds, cred, err = c.receive(buf, nil, false, c.raw.Read)
	return n, fds, cred, err
}

func (c *Conn) receive(buf []byte, pool *Pool, wait bool, read func(func(fd uintptr) bool) error) (b *Buffer, n int, fds []int, cred Ucred, err error) {
	r := &c.recv
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin(buf, pool, wait)
	rerr := read(r.attempt)
	errno, flags := r.errno, r.flags()
	n = r.n
	if rerr == nil && errno == 0 {
		fds, cred = r.control()
	}
	b = r.end()
	switch {
	case rerr != nil:
		err = rerr
	case errno == unix.EAGAIN:
		err = ErrWouldBlock
	case errno == unix.ECONNRESET, errno == 0 && n == 0:
		err = io.EOF
	case errno != 0:
		err = os.NewSyscallError("recvmsg", errno)
	case flags&unix.MSG_CTRUNC != 0:
		err = ErrControlTruncated
	case flags&unix.MSG_TRUNC != 0:
		err = ErrTruncated
	default:
		return b, n, fds, cred, nil
	}
	Discard(fds)
	if pool != nil {
		pool.Put(b)
	}
	return nil, 0, nil, cred, err
}

// Send sends payload, which must not be empty, with fds (which stay the caller's) as one datagram and waits for room.
func (c *Conn) Send(payload []byte, fds []int) error { return c.transmit(payload, nil, fds, nil, true) }

// SendParts is Send of head and body as one datagram.
func (c *Conn) SendParts(head, body []byte, fds []int) error {
	return c.transmit(head, body, fds, nil, true)
}

// TrySendParts is SendParts that returns ErrWouldBlock where SendParts would wait.
func (c *Conn) TrySendParts(head, body []byte, fds []int) error {
	return c.transmit(head, body, fds, nil, false)
}

// TrySend is Send that returns ErrWouldBlock where Send would wait.
func (c *Conn) TrySend(payload []byte, fds []int) error {
	return c.transmit(payload, nil, fds, nil, false)
}

// SendAs is Send with a stated sender. The kernel takes only what the caller is or may claim to be: tests use it.
func (c *Conn) SendAs(payload []byte, fds []int, as Ucred) error {
	return c.transmit(payload, nil, fds, &as, true)
}

func (c *Conn) transmit(head, body []byte, fds []int, as *Ucred, wait bool) error {
	if len(fds) > MaxFDs {
		return os.NewSyscallError("sendmsg", unix.EINVAL)
	}
	s := &c.send
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin(head, body, fds, as, wait)
	werr := c.raw.Write(s.attempt)
	errno := s.errno
	s.end()
	switch {
	case werr != nil:
		return werr
	case errno == unix.EAGAIN:
		return ErrWouldBlock
	case errno != 0:
		return os.NewSyscallError("sendmsg", errno)
	}
	return nil
}

// SetReadDeadline bounds Recv; past it Recv returns os.ErrDeadlineExceeded. A pending Recv obeys it too.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// SetWriteDeadline bounds Send likewise.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }

// Shutdown ends the connection for everybody who holds either end, however many processes inherited them. Every
// pending and later Recv sees what was sent before, then io.EOF.
func (c *Conn) Shutdown() error {
	return c.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_RDWR)) })
}

// Close releases the descriptor; other holders of this end keep it alive, so that a connection is ended by Shutdown.
func (c *Conn) Close() error { return c.file.Close() }

// File returns a duplicate of the descriptor, for handing it to another process.
func (c *Conn) File() (f *os.File, err error) {
	err = c.control(func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		f = os.NewFile(uintptr(dup), "seqpacket")
		return nil
	})
	return f, err
}

// PeerCred returns who connected or made the pair: the pid (in the caller's namespace) and effective ids of that moment.
func (c *Conn) PeerCred() (cred Ucred, err error) {
	err = c.control(func(fd int) error {
		u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		cred = Ucred{PID: int(u.Pid), UID: u.Uid, GID: u.Gid}
		return nil
	})
	return cred, err
}

// PeerPIDFD returns a pidfd of the process that connected or made the pair, which never becomes another's. The caller
// closes it. It is ESRCH or EINVAL when that process is gone and reaped.
func (c *Conn) PeerPIDFD() (f *os.File, err error) {
	err = c.control(func(fd int) error {
		p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		unix.SetNonblock(p, true)
		f = os.NewFile(uintptr(p), "pidfd")
		return nil
	})
	return f, err
}

// PeerGroups returns the peer's supplementary groups at the time of its connect.
func (c *Conn) PeerGroups() (groups []uint32, err error) {
	err = c.control(func(fd int) error {
		groups, err = peerGroups(fd)
		return err
	})
	return groups, err
}

// SetPassRights says whether this end takes descriptors. Off, the kernel refuses the peer's send with EPERM. It is
// errors.ErrUnsupported on a kernel older than 6.16.
func (c *Conn) SetPassRights(on bool) error {
	v := 0
	if on {
		v = 1
	}
	return c.control(func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, v)
		if err == unix.ENOPROTOOPT {
			return errors.ErrUnsupported
		}
		return os.NewSyscallError("setsockopt", err)
	})
}

// SetBuffer sets the socket's send buffer in bytes: what one side can have queued at the other.
func (c *Conn) SetBuffer(n int) error {
	return c.control(func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n))
	})
}

func (c *Conn) control(fn func(fd int) error) error {
	var err error
	if cerr := c.raw.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// WithFDs runs fn with the descriptors of files, each held open meanwhile: a file that another goroutine closes can't
// turn into another's descriptor on the way.
func WithFDs(files []*os.File, fn func(fds []int) error) error {
	return withFDs(files, make([]int, 0, len(files)), fn)
}

func withFDs(files []*os.File, fds []int, fn func(fds []int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	if files[0] == nil {
		return os.ErrInvalid
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = withFDs(files[1:], append(fds, int(fd)), fn) }); err != nil {
		return err
	}
	return ferr
}
