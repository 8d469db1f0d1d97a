package rpc

import (
	"context"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// clientStream is a stream that this side opened: a REQUEST that is pending until the stream ends, whose REPLY is the
// status. Where the client sends one message only, that travels with the REQUEST.
type clientStream struct {
	stream
	ctx     context.Context // the caller's
	own     context.Context // ends with the stream
	cancel  context.CancelFunc
	conn    *clientPort
	method  string
	desc    *grpc.StreamDesc
	options callOptions
	window  uint32
	block   []byte
	opened  bool // by the one who sends
	closed  bool // CloseSend

	headerSeen chan struct{}
	done       chan struct{}

	mu      sync.Mutex
	got     uint64      // datagrams
	reply   *replyFrame // has come; perhaps not yet all that was sent before it
	header  metadata.MD
	seen    bool
	trailer metadata.MD
	over    bool
	local   bool  // it ended here, and perhaps not yet there
	err     error // of the finished stream; nil is OK
	told    bool  // options are filled in
}

// NewStream opens a stream. Generated clients call it.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	o, err := c.collect(options)
	if err != nil {
		return nil, localError(method, "", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, localError(method, "", err)
	}
	p, err := c.connected(ctx)
	if err != nil {
		return nil, failed(ctx, method, err)
	}
	block, err := outgoing(ctx)
	if err == nil {
		err = headFits(method, requestHeaderLen+len(method)+len(block), p.port.MaxMessageLength())
	}
	if err != nil {
		return nil, localError(method, "", err)
	}
	speaker, err := p.under(ctx, o.as)
	if err != nil {
		return nil, failed(ctx, method, err)
	}
	s := &clientStream{
		stream: stream{port: p.port, context: speaker, in: newInbox(uint32(c.options.Window)), out: newOutbox(0)},
		ctx:    ctx, conn: p, method: method, desc: desc, options: o, window: uint32(c.options.Window), block: block,
		headerSeen: make(chan struct{}), done: make(chan struct{}),
	}
	s.max.send, s.max.receive = o.send, o.receive
	s.own, s.cancel = context.WithCancel(ctx)
	if desc.ClientStreams {
		s.open(nil, 0)
	}
	return s, nil
}

// open sends the REQUEST; its reply is waited for beside the caller.
func (s *clientStream) open(buf *buffer, flags uint8) {
	s.opened = true
	if buf == nil {
		s.conn.add(s)
		buf = getBuffer()
		buf.b = appendRequest(buf.b, kindOpen, flags, s.call, s.window, s.method, s.block)
	}
	files, given := s.options.handles.outgoing()
	go func() {
		defer func() {
			<-s.done
			s.conn.remove(s, s.local)
		}()
		m, err := s.port.Call(s.own, &alpc.Message{Type: alpc.TypeRequest, Data: buf.b, Handles: files, ContextID: s.context})
		buf.free()
		closeFiles(given)
		if err != nil {
			s.finish(nil, failed(s.ctx, s.method, err), true)
			return
		}
		f, err := s.conn.reply(m, s.options.handles)
		if err == nil && f.flags != 0 {
			err = s.conn.broken(s.method, invalidFrame("a stream's reply to be fetched"))
		}
		if err != nil {
			s.finish(nil, localError(s.method, "", err), true)
			return
		}
		s.mu.Lock()
		s.reply = &f
		whole := s.got >= f.count
		s.mu.Unlock()
		s.conn.mu.Lock()
		ended := s.conn.ended
		s.conn.mu.Unlock()
		switch {
		case whole:
			s.ended()
		case ended:
			s.lost()
		}
	}()
}

// lost ends a stream whose reply promised more than came before the connection ended.
func (s *clientStream) lost() {
	s.finish(nil, localError(s.method, "", ntstatus.New("rpc.receive", "", ntstatus.PortDisconnected)), true)
}

// arrived is a datagram of this stream; false says that the server broke the protocol.
func (s *clientStream) arrived(f datagramFrame, handles []alpc.Handle) bool {
	switch f.kind {
	case kindCredit:
		if !s.out.add(f.size) {
			return false
		}
	case kindHeader:
		md, err := parseMetadata(f.body)
		if err != nil || !s.setHeader(md) {
			return false
		}
	case kindData:
		if s.options.handles.incoming(handles) != nil || f.flags&flagMsg == 0 || f.flags&flagEnd != 0 {
			return false
		}
		s.setHeader(nil)
		if !s.in.push(f) {
			return false
		}
	default:
		return false
	}
	s.mu.Lock()
	s.got++
	whole := s.reply != nil && s.got >= s.reply.count
	s.mu.Unlock()
	if whole {
		s.ended()
	}
	return true
}

// setHeader keeps the header metadata, which come once.
func (s *clientStream) setHeader(md metadata.MD) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen {
		return false
	}
	s.header, s.seen = md, true
	close(s.headerSeen)
	return true
}

