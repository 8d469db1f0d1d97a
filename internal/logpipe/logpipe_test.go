package logpipe_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/logpipe"
)

func TestAppendTakesEverythingInOrder(t *testing.T) {
	r, w, err := logpipe.New()
	require.NoError(t, err)
	defer r.Close()
	dst, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer dst.Close()

	n, err := logpipe.Append(r, dst, 1<<20, 0)
	require.NoError(t, err)
	require.Zero(t, n, "an empty pipe is not waited for")

	want := bytes.Repeat([]byte("a line of a log\n"), 10_000)
	go func() {
		defer w.Close()
		_, _ = w.Write(want)
	}()
	offset := int64(0)
	for {
		if err := logpipe.Wait(r); err != nil {
			require.NoError(t, err)
		}
		n, err := logpipe.Append(r, dst, 8<<10, offset)
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		offset += int64(n)
	}
	got, err := os.ReadFile(dst.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func TestAFileThatFailsLeavesThePipeWhole(t *testing.T) {
	r, w, err := logpipe.New()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = w.WriteString("kept")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	readOnly, err := os.Open(path)
	require.NoError(t, err)
	defer readOnly.Close()
	_, err = logpipe.Append(r, readOnly, 100, 0)
	require.Error(t, err)
	buf := make([]byte, 10)
	require.Equal(t, 4, logpipe.Discard(r, buf))
	require.Equal(t, "kept", string(buf[:4]))
	require.Zero(t, logpipe.Discard(r, buf))
}

func TestCloseEndsWait(t *testing.T) {
	r, w, err := logpipe.New()
	require.NoError(t, err)
	defer w.Close()
	done := make(chan error)
	go func() { done <- logpipe.Wait(r) }()
	require.NoError(t, r.Close())
	require.ErrorIs(t, <-done, os.ErrClosed)
}
