package memfd_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/memfd"
)

func TestSectionKeepsItsSizeAndIsShared(t *testing.T) {
	f, err := memfd.Create("test", 8192)
	require.NoError(t, err)
	defer f.Close()
	require.Error(t, f.Truncate(4096))
	require.Error(t, f.Truncate(16384))
	w, err := memfd.Map(f, 8192, true)
	require.NoError(t, err)
	r, err := memfd.Map(f, 8192, false)
	require.NoError(t, err)
	w[8191] = 7
	require.EqualValues(t, 7, r[8191])
	require.NoError(t, memfd.Unmap(w))
	require.NoError(t, memfd.Unmap(r))
}

func TestWhatIsNoSealedSectionOfTheSizeIsRefused(t *testing.T) {
	f, err := memfd.Create("test", 8192)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, memfd.Verify(f, 4096), memfd.ErrUnsealed)
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	require.NoError(t, err)
	defer plain.Close()
	require.NoError(t, plain.Truncate(8192))
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	for _, other := range []*os.File{plain, dir, r} {
		_, err := memfd.Map(other, 8192, true)
		require.ErrorIs(t, err, memfd.ErrUnsealed)
	}
}

func TestShownMemoryIsItsMakersToWrite(t *testing.T) {
	f, mine, err := memfd.CreateShown("test", 8192)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{1}, 0)
	require.Error(t, err)
	_, err = memfd.Map(f, 8192, true)
	require.Error(t, err)
	require.Error(t, memfd.PunchHole(f, 0, 4096))
	require.Error(t, f.Truncate(0))
	again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDWR, 0)
	if err == nil { // whoever opens it anew
		defer again.Close()
		_, err = again.WriteAt([]byte{1}, 0)
		require.Error(t, err)
	}
	shown, err := memfd.Map(f, 8192, false)
	require.NoError(t, err)
	mine[8191] = 7
	require.EqualValues(t, 7, shown[8191])
	require.Zero(t, shown[0])
	require.NoError(t, memfd.Unmap(shown))
	require.NoError(t, memfd.Unmap(mine))
}
