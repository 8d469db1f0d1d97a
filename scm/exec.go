package scm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/internal/logpipe"
	"sallyport/internal/notify"
	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/security"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/smss/sm"
)

// EnvService names the service in its own environment.
const EnvService = "SALLYPORT_SERVICE"

// defaultPath is the PATH of services.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// exec makes one attempt: a token from lsass, the pipe and socket, then smss executes. What came of it goes to the machine.
func (c *controller) exec(ctx context.Context, e *entry, attempt uint64, args []string) {
	c.mu.Lock()
	config, password := e.service.Config, e.record.Password
	key := e.service.Key
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, milliseconds(config.StartTimeoutMs))
	defer cancel()
	failed := func(status ntstatus.Status, retry bool, logon security.LUID, err error) {
		c.log.Warn("a service could not be executed", "service", key, "error", err)
		_ = c.step(Event{Type: EventSpawnFailed, Service: key, Attempt: attempt, Status: status, Retry: retry, Logon: uint64(logon), Reason: err.Error()})
	}
	if err := c.openFiles(ctx, e); err != nil {
		failed(ntstatus.Of(err), true, 0, err)
		return
	}
	e.log.seam()
	logon, err := c.logon(ctx, config, password)
	if err != nil {
		failed(ntstatus.ServiceLogonFailed, transient(err), 0, ntstatus.Errorf("scm.StartService", config.Name, ntstatus.ServiceLogonFailed, "%s: %w", config.Account, err))
		return
	}
	program := sm.Program{
		Name: processName(key, attempt), Path: config.Path, Args: append([]string{config.Path}, config.Arguments...),
		Env: c.environment(e, config, logon), Dir: config.Directory, Token: logon.Token, Stdout: e.log.write, Stderr: e.log.write,
	}
	if config.Kind != scmpb.ServiceKind_SERVICE_KIND_NATIVE {
		program.Args = append(program.Args, args...)
	}
	process, err := c.keeper.ExecPgm(ctx, program)
	if err != nil && !definite(err) {
		process, err = c.lookUp(program.Name, err) // the answer was lost: smss knows
	}
	if cerr := c.sys.CloseToken(context.WithoutCancel(ctx), logon.Token); cerr != nil {
		c.log.Debug("a service's token was not closed", "service", key, "error", cerr)
	}
	// A built-in account's session is the system's own and goes on; LogOff of it is refused, which is no harm.
	if err != nil {
		failed(ntstatus.Of(err), transient(err), logon.ID, err)
		return
	}
	if process.PIDFD != nil {
		process.PIDFD.Close() // smss signals and waits for us
	}
	_ = c.step(Event{Type: EventSpawned, Service: key, Attempt: attempt, Process: process.ID, PID: uint32(process.PID), Logon: uint64(logon.ID)})
}

// lookUp asks smss for a process whose start was not answered.
func (c *controller) lookUp(name string, cause error) (*sm.Process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), keeperTimeout)
	defer cancel()
	processes, err := c.keeper.List(ctx)
	if err != nil {
		return nil, cause
	}
	var found *sm.Process
	for _, p := range processes {
		if p.Name == name {
			found = &p
		} else if p.PIDFD != nil {
			p.PIDFD.Close()
		}
	}
	if found == nil {
		return nil, cause
	}
	return found, nil
}

// transient says that a failure may go away by itself: somebody was away, busy or slow.
func transient(err error) bool {
	switch ntstatus.Of(err).GRPCCode() {
	case ntstatus.PortDisconnected.GRPCCode(), ntstatus.IOTimeout.GRPCCode(), ntstatus.QuotaExceeded.GRPCCode():
		return true
	}
	status := ntstatus.Of(err)
	var e *ntstatus.Error
	return status == ntstatus.RequestCanceled || errors.As(err, &e) && e.Object == lsa.PortName && status == ntstatus.ObjectNameNotFound
}

// definite says that smss has decided: there is no process.
func definite(err error) bool {
	switch ntstatus.Of(err).GRPCCode() {
	case ntstatus.PortDisconnected.GRPCCode(), ntstatus.IOTimeout.GRPCCode(), ntstatus.RequestCanceled.GRPCCode():
		return false
	}
	return true
}

