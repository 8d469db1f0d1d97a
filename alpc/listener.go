package alpc

import (
	"context"
	"os"
	"sync"
	"sync/atomic"

	"sallyport/internal/channel"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// PortAttributes describe a connection port (ALPC_PORT_ATTRIBUTES). Zero means the core's default.
type PortAttributes struct {
	// SecurityDescriptor in SDDL says who may connect (PORT_CONNECT, 0x1). It must be given, but for a port that was
	// declared, where the declaration's holds.
	SecurityDescriptor string
	MaxMessageLength   int        // bytes of one message's Data; at most MaxMessageLength
	HandleTypes        HandleType // kinds of handle that the server takes; none by default
	MaxPending         int        // calls of one connection that may await a reply
	MaxConnections     int
	// AutoAccept: the listener needs no decision of its own, so that a client gets its channel without a round trip.
	AutoAccept bool
}

func (a PortAttributes) wire() *corepb.PortAttributes {
	return &corepb.PortAttributes{
		SecurityDescriptor: a.SecurityDescriptor, MaxMessageLength: uint32(max(a.MaxMessageLength, 0)), HandleTypes: uint32(a.HandleTypes),
		MaxPending: uint32(max(a.MaxPending, 0)), MaxConnections: uint32(max(a.MaxConnections, 0)), AutoAccept: a.AutoAccept,
	}
}

// Listener is the server's side of a connection port. It is safe for concurrent use.
type Listener struct {
	system     *System
	name       string
	id         uint64
	attributes *corepb.PortAttributes
	slab       *channel.Slab
	page       *channel.Generations

	mu    sync.Mutex
	queue []*ConnectionRequest
	wake  chan struct{} // capacity 1
	err   error
}

// ConnectionRequest is a client that wants in: NT's LPC_CONNECTION_REQUEST.
type ConnectionRequest struct {
	listener *Listener
	wire     *corepb.ConnectRequest
	client   *Client
	port     *Port // automatic accept: open already
	answered atomic.Bool
}

// Listen makes a connection port, or takes over one that was declared for this process (NtAlpcCreatePort). The name's
// directory must grant DIRECTORY_CREATE_OBJECT. Statuses: AccessDenied, ObjectNameCollision, ObjectPathNotFound,
// InvalidSecurityDescr, QuotaExceeded.
func (s *System) Listen(ctx context.Context, name string, a PortAttributes) (*Listener, error) {
	l := &Listener{system: s, name: name, wake: make(chan struct{}, 1)}
	call := &coreCall{take: func(r *corepb.Reply, files []*os.File) error {
		defer closeFiles(files)
		if len(files) != 2 {
			return ntstatus.New("alpc.Listen", name, ntstatus.RPCProtocolError)
		}
		l.id, l.attributes = r.GetListen().GetPort(), r.GetListen().GetAttributes()
		var err error
		if l.slab, err = channel.MapSlab(files[0], int(l.attributes.GetMaxConnections()), true); err == nil {
			l.page, err = channel.MapGenerations(files[1], int(l.attributes.GetMaxConnections()))
		}
		if err != nil {
			return ntstatus.Wrap("alpc.Listen", name, err)
		}
		s.mu.Lock()
		s.listeners[l.id] = l
		s.mu.Unlock()
		return nil
	}}
	if _, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_Listen{Listen: &corepb.Listen{Name: name, Attributes: a.wire()}}}, nil, call); err != nil {
		return nil, err
	}
	return l, nil
}

// Declare reserves a port for a server that has the SID in its token and comes later; connects wait for it until their
// deadline, and Activations tells the declarer. The port lives as long as the declarer or its server.
func (s *System) Declare(ctx context.Context, name string, a PortAttributes, server security.SID) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Declare{Declare: &corepb.Declare{Name: name, Attributes: a.wire(), Server: server.String()}}})
	return err
}

// Name is the port's name as it was given.
func (l *Listener) Name() string { return l.name }

// Attributes are the port's as the core granted them.
func (l *Listener) Attributes() PortAttributes {
	return PortAttributes{
		MaxMessageLength: int(l.attributes.GetMaxMessageLength()), HandleTypes: HandleType(l.attributes.GetHandleTypes()),
		MaxPending: int(l.attributes.GetMaxPending()), MaxConnections: int(l.attributes.GetMaxConnections()), AutoAccept: l.attributes.GetAutoAccept(),
	}
}

// Accept waits for the next client.
func (l *Listener) Accept(ctx context.Context) (*ConnectionRequest, error) {
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			r := l.queue[0]
			l.queue = l.queue[1:]
			more := len(l.queue) > 0
			l.mu.Unlock()
			if more {
				l.signal()
			}
			return r, nil
		}
		err := l.err
		l.mu.Unlock()
		if err != nil {
			l.signal()
			return nil, err
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil, ntstatus.Wrap("alpc.Accept", l.name, ctx.Err())
		}
	}
}

