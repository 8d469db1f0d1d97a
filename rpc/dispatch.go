package rpc

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// takeOver is after how long at least a unary handler counts as slow, and another goroutine reads the connection.
const takeOver = 250 * time.Microsecond

// serverConn is one connection of a server. One goroutine at a time reads it.
type serverConn struct {
	server *Server
	port   *alpc.Port
	client *alpc.Client
	ctx    context.Context // ends with the connection; carries the peer
	cancel context.CancelCauseFunc

	granted []atomic.Pointer[grant] // by method: what granted it last, and to whom

	// turn counts the unary handlers that ran on the reading goroutine: odd while one runs. Whoever moves an odd turn on,
	// the handler's goroutine when it is done or the watch when it is slow, reads on.
	turn    atomic.Uint64
	current atomic.Pointer[serverCall] // the handler of an odd turn
	watched atomic.Bool
	seen    uint64 // by the watch only
	timer   *time.Timer

	inflight atomic.Int64 // calls in progress, the one of an odd turn included
	buffered atomic.Int64 // bytes counted with Server.reserve
	workers  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	err     error
	calls   map[uint32]*serverCall // that can be cancelled: by the port's id of the request
	streams map[uint32]*serverCall // by call number
	parts   map[uint32]*assembly   // unary requests
	replies map[uint32]*keptReply  // that did not fit in a frame
}

func newServerConn(ctx context.Context, s *Server, p *alpc.Port) *serverConn {
	c := &serverConn{
		server: s, port: p, client: p.Peer(), granted: make([]atomic.Pointer[grant], len(s.methods)),
		calls: map[uint32]*serverCall{}, streams: map[uint32]*serverCall{},
		parts: map[uint32]*assembly{}, replies: map[uint32]*keptReply{},
	}
	if c.client == nil {
		c.client = &alpc.Client{}
	}
	ctx = metadata.NewIncomingContext(peer.NewContext(ctx, portPeer(c.client)), metadata.MD{})
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c
}

// run serves until the connection ends, and returns when its last handler has.
func (c *serverConn) run() error {
	c.workers.Add(1)
	go c.read()
	<-c.ctx.Done()
	c.close(nil)
	c.workers.Wait()
	c.server.release(c, int(c.buffered.Load()))
	return c.err
}

// close ends the connection, once; err is what the peer did wrong, if anything.
func (c *serverConn) close(err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed, c.err = true, err
	calls := make([]*serverCall, 0, len(c.calls)+1)
	for _, call := range c.calls {
		calls = append(calls, call)
	}
	if call := c.current.Load(); call != nil {
		calls = append(calls, call)
	}
	c.mu.Unlock()
	c.cancel(errStopped)
	for _, call := range calls {
		call.abort(context.Canceled)
	}
	_ = c.port.Close()
}

// read takes what comes until the connection ends or another goroutine has taken over.
func (c *serverConn) read() {
	defer c.workers.Done()
	for {
		m, err := c.port.Receive(c.ctx)
		if err != nil {
			c.close(nil)
			return
		}
		mine := true
		switch m.Type {
		case alpc.TypeRequest:
			mine, err = c.request(m)
		case alpc.TypeDatagram:
			err = c.datagram(m)
		case alpc.TypeCanceled:
			c.canceled(m.ID)
			m.CloseHandles()
		default:
			m.CloseHandles()
		}
		if err != nil {
			c.close(ntstatus.Wrap("rpc.serve", "", err))
			return
		}
		if !mine {
			return
		}
	}
}

// request starts or answers what a REQUEST asks for. It reports whether this goroutine still has to read.
func (c *serverConn) request(m *alpc.Message) (mine bool, err error) {
	f, err := parseRequest(m.Data)
	if err != nil {
		m.CloseHandles()
		return true, err
	}
	if f.kind == kindFetch {
		m.CloseHandles()
		c.fetch(m, f.call)
		return true, nil
	}
	call := &serverCall{conn: c, request: m, sender: m.Sender, number: f.call, body: f.body}
	call.base, call.deadline = c.ctx, m.Deadline
	if call.sender == nil {
		call.sender = c.client
	}
	if call.sender != c.client {
		call.base = peer.NewContext(c.ctx, portPeer(call.sender))
	}
	if len(m.Handles) > 0 {
		if err := call.handleSet().incoming(m.Handles); err != nil {
			return true, err
		}
	}
	c.inflight.Add(1)
	reserved := 0
	if f.kind == kindCall && f.size > 0 {
		if call.parts = c.takeParts(f.call); call.parts != nil {
			reserved = call.parts.room
		}
	}
	if err := c.prepare(call, &f); err != nil {
		c.server.release(c, reserved)
		call.finish(nil, err)
		return true, nil
	}
	if f.kind == kindOpen {
		return true, c.open(call, f)
	}

	return c.runHere(call, reserved), nil
}

