package winlogon_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/pidfd"
	"sallyport/internal/pty"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/csrss"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/csrss/csrtest"
	"sallyport/subsys/lsass"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/winlogon"
)

const password = "correct horse"

// prompt is what /bin/sh asks with: the test's manager starts programs under the test's own uid.
func prompt() string {
	if os.Geteuid() == 0 {
		return "# "
	}
	return "$ "
}

// TestMain makes the test binary a winlogon of its own where the test asks for one.
func TestMain(m *testing.M) {
	if os.Getenv("SALLYPORT_SERVER") == "winlogon" {
		os.Exit(subsys.Main(winlogon.Server()))
	}
	os.Exit(m.Run())
}

// station is a set of servers with a winlogon, inside the test, and the person in front of it.
type station struct {
	t       *testing.T
	core    *alpctest.Core
	state   string
	home    string
	csrss   *subsys.Hosted
	lsass   *subsys.Hosted
	logon   *subsys.Hosted
	admin   *lsa.Client
	consols *csr.Client // as an administrator
	person  *csr.Client // as the session's creator
	a       *csr.Attachment
	shown   strings.Builder
	seen    int // how much of shown was expected already
}

func open(t *testing.T, args ...string) *station {
	t.Helper()
	s := servers(t)
	s.logon = s.host(winlogon.New(winlogon.Options{FirstPause: time.Millisecond}), args...)
	t.Cleanup(func() { s.logon.Stop(s.ctx()) })
	s.sitDown()
	return s
}

// servers is all that a winlogon needs.
func servers(t *testing.T, options ...alpctest.Option) *station {
	t.Helper()
	s := &station{t: t, core: alpctest.Start(t, options...), state: t.TempDir(), home: t.TempDir()}
	creator := alpctest.User(1000)
	csrtest.Start(t, s.core.Attach(t, nil), creator.User.SID.String())
	// As smss does: clients of a server that is away wait for it.
	for _, port := range []string{csr.PortName(0), lsa.PortName} {
		require.NoError(t, s.core.Attach(t, nil).Declare(s.ctx(), port, alpc.PortAttributes{
			SecurityDescriptor: "O:SYG:SYD:(A;;0x1f0001;;;SY)(A;;0x1;;;AU)", HandleTypes: alpc.HandleAny}, security.LocalSystem()))
	}
	s.csrss, s.lsass = s.host(csrss.Server()), s.host(lsass.Server())
	t.Cleanup(func() { s.csrss.Stop(s.ctx()); s.lsass.Stop(s.ctx()) })
	var err error
	s.admin, err = lsa.Dial(s.ctx(), s.core.Attach(t, alpctest.Admin(500)))
	require.NoError(t, err)
	t.Cleanup(func() { s.admin.Close() })
	_, err = s.admin.SetAccountPolicy(s.ctx(), lsa.Policy{MinPasswordLength: 4, HashTime: 1, HashMemoryKiB: 8, HashThreads: 1})
	require.NoError(t, err)
	s.user("alice", false)
	s.consols, err = csr.Dial(s.ctx(), s.core.Attach(t, alpctest.Admin(500)), 0)
	require.NoError(t, err)
	t.Cleanup(func() { s.consols.Close() })
	s.person, err = csr.Dial(s.ctx(), s.core.Attach(t, creator), 0)
	require.NoError(t, err)
	t.Cleanup(func() { s.person.Close() })
	return s
}

func (s *station) ctx() context.Context { return alpctest.Context(s.t) }

func (s *station) host(server subsys.Server, args ...string) *subsys.Hosted {
	s.t.Helper()
	var hosted *subsys.Hosted
	var err error
	require.Eventually(s.t, func() bool { // the port of its predecessor may be open for another moment
		hosted, err = subsys.Host(context.Background(), server, subsys.Env{System: s.core.Attach(s.t, nil), StateDir: s.state, Args: args})
		return ntstatus.Of(err) != ntstatus.ObjectNameCollision
	}, 5*time.Second, time.Millisecond)
	require.NoError(s.t, err)
	return hosted
}

func (s *station) user(name string, mustChange bool) {
	_, err := s.admin.CreateUser(s.ctx(), &lsapb.CreateUserRequest{Name: name, Password: []byte(password), Home: s.home, Shell: "/bin/sh", MustChangePassword: mustChange})
	require.NoError(s.t, err)
}

// sitDown attaches the person to the console.
func (s *station) sitDown() {
	s.t.Helper()
	var err error
	s.a, err = s.person.Attach(s.ctx(), &csrpb.Attach{Name: winlogon.ConsoleName, Size: &csrpb.Size{Columns: 80, Rows: 24}, From: uint64(s.shown.Len())})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { s.a.Close() })
}

// expect waits until the terminal shows want after what was expected before.
func (s *station) expect(want string) {
	s.t.Helper()
	for {
		if i := strings.Index(s.shown.String()[s.seen:], want); i >= 0 {
			s.seen += i + len(want)
			return
		}
		m, err := s.a.Recv()
		require.NoError(s.t, err, "waiting for %q in %q", want, s.shown.String()[s.seen:])
		require.Nil(s.t, m.GetEnded(), "waiting for %q in %q", want, s.shown.String()[s.seen:])
		s.shown.Write(m.GetOutput().GetData())
	}
}

