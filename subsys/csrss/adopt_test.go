package csrss_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/csrss"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/csrss/csrtest"
)

// TestMain makes the test binary a csrss of its own where the test asks for one.
func TestMain(m *testing.M) {
	if os.Getenv("SALLYPORT_SERVER") == "csrss" {
		os.Exit(subsys.Main(csrss.Server()))
	}
	os.Exit(m.Run())
}

// server is a csrss in a process of its own, which the test starts and kills.
type server struct {
	core    *alpctest.Core
	system  *alpc.System
	manager *csrtest.Manager
	cmd     *exec.Cmd
}

func startProcess(t *testing.T) *server {
	t.Helper()
	s := &server{core: alpctest.Start(t, alpctest.AsProcess())}
	s.system = s.core.Attach(t, nil)
	require.NoError(t, s.system.RegisterSpawner(alpctest.Context(t)))
	s.manager = csrtest.Start(t, s.system, "")
	require.NoError(t, s.system.Declare(alpctest.Context(t), csr.PortName(0), alpc.PortAttributes{
		SecurityDescriptor: "O:SYG:SYD:(A;;0x1f0001;;;SY)(A;;0x1;;;AU)", HandleTypes: alpc.HandleAny}, security.LocalSystem()))
	s.start(t)
	t.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	return s
}

func (s *server) start(t *testing.T) {
	t.Helper()
	s.manager.Rearm()
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Env = []string{"SALLYPORT_SERVER=csrss", "SALLYPORT_SESSION=0", "SALLYPORT_LOG=warn", "SALLYPORT_CORE=" + s.core.Path()}
	s.cmd.Stderr = os.Stderr
	require.NoError(t, s.cmd.Start())
	process, err := pidfd.Open(s.cmd.Process.Pid)
	require.NoError(t, err)
	defer process.Close()
	require.NoError(t, s.system.AssignToken(alpctest.Context(t), process, s.system.Token().TokenID))
	<-s.manager.ReadySaid()
}

func (s *server) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Kill())
	s.cmd.Wait()
}

// tape is a viewer's terminal: it keeps what is written, and tells when there is enough of it.
type tape struct {
	mu      sync.Mutex
	bytes   bytes.Buffer
	waiting map[int]chan struct{}
}

func (p *tape) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes.Write(b)
	for n, c := range p.waiting {
		if p.bytes.Len() >= n {
			close(c)
			delete(p.waiting, n)
		}
	}
	return len(b), nil
}

func (p *tape) reached(n int) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := make(chan struct{})
	if p.bytes.Len() >= n {
		close(c)
	} else {
		if p.waiting == nil {
			p.waiting = map[int]chan struct{}{}
		}
		p.waiting[n] = c
	}
	return c
}

