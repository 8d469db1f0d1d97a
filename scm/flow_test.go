package scm_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/notify"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/proto/smpb"
	"sallyport/scm"
	"sallyport/scm/mgr"
	"sallyport/scm/svc"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/lsass"
	"sallyport/subsys/smss"
	"sallyport/subsys/smss/sm"
)

// role says what a re-executed test binary is: a server of the set, or a service.
const role = "SCM_TEST_ROLE"

func TestMain(m *testing.M) {
	roles := map[string]func() int{
		"server": func() int {
			for _, s := range []subsys.Server{lsass.Server(), scm.Server()} {
				if s.Name == os.Args[len(os.Args)-1] {
					return subsys.Main(s)
				}
			}
			return 64
		},
		"counter": counter, "notify": notifier, "native": native, "posed": posed,
	}
	if be, ok := roles[os.Getenv(role)]; ok {
		os.Exit(be())
	}
	os.Exit(m.Run())
}

// counter is a service that knows nothing of us: it writes numbered lines as fast as it may, until SIGTERM.
func counter() int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	every := time.NewTicker(time.Millisecond)
	for i := 0; ; i++ {
		fmt.Printf("%d %d\n", os.Getpid(), i)
		select {
		case <-stop:
			fmt.Println("bye")
			return 0
		case <-every.C:
		}
	}
}