// runHere runs a unary handler on this goroutine and reports whether it still has to read. reserved is what the request made us
// keep.
func (c *serverConn) runHere(call *serverCall, reserved int) (mine bool) {
	c.current.Store(call)
	turn := c.turn.Add(1)
	c.watch()
	returned := false
	defer func() {
		c.server.release(c, reserved)
		c.current.CompareAndSwap(call, nil) // after a take-over it may be another's
		if mine = c.turn.CompareAndSwap(turn, turn+1); !mine {
			c.forget(call)
		}
		if mine && !returned { // the handler ended its goroutine, which is this one
			c.workers.Add(1)
			go c.read()
		}
	}()
	call.runUnary()
	returned = true
	return mine
}

// prepare finds the method, reads the metadata, and does what can be checked before the message is decoded.
func (c *serverConn) prepare(call *serverCall, f *requestFrame) error {
	if c.server.draining.Load() {
		return ntstatus.New("rpc.serve", string(f.method), ntstatus.ShutdownInProgress)
	}
	m := c.server.methods[string(f.method)]
	if m == nil || (m.stream != nil) != (f.kind == kindOpen) {
		return c.server.unknown(string(f.method))
	}
	call.method = m
	if f.kind == kindCall && f.size > 0 {
		if int(f.size)+len(f.body) > c.server.options.MaxMessage {
			return tooLong(int(f.size)+len(f.body), c.server.options.MaxMessage)
		}
		if call.parts == nil || len(call.parts.b) != int(f.size) {
			return ntstatus.Errorf(m.full, "", ntstatus.QuotaExceeded, "no room for a message of %d bytes now", int(f.size)+len(f.body))
		}
		call.parts.b = append(call.parts.b, f.body...)
		call.body = call.parts.b
	}
	call.ctx = grpc.NewContextWithServerTransportStream(call, transport{call})
	if len(f.metadata) > 0 {
		md, err := parseMetadata(f.metadata)
		if err != nil {
			return err
		}
		call.ctx = metadata.NewIncomingContext(call.ctx, md)
	}
	c.mu.Lock()
	busy := len(c.calls) >= c.server.options.MaxCalls
	c.mu.Unlock()
	if busy {
		return ntstatus.Errorf(m.full, "", ntstatus.RPCServerTooBusy, "%d calls of this connection are in progress", c.server.options.MaxCalls)
	}
	if m.object == nil {
		return call.admit(m)
	}
	return nil
}

// unknown is the outcome for a method that isn't there, in gRPC's words.
func (s *Server) unknown(full string) error {
	name, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	if s.services[name] == nil {
		return ntstatus.Errorf("rpc.serve", full, ntstatus.RPCUnknownIf, "unknown service %s", name)
	}
	return ntstatus.Errorf("rpc.serve", full, ntstatus.RPCProcnumOutOfRange, "unknown method %s for service %s", method, name)
}

// forget ends a call's part in cancellation and datagrams; true says that its client waits to hear that.
func (c *serverConn) forget(call *serverCall) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[call.request.ID] == call {
		delete(c.calls, call.request.ID)
	}
	if c.streams[call.number] == call {
		delete(c.streams, call.number)
	}
	return call.left
}

// gone tells a client that gave a stream up that nothing more of it comes.
func (c *serverConn) gone(call uint32) {
	b := appendDatagram(nil, kindGone, 0, call, 0)
	_ = c.port.Send(c.ctx, &alpc.Message{Type: alpc.TypeDatagram, Data: b}) // it fails only when the connection has ended
}

// watch sees to it that a slow handler doesn't keep the connection. The timer runs only while there are calls.
func (c *serverConn) watch() {
	if c.watched.Load() || !c.watched.CompareAndSwap(false, true) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer == nil {
		c.timer = time.AfterFunc(takeOver, c.look)
	} else if !c.closed {
		c.timer.Reset(takeOver)
	}
}

