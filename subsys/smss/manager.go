// Package smss is the session manager: the first process that the core starts, and the only one that forks.
//
// It boots the servers of session 0 on ports that it declared for them, so that they need no order; watches them by pidfd, starts
// them again within a budget and stops everything in order when it is spent; makes and ends interactive sessions; and forks
// for the other servers, keeping for them what must outlive them: processes, exit codes, log pipes, terminals (keeper.go).
//
// It trusts the core. It trusts no server with more than its own: which server a caller is, it proves by the token that it made
// for that one process (service.go, owner). Servers trust it with everything that they leave here. What is decided, the machine
// decides (machine.go), one event after the other and without any I/O; manager.go does the I/O.
//
// Lock order: keeper.forks, then manager.mu, then keeper.mu. None is held while a process or the core is waited for, but for
// keeper.forks, which is held for a fork and for the disowning of an orphan.
package smss

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/alpc"
	"sallyport/internal/fdkeep"
	"sallyport/internal/pidfd"
	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/proto/smpb"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

// How long things that must not hang may take.
const (
	coreTimeout     = 5 * time.Second // one request to the core
	lostCoreGrace   = 5 * time.Second // the whole stop, once the core is gone
	endedRemembered = 64              // ended sessions that WatchState can still tell of
)

// Options say what smss runs with.
type Options struct {
	Config *Config
	// System must be LocalSystem's, with every privilege: the core gives it to the process that it starts.
	System *alpc.System
	// Executable starts a server of the program itself: the name is appended. Empty: /proc/self/exe server.
	Executable []string
	// Environment is added to that of every server ("KEY=value").
	Environment []string
	StateDir    string // each server gets a directory of its name below it
	RuntimeDir  string // likewise
	Core        string // the core's socket, for SALLYPORT_CORE
	// Output is the servers' standard output and error; nil: /dev/null.
	Output *os.File
	Logger hclog.Logger
	// Hosted names servers of session 0 that the program which embeds the core runs itself (subsys.Host), under ServerToken.
	// smss declares their ports and keeps for them, and leaves their lives alone.
	Hosted []string
	// Process: smss has the process to itself. It then adopts and ends orphans, which an embedding program must never do.
	Process bool
	// Booted, if any, is called once, when session 0 is up.
	Booted func()
}

// Run boots the set and serves until it has stopped: nil after Shutdown or the end of ctx, an error when it stopped because
// something critical failed or the core went. Whatever it started is gone when it returns.
func Run(ctx context.Context, o Options) error {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if len(o.Executable) == 0 {
		o.Executable = []string{"/proc/self/exe", "server"}
	}
	m := &manager{
		o: o, log: o.Logger, keep: newKeeper(), machine: newMachine(), root: os.Geteuid() == 0, wake: make(chan struct{}, 1),
		instances: map[string]*instance{}, sessions: map[uint32]*sessionInfo{}, changed: make(chan struct{}),
	}
	return m.run(ctx)
}

// manager is the shell around the machine: it does the I/O.
//
// One goroutine (loop) owns machine. mu guards what calls read: instances, sessions, reason; it is a leaf.
type manager struct {
	o    Options
	log  hclog.Logger
	keep *keeper
	root bool // runs as root, so that children change their user

	queue struct {
		sync.Mutex
		events []event
	}
	wake    chan struct{} // capacity 1
	machine *machine      // loop only

	mu        sync.Mutex
	instances map[string]*instance
	sessions  map[uint32]*sessionInfo
	lastID    uint32
	reason    string // why all of it stops
	sequence  uint64
	changed   chan struct{} // closed and renewed at each change
}

// instance is a server as calls see it. Its configuration never changes.
type instance struct {
	name    string // "csrss@3"
	base    string // "csrss"
	config  *ServerConfig
	session uint32
	ports   []string
	hosted  bool

	proc  *spawn.Process // nil: no process
	token security.LUID
	key   pidfd.Key
	view  *smpb.Server // replaced, never written
	seq   uint64
}

// sessionInfo is a session as calls see it.
type sessionInfo struct {
	id       uint32
	creator  security.SID
	created  time.Time
	state    sessionState
	reason   string
	terminal fdkeep.Kept
	term     string
	names    []string      // of the namespace, in the order in which they were made
	up, over chan struct{} // closed when it is active; when it has ended
	seq      uint64
}

