package fdtype_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sallyport/internal/fdtype"
	"sallyport/internal/memfd"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
)

func TestKernelTellsWhatADescriptorIs(t *testing.T) {
	dir := t.TempDir()
	file := func(f *os.File, err error) *os.File {
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	wrap := func(fd int, err error) *os.File { return file(os.NewFile(uintptr(fd), "fd"), err) }
	fds, err := unixsock.PairFDs()
	require.NoError(t, err)
	wrap(fds[1], nil)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	file(w, nil)
	shm := file(os.CreateTemp("/dev/shm", "fdtype"))
	require.NoError(t, os.Remove(shm.Name()))
	for name, tt := range map[string]struct {
		f    *os.File
		want fdtype.Kind
	}{
		"file":      {file(os.Create(filepath.Join(dir, "f"))), fdtype.File},
		"tmpfs":     {shm, fdtype.File},
		"device":    {file(os.Open("/dev/null")), fdtype.File},
		"directory": {file(os.Open(dir)), fdtype.Directory},
		"O_PATH":    {wrap(unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)), 0},
		"socket":    {wrap(fds[0], nil), fdtype.Socket},
		"pipe":      {file(r, nil), fdtype.Pipe},
		"section":   {file(memfd.Create("x", 4096)), fdtype.Section},
		"process":   {file(pidfd.Self()), fdtype.Process},
		"event":     {wrap(unix.Eventfd(0, unix.EFD_CLOEXEC)), fdtype.Event},
		"semaphore": {wrap(unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)), fdtype.Semaphore},
		"terminal":  {file(os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)), fdtype.Terminal},
		"epoll":     {wrap(unix.EpollCreate1(unix.EPOLL_CLOEXEC)), 0},
	} {
		require.Equal(t, tt.want, fdtype.Of(tt.f), name)
	}
}