// logon gets the token of a service: logon type 5, with the service's own SID among its groups.
func (c *controller) logon(ctx context.Context, config *scmpb.ServiceConfig, password []byte) (*lsa.Logon, error) {
	authority, err := lsa.Dial(ctx, c.sys)
	if err != nil {
		return nil, err
	}
	defer authority.Close()
	session := uint32(0)
	request := lsa.LogonRequest{
		Name: config.Account, Password: password, Type: lsa.LogonType(5), Session: &session, Origin: "service " + clipOrigin(config.Name), Source: "scm",
	}
	if config.GetSidType() == scmpb.ServiceSIDType_SERVICE_SID_TYPE_UNRESTRICTED {
		request.LocalGroups = []security.Group{{SID: security.ServiceSID(config.Name)}}
	}
	return authority.LogonUser(ctx, request)
}

func clipOrigin(name string) string { return strings.ToValidUTF8(name[:min(len(name), 100)], "") }

// environment is the whole environment of a service; its configuration has the last word.
func (c *controller) environment(e *entry, config *scmpb.ServiceConfig, logon *lsa.Logon) []string {
	home := logon.Profile.Home
	if home == "" {
		home = "/"
	}
	env := []string{"PATH=" + defaultPath, "HOME=" + home, EnvService + "=" + config.Name}
	if _, user, ok := strings.Cut(logon.UserName, `\`); ok {
		env = append(env, "USER="+user, "LOGNAME="+user)
	}
	if config.Kind == scmpb.ServiceKind_SERVICE_KIND_NOTIFY {
		env = append(env, "NOTIFY_SOCKET="+e.address)
		if config.WatchdogMs != 0 {
			env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(milliseconds(config.WatchdogMs).Microseconds(), 10))
		}
	}
	own := map[string]bool{}
	for _, e := range config.Environment {
		name, _, _ := strings.Cut(e, "=")
		own[name] = true
	}
	env = slices.DeleteFunc(env, func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return own[name]
	})
	return append(env, config.Environment...)
}

// openFiles makes a service's log pipe and, for a notify service, its socket, once, and has smss keep them: they serve every
// run of the service, whichever controller sees it.
func (c *controller) openFiles(ctx context.Context, e *entry) error {
	c.mu.Lock()
	config, log, socket := e.service.Config, e.log, e.notify
	c.mu.Unlock()
	wantSocket := config.Kind == scmpb.ServiceKind_SERVICE_KIND_NOTIFY && socket == nil
	if log != nil && !wantSocket {
		return nil
	}
	var made []*os.File
	address := ""
	if log == nil {
		var err error
		if log, err = c.openLogOf(e); err != nil {
			return err
		}
		if log.pipe, log.write, err = logpipe.New(); err != nil {
			log.close()
			return ntstatus.Wrap("scm.StartService", config.Name, err)
		}
		made = append(made, log.pipe)
	}
	if wantSocket {
		var err error
		if socket, address, err = c.listenNotify(e.service.Key); err != nil {
			if made != nil {
				log.close()
			}
			return err
		}
	}
	files := []*os.File{log.pipe, log.write}
	var note []byte
	if socket != nil {
		files = append(files, socket.File())
		if note = []byte(address); address == "" {
			note = []byte(e.address)
		}
	}
	if err := c.keeper.Store(ctx, storedFiles+e.service.Key, note, files...); err != nil {
		if made != nil {
			log.close()
		}
		if wantSocket {
			socket.Close()
		}
		return ntstatus.Wrap("scm.StartService", config.Name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if made != nil {
		e.log = log
		go log.run()
	}
	if wantSocket {
		e.notify, e.address = socket, address
		go c.listen(e.service.Key, socket)
	}
	return nil
}

func (c *controller) openLogOf(e *entry) (*serviceLog, error) {
	config := e.service.Config
	return openLog(logPath(c.logs, e.service.Key), int64(config.LogBytes), int(config.LogFiles), c.log)
}

// listenNotify binds a socket in the runtime directory or, where its path is too long or not to be written, an abstract
// one: the sender of each datagram is proven either way.
func (c *controller) listenNotify(key string) (*notify.Socket, string, error) {
	dir := filepath.Join(c.runtime, "notify")
	path := filepath.Join(dir, strings.TrimSuffix(filepath.Base(logPath("", key)), ".log"))
	if c.runtime != "" && notify.Fits(path) && os.MkdirAll(dir, 0o755) == nil {
		os.Remove(path) // of an earlier life of the machine: smss would have it otherwise
		if socket, err := notify.Listen(path); err == nil {
			return socket, path, nil
		}
	}
	name := "@sallyport/notify/" + strconv.Itoa(os.Getpid()) + "/" + strconv.FormatInt(time.Now().UnixNano(), 36)
	socket, err := notify.Listen(name)
	return socket, name, ntstatus.Wrap("scm.StartService", key, err)
}

// adoptFiles takes up what smss kept of a service: its log goes on where it was. The caller holds mu.
func (c *controller) adoptFiles(e *entry, kept sm.Stored) error {
	files := kept.Files
	if len(files) < 2 {
		return nil
	}
	log, err := c.openLogOf(e)
	if err != nil {
		return err
	}
	log.pipe, log.write = files[0], files[1]
	e.log = log
	go log.run()
	if len(files) == 3 {
		socket, err := notify.Adopt(files[2])
		if err != nil {
			return err
		}
		e.notify, e.address = socket, string(kept.Data)
		go c.listen(e.service.Key, socket)
	}
	return nil
}

// listen hears what a notify service says of itself, until the socket is closed. A datagram is dropped once what came of it is noted:
// a controller that is killed before leaves it to the next, to whom a word heard twice says nothing new.
func (c *controller) listen(key string, socket *notify.Socket) {
	buf := make([]byte, notify.MaxDatagram)
	for {
		datagram, pid, err := socket.Peek(buf)
		if err != nil && !errors.Is(err, ntstatus.InvalidMessage) {
			return
		}
		var m notify.Message
		if err == nil {
			m, err = notify.Parse(datagram)
		}
		if err != nil {
			c.log.Warn("a notification was refused", "service", key, "pid", pid, "error", err)
			socket.Drop()
			continue
		}
		c.notified(key, pid, m)
		c.noted()
		socket.Drop()
	}
}

// noted waits until everything asked of smss so far is done, or the controller ends.
func (c *controller) noted() {
	done := make(chan struct{})
	c.mu.Lock()
	c.queue(func(context.Context) { close(done) })
	c.mu.Unlock()
	select {
	case <-done:
	case <-c.ended:
	}
}

// notified takes one notification if its sender belongs to the service.
func (c *controller) notified(key string, pid int, m notify.Message) {
	main, attempt, ok := c.mainProcess(key)
	if !ok || !belongs(pid, main) {
		c.log.Warn("a notification of a foreign process was refused", "service", key, "pid", pid)
		return
	}
	_ = c.apply(func(now time.Time) error {
		s, ok := c.machine.Get(key)
		if !ok || s.Run.Attempt != attempt {
			return nil
		}
		if m.Status != "" && m.Status != s.Run.Text {
			s.Run.Text = clip(m.Status)
			c.machine.touch(s)
		}
		if m.MainPID != 0 && belongs(m.MainPID, main) && s.Run.PID != uint32(m.MainPID) && s.Run.Process != 0 {
			s.Run.PID = uint32(m.MainPID) // for showing: the run is still the life of the process that was started
			c.machine.touch(s)
		}
		event := func(t EventType, hint time.Duration) {
			_ = c.machine.Step(now, Event{Type: t, Service: key, Attempt: attempt, Hint: hint})
		}
		if m.Extend > 0 {
			event(EventProgress, m.Extend)
		}
		if m.Watchdog {
			event(EventProgress, 0)
		}
		if m.Ready {
			event(EventReady, 0)
		}
		if m.Stopping {
			event(EventStopping, 0)
		}
		return nil
	})
}

// mainProcess is the pid of the process that smss started for a service and has not reaped: the number can't be another's. A
// process may speak before smss has told that it began; then this waits.
func (c *controller) mainProcess(key string) (pid int, attempt uint64, ok bool) {
	deadline := time.After(keeperTimeout)
	for {
		c.mu.Lock()
		s, found := c.machine.Get(key)
		if !found {
			c.mu.Unlock()
			return 0, 0, false
		}
		run, changed := s.Run, c.entries[s].changed
		c.mu.Unlock()
		switch {
		case run.Process != 0:
			return int(run.Leader), run.Attempt, true
		case run.State != StartPending || run.Phase != waitSpawn:
			return 0, 0, false
		}
		select {
		case <-changed:
		case <-deadline:
			return 0, 0, false
		}
	}
}

// belongs reports whether pid is main or one of its descendants: in the session that smss made main the leader of, or below it. main
// is not reaped yet, so neither its pid nor its session's number can be another's.
func belongs(pid, main int) bool {
	if pid == main {
		return true
	}
	if session, err := notify.Session(pid); err == nil && session == main {
		return true
	}
	for range 64 {
		p, err := pidfd.Open(pid)
		if err != nil {
			return false
		}
		parent, err := pidfd.Parent(p)
		alive := pidfd.Alive(p)
		p.Close()
		if err != nil || !alive || parent <= 1 {
			return false
		}
		if pid = parent; pid == main {
			return true
		}
	}
	return false
}