// post hands an event to the loop. It never blocks.
func (m *manager) post(e event) {
	m.queue.Lock()
	m.queue.events = append(m.queue.events, e)
	m.queue.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *manager) take() []event {
	m.queue.Lock()
	defer m.queue.Unlock()
	events := m.queue.events
	m.queue.events = nil
	return events
}

func (m *manager) run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if m.o.Process {
		if err := spawn.CloseOnExec(); err != nil {
			return ntstatus.Wrap("smss.Run", "", err)
		}
		if err := spawn.BecomeSubreaper(); err != nil {
			return ntstatus.Wrap("smss.Run", "", err)
		}
	}
	if err := m.prepare(work); err != nil {
		return err
	}
	serving, err := m.serve(work)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { m.watchCore(work, ctx) })
	if m.o.Process {
		group.Go(func() { m.reapOrphans(work) })
	}
	m.post(openSession{session: 0, servers: m.specs(0)})
	code := m.loop()
	serving()
	if code != 0 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return ntstatus.Errorf("smss.Run", "", ntstatus.Unsuccessful, "stopped: %s", m.reason)
	}
	return nil
}

// prepare makes the names of session 0.
func (m *manager) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, coreTimeout)
	defer cancel()
	if err := m.o.System.RegisterSpawner(ctx); err != nil {
		return err
	}
	zero := &sessionInfo{creator: security.LocalSystem(), created: time.Now(), state: sessionStarting, up: make(chan struct{}), over: make(chan struct{})}
	m.sessions[0] = zero
	m.addInstances(0, m.o.Config.Servers)
	return m.makeNames(ctx, zero, m.o.Config.Directories)
}

// addInstances fills in the servers of a session.
func (m *manager) addInstances(session uint32, servers map[string]*ServerConfig) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for base, c := range servers {
		if c.Disabled {
			continue
		}
		in := &instance{name: instanceName(base, session), base: base, config: c, session: session, hosted: session == 0 && slices.Contains(m.o.Hosted, base)}
		for port := range c.Ports {
			in.ports = append(in.ports, inSession(port, session))
		}
		slices.Sort(in.ports)
		in.view = &smpb.Server{Name: in.name, Session: session, State: smpb.ServerState_SERVER_STATE_WAITING, Ports: in.ports,
			User: c.User.SID.String(), SinceUnixNs: time.Now().UnixNano()}
		m.instances[in.name] = in
	}
}

func instanceName(base string, session uint32) string {
	if session == 0 {
		return base
	}
	return fmt.Sprintf("%s@%d", base, session)
}

func inSession(name string, session uint32) string {
	return strings.ReplaceAll(name, sessionMark, fmt.Sprint(session))
}

// makeNames makes a session's directories, outermost first, and declares the ports of its servers.
func (m *manager) makeNames(ctx context.Context, s *sessionInfo, dirs map[string]*DirectoryConfig) error {
	names := make([]string, 0, len(dirs))
	for name := range dirs {
		names = append(names, name)
	}
	slices.Sort(names) // a directory sorts before what is in it
	for _, name := range names {
		full := inSession(name, s.id)
		err := m.o.System.CreateDirectory(ctx, full, dirs[name].Descriptor.text)
		if s.id == 0 && ntstatus.Of(err) == ntstatus.ObjectNameCollision {
			continue // a program that embeds the core made it, with a descriptor of its own
		}
		if err != nil {
			return err
		}
		s.names = append(s.names, full)
	}
	for _, in := range m.inSessionOrder(s.id) {
		for port, c := range in.config.Ports {
			full := inSession(port, s.id)
			attributes := alpc.PortAttributes{SecurityDescriptor: c.Descriptor.text, HandleTypes: alpc.HandleAny}
			if err := m.o.System.Declare(ctx, full, attributes, sm.ServerSID(in.name)); err != nil {
				return err
			}
			s.names = append(s.names, full)
		}
	}
	return nil
}

// removeNames undoes makeNames. A name that stays is somebody else's object: it is reported, not fought over.
func (m *manager) removeNames(s *sessionInfo) {
	ctx, cancel := context.WithTimeout(context.Background(), coreTimeout)
	defer cancel()
	for _, name := range slices.Backward(s.names) {
		if err := m.o.System.Remove(ctx, name); err != nil && m.o.System.Err() == nil {
			m.log.Warn("a name of an ended session could not be removed", "name", name, "error", err)
		}
	}
}

