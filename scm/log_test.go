package scm_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/scm"
)

// text reads all that a log keeps, or its tail.
func text(t require.TestingT, l *scm.TestLog, tail int) string {
	var b bytes.Buffer
	require.NoError(t, l.Read(context.Background(), tail, false, func(p []byte) error { b.Write(p); return nil }))
	return b.String()
}

// write lets a service write and takes it into the log.
func write(t require.TestingT, l *scm.TestLog, text string) {
	_, err := l.Write().WriteString(text)
	require.NoError(t, err)
	l.Drain()
}

func TestLogKeepsEveryLineAcrossRotationAndRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := scm.OpenTestLog(path, 4096, 3, nil, nil)
	require.NoError(t, err)
	var want strings.Builder
	line := func(i int) {
		s := fmt.Sprintf("line %05d %s\n", i, strings.Repeat("x", i%80))
		want.WriteString(s)
		write(t, l, s)
	}
	for i := range 300 {
		line(i)
	}
	// A controller that dies leaves in the pipe what was not taken out; the next one goes on with it.
	r, w := l.KeepPipe()
	_, err = w.WriteString("between two controllers\n")
	require.NoError(t, err)
	want.WriteString("between two controllers\n")
	l, err = scm.OpenTestLog(path, 4096, 3, r, w)
	require.NoError(t, err)
	defer l.Close()
	l.Drain()
	for i := range 300 {
		line(i)
	}
	got := text(t, l, -1)
	require.Less(t, len(got), want.Len(), "the oldest was rotated away")
	require.True(t, strings.HasSuffix(want.String(), got))
	require.True(t, strings.HasPrefix(got, "line "), "files are cut between lines")
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Len(t, files, 4)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.Less(t, info.Size(), int64(4096+4096/4+100))
	}
}

func TestTailIsTheLastLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "log")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		l, err := scm.OpenTestLog(filepath.Join(dir, "x.log"), 4096, 2, nil, nil)
		require.NoError(t, err)
		defer l.Close()
		for range rapid.IntRange(0, 30).Draw(t, "writes") {
			write(t, l, strings.Repeat("x", rapid.IntRange(0, 600).Draw(t, "length"))+"\n")
		}
		lines := strings.SplitAfter(text(t, l, -1), "\n")
		lines = lines[:len(lines)-1]
		n := rapid.IntRange(0, 35).Draw(t, "tail")
		require.Equal(t, strings.Join(lines[max(len(lines)-n, 0):], ""), text(t, l, n))
	})
}

func TestSeamEndsAnOpenLine(t *testing.T) {
	l, err := scm.OpenTestLog(filepath.Join(t.TempDir(), "x.log"), 4096, 1, nil, nil)
	require.NoError(t, err)
	defer l.Close()
	l.Seam()
	write(t, l, "killed in the mid")
	l.Seam()
	write(t, l, "next run\n")
	l.Seam()
	require.Equal(t, "killed in the mid\nnext run\n", text(t, l, -1))
}

func TestWhatCannotBeWrittenIsCountedAndTheServiceNeverWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := scm.OpenTestLog(path, 1<<20, 1, nil, nil)
	require.NoError(t, err)
	defer l.Close()
	write(t, l, "before\n")
	readOnly, err := os.Open(path)
	require.NoError(t, err)
	l.Swap(readOnly).Close()
	const lost = 3 << 20 // more than a pipe holds
	go l.Run()
	_, err = l.Write().Write(bytes.Repeat([]byte("x"), lost))
	require.NoError(t, err)
	eventually(t, func() bool { return l.Dropped() == lost })
	again, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	l.Swap(again).Close()
	_, err = l.Write().WriteString("after\n")
	require.NoError(t, err)
	want := fmt.Sprintf("before\n[sallyport: %d bytes of this log could not be written]\nafter\n", lost)
	eventually(t, func() bool { return text(t, l, -1) == want })
}

func TestFollowGoesOnAcrossRotations(t *testing.T) {
	l, err := scm.OpenTestLog(filepath.Join(t.TempDir(), "x.log"), 4096, 5, nil, nil)
	require.NoError(t, err)
	write(t, l, "older\nold\n")
	var want strings.Builder
	want.WriteString("old\n")
	for i := range 200 {
		fmt.Fprintf(&want, "line %d of many\n", i)
	}
	go l.Run()
	go func() { _, _ = l.Write().WriteString(strings.TrimPrefix(want.String(), "old\n")) }()
	var got bytes.Buffer
	err = l.Read(context.Background(), 1, true, func(p []byte) error {
		if got.Write(p); got.Len() >= want.Len() {
			return context.Canceled
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, want.String(), got.String())
	l.Close()
	require.NoError(t, l.Read(context.Background(), 0, true, nil), "a log that is closed ends its readers")
}
