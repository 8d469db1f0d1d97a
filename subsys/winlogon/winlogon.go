// Package winlogon is an interactive logon at a console: it asks for a name and a password, has the authority decide, runs the
// account's shell in the console under the token that came of it, and logs off when the shell ends.
//
// winlogon trusts lsass with the decision, csrss with the console and smss with the shell's process. Whoever types is a
// stranger until lsass says who they are, and the shell is never more than its token. lsass and csrss may die and come back
// meanwhile: winlogon's terminal is its own file, calls are made again. When winlogon dies smss ends its session, and no other.
//
// One goroutine does everything, beside those that show the console at a terminal that smss gave (lent); there are no locks.
package winlogon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/smss/sm"
)

const (
	// ConsoleName is the console of an interactive session's logon.
	ConsoleName = "winlogon"

	// Repeat is the argument with which winlogon lets another user log on when one has logged off, instead of leaving.
	Repeat = "repeat"

	lookTime    = 30 * time.Second // in which a server that died comes back
	leaveTime   = 5 * time.Second  // for what has to be done when winlogon was asked to stop
	defaultPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
)

// Options are winlogon's settings; zero values are the defaults.
type Options struct {
	MaxFailures int           // in a row; then winlogon leaves: 5
	FirstPause  time.Duration // after a failure; it doubles with the next, up to 16 times: 1 s
}

// Server is winlogon in a program's table of servers.
func Server() subsys.Server { return New(Options{}) }

// New is a winlogon with settings.
func New(o Options) subsys.Server {
	o.MaxFailures, o.FirstPause = cmp.Or(o.MaxFailures, 5), cmp.Or(o.FirstPause, time.Second)
	return subsys.Server{Name: "winlogon", Run: func(ctx context.Context, env *subsys.Env) error { return run(ctx, env, o) }}
}

// logon is one winlogon.
type logon struct {
	Options
	env    *subsys.Env
	keeper *sm.Client
	repeat bool

	dialogue *dialogue
	lent     *lent        // nil: the console is shown where somebody attaches to it
	creator  security.SID // of the session; may attach to the console. Zero: nobody but administrators
	name     string
	password []byte
	failures int
	who      *lsa.Logon
}

func run(ctx context.Context, env *subsys.Env, o Options) error {
	l := &logon{Options: o, env: env, keeper: env.Manager, repeat: slices.Contains(env.Args, Repeat)}
	var err error
	if l.keeper == nil { // a part of another program
		if l.keeper, err = sm.Dial(ctx, env.System); err != nil {
			return err
		}
		defer l.keeper.Close()
	}
	if l.creator, err = l.sessionCreator(ctx); err != nil {
		return err
	}
	if l.lent, err = l.lend(); err != nil {
		return err
	}
	if l.lent != nil {
		defer l.lent.giveBack(ctx)
	}
	if err := l.openConsole(ctx); err != nil {
		return err
	}
	defer func() { l.dialogue.close() }()
	if err := env.Ready(); err != nil {
		return err
	}
	act := [states]func(context.Context) (event, error){
		noUser: l.ask, authenticating: l.authenticate, loggedOn: l.shell, loggedOff: l.logOff,
	}
	for s := noUser; s != over; {
		e, err := act[s](ctx)
		if err != nil {
			return err
		}
		following := next(s, e)
		if following == impossible {
			return ntstatus.Errorf("winlogon.run", "", ntstatus.InternalError, "event %d in state %d", e, s)
		}
		s = following
	}
	return nil
}

// sessionCreator is the SID of whoever asked for the session.
func (l *logon) sessionCreator(ctx context.Context) (security.SID, error) {
	all, err := l.keeper.Sessions(ctx)
	if err != nil {
		return security.SID{}, err
	}
	for _, s := range all {
		if s.Session == l.env.Session && s.Creator != "" {
			return security.ParseSID(s.Creator)
		}
	}
	return security.SID{}, nil
}

// openConsole makes a console and begins the dialogue in it. One that a user had before goes, with what it shows.
func (l *logon) openConsole(ctx context.Context) error {
	if l.dialogue != nil {
		l.dialogue.close()
	}
	var terminal *os.File
	err := l.runtime(ctx, func(c *csr.Client) error {
		_, err := c.Create(ctx, &csrpb.CreateConsoleRequest{Name: ConsoleName, Security: l.consoleSDDL(0)})
		if errors.Is(err, ntstatus.ObjectNameCollision) {
			if err := c.CloseConsole(ctx, ConsoleName); err != nil {
				return err
			}
			_, err = c.Create(ctx, &csrpb.CreateConsoleRequest{Name: ConsoleName, Security: l.consoleSDDL(0)})
		}
		if err == nil {
			terminal, err = c.OpenTerminal(ctx, ConsoleName)
		}
		return err
	})
	if err != nil {
		return err
	}
	if l.dialogue, err = newDialogue(terminal); err == nil && l.lent != nil {
		l.lent.show(ctx)
	}
	return err
}

