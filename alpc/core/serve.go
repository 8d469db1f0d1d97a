package core

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"sallyport/internal/channel"
	"sallyport/internal/control"
	"sallyport/internal/kernel"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

const (
	helloTime      = 5 * time.Second
	maxOutgoing    = 1024
	maxRequestFDs  = 4
	eventBacklog   = 64
	auditPerSecond = 20
)

// Options say what core to start.
type Options struct {
	// Path is where the control socket is bound. Empty: nobody attaches but by Attach.
	Path string
	// Logger gets what an operator would act on, and the audit log ("audit"); nil is silent.
	Logger hclog.Logger
	// Limits per uid; zero means DefaultLimits.
	Limits Limits
	// Process says that this process is the core's own (cmd/sallyport core), a child subreaper: its children wait to be
	// assigned and its orphans have left their session. A program that embeds a core leaves it false.
	Process bool
}

// Core is a running core. Its methods are safe for concurrent use.
type Core struct {
	options  Options
	log      hclog.Logger
	machine  *Machine // touched by run only, after Start
	events   chan func() Event
	listener *unixsock.Listener

	lastID    atomic.Uint64
	strangers strangers
	files     fileTable
	slabs     slabTable
	links     map[uint64]*link // touched by run only
	audited   struct {
		second  int64
		n       int
		dropped int
	}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{}
}

// Start starts a core. The caller ends it with Close.
func Start(o Options) (*Core, error) {
	if err := kernelFloor(); err != nil {
		return nil, err
	}
	c := &Core{options: o, log: o.Logger, events: make(chan func() Event, eventBacklog), links: map[uint64]*link{}, done: make(chan struct{})}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if o.Limits == (Limits{}) {
		// An attachment costs the core three descriptors; a quarter of what it may have is one user's, with room to spare.
		o.Limits = DefaultLimits()
		o.Limits.Attachments = min(o.Limits.Attachments, kernel.OpenFiles()/12)
	}
	setup := Setup{
		System: os.Geteuid() == 0, Owner: uint32(os.Geteuid()), Limits: o.Limits, SectionBytes: channel.SectionSize, Counters: c.slabs.read,
	}
	if o.Process {
		self, err := pidfd.Self()
		if err != nil {
			return nil, ntstatus.Wrap("core.Start", o.Path, err)
		}
		setup.Self, err = pidfd.KeyOf(self)
		self.Close()
		if err != nil {
			return nil, ntstatus.Wrap("core.Start", o.Path, err)
		}
	}
	c.machine = NewMachine(setup)
	if o.Path != "" {
		l, err := unixsock.Listen(o.Path)
		if err != nil {
			return nil, ntstatus.Wrap("core.Start", o.Path, err)
		}
		if err := os.Chmod(o.Path, 0o666); err != nil { // who may do what is the namespace's business
			l.Close()
			return nil, ntstatus.Wrap("core.Start", o.Path, err)
		}
		c.listener = l
		c.wg.Go(c.acceptLoop)
	}
	go c.run()
	return c, nil
}

// Path is where the control socket is bound.
func (c *Core) Path() string { return c.options.Path }

// Close ends the core: every attachment is cut. It waits until nothing of it is left.
func (c *Core) Close() error {
	c.cancel()
	if c.listener != nil {
		c.listener.Close()
		os.Remove(c.options.Path)
	}
	<-c.done
	return nil
}

// Attach attaches a part of the embedding program, with a token that the program states, and returns its end of the
// control connection, which alpc.Options.Control takes. Closing that end simulates the death of a process.
func (c *Core) Attach(token *security.Token, program string) (*os.File, error) {
	fds, err := unixsock.PairFDs()
	if err != nil {
		return nil, ntstatus.Wrap("core.Attach", program, err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "core")
	ours, err := unixsock.NewConn(fds[0])
	if err != nil {
		theirs.Close()
		return nil, ntstatus.Wrap("core.Attach", program, err)
	}
	c.wg.Go(func() { c.serveLink(ours, token, program) })
	return theirs, nil
}

// SystemToken is LocalSystem's token as this core makes it: what an embedding program states for its trusted parts.
func SystemToken() *security.Token { return systemToken(uint32(os.Geteuid())) }

// UserToken is the token that the kernel's credentials of a uid make, outside any session.
func UserToken(uid, gid uint32) *security.Token {
	return credentialsToken(Setup{System: os.Geteuid() == 0, Owner: uint32(os.Geteuid())}, uid, gid, nil)
}

// Launch tells the core that its own program started a process, by pidfd, that is to be LocalSystem. It takes the file over.
func (c *Core) Launch(process *os.File) error {
	key, uid, err := identify(process)
	if err != nil {
		process.Close()
		return ntstatus.Wrap("core.Launch", "", err)
	}
	c.post(func() Event { return Launched{UID: uid, Process: key, PIDFD: c.files.add(process)} })
	return nil
}

func (c *Core) post(make func() Event) bool {
	select {
	case c.events <- make:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// run is the machine's goroutine.
func (c *Core) run() {
	timer := time.NewTimer(time.Hour)
	for c.ctx.Err() == nil {
		var event Event
		select {
		case make := <-c.events:
			event = make()
		case <-timer.C:
			event = Tick{}
		case <-c.ctx.Done():
			continue
		}
		for _, effect := range c.machine.Step(time.Now(), event) {
			c.do(effect)
		}
		if next := c.machine.Deadline(); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(next), 0))
		}
	}
	timer.Stop()
	for _, l := range c.links {
		l.close()
	}
	waited := make(chan struct{})
	go func() { c.wg.Wait(); close(waited) }()
	for { // readers may still post: take and forget, so that nobody waits for ever
		select {
		case make := <-c.events:
			if r, ok := make().(Requested); ok {
				c.machine.closeAll(r.FDs)
			}
			continue
		case <-waited:
		}
		break
	}
	c.files.closeAll()
	close(c.done)
}

