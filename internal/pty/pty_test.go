package pty_test

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/pty"
)

// pair returns the two sides of a new terminal, both closed at the test's end, with a deadline on every wait.
func pair(t *testing.T) (master, peer *os.File) {
	t.Helper()
	master, err := pty.Open(pty.Size{Columns: 80, Rows: 24})
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	blocking, err := pty.Peer(master)
	require.NoError(t, err)
	defer blocking.Close()
	peer, err = pty.Pollable(blocking)
	require.NoError(t, err)
	t.Cleanup(func() { peer.Close() })
	for _, f := range []*os.File{master, peer} {
		require.NoError(t, f.SetDeadline(time.Now().Add(10*time.Second)))
	}
	return master, peer
}

func set(t *testing.T, f *os.File, change func(pty.Modes) pty.Modes) {
	t.Helper()
	m, err := pty.GetModes(f)
	require.NoError(t, err)
	require.NoError(t, pty.SetModes(f, change(m)))
}

func expect(t *testing.T, f *os.File, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(f, got)
	require.NoError(t, err, "got %q, want %q", got[:n], want)
	require.Equal(t, want, string(got))
}

func send(t *testing.T, f *os.File, s string) {
	t.Helper()
	_, err := f.WriteString(s)
	require.NoError(t, err)
}

func TestOutputIsProcessedOnItsWayToTheMaster(t *testing.T) {
	master, peer := pair(t)
	send(t, peer, "one\ntwo\n")
	expect(t, master, "one\r\ntwo\r\n")
}

func TestCanonicalModeGathersLinesAndErases(t *testing.T) {
	master, peer := pair(t)
	set(t, peer, func(m pty.Modes) pty.Modes { return m.Sane().WithEcho(false) })
	send(t, master, "wrogn\x7f\x7fng\x15right\r")
	expect(t, peer, "right\n")
	send(t, master, "\x04") // Ctrl-D on an empty line is the end of the input
	n, err := peer.Read(make([]byte, 8))
	require.Zero(t, n)
	require.ErrorIs(t, err, io.EOF)
}

func TestEchoShowsWhatIsTypedOnlyWhileItIsOn(t *testing.T) {
	master, peer := pair(t)
	set(t, peer, pty.Modes.Sane)
	send(t, master, "seen\r")
	expect(t, peer, "seen\n")
	expect(t, master, "seen\r\n")

	set(t, peer, func(m pty.Modes) pty.Modes { return m.WithEcho(false) })
	m, err := pty.GetModes(master)
	require.NoError(t, err)
	require.False(t, m.Echo(), "either side sees the modes")
	require.True(t, m.Canonical())
	send(t, master, "hidden\r")
	expect(t, peer, "hidden\n")
	send(t, peer, "next")
	expect(t, master, "next") // nothing of "hidden" before it
}

func TestKeysArriveOneByOneWithoutSignals(t *testing.T) {
	master, peer := pair(t)
	set(t, peer, pty.Modes.Keys)
	m, err := pty.GetModes(peer)
	require.NoError(t, err)
	require.False(t, m.Echo() || m.Canonical() || m.Signals())
	for _, key := range []string{"a", "\x03", "\x04", "\x7f", "\x13"} {
		send(t, master, key)
		expect(t, peer, key)
	}
	send(t, master, "\r")
	expect(t, peer, "\n")
	send(t, peer, "\n")
	expect(t, master, "\r\n")
}

func TestRawPassesEveryByte(t *testing.T) {
	master, peer := pair(t)
	set(t, peer, pty.Modes.Raw)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	send(t, master, string(all))
	expect(t, peer, string(all))
	send(t, peer, string(all))
	expect(t, master, string(all))
}

func TestSaneUndoesWhatAProgramLeftBehind(t *testing.T) {
	_, peer := pair(t)
	set(t, peer, pty.Modes.Sane)
	want, err := pty.GetModes(peer)
	require.NoError(t, err)
	set(t, peer, pty.Modes.Raw)
	raw, err := pty.GetModes(peer)
	require.NoError(t, err)
	require.NotEqual(t, want, raw)
	set(t, peer, pty.Modes.Sane)
	got, err := pty.GetModes(peer)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestSizeIsSharedByBothSides(t *testing.T) {
	master, peer := pair(t)
	for _, size := range []pty.Size{{Columns: 132, Rows: 50}, {Columns: 1, Rows: 1}, {Columns: 65535, Rows: 65535}} {
		require.NoError(t, pty.SetSize(master, size))
		got, err := pty.GetSize(peer)
		require.NoError(t, err)
		require.Equal(t, size, got)
	}
}

func TestPeerIsANewDescriptionOfTheSameTerminal(t *testing.T) {
	master, first := pair(t)
	second, err := pty.Peer(master)
	require.NoError(t, err)
	defer second.Close()
	name, err := pty.Name(master)
	require.NoError(t, err)
	require.Equal(t, name, second.Name())
	require.True(t, pty.IsTerminal(second))
	// Non-blocking on the first must not show on the second: a shell would not survive it.
	require.Error(t, second.SetDeadline(time.Now()), "the second is blocking, so it has no deadlines")
	require.NoError(t, first.SetDeadline(time.Now().Add(time.Second)))
}

func TestMasterReadFailsAfterTheLastPeerIsClosedAndHealsWithANewOne(t *testing.T) {
	master, peer := pair(t)
	send(t, peer, "bye")
	require.NoError(t, peer.Close())
	expect(t, master, "bye")
	_, err := master.Read(make([]byte, 1))
	require.Error(t, err)
	again, err := pty.Peer(master)
	require.NoError(t, err)
	defer again.Close()
	send(t, again, "back")
	expect(t, master, "back")
}

func TestAFileThatIsNoTerminalIsRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	require.False(t, pty.IsTerminal(f))
	_, err = pty.Peer(f)
	require.Error(t, err)
	require.Error(t, pty.SetSize(f, pty.Size{}))
}

func TestDiscardForgetsWhatWasTypedAhead(t *testing.T) {
	master, peer := pair(t)
	set(t, peer, func(m pty.Modes) pty.Modes { return m.Keys().WithEcho(true) })
	send(t, master, "ahead")
	expect(t, master, "ahead") // the echo says that the terminal has it
	require.NoError(t, pty.Discard(peer))
	send(t, master, "x")
	expect(t, peer, "x")
}