// notifier speaks sd_notify: its only argument is what it says, line ends as commas.
func notifier() int {
	for _, text := range os.Args[1:] {
		if err := notify.Send(os.Getenv("NOTIFY_SOCKET"), strings.ReplaceAll(text, ",", "\n"), time.Second); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	select {}
}

// native is a service written with scm/svc: it pauses, continues, refuses nothing and says in its log what it was told.
func native() int {
	err := svc.Run(context.Background(), "", svc.HandlerFunc(func(_ context.Context, args []string, r <-chan svc.ChangeRequest, s chan<- svc.Status) (bool, uint32) {
		const accepts = svc.AcceptStop | svc.AcceptPauseAndContinue | svc.AcceptShutdown
		fmt.Println("args", args)
		s <- svc.Status{State: svc.StartPending, CheckPoint: 1, WaitHint: time.Second, Text: "preparing"}
		s <- svc.Status{State: svc.Running, Accepts: accepts}
		for c := range r {
			fmt.Println("control", c.Cmd)
			switch c.Cmd {
			case svc.Pause:
				s <- svc.Status{State: svc.Paused, Accepts: accepts}
			case svc.Continue:
				s <- svc.Status{State: svc.Running, Accepts: accepts}
			case svc.Stop, svc.Shutdown:
				s <- svc.Status{State: svc.StopPending, CheckPoint: 1, WaitHint: time.Second}
				return true, 7
			}
		}
		return false, 0
	}))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// set is a core in this process, smss in it too, and lsass and scm as processes of their own.
type set struct {
	t       *testing.T
	sys     *alpc.System
	manager *mgr.Manager
	servers *sm.Client
	dir     string
	coreOf  *alpctest.Core
}

func boot(t *testing.T) *set {
	t.Helper()
	core := alpctest.Start(t, alpctest.AsProcess())
	dir, err := os.MkdirTemp("", "scm")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "sallyport.toml")
	require.NoError(t, os.WriteFile(file, []byte("uid_base = 0\n[server.csrss]\ndisabled = true\n[server.scm]\nrestarts = 1000\nbackoff = \"10ms\"\nbackoff_max = \"20ms\"\n"), 0o600))
	config, err := smss.Load(file, "lsass", "csrss", "scm", "winlogon")
	require.NoError(t, err)
	output, err := os.Create(filepath.Join(dir, "servers.log"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	booted := make(chan struct{})
	options := smss.Options{
		Config: config, System: core.Attach(t, nil), Executable: []string{"/proc/self/exe", "server"},
		Environment: []string{role + "=server", "SALLYPORT_LOG=debug"}, StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run"),
		Core: core.Path(), Output: output, Logger: hclog.New(&hclog.LoggerOptions{Output: output, Level: hclog.Debug}), Booted: func() { close(booted) },
	}
	go func() { ended <- smss.Run(ctx, options) }()
	t.Cleanup(func() {
		cancel()
		err := <-ended
		if t.Failed() {
			log, _ := os.ReadFile(output.Name())
			t.Logf("the servers said:\n%s", log)
		}
		require.NoError(t, err)
		output.Close()
	})
	select {
	case <-booted:
	case err := <-ended:
		ended <- err
		require.NoError(t, err)
	case <-time.After(waitFor):
		t.Fatal("the set does not boot")
	}
	s := &set{t: t, sys: core.Attach(t, alpctest.Admin(1000)), dir: dir, coreOf: core}
	s.servers, err = sm.Dial(s.context(), s.sys)
	require.NoError(t, err)
	s.connect()
	return s
}

func (s *set) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *set) connect() {
	s.t.Helper()
	var err error
	s.manager, err = mgr.Connect(s.context(), s.sys)
	require.NoError(s.t, err)
}

// create makes a service of this test's binary in the given role.
func (s *set) create(name, as string, tweak func(*scmpb.ServiceConfig)) *mgr.Service {
	s.t.Helper()
	exe, err := os.Executable()
	require.NoError(s.t, err)
	c := &scmpb.ServiceConfig{Name: name, Path: exe, Environment: []string{role + "=" + as}, Kind: map[string]scmpb.ServiceKind{
		"notify": scmpb.ServiceKind_SERVICE_KIND_NOTIFY, "native": scmpb.ServiceKind_SERVICE_KIND_NATIVE}[as],
		FailureActions: &scmpb.FailureActions{Actions: []*scmpb.FailureActions_Action{{Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: 50}}}}
	if tweak != nil {
		tweak(c)
	}
	service, err := s.manager.CreateService(s.context(), c, mgr.CreateOptions{Access: security.MaximumAllowed})
	require.NoError(s.t, err)
	return service
}

func (s *set) open(name string) *mgr.Service {
	s.t.Helper()
	service, err := s.manager.OpenService(s.context(), name, security.MaximumAllowed)
	require.NoError(s.t, err)
	return service
}

func (s *set) start(service *mgr.Service, args ...string) *scmpb.ServiceStatus {
	s.t.Helper()
	st, err := service.Start(s.context(), true, args...)
	require.NoError(s.t, err)
	require.Equal(s.t, scmpb.ServiceState_SERVICE_RUNNING, st.State)
	return st
}

func (s *set) await(service *mgr.Service, what string, ok func(*scmpb.ServiceStatus) bool) (st *scmpb.ServiceStatus) {
	s.t.Helper()
	eventually(s.t, func() bool {
		var err error
		st, err = service.Query(s.context())
		return err == nil && ok(st)
	}, what)
	return st
}

func (s *set) log(service *mgr.Service) string {
	var b bytes.Buffer
	require.NoError(s.t, service.Log(s.context(), &b, mgr.LogOptions{Tail: -1}))
	return b.String()
}

// killSCM kills the controller and waits for its successor.
func (s *set) killSCM() {
	s.t.Helper()
	old := s.server("scm").Pid
	require.NoError(s.t, syscall.Kill(int(old), syscall.SIGKILL))
	eventually(s.t, func() bool {
		server := s.server("scm")
		return server.Pid != old && server.State == smpb.ServerState_SERVER_STATE_RUNNING
	}, "scm comes back")
	s.manager.Close()
	s.connect()
}

// whole checks that a counter's log has every line of every run: each begins at 0 and has no gap.
func whole(t *testing.T, log string) (runs int) {
	t.Helper()
	next := map[string]int{}
	lines := strings.Split(log, "\n")
	for i, line := range lines {
		if line == "bye" || line == "" && i == len(lines)-1 {
			continue
		}
		pid, n, ok := strings.Cut(line, " ")
		number, err := strconv.Atoi(n)
		if !ok || err != nil { // a process that was killed in the midst of a line
			continue
		}
		require.Equal(t, next[pid], number, "a line is missing, at %q", line)
		next[pid]++
	}
	return len(next)
}

func TestAServiceIsKeptAliveAndItsLogWhole(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("Counter", "counter", func(c *scmpb.ServiceConfig) { c.LogBytes, c.LogFiles = 1<<20, 4 })
	st := s.start(service)
	require.NotZero(t, st.Pid)

	// kill -9 of the service: it is started again, and its record says why.
	require.NoError(t, syscall.Kill(int(st.Pid), syscall.SIGKILL))
	again := s.await(service, "restarted", func(n *scmpb.ServiceStatus) bool {
		return n.Pid != 0 && n.Pid != st.Pid && n.State == scmpb.ServiceState_SERVICE_RUNNING
	})
	require.EqualValues(t, 1, again.Explain.Failures)
	require.EqualValues(t, 2, again.Explain.Starts)

	// kill -9 of the controller, three times: the service never notices, and nothing is restarted.
	for range 3 {
		s.killSCM()
		service = s.open("counter")
		adopted, err := service.Query(s.context())
		require.NoError(t, err)
		require.Equal(t, again.Pid, adopted.Pid)
		require.Equal(t, scmpb.ServiceState_SERVICE_RUNNING, adopted.State)
		require.EqualValues(t, 1, adopted.Explain.Failures)
		before := len(s.log(service))
		eventually(t, func() bool { return len(s.log(service)) > before }, "the log goes on")
	}

	// Both at once: the controller learns from smss what it missed.
	require.NoError(t, syscall.Kill(int(again.Pid), syscall.SIGSTOP)) // so that it does not end before the controller does
	require.NoError(t, syscall.Kill(int(again.Pid), syscall.SIGKILL))
	s.killSCM()
	service = s.open("counter")
	s.await(service, "restarted by the successor", func(n *scmpb.ServiceStatus) bool {
		return n.Pid != 0 && n.Pid != again.Pid && n.State == scmpb.ServiceState_SERVICE_RUNNING
	})

	stopped, err := service.Stop(s.context(), false, true)
	require.NoError(t, err)
	require.Equal(t, scmpb.ServiceState_SERVICE_STOPPED, stopped.State)
	require.Zero(t, stopped.Win32ExitCode)
	eventually(t, func() bool { return strings.HasSuffix(s.log(service), "bye\n") })
	require.Equal(t, 3, whole(t, s.log(service)))

	require.NoError(t, service.Delete(s.context()))
	_, err = s.manager.CreateService(s.context(), &scmpb.ServiceConfig{Name: "COUNTER", Path: "/bin/true"}, mgr.CreateOptions{})
	require.ErrorIs(t, err, ntstatus.ServiceMarkedForDelete, "this test still holds it")
	require.NoError(t, service.Close())
	eventually(t, func() bool {
		_, err := s.manager.OpenService(s.context(), "counter", 0)
		return ntstatus.Of(err) == ntstatus.ServiceDoesNotExist
	})
	_, err = s.manager.CreateService(s.context(), &scmpb.ServiceConfig{Name: "COUNTER", Path: "/bin/true"}, mgr.CreateOptions{})
	require.NoError(t, err)
}

func TestNotifyServicesAreHeardAndForeignersAreNot(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("db", "notify", func(c *scmpb.ServiceConfig) { c.Arguments = []string{"STATUS=loading", "READY=1,STATUS=serving"} })
	st := s.start(service)
	s.await(service, "its words", func(n *scmpb.ServiceStatus) bool { return n.Text == "serving" })

	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", st.Pid))
	require.NoError(t, err)
	_, after, ok := strings.Cut(string(environment), "NOTIFY_SOCKET=")
	require.True(t, ok)
	address, _, _ := strings.Cut(after, "\x00")
	for _, text := range []string{"STATUS=forged", "STOPPING=1", "MAINPID=1", strings.Repeat("x", 2*notify.MaxDatagram)} {
		require.NoError(t, notify.Send(address, text, time.Second))
	}
	s.killSCM() // the socket outlives its reader
	require.NoError(t, notify.Send(address, "STATUS=forged again", time.Second))
	service = s.open("db")
	now := s.await(service, "its words, and nobody else's", func(n *scmpb.ServiceStatus) bool {
		return n.Text == "serving" && n.State == scmpb.ServiceState_SERVICE_RUNNING // what was not noted yet is heard again
	})
	require.Equal(t, st.Pid, now.Pid)

	late := s.create("mute", "notify", func(c *scmpb.ServiceConfig) {
		c.StartTimeoutMs, c.FailureActions = 300, &scmpb.FailureActions{}
	})
	_, err = late.Start(s.context(), true)
	require.ErrorIs(t, err, ntstatus.ServiceRequestTimeout)
}

func TestNativeServicesObeyAcrossARestartOfTheController(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("native", "native", nil)
	s.start(service, "one", "two")
	st, err := service.Control(s.context(), mgr.ControlInterrogate)
	require.NoError(t, err)
	require.EqualValues(t, 7, st.ControlsAccepted)
	_, err = service.Control(s.context(), mgr.ControlPause)
	require.NoError(t, err)
	s.await(service, "paused", func(n *scmpb.ServiceStatus) bool { return n.State == scmpb.ServiceState_SERVICE_PAUSED })

	s.killSCM()
	service = s.open("native")
	now := s.await(service, "still paused", func(n *scmpb.ServiceStatus) bool { return n.State == scmpb.ServiceState_SERVICE_PAUSED })
	require.Equal(t, st.Pid, now.Pid)
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := service.Control(ctx, mgr.ControlContinue) // it dispatches again in its own time
		return err == nil
	})
	s.await(service, "running", func(n *scmpb.ServiceStatus) bool { return n.State == scmpb.ServiceState_SERVICE_RUNNING })
	_, err = service.Control(s.context(), 200)
	require.NoError(t, err)
	stopped, err := service.Stop(s.context(), false, true)
	require.NoError(t, err)
	require.EqualValues(t, 1066, stopped.Win32ExitCode)
	require.EqualValues(t, 7, stopped.ServiceExitCode)
	log := s.log(service)
	require.Contains(t, log, "args [one two]\ncontrol 4\ncontrol 2\n")
	require.Contains(t, log, "control 3\n")
	require.Contains(t, log, "control 200\ncontrol 1\n")
	require.Equal(t, 1, strings.Count(log, "args"), "it was started once")
}

