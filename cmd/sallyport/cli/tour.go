package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/internal/instance"
	"sallyport/internal/probe"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/proto/lsapb"
	"sallyport/proto/scmpb"
	"sallyport/proto/smpb"
	"sallyport/proto/tourpb"
	"sallyport/rpc"
	"sallyport/scm/mgr"
	"sallyport/security"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/smss/sm"
	"sallyport/subsys/winlogon"
)

const (
	tourTime  = 90 * time.Second // the whole of it, however slow the machine
	tourUser  = "alice"
	tourCalls = 2000 // by each path
	tourBytes = 256  // in a call, each way
)

// tour is one walk through a temporary instance. Each step either holds or ends it.
type tour struct {
	a    *app
	in   instance.Instance
	exe  string // a copy of this program where every user of the instance may run it
	core *coreProcess
	sys  *alpc.System

	keeper    *sm.Client
	authority *lsa.Client
	services  *mgr.Manager
	demo      *rpc.Conn

	user     *lsapb.User
	password string
	session  uint32
	shell    *expect
	pids     map[string]uint32 // of all servers and services that were seen
}

func tourCommand(a *app) *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "tour",
		Short: "see all of it at work: boot a temporary set, use it, break it, stop it",
		Long: `Tour boots the reference set as separate processes in a temporary directory, without any privilege, and uses it: a user logs on,
a service is started and called over both paths, a denial is explained, servers are killed while everything goes on. It says what it
does, and ends with 1 if any step did not hold.`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the temporary directory, for its logs")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), tourTime)
		defer cancel()
		return (&tour{a: a, pids: map[string]uint32{}}).run(ctx, keep)
	}
	return c
}