// consoleSDDL lets the system and administrators do everything, the session's creator use the console, and so the logon session
// (0: none yet).
func (l *logon) consoleSDDL(logon security.LUID) string {
	const all, use security.AccessMask = 0xF00F7, 0x20070
	own := l.env.System.Token()
	dacl := security.NewACL(security.Allow(own.User.SID, all), security.Allow(security.Administrators(), all))
	if own.User.SID != security.LocalSystem() {
		dacl.ACEs = append(dacl.ACEs, security.Allow(security.LocalSystem(), all))
	}
	if !l.creator.IsZero() && l.creator != security.LocalSystem() {
		dacl.ACEs = append(dacl.ACEs, security.Allow(l.creator, use))
	}
	if logon != 0 {
		dacl.ACEs = append(dacl.ACEs, security.Allow(security.LogonSID(logon), use))
	}
	return (&security.Descriptor{Owner: own.User.SID, Group: own.User.SID, DACL: dacl}).String()
}

// ask is the state noUser.
func (l *logon) ask(ctx context.Context) (event, error) {
	if l.who != nil { // another one was here
		l.who = nil
		if err := l.openConsole(ctx); err != nil {
			return stopped, err
		}
	}
	for greet := true; ; greet = false {
		if greet && l.failures == 0 {
			host, _ := os.Hostname()
			l.dialogue.say("\nSallyport, session %d on %s\n\n", l.env.Session, cmp.Or(host, "this machine"))
		}
		name, err := l.dialogue.ask(ctx, "login: ", &editor{limit: maxName, echo: true}, 0)
		switch {
		case err == nil && len(name) == 0:
			continue
		case err == nil:
			l.name = string(name)
			l.password, err = l.dialogue.ask(ctx, "Password: ", &editor{limit: maxPassword}, answerTime)
		}
		switch {
		case err == nil:
			return entered, nil
		case ctx.Err() != nil:
			return stopped, nil
		case errors.Is(err, errLeft):
			return left, nil
		case errors.Is(err, errTooLong):
			l.dialogue.say("\nThe answer is too long.\n")
		}
	}
}

// authenticate is the state authenticating.
func (l *logon) authenticate(ctx context.Context) (event, error) {
	err := l.logonUser(ctx)
	if errors.Is(err, ntstatus.PasswordMustChange) || errors.Is(err, ntstatus.PasswordExpired) {
		if err = l.changePassword(ctx); err == nil {
			err = l.logonUser(ctx)
		}
	}
	clear(l.password)
	switch {
	case err == nil:
		l.failures = 0
		return accepted, nil
	case ctx.Err() != nil:
		return stopped, nil
	case errors.Is(err, errLeft):
		return left, nil
	case errors.Is(err, errInterrupted), errors.Is(err, errTooSlow):
		return rejected, nil
	}
	l.env.Logger.Info("a logon failed", "name", l.name, "error", err)
	if err := l.dialogue.say("\n%s\n", explain(err)); err != nil {
		return left, nil
	}
	l.failures++
	if l.failures >= l.MaxFailures && !l.repeat {
		return tooOften, nil
	}
	pause := l.FirstPause << min(l.failures-1, 4)
	if err := l.dialogue.pause(ctx, pause); err != nil && ctx.Err() == nil {
		return left, nil
	}
	if ctx.Err() != nil {
		return stopped, nil
	}
	return rejected, nil
}

func (l *logon) logonUser(ctx context.Context) error {
	return l.authority(ctx, func(c *lsa.Client) (err error) {
		l.who, err = c.LogonUser(ctx, lsa.LogonRequest{Name: l.name, Password: l.password, Type: lsa.Interactive, Session: &l.env.Session,
			Origin: fmt.Sprintf("console of session %d", l.env.Session), Source: "winlogon"})
		return err
	})
}

// changePassword asks for the new password that the account must have first.
func (l *logon) changePassword(ctx context.Context) error {
	l.dialogue.say("\nYour password must be changed before you log on.\n")
	for {
		fresh, err := l.dialogue.ask(ctx, "New password: ", &editor{limit: maxPassword}, answerTime)
		if err != nil {
			return err
		}
		repeated, err := l.dialogue.ask(ctx, "The same again: ", &editor{limit: maxPassword}, answerTime)
		if err != nil {
			clear(fresh)
			return err
		}
		same := string(fresh) == string(repeated)
		clear(repeated)
		if !same {
			clear(fresh)
			l.dialogue.say("They differ.\n")
			continue
		}
		err = l.authority(ctx, func(c *lsa.Client) error { return c.ChangePassword(ctx, l.name, l.password, fresh) })
		if err != nil {
			clear(fresh)
			return err
		}
		clear(l.password)
		l.password = fresh
		return nil
	}
}