// TestKilledCsrssComesBackAndNobodyLosesAByte kills csrss while a program writes as fast as it can and a viewer watches.
func TestKilledCsrssComesBackAndNobodyLosesAByte(t *testing.T) {
	const lines, kills = 150000, 8
	s := startProcess(t)
	ctx := alpctest.Context(t)
	user := s.core.Attach(t, alpctest.User(1000))
	c, err := csr.Dial(ctx, user, 0)
	require.NoError(t, err)
	defer c.Close()
	made, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "busy", ScrollbackBytes: 4 << 20, Size: &csrpb.Size{Columns: 99, Rows: 33},
		Command: command("sh", "-c", fmt.Sprintf("stty -opost; echo ready; read go; seq 1 %d; read stay; exit 5", lines))})
	require.NoError(t, err)
	bystander := exec.Command("sleep", "1000")
	require.NoError(t, bystander.Start())
	defer func() { bystander.Process.Kill(); bystander.Wait() }()
	process, err := pidfd.Open(bystander.Process.Pid)
	require.NoError(t, err)
	defer process.Close()
	_, err = c.Register(ctx, process, "bystander")
	require.NoError(t, err)

	in, keys, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	defer keys.Close()
	var shown tape
	type outcome struct {
		ended *csrpb.Ended
		err   error
	}
	viewed := make(chan outcome, 1)
	attached := make(chan struct{}, kills+2)
	go func() {
		view := csr.View{Attach: &csrpb.Attach{Name: "busy"}, In: in, Out: &shown, Event: func(m *csrpb.AttachConsoleResponse) {
			if m.GetAttached() != nil {
				attached <- struct{}{}
			}
		}}
		ended, err := view.Run(ctx, user)
		viewed <- outcome{ended, err}
	}()
	await := func(what <-chan struct{}) {
		t.Helper()
		select {
		case <-what:
		case got := <-viewed:
			require.FailNow(t, "the viewer ended", "%v, %v, after %d bytes", got.ended, got.err, shown.bytes.Len())
		case <-ctx.Done():
			require.FailNow(t, "nothing comes", "after %d bytes", shown.bytes.Len())
		}
	}
	await(attached)
	await(shown.reached(len("ready\n")))
	_, err = keys.WriteString("go\r")
	require.NoError(t, err)

	var want bytes.Buffer
	want.WriteString("ready\ngo\n") // and what the terminal echoes; then every line once
	for i := range lines {
		fmt.Fprintf(&want, "%d\n", i+1)
	}
	for i := range kills {
		await(shown.reached(want.Len() * (i + 1) / (kills + 2)))
		s.kill(t)
		s.start(t)
		await(attached)
	}
	await(shown.reached(want.Len()))
	require.True(t, want.String() == shown.bytes.String(), "lines are missing, doubled or torn")

	// The console is the one that it was.
	info, err := c.Console(ctx, "busy")
	require.NoError(t, err)
	require.Equal(t, []any{made.Pid, made.Terminal, made.Created, made.Owner, made.Security, made.Argv, made.Size.Columns},
		[]any{info.Pid, info.Terminal, info.Created, info.Owner, info.Security, info.Argv, info.Size.Columns})
	list, err := c.Processes(ctx)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"bystander", "busy"}, names(list))
	_, err = csrOf(t, s, 1001).Console(ctx, "busy")
	require.ErrorIs(t, err, ntstatus.AccessDenied)

	// It ends while csrss is away, and the successor knows how; so does the next.
	s.kill(t)
	_, err = keys.WriteString("bye\r")
	require.NoError(t, err)
	s.start(t)
	await(attached)
	_, err = keys.WriteString("bye\r") // the first may have been sent to the one that was killed
	require.NoError(t, err)
	got := <-viewed
	require.NoError(t, got.err)
	require.Equal(t, csrpb.Ended_COMMAND_ENDED, got.ended.Reason)
	require.EqualValues(t, 5, got.ended.ExitCode)
	s.kill(t)
	s.start(t)
	info, err = c.Console(ctx, "busy")
	if csr.Gone(err) {
		info, err = c.Console(ctx, "busy")
	}
	require.NoError(t, err)
	require.EqualValues(t, 5, info.ExitCode)
	require.NoError(t, c.CloseConsole(ctx, "busy"))
	require.NoError(t, bystander.Process.Kill())
	for list, err = c.Processes(ctx); err == nil && len(list) > 0; {
		list, err = c.Processes(ctx)
	}
	require.NoError(t, err)
}

func csrOf(t *testing.T, s *server, rid uint32) *csr.Client {
	c, err := csr.Dial(alpctest.Context(t), s.core.Attach(t, alpctest.User(rid)), 0)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestStoppedCsrssLeavesEverythingToItsSuccessor: an orderly stop is no end of the consoles either.
func TestStoppedCsrssLeavesEverythingToItsSuccessor(t *testing.T) {
	s := startProcess(t)
	ctx := alpctest.Context(t)
	c := csrOf(t, s, 1000)
	_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "kept", Command: command("cat")})
	require.NoError(t, err)
	a := attach(t, c, &csrpb.Attach{Name: "kept"})
	_, err = a.a.Write([]byte("one\r"))
	require.NoError(t, err)
	a.shows(t, "one\r\none\r\n")
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.cmd.Wait(), "it exits with 0")
	_, err = a.a.Recv()
	require.True(t, csr.Gone(err), "a viewer is told that csrss has gone, not that the console has: %v", err)
	s.start(t)
	b := attach(t, c, &csrpb.Attach{Name: "kept"})
	_, err = b.a.Write([]byte("two\r"))
	require.NoError(t, err)
	b.shows(t, "one\r\none\r\ntwo\r\ntwo\r\n")
	require.NoError(t, c.CloseConsole(context.WithoutCancel(ctx), "kept"))
}