func (t *tour) run(ctx context.Context, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "sallyport-tour-")
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		// Run as root, servers and users have uids of their own, and all must get at the core's socket.
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	began := time.Now()
	defer func() {
		t.clear(err != nil)
		if keep || err != nil {
			fmt.Fprintf(t.a.stderr, "\nThe instance's directory is left for you: %s\n", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	t.in = instance.Instance{Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"), Config: filepath.Join(dir, "sallyport.toml"), Shared: os.Geteuid() == 0}
	t.exe = filepath.Join(dir, "sallyport")

	steps := []struct {
		title, why string
		do         func(context.Context) error
	}{
		{"Look at the kernel", "The core proves who is calling by what the kernel says, so the kernel has to be able to say it.", t.lookAtKernel},
		{"Boot the set", "One small core, and servers that are ordinary processes. None needs a privilege.", t.boot},
		{"Start a service and call it", "A service is any program; this one is a gRPC service behind a named, guarded port. The stub is stock generated code.", t.callService},
		{"Log a user on", "A new account, a session of its own, a login at a console: as at a terminal, but typed by the tour.", t.logOn},
		{"Be refused, and learn why", "Every refusal has a number. An administrator looks it up and sees the very entry that decided.", t.beRefused},
		{"Kill servers", "kill -9, while calls go on. Each comes back and takes up again what it had.", t.killServers},
		{"Shut down", "In order, and nothing is left behind.", t.shutDown},
	}
	for i, step := range steps {
		t.say("\n%s\n   %s\n", t.a.bold(fmt.Sprintf("%d. %s", i+1, step.title)), step.why)
		start := time.Now()
		if err := step.do(ctx); err != nil {
			t.say("   %s\n", t.a.style("31", "this did not hold: "+err.Error()))
			return hinted(fmt.Errorf("step %d, %s: %w", i+1, strings.ToLower(step.title), err), "the log is %s", filepath.Join(t.in.State, logName))
		}
		t.say("   %s\n", t.a.style("32", fmt.Sprintf("held (%s)", time.Since(start).Round(time.Millisecond))))
	}
	t.say("\nAll %d steps held, in %s. Next: \"sallyport up\", \"sallyport ports\", and the README's first server in 40 lines.\n",
		len(steps), time.Since(began).Round(100*time.Millisecond))
	return nil
}

// say writes to standard output; printable, since parts of it come from servers.
func (t *tour) say(format string, args ...any) { fmt.Fprintf(t.a.stdout, format, args...) }

// note is one thing that was seen, indented below its step.
func (t *tour) note(format string, args ...any) {
	t.say("   - %s\n", printable(fmt.Sprintf(format, args...)))
}

// clear ends what the tour still has; by force where a step failed.
func (t *tour) clear(failed bool) {
	if t.shell != nil {
		t.shell.close()
	}
	for _, c := range []io.Closer{closerOf(t.demo), closerOf(t.services), closerOf(t.authority), closerOf(t.keeper)} {
		if c != nil {
			c.Close()
		}
	}
	if t.core == nil {
		return
	}
	if failed && t.sys != nil {
		// The orderly way first: only smss knows all that has to be stopped.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if c, err := sm.Dial(ctx, t.sys); err == nil {
			_ = c.Shutdown(ctx, "the tour failed", 3*time.Second) // the core is told below, too
			c.Close()
		}
	}
	if t.sys != nil {
		t.sys.Close()
	}
	if failed {
		_ = t.core.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-t.core.ended:
		case <-time.After(15 * time.Second):
			_ = t.core.cmd.Process.Kill()
			<-t.core.ended
		}
	}
}

// closerOf keeps a nil pointer from becoming a closer that is not nil.
func closerOf[T any, P interface {
	*T
	io.Closer
}](p P) io.Closer {
	if p == nil {
		return nil
	}
	return p
}

func (t *tour) lookAtKernel(context.Context) error {
	var weaker []string
	for _, f := range probe.Findings() {
		switch f.State {
		case probe.Broken:
			return fmt.Errorf("%s: %s; %s", f.Name, f.Found, f.Do)
		case probe.Degraded:
			weaker = append(weaker, f.Name)
		}
		if f.Name == "kernel version" {
			t.note("Linux %s", f.Found)
		}
	}
	if len(weaker) > 0 {
		t.note("weaker here than it could be: %s (\"sallyport doctor\" says more)", strings.Join(weaker, ", "))
	}
	return nil
}

func (t *tour) boot(ctx context.Context) (err error) {
	if err := t.in.Prepare(); err != nil {
		return err
	}
	if err := copyProgram(t.exe); err != nil {
		return err
	}
	if t.core, err = startCore(t.in); err != nil {
		return err
	}
	if err := t.a.awaitCore(ctx, t.in, t.core); err != nil {
		return err
	}
	if t.sys, err = alpc.Attach(ctx, alpc.Options{Path: t.in.Socket(), Logger: t.a.logger()}); err != nil {
		return err
	}
	if t.keeper, err = sm.Dial(ctx, t.sys); err != nil {
		return err
	}
	if t.authority, err = lsa.Dial(ctx, t.sys); err != nil {
		return err
	}
	if t.services, err = mgr.Connect(ctx, t.sys); err != nil {
		return err
	}
	servers, err := t.keeper.Servers(ctx)
	if err != nil {
		return err
	}
	t.note("core is process %d, owned by uid %d", t.core.cmd.Process.Pid, os.Geteuid())
	for _, s := range servers {
		if s.State != smpb.ServerState_SERVER_STATE_RUNNING {
			return fmt.Errorf("%s is %s", s.Name, serverState(s.State))
		}
		t.pids[s.Name] = s.Pid
		t.note("%s is process %d and serves %s", s.Name, s.Pid, strings.Join(s.Ports, ", "))
	}
	for _, name := range []string{"lsass", "scm", "csrss"} {
		if t.pids[name] == 0 {
			return fmt.Errorf("there is no %s", name)
		}
	}
	t.note("the tour itself is %s: %s", t.sys.Token().User.SID, administrator(t.sys.Token()))
	return nil
}

func administrator(t *security.Token) string {
	if t.IsAdmin() {
		return "an administrator here, as the instance's owner"
	}
	return "no administrator"
}

// copyProgram makes a copy of this program that others may execute: that of "go run" is in a directory of its user's own.
func copyProgram(to string) (err error) {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Chmod(0o755); err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	return err
}

func (t *tour) callService(ctx context.Context) error {
	config := &scmpb.ServiceConfig{Name: "tour", DisplayName: "The tour's service", Kind: scmpb.ServiceKind_SERVICE_KIND_NATIVE, Path: t.exe, Arguments: []string{"demo-service"}}
	s, err := t.services.CreateService(ctx, config, mgr.CreateOptions{Access: mgr.Start | mgr.QueryStatus})
	if err != nil {
		return err
	}
	defer s.Close()
	status, err := s.Start(ctx, true)
	if err != nil {
		return err
	}
	if status.State != scmpb.ServiceState_SERVICE_RUNNING || status.Pid == 0 {
		return fmt.Errorf("the service is %s with process %d", word(serviceStates, int32(status.State)), status.Pid)
	}
	t.pids["service tour"] = status.Pid
	t.note("service \"tour\" is process %d and listens at %s", status.Pid, demoPort)
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		conn, err := rpc.Dial(ctx, t.sys, demoPort, rpc.DialOptions{Port: alpc.DialOptions{Gear: gear}})
		if err != nil {
			return err
		}
		times, caller, err := measure(ctx, tourpb.NewTourClient(conn))
		if err == nil {
			err = t.inGear(ctx, conn, gear)
		}
		if err != nil {
			conn.Close()
			return fmt.Errorf("%s gear: %w", gear, err)
		}
		if gear == alpc.GearSocket {
			t.note("it was called by %s: the port said so, not the request", caller)
			t.demo = conn
		} else {
			conn.Close()
		}
		t.note("%d calls of %d bytes in the %s gear: p50 %s, p99 %s", len(times), tourBytes, gear, quantile(times, 50), quantile(times, 99))
	}
	return nil
}