// inSessionOrder is a session's servers in the order in which they start.
func (m *manager) inSessionOrder(session uint32) (out []*instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, in := range m.instances {
		if in.session == session {
			out = append(out, in)
		}
	}
	slices.SortFunc(out, func(a, b *instance) int {
		if a.config.Order != b.config.Order {
			return a.config.Order - b.config.Order
		}
		return strings.Compare(a.base, b.base)
	})
	return out
}

// specs is what the machine must know of a session's servers.
func (m *manager) specs(session uint32) (out []serverSpec) {
	for _, in := range m.inSessionOrder(session) {
		if !in.hosted {
			out = append(out, specOf(in.name, in.config))
		}
	}
	return out
}

func specOf(name string, c *ServerConfig) serverSpec {
	return serverSpec{
		name: name, onDemand: bool(c.Start), reportsReady: !bool(c.Ready), critical: c.Critical, restart: restartPolicy(c.Restart),
		limit: int(c.Restarts), within: time.Duration(c.Within), backoff: time.Duration(c.Backoff), backoffMax: time.Duration(c.BackoffMax),
		readyTimeout: time.Duration(c.ReadyTimeout), stopTimeout: time.Duration(c.StopTimeout),
	}
}

// watchCore reports what comes from the core, and the end of ctx, which asks for an orderly stop.
func (m *manager) watchCore(work, ctx context.Context) {
	stop, sys := ctx.Done(), m.o.System
	lost := sys.Done()
	for {
		select {
		case <-work.Done():
			return
		case <-stop:
			stop = nil
			m.post(shutdown{reason: "told to stop", grace: time.Duration(m.o.Config.ShutdownGrace)})
		case <-lost:
			lost = nil
			m.post(shutdown{reason: "the core is gone", code: 1, grace: lostCoreGrace})
		case port := <-sys.Activations():
			m.mu.Lock()
			for _, in := range m.instances {
				if slices.ContainsFunc(in.ports, func(p string) bool { return strings.EqualFold(p, port) }) {
					m.post(wanted{in.name})
				}
			}
			m.mu.Unlock()
		case child := <-sys.UnassignedChildren():
			// A child of ours is assigned by whoever forked it. Any other is an orphan that we adopted: its rights are
			// not ours to give, and the core's own rules for those who detach hold.
			m.keep.orphans(func(known func(int) bool) {
				if known(child.PID) {
					return
				}
				wait, cancel := context.WithTimeout(work, coreTimeout)
				defer cancel()
				if err := sys.Disown(wait, child.PIDFD); err != nil {
					m.log.Warn("an orphan could not be disowned", "pid", child.PID, "error", err)
				}
			})
			child.PIDFD.Close()
		}
	}
}

// reapOrphans reaps adopted orphans as they end, and nobody else's children.
func (m *manager) reapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		m.keep.orphans(func(known func(int) bool) {
			if _, err := spawn.ReapOrphans(known); err != nil {
				m.log.Warn("the list of children could not be read", "error", err)
			}
		})
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
	}
}

// loop runs the machine until it has finished.
func (m *manager) loop() int {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		events := m.take()
		if len(events) == 0 {
			if at := m.machine.next(); at.IsZero() {
				timer.Stop()
			} else {
				timer.Reset(time.Until(at))
			}
			select {
			case <-m.wake:
				continue
			case <-timer.C:
				events = []event{tick{}}
			}
		}
		for _, e := range events {
			for _, effect := range m.machine.Step(time.Now(), e) {
				if f, ok := effect.(finished); ok {
					return f.code
				}
				m.do(effect)
			}
		}
	}
}

// do carries out one effect.
func (m *manager) do(e effect) {
	switch e := e.(type) {
	case startProcess:
		if err := m.startServer(e.server); err != nil {
			m.post(processEnded{server: e.server, how: "could not be started: " + err.Error()})
		}
	case sendSignal:
		m.mu.Lock()
		var proc *spawn.Process
		if in := m.instances[e.server]; in != nil {
			proc = in.proc
		}
		m.mu.Unlock()
		if proc != nil {
			proc.Signal(e.signal, false)
		}
	case endOwned:
		go func() {
			m.keep.endOwner(e.server, e.grace)
			m.post(ownedGone{e.server})
		}()
	case endSession:
		go m.clearSession(e.session)
	case serverChanged:
		m.serverChanged(m.machine.servers[e.server])
	case sessionChanged:
		m.sessionChanged(e)
	}
}

