package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/internal/pidfd"
	"sallyport/proto/smpb"
	"sallyport/subsys/smss/sm"
)

// set is a whole system of real processes, in a directory of its own.
type set struct {
	t      *testing.T
	dir    string
	core   *exec.Cmd
	ended  chan error // the core's end
	sys    *alpc.System
	keeper *sm.Client
}

// mark is in the environment of every process that belongs to the set, its services' too, by which they are found.
func (s *set) mark() string { return "SALLYPORT_CORE=" + filepath.Join(s.dir, "run", "core") }

// command is the program with a verb, for this set.
func (s *set) command(verb ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--runtime", filepath.Join(s.dir, "run"), "--state", filepath.Join(s.dir, "state"),
		"--config", filepath.Join(s.dir, "sallyport.toml")}, verb...)...)
	cmd.Args[0], cmd.Dir = "sallyport", "/"
	return cmd
}

// verb runs a verb of the program on the set and returns what it said.
func (s *set) verb(args ...string) string {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(s.t, cmd.Run(), "%v: %s%s", args, &stdout, &stderr)
	return stdout.String()
}

// up starts a set with a configuration and waits until it is ready. It is taken down by force when the test has not.
func up(t *testing.T, config string) *set {
	t.Helper()
	dir, err := os.MkdirTemp("", "sallyport-integration")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755)) // as root, servers and services have other uids
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sallyport.toml"), []byte(config), 0o644))
	s := &set{t: t, dir: dir, ended: make(chan error, 1)}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	s.core = s.command("up", "--foreground")
	s.core.Stdout, s.core.Stderr, s.core.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, s.core.Start())
	go func() { s.ended <- s.core.Wait() }()
	t.Cleanup(s.clear)
	eventually(t, 20*time.Second, func() error {
		_, err := os.Stat(filepath.Join(dir, "run", "core"))
		return err
	})
	s.verb("up")
	s.sys = s.attach()
	s.keeper, err = sm.Dial(t.Context(), s.sys)
	require.NoError(t, err)
	return s
}

func (s *set) attach() *alpc.System {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	sys, err := alpc.Attach(ctx, alpc.Options{Path: filepath.Join(s.dir, "run", "core")})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { sys.Close() })
	return sys
}

// clear ends what is left of the set, and shows the log if that was the test's failing.
func (s *set) clear() {
	if s.t.Failed() {
		s.t.Logf("of the log, what matters:\n%s", s.troubles())
	}
	s.core.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
	}
	for _, pid := range s.processes() {
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill()
		}
	}
	os.RemoveAll(s.dir)
}

// troubles are the lines of the log that say that something is wrong; of those that say the same, the first and how many there are.
func (s *set) troubles() string {
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	count := map[string]int{}
	for line := range bytes.Lines(log) {
		var said struct {
			Level   string `json:"@level"`
			Module  string `json:"@module"`
			Message string `json:"@message"`
		}
		_ = json.Unmarshal(line, &said) // what is no JSON is told whole: a panic, for one
		if key := said.Module + ": " + said.Message; said.Level != "info" {
			if count[key]++; count[key] == 1 || said.Level == "" {
				out.Write(line)
			}
		}
	}
	return fmt.Sprintf("%s%v", out.String()[:min(out.Len(), 16000)], count)
}

// processes are all living processes that belong to the set.
func (s *set) processes() (pids []int) {
	all, err := os.ReadDir("/proc")
	require.NoError(s.t, err)
	for _, p := range all {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environment, err := os.ReadFile(filepath.Join("/proc", p.Name(), "environ"))
		command, err2 := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err != nil || err2 != nil || len(command) == 0 {
			continue // gone meanwhile, or dead and not yet waited for
		}
		if bytes.Contains(environment, []byte(s.mark())) || bytes.Contains(command, []byte(s.dir+"/run\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive says whether a process lives, for one that is known not to be a child of this one.
func alive(pid int) bool {
	p, err := pidfd.Open(pid)
	if err != nil {
		return false
	}
	defer p.Close()
	return pidfd.Alive(p)
}

// server is a server as smss has it; nil when it has none of that name.
func (s *set) server(name string) (*smpb.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	servers, err := s.keeper.Servers(ctx)
	for _, v := range servers {
		if v.Name == name {
			return v, err
		}
	}
	return nil, err
}

// kill ends a server with SIGKILL, wherever in its life it is, and returns the process that it was; 0 when it had none.
func (s *set) kill(name string) uint32 {
	s.t.Helper()
	v, err := s.server(name)
	require.NoError(s.t, err)
	if v.GetPid() == 0 {
		return 0
	}
	p, err := os.FindProcess(int(v.Pid))
	require.NoError(s.t, err)
	defer p.Release()
	if again, err := s.server(name); err != nil || again.GetPid() != v.Pid { // p is a pidfd: from here on nobody else can be meant
		return 0
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		require.NoError(s.t, err)
	}
	return v.Pid
}

// awaitBack waits until a server runs as another process than it was.
func (s *set) awaitBack(name string, was uint32) (back uint32) {
	s.t.Helper()
	eventually(s.t, 15*time.Second, func() error {
		v, err := s.server(name)
		if err == nil && (v.GetState() != smpb.ServerState_SERVER_STATE_RUNNING || v.Pid == was) {
			err = fmt.Errorf("%s is %v", name, v)
		}
		back = v.GetPid()
		return err
	})
	return back
}

// holdings is what the set holds: its processes by name, the descriptors of core and session manager by kind, and the books.
type holdings struct {
	processes   map[string]int
	descriptors map[string]int
	charges     map[string]uint64
}

func (s *set) holdings() (holdings, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h := holdings{processes: map[string]int{}, descriptors: map[string]int{}, charges: map[string]uint64{}}
	for _, pid := range s.processes() {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return h, err
		}
		h.processes[strings.ReplaceAll(string(command), "\x00", " ")]++
	}
	keeper := s.sessionManager()
	for name, pid := range map[string]int{"core": s.core.Process.Pid, "smss": keeper} {
		kinds, err := descriptors(pid)
		if err != nil {
			return h, err
		}
		for kind, n := range kinds {
			h.descriptors[name+" "+kind] = n
		}
	}
	charges, err := s.sys.Charges(ctx)
	for _, c := range charges {
		if c.Used > 0 {
			h.charges[fmt.Sprintf("%s of uid %d", c.Resource, c.UID)] = c.Used
		}
	}
	return h, err
}

// sessionManager is smss's process.
func (s *set) sessionManager() int {
	s.t.Helper()
	objects, err := s.sys.Objects(s.t.Context(), `\SmApiPort`)
	require.NoError(s.t, err)
	require.Len(s.t, objects, 1)
	return objects[0].ServerPID
}

// requireDown requires that the set has ended, with an exit code or another, and that nothing of it is left.
func (s *set) requireDown(code int, were []int) {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		require.Equal(s.t, code, s.core.ProcessState.ExitCode(), "%v", err)
	case <-time.After(40 * time.Second):
		require.Fail(s.t, "the core still runs")
	}
	require.Empty(s.t, s.processes(), "left behind")
	for _, pid := range were {
		require.False(s.t, alive(pid), "process %d is left behind", pid)
	}
	_, err := os.Lstat(filepath.Join(s.dir, "run", "core"))
	require.ErrorIs(s.t, err, os.ErrNotExist)
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	require.NoError(s.t, err)
	for _, word := range []string{"panic: ", "fatal error: ", "DATA RACE"} {
		require.NotContains(s.t, string(log), word)
	}
}