func TestNobodyElseDispatchesForAService(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("mine", "native", nil)
	s.start(service)
	// Another service, a process that scm itself started, takes the name.
	thief := s.create("thief", "native", func(c *scmpb.ServiceConfig) {
		c.Environment = append(c.Environment, scm.EnvService+"=mine")
		c.FailureActions = &scmpb.FailureActions{}
	})
	_, err := thief.Start(s.context(), true)
	require.ErrorIs(t, err, ntstatus.ProcessAborted)
	require.Contains(t, s.log(thief), "not the process that was started")
	_, err = service.Control(s.context(), mgr.ControlInterrogate)
	require.NoError(t, err, "the service keeps its channel")
}

func TestThirdPartyDaemons(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	python, pythonErr := exec.LookPath("python3")
	redis, redisErr := exec.LookPath("redis-server")
	if pythonErr != nil && redisErr != nil {
		t.Skip("neither python3 nor redis-server is installed")
	}
	s := boot(t)
	var wait sync.WaitGroup
	daemons := map[string]*scmpb.ServiceConfig{}
	if pythonErr == nil {
		daemons["web"] = &scmpb.ServiceConfig{Name: "web", Path: python, Arguments: []string{"-u", "-c",
			"import http.server,sys\nh=http.server.HTTPServer(('127.0.0.1',0),http.server.SimpleHTTPRequestHandler)\nprint('port',h.server_port)\nh.serve_forever()"}}
	}
	if redisErr == nil {
		daemons["redis"] = &scmpb.ServiceConfig{Name: "redis", Path: redis, Kind: scmpb.ServiceKind_SERVICE_KIND_NOTIFY,
			Arguments: []string{"--port", "0", "--unixsocket", filepath.Join(s.dir, "redis.sock"), "--supervised", "systemd", "--save", "", "--dir", s.dir}}
	}
	defer wait.Wait()
	for name, config := range daemons {
		service, err := s.manager.CreateService(s.context(), config, mgr.CreateOptions{Access: security.MaximumAllowed})
		require.NoError(t, err)
		st := s.start(service)
		eventually(t, func() bool { return bufio.NewScanner(strings.NewReader(s.log(service))).Scan() }, "%s writes a log", name)
		require.NoError(t, syscall.Kill(int(st.Pid), syscall.SIGKILL))
		again := s.await(service, "restarted", func(n *scmpb.ServiceStatus) bool {
			return n.Pid != 0 && n.Pid != st.Pid && n.State == scmpb.ServiceState_SERVICE_RUNNING
		})
		require.Contains(t, again.Explain.Reason, "it")
		s.killSCM()
		service = s.open(name)
		adopted, err := service.Query(s.context())
		require.NoError(t, err)
		require.Equal(t, again.Pid, adopted.Pid)
		_, err = service.Stop(s.context(), false, true)
		require.NoError(t, err)
	}
}