// startServer forks a server and gives it its token. That it has started is posted before it can say anything itself.
func (m *manager) startServer(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), coreTimeout)
	defer cancel()
	m.mu.Lock()
	in := m.instances[name]
	s := m.sessions[in.session]
	m.mu.Unlock()

	uid := uint32(os.Geteuid())
	if m.root && m.o.Config.UIDBase != 0 {
		uid = m.o.Config.UIDBase + uint32(in.config.UID)
	}
	wanted := serverToken(in.name, in.config, in.session, uid)
	user, err := m.childUser("smss.Start", in.name, wanted)
	if err != nil {
		return err
	}
	state, runtime, err := m.directories(in, user)
	if err != nil {
		return err
	}
	p := spawn.Program{Terminal: -1, User: user, Dir: "/", NoNewPrivileges: true, Files: []*os.File{nil, m.o.Output, m.o.Output}}
	if command := in.config.Command; len(command) > 0 {
		p.Path, p.Args = command[0], command
	} else {
		p.Path = m.o.Executable[0]
		p.Args = append(append([]string{"sallyport"}, m.o.Executable[1:]...), in.base)
	}
	p.Args = append(slices.Clone(p.Args), in.config.Args...)
	if in.config.Terminal {
		if terminal, err := s.terminal.File(); err == nil {
			defer terminal.Close()
			p.Files = []*os.File{terminal, terminal, terminal}
		}
	}
	p.Env = m.environment(in, s, state, runtime)
	token, err := m.o.System.CreateToken(ctx, wanted)
	if err != nil {
		return err
	}
	defer m.o.System.CloseToken(context.WithoutCancel(ctx), token.TokenID)
	proc, err := m.keep.fork(p)
	if err != nil {
		if user != nil && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL)) {
			err = fmt.Errorf("%w: this root may not become uid %d; uid_base = 0 in the configuration runs servers as root itself", err, user.UID)
		}
		return err
	}
	key, err := pidfd.KeyOf(proc.PIDFD())
	// The identity is noted before the server can have it, so that its first call finds it here.
	m.identify(in, proc, token.TokenID, key)
	m.post(processStarted{in.name, proc.PID()})
	if err == nil {
		err = m.o.System.AssignToken(ctx, proc.PIDFD(), token.TokenID)
	}
	if err != nil {
		m.identify(in, nil, 0, pidfd.Key{})
		m.keep.discard(proc)
		return err
	}
	go m.watchServer(in, proc)
	return nil
}

// identify notes which process, under which token, is the server.
func (m *manager) identify(in *instance, proc *spawn.Process, token security.LUID, key pidfd.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in.proc, in.token, in.key = proc, token, key
}

// watchServer reports the end of a server's process.
func (m *manager) watchServer(in *instance, proc *spawn.Process) {
	exit, err := proc.Wait(context.Background())
	how := exit.String()
	if err != nil {
		how = err.Error()
	}
	m.identify(in, nil, 0, pidfd.Key{})
	// Servers have no children of their own; what one forked all the same ends with it.
	proc.Signal(syscall.SIGKILL, true)
	m.keep.reap(proc)
	m.post(processEnded{server: in.name, how: how, clean: err == nil && exit == spawn.Exit{}})
}

// directories makes the server's own directories, and gives them to its user.
func (m *manager) directories(in *instance, user *spawn.User) (state, runtime string, err error) {
	for _, d := range []struct {
		path   *string
		parent string
		name   string
		mode   os.FileMode
	}{{&state, m.o.StateDir, in.base, 0o700}, {&runtime, m.o.RuntimeDir, in.name, 0o755}} {
		if d.parent == "" {
			continue
		}
		*d.path = filepath.Join(d.parent, d.name)
		if err := os.MkdirAll(*d.path, d.mode); err != nil {
			return "", "", err
		}
		if user == nil {
			continue
		}
		// The server must get through to its own directory, and see nothing else of its parent.
		if info, err := os.Stat(d.parent); err != nil {
			return "", "", err
		} else if err := os.Chmod(d.parent, info.Mode().Perm()|0o111); err != nil {
			return "", "", err
		}
		if err := os.Chown(*d.path, int(user.UID), int(user.GID)); err != nil {
			return "", "", err
		}
	}
	return state, runtime, nil
}

// inherited are the variables of smss's own environment that servers see too.
const inherited = "PATH LANG LC_ALL TZ TMPDIR HOME XDG_RUNTIME_DIR GODEBUG GOTRACEBACK GOMAXPROCS GOCOVERDIR SALLYPORT_LOG"

