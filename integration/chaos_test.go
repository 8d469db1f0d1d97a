package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/proto/lsapb"
	"sallyport/proto/scmpb"
	"sallyport/proto/smpb"
	"sallyport/scm/mgr"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/lsass/lsa"
)

// raised lets servers be killed as often as a test likes.
const raised = `
[server.lsass]
restarts = 60000
backoff = "1ms"
backoff_max = "5ms"
[server.scm]
restarts = 60000
backoff = "1ms"
backoff_max = "5ms"
[server.csrss]
restarts = 60000
backoff = "1ms"
backoff_max = "5ms"
[session_server.csrss]
restarts = 60000
backoff = "1ms"
backoff_max = "5ms"
`

const (
	chaosDeadline = 15 * time.Second // of one call of a client
	chaosSlack    = 2 * time.Second  // by which a call may come back late on a busy machine
	chaosPassword = "Correct-Horse-7"
)

// kills is how many servers are killed: SALLYPORT_KILLS, else a handful.
func kills(t *testing.T) int {
	text := os.Getenv("SALLYPORT_KILLS")
	if text == "" {
		return 10
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "SALLYPORT_KILLS")
	return n
}

// chaos is a set under load.
type chaos struct {
	*set
	stop   chan struct{}
	group  sync.WaitGroup
	calls  atomic.Int64
	failed atomic.Int64 // for want of a server, within the deadline
	wrong  chan error   // what must never be; the first is enough
}

func (c *chaos) fail(format string, args ...any) {
	select {
	case c.wrong <- fmt.Errorf(format, args...):
	default:
	}
}

// call makes one call under the deadline. It reports whether the call was acknowledged; a failure that isn't the server's absence is
// the test's.
func (c *chaos) call(what string, f func(ctx context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), chaosDeadline)
	defer cancel()
	began := time.Now()
	err := f(ctx)
	c.calls.Add(1)
	if took := time.Since(began); took > chaosDeadline+chaosSlack {
		c.fail("%s came back after %s: %w", what, took, err)
	}
	if err == nil {
		return true
	}
	switch ntstatus.Of(err) {
	case ntstatus.PortDisconnected, ntstatus.PortClosed, ntstatus.ShutdownInProgress, ntstatus.SystemShutdownInProgress:
		c.failed.Add(1) // it was killed under the call: whether it was done isn't known
	default:
		c.fail("%s: %w", what, err)
	}
	return false
}

// work runs f, over an attachment of its own, until the chaos is over. f is told the number of the round.
func (c *chaos) work(f func(sys *alpc.System) (round func(n int), close func() error)) {
	sys := c.attach()
	round, end := f(sys)
	c.group.Go(func() {
		defer sys.Close()
		defer end()
		for n := 0; ; n++ {
			select {
			case <-c.stop:
				return
			default:
				round(n)
			}
		}
	})
}

