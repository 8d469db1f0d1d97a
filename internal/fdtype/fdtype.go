// Package fdtype tells what kind of object a file descriptor is, from the kernel and never from who sent it.
package fdtype

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is one bit of NT's DupObjectTypes; a set of kinds is their union.
type Kind uint32

// What NT fixes (PORT_ATTRIBUTES.DupObjectTypes), as far as Linux has such a thing.
const (
	File      Kind = 0x1
	Thread    Kind = 0x4
	Semaphore Kind = 0x8
	Event     Kind = 0x10
	Process   Kind = 0x20
	Section   Kind = 0x80
	Token     Kind = 0x200
)

// What we chose.
const (
	Socket    Kind = 0x1000
	Pipe      Kind = 0x2000
	Terminal  Kind = 0x4000
	Directory Kind = 0x8000

	Any = File | Thread | Semaphore | Event | Process | Section | Token | Socket | Pipe | Terminal | Directory
)

// pidfsMagic is the file system of pidfds since Linux 6.9.
const pidfsMagic = 0x50494446

// Of returns the kind of f, 0 for what nobody may send: O_PATH descriptors, io_uring, epoll, block devices and the like.
func Of(f *os.File) Kind {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	var k Kind
	if raw.Control(func(fd uintptr) { k = OfFD(int(fd)) }) != nil {
		return 0
	}
	return k
}

// OfFD is Of for a descriptor that the caller owns.
func OfFD(fd int) Kind {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_PATH != 0 {
		return 0
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return Socket
	case unix.S_IFIFO:
		return Pipe
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFCHR:
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			return Terminal
		}
		return File
	case unix.S_IFREG:
		var fs unix.Statfs_t
		if unix.Fstatfs(fd, &fs) == nil && fs.Type == pidfsMagic {
			return pidfdKind(flags)
		}
		// A plain file of tmpfs answers too, always with this one seal.
		if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil && seals != unix.F_SEAL_SEAL {
			return Section
		}
		return File
	}
	return anonymous(fd, flags)
}

// anonymous tells the anonymous inodes apart; their names are the kernel's.
func anonymous(fd, flags int) Kind {
	target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return 0
	}
	switch target {
	case "anon_inode:[eventfd]":
		text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
		if err != nil {
			return 0
		}
		if strings.Contains(string(text), "eventfd-semaphore: 1") {
			return Semaphore
		}
		return Event
	case "anon_inode:[pidfd]":
		return pidfdKind(flags)
	}
	return 0
}

func pidfdKind(flags int) Kind {
	if flags&unix.PIDFD_THREAD != 0 {
		return Thread
	}
	return Process
}