// shell is the state loggedOn: it starts the account's shell and waits for its end.
func (l *logon) shell(ctx context.Context) (event, error) {
	process, err := l.startShell(ctx)
	if err != nil {
		l.env.Logger.Warn("a shell did not start", "user", l.who.UserName, "shell", l.who.Profile.Shell, "error", err)
		l.dialogue.say("\nYour shell %s can't be started: %s.\n", l.who.Profile.Shell, ntstatus.Of(err).Error())
		return shellEnded, nil
	}
	defer process.PIDFD.Close()
	exit, err := l.keeper.Wait(ctx, process.ID)
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err != nil {
		l.keeper.Signal(leave, process.ID, syscall.SIGHUP, true)
		if ctx.Err() != nil {
			return stopped, nil
		}
		return stopped, err
	}
	l.env.Logger.Info("a shell has ended", "user", l.who.UserName, "code", exit.Code, "signal", exit.Signal)
	l.keeper.Signal(leave, process.ID, syscall.SIGHUP, true) // what is left of its group; there may be nothing
	if err := l.keeper.Acknowledge(leave, process.ID); err != nil {
		l.env.Logger.Warn("an exit stays unacknowledged", "error", err)
	}
	return shellEnded, nil
}

func (l *logon) startShell(ctx context.Context) (*sm.Process, error) {
	p := &l.who.Profile
	p.Shell = cmp.Or(p.Shell, "/bin/sh")
	if p.Home == "" && int(p.UnixUID) == os.Geteuid() {
		p.Home = os.Getenv("HOME") // in a user's own instance the accounts share the owner's files
	}
	p.Home = cmp.Or(p.Home, "/")
	var terminal *os.File
	err := l.runtime(ctx, func(c *csr.Client) (err error) {
		if err = c.SetSecurity(ctx, ConsoleName, l.consoleSDDL(l.who.ID)); err == nil {
			terminal, err = c.OpenTerminal(ctx, ConsoleName)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer terminal.Close()
	dir := p.Home
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		dir = "/"
		l.dialogue.say("There is no home directory %s; starting in /.\n", p.Home)
	}
	if err := l.dialogue.yield(); err != nil {
		return nil, err
	}
	account := l.who.UserName[strings.LastIndexByte(l.who.UserName, '\\')+1:] // without its domain
	env := []string{"HOME=" + p.Home, "USER=" + account, "LOGNAME=" + account, "SHELL=" + p.Shell, "PATH=" + defaultPath,
		"TERM=" + cmp.Or(os.Getenv("TERM"), "xterm-256color")}
	for _, name := range []string{"SALLYPORT_CORE", "SALLYPORT_RUNTIME_DIR", "LANG"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	program := sm.Program{
		Name: fmt.Sprintf("shell/%d", time.Now().UnixNano()), Path: p.Shell, Args: []string{"-" + filepath.Base(p.Shell)}, Env: env, Dir: dir,
		Token: l.who.Token, Session: l.env.Session, Terminal: terminal,
	}
	process, err := l.keeper.ExecPgm(ctx, program)
	if errors.Is(err, ntstatus.AccessDenied) && dir != "/" {
		program.Dir = "/" // the directory may be another user's
		if process, err = l.keeper.ExecPgm(ctx, program); err == nil {
			l.dialogue.say("The home directory %s is not open to this account; starting in /.\n", p.Home)
		}
	}
	if err != nil {
		return nil, err
	}
	err = l.runtime(ctx, func(c *csr.Client) error {
		_, err := c.Register(ctx, process.PIDFD, account)
		return err
	})
	if err != nil && !errors.Is(err, ntstatus.InvalidCID) { // it may have ended already
		l.env.Logger.Warn("the shell is not in the process table", "error", err)
	}
	return process, nil
}

// logOff is the state loggedOff. It happens even where winlogon was asked to stop.
func (l *logon) logOff(ctx context.Context) (event, error) {
	leave := ctx
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		leave, cancel = context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
		defer cancel()
	}
	err := l.authority(leave, func(c *lsa.Client) error { return c.LogOff(leave, l.who.ID) })
	if err != nil && !errors.Is(err, ntstatus.NoSuchLogonSession) {
		l.env.Logger.Error("a logon session could not be ended", "user", l.who.UserName, "error", err)
	}
	switch {
	case ctx.Err() != nil:
		return stopped, nil
	case l.repeat:
		return again, nil
	}
	return done, nil
}

// runtime calls the session's csrss, again if that died meanwhile.
func (l *logon) runtime(ctx context.Context, call func(*csr.Client) error) error {
	return persist(ctx, func() error {
		c, err := csr.Dial(ctx, l.env.System, l.env.Session)
		if err != nil {
			return err
		}
		defer c.Close()
		return call(c)
	})
}

// authority calls lsass, again if that died meanwhile.
func (l *logon) authority(ctx context.Context, call func(*lsa.Client) error) error {
	return persist(ctx, func() error {
		c, err := lsa.Dial(ctx, l.env.System)
		if err != nil {
			return err
		}
		defer c.Close()
		return call(c)
	})
}

// persist calls until the answer is another than that the server has gone, for lookTime at most. Dialing waits for a server that is
// being started, so that this does not run hot; the pause is for one that dies at once each time.
func persist(ctx context.Context, call func() error) error {
	deadline := time.Now().Add(lookTime)
	for {
		err := call()
		if !csr.Gone(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}
