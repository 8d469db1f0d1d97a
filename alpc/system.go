package alpc

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"sallyport/internal/control"
	"sallyport/internal/instance"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// Options say which core to attach to.
type Options struct {
	// Path of the core's socket; empty: $SALLYPORT_CORE, then the default instance of this user.
	Path string
	// Control is one end of a control connection that a core embedded in this program gave (core.Attach). Attach takes it over.
	Control *os.File
	// Logger gets what an operator would act on; nil is silent.
	Logger hclog.Logger
}

// System is one attachment to a core: the unit of identity, accounting and death. It is safe for concurrent use. All
// that it made (ports, connections, tokens held) ends with it.
type System struct {
	conn  *unixsock.Conn
	log   hclog.Logger
	id    uint64
	self  atomic.Pointer[security.Token]
	path  string
	done  chan struct{}
	wants chan string          // Activations
	child chan UnassignedChild // UnassignedChildren

	mu        sync.Mutex
	last      uint64
	calls     map[uint64]*coreCall
	listeners map[uint64]*Listener
	ports     map[uint64]*Port // open connections by the core's number
	err       error
	closed    bool
}

// UnassignedChild is a child of this process that attached and has no token yet: a spawner assigns one, or disowns it.
type UnassignedChild struct {
	PID   int
	PIDFD *os.File // the receiver closes it
}

// coreCall is one request to the core. take runs on the receiving goroutine, so that what comes after the reply finds
// what the reply made; it owns the files.
type coreCall struct {
	take      func(*corepb.Reply, []*os.File) error
	done      chan struct{}
	body      *corepb.Reply
	err       error
	lost      func() // undoes what take made; called if the caller has gone
	abandoned bool
}

// Attach connects to a core and learns who the core says this process is. A core that is not there is ObjectNameNotFound or
// PortConnectionRefused at once; one with too many callers at its door is waited for under ctx.
func Attach(ctx context.Context, o Options) (*System, error) {
	const op = "alpc.Attach"
	conn, path, err := dialCore(o)
	for errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil { // a socket that doesn't block can't wait in the kernel's queue
		time.Sleep(time.Millisecond)
		conn, path, err = dialCore(o)
	}
	if err != nil {
		return nil, ntstatus.Wrap(op, path, err)
	}
	s := &System{
		conn: conn, log: o.Logger, path: path, done: make(chan struct{}), wants: make(chan string, 256), child: make(chan UnassignedChild, 64),
		calls: map[uint64]*coreCall{}, listeners: map[uint64]*Listener{}, ports: map[uint64]*Port{},
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	go s.receive()
	reply, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Hello{Hello: &corepb.Hello{Version: 1}}})
	if err != nil {
		s.Close()
		return nil, err
	}
	s.id = reply.GetHello().GetAttachment()
	self, err := control.TokenFromWire(reply.GetHello().GetIdentity().GetToken())
	if err != nil {
		s.Close()
		return nil, ntstatus.Errorf(op, path, ntstatus.RPCProtocolError, "the core's hello: %v", err)
	}
	s.self.CompareAndSwap(nil, self) // it may have been adjusted since
	return s, nil
}

func dialCore(o Options) (*unixsock.Conn, string, error) {
	if o.Control != nil {
		conn, err := unixsock.FromFile(o.Control)
		return conn, "", err
	}
	path := o.Path
	if path == "" {
		path = os.Getenv("SALLYPORT_CORE")
	}
	if path == "" {
		in, err := instance.Locate(instance.Options{})
		if err != nil {
			return nil, "", err
		}
		path = in.Socket()
		if err := in.Verify(); err != nil {
			return nil, path, err
		}
	}
	conn, err := unixsock.Dial(path)
	if err != nil {
		return nil, path, err
	}
	// Whoever listens there must be this user or root: another user's core would make up every identity.
	cred, err := conn.PeerCred()
	if err == nil && cred.UID != 0 && int(cred.UID) != os.Geteuid() {
		err = ntstatus.Errorf("alpc.Attach", path, ntstatus.ServerSIDMismatch, "the core runs as uid %d; only one of this user or root is trusted", cred.UID)
	}
	if err != nil {
		conn.Close()
		return nil, path, err
	}
	return conn, path, nil
}

// ID is the core's number of this attachment.
func (s *System) ID() uint64 { return s.id }

