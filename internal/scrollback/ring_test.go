package scrollback_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/internal/memfd"
	"sallyport/internal/scrollback"
)

// reader is a source from a function.
type reader func(p []byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }

// fill puts all of b in.
func fill(r *scrollback.Ring, b []byte) error {
	src := bytes.NewReader(b)
	for src.Len() > 0 {
		if _, err := r.Fill(src); err != nil {
			return err
		}
	}
	return nil
}

// die is a keeper that is killed after the source wrote n bytes and before they were recorded.
func die(r *scrollback.Ring, b []byte) (n int) {
	defer func() { recover() }()
	r.Fill(reader(func(p []byte) (int, error) {
		n = copy(p, b)
		panic("killed")
	}))
	return n
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// TestRingKeepsWhatASlowModelKeeps compares the ring with the whole output in one slice, over fills of all sizes and
// keepers that die.
func TestRingKeepsWhatASlowModelKeeps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(scrollback.MinSize, scrollback.MinSize+9000).Draw(t, "size")
		ring, f, err := scrollback.Create(size)
		require.NoError(t, err)
		defer func() { ring.Close(); f.Close() }()
		var all []byte
		t.Repeat(map[string]func(*rapid.T){
			"fill": func(t *rapid.T) {
				b := random(rapid.SampledFrom([]int{1, 2, 100, 4095, 4096, 4097, 20000}).Draw(t, "n"))
				require.NoError(t, fill(ring, b))
				all = append(all, b...)
			},
			"die": func(t *rapid.T) {
				// Of random bytes the last equals its pattern once in 256; printable text over a random pattern is no different.
				// The model accepts just that.
				b := random(rapid.IntRange(0, 5000).Draw(t, "n"))
				n := die(ring, b)
				ring.Close()
				ring, err = scrollback.Open(f)
				require.NoError(t, err)
				_, end := ring.Bounds()
				require.LessOrEqual(t, end, uint64(len(all)+n))
				require.GreaterOrEqual(t, end+3, uint64(len(all)+n), "more was lost than bytes that equal their pattern")
				all = append(all, b[:end-uint64(len(all))]...)
			},
			"reopen": func(t *rapid.T) {
				ring.Close()
				ring, err = scrollback.Open(f)
				require.NoError(t, err)
			},
			"": func(t *rapid.T) {
				first, end := ring.Bounds()
				require.EqualValues(t, len(all), end)
				require.LessOrEqual(t, first, uint64(max(0, len(all)-size)), "it keeps at least its size")
				from := rapid.Uint64Range(0, end+10).Draw(t, "from")
				p := make([]byte, rapid.IntRange(1, 40000).Draw(t, "max"))
				n, at := ring.ReadAt(p, from)
				require.Equal(t, max(from, first), at)
				want := all[min(at, end):]
				want = want[:min(len(want), len(p))]
				require.Equal(t, len(want), n)
				require.True(t, bytes.Equal(want, p[:n]))
			},
		})
	})
}

func TestSuccessorFindsWhatWasReadButNotRecorded(t *testing.T) {
	ring, f, err := scrollback.Create(scrollback.MinSize)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, fill(ring, bytes.Repeat([]byte("x"), 50000)))
	text := bytes.Repeat([]byte("line of output\r\n"), 100)
	require.Equal(t, len(text), die(ring, text))
	_, before := ring.Bounds()
	require.EqualValues(t, 50000, before)
	ring.Close()

	ring, err = scrollback.Open(f)
	require.NoError(t, err)
	defer ring.Close()
	got := make([]byte, len(text))
	n, at := ring.ReadAt(got, before)
	require.Equal(t, before, at)
	require.GreaterOrEqual(t, n, len(text)-3)
	require.Equal(t, string(text[:n]), string(got[:n]))
}

func TestChangedWakesEveryReader(t *testing.T) {
	ring, f, err := scrollback.Create(scrollback.MinSize)
	require.NoError(t, err)
	defer f.Close()
	woken := make(chan struct{})
	for range 3 {
		changed := ring.Changed()
		go func() {
			<-changed
			woken <- struct{}{}
		}()
	}
	require.NoError(t, fill(ring, []byte("a")))
	for range 3 {
		<-woken
	}
	changed := ring.Changed()
	require.NoError(t, ring.Close())
	<-changed
	_, err = ring.Fill(bytes.NewReader([]byte("b")))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func TestSourceErrorIsPassedOnWithItsBytes(t *testing.T) {
	ring, f, err := scrollback.Create(scrollback.MinSize)
	require.NoError(t, err)
	defer f.Close()
	defer ring.Close()
	gone := errors.New("gone")
	n, err := ring.Fill(reader(func(p []byte) (int, error) { return copy(p, "last"), gone }))
	require.Equal(t, 4, n)
	require.ErrorIs(t, err, gone)
	_, end := ring.Bounds()
	require.EqualValues(t, 4, end)
}

func TestSizesOutOfRangeAreRefused(t *testing.T) {
	for _, size := range []int{-1, 0, scrollback.MinSize - 1, scrollback.MaxSize + 1} {
		_, _, err := scrollback.Create(size)
		require.Error(t, err)
	}
}

// FuzzOpen: whatever a damaged file holds, it is refused, or is a ring that can be read and filled.
func FuzzOpen(f *testing.F) {
	const size = 8192 + scrollback.MinSize + 4096
	f.Add([]byte("SPSCROL\x01\x05\x00\x00\x00\x00\x00\x00\x00"), size)
	f.Add([]byte("SPSCROL\x01\xff\xff\xff\xff\xff\xff\xff\xff"), size)
	f.Add([]byte("SPSCROL\x01\xff\xff\xff\xff\xff\xff\xff\x3f"), size)
	f.Add([]byte("SPSCROL\x02"), size)
	f.Add([]byte{}, 100)
	f.Add([]byte{}, size+1)
	f.Fuzz(func(t *testing.T, content []byte, size int) {
		if size < 1 || size > 1<<20 {
			t.Skip("a file of that size is not made")
		}
		file, err := memfd.Create("fuzz", size)
		require.NoError(t, err)
		defer file.Close()
		_, err = file.WriteAt(content[:min(len(content), size)], 0)
		require.NoError(t, err)
		ring, err := scrollback.Open(file)
		if err != nil {
			return
		}
		defer ring.Close()
		_, end := ring.Bounds()
		require.NoError(t, fill(ring, []byte("more")))
		p := make([]byte, 8)
		n, at := ring.ReadAt(p, end)
		require.Equal(t, end, at)
		require.Equal(t, "more", string(p[:n]))
	})
}

func TestOpenRefusesAFileThatIsNotSealed(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(8192+scrollback.MinSize+4096))
	_, err = scrollback.Open(f)
	require.ErrorIs(t, err, memfd.ErrUnsealed)
}
