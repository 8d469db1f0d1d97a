package smss_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/alpc/core"
	"sallyport/internal/pidfd"
	"sallyport/internal/pty"
	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/proto/smpb"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/smss"
	"sallyport/subsys/smss/sm"
)

// The test binary is every process of the set: SMSS_TEST says which.
func TestMain(m *testing.M) {
	log := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.LevelFromString(os.Getenv("SALLYPORT_LOG"))})
	dir := os.Getenv("SMSS_TEST_DIR")
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	fail := func(err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Getenv("SMSS_TEST"), err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	switch os.Getenv("SMSS_TEST") {
	case "":
		os.Exit(m.Run())
	case "core":
		os.Setenv("SMSS_TEST", "smss")
		fail(core.Boot(ctx, core.BootOptions{Options: core.Options{Path: filepath.Join(dir, "core"), Logger: log.Named("core")},
			Program: spawn.Program{Path: "/proc/self/exe", Args: []string{"smss"}, Env: os.Environ(), Files: []*os.File{nil, os.Stderr, os.Stderr}, Terminal: -1}}))
	case "smss":
		config, err := smss.Load(filepath.Join(dir, "sallyport.toml"))
		if err != nil {
			fail(err)
		}
		sys, err := alpc.Attach(ctx, alpc.Options{Path: filepath.Join(dir, "core")})
		if err != nil {
			fail(err)
		}
		fail(smss.Run(ctx, smss.Options{Config: config, System: sys, Environment: []string{"SMSS_TEST=server", "SMSS_TEST_DIR=" + dir}, StateDir: filepath.Join(dir, "state"),
			RuntimeDir: filepath.Join(dir, "run"), Core: filepath.Join(dir, "core"), Output: os.Stderr, Logger: log.Named("smss"), Process: true}))
	case "server":
		for _, s := range []subsys.Server{{Name: "worker", Run: work}, {Name: "idle", Run: idle}, {Name: "crash", Run: crash}, {Name: "desk", Run: work}, {Name: "shell", Run: work}} {
			if s.Name == os.Args[2] {
				os.Exit(subsys.Main(s, os.Args[3:]...))
			}
		}
		os.Exit(9)
	}
}

// crash is a server that can't start.
func crash(context.Context, *subsys.Env) error { return errors.New("as always") }