// ended takes the outcome from the reply, now that all that was sent before it is here.
func (s *clientStream) ended() {
	f := s.reply
	header, err := blockOf(f.header)
	var trailer metadata.MD
	if err == nil {
		trailer, err = blockOf(f.trailer)
	}
	var outcome error
	if err == nil && len(f.status) > 0 {
		var st *status.Status
		if st, err = parseStatus(f.status); err == nil {
			outcome = FromStatus(s.method, st)
		}
	}
	if err != nil {
		s.finish(nil, s.conn.broken(s.method, err), true)
		return
	}
	s.setHeader(header)
	s.finish(trailer, outcome, false)
}

// finish ends the stream, once. A local failure forgets what was not read.
func (s *clientStream) finish(trailer metadata.MD, err error, local bool) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over, s.local, s.trailer, s.err = true, local, trailer, err
	s.mu.Unlock()
	if local {
		s.in.close(err)
	} else {
		s.in.close(nil)
	}
	close(s.done)
	s.cancel()
}

// Header waits for the header metadata, or the end of the stream.
func (s *clientStream) Header() (metadata.MD, error) {
	s.begin()
	select {
	case <-s.headerSeen:
	case <-s.done:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header, nil
}

// Trailer returns the trailer metadata of a stream that has ended.
func (s *clientStream) Trailer() metadata.MD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trailer
}

// Context returns the caller's context.
func (s *clientStream) Context() context.Context { return s.ctx }

// begin opens a stream whose caller waits for it without having sent anything.
func (s *clientStream) begin() {
	if !s.opened {
		s.open(nil, 0)
	}
}

// CloseSend says that no more messages come.
func (s *clientStream) CloseSend() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if !s.opened {
		s.open(nil, flagEnd)
		return nil
	}
	// The first credit says that the server has the REQUEST: nothing may overtake that.
	if s.out.take(s.own, 0) == nil {
		_ = s.datagram(s.own, kindData, flagEnd, 0, nil)
	}
	return nil
}

// SendMsg waits for the server's credit. io.EOF says that the stream has ended: RecvMsg has the status.
func (s *clientStream) SendMsg(m any) error {
	if s.closed {
		return status.Error(codes.Internal, "SendMsg called after CloseSend")
	}
	if !s.opened {
		sent, err := s.sendFirst(m)
		if err != nil {
			s.finish(nil, err, true)
			s.conn.remove(s, false)
			return err
		}
		if sent {
			return nil
		}
		s.begin()
	}
	err := s.send(s.own, m, s.options.handles)
	switch {
	case err == nil:
		return nil
	case s.own.Err() == nil && s.conn.alive():
		err = localError(s.method, "", err)
		s.finish(nil, err, true)
		return err
	case !s.desc.ClientStreams:
		return nil // generated code wants the status from RecvMsg
	}
	return io.EOF
}

// sendFirst sends the only message with the REQUEST, if it fits.
func (s *clientStream) sendFirst(m any) (sent bool, err error) {
	s.conn.add(s)
	buf := getBuffer()
	buf.b = appendRequest(buf.b, kindOpen, flagMsg|flagEnd, s.call, s.window, s.method, s.block)
	at := len(buf.b)
	if err := buf.marshal(m); err != nil {
		return false, localError(s.method, "", err)
	}
	if size := len(buf.b) - at; size > s.max.send {
		return false, localError(s.method, "", tooLong(size, s.max.send))
	}
	if len(buf.b) > s.port.MaxMessageLength() {
		buf.free()
		return false, nil
	}
	s.closed = true
	s.open(buf, 0)
	return true, nil
}

// RecvMsg waits for the next message; io.EOF is the end with an OK status, any other error the stream's outcome.
func (s *clientStream) RecvMsg(m any) error {
	s.begin()
	if err := s.ctx.Err(); err != nil && !s.finished() {
		return s.outcome(err) // nobody who gave up wants what came before
	}
	b, err := s.receive(s.ctx)
	if err != nil {
		return s.outcome(err)
	}
	if err := unmarshal(b, m); err != nil {
		err = localError(s.method, "", err)
		s.finish(nil, err, true)
		return s.outcome(err)
	}
	if s.desc.ServerStreams {
		return nil
	}
	if _, err = s.receive(s.ctx); err == nil {
		err = localError(s.method, "", ntstatus.Errorf("rpc.receive", "", ntstatus.RPCProtocolError, "a second message where there is one"))
		s.finish(nil, err, true)
	}
	if err = s.outcome(err); err == io.EOF {
		return nil
	}
	return err
}

func (s *clientStream) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// outcome is what RecvMsg returns once there are no more messages (io.EOF), or when it gives up.
func (s *clientStream) outcome(err error) error {
	if err == io.EOF {
		<-s.done
		err = nil
	} else {
		err = failed(s.ctx, s.method, err)
		s.finish(nil, err, true)
	}
	s.mu.Lock()
	told, header, trailer := s.told, s.header, s.trailer
	s.told = true
	if s.err != nil {
		err = s.err
	}
	s.mu.Unlock()
	if !told {
		s.options.done(s.conn, header, trailer, err)
	}
	if err == nil {
		return io.EOF
	}
	return err
}

