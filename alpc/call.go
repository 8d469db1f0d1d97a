package alpc

import (
	"context"
	"math/rand/v2"
	"os"

	"sallyport/internal/channel"
	"sallyport/internal/fdtype"
	"sallyport/ntstatus"
)

// Call sends m as a REQUEST and returns its reply (NtAlpcSendWaitReceivePort with SYNC_REQUEST). The context's deadline
// travels with it, so that the server knows how long anybody waits. When ctx ends first, Call tells the server (CANCELED)
// and returns IO_TIMEOUT or REQUEST_CANCELED; a reply that comes later is dropped. PORT_MESSAGE_TOO_LONG: Data is longer
// than MaxMessageLength. PORT_DISCONNECTED: the peer is gone, and whether it had served the request is unknown. A status
// that the peer's port replies with instead of a message (RPC_S_SERVER_TOO_BUSY: MaxPending reached) is the error.
//
// Of m, CallbackID, Data, Handles, Deadline, TraceID and ContextID are read; m isn't changed.
func (p *Port) Call(ctx context.Context, m *Message) (*Message, error) {
	c := calls.Get().(*call)
	defer calls.Put(c)
	c.callback = m.CallbackID
	id := p.register(c)
	if err := p.send(ctx, channel.Request, id, m); err != nil {
		if !p.forget(id) {
			f := <-c.reply // of a peer that answers what it was not asked, or that is gone
			f.Close()
		}
		return nil, p.fail("alpc.Call", err)
	}
	// Where nobody reads the ring, this is all that happens.
	select {
	case <-p.lead:
		p.leadUntil(ctx, func() bool { return len(c.reply) > 0 })
	default:
	}
	select {
	case f := <-c.reply:
		return p.replied(f)
	default:
	}
	for {
		select {
		case f := <-c.reply:
			return p.replied(f)
		case <-p.lead:
			p.leadUntil(ctx, func() bool { return len(c.reply) > 0 })
		case <-ctx.Done():
			if !p.forget(id) {
				return p.replied(<-c.reply) // it came in this very moment
			}
			p.cancel(id)
			return nil, p.fail("alpc.Call", ctx.Err())
		case <-p.ch.Done():
			if !p.forget(id) {
				return p.replied(<-c.reply)
			}
			return nil, p.fail("alpc.Call", p.ch.Err())
		}
	}
}

// replied makes a message of the frame that answers a call.
func (p *Port) replied(f channel.Frame) (*Message, error) {
	if f.Status != ntstatus.Success {
		f.Close()
		return nil, ntstatus.New("alpc.Call", p.name, f.Status)
	}
	return message(&f), nil
}

// Send sends m as a DATAGRAM: nobody answers, and its arrival isn't known. It waits under ctx while the peer has no room.
func (p *Port) Send(ctx context.Context, m *Message) error {
	return p.fail("alpc.Send", p.send(ctx, channel.Datagram, 0, m))
}

// Reply answers a request that Receive returned, once: REPLY_MESSAGE_MISMATCH if it was answered already or is none. A
// request that its caller canceled is answered all the same, which ends its charge; the caller drops the reply. When ctx
// ends before the reply is sent, the request is still pending.
func (p *Port) Reply(ctx context.Context, request, reply *Message) error {
	p.mu.Lock()
	in, waiting := p.inbound[request.ID]
	if !waiting || request.Type != TypeRequest || in.callback != request.CallbackID {
		p.mu.Unlock()
		if err := p.ch.Err(); err != nil {
			return p.fail("alpc.Reply", err)
		}
		return ntstatus.New("alpc.Reply", p.name, ntstatus.ReplyMessageMismatch)
	}
	delete(p.inbound, request.ID)
	p.mu.Unlock()

	m := *reply
	m.CallbackID, m.ContextID = request.CallbackID, 0
	if err := p.send(ctx, channel.Reply, request.ID, &m); err != nil {
		p.mu.Lock()
		p.inbound[request.ID] = in
		p.mu.Unlock()
		return p.fail("alpc.Reply", err)
	}
	p.ch.Counters().AddPending(-1)
	return nil
}

func (p *Port) send(ctx context.Context, t channel.Type, id uint32, m *Message) error {
	if len(m.Data) > p.o.maxMessage || len(m.Handles) > MaxHandles {
		return ntstatus.Errorf("alpc.Send", p.name, ntstatus.PortMessageTooLong, "%d bytes and %d handles of at most %d and %d", len(m.Data), len(m.Handles), p.o.maxMessage, MaxHandles)
	}
	h := channel.Header{Type: t, ID: id, CallbackID: m.CallbackID, ContextID: m.ContextID, TraceID: m.TraceID, Deadline: channel.Deadline(m.Deadline)}
	if at, ok := ctx.Deadline(); ok && (m.Deadline.IsZero() || at.Before(m.Deadline)) {
		h.Deadline = channel.Deadline(at)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(m.Handles) == 0 {
		return p.ch.Send(ctx, &h, m.Data, nil, nil)
	}
	files := make([]*os.File, len(m.Handles))
	kinds := make([]fdtype.Kind, len(m.Handles))
	for i, handle := range m.Handles {
		files[i], kinds[i] = handle.File, fdtype.Of(handle.File)
		if kinds[i] == 0 || handle.Type != 0 && fdtype.Kind(handle.Type) != kinds[i] {
			return ntstatus.Errorf("alpc.Send", p.name, ntstatus.ObjectTypeMismatch, "handle %d is of type %#x, said to be %#x", i, kinds[i], handle.Type)
		}
	}
	return p.ch.Send(ctx, &h, m.Data, files, kinds)
}

// register gives c an id that no other waiting call has. Ids are random: one that is guessed from an earlier one names
// nothing.
func (p *Port) register(c *call) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		id := rand.Uint32()
		if _, taken := p.outbound[id]; id != 0 && !taken {
			p.outbound[id] = c
			return id
		}
	}
}

// forget takes a call back; false means that its reply has been delivered.
func (p *Port) forget(id uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, waiting := p.outbound[id]
	delete(p.outbound, id)
	return waiting
}

// cancel tells the peer that nobody waits for the reply any more. It must not wait itself, so it is sent when there is
// room; a peer that never reads gets none.
func (p *Port) cancel(id uint32) {
	go func() {
		ctx, stop := context.WithTimeout(context.Background(), noticeWait)
		defer stop()
		p.ch.Send(ctx, &channel.Header{Type: channel.Canceled, ID: id}, nil, nil, nil)
	}()
}