func (l *Listener) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close stops listening and ends the port's connections.
func (l *Listener) Close() error {
	s := l.system
	s.mu.Lock()
	_, open := s.listeners[l.id]
	delete(s.listeners, l.id)
	s.mu.Unlock()
	if !open {
		return nil
	}
	l.end(ntstatus.New("alpc.Accept", l.name, ntstatus.PortClosed))
	_, err := s.ask(context.Background(), &corepb.ToCore{Request: &corepb.ToCore_CloseListener{CloseListener: &corepb.CloseListener{Port: l.id}}})
	if errors := s.Err(); errors != nil {
		return nil // the core has gone and the port with it
	}
	return err
}

// requested queues a connect. It runs on the attachment's receiving goroutine and takes the files over.
func (l *Listener) requested(w *corepb.ConnectRequest, files []*os.File) {
	if len(files) == 0 {
		return
	}
	client, err := clientOf(w.GetClient(), w.GetConnection(), security.ImpersonationLevel(w.GetLevel()), files[0])
	if err != nil {
		closeFiles(files)
		l.system.log.Error("a connect request can't be read", "port", l.name, "error", err)
		return
	}
	r := &ConnectionRequest{listener: l, wire: w, client: client}
	if w.GetAccepted() {
		r.port, err = l.open(r, files[1:])
		if err != nil {
			client.PIDFD.Close()
			l.system.closeConnection(w.GetConnection())
			return
		}
		l.system.tell(&corepb.ToCore{Request: &corepb.ToCore_Accept{Accept: &corepb.Accept{Connection: w.GetConnection()}}})
	} else {
		closeFiles(files[1:])
	}
	l.mu.Lock()
	ended := l.err != nil
	if !ended {
		l.queue = append(l.queue, r)
	}
	l.mu.Unlock()
	if ended {
		r.discard()
		return
	}
	l.signal()
}

// withdrawn drops a queued connect whose client has gone.
func (l *Listener) withdrawn(connection uint64) {
	l.mu.Lock()
	var gone *ConnectionRequest
	for i, r := range l.queue {
		if r.wire.GetConnection() == connection {
			gone = r
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			break
		}
	}
	l.mu.Unlock()
	if gone != nil {
		gone.discard()
	}
}

func (r *ConnectionRequest) discard() {
	if r.answered.Swap(true) {
		return
	}
	if r.port != nil {
		r.port.Close()
		return
	}
	r.client.PIDFD.Close()
}

func (l *Listener) end(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, r := range queue {
		r.discard()
	}
	l.signal()
}

// open makes the server's end of an accepted connection: files are the channel and, if asked for, the section.
func (l *Listener) open(r *ConnectionRequest, files []*os.File) (*Port, error) {
	line, err := l.slab.Line(int(r.wire.GetLine()))
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return l.system.newPort(files, portOptions{
		senders: newSenders(r.client, l.page, int(r.wire.GetLine()), r.wire.GetGeneration(), l.system.done),
		side:    1, client: r.client, maxMessage: int(r.wire.GetMaxMessageLength()), maxPending: int(r.wire.GetMaxPending()),
		handleTypes: HandleType(l.attributes.GetHandleTypes()), connectData: r.wire.GetData(), line: line,
	})
}

// Client is who asks, as the core proved it.
func (r *ConnectionRequest) Client() *Client { return r.client }

// Data is what the client sent with its connect.
func (r *ConnectionRequest) Data() []byte { return r.wire.GetData() }

// Accept gives the client its connection and data of the server's own (NtAlpcAcceptConnectPort). InvalidCID: the client has
// gone; InvalidDeviceState: the request was answered already.
func (r *ConnectionRequest) Accept(ctx context.Context, data []byte) (*Port, error) {
	const op = "alpc.Accept"
	l := r.listener
	if r.answered.Swap(true) {
		return nil, ntstatus.Errorf(op, l.name, ntstatus.InvalidDeviceState, "the connect was answered already")
	}
	if r.port != nil {
		return r.port, nil
	}
	var port *Port
	call := &coreCall{
		take: func(_ *corepb.Reply, files []*os.File) (err error) { port, err = l.open(r, files); return err },
	}
	// The core never waits for anybody, so neither does this: an accept is not half done.
	_, err := l.system.do(context.WithoutCancel(ctx), &corepb.ToCore{Request: &corepb.ToCore_Accept{Accept: &corepb.Accept{Connection: r.wire.GetConnection(), Data: data}}}, nil, call)
	if err != nil {
		r.client.PIDFD.Close()
		return nil, err
	}
	return port, nil
}

// Refuse turns the client away: its Dial fails with status (PortConnectionRefused for Success) and data.
func (r *ConnectionRequest) Refuse(ctx context.Context, status ntstatus.Status, data []byte) error {
	if r.answered.Swap(true) {
		return ntstatus.Errorf("alpc.Refuse", r.listener.name, ntstatus.InvalidDeviceState, "the connect was answered already")
	}
	if r.port != nil {
		return r.port.Close()
	}
	defer r.client.PIDFD.Close()
	_, err := r.listener.system.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Refuse{Refuse: &corepb.Refuse{
		Connection: r.wire.GetConnection(), Status: uint32(status), Data: data,
	}}})
	return err
}
