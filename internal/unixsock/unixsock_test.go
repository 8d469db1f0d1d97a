package unixsock_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/unixsock"
)

func pair(t testing.TB) (a, b *unixsock.Conn) {
	a, b, err := unixsock.Pair()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func openFDs(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

func TestMessageCarriesBytesDescriptorsAndSender(t *testing.T) {
	a, b := pair(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unixsock.WithFDs([]*os.File{f, f}, func(fds []int) error { return a.Send([]byte("hello"), fds) }))

	buf := make([]byte, 64)
	n, fds, cred, err := b.Recv(buf)
	require.NoError(t, err)
	defer unixsock.CloseFDs(fds)
	require.Equal(t, "hello", string(buf[:n]))
	require.Len(t, fds, 2)
	require.Equal(t, unixsock.Ucred{PID: os.Getpid(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, cred)
}

func TestForgedSenderIsRefusedOrShown(t *testing.T) {
	a, b := pair(t)
	forged := unixsock.Ucred{PID: 1, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if err := a.SendAs([]byte("x"), nil, forged); err != nil {
		require.ErrorIs(t, err, os.ErrPermission)
		return
	}
	_, _, cred, err := b.Recv(make([]byte, 8))
	require.NoError(t, err)
	require.Equal(t, forged, cred, "root may state a pid; the receiver compares it")
}

func TestShutdownEndsBothEndsAfterWhatWasSent(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, a.Send([]byte("last"), nil))
	require.NoError(t, a.Shutdown())
	buf := make([]byte, 8)
	n, _, _, err := b.Recv(buf)
	require.NoError(t, err)
	require.Equal(t, 4, n)
	_, _, _, err = b.Recv(buf)
	require.ErrorIs(t, err, io.EOF)
	require.Error(t, b.Send([]byte("x"), nil))
}

func TestCutMessageLosesNoDescriptor(t *testing.T) {
	a, b := pair(t)
	before := openFDs(t)
	require.NoError(t, a.Send([]byte("long"), []int{0, 1, 2}))
	_, _, _, err := b.Recv(make([]byte, 2))
	require.ErrorIs(t, err, unixsock.ErrTruncated)
	require.Eventually(t, func() bool { return openFDs(t) == before }, 5*time.Second, time.Millisecond)
}

func TestPassRightsOffStopsDescriptorsAtTheSender(t *testing.T) {
	a, b := pair(t)
	if err := b.SetPassRights(false); err != nil {
		t.Skip("kernel has no SO_PASSRIGHTS")
	}
	require.ErrorIs(t, a.Send([]byte("x"), []int{0}), os.ErrPermission)
	require.NoError(t, a.Send([]byte("x"), nil))
}

func TestFullSocketSaysWouldBlockAndDeadlineEndsTheWait(t *testing.T) {
	a, b := pair(t)
	_, _, _, err := b.TryRecv(make([]byte, 8))
	require.ErrorIs(t, err, unixsock.ErrWouldBlock)
	for err = nil; err == nil; {
		err = a.TrySend(make([]byte, 4096), nil)
	}
	require.ErrorIs(t, err, unixsock.ErrWouldBlock)
	require.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Millisecond)))
	require.ErrorIs(t, a.Send([]byte("x"), nil), os.ErrDeadlineExceeded)
}

func TestListenAndDialOnAPathLongerThanASocketAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	require.NoError(t, os.Mkdir(dir, 0o700))
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(t.TempDir(), "s")} {
		l, err := unixsock.Listen(path)
		require.NoError(t, err)
		c, err := unixsock.Dial(path)
		require.NoError(t, err)
		// Before accept: the sender must be known even so.
		require.NoError(t, c.Send([]byte("hi"), nil))
		s, err := l.Accept()
		require.NoError(t, err)
		_, _, cred, err := s.Recv(make([]byte, 8))
		require.NoError(t, err)
		require.Equal(t, os.Getpid(), cred.PID)
		peer, err := s.PeerCred()
		require.NoError(t, err)
		require.Equal(t, os.Getpid(), peer.PID)
		p, err := s.PeerPIDFD()
		require.NoError(t, err)
		groups, err := s.PeerGroups()
		require.NoError(t, err)
		own, err := os.Getgroups()
		require.NoError(t, err)
		require.Len(t, groups, len(own))
		for _, c := range []io.Closer{p, s, c, l} {
			require.NoError(t, c.Close())
		}
	}
}

func TestMessageAllocatesNothing(t *testing.T) {
	a, b := pair(t)
	msg, buf := make([]byte, 64), make([]byte, 128)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		if a.Send(msg, nil) != nil {
			panic("send")
		}
		if _, _, _, err := b.Recv(buf); err != nil {
			panic("recv")
		}
	}))
}

func FuzzControl(f *testing.F) {
	f.Add([]byte{24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0})
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 127, 1, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, block []byte) {
		aligned := make([]byte, len(block))
		copy(aligned, block)
		fds, _ := unixsock.ParseControl(aligned)
		require.LessOrEqual(t, 4*len(fds), len(block))
	})
}
