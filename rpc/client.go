package rpc

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// DialOptions are how a Conn connects and what it takes. Zero values are the defaults.
type DialOptions struct {
	Port       alpc.DialOptions // of every connection that is made
	MaxMessage int              // bytes of one message, either way; 4 MiB
	Window     int              // bytes of a stream's messages that wait for a slow reader; 256 KiB
}

// Conn makes calls to one port: the grpc.ClientConnInterface that generated clients take. It is safe for concurrent use.
//
// When the connection ends, every call in progress fails with PORT_DISCONNECTED at once: whether it ran is not known, so
// it isn't repeated. A Conn from Dial connects again with the next call, which waits for the port under its own context.
type Conn struct {
	options DialOptions
	dial    func(context.Context) (*alpc.Port, error) // nil: of a given port, which is not dialed again

	turn    chan struct{} // capacity 1: held while dialing
	current atomic.Pointer[clientPort]
	closed  atomic.Bool
}

// NewConn makes calls over p, which it owns from now on. One DialOptions at most.
func NewConn(p *alpc.Port, o ...DialOptions) *Conn {
	c := newConn(o)
	c.current.Store(newClientPort(p))
	return c
}

func newConn(o []DialOptions) *Conn {
	c := &Conn{turn: make(chan struct{}, 1)}
	if len(o) > 0 {
		c.options = o[0]
	}
	if c.options.MaxMessage <= 0 {
		c.options.MaxMessage = defaultMaxMessage
	}
	if c.options.Window <= 0 {
		c.options.Window = defaultWindow
	}
	c.options.Window = min(max(c.options.Window, minWindow), maxWindow)
	return c
}

// Close ends the connection and every call in progress. A second Close does nothing.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.turn <- struct{}{} // a dial in progress ends under its own context; what it made is closed there
	p := c.current.Load()
	<-c.turn
	if p == nil {
		return nil
	}
	return p.port.Close()
}

// Peer returns who serves the connection that there is now; nil without one.
func (c *Conn) Peer() *alpc.Client {
	if p := c.current.Load(); p != nil {
		return p.port.Peer()
	}
	return nil
}

// connected returns a live connection, made now if need be.
func (c *Conn) connected(ctx context.Context) (*clientPort, error) {
	if p := c.current.Load(); p != nil && p.alive() && !c.closed.Load() {
		return p, nil
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.turn }()
	old := c.current.Load()
	switch {
	case c.closed.Load():
		return nil, ntstatus.New("rpc.call", "", ntstatus.PortClosed)
	case old != nil && old.alive():
		return old, nil
	case c.dial == nil:
		return nil, ntstatus.New("rpc.call", "", ntstatus.PortDisconnected)
	}
	port, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	p := newClientPort(port)
	c.current.Store(p)
	if c.closed.Load() {
		_ = port.Close()
		return nil, ntstatus.New("rpc.call", "", ntstatus.PortClosed)
	}
	if old != nil {
		_ = old.port.Close()
	}
	return p, nil
}

// callOptions is what of gRPC's call options means something here.
type callOptions struct {
	header   []*metadata.MD
	trailer  []*metadata.MD
	peer     []*peer.Peer
	finished []func(error)
	handles  *HandleSet
	as       *asToken
	send     int
	receive  int
}

func (c *Conn) collect(options []grpc.CallOption) (o callOptions, err error) {
	o.send, o.receive = c.options.MaxMessage, c.options.MaxMessage
	for _, option := range options {
		switch option := option.(type) {
		case grpc.HeaderCallOption:
			o.header = append(o.header, option.HeaderAddr)
		case grpc.TrailerCallOption:
			o.trailer = append(o.trailer, option.TrailerAddr)
		case grpc.PeerCallOption:
			o.peer = append(o.peer, option.PeerAddr)
		case grpc.OnFinishCallOption:
			o.finished = append(o.finished, option.OnFinish)
		case grpc.MaxSendMsgSizeCallOption:
			o.send = option.MaxSendMsgSize
		case grpc.MaxRecvMsgSizeCallOption:
			o.receive = option.MaxRecvMsgSize
		case asToken:
			o.as = &option
		case handleOption:
			o.handles = option.set
		case grpc.PerRPCCredsCallOption:
			return o, status.Error(codes.Unauthenticated, "a port proves its caller itself: credentials of a call are refused, not ignored")
		case grpc.ForceCodecCallOption, grpc.ForceCodecV2CallOption, grpc.CustomCodecCallOption, grpc.ContentSubtypeCallOption:
			return o, status.Error(codes.Unimplemented, "messages on a port are protobuf")
		}
	}
	return o, nil
}

