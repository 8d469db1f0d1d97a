package core_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"sallyport/alpc"
	"sallyport/alpc/core"
	"sallyport/internal/control"
	"sallyport/internal/pidfd"
	"sallyport/internal/spawn"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// The test program is also every process of these tests: the variable says which.
const modeVariable = "CORE_TEST_MODE"

func TestMain(m *testing.M) {
	modes := map[string]func() error{
		"core": coreMode, "session": sessionMode, "whoami": whoamiMode, "family": familyMode, "orphan": orphanMode, "heir": heirMode,
		"namespace": namespaceMode, "linger": lingerMode,
	}
	mode := os.Getenv(modeVariable)
	if mode == "" {
		os.Exit(m.Run())
	}
	if err := modes[mode](); err != nil {
		fmt.Fprintln(os.Stderr, mode+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func self(mode string, more ...string) []string {
	return append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, modeVariable+"=") }), append(more, modeVariable+"="+mode)...)
}

func modeCommand(mode string, more ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = self(mode, more...), os.Stderr
	return cmd
}

// seen is what a process learns of itself by attaching.
type seen struct {
	Name   string
	User   string
	Source string
	Admin  bool
	Groups int
	Err    string
}

func attachAndLook(name string) seen {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := alpc.Attach(ctx, alpc.Options{})
	if err != nil {
		return seen{Name: name, Err: err.Error()}
	}
	defer s.Close()
	var source string
	rows, err := s.Attachments(ctx)
	for _, r := range rows {
		if r.ID == s.ID() {
			source = r.Source
		}
	}
	out := seen{Name: name, User: s.Token().User.SID.String(), Source: source, Admin: s.Token().IsAdmin(), Groups: len(s.Token().Groups)}
	if err != nil {
		out.Err = err.Error()
	}
	return out
}

func report(s seen) error { return json.NewEncoder(os.Stdout).Encode(s) }

func whoamiMode() error { return report(attachAndLook(os.Getenv("NAME"))) }

// familyMode was assigned a user's token; its children inherit it, and one that leaves loses it.
func familyMode() error {
	child := modeCommand("whoami", "NAME=child of the family")
	child.Stdout = os.Stdout
	if err := child.Run(); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		setuid := modeCommand("whoami", "NAME=other uid of the family")
		setuid.Stdout = os.Stdout
		setuid.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := setuid.Run(); err != nil {
			return err
		}
	}
	// The middle process ends at once, so that its child is adopted.
	orphan := modeCommand("orphan", "NAME=orphan", "PARENT="+strconv.Itoa(os.Getpid()))
	orphan.Stdout = os.Stdout
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	shell := exec.Command("/bin/sh", "-c", `"$0" & exit 0`, program)
	shell.Env, shell.Stdout, shell.Stderr = orphan.Env, os.Stdout, os.Stderr
	return shell.Run()
}

// orphanMode attaches once it has been adopted by someone outside the family.
func orphanMode() error {
	for {
		chain := []int{}
		for pid := os.Getppid(); pid > 1; {
			chain = append(chain, pid)
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				break
			}
			fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			pid, _ = strconv.Atoi(fields[1])
		}
		family, _ := strconv.Atoi(os.Getenv("PARENT"))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
		if !slices.Contains(chain, family) && strings.TrimSpace(string(comm)) != "sh" {
			return whoamiMode()
		}
		time.Sleep(time.Millisecond) // another process's parent can't be waited for
	}
}

// sessionMode is a small session manager: it assigns, disowns and reports.
func sessionMode() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := spawn.BecomeSubreaper(); err != nil {
		return err
	}
	s, err := alpc.Attach(ctx, alpc.Options{})
	if err != nil {
		return err
	}
	report(seen{Name: "session", User: s.Token().User.SID.String(), Admin: s.Token().IsAdmin()})
	if err := s.RegisterSpawner(ctx); err != nil {
		return err
	}
	user, err := s.CreateToken(ctx, core.UserToken(4242, 4242))
	if err != nil {
		return err
	}
	start := func(mode, name string) (*spawn.Process, error) {
		return spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"test"}, Env: self(mode, "NAME="+name), Files: []*os.File{nil, os.Stdout, os.Stderr}, Terminal: -1})
	}
	// A child that attaches before it is assigned has to wait: the core tells us that it does, and only then do we assign.
	early, err := start("whoami", "early child")
	if err != nil {
		return err
	}
	waiting := <-s.UnassignedChildren()
	if waiting.PID != early.PID() {
		return fmt.Errorf("the core names child %d, it is %d", waiting.PID, early.PID())
	}
	waiting.PIDFD.Close()
	if err := s.AssignToken(ctx, early.PIDFD(), user.TokenID); err != nil {
		return err
	}
	// The first word counts; InvalidParameter if the child has done its work and gone by now.
	if err := s.AssignToken(ctx, early.PIDFD(), user.TokenID); !errors.Is(err, ntstatus.InvalidDeviceState) && !errors.Is(err, ntstatus.InvalidParameter) {
		return fmt.Errorf("a second assign: %v", err)
	}
	if _, err := early.Wait(ctx); err != nil {
		return err
	}
	family, err := start("family", "")
	if err != nil {
		return err
	}
	if err := s.AssignToken(ctx, family.PIDFD(), user.TokenID); err != nil {
		return err
	}
	var orphan alpc.UnassignedChild // adopted, not ours
	select {
	case orphan = <-s.UnassignedChildren():
	case <-ctx.Done():
		return errors.New("no orphan came")
	}
	if err := s.Disown(ctx, orphan.PIDFD); err != nil {
		return err
	}
	if exit, err := family.Wait(ctx); err != nil || exit.Code != 0 {
		return fmt.Errorf("family: %v %v", exit, err)
	}
	if err := pidfd.Wait(ctx, orphan.PIDFD); err != nil {
		return err
	}
	if os.Getenv("CRASH") != "" {
		linger, err := start("linger", "")
		if err != nil {
			return err
		}
		report(seen{Name: "linger", User: strconv.Itoa(linger.PID())})
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return nil
}