func (m *manager) environment(in *instance, s *sessionInfo, state, runtime string) []string {
	var env []string
	for name := range strings.FieldsSeq(inherited) {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	env = append(env, m.o.Environment...)
	for name, v := range in.config.Env {
		env = append(env, name+"="+v)
	}
	if s.term != "" && in.config.Terminal {
		env = append(env, "TERM="+s.term)
	}
	return append(env, "SALLYPORT_CORE="+m.o.Core, "SALLYPORT_STATE_DIR="+state, "SALLYPORT_RUNTIME_DIR="+runtime,
		fmt.Sprintf("SALLYPORT_SESSION=%d", in.session), "SALLYPORT_SERVER="+in.name)
}

// clearSession ends what is left in a session and removes its names.
func (m *manager) clearSession(id uint32) {
	m.mu.Lock()
	s := m.sessions[id]
	m.mu.Unlock()
	grace := time.Second
	m.keep.endSession(id, grace)
	if m.o.Process {
		// What detached from the session was adopted by this process; it is known by its environment. Session 0 is the
		// last to go, and takes everything with it.
		ctx, cancel := context.WithTimeout(context.Background(), forceAfterKill)
		defer cancel()
		mark := fmt.Sprintf("SALLYPORT_SESSION=%d", id)
		err := m.keep.endOrphans(ctx, grace, func(pid int) bool { return id == 0 || spawn.HasEnvironment(pid, mark) })
		if err != nil {
			m.log.Error("orphans are left", "session", id, "error", err)
		}
	}
	if id != 0 {
		m.removeNames(s)
	}
	m.post(sessionEmpty{id})
}

// serverChanged publishes a server's state.
func (m *manager) serverChanged(s *server) {
	if s == nil {
		return
	}
	m.mu.Lock()
	in := m.instances[s.name]
	in.view = &smpb.Server{
		Name: s.name, State: smpb.ServerState(s.state), Session: in.session, Pid: uint32(s.pid), Restarts: s.restarts, LastEnd: s.lastEnd,
		Status: s.status, SinceUnixNs: s.since.UnixNano(), Ports: in.ports, User: in.config.User.SID.String(),
	}
	m.sequence++
	in.seq = m.sequence
	m.announce()
	m.mu.Unlock()
	log := m.log.With("server", s.name, "state", s.state.String(), "pid", s.pid)
	switch s.state {
	case failed:
		log.Error("a server has failed for good", "last_end", s.lastEnd, "restarts", s.restarts)
	case backingOff:
		log.Warn("a server ended and is started again", "last_end", s.lastEnd, "restarts", s.restarts)
	default:
		log.Info("a server changed its state", "status", s.status)
	}
}

// sessionChanged publishes a session's state and wakes who waits for it.
func (m *manager) sessionChanged(e sessionChanged) {
	m.mu.Lock()
	s := m.sessions[e.session]
	s.state, s.reason = e.state, e.reason
	m.sequence++
	s.seq = m.sequence
	switch e.state {
	case sessionActive:
		close(s.up)
	case sessionEnding:
		if e.session == 0 {
			m.reason = e.reason
		}
	case sessionEnded:
		s.terminal.Close()
		for name, in := range m.instances {
			if in.session == e.session {
				delete(m.instances, name)
			}
		}
		close(s.over)
		m.forgetOldSessions()
	}
	m.announce()
	m.mu.Unlock()
	m.log.Info("a session changed its state", "session", e.session, "state", smpb.SessionState(e.state).String(), "reason", e.reason)
	if e.session == 0 && e.state == sessionActive && m.o.Booted != nil {
		m.o.Booted()
	}
}

// forgetOldSessions keeps the list of ended sessions short; mu is held.
func (m *manager) forgetOldSessions() {
	var ended []*sessionInfo
	for _, s := range m.sessions {
		if s.state == sessionEnded {
			ended = append(ended, s)
		}
	}
	slices.SortFunc(ended, func(a, b *sessionInfo) int { return int(a.seq) - int(b.seq) })
	for _, s := range ended[:max(0, len(ended)-endedRemembered)] {
		delete(m.sessions, s.id)
	}
}

// announce wakes the watchers; mu is held.
func (m *manager) announce() {
	close(m.changed)
	m.changed = make(chan struct{})
}
