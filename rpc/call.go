package rpc

import (
	"context"
	"io"
	"os"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// serverCall is one call from its request to its reply; it is its handler's context too.
type serverCall struct {
	callContext
	ctx     context.Context // the handler's: this, with the metadata and gRPC's transport stream
	conn    *serverConn
	method  *method
	request *alpc.Message
	sender  *alpc.Client // who makes the call
	number  uint32
	body    []byte    // of a unary call, until it is decoded: then its memory is another's
	parts   *assembly // what body lies in, where it came in parts
	decoded bool
	failed  error // why decode refused: it counts, whatever a handler makes of it
	stream  *stream
	left    bool // the client gave the call up; under the connection's lock

	lock       sync.Mutex // of what follows; a leaf
	handles    *HandleSet
	header     metadata.MD
	trailer    metadata.MD
	headerSent bool
}

// Value finds the call itself; the rest is the connection's.
func (c *serverCall) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return c
	}
	return c.base.Value(key)
}

// abort ends the call's context; its handler decides when it returns.
func (c *serverCall) abort(err error) {
	c.cancel(err)
	if c.stream != nil {
		c.stream.in.close(err)
	}
}

func (c *serverCall) handleSet() *HandleSet {
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.handles == nil {
		c.handles = NewHandleSet()
	}
	return c.handles
}

// runUnary runs the handler and replies.
func (c *serverCall) runUnary() {
	var out any
	err := errGone
	defer func() {
		if v := recover(); v != nil {
			err = c.conn.recovered(c, v)
		}
		c.finish(out, err)
	}()
	out, err = c.method.unary.Handler(c.method.service.impl, c.ctx, c.decode, nil)
	if c.failed != nil {
		err = c.failed
	}
}

// errGone is the outcome of a handler that ended its goroutine instead of returning.
var errGone = ntstatus.Errorf("rpc.serve", "", ntstatus.InternalError, "the handler did not return")

// decode gives a unary handler its request, if the caller may make it.
func (c *serverCall) decode(m any) error {
	if c.decoded {
		return ntstatus.Errorf(c.method.full, "", ntstatus.InternalError, "the request was decoded before")
	}
	c.decoded = true
	err := unmarshal(c.body, m)
	c.body = nil
	c.request.Free()
	if c.parts != nil {
		c.parts.free()
		c.parts = nil
	}
	if err == nil && c.method.object != nil {
		pm, merr := message(m)
		if err = merr; err == nil {
			err = c.admitObject(pm)
		}
	}
	if err != nil {
		c.failed = err
	}
	return err
}

// runStream runs the handler of a stream and replies.
func (c *serverCall) runStream() {
	err := errGone
	defer func() {
		if v := recover(); v != nil {
			err = c.conn.recovered(c, v)
		}
		c.stream.in.close(io.EOF)
		c.finish(nil, err)
	}()
	ss := &serverStream{call: c}
	if !c.stream.in.ended() {
		// Until it has this credit the client sends nothing.
		if err = c.stream.datagram(c, kindCredit, 0, uint32(c.conn.server.options.Window), nil); err != nil {
			return
		}
	}
	if c.method.object != nil {
		if err = ss.peek(); err != nil {
			return
		}
	}
	err = c.method.stream.Handler(c.method.service.impl, ss)
}

// finish replies, and ends all that belongs to the call.
func (c *serverCall) finish(out any, err error) {
	c.cancel(context.Canceled)
	buf := getBuffer()
	data, kept := c.reply(buf, out, err)
	message := &alpc.Message{Type: alpc.TypeReply, Data: data}
	handles := c.sending()
	var given []*os.File
	if err == nil {
		message.Handles, given = handles.outgoing()
	}
	if err := c.conn.port.Reply(c.conn.ctx, c.request, message); err != nil {
		if kept != nil {
			c.conn.drop(c.number)
		}
		if ntstatus.Of(err) != ntstatus.ReplyMessageMismatch { // the caller has gone: nobody misses it
			c.conn.server.log.Debug("a reply was not sent", "error", err)
			if c.conn.port.Err() == nil { // what the handler put in can't be sent, so the caller is told that instead
				instead := getBuffer()
				data, _ := c.reply(instead, nil, ntstatus.Errorf("rpc.serve", "", ntstatus.InvalidHandle, "the reply could not be sent: %v", err))
				_ = c.conn.port.Reply(c.conn.ctx, c.request, &alpc.Message{Type: alpc.TypeReply, Data: data})
				instead.free()
			}
		}
	}
	if kept == nil {
		buf.free()
	} else {
		c.conn.replied(kept)
	}
	closeFiles(given)
	_ = handles.Close()
	c.conn.inflight.Add(-1)
	c.conn.server.wakeDrain()
}