// lingerMode stays until it is killed.
func lingerMode() error {
	time.Sleep(time.Minute)
	return nil
}

// coreMode is the core's own process with the session above.
func coreMode() error {
	path := os.Getenv("SALLYPORT_CORE")
	return core.Boot(context.Background(), core.BootOptions{Options: core.Options{Path: path}, Program: spawn.Program{
		Path: "/proc/self/exe", Args: []string{"test"}, Env: self("session"), Files: []*os.File{nil, os.Stdout, os.Stderr}, Terminal: -1,
	}})
}

func socketPath(t *testing.T) string {
	dir, err := os.MkdirTemp("", "core")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return filepath.Join(dir, "core.sock")
}

// boot runs a core with its session and returns what its processes saw.
func boot(t *testing.T, more ...string) (map[string]seen, error) {
	cmd := modeCommand("core", append(more, "SALLYPORT_CORE="+socketPath(t))...)
	out, err := cmd.Output()
	saw := map[string]seen{}
	for line := range strings.Lines(string(out)) {
		var s seen
		require.NoError(t, json.Unmarshal([]byte(line), &s), line)
		saw[s.Name] = s
	}
	return saw, err
}

func TestIdentityIsAssignedInheritedAndLostByLeaving(t *testing.T) {
	saw, err := boot(t)
	require.NoError(t, err)
	require.Equal(t, security.LocalSystem().String(), saw["session"].User)
	user := security.UnixUser(4242).String()
	require.Equal(t, seen{Name: "early child", User: user, Source: "assigned", Groups: 4}, saw["early child"])
	require.Equal(t, seen{Name: "child of the family", User: user, Source: "inherited", Groups: 4}, saw["child of the family"])
	orphan := saw["orphan"]
	require.Equal(t, "detached", orphan.Source, "%+v", saw)
	require.Equal(t, security.UnixUser(uint32(os.Geteuid())).String(), orphan.User)
	require.False(t, orphan.Admin, "leaving loses rights and never gains")
	require.Zero(t, orphan.Groups)
	if os.Geteuid() == 0 {
		other := saw["other uid of the family"]
		require.Equal(t, "detached", other.Source)
		require.Equal(t, security.UnixUser(65534).String(), other.User)
		require.False(t, other.Admin)
	}
}

func TestCoreLeavesNothingWhenTheSessionManagerIsKilled(t *testing.T) {
	saw, err := boot(t, "CRASH=1")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 1, exit.ExitCode())
	pid, err := strconv.Atoi(saw["linger"].User)
	require.NoError(t, err)
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "the process that the session manager left is gone, and reaped")
}

// heirMode sends a request on a control connection that its parent opened: descriptor 3.
func heirMode() error {
	conn, err := unixsock.NewConn(3)
	if err != nil {
		return err
	}
	frame, err := proto.Marshal(&corepb.ToCore{Id: 9, Request: &corepb.ToCore_QueryCharges{QueryCharges: &corepb.QueryCharges{}}})
	if err != nil {
		return err
	}
	return conn.Send(frame, nil)
}

// rawAttach speaks the control protocol by hand.
func rawAttach(t require.TestingT, path string) *unixsock.Conn {
	conn, err := unixsock.Dial(path)
	require.NoError(t, err)
	frame, err := proto.Marshal(hello)
	require.NoError(t, err)
	require.NoError(t, conn.Send(frame, nil))
	buf := make([]byte, control.MaxFrame)
	n, _, _, err := conn.Recv(buf)
	require.NoError(t, err)
	reply := &corepb.FromCore{}
	require.NoError(t, proto.Unmarshal(buf[:n], reply))
	require.Nil(t, reply.GetReply().GetFailure())
	return conn
}