// Token is who the core says this process is: a snapshot, which an adjustment replaces before who adjusted is answered.
func (s *System) Token() *security.Token { return s.self.Load() }

// Path is the core's socket; empty for a core in this program.
func (s *System) Path() string { return s.path }

// Done is closed when the attachment has ended.
func (s *System) Done() <-chan struct{} { return s.done }

// Err says why the attachment ended; nil while it lasts and after Close.
func (s *System) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.err
}

// Activations has the names of ports that this attachment declared, that a client waits for and that have no server.
func (s *System) Activations() <-chan string { return s.wants }

// UnassignedChildren has, for a registered spawner, children that attached without a token.
func (s *System) UnassignedChildren() <-chan UnassignedChild { return s.child }

// Close detaches: ports, connections and tokens of this attachment end. It waits until they have.
func (s *System) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.conn.Shutdown()
	<-s.done
	return nil
}

// ask sends a request without descriptors and waits for the reply.
func (s *System) ask(ctx context.Context, request *corepb.ToCore) (*corepb.Reply, error) {
	return s.do(ctx, request, nil, &coreCall{})
}

// do sends a request and waits for the reply. Files stay the caller's.
func (s *System) do(ctx context.Context, request *corepb.ToCore, files []*os.File, call *coreCall) (*corepb.Reply, error) {
	call.done = make(chan struct{})
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return nil, s.err
	}
	s.last++
	request.Id = s.last
	s.calls[request.Id] = call
	s.mu.Unlock()
	frame, err := proto.Marshal(request)
	if err == nil && len(frame) > control.MaxFrame {
		err = ntstatus.Errorf("alpc.Request", "", ntstatus.PortMessageTooLong, "the request has %d bytes, at most %d are allowed", len(frame), control.MaxFrame)
	}
	if err == nil {
		err = unixsock.WithFDs(files, func(fds []int) error { return s.conn.Send(frame, fds) })
	}
	if err != nil {
		s.mu.Lock()
		delete(s.calls, request.Id)
		s.mu.Unlock()
		return nil, ntstatus.Wrap("alpc.Request", s.path, err)
	}
	select {
	case <-call.done:
		return call.body, call.err
	case <-ctx.Done():
	}
	// The reply may come all the same: then what it made is undone.
	s.mu.Lock()
	_, open := s.calls[request.Id]
	call.abandoned = open
	s.mu.Unlock()
	if !open {
		<-call.done
		return call.body, call.err
	}
	if request.GetConnect() != nil {
		cancel, _ := proto.Marshal(&corepb.ToCore{Request: &corepb.ToCore_CancelConnect{CancelConnect: &corepb.CancelConnect{Request: request.Id}}})
		s.conn.TrySend(cancel, nil)
	}
	return nil, ntstatus.Wrap("alpc.Request", "", ctx.Err())
}

// receive is the attachment's only reader.
func (s *System) receive() {
	buf := make([]byte, control.MaxFrame)
	var err error
	for {
		var n int
		var fds []int
		n, fds, _, err = s.conn.Recv(buf)
		if err != nil || n == 0 {
			break
		}
		files := make([]*os.File, len(fds))
		for i, fd := range fds {
			files[i] = os.NewFile(uintptr(fd), "core")
		}
		frame := &corepb.FromCore{}
		if err = proto.Unmarshal(buf[:n], frame); err != nil {
			closeFiles(files)
			break
		}
		if r := frame.GetReply(); r != nil {
			s.replied(r, files)
		} else {
			s.noticed(frame.GetNotice(), files)
		}
	}
	s.end(err)
}

func (s *System) replied(r *corepb.Reply, files []*os.File) {
	s.mu.Lock()
	call := s.calls[r.GetId()]
	delete(s.calls, r.GetId())
	abandoned := call != nil && call.abandoned
	s.mu.Unlock()
	if call == nil {
		closeFiles(files)
		return
	}
	call.body, call.err = r, failure(r.GetFailure())
	if call.err == nil && call.take != nil {
		call.err = call.take(r, files)
	} else {
		closeFiles(files)
	}
	if abandoned && call.err == nil && call.lost != nil {
		call.lost()
	}
	close(call.done)
}

