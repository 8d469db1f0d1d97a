// Package fdtype tells what kind of object a file descriptor is, from the kernel and never from who sent it.
//
// The descriptor may be of a file system that the sender serves himself (FUSE), so nothing is asked that such a file
// system could hold up: no plain stat, no statfs, no poll.
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
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st) != nil {
		return 0
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return Socket
	case unix.S_IFIFO:
		return Pipe
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFBLK:
		return 0
	case unix.S_IFCHR:
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			return Terminal
		}
		return File
	}
	// Names that don't begin with a slash are the kernel's own.
	target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	switch {
	case err != nil:
		return 0
	case strings.HasPrefix(target, "pidfd:["), target == "anon_inode:[pidfd]":
		return pidfdKind(flags)
	case target == "anon_inode:[eventfd]":
		return eventKind(fd)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0
	}
	// A plain file of tmpfs answers too, always with this one seal.
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil && seals != unix.F_SEAL_SEAL {
		return Section
	}
	return File
}

func eventKind(fd int) Kind {
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	switch {
	case err != nil:
		return 0
	case strings.Contains(string(text), "eventfd-semaphore: 1"):
		return Semaphore
	}
	return Event
}

func pidfdKind(flags int) Kind {
	if flags&unix.PIDFD_THREAD != 0 {
		return Thread
	}
	return Process
}

// SetBlocking clears O_NONBLOCK, which means nothing to a file or directory but makes package os poll it.
func SetBlocking(fd int) { unix.SetNonblock(fd, false) }
