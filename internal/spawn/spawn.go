// Package spawn starts processes, waits for them one by one, and finds the orphans that a subreaper adopts.
//
// Nothing here acts on a number that could have become another process: a child stays unreaped, and so keeps its pid and
// its group's id, until Reap. Nobody may wait for "any child" in a process that uses this package, as that would take the
// exit of somebody else's child away.
//
// Lock order: none; a Process is safe for concurrent use, its mutex is held for no longer than a system call that does not block.
package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/internal/pidfd"
)

// Program is what to start. Every process gets a session (setsid) and a process group of its own.
type Program struct {
	Path string // the executable; no search
	Args []string
	Env  []string
	Dir  string // empty: "/"
	// Files become descriptors 0, 1, 2, …; a nil one is /dev/null. Nothing else is inherited.
	Files []*os.File
	// Terminal: this descriptor of the child becomes its controlling terminal; -1 for none.
	Terminal int
	// User switches the child's ids; nil keeps the caller's. Only root can.
	User *User
	// Limits are set from outside right after the start.
	Limits Limits
	// NoNewPrivileges: nothing that the child runs gains rights by exec (set-user-id files, capabilities).
	NoNewPrivileges bool
}

// User is a unix identity; it need not be in passwd.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Limits are hard and soft resource limits; 0 leaves one as it is.
type Limits struct {
	OpenFiles, Processes, MemoryBytes, CoreBytes, CPUSeconds uint64
}

// Exit says how a process ended.
type Exit struct {
	Code       int            // when it ended by itself
	Signal     syscall.Signal // when a signal ended it, else 0
	CoreDumped bool
}

// String is "exit 3" or "signal 9 (killed)".
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit %d", e.Code)
}

// Process is a child that was started here and not reaped yet.
type Process struct {
	pid   int
	pidfd *os.File

	mu     sync.Mutex
	reaped bool
}

// Start starts p. An error names the step that failed ("exec", "setuid") as far as the kernel tells.
func Start(p Program) (*Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := make([]uintptr, 0, max(3, len(p.Files)))
	for i := range max(3, len(p.Files)) {
		f := null
		if i < len(p.Files) && p.Files[i] != nil {
			f = p.Files[i]
		}
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		// The number stays valid: the caller keeps its files open until Start returns.
		if err := raw.Control(func(fd uintptr) { files = append(files, fd) }); err != nil {
			return nil, err
		}
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	fd := -1
	attr := &syscall.ProcAttr{Dir: dir, Env: p.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &fd}}
	if p.Terminal >= 0 {
		attr.Sys.Setctty, attr.Sys.Ctty = true, p.Terminal
	}
	if p.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: p.User.UID, Gid: p.User.GID, Groups: p.User.Groups}
	}
	pid, err := fork(p, attr)
	if err != nil {
		return nil, &os.PathError{Op: "start", Path: p.Path, Err: err}
	}
	if fd < 0 {
		// No pidfd, no safe handling: the kernel is older than our floor.
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		return nil, &os.PathError{Op: "start", Path: p.Path, Err: syscall.ENOSYS}
	}
	unix.SetNonblock(fd, true) // so that the netpoller waits for it, not a thread
	proc := &Process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if err := p.Limits.apply(pid, p.User); err != nil {
		proc.Kill()
		return nil, err
	}
	return proc, nil
}

// fork starts the process from a thread that has what the child is to inherit.
func fork(p Program, attr *syscall.ProcAttr) (pid int, err error) {
	start := func() error {
		pid, _, err = syscall.StartProcess(p.Path, p.Args, attr)
		return err
	}
	if !p.NoNewPrivileges {
		return pid, start()
	}
	return pid, onSpareThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		return start()
	})
}

// onSpareThread runs f on a thread that ends with it, because f changes the thread for good.
func onSpareThread(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread can't end: hold it, so that the next goroutine gets another.
			defer runtime.UnlockOSThread()
			err = onSpareThread(f)
			return
		}
		err = f() // nobody unlocks the thread, so it ends here
	}()
	<-done
	return err
}

// apply sets the limits of a child that runs as user; nil: as the caller does.
func (l Limits) apply(pid int, user *User) error {
	set := func() error {
		for _, e := range []struct {
			resource int
			value    uint64
		}{{unix.RLIMIT_NOFILE, l.OpenFiles}, {unix.RLIMIT_NPROC, l.Processes}, {unix.RLIMIT_AS, l.MemoryBytes}, {unix.RLIMIT_CORE, l.CoreBytes}, {unix.RLIMIT_CPU, l.CPUSeconds}} {
			if e.value == 0 {
				continue
			}
			err := unix.Prlimit(pid, e.resource, &unix.Rlimit{Cur: e.value, Max: e.value}, nil)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return os.NewSyscallError("prlimit", err)
			}
		}
		return nil
	}
	err := set()
	if user == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	// A root without CAP_SYS_RESOURCE, as in a container, may not limit another user's process; that user may.
	return onSpareThread(func() error {
		gid, uid := uintptr(user.GID), uintptr(user.UID)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
			return os.NewSyscallError("setresgid", errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			return os.NewSyscallError("setresuid", errno)
		}
		return set()
	})
}

