package csrss_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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

// world is a core, a session manager and a csrss, inside the test.
type world struct {
	core    *alpctest.Core
	manager *csrtest.Manager
	user    *security.Token
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{core: alpctest.Start(t), user: alpctest.User(1000)}
	w.manager = csrtest.Start(t, w.core.Attach(t, nil), "")
	hosted, err := subsys.Host(alpctest.Context(t), csrss.Server(), subsys.Env{System: w.core.Attach(t, nil)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hosted.Stop(alpctest.Context(t))) })
	return w
}

func (w *world) dial(t *testing.T, token *security.Token) *csr.Client {
	t.Helper()
	c, err := csr.Dial(alpctest.Context(t), w.core.Attach(t, token), 0)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func command(argv ...string) *csrpb.Command {
	return &csrpb.Command{Argv: argv, Env: []string{"PATH=/usr/bin:/bin", "PS1=$ "}, Cwd: "/"}
}

// screen gathers what a viewer is shown.
type screen struct {
	a    *csr.Attachment
	text strings.Builder
	end  *csrpb.Ended
	lost uint64
}

func attach(t *testing.T, c *csr.Client, req *csrpb.Attach) *screen {
	t.Helper()
	a, err := c.Attach(alpctest.Context(t), req)
	require.NoError(t, err)
	t.Cleanup(func() { a.Close() })
	return &screen{a: a}
}

// until receives until the condition holds.
func (s *screen) until(t *testing.T, what string, holds func(last *csrpb.AttachConsoleResponse) bool) {
	t.Helper()
	for {
		m, err := s.a.Recv()
		require.NoError(t, err, "waiting for %s; so far: %q", what, s.text.String())
		if out := m.GetOutput(); out != nil {
			s.text.Write(out.Data)
		}
		if m.GetLost() != nil {
			s.lost += m.GetLost().Bytes
		}
		s.end = m.GetEnded()
		if holds(m) {
			return
		}
		require.Nil(t, s.end, "it ended, waiting for %s; so far: %q", what, s.text.String())
	}
}

func (s *screen) shows(t *testing.T, want string) {
	t.Helper()
	if strings.Contains(s.text.String(), want) {
		return
	}
	s.until(t, want, func(*csrpb.AttachConsoleResponse) bool { return strings.Contains(s.text.String(), want) })
}

func (s *screen) ends(t *testing.T, reason csrpb.Ended_Reason) *csrpb.Ended {
	t.Helper()
	s.until(t, "the end", func(m *csrpb.AttachConsoleResponse) bool { return m.GetEnded() != nil })
	require.Equal(t, reason, s.end.Reason)
	_, err := s.a.Recv()
	require.ErrorIs(t, err, io.EOF)
	return s.end
}

func TestCommandRunsInItsConsoleAndItsEndIsTold(t *testing.T) {
	w := start(t)
	c := w.dial(t, w.user)
	made, err := c.Create(alpctest.Context(t), &csrpb.CreateConsoleRequest{
		Name: "work", Size: &csrpb.Size{Columns: 100, Rows: 30}, Command: command("sh", "-c", "stty size; tty; read answer; echo got $answer; exit 7"),
	})
	require.NoError(t, err)
	require.Equal(t, "work", made.Name)
	require.Equal(t, w.user.User.SID.String(), made.Owner)
	s := attach(t, c, &csrpb.Attach{Name: "WORK"})
	s.shows(t, "30 100")
	s.shows(t, made.Terminal)
	_, err = s.a.Write([]byte("hello\r"))
	require.NoError(t, err)
	s.shows(t, "got hello")
	end := s.ends(t, csrpb.Ended_COMMAND_ENDED)
	require.EqualValues(t, 7, end.ExitCode)

	// Nobody watched the end of this one, and it is there all the same.
	_, err = c.Create(alpctest.Context(t), &csrpb.CreateConsoleRequest{Name: "alone", Command: command("sh", "-c", "echo unseen; kill -9 $$")})
	require.NoError(t, err)
	again := attach(t, c, &csrpb.Attach{Name: "alone", ReadOnly: true})
	require.EqualValues(t, syscall.SIGKILL, again.ends(t, csrpb.Ended_COMMAND_ENDED).Signal)
	require.Equal(t, "unseen\r\n", again.text.String())
	info, err := c.Console(alpctest.Context(t), "alone")
	require.NoError(t, err)
	require.True(t, info.Ended)
	require.EqualValues(t, len("unseen\r\n"), info.End)
	require.Equal(t, []string{"sh", "-c", "echo unseen; kill -9 $$"}, info.Argv)
	require.NoError(t, c.CloseConsole(alpctest.Context(t), "alone"))
	require.NoError(t, c.CloseConsole(alpctest.Context(t), "work"))
	require.Empty(t, w.manager.StoredNames(), "closed consoles leave nothing behind")
	require.Zero(t, w.manager.Programs())
}

func TestSeveralViewersSeeTheSameAndOnlyWritersWrite(t *testing.T) {
	w := start(t)
	c := w.dial(t, w.user)
	_, err := c.Create(alpctest.Context(t), &csrpb.CreateConsoleRequest{Name: "shared", Command: command("cat")})
	require.NoError(t, err)
	writer, reader := attach(t, c, &csrpb.Attach{Name: "shared", Size: &csrpb.Size{Columns: 90, Rows: 40}}), attach(t, c, &csrpb.Attach{Name: "shared", ReadOnly: true, Size: &csrpb.Size{Columns: 1, Rows: 1}})
	_, err = writer.a.Write([]byte("to both\r"))
	require.NoError(t, err)
	for _, s := range []*screen{writer, reader} {
		s.shows(t, "to both\r\nto both\r\n") // the terminal's echo, and cat's
	}
	info, err := c.Console(alpctest.Context(t), "shared")
	require.NoError(t, err)
	require.Len(t, info.Viewers, 2)
	require.Equal(t, "90x40", fmt.Sprintf("%dx%d", info.Size.Columns, info.Size.Rows), "a reader's size doesn't count")

	require.NoError(t, c.Resize(alpctest.Context(t), "shared", 70, 20))
	for _, s := range []*screen{writer, reader} {
		s.until(t, "the new size", func(m *csrpb.AttachConsoleResponse) bool { return m.GetResized().GetColumns() == 70 })
	}
	_, err = reader.a.Write([]byte("no"))
	require.NoError(t, err)
	_, err = reader.a.Recv()
	require.ErrorIs(t, err, ntstatus.AccessDenied)

	require.NoError(t, writer.a.Detach())
	writer.ends(t, csrpb.Ended_DETACHED)
	third := attach(t, c, &csrpb.Attach{Name: "shared"})
	third.shows(t, "to both\r\nto both\r\n") // replayed
	n, err := c.DetachViewer(alpctest.Context(t), "shared", third.a.ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	third.ends(t, csrpb.Ended_DETACHED)
	fourth := attach(t, c, &csrpb.Attach{Name: "shared"})
	require.NoError(t, c.CloseConsole(alpctest.Context(t), "shared"))
	fourth.ends(t, csrpb.Ended_CLOSED)
	_, err = c.Console(alpctest.Context(t), "shared")
	require.ErrorIs(t, err, ntstatus.AccessDenied, "a user does not learn which names there are")
	_, err = w.dial(t, alpctest.Admin(500)).Console(alpctest.Context(t), "shared")
	require.ErrorIs(t, err, ntstatus.ObjectNameNotFound)
}

func TestSlowViewerLosesTheOldestAndHoldsNobodyUp(t *testing.T) {
	w := start(t)
	c := w.dial(t, w.user)
	_, err := c.Create(alpctest.Context(t), &csrpb.CreateConsoleRequest{Name: "fast", ScrollbackBytes: 16 << 10,
		Command: command("sh", "-c", "stty -opost; read go; seq 1 300000; echo finished; read stay")})
	require.NoError(t, err)
	slow := attach(t, c, &csrpb.Attach{Name: "fast"})
	_, err = slow.a.Write([]byte("go\r"))
	require.NoError(t, err)

	// A viewer that follows sees the end, while the slow one reads nothing.
	fast := attach(t, w.dial(t, w.user), &csrpb.Attach{Name: "fast", ReadOnly: true})
	fast.shows(t, "finished")

	slow.shows(t, "finished")
	require.NotZero(t, slow.lost)
	// What it was shown after the last gap is the end of the output, whole.
	lines := strings.Split(strings.TrimSpace(slow.text.String()), "\n")
	require.Equal(t, "finished", lines[len(lines)-1])
	for i := range 1000 {
		require.Equal(t, fmt.Sprint(300000-i), lines[len(lines)-2-i])
	}
	info, err := c.Console(alpctest.Context(t), "fast")
	require.NoError(t, err)
	require.EqualValues(t, info.End, uint64(slow.text.Len())+slow.lost, "lost and shown are all there was")
}

func TestInputThatNobodyReadsHoldsUpItsTypistAlone(t *testing.T) {
	w := start(t)
	c := w.dial(t, w.user)
	_, err := c.Create(alpctest.Context(t), &csrpb.CreateConsoleRequest{Name: "deaf", Command: command("sh", "-c", "stty raw -echo; echo ready; exec sleep 1000")})
	require.NoError(t, err)
	watcher := attach(t, c, &csrpb.Attach{Name: "deaf", ReadOnly: true})
	watcher.shows(t, "ready")
	ctx, cancel := context.WithTimeout(alpctest.Context(t), 200*time.Millisecond)
	defer cancel()
	err = c.Write(ctx, "deaf", make([]byte, 1<<20))
	require.ErrorIs(t, err, ntstatus.IOTimeout)
	typist := attach(t, c, &csrpb.Attach{Name: "deaf"})
	_, err = typist.a.Write(make([]byte, csr.MaxInput)) // held up at csrss
	require.NoError(t, err)
	n, err := c.DetachViewer(alpctest.Context(t), "deaf", 0)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	typist.ends(t, csrpb.Ended_DETACHED)
	watcher.ends(t, csrpb.Ended_DETACHED)
}

func TestDescriptorSaysWhoMay(t *testing.T) {
	w := start(t)
	owner, other, admin := w.dial(t, w.user), w.dial(t, alpctest.User(1001)), w.dial(t, alpctest.Admin(500))
	ctx := alpctest.Context(t)
	made, err := owner.Create(ctx, &csrpb.CreateConsoleRequest{})
	require.NoError(t, err)
	require.Equal(t, "con1", made.Name)

	list, err := other.Consoles(ctx)
	require.NoError(t, err)
	require.Empty(t, list)
	for what, call := range map[string]func(*csr.Client) error{
		"query":  func(c *csr.Client) error { _, err := c.Console(ctx, "con1"); return err },
		"read":   func(c *csr.Client) error { _, _, err := c.Scrollback(ctx, "con1", 0, 0); return err },
		"write":  func(c *csr.Client) error { return c.Write(ctx, "con1", []byte("x")) },
		"resize": func(c *csr.Client) error { return c.Resize(ctx, "con1", 80, 25) },
		"attach": func(c *csr.Client) error {
			_, err := c.Attach(ctx, &csrpb.Attach{Name: "con1", ReadOnly: true})
			return err
		},
		"detach":     func(c *csr.Client) error { _, err := c.DetachViewer(ctx, "con1", 0); return err },
		"terminal":   func(c *csr.Client) error { f, err := c.OpenTerminal(ctx, "con1"); closeIf(f); return err },
		"descriptor": func(c *csr.Client) error { return c.SetSecurity(ctx, "con1", made.Security) },
	} {
		var denial *ntstatus.Denial
		err := call(other)
		require.ErrorIs(t, err, ntstatus.AccessDenied, what)
		require.ErrorAs(t, err, &denial, what)
		require.NoError(t, call(owner), what)
		require.NoError(t, call(admin), what)
	}
	require.ErrorIs(t, other.CloseConsole(ctx, "con1"), ntstatus.AccessDenied)

	// Reading may be given without writing; the refusal to write names the right and has a number in the core's log.
	sid := alpctest.User(1001).User.SID.String()
	require.NoError(t, owner.SetSecurity(ctx, "con1", "D:(A;;0xf00f7;;;"+made.Owner+")(A;;0x30;;;"+sid+")"))
	watching := attach(t, other, &csrpb.Attach{Name: "con1", ReadOnly: true})
	require.Empty(t, watching.a.Console.Security, "the descriptor is for those who may read it")
	_, err = other.Attach(ctx, &csrpb.Attach{Name: "con1"})
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	require.Contains(t, denial.Right, "CONSOLE_WRITE")
	logged, err := w.core.Attach(t, nil).Explain(ctx, denial.Decision)
	require.NoError(t, err)
	require.Equal(t, "con1", logged.Object)
	require.Equal(t, sid, logged.User)

	_, err = other.Create(ctx, &csrpb.CreateConsoleRequest{Name: "Con1"})
	require.ErrorIs(t, err, ntstatus.ObjectNameCollision)
	_, err = other.Create(ctx, &csrpb.CreateConsoleRequest{Security: "O:SYD:(A;;0xf00f7;;;WD)"})
	require.ErrorIs(t, err, ntstatus.InvalidOwner)
	_, err = other.Create(ctx, &csrpb.CreateConsoleRequest{Command: &csrpb.Command{Argv: []string{"true"}, Token: 1}})
	require.ErrorIs(t, err, ntstatus.PrivilegeNotHeld)
	detached, err := csr.Dial(ctx, w.core.Attach(t, &security.Token{Type: security.TokenPrimary, User: security.Group{SID: security.UnixUser(7)},
		PrimaryGroup: security.UnixUser(7), Integrity: security.IntegrityLow()}), 0)
	if err == nil {
		defer detached.Close()
		_, err = detached.Create(ctx, &csrpb.CreateConsoleRequest{})
	}
	require.ErrorIs(t, err, ntstatus.AccessDenied, "whoever detached has no console")
}

func closeIf(f *os.File) {
	if f != nil {
		f.Close()
	}
}

func TestLimitsHold(t *testing.T) {
	w := start(t)
	c, ctx := w.dial(t, w.user), alpctest.Context(t)
	for _, req := range []*csrpb.CreateConsoleRequest{
		{Name: "a/b"}, {Name: strings.Repeat("x", 65)}, {Name: "\x00"}, {Size: &csrpb.Size{Columns: 1001, Rows: 1}}, {Size: &csrpb.Size{Columns: 10}},
		{ScrollbackBytes: 1}, {ScrollbackBytes: 1 << 30}, {Command: &csrpb.Command{}}, {Security: "nonsense"},
		{Security: "D:" + strings.Repeat("(A;;GA;;;WD)", 1000)}, {Security: "D:(A;;GA;;;WD)S:(AU;SA;GA;;;WD)"},
	} {
		_, err := c.Create(ctx, req)
		require.Error(t, err, "%v", req)
	}
	require.Empty(t, w.manager.StoredNames())
	for i := range 16 {
		_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: fmt.Sprintf("n%d", i), ScrollbackBytes: 16 << 10})
		require.NoError(t, err)
	}
	_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{})
	require.ErrorIs(t, err, ntstatus.QuotaExceeded)
	_, err = w.dial(t, alpctest.User(1001)).Create(ctx, &csrpb.CreateConsoleRequest{})
	require.NoError(t, err, "another has their own share")

	// An ended console makes room.
	require.NoError(t, c.CloseConsole(ctx, "n3"))
	_, err = c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "short", Command: command("true")})
	require.NoError(t, err)
	attach(t, c, &csrpb.Attach{Name: "short"}).ends(t, csrpb.Ended_COMMAND_ENDED)
	_, err = c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "later"})
	require.NoError(t, err)
	for range 32 {
		attach(t, c, &csrpb.Attach{Name: "later", ReadOnly: true})
	}
	_, err = c.Attach(ctx, &csrpb.Attach{Name: "later"})
	require.ErrorIs(t, err, ntstatus.QuotaExceeded)
	// A command that can't be started leaves nothing.
	require.NoError(t, c.CloseConsole(ctx, "later"))
	before := w.manager.StoredNames()
	_, err = c.Create(ctx, &csrpb.CreateConsoleRequest{Command: command("/nonexistent/program")})
	require.Error(t, err)
	require.Equal(t, before, w.manager.StoredNames())
}