// TestServersAreKilledAtRandomAndNothingIsLost kills lsass, scm, csrss and winlogon while clients call them.
func TestServersAreKilledAtRandomAndNothingIsLost(t *testing.T) {
	s := up(t, raised)
	c := &chaos{set: s, stop: make(chan struct{}), wrong: make(chan error, 1)}
	ctx := context.Background()

	// What must never notice: a service and a shell.
	before := s.attach()
	services, err := mgr.Connect(ctx, before)
	require.NoError(t, err)
	steady, err := services.CreateService(ctx, s.sleeper("steady"), mgr.CreateOptions{Access: mgr.AllAccess})
	require.NoError(t, err)
	running, err := steady.Start(ctx, true)
	require.NoError(t, err)
	require.NotZero(t, running.Pid)
	consoles, err := csr.Dial(ctx, before, 0)
	require.NoError(t, err)
	shell, err := consoles.Create(ctx, &csrpb.CreateConsoleRequest{Name: "steady", ScrollbackBytes: 4 << 20,
		Command: &csrpb.Command{Argv: []string{"/bin/sh", "-c", `stty -echo; echo begin; while read x; do echo "<$x>"; done`}, Env: []string{"PATH=" + os.Getenv("PATH"), s.mark()}, Cwd: "/"}})
	require.NoError(t, err)
	require.NotZero(t, shell.Pid)
	authority, err := lsa.Dial(ctx, before)
	require.NoError(t, err)
	_, err = authority.CreateUser(ctx, &lsapb.CreateUserRequest{Name: "steady", Password: []byte(chaosPassword)})
	require.NoError(t, err)
	require.NoError(t, before.Close())
	base, err := s.holdings()
	require.NoError(t, err)

	users, created, deleted := &sync.Map{}, &sync.Map{}, &sync.Map{}
	typed := &sync.Map{}
	c.work(func(sys *alpc.System) (func(int), func() error) { return c.userWork(sys, users) })
	c.work(c.logonWork)
	c.work(func(sys *alpc.System) (func(int), func() error) { return c.serviceWork(sys, created, deleted) })
	c.work(func(sys *alpc.System) (func(int), func() error) { return c.steadyWork(sys, running.Pid) })
	c.work(func(sys *alpc.System) (func(int), func() error) { return c.consoleWork(sys, shell.Pid, typed) })
	seen := &transcript{}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watched := make(chan error, 1)
	watcher := s.attach()
	go func() {
		_, err := csr.View{Attach: &csrpb.Attach{Name: "steady"}, Out: seen}.Run(watching, watcher)
		watched <- err
	}()

	c.rampage(kills(t))
	close(c.stop)
	c.group.Wait()
	select {
	case err := <-c.wrong:
		require.NoError(t, err)
	default:
	}
	t.Logf("%d calls, of which %d met a server that was killed", c.calls.Load(), c.failed.Load())
	require.NotZero(t, c.calls.Load())

	// No acknowledged record is lost, none that was deleted is back.
	after := s.attach()
	authority, err = lsa.Dial(ctx, after)
	require.NoError(t, err)
	services, err = mgr.Connect(ctx, after)
	require.NoError(t, err)
	all, err := authority.Users(ctx)
	require.NoError(t, err)
	have := map[string]bool{}
	for _, u := range all {
		have[u.Name] = true
	}
	count := 0
	users.Range(func(name, _ any) bool { count++; require.True(t, have[name.(string)], "user %s", name); return true })
	listed, err := services.Services(ctx, scmpb.ServiceStateFilter_SERVICE_STATE_ALL)
	require.NoError(t, err)
	have = map[string]bool{}
	for _, v := range listed {
		have[v.Name] = true
	}
	created.Range(func(name, _ any) bool { count++; require.True(t, have[name.(string)], "service %s", name); return true })
	deleted.Range(func(name, _ any) bool {
		count++
		require.False(t, have[name.(string)], "service %s", name)
		return true
	})
	require.NotZero(t, count)
	t.Logf("%d acknowledged records", count)

	// What was typed and acknowledged was shown, once; the viewer missed nothing and saw nothing twice.
	eventually(t, 20*time.Second, func() (missing error) {
		shown := map[string]int{}
		for line := range strings.Lines(seen.String()) {
			shown[line]++
		}
		typed.Range(func(line, acknowledged any) bool {
			n := shown[fmt.Sprintf("<%s>\r\n", line)]
			require.LessOrEqual(t, n, 1, line)
			if n == 0 && acknowledged.(bool) {
				missing = fmt.Errorf("%q was not shown", line)
			}
			return missing == nil
		})
		return missing
	})
	stopWatching()
	<-watched
	watcher.Close()
	after.Close()
	require.True(t, alive(int(running.Pid)))
	require.True(t, alive(int(shell.Pid)))

	// What was made meanwhile goes, and the set holds what it held.
	sessions, err := s.keeper.Sessions(ctx)
	require.NoError(t, err)
	for _, v := range sessions {
		if v.Session != 0 && v.State == smpb.SessionState_SESSION_STATE_ACTIVE {
			require.NoError(t, s.keeper.TerminateSession(ctx, v.Session))
		}
	}
	eventually(t, 20*time.Second, func() error {
		now, err := s.holdings()
		if err != nil {
			return err
		}
		return now.exceed(base)
	})
	were := s.processes()
	require.NoError(t, s.keeper.Shutdown(ctx, "the test is over", 0))
	s.requireDown(0, were)
}

// exceed says what there is more of than there was.
func (h holdings) exceed(base holdings) error {
	for name, n := range h.processes {
		if n != base.processes[name] {
			return fmt.Errorf("%d processes %s, %d before", n, name, base.processes[name])
		}
	}
	for kind, n := range h.descriptors {
		if n > base.descriptors[kind] {
			return fmt.Errorf("%d descriptors %s, %d before", n, kind, base.descriptors[kind])
		}
	}
	for name, n := range h.charges {
		if n != base.charges[name] {
			return fmt.Errorf("%s: %d, %d before", name, n, base.charges[name])
		}
	}
	return nil
}

// transcript is what a viewer was shown.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// sleeper is a service that does nothing for a long time.
func (s *set) sleeper(name string) *scmpb.ServiceConfig {
	return &scmpb.ServiceConfig{Name: name, Path: "/bin/sleep", Arguments: []string{"100000"}, Environment: []string{s.mark()}, ReadyDelayMs: 10}
}