// PID is the process's number; it stays the process's until Reap.
func (p *Process) PID() int { return p.pid }

// PIDFD is the process's descriptor, which the Process keeps: it is closed by Reap.
func (p *Process) PIDFD() *os.File { return p.pidfd }

// Wait waits until the process has ended. It does not reap, so it may be called again.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	if err := pidfd.Wait(ctx, p.pidfd); err != nil {
		return Exit{}, err
	}
	return p.exit(unix.WEXITED | unix.WNOWAIT)
}

// exit asks for the exit of an ended process.
func (p *Process) exit(options int) (exit Exit, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return Exit{}, os.ErrProcessDone
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return Exit{}, err
	}
	var werr error
	if err := raw.Control(func(fd uintptr) { exit, werr = waitid(int(fd), options) }); err != nil {
		return Exit{}, err
	}
	if werr == nil && options&unix.WNOWAIT == 0 {
		p.reaped = true
		p.pidfd.Close()
	}
	return exit, werr
}

// Reap frees an ended process's number and closes its pidfd. It is EAGAIN for a process that runs.
func (p *Process) Reap() error {
	_, err := p.exit(unix.WEXITED | unix.WNOHANG)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Signal sends a signal to the process, or to its whole group; what is left of the group of an ended process still gets
// it, until Reap. It is os.ErrProcessDone when there is nobody to get it.
func (p *Process) Signal(sig syscall.Signal, group bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	var err error
	switch {
	case group:
		// Setsid made the child the leader of a group of its own number, which can't be another's while we don't reap.
		err = unix.Kill(-p.pid, sig)
	case !pidfd.Alive(p.pidfd):
		return os.ErrProcessDone
	default:
		err = pidfd.Signal(p.pidfd, sig)
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// Kill ends the process and its group at once and reaps it. It blocks for as long as the kernel takes to end it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL, true)
	p.Signal(syscall.SIGKILL, false)
	p.Wait(context.Background())
	p.Reap()
}

// BecomeSubreaper makes the calling process the one that adopts its descendants' orphans.
func BecomeSubreaper() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// CloseOnExec marks every descriptor from 3 on, whoever opened it, as not inherited.
func CloseOnExec() error {
	return os.NewSyscallError("close_range", unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC))
}

// Children returns the pids of the calling process's children, zombies included. They can't be recycled before the
// caller reaps them, so only a caller that reaps in one place may rely on them.
func Children() ([]int, error) { return childrenOf("/proc/self") }

// childrenOf joins the lists of a process's threads.
func childrenOf(proc string) ([]int, error) {
	lists, err := filepath.Glob(proc + "/task/*/children")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range lists {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// ReapOrphans reaps, one by one, the ended children that known does not claim, and returns how many others of them still
// run. known must claim every child that somebody else waits for.
func ReapOrphans(known func(pid int) bool) (running int, err error) {
	pids, err := Children()
	for _, pid := range pids {
		if known(pid) {
			continue
		}
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil && got == 0 {
			running++
		}
	}
	return running, err
}

// EndOrphans reaps as ReapOrphans does, and sends those that still run, and all their descendants, a signal, unless that is 0.
// What they leave behind becomes an orphan in turn, so it is to be called until it returns 0.
func EndOrphans(sig syscall.Signal, known func(pid int) bool) (running int, err error) {
	running, err = ReapOrphans(known)
	if err != nil || running == 0 || sig == 0 {
		return running, err
	}
	pids, err := Children()
	for _, pid := range pids {
		if !known(pid) {
			signalTree(pid, nil, sig)
		}
	}
	return running, err
}

// signalTree signals a process and its descendants, youngest generation first, so that each still has the parent by which
// it is found. process is nil for a child of the caller's, whose number is its own until the caller reaps it.
func signalTree(pid int, process *os.File, sig syscall.Signal) {
	children, _ := childrenOf("/proc/" + strconv.Itoa(pid))
	for _, child := range children {
		p, err := pidfd.Open(child)
		if err != nil {
			continue // it has ended
		}
		// It is the process that was listed, and none that got its number since, if its parent is the one we mean and lives.
		if parent, err := pidfd.Parent(p); err == nil && parent == pid && (process == nil || pidfd.Alive(process)) {
			signalTree(child, p, sig)
		}
		p.Close()
	}
	for _, sig := range []syscall.Signal{sig, syscall.SIGCONT} {
		if process != nil {
			pidfd.Signal(process, sig)
		} else {
			unix.Kill(pid, sig)
		}
	}
}

// HasEnvironment reports whether a child was started with a variable ("KEY=value") in its environment.
func HasEnvironment(pid int, variable string) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && slices.Contains(strings.Split(string(text), "\x00"), variable)
}