// done fills in what the caller asked to be told.
func (o *callOptions) done(p *clientPort, header, trailer metadata.MD, err error) {
	for _, addr := range o.header {
		*addr = header
	}
	for _, addr := range o.trailer {
		*addr = trailer
	}
	for _, addr := range o.peer {
		*addr = *portPeer(p.port.Peer())
	}
	for _, f := range o.finished {
		f(err)
	}
}

// outgoing is the metadata of a call as a block.
func outgoing(ctx context.Context) ([]byte, error) {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok || len(md) == 0 {
		return nil, nil
	}
	return appendMetadata(nil, md)
}

// failed is the error for a call that got no reply.
func failed(ctx context.Context, method string, err error) error {
	if done := ctx.Err(); done != nil {
		err = done
	}
	return localError(method, "", err)
}

// Invoke makes a unary call. Generated clients call it.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	o, err := c.collect(options)
	if err != nil {
		return localError(method, "", err)
	}
	p, err := c.connected(ctx)
	if err != nil {
		return failed(ctx, method, err)
	}
	header, trailer, err := p.invoke(ctx, method, args, reply, &o)
	o.done(p, header, trailer, err)
	return err
}

// clientPort is a client's connection. Its goroutine that receives lives only while there are streams, so that a unary
// call's own goroutine gets its reply.
type clientPort struct {
	port *alpc.Port
	next atomic.Uint32

	mu      sync.Mutex
	streams map[uint32]*clientStream
	left    map[uint32]struct{} // streams given up, of which more may come
	untold  []farewell          // calls given up that the server doesn't know of
	reading bool
	ended   bool               // nobody will receive any more
	speaks  map[asToken]uint32 // security contexts that were registered
	stop    context.CancelFunc // ends the receive in progress
}

func newClientPort(p *alpc.Port) *clientPort {
	return &clientPort{port: p, streams: map[uint32]*clientStream{}, left: map[uint32]struct{}{}}
}

func (p *clientPort) alive() bool {
	select {
	case <-p.port.Done():
		return false
	default:
		return true
	}
}

func (p *clientPort) invoke(ctx context.Context, method string, args, reply any, o *callOptions) (header, trailer metadata.MD, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, localError(method, "", err)
	}
	block, err := outgoing(ctx)
	if err != nil {
		return nil, nil, localError(method, "", err)
	}
	buf := getBuffer()
	defer buf.free()
	call := p.next.Add(1)
	limit := p.port.MaxMessageLength()
	buf.b = appendRequest(buf.b, kindCall, 0, call, 0, method, block)
	at := len(buf.b)
	if err := headFits(method, at, limit); err != nil {
		return nil, nil, localError(method, "", err)
	}
	if err := buf.marshal(args); err != nil {
		return nil, nil, localError(method, "", err)
	}
	if size := len(buf.b) - at; size > o.send {
		return nil, nil, localError(method, "", tooLong(size, o.send))
	}
	speaker, err := p.under(ctx, o.as)
	if err != nil {
		return nil, nil, failed(ctx, method, err)
	}
	frame := buf.b
	if len(frame) > limit {
		if frame, err = p.sendParts(ctx, call, method, block, frame); err != nil {
			p.tell(kindDrop, call)
			return nil, nil, failed(ctx, method, err)
		}
	}
	files, given := o.handles.outgoing()
	m, err := p.port.Call(ctx, &alpc.Message{Type: alpc.TypeRequest, Data: frame, Handles: files, ContextID: speaker})
	closeFiles(given)
	if err != nil {
		p.tell(kindDrop, call)
		return nil, nil, failed(ctx, method, err)
	}
	defer m.Free()
	f, err := p.reply(m, o.handles)
	if err != nil {
		return nil, nil, localError(method, "", err)
	}
	if header, err = blockOf(f.header); err == nil {
		trailer, err = blockOf(f.trailer)
	}
	if err != nil {
		return nil, nil, p.broken(method, err)
	}
	if len(f.status) > 0 {
		st, err := parseStatus(f.status)
		if err != nil {
			return header, trailer, p.broken(method, err)
		}
		return header, trailer, FromStatus(method, st)
	}
	body := f.body
	if f.flags&flagFetch != 0 {
		all := getBuffer()
		defer all.free()
		if err := p.fetch(ctx, call, m, &f, o.receive, all); err != nil {
			p.tell(kindDrop, call)
			return header, trailer, failed(ctx, method, err)
		}
		body = all.b
	}
	if len(body) > o.receive {
		return header, trailer, localError(method, "", tooLong(len(body), o.receive))
	}
	if err := unmarshal(body, reply); err != nil {
		return header, trailer, localError(method, "", err)
	}
	return header, trailer, nil
}