// server is one server of the set.
func (s *set) server(name string) *smpb.Server {
	s.t.Helper()
	servers, err := s.servers.Servers(s.context())
	require.NoError(s.t, err)
	for _, server := range servers {
		if server.Name == name {
			return server
		}
	}
	s.t.Fatalf("there is no server %s", name)
	return nil
}

func TestAStartWaitsForALostAuthorityByItsPolicy(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("patient", "counter", func(c *scmpb.ServiceConfig) { c.StartTimeoutMs = 200 })
	authority := int(s.server("lsass").Pid)
	require.NoError(t, syscall.Kill(authority, syscall.SIGSTOP))
	_, err := service.Start(s.context(), true)
	require.ErrorIs(t, err, ntstatus.ServiceLogonFailed)
	st := s.await(service, "another try", func(st *scmpb.ServiceStatus) bool { return st.Explain.Starts > 2 })
	require.NotZero(t, st.Explain.Failures)
	require.NoError(t, syscall.Kill(authority, syscall.SIGCONT))
	s.await(service, "running", func(st *scmpb.ServiceStatus) bool { return st.State == scmpb.ServiceState_SERVICE_RUNNING })
}

func TestDeletedServicesLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	files := func(pid int) int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		require.NoError(t, err)
		return len(entries)
	}
	controller := int(s.server("scm").Pid)
	cycle := func() {
		service := s.create("brief", "notify", func(c *scmpb.ServiceConfig) { c.Arguments = []string{"READY=1"} })
		s.start(service)
		_, err := service.Stop(s.context(), false, true)
		require.NoError(t, err)
		require.NoError(t, service.Delete(s.context()))
		require.NoError(t, service.Close())
	}
	cycle()
	mine, theirs := files(os.Getpid()), files(controller)
	for range 5 {
		cycle()
	}
	eventually(t, func() bool { return files(os.Getpid()) <= mine && files(controller) <= theirs },
		"descriptors are back where they were")
	eventually(t, func() bool {
		left, err := filepath.Glob(filepath.Join(s.dir, "state", "scm", "logs", "*"))
		return err == nil && len(left) == 0
	}, "a deleted service's log goes with it")
}

