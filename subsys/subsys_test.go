package subsys_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/subsys"
)

const port = `\BaseNamedObjects\echo`

// The test binary is a server too: SUBSYS_TEST says which.
func TestMain(m *testing.M) {
	switch os.Getenv("SUBSYS_TEST") {
	case "":
		os.Exit(m.Run())
	case "echo":
		os.Exit(subsys.Main(subsys.Server{Name: "echo", Run: echo}, "an", "argument"))
	case "failing":
		os.Exit(subsys.Main(subsys.Server{Name: "failing", Run: failing}))
	case "leaving":
		os.Exit(subsys.Main(subsys.Server{Name: "leaving", Run: func(context.Context, *subsys.Env) error { return nil }}))
	}
}

var errFailing = errors.New("the disk is full")

func failing(context.Context, *subsys.Env) error { return errFailing }

// echo answers requests until it is stopped.
func echo(ctx context.Context, env *subsys.Env) error {
	l, err := env.System.Listen(ctx, port, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)"})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := env.Ready(); err != nil {
		return err
	}
	if err := env.Ready(); err != nil { // twice does no harm
		return err
	}
	env.Logger.Info("serving", "args", len(env.Args), "session", env.Session)
	for {
		r, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		p, err := r.Accept(ctx, nil)
		if err != nil {
			return err
		}
		m, err := p.Receive(ctx)
		if err == nil {
			err = p.Reply(ctx, m, &alpc.Message{Data: m.Data})
		}
		p.Close()
		if err != nil && ctx.Err() != nil {
			return err
		}
	}
}

func call(t *testing.T, sys *alpc.System) error {
	t.Helper()
	p, err := sys.Dial(alpctest.Context(t), port, alpc.DialOptions{})
	if err != nil {
		return err
	}
	defer p.Close()
	m, err := p.Call(alpctest.Context(t), &alpc.Message{Data: []byte("hello")})
	if err != nil {
		return err
	}
	require.Equal(t, "hello", string(m.Data))
	return nil
}

func TestHostedServerServesUntilStopped(t *testing.T) {
	core := alpctest.Start(t)
	h, err := subsys.Host(t.Context(), subsys.Server{Name: "echo", Run: echo}, subsys.Env{System: core.Attach(t, nil)})
	require.NoError(t, err)
	user := core.Attach(t, alpctest.User(1000))
	require.NoError(t, call(t, user))
	require.NoError(t, h.Stop(alpctest.Context(t)))
	require.ErrorIs(t, call(t, user), ntstatus.ObjectNameNotFound)
	select {
	case <-h.Done():
	default:
		t.Fatal("it has stopped and is not done")
	}
}

func TestHostReportsAServerThatCannotStart(t *testing.T) {
	core := alpctest.Start(t)
	_, err := subsys.Host(t.Context(), subsys.Server{Name: "failing", Run: failing}, subsys.Env{System: core.Attach(t, nil)})
	require.ErrorIs(t, err, errFailing)
	_, err = subsys.Host(t.Context(), subsys.Server{Name: "hasty", Run: func(context.Context, *subsys.Env) error { return nil }}, subsys.Env{System: core.Attach(t, nil)})
	require.ErrorIs(t, err, ntstatus.ProcessAborted)
}

func TestHostedServerStopsWithItsCore(t *testing.T) {
	core := alpctest.Start(t)
	h, err := subsys.Host(t.Context(), subsys.Server{Name: "echo", Run: echo}, subsys.Env{System: core.Attach(t, nil)})
	require.NoError(t, err)
	require.NoError(t, core.Close())
	select {
	case <-h.Done():
	case <-alpctest.Context(t).Done():
		t.Fatal("the core has gone and the server stays")
	}
}

func TestStopDoesNotWaitForeverForAServerThatHangs(t *testing.T) {
	core := alpctest.Start(t)
	release := make(chan struct{})
	h, err := subsys.Host(t.Context(), subsys.Server{Name: "stubborn", Run: func(_ context.Context, env *subsys.Env) error {
		err := env.Ready()
		<-release
		return err
	}}, subsys.Env{System: core.Attach(t, nil)})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.Error(t, h.Stop(ctx))
	close(release)
	require.NoError(t, h.Stop(alpctest.Context(t)))
}

// process starts the test binary as a server of a core.
func process(t *testing.T, mode, core string) (*spawn.Process, *bufio.Scanner) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	p, err := spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{mode}, Terminal: -1, Files: []*os.File{nil, nil, w},
		Env: []string{"SUBSYS_TEST=" + mode, "SALLYPORT_CORE=" + core, "SALLYPORT_SESSION=5"}})
	w.Close()
	require.NoError(t, err)
	t.Cleanup(func() { p.Kill(); r.Close() })
	return p, bufio.NewScanner(r)
}

// expect reads the log, a JSON object per line, until a message comes.
func expect(t *testing.T, log *bufio.Scanner, message string) map[string]any {
	t.Helper()
	for log.Scan() {
		var line map[string]any
		require.NoError(t, json.Unmarshal(log.Bytes(), &line), "%s", log.Bytes())
		if line["@message"] == message {
			return line
		}
	}
	t.Fatalf("the server never said %q", message)
	return nil
}

func TestProcessStopsInOrderOnEitherSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		core := alpctest.Start(t)
		p, log := process(t, "echo", core.Path())
		line := expect(t, log, "serving")
		require.Equal(t, "echo", line["@module"])
		require.EqualValues(t, 2, line["args"])
		require.EqualValues(t, 5, line["session"])
		require.NoError(t, call(t, core.Attach(t, alpctest.User(1000))))
		require.NoError(t, p.Signal(sig, false))
		exit, err := p.Wait(alpctest.Context(t))
		require.NoError(t, err)
		require.Equal(t, spawn.Exit{Code: subsys.ExitStopped}, exit, sig)
		expect(t, log, "stopped")
	}
}

func TestExitCodesSayWhy(t *testing.T) {
	core := alpctest.Start(t)
	for mode, want := range map[string]int{"failing": subsys.ExitFailed, "leaving": subsys.ExitStopped} {
		p, _ := process(t, mode, core.Path())
		exit, err := p.Wait(alpctest.Context(t))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("exit %d", want), exit.String(), mode)
	}
	p, log := process(t, "echo", core.Path())
	expect(t, log, "serving")
	require.NoError(t, core.Close())
	exit, err := p.Wait(alpctest.Context(t))
	require.NoError(t, err)
	require.Equal(t, spawn.Exit{Code: subsys.ExitNoCore}, exit)
}

func TestProcessWaitsForItsCore(t *testing.T) {
	// The server is first; its core comes to the path that it tries.
	dir := t.TempDir()
	path := filepath.Join(dir, "core")
	p, log := process(t, "echo", path)
	expect(t, log, "waiting for the core")
	core := alpctest.Start(t)
	require.NoError(t, os.Symlink(core.Path(), path))
	expect(t, log, "serving")
	require.NoError(t, p.Signal(syscall.SIGTERM, false))
	exit, err := p.Wait(alpctest.Context(t))
	require.NoError(t, err)
	require.Equal(t, spawn.Exit{}, exit)
}