func TestTerminalOutlivesThoseWhoOpenIt(t *testing.T) {
	w := start(t)
	c, ctx := w.dial(t, w.user), alpctest.Context(t)
	_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "bare"})
	require.NoError(t, err)
	s := attach(t, c, &csrpb.Attach{Name: "bare"})
	for _, text := range []string{"first", "second"} {
		f, err := c.OpenTerminal(ctx, "bare")
		require.NoError(t, err)
		_, err = f.WriteString(text)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		s.shows(t, text)
	}
	data, at, err := c.Scrollback(ctx, "bare", 2, 3)
	require.NoError(t, err)
	require.Equal(t, "rst", string(data))
	require.EqualValues(t, 2, at)
}

func TestProcessTableFollowsProcessesToTheirEnd(t *testing.T) {
	w := start(t)
	c, ctx := w.dial(t, w.user), alpctest.Context(t)
	child := exec.Command("sleep", "1000")
	require.NoError(t, child.Start())
	defer func() { child.Process.Kill(); child.Wait() }()
	file, err := pidfd.Open(child.Process.Pid)
	require.NoError(t, err)
	defer file.Close()
	p, err := c.Register(ctx, file, "sleeper")
	require.NoError(t, err)
	require.EqualValues(t, child.Process.Pid, p.Pid)
	require.NotZero(t, p.Key)
	same, err := c.Register(ctx, file, "another name")
	require.NoError(t, err)
	require.Equal(t, p.Key, same.Key)
	require.Equal(t, "sleeper", same.Name, "a process has one entry")
	self, err := c.Register(ctx, nil, "the test")
	require.NoError(t, err)
	require.EqualValues(t, os.Getpid(), self.Pid)
	_, err = c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "shell", Command: command("cat")})
	require.NoError(t, err)
	list, err := c.Processes(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"sleeper", "the test", "shell"}, names(list))

	ended, standing := make(chan *csrpb.Process, 2), make(chan struct{})
	go c.Exits(ctx, func(p *csrpb.Process) error {
		if p == nil {
			close(standing)
			return nil
		}
		ended <- p
		return nil
	})
	<-standing
	require.NoError(t, child.Process.Kill())
	require.Equal(t, p.Key, (<-ended).Key)
	require.NoError(t, c.CloseConsole(ctx, "shell"))
	require.Equal(t, "shell", (<-ended).Name)
	list, err = c.Processes(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"the test"}, names(list))
	_, err = c.Register(ctx, file, "a corpse")
	require.ErrorIs(t, err, ntstatus.InvalidCID)
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	_, err = c.Register(ctx, null, "no process")
	require.Error(t, err)
}