// idle serves nothing, and stops when it is told.
func idle(ctx context.Context, env *subsys.Env) error {
	if err := env.Ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// work is a server that does what a test tells it over its port, in words.
func work(ctx context.Context, env *subsys.Env) error {
	l, err := env.System.Listen(ctx, `\RPC Control\`+env.Name, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)"})
	if err != nil {
		return err
	}
	if err := env.Ready(); err != nil {
		return err
	}
	for {
		r, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		p, err := r.Accept(ctx, nil)
		if err != nil {
			continue
		}
		go func() {
			defer p.Close()
			for {
				m, err := p.Receive(ctx)
				if err != nil {
					return
				}
				answer, err := obey(ctx, env, strings.SplitN(string(m.Data), " ", 3))
				if err != nil {
					answer = "error " + ntstatus.Of(err).String() + " " + err.Error()
				}
				if p.Reply(ctx, m, &alpc.Message{Data: []byte(answer)}) != nil {
					return
				}
			}
		}()
	}
}

func obey(ctx context.Context, env *subsys.Env, word []string) (string, error) {
	word = append(word, "", "")
	id, _ := strconv.ParseUint(word[1], 10, 64)
	switch word[0] {
	case "exec", "log", "token":
		p := sm.Program{Name: word[1], Path: "sh", Args: []string{"sh", "-c", word[2]}, Env: []string{"PATH=" + os.Getenv("PATH"), "SMSS_TEST_DIR=" + os.Getenv("SMSS_TEST_DIR")}, Session: env.Session}
		if word[0] == "log" {
			p.LogPipe = "log/" + word[1]
		}
		if word[0] == "token" {
			made, err := strconv.ParseUint(word[1], 10, 64)
			if err != nil {
				return "", err
			}
			p.Token = security.LUID(made)
		}
		proc, err := env.Manager.ExecPgm(ctx, p)
		if err != nil {
			return "", err
		}
		defer proc.PIDFD.Close()
		if proc.Log != nil {
			defer proc.Log.Close()
		}
		if !pidfd.Alive(proc.PIDFD) && word[2] == "exec sleep 60" {
			return "", errors.New("dead")
		}
		return fmt.Sprint(proc.ID, " ", proc.PID), nil
	case "wait":
		exit, err := env.Manager.Wait(ctx, id)
		return fmt.Sprintf("%s code %d signal %d", exit.Name, exit.Code, exit.Signal), err
	case "ack":
		return "ok", env.Manager.Acknowledge(ctx, id)
	case "kill":
		return "ok", env.Manager.Signal(ctx, id, syscall.SIGKILL, true)
	case "list":
		all, err := env.Manager.List(ctx)
		var out []string
		for _, p := range all {
			state := "runs"
			if p.Exit != nil {
				state = fmt.Sprintf("code %d signal %d", p.Exit.Code, p.Exit.Signal)
			} else {
				p.PIDFD.Close()
			}
			out = append(out, p.Name+" "+state)
		}
		return strings.Join(out, ", "), err
	case "store":
		// The read end of a pipe that has the text in it: whoever gets the descriptor can read it.
		r, w, err := os.Pipe()
		if err != nil {
			return "", err
		}
		io.WriteString(w, word[2])
		w.Close()
		defer r.Close()
		return "ok", env.Manager.Store(ctx, word[1], []byte("note on "+word[1]), r)
	case "fetch":
		s, err := env.Manager.Fetch(ctx, word[1])
		if err != nil {
			return "", err
		}
		defer s.Files[0].Close()
		text, err := io.ReadAll(s.Files[0])
		return string(s.Data) + ": " + string(text), err
	case "log-of":
		s, err := env.Manager.Fetch(ctx, "log/"+word[1])
		if err != nil {
			return "", err
		}
		defer s.Files[0].Close()
		buf := make([]byte, 100)
		n, err := s.Files[0].Read(buf)
		return string(buf[:n]), err
	case "names":
		all, err := env.Manager.FetchAll(ctx)
		var out []string
		for _, s := range all {
			out = append(out, s.Name)
			for _, f := range s.Files {
				f.Close()
			}
		}
		return strings.Join(out, " "), err
	case "env":
		return fmt.Sprintf("%s %d %v uid=%d privileges=%d", env.Name, env.Session, env.StateDir != "", os.Getuid(), len(env.System.Token().Privileges)), os.WriteFile(filepath.Join(env.StateDir, "x"), nil, 0o600)
	case "odd":
		p := sm.Program{Name: "odd", Path: "/bin/true", Session: env.Session}
		null, err := os.Open(os.DevNull)
		if err != nil {
			return "", err
		}
		defer null.Close()
		switch word[1] {
		case "relative":
			p.Path = "bin/true"
		case "missing":
			p.Path = "no-such-program"
		case "absent":
			p.Path = "/no/such"
		case "session":
			p.Session = 99
		case "other-session":
			p.Session = 0
		case "nul":
			p.Args = []string{"true", "a\x00b"}
		case "big":
			p.Env = []string{"X=" + strings.Repeat("x", 200<<10)}
		case "nameless":
			p.Name = ""
		case "directory":
			p.Dir = "/no/such"
		case "terminal":
			p.Terminal, p.Stdin, p.Stdout, p.Stderr = null, null, null, null
		case "no-terminal":
			p.Terminal = null
		}
		_, err = env.Manager.ExecPgm(ctx, p)
		return "started", err
	case "terminal":
		// A shell whose controlling terminal is ours says so, and what it was given beside it.
		master, err := pty.Open(pty.Size{Rows: 33, Columns: 99})
		if err != nil {
			return "", err
		}
		defer master.Close()
		slave, err := pty.Peer(master)
		if err != nil {
			return "", err
		}
		extra, err := os.Open("/proc/self/comm")
		if err != nil {
			return "", err
		}
		defer extra.Close()
		proc, err := env.Manager.ExecPgm(ctx, sm.Program{Name: "tty", Path: "/bin/sh", Args: []string{"sh", "-c", "stty size </dev/tty; readlink /proc/self/fd/3; ulimit -n; umask; pwd; echo $SALLYPORT_SESSION; grep NoNewPrivs /proc/self/status; echo end"},
			Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/proc", Terminal: slave, Extra: []*os.File{extra}, Session: env.Session, Limits: sm.Limits{OpenFiles: 77}, NoNewPrivileges: true})
		slave.Close()
		if err != nil {
			return "", err
		}
		defer proc.PIDFD.Close()
		var text string
		buf := make([]byte, 1000)
		for !strings.Contains(text, "end") {
			n, err := master.Read(buf)
			if err != nil {
				return "", err
			}
			text += string(buf[:n])
		}
		return strings.ReplaceAll(text, "\r", ""), nil
	}
	return "", fmt.Errorf("what is %q?", word[0])
}

// testConfig is a set in which one server obeys the test.
const testConfig = `
uid_base = 62100
[server.lsass]
disabled = true
[server.scm]
disabled = true
[server.csrss]
disabled = true
[session_server.csrss]
disabled = true
[session_server.winlogon]
disabled = true

[server.worker]
order = 20
uid = 1
critical = true
restarts = 50
backoff = "1ms"
backoff_max = "1ms"
user = "LocalSystem"
privileges = ["SeTcbPrivilege", "SeAssignPrimaryTokenPrivilege", "SeChangeNotifyPrivilege"]
[server.worker.port.'\RPC Control\worker']
descriptor = "D:(A;;GA;;;SY)(A;;0x1;;;AU)"
`

// set is a core, a session manager and its servers, all real processes.
type set struct {
	t      *testing.T
	dir    string
	core   *spawn.Process
	output *os.File
	sys    *alpc.System
	client *sm.Client
}

func start(t *testing.T, config string) *set {
	t.Helper()
	dir, err := os.MkdirTemp("", "smss")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755)) // servers run as other users
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sallyport.toml"), []byte(config), 0o644))
	output, err := os.Create(filepath.Join(dir, "output"))
	require.NoError(t, err)
	p, err := spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"core"}, Terminal: -1, Files: []*os.File{nil, output, output},
		Env: append(os.Environ(), "SMSS_TEST=core", "SMSS_TEST_DIR="+dir)})
	require.NoError(t, err)
	s := &set{t: t, dir: dir, core: p, output: output}
	t.Cleanup(func() {
		if s.sys != nil {
			s.sys.Close()
		}
		p.Signal(syscall.SIGTERM, false)
		s.ended()
		p.Kill()
		output.Close()
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("what the set said:\n%s", text)
		}
		require.Empty(t, s.processes(), "processes are left")
		os.RemoveAll(dir)
	})
	return s
}

// attach waits for the set to be up.
func (s *set) attach() *set {
	s.t.Helper()
	require.EventuallyWithT(s.t, func(c *assert.CollectT) {
		sys, err := alpc.Attach(s.context(), alpc.Options{Path: filepath.Join(s.dir, "core")})
		if !assert.NoError(c, err) {
			return
		}
		client, err := sm.Dial(s.context(), sys)
		if !assert.NoError(c, err) {
			sys.Close()
			return
		}
		s.sys, s.client = sys, client
	}, 10*time.Second, 5*time.Millisecond)
	s.await(func(c *smpb.StateChange) bool {
		return c.GetSession().GetState() == smpb.SessionState_SESSION_STATE_ACTIVE
	})
	return s
}

func (s *set) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// await waits for a change of state.
func (s *set) await(match func(*smpb.StateChange) bool) {
	s.t.Helper()
	found := errors.New("found")
	err := s.client.Watch(s.context(), func(c *smpb.StateChange) error {
		if match(c) {
			return found
		}
		return nil
	})
	require.ErrorIs(s.t, err, found)
}

// tell sends words to a server and returns its answer.
func (s *set) tell(server, words string, more ...any) string {
	s.t.Helper()
	p, err := s.sys.Dial(s.context(), `\RPC Control\`+server, alpc.DialOptions{})
	require.NoError(s.t, err)
	defer p.Close()
	m, err := p.Call(s.context(), &alpc.Message{Data: []byte(fmt.Sprintf(words, more...))})
	require.NoError(s.t, err)
	return string(m.Data)
}

// exec starts a shell command for a server and returns its number and pid.
func (s *set) exec(server, words string) (id, pid int) {
	s.t.Helper()
	answer := s.tell(server, "%s", words)
	_, err := fmt.Sscan(answer, &id, &pid)
	require.NoError(s.t, err, answer)
	return id, pid
}

func (s *set) server(name string) *smpb.Server {
	s.t.Helper()
	all, err := s.client.Servers(s.context())
	require.NoError(s.t, err)
	for _, v := range all {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// kill kills a server and waits for its successor.
func (s *set) kill(name string) {
	s.t.Helper()
	old := s.server(name)
	p, err := pidfd.Open(int(old.Pid))
	require.NoError(s.t, err)
	defer p.Close()
	require.NoError(s.t, pidfd.Signal(p, syscall.SIGKILL))
	s.await(func(c *smpb.StateChange) bool {
		v := c.GetServer()
		return v.GetName() == name && v.State == smpb.ServerState_SERVER_STATE_RUNNING && v.Pid != old.Pid
	})
}

// ended waits for the core's process and returns how it ended.
func (s *set) ended() spawn.Exit {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	exit, err := s.core.Wait(ctx)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("the core did not end: %v", err)
	}
	return exit
}

// processes lists what carries this set's mark and is no zombie.
func (s *set) processes() (left []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte("SMSS_TEST_DIR="+s.dir)) {
			command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			left = append(left, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return left
}

func TestKilledServerComesBackAndFindsWhatItLeft(t *testing.T) {
	s := start(t, testConfig).attach()
	uid := os.Getuid()
	if uid == 0 {
		uid = 62101
	}
	require.Equal(t, fmt.Sprintf("worker 0 true uid=%d privileges=3", uid), s.tell("worker", "env"))

	runs, _ := s.exec("worker", "exec runs exec sleep 60")
	ends, _ := s.exec("worker", "exec ends exit 3")
	logs, _ := s.exec("worker", "log logs echo to the log; exec sleep 60")
	require.Equal(t, "ends code 3 signal 0", s.tell("worker", "wait %d", ends))
	require.Equal(t, "ok", s.tell("worker", "store one the text"))
	require.Contains(t, s.tell("worker", "exec runs true"), "STATUS_OBJECT_NAME_COLLISION")
	require.Contains(t, s.tell("worker", "ack %d", runs), "STATUS_INVALID_DEVICE_STATE")

	s.kill("worker")
	require.EqualValues(t, 1, s.server("worker").Restarts)
	require.Equal(t, "signal 9 (killed)", s.server("worker").LastEnd)
	require.Equal(t, "runs runs, ends code 3 signal 0, logs runs", s.tell("worker", "list"))
	require.Equal(t, "note on one: the text", s.tell("worker", "fetch one"))
	require.Equal(t, "log/logs one", s.tell("worker", "names"))
	require.Equal(t, "to the log\n", s.tell("worker", "log-of logs"))
	require.Contains(t, s.tell("worker", "fetch two"), "STATUS_NOT_FOUND")

	require.Equal(t, "ok", s.tell("worker", "kill %d", runs))
	require.Equal(t, "runs code 0 signal 9", s.tell("worker", "wait %d", runs))
	for _, id := range []int{runs, ends} {
		require.Equal(t, "ok", s.tell("worker", "ack %d", id))
		require.Equal(t, "ok", s.tell("worker", "ack %d", id), "a retry is harmless")
	}
	require.Equal(t, "logs runs", s.tell("worker", "list"))
	require.Equal(t, "ok", s.tell("worker", "kill %d", logs))

	require.NoError(t, s.client.Shutdown(s.context(), "the test is over", 0))
	require.Equal(t, spawn.Exit{}, s.ended())
}

func TestSpentBudgetStopsAllAndExitsNonZero(t *testing.T) {
	s := start(t, testConfig+`
[server.crash]
uid = 2
critical = true
restarts = 3
backoff = "1ms"
backoff_max = "1ms"
`)
	require.NotEqual(t, spawn.Exit{}, s.ended())
	text, err := os.ReadFile(filepath.Join(s.dir, "output"))
	require.NoError(t, err)
	require.Contains(t, string(text), "stopped: crash ended more than 3 times within 1m0s, last: exit 1")
	require.Empty(t, s.processes())
}

func TestCoreOrManagerKilledLeavesNothing(t *testing.T) {
	for _, victim := range []string{"core", "smss"} {
		t.Run(victim, func(t *testing.T) {
			s := start(t, testConfig).attach()
			s.exec("worker", "exec runs exec sleep 60")
			s.exec("worker", "exec detached setsid sh -c 'sleep 61 & sleep 62'; exec sleep 63")
			if victim == "core" {
				require.NoError(t, s.core.Signal(syscall.SIGKILL, false))
			} else {
				children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", s.core.PID()))
				require.NoError(t, err)
				pids := strings.Fields(string(children))
				if len(pids) == 0 {
					all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.core.PID()))
					for _, path := range all {
						text, _ := os.ReadFile(path)
						pids = append(pids, strings.Fields(string(text))...)
					}
				}
				require.Len(t, pids, 1)
				pid, err := strconv.Atoi(pids[0])
				require.NoError(t, err)
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			require.NotEqual(t, spawn.Exit{}, s.ended())
			require.Eventually(t, func() bool { return len(s.processes()) == 0 }, 15*time.Second, 10*time.Millisecond, "left: %v", s.processes())
		})
	}
}

func TestServerIsStartedByItsFirstClient(t *testing.T) {
	s := start(t, testConfig+`
[server.desk]
start = "demand"
uid = 2
privileges = []
[server.desk.port.'\RPC Control\desk']
descriptor = "D:(A;;GA;;;SY)(A;;0x1;;;AU)"
`).attach()
	require.Equal(t, smpb.ServerState_SERVER_STATE_WAITING, s.server("desk").State)
	require.Contains(t, s.tell("desk", "env"), "desk 0 true")
	require.Equal(t, smpb.ServerState_SERVER_STATE_RUNNING, s.server("desk").State)
	// It is no LocalSystem and may start programs as itself only.
	s.exec("desk", "exec a true")
	require.Contains(t, s.tell("desk", "token 999 true"), "STATUS_PRIVILEGE_NOT_HELD")
	require.Contains(t, s.tell("worker", "token 999 true"), "STATUS_NO_TOKEN")
	// What one owner has is nobody else's.
	require.Equal(t, "", s.tell("worker", "list"))
}

func TestProgramGetsWhatItWasGivenAndNoMore(t *testing.T) {
	s := start(t, testConfig).attach()
	for kind, status := range map[string]ntstatus.Status{
		"relative": ntstatus.InvalidParameter, "missing": ntstatus.ObjectNameNotFound, "absent": ntstatus.ObjectNameNotFound, "session": ntstatus.InvalidParameter,
		"nul": ntstatus.InvalidParameter, "big": ntstatus.InvalidParameter, "nameless": ntstatus.InvalidParameter, "directory": ntstatus.ObjectNameNotFound,
		"terminal": ntstatus.InvalidParameter, "no-terminal": ntstatus.NotSupported,
	} {
		require.Contains(t, s.tell("worker", "odd %s", kind), status.String(), kind)
	}
	require.Equal(t, "", s.tell("worker", "list"), "what was refused left no trace")
	require.Regexp(t, `^33 99\n/proc/\d+/comm\n77\n0022\n/proc\n0\nNoNewPrivs:\s1\nend\n$`, s.tell("worker", "terminal"))
	require.Equal(t, "started", s.tell("worker", "odd not"))
}

func TestOnlyServersAreOwners(t *testing.T) {
	s := start(t, testConfig).attach()
	_, err := s.client.ExecPgm(s.context(), sm.Program{Name: "x", Path: "/bin/true"})
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	logged, err := s.sys.Explain(s.context(), denial.Decision)
	require.NoError(t, err)
	require.Contains(t, strings.Join(logged.Trace, "\n"), fmt.Sprintf("none of the servers that smss runs has process %d", os.Getpid()))
	_, err = s.client.List(s.context())
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	require.ErrorIs(t, s.client.Ready(s.context(), ""), ntstatus.AccessDenied)
	require.ErrorIs(t, s.client.TerminateSession(s.context(), 7), ntstatus.AccessDenied)
}

func TestInteractiveSessionLivesAndDiesWithItsLogon(t *testing.T) {
	s := start(t, "max_sessions_per_user = 2\n"+testConfig+`
[session_server.desk]
uid = 3
order = 1
[session_server.desk.port.'\Sessions\{session}\Windows\ApiPort']
descriptor = "D:(A;;GA;;;SY)(A;;0x1;;;AU)"
[session_server.shell]
uid = 4
order = 2
critical = true
restart = "never"
stop_timeout = "200ms"
`).attach()
	one, err := s.client.CreateSession(s.context(), nil, "xterm")
	require.NoError(t, err)
	two, err := s.client.CreateSession(s.context(), nil, "")
	require.NoError(t, err)
	require.Equal(t, []uint32{1, 2}, []uint32{one, two})
	_, err = s.client.CreateSession(s.context(), nil, "")
	require.ErrorIs(t, err, ntstatus.TooManySessions)
	require.Contains(t, s.tell("shell@1", "env"), "shell@1 1 true")
	_, pid := s.exec("shell@1", "exec user trap '' HUP TERM; (setsid sleep 64 &) ; sleep 65")
	s.exec("desk@2", "exec user exec sleep 66")
	require.Contains(t, s.tell("shell@1", "odd other-session"), "STATUS_ACCESS_DENIED")

	sessions, err := s.client.Sessions(s.context())
	require.NoError(t, err)
	require.Len(t, sessions, 3)
	require.EqualValues(t, 3, sessions[1].Processes)
	objects, err := s.sys.Objects(s.context(), `\Sessions`)
	require.NoError(t, err)
	require.True(t, hasObject(objects, `\Sessions\1\Windows\ApiPort`))

	shell := s.server("shell@1")
	p, err := pidfd.Open(int(shell.Pid))
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, pidfd.Signal(p, syscall.SIGKILL))
	s.await(func(c *smpb.StateChange) bool {
		return c.GetSession().GetSession() == 1 && c.GetSession().State == smpb.SessionState_SESSION_STATE_ENDED
	})
	_, err = os.Stat(fmt.Sprintf("/proc/%d", pid))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotContains(t, strings.Join(s.processes(), "\n"), "sleep 64", "what detached from the session ended with it")
	objects, err = s.sys.Objects(s.context(), `\Sessions`)
	require.NoError(t, err)
	require.False(t, hasObject(objects, `\Sessions\1`))
	require.Equal(t, "user runs", s.tell("desk@2", "list"), "the other session did not notice")

	require.NoError(t, s.client.TerminateSession(s.context(), 2))
	require.Nil(t, s.server("desk@2"))
	require.ErrorIs(t, s.client.TerminateSession(s.context(), 2), ntstatus.AccessDenied, "an unknown session is refused like a forbidden one")
}

func hasObject(objects []alpc.ObjectInfo, name string) bool {
	for _, o := range objects {
		if strings.EqualFold(o.Name, name) {
			return true
		}
	}
	return false
}

func TestNothingLeaksOverRestartsAndPrograms(t *testing.T) {
	s := start(t, testConfig).attach()
	cycle := func() {
		id, _ := s.exec("worker", "log x true")
		s.tell("worker", "wait %d", id)
		s.tell("worker", "store y text")
		s.kill("worker")
		s.tell("worker", "ack %d", id)
	}
	manager := s.server("worker").Pid
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", manager))
	require.NoError(t, err)
	ppid := strings.Fields(string(stat)[bytes.LastIndexByte(stat, ')')+1:])[1]
	count := func() int {
		entries, err := os.ReadDir("/proc/" + ppid + "/fd")
		require.NoError(t, err)
		return len(entries)
	}
	cycle()
	cycle()
	before := count()
	for range 8 {
		cycle()
	}
	require.Eventually(t, func() bool { return count() <= before }, 5*time.Second, 10*time.Millisecond, "smss had %d descriptors, now %d", before, count())
	require.Equal(t, "", s.tell("worker", "list"))
}

// TestHostedServerIsAnOwnerByItsHostsWord runs a server in this very process, as an embedded system does.
func TestHostedServerIsAnOwnerByItsHostsWord(t *testing.T) {
	core := alpctest.Start(t, alpctest.AsProcess())
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sallyport.toml"), []byte(testConfig), 0o600))
	config, err := smss.Load(filepath.Join(dir, "sallyport.toml"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	booted, ended := make(chan struct{}), make(chan error, 1)
	system := core.Attach(t, nil)
	go func() {
		ended <- smss.Run(ctx, smss.Options{Config: config, System: system, StateDir: dir, Core: core.Path(), Hosted: []string{"worker"}, Booted: func() { close(booted) }})
	}()
	<-booted
	token, err := smss.ServerToken("worker", config)
	require.NoError(t, err)
	attachment := core.Attach(t, token)
	manager, err := sm.Dial(alpctest.Context(t), attachment)
	require.NoError(t, err)
	defer manager.Close()
	hosted, err := subsys.Host(ctx, subsys.Server{Name: "worker", Run: work}, subsys.Env{System: attachment, Manager: manager, StateDir: dir})
	require.NoError(t, err)

	s := &set{t: t, sys: core.Attach(t, alpctest.Admin(1000))}
	id, _ := s.exec("worker", "exec a exit 4")
	require.Equal(t, "a code 4 signal 0", s.tell("worker", "wait %d", id))
	s.exec("worker", "exec b exec sleep 60")
	require.Equal(t, "a code 4 signal 0, b runs", s.tell("worker", "list"))

	// The same words under another token are worth nothing.
	other, err := sm.Dial(alpctest.Context(t), core.Attach(t, nil))
	require.NoError(t, err)
	defer other.Close()
	_, err = other.List(alpctest.Context(t))
	require.ErrorIs(t, err, ntstatus.AccessDenied)

	require.NoError(t, hosted.Stop(alpctest.Context(t)))
	cancel()
	require.NoError(t, <-ended)
	pids, err := spawn.Children()
	require.NoError(t, err)
	require.Empty(t, pids, "a process of the ended system is left")
}
