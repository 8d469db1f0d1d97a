package alpc_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/channel"
	"sallyport/internal/memfd"
	"sallyport/internal/unixsock"
)

// These make the test binary the far side of a connection: descriptor 3 is its socket, 4 its section.
const (
	childEnv  = "ALPC_TEST_CHILD"
	attackEnv = "ALPC_TEST_ATTACK" // the same, as a hostile client
)

func TestMain(m *testing.M) {
	if os.Getenv(rawEnv) != "" {
		echoRaw()
		os.Exit(0)
	}
	if name := os.Getenv(attackEnv); name != "" {
		if err := alpctest.Attack(name, 3, os.NewFile(4, "section")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(childEnv) != "" {
		p, err := alpc.NewTestPort(3, 1, os.Getppid(), alpctest.PeerMaxPending, alpctest.PeerHandles, os.NewFile(4, "section"))
		if err == nil {
			alpctest.ServePeer(p)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func connectGoroutine(t testing.TB) *alpc.Port {
	o := alpc.PairOptions{MaxPending: alpctest.PeerMaxPending, HandleTypes: alpctest.PeerHandles}
	a, b, err := alpc.Pair(o, o)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		alpctest.ServePeer(b)
	}()
	t.Cleanup(func() { a.Close(); <-done })
	return a
}

func connectProcess(t testing.TB) *alpc.Port { return connectChild(t, childEnv+"=1", 0) }

// connectChild starts the test binary as the far side and returns the near one.
func connectChild(t testing.TB, env string, side int) *alpc.Port {
	fds, err := unixsock.PairFDs()
	require.NoError(t, err)
	section, err := channel.CreateSection(1)
	require.NoError(t, err)
	theirs, err := memfd.Dup(section)
	require.NoError(t, err)
	socket := os.NewFile(uintptr(fds[1]), "socket")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), env, "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{socket, theirs}
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	socket.Close()
	theirs.Close()
	t.Cleanup(func() {
		if env != childEnv+"=1" {
			cmd.Process.Kill()
		}
		cmd.Wait()
		section.Close()
	})
	p, err := alpc.NewTestPort(fds[0], side, cmd.Process.Pid, alpctest.PeerMaxPending, alpctest.PeerHandles, section)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func inShared(connect func(t testing.TB) *alpc.Port) func(t *testing.T) *alpc.Port {
	return func(t *testing.T) *alpc.Port {
		p := connect(t)
		require.NoError(t, p.Shift(t.Context(), alpc.GearShared))
		return p
	}
}

func TestConformance(t *testing.T) {
	baseline := usage(t)
	t.Run("pair, socket gear", func(t *testing.T) {
		alpctest.Conformance(t, func(t *testing.T) *alpc.Port { return connectGoroutine(t) })
	})
	t.Run("pair, shared gear", func(t *testing.T) { alpctest.Conformance(t, inShared(connectGoroutine)) })
	t.Run("processes, socket gear", func(t *testing.T) {
		alpctest.Conformance(t, func(t *testing.T) *alpc.Port { return connectProcess(t) })
	})
	t.Run("processes, shared gear", func(t *testing.T) { alpctest.Conformance(t, inShared(connectProcess)) })
	requireBack(t, baseline)
}

func TestHostilePeerRuinsItsOwnConnectionOnly(t *testing.T) {
	baseline := usage(t)
	t.Run("attacks", func(t *testing.T) {
		alpctest.Hostile(t, func(t *testing.T, name string) *alpc.Port { return connectChild(t, attackEnv+"="+name, 1) })
	})
	requireBack(t, baseline)
}

type used struct{ fds, goroutines, sections int }

func usage(t testing.TB) used {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return used{len(entries), runtime.NumGoroutine(), strings.Count(string(maps), "sallyport-ring")}
}

// requireBack waits until nothing more is used than at the baseline.
func requireBack(t testing.TB, baseline used) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		now := usage(t)
		if now.fds <= baseline.fds && now.goroutines <= baseline.goroutines && now.sections <= baseline.sections {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("leak: %+v, was %+v\n%s", now, baseline, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestConnectionsLeaveNothingBehind(t *testing.T) {
	connectGoroutine(t).Close() // what the runtime keeps for good is there now
	baseline := usage(t)
	for i := range 200 {
		a, b, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
		require.NoError(t, err)
		if i%2 == 0 {
			require.NoError(t, a.Shift(t.Context(), alpc.GearShared))
		}
		require.NoError(t, a.Send(context.Background(), &alpc.Message{Data: []byte("x")}))
		_, err = b.Receive(context.Background())
		require.NoError(t, err)
		if i%3 == 0 {
			a.Close()
		} else {
			b.Close()
		}
	}
	requireBack(t, baseline)
}