// reply writes the outcome and the message into buf. data is what goes into the REPLY; what does not fit is kept, with buf,
// for the client to fetch.
func (c *serverCall) reply(buf *buffer, out any, err error) (data []byte, kept *keptReply) {
	var f replyFrame
	if c.stream != nil {
		f.count = c.stream.seal()
	}
	c.lock.Lock()
	var merr error
	if !c.headerSent && len(c.header) > 0 {
		f.header, merr = appendMetadata(nil, c.header)
	}
	if merr == nil && len(c.trailer) > 0 {
		f.trailer, merr = appendMetadata(nil, c.trailer)
	}
	c.headerSent = true
	c.lock.Unlock()
	limit := c.conn.port.MaxMessageLength()
	if merr == nil && replyHeaderLen+len(f.header)+len(f.trailer) > limit {
		merr = ntstatus.Errorf("rpc.serve", "", ntstatus.PortMessageTooLong, "header and trailer metadata do not fit in the port's messages")
	}
	if merr != nil {
		f.header, f.trailer = nil, nil
		if err == nil {
			err = merr
		}
	}
	buf.b = appendReply(buf.b, f)
	at := len(buf.b)
	if err == nil && out != nil {
		err = buf.marshal(out)
		if size := len(buf.b) - at; err == nil && size > c.conn.server.options.MaxMessage {
			err = tooLong(size, c.conn.server.options.MaxMessage)
		} else if err == nil && len(buf.b) > limit {
			f.flags, f.count = flagFetch, uint64(size)
			appendReply(buf.b[:0], f)
			if kept, err = c.conn.keep(c, buf, limit); err == nil {
				return buf.b[:limit], kept
			}
			f.flags, f.count = 0, 0
		}
	}
	if err != nil {
		f.status = appendStatus(nil, ToStatus(err), limit-at)
		buf.b = appendReply(buf.b[:0], f)
	}
	return buf.b, nil
}

// setHeader adds header metadata that goes with the first message, or the reply.
func (c *serverCall) setHeader(md metadata.MD) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.headerSent {
		return status.Error(codes.Internal, "the header was sent already")
	}
	c.header = metadata.Join(c.header, md)
	return nil
}

func (c *serverCall) setTrailer(md metadata.MD) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.trailer = metadata.Join(c.trailer, md)
}

// sendHeader sends header metadata now. Of a unary call it goes with the reply, and only can't be added to any more.
func (c *serverCall) sendHeader(md metadata.MD) error {
	if err := c.setHeader(md); err != nil {
		return err
	}
	if c.stream == nil {
		return nil
	}
	return c.flushHeader()
}

// flushHeader sends what header there is, before the first message.
func (c *serverCall) flushHeader() error {
	c.lock.Lock()
	if c.headerSent {
		c.lock.Unlock()
		return nil
	}
	c.headerSent = true
	block, err := appendMetadata(nil, c.header)
	c.lock.Unlock()
	if err != nil {
		return err
	}
	return c.stream.datagram(c, kindHeader, 0, 0, block)
}

// transport is what grpc.SetHeader and its relatives find in a handler's context.
type transport struct{ call *serverCall }

func (t transport) Method() string                  { return t.call.method.full }
func (t transport) SetHeader(md metadata.MD) error  { return t.call.setHeader(md) }
func (t transport) SendHeader(md metadata.MD) error { return t.call.sendHeader(md) }
func (t transport) SetTrailer(md metadata.MD) error { t.call.setTrailer(md); return nil }

// serverStream is the grpc.ServerStream of a stream's handler.
type serverStream struct {
	call   *serverCall
	peeked []byte // the first message, read for the access check
	ahead  bool
}

// peek waits for the first message, which names the object, and decides.
func (s *serverStream) peek() error {
	b, err := s.call.stream.receive(s.call)
	if err == io.EOF {
		return ntstatus.Errorf(s.call.method.full, "", ntstatus.InvalidParameter, "the first message names the object, and there was none")
	}
	if err != nil {
		return err
	}
	first := s.call.method.input.New().Interface()
	if err := unmarshal(b, first); err != nil {
		return err
	}
	s.peeked, s.ahead = b, true
	return s.call.admitObject(first)
}

func (s *serverStream) SetHeader(md metadata.MD) error  { return s.call.setHeader(md) }
func (s *serverStream) SendHeader(md metadata.MD) error { return s.call.sendHeader(md) }
func (s *serverStream) SetTrailer(md metadata.MD)       { s.call.setTrailer(md) }
func (s *serverStream) Context() context.Context        { return s.call.ctx }

// SendMsg waits for the client's credit, or the call's end.
func (s *serverStream) SendMsg(m any) error {
	if err := s.call.flushHeader(); err != nil {
		return s.fail(err)
	}
	return s.fail(s.call.stream.send(s.call, m, s.call.sending()))
}

// RecvMsg waits for the next message; io.EOF says that the client has sent its last.
func (s *serverStream) RecvMsg(m any) error {
	if s.ahead {
		b := s.peeked
		s.peeked, s.ahead = nil, false
		return s.fail(unmarshal(b, m))
	}
	b, err := s.call.stream.receive(s.call)
	if err != nil {
		return s.fail(err)
	}
	return s.fail(unmarshal(b, m))
}

// fail makes an error one that a handler can return as it is.
func (s *serverStream) fail(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return localError(s.call.method.full, "", err)
}

func (c *serverCall) sending() *HandleSet {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.handles
}
