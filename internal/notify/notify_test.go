package notify_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/notify"
	"sallyport/ntstatus"
)

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want notify.Message
	}{
		"ready":                   {"READY=1", notify.Message{Ready: true}},
		"several":                 {"READY=1\nSTATUS=serving 3 = three\nMAINPID=42\n", notify.Message{Ready: true, Status: "serving 3 = three", MainPID: 42}},
		"not ready":               {"READY=0", notify.Message{}},
		"stopping and watchdog":   {"STOPPING=1\nWATCHDOG=1", notify.Message{Stopping: true, Watchdog: true}},
		"unknown names":           {"X_OURS=7\nREADY=1", notify.Message{Ready: true}},
		"extend":                  {"EXTEND_TIMEOUT_USEC=2000000", notify.Message{Extend: 2 * time.Second}},
		"extend beyond all sense": {"EXTEND_TIMEOUT_USEC=9000000000000000000", notify.Message{Extend: time.Hour}},
		"nothing":                 {"", notify.Message{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := notify.Parse([]byte(tt.text))
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	for name, text := range map[string]string{
		"no equals sign": "READY", "no name": "=1", "binary": "STATUS=\xff", "zero byte": "STATUS=a\x00b", "too long": strings.Repeat("x", notify.MaxDatagram+1),
		"main pid is a word": "MAINPID=init", "main pid is a group": "MAINPID=-1", "main pid is huge": "MAINPID=4294967297", "extend is a word": "EXTEND_TIMEOUT_USEC=soon",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := notify.Parse([]byte(text))
			require.ErrorIs(t, err, ntstatus.InvalidMessage)
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x\nMAINPID=1\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=5"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		m, err := notify.Parse(datagram)
		if err != nil {
			require.Equal(t, notify.Message{}, m, "a refused datagram says nothing")
			return
		}
		require.LessOrEqual(t, len(m.Status), notify.MaxDatagram)
		require.GreaterOrEqual(t, m.MainPID, 0)
		require.True(t, m.Extend >= 0 && m.Extend <= time.Hour)
	})
}

func TestPeekKnowsItsSenderAndRefusesWhatIsTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	s, err := notify.Listen(path)
	require.NoError(t, err)
	require.NoError(t, notify.Send(path, strings.Repeat("x", notify.MaxDatagram+1), time.Second))
	require.NoError(t, notify.Send(path, "READY=1", time.Second))
	buf := make([]byte, notify.MaxDatagram)
	_, pid, err := s.Peek(buf)
	require.ErrorIs(t, err, ntstatus.InvalidMessage)
	require.Equal(t, os.Getpid(), pid)
	s.Drop()
	datagram, _, err := s.Peek(buf)
	require.NoError(t, err)
	require.Equal(t, "READY=1", string(datagram))

	// Another holder of the socket, as a restarted controller is.
	again, err := notify.Adopt(s.File())
	require.NoError(t, err)
	datagram, pid, err = again.Peek(buf)
	require.NoError(t, err)
	require.Equal(t, "READY=1", string(datagram))
	require.Equal(t, os.Getpid(), pid, "what was not dropped is the successor's")
	again.Drop()

	done := make(chan error)
	go func() { _, _, err := s.Peek(make([]byte, 10)); done <- err }()
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-done, os.ErrClosed)
}
