// Package memfd makes, verifies and maps sealed anonymous memory files.
//
// Whoever maps a section distrusts the others who hold it. The seals keep them from changing its size; nothing keeps
// them from punching a hole (zeroes, or a fault where memory is short), so a reader of shared memory copies once and
// guards each access (package channel).
package memfd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// ErrUnsealed is a file that is no memfd, or one that its holders can still resize.
var ErrUnsealed = errors.New("not a sealed memory file")

// Create returns a memory file of size bytes, sealed SHRINK|GROW|SEAL, close-on-exec and never executable.
func Create(name string, size int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		f.Close()
		return nil, os.NewSyscallError("ftruncate", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// CreateShown returns a memory file of size bytes and its only writable mapping: after this call nobody, whoever holds the
// file, can write to it, map it writable or punch holes into it (SEAL_FUTURE_WRITE beside the others).
func CreateShown(name string, size int) (f *os.File, b []byte, err error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, nil, os.NewSyscallError("memfd_create", err)
	}
	f = os.NewFile(uintptr(fd), "memfd:"+name)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, nil, os.NewSyscallError("ftruncate", err)
	}
	if b, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	for _, advice := range []int{unix.MADV_DONTFORK, unix.MADV_POPULATE_WRITE} {
		if err = unix.Madvise(b, advice); err != nil {
			unix.Munmap(b)
			return nil, nil, os.NewSyscallError("madvise", err)
		}
	}
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|unix.F_SEAL_FUTURE_WRITE); err != nil {
		unix.Munmap(b)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return f, b, nil
}

// Verify reports whether f is a memory file of exactly size bytes that carries the three seals.
func Verify(f *os.File, size int) error {
	return withFD(f, func(fd int) error { return verify(fd, size) })
}

func verify(fd, size int) error {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals {
		return ErrUnsealed
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Size != int64(size) {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrUnsealed, st.Size, size)
	}
	return nil
}

// Map verifies f, maps it shared and touches each page, so that no later access faults. The mapping isn't inherited by
// children. The file may be closed afterwards. Unmap releases it, once and when nobody uses the bytes any more.
func Map(f *os.File, size int, writable bool) (b []byte, err error) {
	err = withFD(f, func(fd int) error {
		if err := verify(fd, size); err != nil {
			return err
		}
		prot, populate := unix.PROT_READ, unix.MADV_POPULATE_READ
		if writable {
			prot, populate = unix.PROT_READ|unix.PROT_WRITE, unix.MADV_POPULATE_WRITE
		}
		if b, err = unix.Mmap(fd, 0, size, prot, unix.MAP_SHARED); err != nil {
			return os.NewSyscallError("mmap", err)
		}
		for _, advice := range []int{unix.MADV_DONTFORK, populate} {
			if err := unix.Madvise(b, advice); err != nil {
				unix.Munmap(b)
				return os.NewSyscallError("madvise", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Dup returns another descriptor of the same memory, close-on-exec.
func Dup(f *os.File) (dup *os.File, err error) {
	err = withFD(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		dup = os.NewFile(uintptr(n), f.Name())
		return nil
	})
	return dup, err
}

// Unmap releases a mapping that Map returned.
func Unmap(b []byte) error { return os.NewSyscallError("munmap", unix.Munmap(b)) }

// PunchHole gives the pages of a range back to the kernel, which the seals don't forbid; hostile tests do it.
func PunchHole(f *os.File, offset, length int64) error {
	return withFD(f, func(fd int) error {
		return os.NewSyscallError("fallocate", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length))
	})
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