func TestInheritedControlConnectionIsCut(t *testing.T) {
	path := socketPath(t)
	c, err := core.Start(core.Options{Path: path})
	require.NoError(t, err)
	defer c.Close()
	conn := rawAttach(t, path)
	defer conn.Close()
	file, err := conn.File()
	require.NoError(t, err)
	heir := modeCommand("heir")
	heir.ExtraFiles = []*os.File{file}
	require.NoError(t, heir.Run())
	file.Close()
	n, _, _, err := conn.Recv(make([]byte, control.MaxFrame))
	require.True(t, n == 0 || errors.Is(err, io.EOF), "the core cuts a connection that another process writes on, and answers it nothing: %d, %v", n, err)
}

func TestForgedSenderIsCut(t *testing.T) {
	path := socketPath(t)
	c, err := core.Start(core.Options{Path: path})
	require.NoError(t, err)
	defer c.Close()
	conn := rawAttach(t, path)
	defer conn.Close()
	frame, err := proto.Marshal(&corepb.ToCore{Id: 9, Request: &corepb.ToCore_QueryCharges{QueryCharges: &corepb.QueryCharges{}}})
	require.NoError(t, err)
	err = conn.SendAs(frame, nil, unixsock.Ucred{PID: os.Getppid(), UID: 0, GID: 0})
	if os.Geteuid() != 0 {
		require.ErrorIs(t, err, syscall.EPERM, "the kernel lets only root state another sender")
		return
	}
	require.NoError(t, err)
	n, _, _, err := conn.Recv(make([]byte, control.MaxFrame))
	require.True(t, n == 0 || errors.Is(err, io.EOF), "root can state a sender, and gains nothing: %d, %v", n, err)
}

// namespaceMode is process 1 of a pid namespace, where pids can be recycled at will (ns_last_pid). It runs the core.
func namespaceMode() error {
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		fmt.Println("skip: /proc can't be mounted here:", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	path := os.Getenv("SALLYPORT_CORE")
	c, err := core.Start(core.Options{Path: path})
	if err != nil {
		return err
	}
	defer c.Close()
	file, err := c.Attach(core.SystemToken(), "test")
	if err != nil {
		return err
	}
	system, err := alpc.Attach(ctx, alpc.Options{Control: file})
	if err != nil {
		return err
	}
	token, err := system.CreateToken(ctx, core.SystemToken())
	if err != nil {
		return err
	}
	// The victim is assigned LocalSystem's token and dies before it attaches; so does the parent of the impostor's pid.
	start := func(mode string, files ...*os.File) (*spawn.Process, error) {
		return spawn.Start(spawn.Program{Path: "/proc/self/exe", Args: []string{"test"}, Env: self(mode, "NAME=impostor"), Files: append([]*os.File{nil, os.Stdout, os.Stderr}, files...), Terminal: -1})
	}
	victim, err := start("linger")
	if err != nil {
		return err
	}
	if err := system.AssignToken(ctx, victim.PIDFD(), token.TokenID); err != nil {
		return err
	}
	pid := victim.PID()
	victim.Kill()
	for range 100 {
		// The kernel starts looking for a free pid after this one.
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			fmt.Println("skip: ns_last_pid can't be written here:", err)
			return nil
		}
		impostor, err := start("whoami")
		if err != nil {
			return err
		}
		got := impostor.PID()
		if _, err := impostor.Wait(ctx); err != nil {
			return err
		}
		impostor.Reap()
		if got == pid {
			fmt.Println("recycled", pid)
			return nil
		}
	}
	return errors.New("the pid could not be recycled in 100 tries")
}

func TestRecycledPIDGetsNothing(t *testing.T) {
	cmd := modeCommand("namespace", "SALLYPORT_CORE="+socketPath(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if err != nil && len(out) == 0 && errors.Is(err, syscall.EPERM) {
		t.Skip("user namespaces are not allowed here: ", err)
	}
	require.NoError(t, err, string(out))
	recycled, last := false, seen{}
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		if reason, ok := strings.CutPrefix(lines.Text(), "skip: "); ok {
			t.Skip(reason)
		}
		if strings.HasPrefix(lines.Text(), "recycled") {
			recycled = true
		} else if s := (seen{}); json.Unmarshal(lines.Bytes(), &s) == nil && s.Name == "impostor" {
			last = s
		}
	}
	require.True(t, recycled, "the last impostor had the victim's pid")
	require.Equal(t, "kernel", last.Source, "it is who the kernel says, and not who the victim was: %+v", last)
}