// rampage kills n servers. Half of the time it waits until the one that it killed is back, else it goes on at once.
func (c *chaos) rampage(n int) {
	c.t.Helper()
	ctx := context.Background()
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	killed, last := map[string]int{}, map[string]uint32{}
	var back []time.Duration
	for done := 0; done < n; {
		select {
		case err := <-c.wrong:
			require.NoError(c.t, err)
		default:
		}
		name := []string{"lsass", "scm", "csrss", "winlogon"}[random.IntN(4)]
		if name == "winlogon" {
			c.killWinlogon(ctx, random.IntN(4) == 0)
			killed[name]++
			done++
			continue
		}
		was := c.kill(name)
		if was == 0 {
			continue // it is between two lives
		}
		last[name] = was
		killed[name]++
		done++
		if random.IntN(2) == 0 {
			began := time.Now()
			c.awaitBack(name, was)
			back = append(back, time.Since(began))
		}
	}
	for _, name := range []string{"lsass", "scm", "csrss"} {
		c.awaitBack(name, last[name])
	}
	var slowest time.Duration
	for _, d := range back {
		slowest = max(slowest, d)
	}
	c.t.Logf("killed %v; the slowest was back after %s", killed, slowest)
}

// killWinlogon makes a session and kills its winlogon, which ends that session and no other. early does not wait until it runs.
func (c *chaos) killWinlogon(ctx context.Context, early bool) {
	c.t.Helper()
	session, err := c.keeper.CreateSession(ctx, nil, "")
	if err != nil && ntstatus.Of(err) == ntstatus.TooManySessions {
		return // those that were ended are not yet gone
	}
	require.NoError(c.t, err)
	name := fmt.Sprintf("winlogon@%d", session)
	if !early {
		c.awaitBack(name, 0)
	}
	killed := uint32(0)
	eventually(c.t, 10*time.Second, func() error {
		if killed = c.kill(name); killed == 0 {
			return fmt.Errorf("%s does not run", name)
		}
		return nil
	})
	eventually(c.t, 20*time.Second, func() error {
		sessions, err := c.keeper.Sessions(ctx)
		for _, s := range sessions {
			if s.Session == session && s.State == smpb.SessionState_SESSION_STATE_ACTIVE {
				err = fmt.Errorf("session %d is still active", session)
			}
			if s.Session == 0 && s.State != smpb.SessionState_SESSION_STATE_ACTIVE {
				c.fail("session 0 is %s", s.State)
			}
		}
		return err
	})
}

// userWork creates accounts, and looks for one that was acknowledged.
func (c *chaos) userWork(sys *alpc.System, acknowledged *sync.Map) (func(int), func() error) {
	client, err := lsa.Dial(c.t.Context(), sys)
	require.NoError(c.t, err)
	return func(n int) {
		name := fmt.Sprintf("user%d", n)
		if c.call("create user", func(ctx context.Context) error {
			_, err := client.CreateUser(ctx, &lsapb.CreateUserRequest{Name: name, Password: []byte(chaosPassword)})
			return err
		}) {
			acknowledged.Store(name, true)
		}
		acknowledged.Range(func(name, _ any) bool {
			c.call("query user", func(ctx context.Context) error { _, err := client.QueryUser(ctx, name.(string)); return err })
			return false // one of them, as the map has it
		})
	}, client.Close
}

// logonWork logs the steady user on and off.
func (c *chaos) logonWork(sys *alpc.System) (func(int), func() error) {
	client, err := lsa.Dial(c.t.Context(), sys)
	require.NoError(c.t, err)
	return func(int) {
		var logon *lsa.Logon
		if !c.call("log on", func(ctx context.Context) (err error) {
			logon, err = client.LogonUser(ctx, lsa.LogonRequest{Name: "steady", Password: []byte(chaosPassword), Type: lsa.Network, Origin: "chaos"})
			return err
		}) {
			return
		}
		for again := false; ; again = true {
			if c.call("log off", func(ctx context.Context) error {
				err := client.LogOff(ctx, logon.ID)
				if again && errors.Is(err, ntstatus.NoSuchLogonSession) {
					return nil // the first attempt had done it
				}
				return err
			}) {
				break
			}
		}
		c.call("give the token back", func(ctx context.Context) error { return sys.CloseToken(ctx, logon.Token) })
	}, client.Close
}

// serviceWork creates services and deletes every other one.
func (c *chaos) serviceWork(sys *alpc.System, created, deleted *sync.Map) (func(int), func() error) {
	client, err := mgr.Connect(c.t.Context(), sys)
	require.NoError(c.t, err)
	return func(n int) {
		name := fmt.Sprintf("service%d", n)
		var service *mgr.Service
		if !c.call("create service", func(ctx context.Context) (err error) {
			service, err = client.CreateService(ctx, c.sleeper(name), mgr.CreateOptions{Access: mgr.AllAccess})
			return err
		}) {
			return
		}
		defer service.Close()
		created.Store(name, true)
		if n%2 == 0 {
			created.Delete(name) // from here on it isn't known
			if c.call("delete service", func(ctx context.Context) error { return service.Delete(ctx) }) {
				deleted.Store(name, true)
			}
		}
	}, client.Close
}