func (s *System) noticed(n *corepb.Notice, files []*os.File) {
	switch b := n.GetBody().(type) {
	case *corepb.Notice_ConnectRequest:
		s.mu.Lock()
		l := s.listeners[b.ConnectRequest.GetPort()]
		s.mu.Unlock()
		if l == nil {
			closeFiles(files)
			return
		}
		l.requested(b.ConnectRequest, files)
		return
	case *corepb.Notice_ConnectCancelled:
		s.mu.Lock()
		listeners := make([]*Listener, 0, len(s.listeners))
		for _, l := range s.listeners {
			listeners = append(listeners, l)
		}
		s.mu.Unlock()
		for _, l := range listeners {
			l.withdrawn(b.ConnectCancelled.GetConnection())
		}
	case *corepb.Notice_ConnectionClosed:
		s.mu.Lock()
		p := s.ports[b.ConnectionClosed.GetConnection()]
		s.mu.Unlock()
		if p != nil {
			p.ch.Hangup()
		}
	case *corepb.Notice_SectionOffered:
		s.mu.Lock()
		p := s.ports[b.SectionOffered.GetConnection()]
		s.mu.Unlock()
		if p != nil && len(files) == 1 {
			p.attachSection(files[0])
			return
		}
	case *corepb.Notice_Activation:
		select {
		case s.wants <- b.Activation.GetName():
		default:
			s.log.Error("an activation was dropped: nobody reads Activations", "port", b.Activation.GetName())
		}
	case *corepb.Notice_SenderChanged:
		s.senderChanged(b.SenderChanged)
	case *corepb.Notice_TokenChanged:
		if token, err := control.TokenFromWire(b.TokenChanged); err == nil {
			s.self.Store(token)
		}
	case *corepb.Notice_UnassignedChild:
		if len(files) == 1 {
			select {
			case s.child <- UnassignedChild{PID: int(b.UnassignedChild.GetPid()), PIDFD: files[0]}:
				return
			default: // the child is refused when its time is over
			}
		}
	}
	closeFiles(files)
}

// end wakes everybody who waits: the core has gone, or Close was called.
func (s *System) end(err error) {
	if err == nil {
		err = errors.New("the core closed the connection")
	}
	s.mu.Lock()
	s.err = ntstatus.Errorf("alpc.System", s.path, ntstatus.PortDisconnected, "the core has gone: %v", err)
	calls, listeners, ports := s.calls, s.listeners, s.ports
	s.calls, s.listeners, s.ports = nil, map[uint64]*Listener{}, map[uint64]*Port{}
	closed := s.closed
	s.mu.Unlock()
	for _, c := range calls {
		c.err = s.err
		close(c.done)
	}
	for _, l := range listeners {
		l.end(s.err)
	}
	if closed { // else calls in flight may still come to their end without the core
		for _, p := range ports {
			p.Close()
		}
	}
	s.conn.Close()
	for len(s.child) > 0 {
		c := <-s.child
		c.PIDFD.Close()
	}
	close(s.done)
}

// failure is the error that the core answered with; nil for none.
func failure(f *corepb.Failure) error {
	if f == nil {
		return nil
	}
	e := &ntstatus.Error{Op: f.GetOp(), Object: f.GetObject(), Status: ntstatus.Status(f.GetStatus())}
	switch {
	case f.GetRight() != "":
		e.Err = &ntstatus.Denial{Object: f.GetObject(), Right: f.GetRight(), Decision: f.GetDecision()}
	case len(f.GetData()) > 0:
		e.Err = &Refusal{Data: f.GetData()}
	case f.GetText() != "":
		e.Err = errors.New(f.GetText())
	}
	return e
}

// Refusal is the cause of a connect that its server refused with data.
type Refusal struct{ Data []byte }

// Error says that the server said no; what Data means is the server's business.
func (r *Refusal) Error() string { return "the server said no" }

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// clientOf reads what the core says of the other side. It takes the pidfd over.
func clientOf(i *corepb.Identity, connection uint64, level security.ImpersonationLevel, process *os.File) (*Client, error) {
	token, err := control.TokenFromWire(i.GetToken())
	if err != nil {
		return nil, err
	}
	pid := int(i.GetPid())
	if own, err := pidfd.PID(process); err == nil {
		pid = own // in this process's pid namespace, which is what the kernel attaches to messages
	}
	return &Client{
		Attachment: i.GetAttachment(), Connection: connection, PID: pid, PIDFD: process, Token: token, Level: level,
		Source: IdentitySource(i.GetSource()), Evidence: i.GetEvidence(), SessionID: token.SessionID,
	}, nil
}
