package alpc

import (
	"context"
	"time"

	"sallyport/internal/channel"
	"sallyport/internal/fdtype"
	"sallyport/ntstatus"
)

const (
	noticeWait  = 5 * time.Second // a cancel or refusal that the peer doesn't read for so long is given up
	maxRefusals = 64              // refusals waiting to be sent, beyond which the peer floods us without reading
	drainWait   = 5 * time.Second // what a peer left behind when it hung up waits so long for room in the queue
)

// Who reads. In the socket gear the background goroutine does, parked in the netpoller: what it reads it hands over with
// a goroutine switch and no system call. In the shared gear a reader sleeps on a futex, and a hand-over would cost a
// thread switch, so whoever waits for a message reads itself: one of the goroutines in Call or Receive takes the right
// to read (lead), distributes what comes until its own message is there, and passes the right on. The background then
// only watches the socket for the peer's death.

// Receive returns the peer's next REQUEST, DATAGRAM or notice (CANCELED, LOST_REPLY, CLIENT_DIED), in the order they were
// sent (NtAlpcSendWaitReceivePort). When the connection has ended and the queue is empty, it returns why. A CANCELED
// message says that the caller of the request with its ID is gone. The receiver closes the handles.
//
// Who sent it is settled here (Message.Sender): after a change of the sender was acknowledged to it, no message that it sends is
// received in its old name. A message under a context that the core never made ends the connection; a request under one that
// was deleted is refused with INVALID_HANDLE, a datagram dropped.
func (p *Port) Receive(ctx context.Context) (*Message, error) {
	for {
		m, err := p.next(ctx)
		if err != nil {
			return nil, err
		}
		sender, known, err := p.senderOf(m)
		switch {
		case err != nil:
			m.CloseHandles()
			p.ch.End(err)
			return nil, p.fail("alpc.Receive", p.ch.Err())
		case !known:
			p.turnAway(m)
			continue
		}
		m.Sender = sender
		return m, nil
	}
}

// next takes the peer's next message from the queue.
func (p *Port) next(ctx context.Context) (*Message, error) {
	for {
		select {
		case m := <-p.queue:
			return m, nil
		default:
		}
		// Where nobody reads the ring, this is all that happens.
		select {
		case <-p.lead:
			p.leadUntil(ctx, func() bool { return len(p.queue) > 0 })
			if len(p.queue) > 0 {
				continue
			}
		default:
		}
		select {
		case m := <-p.queue:
			return m, nil
		case <-p.lead:
			p.leadUntil(ctx, func() bool { return len(p.queue) > 0 })
		case <-ctx.Done():
			return nil, p.fail("alpc.Receive", ctx.Err())
		case <-p.ch.Done():
			select {
			case m := <-p.queue:
				return m, nil
			default:
				return nil, p.fail("alpc.Receive", p.ch.Err())
			}
		}
	}
}

// leadUntil reads the ring until satisfied, ctx is done or the connection has ended. The caller has taken the right to
// read; leadUntil passes it on.
func (p *Port) leadUntil(ctx context.Context, satisfied func() bool) {
	for !satisfied() {
		f, err := p.ch.Recv(ctx)
		switch {
		case err == channel.ErrShifted:
			// The socket is the background's.
			p.ch.StopWatch()
			p.back <- struct{}{}
			return
		case err != nil:
			p.lead <- struct{}{}
			return
		}
		p.dispatch(&f)
	}
	p.lead <- struct{}{}
}

// background reads the socket, and watches it while the ring is read. At the end it gives everything back.
func (p *Port) background() {
	for p.readSocket() {
		p.lead <- struct{}{}
		if !p.watch() {
			break
		}
	}
	// Here it holds the right to read for good.
	if err := p.ch.Err(); ntstatus.Of(err) != ntstatus.PortDisconnected && ntstatus.Of(err) != ntstatus.PortClosed {
		p.log.Warn("connection ended", "peer", p.name, "error", err)
	}
	p.ch.Release()
	if c := p.o.client; c != nil && c.PIDFD != nil {
		c.PIDFD.Close()
	}
	if p.o.ended != nil {
		p.o.ended()
	}
}

// readSocket reads until the direction shifts up (true) or the connection has ended (false).
func (p *Port) readSocket() bool {
	for {
		f, err := p.ch.Recv(context.Background())
		if err != nil {
			return err == channel.ErrShifted
		}
		p.dispatch(&f)
	}
}

// watch waits for the peer's death while others read the ring. True means that the socket is to be read again; else the
// connection has ended and nobody reads.
func (p *Port) watch() bool {
	p.ch.WatchHangup()
	select {
	case <-p.back:
		p.ch.ReadAgain()
		return true
	case <-p.lead:
	}
	// The peer is gone. What it left in the ring is delivered; a shift in it leads back to the socket.
	for {
		f, err := p.ch.Recv(context.Background())
		switch {
		case err == channel.ErrShifted:
			p.ch.ReadAgain()
			return true
		case err != nil:
			return false
		}
		p.dispatch(&f)
	}
}