func (s *station) press(keys string) {
	s.t.Helper()
	_, err := s.a.Write([]byte(keys))
	require.NoError(s.t, err)
}

func (s *station) answer(question, keys string) {
	s.t.Helper()
	s.expect(question)
	s.press(keys)
}

// gone waits until winlogon has left.
func (s *station) gone() {
	s.t.Helper()
	select {
	case <-s.logon.Done():
	case <-s.ctx().Done():
		require.FailNow(s.t, "winlogon stays", "%q", s.shown.String())
	}
	require.NoError(s.t, s.logon.Stop(s.ctx()))
}

func (s *station) sessions() []string {
	s.t.Helper()
	list, err := s.admin.LogonSessions(s.ctx())
	require.NoError(s.t, err)
	var users []string
	for _, l := range list {
		users = append(users, l.User[strings.LastIndex(l.User, `\`)+1:])
	}
	return users
}

func (s *station) modes() pty.Modes {
	s.t.Helper()
	f, err := s.consols.OpenTerminal(s.ctx(), winlogon.ConsoleName)
	require.NoError(s.t, err)
	defer f.Close()
	m, err := pty.GetModes(f)
	require.NoError(s.t, err)
	return m
}

func TestAPersonLogsOnWorksAndLogsOff(t *testing.T) {
	s := open(t)
	s.answer("login: ", "alixe\x7f\x7fce\r")
	s.expect("Password: ")
	require.False(t, s.modes().Echo(), "the terminal itself echoes nothing")
	s.press("not that\r")
	s.expect("The name or the password is wrong.")
	require.Empty(t, s.sessions())

	s.answer("login: ", "\r") // nothing is nobody
	s.answer("login: ", "someone else\x15alice\r")
	s.answer("Password: ", password+"\r")
	s.answer(prompt(), "echo =$USER=$LOGNAME=$SHELL=$HOME= $0 `pwd` `tty`\r")
	s.expect("=alice=alice=/bin/sh=" + s.home + "= -sh " + s.home + " /dev/pts/")
	m := s.modes()
	require.True(t, m.Echo() && m.Canonical() && m.Signals(), "the shell has an ordinary terminal")
	require.Equal(t, []string{"alice"}, s.sessions())
	list, err := s.consols.Processes(s.ctx())
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "alice", list[0].Name)

	// Ctrl-C reaches what runs in front, and nobody else.
	s.answer(prompt(), "cat\r")
	s.press("meow\r")
	s.expect("meow\r\nmeow\r\n") // it runs
	s.press("\x03")
	s.answer(prompt(), "exit\r")
	s.gone()
	require.Empty(t, s.sessions())
	require.NotContains(t, s.shown.String(), password)
	require.NotContains(t, s.shown.String(), "not that")
}

func TestControlKeysAtTheQuestions(t *testing.T) {
	s := open(t)
	s.answer("login: ", "ali\x03")
	s.answer("login: ", "alice\r")
	s.answer("Password: ", "\x03")
	s.answer("login: ", strings.Repeat("x", 300)+"\r")
	s.expect("too long")
	s.answer("login: ", "alice\r")
	s.answer("Password: ", "\x04") // to leave
	s.gone()

	s = open(t)
	s.answer("login: ", "\x04")
	s.gone()
	require.Empty(t, s.sessions())
}

func TestHangUpAtTheQuestionEndsTheSession(t *testing.T) {
	s := open(t)
	s.answer("login: ", "alice\r")
	s.expect("Password: ")
	require.NoError(t, s.consols.CloseConsole(s.ctx(), winlogon.ConsoleName))
	s.gone()
}

func TestHangUpOfTheShellLogsOff(t *testing.T) {
	s := open(t)
	s.answer("login: ", "alice\r")
	s.answer("Password: ", password+"\r")
	s.expect(prompt())
	require.NoError(t, s.consols.CloseConsole(s.ctx(), winlogon.ConsoleName))
	s.gone()
	require.Empty(t, s.sessions())
}

func TestTooManyFailuresEndTheSession(t *testing.T) {
	s := open(t)
	for range 5 {
		s.answer("login: ", "mallory\r")
		s.answer("Password: ", "guess\r")
		s.expect("The name or the password is wrong.")
	}
	s.gone()
}

func TestRefusalsAreExplained(t *testing.T) {
	s := open(t)
	_, err := s.admin.DisableUser(s.ctx(), "alice")
	require.NoError(t, err)
	s.answer("login: ", "alice\r")
	s.answer("Password: ", password+"\r")
	s.expect("This account is disabled.")
	_, err = s.admin.EnableUser(s.ctx(), "alice")
	require.NoError(t, err)
	shell := "/nonexistent/shell"
	_, err = s.admin.SetUserInfo(s.ctx(), &lsapb.SetUserInfoRequest{Name: "alice", Shell: &shell})
	require.NoError(t, err)
	s.answer("login: ", "alice\r")
	s.answer("Password: ", password+"\r")
	s.expect("Your shell /nonexistent/shell can't be started")
	s.gone()
	require.Empty(t, s.sessions(), "who has no shell is logged off")
}

func TestPasswordThatMustBeChangedIsChanged(t *testing.T) {
	s := open(t)
	s.user("bob", true)
	s.answer("login: ", "bob\r")
	s.answer("Password: ", password+"\r")
	s.answer("New password: ", "another one\r")
	s.answer("again: ", "another\r")
	s.expect("They differ.")
	s.answer("New password: ", "another one\r")
	s.answer("again: ", "another one\r")
	s.answer(prompt(), "exit\r")
	s.gone()
	require.NotContains(t, s.shown.String(), "another one")
	require.ErrorIs(t, s.admin.ChangePassword(s.ctx(), "bob", []byte(password), []byte("whatever")), ntstatus.WrongPassword)
}

func TestServersComeAndGoAndTheShellNeverNotices(t *testing.T) {
	s := open(t)
	// lsass goes before the answer and comes back: the logon waits for it.
	require.NoError(t, s.lsass.Stop(s.ctx()))
	s.answer("login: ", "alice\r")
	s.answer("Password: ", password+"\r")
	s.lsass = s.host(lsass.Server())
	s.answer(prompt(), "x=remembered\r")
	s.expect(prompt())

	require.NoError(t, s.csrss.Stop(s.ctx()))
	_, err := s.a.Recv()
	require.Error(t, err)
	s.csrss = s.host(csrss.Server())
	s.sitDown()
	s.press("echo is $x\r")
	s.expect("is remembered")

	require.NoError(t, s.lsass.Stop(s.ctx()))
	s.answer(prompt(), "exit\r")
	s.lsass = s.host(lsass.Server())
	s.gone()
	s.admin, err = lsa.Dial(s.ctx(), s.core.Attach(t, alpctest.Admin(500)))
	require.NoError(t, err)
	require.Empty(t, s.sessions())
}

func TestTheNextUserSeesNothingOfTheLast(t *testing.T) {
	s := open(t, winlogon.Repeat)
	s.answer("login: ", "alice\r")
	s.answer("Password: ", password+"\r")
	s.answer(prompt(), "echo a secret\r")
	s.expect("a secret\r\n")
	s.answer(prompt(), "exit\r")
	for ended := false; !ended; {
		m, err := s.a.Recv()
		require.NoError(t, err)
		ended = m.GetEnded() != nil
	}
	s.shown.Reset()
	s.seen = 0
	require.Eventually(t, func() bool { // the console is made anew
		a, err := s.person.Attach(s.ctx(), &csrpb.Attach{Name: winlogon.ConsoleName})
		s.a = a
		return err == nil
	}, 5*time.Second, 10*time.Millisecond)
	s.expect("login: ")
	require.NotContains(t, s.shown.String(), "secret")
	require.Empty(t, s.sessions())
	s.press("\x04")
	s.gone()
}

// TestTerminalThatSmssGaveShowsTheConsole runs winlogon as a process whose standard files are a terminal.
func TestTerminalThatSmssGaveShowsTheConsole(t *testing.T) {
	s := servers(t, alpctest.AsProcess())
	system := s.core.Attach(t, nil)
	require.NoError(t, system.RegisterSpawner(s.ctx()))
	master, err := pty.Open(pty.Size{Columns: 91, Rows: 37})
	require.NoError(t, err)
	defer master.Close()
	require.NoError(t, master.SetDeadline(time.Now().Add(20*time.Second)))
	terminal, err := pty.Peer(master)
	require.NoError(t, err)
	defer terminal.Close()
	before, err := pty.GetModes(terminal)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"SALLYPORT_SERVER=winlogon", "SALLYPORT_SESSION=0", "SALLYPORT_LOG=error", "SALLYPORT_CORE=" + s.core.Path()}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, os.Stderr
	require.NoError(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	process, err := pidfd.Open(cmd.Process.Pid)
	require.NoError(t, err)
	defer process.Close()
	require.NoError(t, system.AssignToken(s.ctx(), process, system.Token().TokenID))
	expect := func(want string) {
		t.Helper()
		for b := make([]byte, 4096); !strings.Contains(s.shown.String()[s.seen:], want); {
			n, err := master.Read(b)
			require.NoError(t, err, "waiting for %q in %q", want, s.shown.String())
			s.shown.Write(b[:n])
		}
		s.seen += strings.Index(s.shown.String()[s.seen:], want) + len(want)
	}
	for _, line := range [][2]string{{"login: ", "alice\r"}, {"Password: ", password + "\r"}, {prompt(), "stty size\r"}, {"37 91", "echo the last word; exit\r"}} {
		expect(line[0])
		_, err := master.WriteString(line[1])
		require.NoError(t, err)
	}
	expect("the last word") // echoed
	expect("the last word")
	require.NoError(t, cmd.Wait())
	require.NotContains(t, s.shown.String(), password)
	after, err := pty.GetModes(terminal)
	require.NoError(t, err)
	require.Equal(t, before, after, "the terminal is as it was")
}