func TestAServiceIsGuardedByItsOwnDescriptor(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	s := boot(t)
	service := s.create("guarded", "counter", nil)
	core := s.coreOf
	user := alpctest.User(1001)
	m, err := mgr.Connect(s.context(), core.Attach(t, user))
	require.NoError(t, err)
	defer m.Close()
	_, err = m.CreateService(s.context(), &scmpb.ServiceConfig{Name: "mine", Path: "/bin/true"}, mgr.CreateOptions{})
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	_, err = m.OpenService(s.context(), "guarded", mgr.Start)
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	_, err = m.OpenService(s.context(), "nowhere", mgr.Start)
	require.ErrorIs(t, err, ntstatus.ServiceDoesNotExist, "who may list services may learn that there is none")

	require.NoError(t, service.SetSecurity(s.context(), fmt.Sprintf("D:(A;;GA;;;BA)(A;;0x14;;;%s)", user.User.SID)))
	theirs, err := m.OpenService(s.context(), "guarded", mgr.Start|mgr.QueryStatus)
	require.NoError(t, err)
	_, err = theirs.Start(s.context(), true)
	require.NoError(t, err)
	_, err = m.OpenService(s.context(), "guarded", mgr.Stop)
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	s.killSCM()
	theirs, err = m.OpenService(s.context(), "guarded", security.MaximumAllowed)
	require.NoError(t, err, "the descriptor is kept, and the manager finds the successor")
	require.Equal(t, mgr.Start|mgr.QueryStatus, theirs.Granted())
}
