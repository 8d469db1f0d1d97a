package spawn_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/spawn"
)

// The test binary is every child too: SPAWN_TEST says which.
func TestMain(m *testing.M) {
	switch mode := os.Getenv("SPAWN_TEST"); mode {
	case "":
		os.Exit(m.Run())
	case "exit":
		os.Exit(7)
	case "sleep":
		fmt.Println("up")
		time.Sleep(time.Minute)
	case "describe":
		session, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
		var fds []string
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "anon_inode:[event") && !strings.HasPrefix(target, "/sys/fs/cgroup") { // the runtime's own
				fds = append(fds, e.Name()+"="+strings.SplitN(target, ":", 2)[0])
			}
		}
		var limit syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_CORE, &limit)
		groups, _ := os.Getgroups()
		dir, _ := os.Getwd()
		fmt.Printf("leader=%v uid=%d gid=%d groups=%v dir=%s core=%d fds=%s\n", int(session) == os.Getpid(), os.Getuid(), os.Getgid(), groups, dir, limit.Max, strings.Join(fds, " "))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		time.Sleep(time.Minute)
	case "reaper":
		os.Exit(reaper())
	case "double-fork":
		// Leaves a grandchild behind, in a session of its own, and goes.
		os.Setenv("SPAWN_TEST", os.Getenv("SPAWN_TEST_LEAVE"))
		p, err := os.StartProcess("/proc/self/exe", []string{"orphan"}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, os.Stdout}, Sys: &syscall.SysProcAttr{Setsid: true}})
		if err != nil {
			os.Exit(1)
		}
		p.Release()
	}
}

// reaper is a subreaper whose child leaves an orphan that ignores SIGTERM; it must find and end it, and nothing else.
func reaper() int {
	if err := spawn.BecomeSubreaper(); err != nil {
		fmt.Println(err)
		return 1
	}
	r, w, _ := os.Pipe()
	parent, err := spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"parent"}, Terminal: -1, Files: []*os.File{nil, w},
		Env: []string{"SPAWN_TEST=double-fork", "SPAWN_TEST_LEAVE=stubborn"}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	w.Close()
	bystander, err := spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"bystander"}, Terminal: -1, Env: []string{"SPAWN_TEST=sleep"}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if line, _ := bufio.NewReader(r).ReadString('\n'); line != "up\n" {
		fmt.Printf("the orphan said %q\n", line)
		return 1
	}
	known := func(pid int) bool { return pid == parent.PID() || pid == bystander.PID() }
	parent.Wait(context.Background())
	if n, err := spawn.ReapOrphans(known); n != 1 || err != nil {
		fmt.Println("running orphans:", n, err)
		return 1
	}
	pids, _ := spawn.Children()
	for _, pid := range pids {
		if !known(pid) && !spawn.HasEnvironment(pid, "SPAWN_TEST=stubborn") {
			fmt.Println("the orphan's environment was not recognised")
			return 1
		}
	}
	if n, err := spawn.EndOrphans(syscall.SIGTERM, known); n != 1 || err != nil {
		fmt.Println("running orphans:", n, err)
		return 1
	}
	for n, sig := 1, syscall.SIGKILL; n > 0; sig = 0 {
		if n, err = spawn.EndOrphans(sig, known); err != nil {
			fmt.Println(err)
			return 1
		}
		runtime.Gosched()
	}
	pids, _ = spawn.Children()
	if len(pids) != 2 {
		fmt.Println("children left:", pids)
		return 1
	}
	if err := parent.Reap(); err != nil {
		fmt.Println(err)
		return 1
	}
	bystander.Kill()
	if pids, _ := spawn.Children(); len(pids) != 0 {
		fmt.Println("children left:", pids)
		return 1
	}
	fmt.Println("clean")
	return 0
}

func start(t *testing.T, mode string, change func(*spawn.Program)) (*spawn.Process, *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	p := spawn.Program{Path: "/proc/self/exe", Args: []string{mode}, Env: []string{"SPAWN_TEST=" + mode}, Files: []*os.File{nil, w, os.Stderr}, Terminal: -1}
	if change != nil {
		change(&p)
	}
	proc, err := spawn.Start(p)
	w.Close()
	require.NoError(t, err)
	t.Cleanup(func() { proc.Kill(); r.Close() })
	return proc, bufio.NewReader(r)
}

