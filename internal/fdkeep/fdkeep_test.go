package fdkeep_test

import (
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/fdkeep"
)

func TestKeptOutlivesItsOriginal(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	k, err := fdkeep.Keep(w)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	f, err := k.File()
	require.NoError(t, err)
	_, err = f.WriteString("still here")
	require.NoError(t, err)
	require.NoError(t, f.Close())

	require.NoError(t, k.Close())
	require.NoError(t, k.Close())
	_, err = k.File()
	require.ErrorIs(t, err, os.ErrClosed)
	// The last write end is gone with it: the reader meets the end of the file.
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "still here", string(text))
}

func TestKeepOfAClosedFileFails(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	r.Close()
	w.Close()
	_, err = fdkeep.Keep(r)
	require.Error(t, err)
	var none fdkeep.Kept
	_, err = none.File()
	require.ErrorIs(t, err, os.ErrClosed)
}