// add gives a stream its number and makes its datagrams find it.
func (p *clientPort) add(s *clientStream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.call != 0 {
		return
	}
	for taken := true; taken; {
		s.call = p.next.Add(1)
		_, taken = p.left[s.call]
		taken = taken || p.streams[s.call] != nil || s.call == 0
	}
	p.streams[s.call] = s
	if !p.reading {
		p.reading = true
		ctx, cancel := context.WithCancel(context.Background())
		p.stop = cancel
		go p.read(ctx)
	}
}

// remove ends a stream's part in datagrams. Of one that was given up more may come until the server says that it is gone: so
// long somebody has to receive, or what nobody wants would fill the port.
func (p *clientPort) remove(s *clientStream, left bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.streams, s.call); left {
		p.left[s.call] = struct{}{}
		p.farewell(kindLeave, s.call)
	}
	p.rest()
}

// rest ends the reading when nobody needs it. The caller holds mu.
func (p *clientPort) rest() {
	if len(p.streams) == 0 && len(p.left) == 0 && p.reading {
		p.stop()
	}
}

// farewell is a call that its caller gave up, as the server is to be told.
type farewell struct {
	kind kind
	call uint32
}

// tell lets the server know that a unary call was given up. It doesn't keep the caller, whose context has ended.
func (p *clientPort) tell(k kind, call uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.farewell(k, call)
}

// farewell is tell with mu held.
func (p *clientPort) farewell(k kind, call uint32) {
	if p.untold = append(p.untold, farewell{k, call}); len(p.untold) == 1 && p.alive() {
		go p.sendFarewells()
	}
}

// sendFarewells sends one after the other: a server that doesn't read holds one goroutine.
func (p *clientPort) sendFarewells() {
	for {
		p.mu.Lock()
		if len(p.untold) == 0 {
			p.untold = nil
			p.mu.Unlock()
			return
		}
		next := p.untold[0]
		p.mu.Unlock()
		b := appendDatagram(nil, next.kind, 0, next.call, 0)
		if p.port.Send(context.Background(), &alpc.Message{Type: alpc.TypeDatagram, Data: b}) != nil {
			return // the connection has ended
		}
		p.mu.Lock()
		p.untold = p.untold[1:]
		p.mu.Unlock()
	}
}

// yields is for how many of a stream's datagrams the reading goroutine lets whoever waits for them go first: the next receive
// may keep the processor, spinning or asleep on the ring, and opening a stream is a dialogue. In a flow of datagrams it would
// only cost.
const yields = 2

// read gives datagrams to their streams until there are none, or the connection ends: then each stream's own call fails.
func (p *clientPort) read(ctx context.Context) {
	for {
		m, err := p.port.Receive(ctx)
		if err != nil {
			p.mu.Lock()
			if len(p.streams)+len(p.left) == 0 || !p.alive() || ctx.Err() == nil {
				p.reading = false
				p.stop()
				p.ended = !p.alive()
				orphans := slices.Collect(maps.Values(p.streams))
				p.mu.Unlock()
				for _, s := range orphans {
					s.mu.Lock()
					short := s.reply != nil && s.got < s.reply.count
					s.mu.Unlock()
					if short {
						s.lost()
					}
				}
				return
			}
			ctx, p.stop = context.WithCancel(context.Background())
			p.mu.Unlock()
			continue
		}
		if m.Type != alpc.TypeDatagram {
			m.CloseHandles()
			if m.Type == alpc.TypeRequest {
				p.refuse(m)
			}
			continue
		}
		f, err := parseDatagram(m.Data)
		if err != nil {
			m.CloseHandles()
			_ = p.port.Close()
			continue
		}
		p.mu.Lock()
		s := p.streams[f.call]
		if f.kind == kindGone {
			delete(p.left, f.call)
			p.rest()
		}
		p.mu.Unlock()
		if f.kind != kindData || s == nil {
			m.CloseHandles()
		}
		if s != nil && !s.arrived(f, m.Handles) {
			_ = p.port.Close()
		}
		if s != nil && s.got <= yields { // only this goroutine counts
			runtime.Gosched()
		}
	}
}

// refuse answers a REQUEST that a server made to this client, which serves nothing.
func (p *clientPort) refuse(m *alpc.Message) {
	st := ToStatus(ntstatus.New("rpc.serve", "", ntstatus.LPCRequestsNotAllowed))
	b := appendReply(nil, replyFrame{status: appendStatus(nil, st, maxStatusLen)})
	_ = p.port.Reply(context.Background(), m, &alpc.Message{Type: alpc.TypeReply, Data: b})
}