func headFits(method string, size, limit int) error {
	if len(method) > maxMethodLen || size > limit {
		return status.Error(codes.ResourceExhausted, fmt.Sprintf("method and metadata of %d bytes do not fit in the port's messages", size))
	}
	return nil
}

// sendParts sends what does not fit of a request ahead, and returns the request with the rest. Each header overwrites the
// end of what has left before, so nothing is copied.
func (p *clientPort) sendParts(ctx context.Context, call uint32, method string, block, frame []byte) ([]byte, error) {
	limit := p.port.MaxMessageLength()
	head := requestHeaderLen + len(method) + len(block)
	ahead := len(frame) - limit
	for at, end := head, head+ahead; at < end; {
		n := min(end-at, limit-datagramHeaderLen)
		part := frame[at-datagramHeaderLen : at+n]
		appendDatagram(part[:0], kindPart, 0, call, uint32(ahead))
		if err := p.port.Send(ctx, &alpc.Message{Type: alpc.TypeDatagram, Data: part}); err != nil {
			return nil, err
		}
		at += n
	}
	appendRequest(frame[ahead:ahead], kindCall, 0, call, uint32(ahead), method, block)
	return frame[ahead:], nil
}

// fetch puts a reply that did not fit together: its first piece, which came in message before, and the rest, for which it
// asks.
func (p *clientPort) fetch(ctx context.Context, call uint32, before *alpc.Message, f *replyFrame, limit int, all *buffer) error {
	size := f.count
	if size > uint64(max(limit, 0)) {
		return tooLong(int(min(size, 1<<62)), limit)
	}
	all.grow(int(size))
	request := appendRequest(make([]byte, 0, requestHeaderLen), kindFetch, 0, call, 0, "", nil)
	piece := f.body
	for first := true; ; first = false {
		if len(piece) == 0 && !first || uint64(len(all.b)+len(piece)) > size {
			return p.broken("rpc.fetch", invalidFrame("the pieces of a reply are not its size"))
		}
		all.b = append(all.b, piece...)
		before.Free()
		if uint64(len(all.b)) == size {
			return nil
		}
		m, err := p.port.Call(ctx, &alpc.Message{Type: alpc.TypeRequest, Data: request})
		if err != nil {
			return err
		}
		before = m
		next, err := p.reply(m, nil)
		if err != nil {
			return err
		}
		piece = next.body
	}
}

// reply reads a REPLY and takes over its files.
func (p *clientPort) reply(m *alpc.Message, handles *HandleSet) (replyFrame, error) {
	f, err := parseReply(m.Data)
	if err != nil {
		m.CloseHandles()
		return f, p.broken("rpc.call", err)
	}
	return f, handles.incoming(m.Handles)
}

// broken ends the connection to a server that broke the protocol.
func (p *clientPort) broken(method string, err error) error {
	_ = p.port.Close()
	return localError(method, "", err)
}

func blockOf(b []byte) (metadata.MD, error) {
	if len(b) == 0 {
		return nil, nil
	}
	return parseMetadata(b)
}