func names(list []*csrpb.Process) (out []string) {
	for _, p := range list {
		out = append(out, p.Name)
	}
	return out
}

func TestViewPassesKeysAndSizesAndDetachesAtItsKey(t *testing.T) {
	w := start(t)
	sys := w.core.Attach(t, w.user)
	c, ctx := w.dial(t, w.user), alpctest.Context(t)
	_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: "seen", Command: command("cat")})
	require.NoError(t, err)
	in, keys, err := os.Pipe()
	require.NoError(t, err)
	defer in.Close()
	defer keys.Close()
	var shown tape
	sizes, resized := make(chan *csrpb.Size, 1), make(chan struct{})
	ended := make(chan *csrpb.Ended, 1)
	go func() {
		view := csr.View{Attach: &csrpb.Attach{Name: "seen"}, In: in, Out: &shown, Sizes: sizes, Detach: 0x1d, Event: func(m *csrpb.AttachConsoleResponse) {
			if m.GetResized().GetColumns() == 123 {
				close(resized)
			}
		}}
		end, _ := view.Run(ctx, sys)
		ended <- end
	}()
	sizes <- &csrpb.Size{Columns: 123, Rows: 45}
	<-resized
	_, err = keys.WriteString("word\r")
	require.NoError(t, err)
	<-shown.reached(len("word\r\nword\r\n"))
	_, err = keys.WriteString("last\x1dnever sent")
	require.NoError(t, err)
	require.Equal(t, csrpb.Ended_DETACHED, (<-ended).Reason)
	info, err := c.Console(ctx, "seen")
	require.NoError(t, err)
	require.Empty(t, info.Viewers)
	after := attach(t, c, &csrpb.Attach{Name: "seen", ReadOnly: true})
	after.shows(t, "last")
	require.Equal(t, "word\r\nword\r\nlast", after.text.String())
}