// dispatch hands a frame to whom it is for. One that breaks the protocol ends the connection.
func (p *Port) dispatch(f *channel.Frame) {
	if len(f.Payload) > p.o.maxMessage {
		f.Close()
		p.ch.End(ntstatus.New("alpc.Receive", p.name, ntstatus.PortMessageTooLong))
		return
	}
	if f.ContextID != 0 && p.o.senders == nil {
		f.Close()
		p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.InvalidMessage, "a message under security context %d: this end's peer has none", f.ContextID))
		return
	}
	switch f.Type {
	case channel.Reply:
		p.mu.Lock()
		c := p.outbound[f.ID]
		if c != nil && c.callback == f.CallbackID {
			delete(p.outbound, f.ID)
			c.reply <- *f // holds one, and only who deletes the call sends
			f.Files = nil
		}
		p.mu.Unlock()
		f.Close() // of a call that was given up, or of none
	case channel.Request:
		p.request(f)
	case channel.Canceled:
		p.mu.Lock()
		in, known := p.inbound[f.ID]
		if known = known && !in.canceled; known {
			in.canceled = true
			p.inbound[f.ID] = in
		}
		p.mu.Unlock()
		if known {
			p.push(message(f))
		}
		f.Close()
	case channel.PortClosed:
		f.Close()
		status := f.Status
		if status.IsSuccess() {
			status = ntstatus.PortDisconnected
		}
		p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, status, "the peer ended the connection"))
	default: // DATAGRAM and notices; the channel let nothing else through
		p.push(message(f))
	}
}

// request takes a request, or refuses it when as many as were granted wait already.
func (p *Port) request(f *channel.Frame) {
	p.mu.Lock()
	_, twice := p.inbound[f.ID]
	full := len(p.inbound) >= p.o.maxPending
	flood := full && p.rejected >= maxRefusals
	switch {
	case twice || flood:
	case full:
		p.rejected++
	default:
		p.inbound[f.ID] = pending{callback: f.CallbackID}
	}
	p.mu.Unlock()
	switch {
	case twice:
		f.Close()
		p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.InvalidMessage, "two requests of id %d", f.ID))
	case flood:
		f.Close()
		p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.QuotaExceeded, "more than %d requests pending, and refusals unread", p.o.maxPending))
	case full:
		f.Close()
		go p.refuse(f.ID, f.CallbackID, ntstatus.RPCServerTooBusy)
	default:
		p.ch.Counters().AddPending(1)
		p.push(message(f))
	}
}

// refuse replies with a status alone. It has a goroutine of its own, so that reading never waits for the peer to read.
func (p *Port) refuse(id, callback uint32, status ntstatus.Status) {
	ctx, stop := context.WithTimeout(context.Background(), noticeWait)
	defer stop()
	p.ch.Send(ctx, &channel.Header{Type: channel.Reply, ID: id, CallbackID: callback, Status: status}, nil, nil, nil)
	p.mu.Lock()
	p.rejected--
	p.mu.Unlock()
}

// push queues a message for Receive. While the queue is full nobody reads, which makes the peer wait in its turn; its
// death is seen all the same, so that our own calls don't wait for a dead peer.
func (p *Port) push(m *Message) {
	select {
	case p.queue <- m:
		return
	default:
	}
	if _, in := p.ch.Gears(); in == channel.Socket {
		// The background itself is stuck here, so somebody else has to watch.
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			p.ch.WatchHangup()
		}()
		defer func() {
			p.ch.StopWatch()
			<-watched
			p.ch.ReadAgain()
		}()
	}
	late := time.NewTimer(drainWait)
	late.Stop()
	defer late.Stop()
	for gone := p.ch.HungUp(); ; {
		select {
		case p.queue <- m:
			return
		case <-gone:
			gone = nil
			p.abandon()
			late.Reset(drainWait)
		case <-late.C:
			m.CloseHandles()
			p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.MessageLost, "the peer is gone and nobody receives what it left"))
			return
		case <-p.ch.Done():
			m.CloseHandles()
			return
		}
	}
}

// abandon wakes our calls: the peer hung up, and its last words can't be read before Receive makes room.
func (p *Port) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, c := range p.outbound {
		delete(p.outbound, id)
		c.reply <- channel.Frame{Header: channel.Header{Status: ntstatus.LPCReplyLost}}
	}
}

func message(f *channel.Frame) *Message {
	m := &Message{
		Type: MessageType(f.Type), ID: f.ID, CallbackID: f.CallbackID, Data: f.Payload, memory: f.Memory,
		Deadline: channel.Time(f.Deadline), TraceID: f.TraceID, ContextID: f.ContextID,
	}
	if len(f.Files) > 0 {
		m.Handles = make([]Handle, len(f.Files))
		for i, file := range f.Files {
			m.Handles[i] = Handle{Type: HandleType(fdtype.Kind(f.Kinds[i])), File: file}
		}
		f.Files = nil
	}
	return m
}