// steadyWork asks for the service that must not notice.
func (c *chaos) steadyWork(sys *alpc.System, pid uint32) (func(int), func() error) {
	client, err := mgr.Connect(c.t.Context(), sys)
	require.NoError(c.t, err)
	return func(int) {
		c.call("query service", func(ctx context.Context) error {
			service, err := client.OpenService(ctx, "steady", mgr.QueryStatus)
			if err != nil {
				return err
			}
			defer service.Close()
			status, err := service.Query(ctx)
			if err == nil && (status.State != scmpb.ServiceState_SERVICE_RUNNING || status.Pid != pid) {
				c.fail("the service is %v and was process %d", status, pid)
			}
			return err
		})
	}, client.Close
}

// consoleWork types lines, each once, and asks for the shell that must not notice.
func (c *chaos) consoleWork(sys *alpc.System, pid uint32, typed *sync.Map) (func(int), func() error) {
	client, err := csr.Dial(c.t.Context(), sys, 0)
	require.NoError(c.t, err)
	return func(n int) {
		line := fmt.Sprintf("line %d", n)
		typed.Store(line, c.call("type", func(ctx context.Context) error { return client.Write(ctx, "steady", []byte(line+"\n")) }))
		c.call("query console", func(ctx context.Context) error {
			console, err := client.Console(ctx, "steady")
			if err == nil && (console.Pid != pid || console.Ended) {
				c.fail("the console is %v and was process %d", console, pid)
			}
			return err
		})
	}, client.Close
}

// TestSpentBudgetStopsEverythingInOrder kills a critical server more often than its configuration allows.
func TestSpentBudgetStopsEverythingInOrder(t *testing.T) {
	s := up(t, "[server.csrss]\nrestarts = 2\nbackoff = \"1ms\"\nbackoff_max = \"1ms\"\n")
	s.startSleeper("idle")
	were := s.processes()
	for n := uint32(0); ; n++ {
		v, err := s.server("csrss")
		if err != nil || n > 2 {
			break
		}
		require.Equal(t, n, v.Restarts)
		was := s.kill("csrss")
		if n < 2 {
			s.awaitBack("csrss", was)
		}
	}
	s.requireDown(1, were)
	s.requireStopOrder()
}

// TestDeathOfTheSessionManagerStopsEverything and of the core: nothing is orphaned.
func TestDeathOfTheSessionManagerStopsEverything(t *testing.T) {
	s := up(t, "")
	s.startSleeper("idle")
	were := s.processes()
	require.GreaterOrEqual(t, len(were), 6)
	p, err := os.FindProcess(s.sessionManager())
	require.NoError(t, err)
	require.NoError(t, p.Kill())
	s.requireDown(1, were)
}

// TestDeathOfTheCoreStopsEverything kills the one process that everybody trusts.
func TestDeathOfTheCoreStopsEverything(t *testing.T) {
	s := up(t, "")
	s.startSleeper("idle")
	were := s.processes()
	require.NoError(t, s.core.Process.Kill())
	<-s.ended
	s.ended <- nil
	require.Equal(t, syscall.SIGKILL, s.core.ProcessState.Sys().(syscall.WaitStatus).Signal())
	eventually(t, 30*time.Second, func() error {
		for _, pid := range were {
			if alive(pid) {
				return fmt.Errorf("process %d is left behind", pid)
			}
		}
		return nil
	})
	require.Empty(t, s.processes())
}

func (s *set) startSleeper(name string) {
	s.t.Helper()
	ctx := s.t.Context()
	services, err := mgr.Connect(ctx, s.sys)
	require.NoError(s.t, err)
	defer services.Close()
	service, err := services.CreateService(ctx, s.sleeper(name), mgr.CreateOptions{Access: mgr.AllAccess})
	require.NoError(s.t, err)
	_, err = service.Start(ctx, true)
	require.NoError(s.t, err)
}

// requireStopOrder requires of the log that servers were stopped in reverse order of their start.
func (s *set) requireStopOrder() {
	s.t.Helper()
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	require.NoError(s.t, err)
	var stopped []string
	for line := range bytes.Lines(log) {
		var said struct{ Server, State string }
		if json.Unmarshal(line, &said) == nil && said.State == "stopping" {
			stopped = append(stopped, said.Server)
		}
	}
	require.Equal(s.t, []string{"scm", "lsass"}, stopped, "csrss has failed, and is not there to be stopped")
}