// look is the watch: the same odd turn twice in a row is a slow handler.
func (c *serverConn) look() {
	turn := c.turn.Load()
	same := turn == c.seen
	c.seen = turn
	if same && turn%2 == 0 {
		c.watched.Store(false)
		// A handler that began meanwhile may have found the watch still on.
		if c.turn.Load() == turn || !c.watched.CompareAndSwap(false, true) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if call := c.current.Load(); same && turn%2 == 1 && call != nil {
		c.calls[call.request.ID] = call
		if c.turn.CompareAndSwap(turn, turn+1) {
			c.workers.Add(1)
			go c.read()
		} else {
			delete(c.calls, call.request.ID)
		}
	}
	c.timer.Reset(takeOver)
}

// open starts a stream.
func (c *serverConn) open(call *serverCall, f requestFrame) error {
	call.stream = &stream{
		port: c.port, call: call.number, in: newInbox(uint32(c.server.options.Window)), out: newOutbox(f.size),
	}
	call.stream.in.push(datagramFrame{flags: f.flags, body: f.body})
	call.stream.max.send, call.stream.max.receive = c.server.options.MaxMessage, c.server.options.MaxMessage
	c.mu.Lock()
	if c.closed || c.streams[call.number] != nil {
		c.mu.Unlock()
		err := invalidFrame("call number in use")
		call.finish(nil, err)
		return err
	}
	c.streams[call.number], c.calls[call.request.ID] = call, call
	c.mu.Unlock()
	c.workers.Go(func() {
		call.runStream()
		if c.forget(call) {
			c.gone(call.number)
		}
	})
	runtime.Gosched() // the handler goes first: the next receive may keep the processor
	return nil
}

// datagram is a peer's DATAGRAM: for a call that is there, or gone already.
func (c *serverConn) datagram(m *alpc.Message) error {
	f, err := parseDatagram(m.Data)
	if err != nil {
		m.CloseHandles()
		return err
	}
	if f.kind != kindData {
		m.CloseHandles()
	}
	switch f.kind {
	case kindPart:
		c.addPart(f)
		m.Free()
		return nil
	case kindDrop:
		c.drop(f.call)
		return nil
	}
	c.mu.Lock()
	call := c.streams[f.call]
	if call != nil && f.kind == kindLeave {
		call.left = true
	}
	c.mu.Unlock()
	if call == nil {
		m.CloseHandles()
		if f.kind == kindLeave {
			c.gone(f.call)
		}
		return nil
	}
	switch f.kind {
	case kindData:
		if m.ContextID != call.request.ContextID {
			m.CloseHandles()
			return invalidFrame("a stream changes who sends it")
		}
		if len(m.Handles) > 0 {
			if err := call.handleSet().incoming(m.Handles); err != nil {
				return err
			}
		}
		if !call.stream.in.push(f) {
			return invalidFrame("more than the window")
		}
	case kindCredit:
		if !call.stream.out.add(f.size) {
			return invalidFrame("more credit than a window can be")
		}
	case kindLeave:
		call.abort(context.Canceled)
	default:
		return invalidFrame("a datagram that only servers send")
	}
	return nil
}

func (c *serverConn) canceled(id uint32) {
	c.mu.Lock()
	call := c.calls[id]
	c.mu.Unlock()
	if call != nil {
		call.abort(context.Canceled)
	}
}

// addPart keeps a piece of a unary request; room for all of them is reserved with the first. What there is no room for is
// forgotten: the request that follows finds that something is missing and gets QUOTA_EXCEEDED.
func (c *serverConn) addPart(f datagramFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.parts[f.call]
	room := int(f.size) + c.port.MaxMessageLength() // the rest comes with the request
	if have == nil {
		if int(f.size) > c.server.options.MaxMessage || len(c.parts) >= c.server.options.MaxCalls || !c.server.reserve(c, room) {
			return
		}
		have = &assembly{buffer: getBuffer(), room: room}
		have.grow(room)
		c.parts[f.call] = have
	}
	if room != have.room || len(have.b)+len(f.body) > int(f.size) {
		c.server.release(c, have.room)
		have.free()
		delete(c.parts, f.call)
		return
	}
	have.b = append(have.b, f.body...)
}

// assembly is a unary request that comes in pieces.
type assembly struct {
	*buffer
	room int // bytes reserved for it
}

// keptReply is a reply that did not fit. Its memory is free again when the REPLY with the first piece was sent and the rest
// was fetched: a client may fetch before the REPLY has left us.
type keptReply struct {
	*buffer
	rest    []byte // still to be fetched
	sent    bool
	fetched bool
}

// takeParts gives the pieces to the request that they belong to; they stay reserved until it has run.
func (c *serverConn) takeParts(call uint32) *assembly {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.parts[call]
	delete(c.parts, call)
	return a
}

// drop forgets what a caller that gave up has left, and will leave.
func (c *serverConn) drop(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.parts[number]; a != nil {
		c.server.release(c, a.room)
		a.free()
		delete(c.parts, number)
	}
	if k := c.replies[number]; k != nil {
		c.server.release(c, len(k.rest))
		k.rest = nil
		c.through(number, k)
	}
	for _, call := range c.calls {
		if call.number == number && call.stream == nil {
			call.left = true
		}
	}
}

// keep holds what of a reply in buf is beyond limit, for the client to fetch.
func (c *serverConn) keep(running *serverCall, buf *buffer, limit int) (*keptReply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := running.number
	if running.left {
		return nil, context.Canceled
	}
	k := &keptReply{buffer: buf, rest: buf.b[limit:]}
	if c.replies[call] != nil || len(c.replies) >= c.server.options.MaxCalls || !c.server.reserve(c, len(k.rest)) {
		return nil, ntstatus.Errorf("rpc.serve", "", ntstatus.QuotaExceeded, "no room for a reply of %d bytes now", len(buf.b))
	}
	c.replies[call] = k
	return k, nil
}

// through forgets a kept reply of which nothing is left. The caller holds mu.
func (c *serverConn) through(number uint32, k *keptReply) {
	delete(c.replies, number)
	if k.fetched = true; k.sent {
		k.free()
	}
}

// replied notes that the REPLY of a kept reply is no longer being sent.
func (c *serverConn) replied(k *keptReply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.sent = true; k.fetched {
		k.free()
	}
}

// fetch answers with the next piece of a kept reply.
func (c *serverConn) fetch(m *alpc.Message, call uint32) {
	buf := getBuffer()
	defer buf.free()
	buf.b = appendReply(buf.b, replyFrame{})
	c.mu.Lock()
	if k := c.replies[call]; k != nil {
		n := min(len(k.rest), c.port.MaxMessageLength()-replyHeaderLen)
		buf.b = append(buf.b, k.rest[:n]...)
		k.rest = k.rest[n:]
		if c.server.release(c, n); len(k.rest) == 0 {
			c.through(call, k)
		}
	}
	c.mu.Unlock()
	_ = c.port.Reply(c.ctx, m, &alpc.Message{Type: alpc.TypeReply, Data: buf.b}) // it fails only when the caller has gone
}

// recovered turns a handler's panic into the outcome of its call.
func (c *serverConn) recovered(call *serverCall, v any) error {
	c.server.log.Error("a handler panicked", "method", call.method.full, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	return ntstatus.Errorf(call.method.full, "", ntstatus.InternalError, "the handler failed")
}

type callKey struct{}

// Caller returns who makes the call that ctx belongs to: proven by the core, not by anything in a message. It is the sender of
// the call's own message: the client as it was when it sent it, where its connection tracks dynamically, or the one whose token it
// sent under (AsToken). False outside a handler of this package (a service object may also be served by a stock grpc.Server).
func Caller(ctx context.Context) (*alpc.Client, bool) {
	c, ok := ctx.Value(callKey{}).(*serverCall)
	if !ok {
		return nil, false
	}
	return c.sender, true
}

// Address is the net.Addr of a port's other side, for gRPC's peer.
type Address struct{ Client *alpc.Client }

// Network returns "alpc".
func (Address) Network() string { return "alpc" }

// String names the process and the core's number of the connection.
func (a Address) String() string {
	return fmt.Sprintf("pid:%d,connection:%d", a.Client.PID, a.Client.Connection)
}

// AuthInfo says to gRPC's peer how the other side is known: by the core.
type AuthInfo struct{ Client *alpc.Client }

// AuthType returns "alpc".
func (AuthInfo) AuthType() string { return "alpc" }

func portPeer(client *alpc.Client) *peer.Peer {
	return &peer.Peer{Addr: Address{client}, AuthInfo: AuthInfo{client}}
}