func TestExitIsKeptUntilReaped(t *testing.T) {
	proc, _ := start(t, "exit", nil)
	for range 2 {
		exit, err := proc.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, spawn.Exit{Code: 7}, exit)
		require.Equal(t, "exit 7", exit.String())
	}
	require.ErrorIs(t, proc.Signal(syscall.SIGTERM, false), os.ErrProcessDone)
	require.NoError(t, proc.Reap())
	require.NoError(t, proc.Reap())
	require.ErrorIs(t, proc.Signal(syscall.SIGTERM, true), os.ErrProcessDone)
	_, err := os.Stat("/proc/" + strconv.Itoa(proc.PID()) + "/stat")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSignalIsReportedAsSuch(t *testing.T) {
	proc, out := start(t, "sleep", nil)
	_, err := out.ReadString('\n')
	require.NoError(t, err)
	require.ErrorIs(t, proc.Reap(), syscall.EAGAIN)
	require.NoError(t, proc.Signal(syscall.SIGKILL, true))
	exit, err := proc.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, exit.Signal)
	require.Equal(t, "signal 9 (killed)", exit.String())
}

func TestGroupOfAnEndedLeaderCanStillBeKilled(t *testing.T) {
	proc, out := start(t, "double-fork", func(p *spawn.Program) {
		p.Path, p.Args, p.Env = "/bin/sh", []string{"sh", "-c", "sleep 60 & echo left"}, []string{"PATH=/bin:/usr/bin"}
	})
	_, err := out.ReadString('\n')
	require.NoError(t, err)
	_, err = proc.Wait(t.Context())
	require.NoError(t, err)
	require.NoError(t, proc.Signal(syscall.SIGKILL, true))
	// The background sleep held the pipe's write end: its end of file proves that it is gone.
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Empty(t, rest)
}

func TestChildGetsNothingThatItWasNotGiven(t *testing.T) {
	leak, err := syscall.Open("/dev/zero", syscall.O_RDONLY, 0) // without O_CLOEXEC, as a careless parent would leave it
	require.NoError(t, err)
	defer syscall.Close(leak)
	require.NoError(t, spawn.CloseOnExec())
	extra, err := os.Open("/proc/self/comm")
	require.NoError(t, err)
	defer extra.Close()
	dir := t.TempDir()
	_, out := start(t, "describe", func(p *spawn.Program) {
		p.Files, p.Dir, p.Limits = append(p.Files, extra), dir, spawn.Limits{CoreBytes: 4096}
		p.Files[2] = nil
	})
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "leader=true")
	require.Contains(t, line, "dir="+dir+" ")
	require.NotContains(t, line, "/dev/zero")
	require.Regexp(t, `fds=0=/dev/null 1=pipe 2=/dev/null 3=/proc/\d+/comm\n`, line)
}

func TestUserIsSwitched(t *testing.T) {
	if os.Getuid() != 0 {
		// Without root the kernel refuses, and so must Start, before anything ran.
		_, err := spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"x"}, Terminal: -1, User: &spawn.User{UID: 0}})
		require.ErrorIs(t, err, syscall.EPERM)
		return
	}
	_, out := start(t, "describe", func(p *spawn.Program) { p.User = &spawn.User{UID: 12345, GID: 23456, Groups: []uint32{34567}} })
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "uid=12345 gid=23456 groups=[34567]")
}

func TestLimitsHold(t *testing.T) {
	proc, out := start(t, "sleep", func(p *spawn.Program) {
		p.Limits = spawn.Limits{CoreBytes: 8192, OpenFiles: 100}
		if os.Getuid() == 0 {
			p.User = &spawn.User{UID: 12345, GID: 23456}
		}
	})
	_, err := out.ReadString('\n')
	require.NoError(t, err)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", proc.PID()))
	require.NoError(t, err)
	require.Regexp(t, `Max core file size\s+8192\s+8192`, string(text))
	require.Regexp(t, `Max open files\s+100\s+100`, string(text))
	own, err := filepath.Glob("/proc/self/task/*/status")
	require.NoError(t, err)
	require.Eventually(t, func() bool { // the thread that set them is gone, or going
		for _, path := range own {
			text, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(text), "\nUid:\t12345") {
				return false
			}
		}
		return true
	}, 5*time.Second, time.Millisecond)
}

func TestNoNewPrivilegesIsTheChildsAlone(t *testing.T) {
	for _, want := range []bool{true, false} {
		proc, out := start(t, "sleep", func(p *spawn.Program) { p.NoNewPrivileges = want })
		_, err := out.ReadString('\n')
		require.NoError(t, err)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", proc.PID()))
		require.NoError(t, err)
		own, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		require.Contains(t, string(own), "NoNewPrivs:\t0")
		require.Equal(t, want, strings.Contains(string(text), "NoNewPrivs:\t1"))
		pids, err := spawn.Children()
		require.NoError(t, err)
		require.Contains(t, pids, proc.PID())
	}
}

func TestStartSaysWhatFailed(t *testing.T) {
	_, err := spawn.Start(spawn.Program{Path: "/nowhere/at/all", Args: []string{"x"}, Terminal: -1})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "/nowhere/at/all")
}

func TestSubreaperEndsWhatDetached(t *testing.T) {
	_, out := start(t, "reaper", nil)
	text, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Equal(t, "clean\n", string(text))
}
