package smss_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/subsys/smss"
)

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

func TestStoreHasLimits(t *testing.T) {
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer file.Close()
	before := descriptors(t)
	k := smss.NewKeeper()

	require.ErrorIs(t, k.Store("", nil), ntstatus.InvalidParameter)
	require.ErrorIs(t, k.Store(string(make([]byte, 257)), nil), ntstatus.InvalidParameter)
	require.ErrorIs(t, k.Store("a", make([]byte, smss.MaxEntryData+1)), ntstatus.InvalidParameter)
	require.ErrorIs(t, k.Store("a", nil, slices.Repeat([]*os.File{file}, smss.MaxEntryHandles+1)...), ntstatus.InvalidParameter)
	require.Equal(t, before, descriptors(t), "what is refused is not kept")

	full := smss.MaxStoredHandles / smss.MaxEntryHandles
	for i := range full {
		require.NoError(t, k.Store(fmt.Sprint("f", i), nil, slices.Repeat([]*os.File{file}, smss.MaxEntryHandles)...))
	}
	require.ErrorIs(t, k.Store("more", nil, file), ntstatus.QuotaExceeded)
	require.NoError(t, k.Store("f0", nil, file), "in place of others there is room")
	require.NoError(t, k.Store("more", nil, file))
	for i := range smss.MaxEntries - full - 1 {
		require.NoError(t, k.Store(fmt.Sprint("n", i), nil))
	}
	require.ErrorIs(t, k.Store("last", nil), ntstatus.QuotaExceeded)
	k.Remove("more")
	k.Remove("more")
	require.NoError(t, k.Store("last", nil))

	k.End()
	require.Equal(t, before, descriptors(t))
}

func TestFetchOfAllGoesInPages(t *testing.T) {
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer file.Close()
	k := smss.NewKeeper()
	defer k.End()
	for _, name := range []string{"c", "a", "b"} {
		require.NoError(t, k.Store(name, nil, file, file))
	}
	require.NoError(t, k.Store("d", nil))
	for limit, want := range map[int][][]string{8: {{"a", "b", "c", "d"}}, 5: {{"a", "b"}, {"c", "d"}}, 2: {{"a"}, {"b"}, {"c", "d"}}} {
		pages, err := k.Pages(limit)
		require.NoError(t, err)
		require.Equal(t, want, pages, "%d files a page", limit)
	}
}