func (c *Core) acceptLoop() {
	for {
		conn, err := c.listener.Accept()
		switch {
		case errors.Is(err, os.ErrClosed), c.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil:
			c.log.Error("control socket: accept failed; is RLIMIT_NOFILE reached?", "error", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of descriptors: the listener stays readable
			case <-c.ctx.Done():
			}
			continue
		}
		stranger := c.strangers.enter(conn)
		c.wg.Go(func() {
			known := sync.OnceFunc(func() { c.strangers.leave(stranger) })
			defer known()
			c.serveSocket(conn, known)
		})
	}
}

// serveSocket proves who is at the other end of a socket connection, once it has said hello, and serves it.
func (c *Core) serveSocket(conn *unixsock.Conn, known func()) {
	conn.SetReadDeadline(time.Now().Add(helloTime))
	hello, ok := c.receiveHello(conn)
	if !ok {
		conn.Close()
		return
	}
	conn.SetReadDeadline(time.Time{})
	peer, err := askKernel(conn)
	if err != nil {
		c.log.Warn("attach refused: the kernel does not say who it is", "error", err)
		conn.Close()
		return
	}
	known()
	l := &link{id: c.lastID.Add(1), conn: conn, pid: peer.PID, core: c}
	c.serve(l, peer.pidfile, func(pidfd FD) Event {
		e := peer.Attaching
		e.ID, e.PIDFD, e.Hello = l.id, pidfd, hello
		return e
	})
}

// serveLink serves a part of the embedding program.
func (c *Core) serveLink(conn *unixsock.Conn, token *security.Token, program string) {
	self, err := pidfd.Self()
	if err != nil {
		conn.Close()
		return
	}
	hello, ok := c.receiveHello(conn)
	if !ok {
		conn.Close()
		self.Close()
		return
	}
	l := &link{id: c.lastID.Add(1), conn: conn, pid: os.Getpid(), core: c}
	c.serve(l, self, func(pidfd FD) Event {
		return Stated{ID: l.id, PID: int32(os.Getpid()), UID: uint32(os.Geteuid()), PIDFD: pidfd, Token: token, Program: program, Hello: hello}
	})
}

func (c *Core) receiveHello(conn *unixsock.Conn) (*corepb.ToCore, bool) {
	stop := context.AfterFunc(c.ctx, func() { conn.Shutdown() })
	defer stop()
	buf := make([]byte, 4096)
	n, fds, _, err := conn.Recv(buf)
	unixsock.CloseFDs(fds)
	hello := &corepb.ToCore{}
	if err != nil || n == 0 || proto.Unmarshal(buf[:n], hello) != nil || hello.GetHello() == nil {
		return nil, false
	}
	return hello, true
}

// serve posts the attach and then every request, until the socket ends or the process dies.
func (c *Core) serve(l *link, pidfile *os.File, attach func(FD) Event) {
	watch := pidfile
	if l.pid == os.Getpid() {
		watch = nil // our own death needs no watching
	} else if dup, err := unixsock.Dup(pidfile); err == nil {
		watch = dup
	}
	ended, end := context.WithCancel(c.ctx)
	defer end()
	if watch != nil {
		c.wg.Go(func() {
			defer watch.Close()
			if pidfd.Wait(ended, watch) == nil {
				l.conn.Shutdown() // an heir of the descriptor must not live on in its name
			}
		})
	}
	if !c.post(func() Event { c.links[l.id] = l; return attach(c.files.add(pidfile)) }) {
		pidfile.Close()
		l.close()
		return
	}
	buf := make([]byte, control.MaxFrame)
	for {
		n, fds, cred, err := l.conn.Recv(buf)
		if err == nil && n > 0 && (cred.PID != l.pid || len(fds) > maxRequestFDs) {
			unixsock.CloseFDs(fds)
			c.log.Warn("attachment cut: a message came from another process, or with too many descriptors", "attachment", l.id, "pid", l.pid, "sender", cred.PID, "descriptors", len(fds))
			break
		}
		if err == nil && watch != nil && !pidfd.Alive(pidfile) {
			// Its pid may be another's by now, and that one may have inherited the socket.
			unixsock.CloseFDs(fds)
			break
		}
		message := &corepb.ToCore{}
		if err != nil || n == 0 || proto.Unmarshal(buf[:n], message) != nil {
			unixsock.CloseFDs(fds)
			break
		}
		e := Requested{ID: l.id, Message: message, Keys: make([]ProcessKey, len(fds)), UIDs: make([]uint32, len(fds))}
		files := make([]*os.File, len(fds))
		for i, fd := range fds {
			files[i] = os.NewFile(uintptr(fd), "request")
			e.Keys[i], e.UIDs[i], _ = identify(files[i]) // not a living process: the zero key, which the machine refuses
		}
		if !c.post(func() Event {
			for _, f := range files {
				e.FDs = append(e.FDs, c.files.add(f))
			}
			return e
		}) {
			for _, f := range files {
				f.Close()
			}
			break
		}
	}
	if !c.post(func() Event { delete(c.links, l.id); l.close(); return Detached{l.id} }) {
		l.close()
	}
}
