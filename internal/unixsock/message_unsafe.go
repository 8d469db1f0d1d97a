package unixsock

import (
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The two operations keep header, vector and control block in the Conn, and the netpoller's callback as a field, so that
// a message costs no allocation.

// Room for MaxFDs descriptors and one ucred, each with its header; in words for alignment.
type controlBlock [(1072 + 64) / 8]uint64

type receiver struct {
	mu      sync.Mutex
	attempt func(fd uintptr) bool
	wait    bool
	pool    *Pool
	buf     *Buffer
	n       int
	errno   syscall.Errno
	hdr     unix.Msghdr
	iov     unix.Iovec
	own     *controlBlock // made by the first Recv without a pool
	block   *controlBlock // own, or buf's
}

func (r *receiver) prepare() {
	r.hdr.Iov = &r.iov
	r.hdr.SetIovlen(1)
	// Non-blocking, so that the raw form is right: it can't hold up a stop-the-world.
	r.attempt = func(fd uintptr) bool {
		if r.pool != nil {
			r.buf = r.pool.pool.Get().(*Buffer)
			r.block = &r.buf.block
			r.iov.Base = unsafe.SliceData(r.buf.Data)
			r.iov.SetLen(len(r.buf.Data))
		}
		for {
			r.hdr.Control = (*byte)(unsafe.Pointer(r.block))
			r.hdr.SetControllen(len(r.block) * 8)
			n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.hdr)), unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if errno == unix.EINTR {
				continue
			}
			r.n, r.errno = int(n), errno
			if errno == unix.EAGAIN && r.wait {
				if r.pool != nil {
					r.pool.Put(r.end())
				}
				return false
			}
			return true
		}
	}
}

func (r *receiver) begin(buf []byte, pool *Pool, wait bool) {
	r.pool, r.wait, r.n, r.errno = pool, wait, 0, 0
	if pool == nil {
		if r.own == nil {
			r.own = new(controlBlock)
		}
		r.block = r.own
		r.iov.Base = unsafe.SliceData(buf)
		r.iov.SetLen(len(buf))
	}
}

// end lets go of the buffer and returns it if it is the pool's.
func (r *receiver) end() *Buffer {
	b := r.buf
	r.buf, r.block, r.iov.Base, r.hdr.Control = nil, nil, nil, nil
	return b
}

func (r *receiver) flags() int { return int(r.hdr.Flags) }

// control reads what the kernel wrote (never the peer) and returns every descriptor in it.
func (r *receiver) control() (fds []int, cred Ucred) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(r.block)), len(r.block)*8)[:r.hdr.Controllen]
	return parseControl(b)
}

func parseControl(b []byte) (fds []int, cred Ucred) {
	for len(b) >= unix.SizeofCmsghdr {
		h := *(*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			return fds, cred
		}
		data := b[unix.SizeofCmsghdr:size]
		if h.Level == unix.SOL_SOCKET {
			switch h.Type {
			case unix.SCM_RIGHTS:
				if fds == nil {
					fds = make([]int, 0, len(data)/4)
				}
				for ; len(data) >= 4; data = data[4:] {
					fds = append(fds, int(*(*int32)(unsafe.Pointer(unsafe.SliceData(data)))))
				}
			case unix.SCM_CREDENTIALS:
				if len(data) >= unix.SizeofUcred {
					u := *(*unix.Ucred)(unsafe.Pointer(unsafe.SliceData(data)))
					cred = Ucred{PID: int(u.Pid), UID: u.Uid, GID: u.Gid}
				}
			}
		}
		b = b[min(len(b), (size+7)&^7):]
	}
	return fds, cred
}

type sender struct {
	mu      sync.Mutex
	attempt func(fd uintptr) bool
	wait    bool
	errno   syscall.Errno
	hdr     unix.Msghdr
	iov     [2]unix.Iovec
	block   *controlBlock // made by the first message that needs it
}

func (s *sender) prepare() {
	s.hdr.Iov = &s.iov[0]
	s.attempt = func(fd uintptr) bool {
		for {
			_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if errno == unix.EINTR {
				continue
			}
			s.errno = errno
			return errno != unix.EAGAIN || !s.wait
		}
	}
}

func (s *sender) begin(head, body []byte, fds []int, as *Ucred, wait bool) {
	s.wait, s.errno = wait, 0
	for i, part := range [2][]byte{head, body} {
		s.iov[i].Base = unsafe.SliceData(part)
		s.iov[i].SetLen(len(part))
	}
	s.hdr.SetIovlen(2)
	s.hdr.Control, s.hdr.Controllen = nil, 0
	if len(fds) == 0 && as == nil {
		return
	}
	if s.block == nil {
		s.block = new(controlBlock)
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(s.block)), len(s.block)*8)
	used := 0
	if len(fds) > 0 {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		h.SetLen(unix.CmsgLen(4 * len(fds)))
		for i, fd := range fds {
			*(*int32)(unsafe.Pointer(&b[unix.CmsgLen(4*i)])) = int32(fd)
		}
		used = unix.CmsgSpace(4 * len(fds))
	}
	if as != nil {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[used]))
		h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_CREDENTIALS
		h.SetLen(unix.CmsgLen(unix.SizeofUcred))
		*(*unix.Ucred)(unsafe.Pointer(&b[used+unix.CmsgLen(0)])) = unix.Ucred{Pid: int32(as.PID), Uid: as.UID, Gid: as.GID}
		used += unix.CmsgSpace(unix.SizeofUcred)
	}
	s.hdr.Control = &b[0]
	s.hdr.SetControllen(used)
}

func (s *sender) end() { s.iov[0].Base, s.iov[1].Base = nil, nil }

func peerGroups(fd int) ([]uint32, error) {
	// The kernel says how many there are when the room was short (NGROUPS_MAX is 65,536).
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size) > len(groups)*4:
			groups = make([]uint32, size/4)
		case errno == unix.ENODATA:
			return nil, nil
		default:
			return nil, os.NewSyscallError("getsockopt", errno)
		}
	}
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