// inGear proves by the core's list of connections that conn is what it was asked to be.
func (t *tour) inGear(ctx context.Context, conn *rpc.Conn, gear alpc.Gear) error {
	connections, err := t.sys.Connections(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(connections, func(c alpc.ConnectionInfo) bool { return c.ID == conn.Peer().Connection })
	switch {
	case i < 0:
		return errors.New("the core does not list the connection")
	case connections[i].Shared != (gear == alpc.GearShared):
		return fmt.Errorf("the connection has a section: %v", connections[i].Shared)
	case connections[i].Counters.MessagesIn < tourCalls:
		return fmt.Errorf("the live counters tell of %d messages", connections[i].Counters.MessagesIn)
	}
	return nil
}

// measure calls the echo and times each call, after some that warm up.
func measure(ctx context.Context, c tourpb.TourClient) (times []time.Duration, caller string, err error) {
	data := make([]byte, tourBytes)
	rand.Read(data)
	const warm = tourCalls / 10
	for i := range warm + tourCalls {
		start := time.Now()
		reply, err := c.Echo(ctx, &tourpb.EchoRequest{Data: data})
		took := time.Since(start)
		if err != nil {
			return nil, "", err
		}
		if string(reply.Data) != string(data) {
			return nil, "", errors.New("the echo is not what was sent")
		}
		caller = reply.Caller
		if i >= warm {
			times = append(times, took)
		}
	}
	slices.Sort(times)
	return times, caller, nil
}

// quantile is the q-th percentile of sorted times.
func quantile(times []time.Duration, q int) time.Duration {
	return times[min(len(times)*q/100, len(times)-1)].Round(100 * time.Nanosecond)
}

func (t *tour) logOn(ctx context.Context) (err error) {
	t.password = "Tour-" + rand.Text()
	home := filepath.Join(filepath.Dir(t.exe), "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	request := &lsapb.CreateUserRequest{Name: tourUser, Password: []byte(t.password), FullName: "Alice of the tour", Home: home}
	if t.user, err = t.authority.CreateUser(ctx, request); err != nil {
		return err
	}
	t.note("account %s is %s; its password is kept as an argon2id hash", tourUser, t.user.Sid)
	_, err = t.authority.LogonUser(ctx, lsa.LogonRequest{Name: tourUser, Password: []byte("a guess"), Type: lsa.Network, Origin: "the tour"})
	if ntstatus.Of(err) != ntstatus.LogonFailure {
		return fmt.Errorf("a wrong password should be refused as %v, and was: %w", ntstatus.LogonFailure, err)
	}
	t.note("a wrong password was refused: %v", ntstatus.LogonFailure.Error())
	if t.session, err = t.keeper.CreateSession(ctx, nil, ""); err != nil {
		return err
	}
	servers, err := t.keeper.Servers(ctx)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.Session == t.session {
			t.pids[s.Name] = s.Pid
			t.note("session %d got its own %s, process %d", t.session, s.Name, s.Pid)
		}
	}
	if t.shell, err = newExpect(ctx, t.sys, t.session, winlogon.ConsoleName); err != nil {
		return err
	}
	for _, line := range []struct{ wait, send string }{{"login: ", tourUser + "\r"}, {"assword: ", t.password + "\r"}, {"", "PS1='$ '; stty -echo; echo I-am-in-$((6*7))\r"}, {"I-am-in-42", ""}} {
		if err := t.shell.exchange(ctx, line.wait, line.send); err != nil {
			return err
		}
	}
	if strings.Contains(t.shell.all(), t.password) {
		return errors.New("the password was shown on the screen")
	}
	if err := t.shell.exchange(ctx, "", t.exe+" whoami -o name\r"); err != nil {
		return err
	}
	if err := t.shell.exchange(ctx, t.user.Sid, ""); err != nil {
		return fmt.Errorf("the shell should be %s: %w", t.user.Sid, err)
	}
	t.note("%s typed name and password at a console and has a shell; whoami in it says %s", tourUser, t.user.Sid)
	return nil
}

func (t *tour) beRefused(ctx context.Context) error {
	before, err := t.sys.Denials(ctx, 0)
	if err != nil {
		return err
	}
	after := uint64(0)
	if len(before) > 0 {
		after = before[len(before)-1].Decision
	}
	if err := t.shell.exchange(ctx, "", fmt.Sprintf("%s call '%s' Reset; echo code-$?\r", t.exe, demoPort)); err != nil {
		return err
	}
	if err := t.shell.exchange(ctx, fmt.Sprintf("code-%d", exitDenied), ""); err != nil {
		return fmt.Errorf("the call should have been refused: %w", err)
	}
	denials, err := t.sys.Denials(ctx, after)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(denials, func(d alpc.Denial) bool { return d.User == t.user.Sid && strings.HasPrefix(d.Right, "TOUR_RESET") })
	if i < 0 {
		return errors.New("the core's log has no such denial")
	}
	d, err := t.sys.Explain(ctx, denials[i].Decision)
	if err != nil {
		return err
	}
	t.note("%s called Reset from the shell and was refused: decision %d, right %s on %s", tourUser, d.Decision, d.Right, d.Object)
	t.note("the descriptor is %s", d.SecurityDescriptor)
	if len(d.Trace) == 0 || !strings.Contains(strings.Join(d.Trace, " "), "0x2") {
		return errors.New("the decision does not say which entry decided")
	}
	for _, line := range d.Trace {
		t.note("explain: %s", line)
	}
	reply, err := tourpb.NewTourClient(t.demo).Reset(ctx, &tourpb.ResetRequest{})
	if err != nil {
		return fmt.Errorf("an administrator may reset: %w", err)
	}
	t.note("the same call by an administrator is allowed (%d echoes were counted)", reply.Count)
	return nil
}

func (t *tour) killServers(ctx context.Context) error {
	// Somebody calls the service all the while.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var calls, failed atomic.Uint64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		client := tourpb.NewTourClient(t.demo)
		for ctx.Err() == nil {
			if _, err := client.Echo(ctx, &tourpb.EchoRequest{Data: []byte("still there?")}); err != nil && ctx.Err() == nil {
				failed.Add(1)
			}
			calls.Add(1)
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	for _, victim := range []struct {
		server   string
		survived func(context.Context) (string, error)
	}{
		{"lsass", t.logonSurvived},
		{"scm", t.serviceSurvived},
		{fmt.Sprintf("csrss@%d", t.session), t.consoleSurvived},
	} {
		took, err := t.kill(ctx, victim.server)
		if err != nil {
			return fmt.Errorf("%s: %w", victim.server, err)
		}
		what, err := victim.survived(ctx)
		if err != nil {
			return fmt.Errorf("after %s was killed: %w", victim.server, err)
		}
		t.note("%s was killed and is back after %s as process %d; %s", victim.server, took.Round(time.Millisecond), t.pids[victim.server], what)
	}
	cancel()
	<-stopped
	if failed.Load() > 0 || calls.Load() == 0 {
		return fmt.Errorf("%d of %d calls to the service failed meanwhile", failed.Load(), calls.Load())
	}
	t.note("%d calls to the service went on meanwhile, and none failed", calls.Load())
	return nil
}

// kill ends a server with SIGKILL and waits until smss has it running again.
func (t *tour) kill(ctx context.Context, name string) (time.Duration, error) {
	process, err := os.FindProcess(int(t.pids[name]))
	if err != nil {
		return 0, err
	}
	defer process.Release()
	start := time.Now()
	if err := process.Kill(); err != nil {
		return 0, err
	}
	back := errors.New("back")
	err = t.keeper.Watch(ctx, func(change *smpb.StateChange) error {
		s := change.GetServer()
		if s.GetName() == name && s.State == smpb.ServerState_SERVER_STATE_RUNNING && s.Pid != t.pids[name] {
			t.pids[name] = s.Pid
			return back
		}
		return nil
	})
	if !errors.Is(err, back) {
		return 0, fmt.Errorf("it did not come back: %w", err)
	}
	return time.Since(start), nil
}

func (t *tour) logonSurvived(ctx context.Context) (string, error) {
	sessions, err := t.authority.LogonSessions(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(sessions, func(s *lsapb.LogonSession) bool { return s.UserSid == t.user.Sid })
	if i < 0 {
		return "", errors.New("it no longer knows that the user is logged on")
	}
	logon, err := t.authority.LogonUser(ctx, lsa.LogonRequest{Name: tourUser, Password: []byte(t.password), Type: lsa.Network, Origin: "the tour"})
	if err != nil {
		return "", err
	}
	if err := t.authority.LogOff(ctx, logon.ID); err != nil {
		return "", err
	}
	return fmt.Sprintf("it knows %s's logon (%s) again, from the core's tokens", tourUser, sessions[i].LogonSid), nil
}

func (t *tour) serviceSurvived(ctx context.Context) (string, error) {
	s, err := t.services.OpenService(ctx, "tour", mgr.QueryStatus|mgr.QueryConfig)
	if err != nil {
		return "", err
	}
	defer s.Close()
	status, err := s.Query(ctx)
	if err != nil {
		return "", err
	}
	if status.State != scmpb.ServiceState_SERVICE_RUNNING || status.Pid != t.pids["service tour"] {
		return "", fmt.Errorf("the service is %s with process %d, and was process %d", word(serviceStates, int32(status.State)), status.Pid, t.pids["service tour"])
	}
	return fmt.Sprintf("its service runs on as process %d and never noticed", status.Pid), nil
}

func (t *tour) consoleSurvived(ctx context.Context) (string, error) {
	if err := t.shell.exchange(ctx, "", "echo still-$((40+2))\r"); err != nil {
		return "", err
	}
	if err := t.shell.exchange(ctx, "still-42", ""); err != nil {
		return "", err
	}
	return tourUser + "'s console is there, with the same shell, and what was on the screen", nil
}

func (t *tour) shutDown(ctx context.Context) error {
	if err := t.keeper.Shutdown(ctx, "the tour is over", 0); err != nil {
		return err
	}
	select {
	case <-t.core.ended:
	case <-ctx.Done():
		return fmt.Errorf("the core still runs: %w", ctx.Err())
	}
	if t.core.err != nil {
		return fmt.Errorf("the core ended badly: %w", t.core.err)
	}
	for name, pid := range t.pids {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("%s, process %d, is still there", name, pid)
		}
	}
	if _, err := os.Lstat(t.in.Socket()); !errors.Is(err, os.ErrNotExist) {
		return errors.New("the core's socket is still there")
	}
	t.note("services, sessions, servers, core: all %d processes have ended, and the socket is gone", len(t.pids)+2)
	return nil
}

// expect is a person at a console who reads before typing.
type expect struct {
	cancel context.CancelFunc
	keys   *io.PipeWriter
	output chan string
	ended  chan error
	text   strings.Builder
	seen   int // how much of text was read
}

func newExpect(ctx context.Context, sys *alpc.System, session uint32, console string) (*expect, error) {
	ctx, cancel := context.WithCancel(ctx)
	in, keys := io.Pipe()
	e := &expect{cancel: cancel, keys: keys, output: make(chan string, 64), ended: make(chan error, 1)}
	view := csr.View{Session: session, Attach: &csrpb.Attach{Name: console, Size: &csrpb.Size{Columns: 200, Rows: 50}}, In: in, Out: e}
	go func() {
		_, err := view.Run(ctx, sys)
		e.ended <- err
		close(e.output)
	}()
	return e, nil
}

// Write takes what the console shows.
func (e *expect) Write(p []byte) (int, error) {
	e.output <- string(p)
	return len(p), nil
}

// exchange reads until wait was shown, then types send.
func (e *expect) exchange(ctx context.Context, wait, send string) error {
	for {
		if i := strings.Index(e.text.String()[e.seen:], wait); i >= 0 {
			e.seen += i + len(wait)
			break
		}
		select {
		case s, ok := <-e.output:
			if !ok {
				return fmt.Errorf("the console ended before it showed %q: %w", wait, <-e.ended)
			}
			e.text.WriteString(s)
		case <-ctx.Done():
			return fmt.Errorf("the console never showed %q, but %q: %w", wait, e.text.String()[e.seen:], ctx.Err())
		}
	}
	if send == "" {
		return nil
	}
	_, err := e.keys.Write([]byte(send))
	return err
}

// all is everything that the console has shown.
func (e *expect) all() string { return e.text.String() }

func (e *expect) close() {
	e.cancel()
	e.keys.Close()
	for range e.output { // so that Write never blocks the view
	}
}
