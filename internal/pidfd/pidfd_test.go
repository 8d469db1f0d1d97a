package pidfd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/pidfd"
)

func TestMain(m *testing.M) {
	if os.Getenv("PIDFD_TEST_CHILD") != "" {
		select {}
	}
	os.Exit(m.Run())
}

func child(t *testing.T) (*exec.Cmd, *os.File) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PIDFD_TEST_CHILD=1")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p, err := pidfd.Open(cmd.Process.Pid)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return cmd, p
}

func TestPIDFDTellsLifeParentAndDeath(t *testing.T) {
	cmd, p := child(t)
	require.True(t, pidfd.Alive(p))
	pid, err := pidfd.PID(p)
	require.NoError(t, err)
	require.Equal(t, cmd.Process.Pid, pid)
	parent, err := pidfd.Parent(p)
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), parent)

	done := make(chan error, 2)
	for range 2 {
		go func() { done <- pidfd.Wait(context.Background(), p) }()
	}
	require.NoError(t, pidfd.Signal(p, syscall.SIGKILL))
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	require.False(t, pidfd.Alive(p), "a zombie isn't alive")
	cmd.Wait()
	_, err = pidfd.PID(p)
	require.ErrorIs(t, err, syscall.ESRCH)
	require.ErrorIs(t, pidfd.Signal(p, 0), syscall.ESRCH)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	_, p := child(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	require.True(t, errors.Is(pidfd.Wait(ctx, p), context.DeadlineExceeded))
}

func TestKeyNamesOneProcess(t *testing.T) {
	_, p := child(t)
	_, q := child(t)
	again, err := pidfd.PID(p)
	require.NoError(t, err)
	p2, err := pidfd.Open(again)
	require.NoError(t, err)
	defer p2.Close()
	kp, err := pidfd.KeyOf(p)
	require.NoError(t, err)
	kp2, err := pidfd.KeyOf(p2)
	require.NoError(t, err)
	kq, err := pidfd.KeyOf(q)
	require.NoError(t, err)
	require.Equal(t, kp, kp2)
	require.NotEqual(t, kp, kq)
	require.NotZero(t, kp)
}
