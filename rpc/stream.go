package rpc

import (
	"context"
	"io"
	"sync"

	"sallyport/alpc"
)

// Flow control counts units: the bytes of a piece plus frameCost, so that empty messages are not free. The receiver opens a
// window and gives units back as its reader takes pieces; it keeps at most a window of unread pieces, however slow the
// reader is. A message larger than the window flows while somebody waits for it.
const (
	frameCost     = 64
	minWindow     = 64<<10 + frameCost // a frame always fits
	maxWindow     = 1 << 30
	defaultWindow = 256 << 10
)

// inbox is what has come of a stream's messages and was not read yet.
type inbox struct {
	mu     sync.Mutex
	ready  chan struct{} // capacity 1: something changed
	frames []datagramFrame
	room   uint32 // what the peer may still send
	owed   uint32 // taken, and not yet given back
	window uint32
	end    bool  // nothing more will come
	err    error // with end: why; nil is a clean end
}

func newInbox(window uint32) inbox {
	return inbox{ready: make(chan struct{}, 1), room: window, window: window}
}

// push takes over a piece from the peer; false says that the peer sent more than its window.
func (in *inbox) push(f datagramFrame) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if f.flags&flagMsg != 0 && !in.end {
		cost := uint32(len(f.body)) + frameCost
		if cost > in.room {
			return false
		}
		in.room -= cost
		in.frames = append(in.frames, f)
	}
	if f.flags&flagEnd != 0 {
		in.end = true
	}
	in.signal()
	return true
}

// close says that nothing more comes. With an error, what is unread is forgotten.
func (in *inbox) close(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.end, in.err = true, err
	}
	if err != nil {
		in.frames = nil
	}
	in.signal()
}

func (in *inbox) ended() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.end
}

func (in *inbox) signal() {
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

// pop waits for the next piece. credit is what to give back to the peer now, 0 for nothing. The end is io.EOF.
func (in *inbox) pop(ctx context.Context) (f datagramFrame, credit uint32, err error) {
	for {
		in.mu.Lock()
		switch {
		case in.err != nil:
			err = in.err
			in.mu.Unlock()
			return f, 0, err
		case len(in.frames) > 0:
			f = in.frames[0]
			in.frames[0] = datagramFrame{}
			if in.frames = in.frames[1:]; len(in.frames) == 0 {
				in.frames = nil
			}
			in.owed += uint32(len(f.body)) + frameCost
			if in.owed >= in.window/2 && !in.end {
				credit, in.owed = in.owed, 0
				in.room += credit
			}
			in.mu.Unlock()
			return f, credit, nil
		case in.end:
			in.mu.Unlock()
			return f, 0, io.EOF
		}
		in.mu.Unlock()
		select {
		case <-in.ready:
		case <-ctx.Done():
			return f, 0, ctx.Err()
		}
	}
}

// outbox is what the peer allows us to send.
type outbox struct {
	mu     sync.Mutex
	ready  chan struct{} // capacity 1
	credit uint64
}

func newOutbox(credit uint32) outbox {
	return outbox{ready: make(chan struct{}, 1), credit: uint64(credit)}
}

// add gives units; false says that the peer gave more than any window.
func (out *outbox) add(n uint32) bool {
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.credit += uint64(n); out.credit > maxWindow {
		return false
	}
	select {
	case out.ready <- struct{}{}:
	default:
	}
	return true
}

// take waits until a piece of n bytes may be sent.
func (out *outbox) take(ctx context.Context, n int) error {
	cost := uint64(n) + frameCost
	for {
		out.mu.Lock()
		if out.credit >= cost {
			out.credit -= cost
			out.mu.Unlock()
			return nil
		}
		out.mu.Unlock()
		select {
		case <-out.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stream is what both ends of a stream have in common. SendMsg and RecvMsg may run beside each other, but each only once
// at a time, as gRPC has it.
type stream struct {
	port    *alpc.Port
	call    uint32
	context uint32 // the security context that a client sends under
	in      inbox
	out     outbox
	max     struct{ send, receive int }

	posting sync.Mutex // held while a datagram is sent
	sent    uint64     // datagrams
	over    bool       // no more may be sent
}

// send sends one message under the peer's credit, in pieces if need be.
func (s *stream) send(ctx context.Context, m any, handles *HandleSet) error {
	buf := getBuffer()
	defer buf.free()
	buf.b = appendDatagram(buf.b, kindData, 0, s.call, 0)
	if err := buf.marshal(m); err != nil {
		return err
	}
	size := len(buf.b) - datagramHeaderLen
	if size > s.max.send {
		return tooLong(size, s.max.send)
	}
	files, given := handles.outgoing()
	defer closeFiles(given)
	piece := min(s.port.MaxMessageLength(), minWindow-frameCost) - datagramHeaderLen
	for at := 0; ; {
		n := min(size-at, piece)
		if err := s.out.take(ctx, n); err != nil {
			return err
		}
		flags := uint8(flagMsg)
		if at+n < size {
			flags |= flagMore
		}
		// The header overwrites the end of the piece before, which has left.
		frame := buf.b[at : at+datagramHeaderLen+n]
		appendDatagram(frame[:0], kindData, flags, s.call, 0)
		if err := s.post(ctx, frame, files); err != nil {
			return err
		}
		if at, files = at+n, nil; at == size {
			return nil
		}
	}
}

// receive waits for the next message and returns its bytes; io.EOF is the clean end.
func (s *stream) receive(ctx context.Context) ([]byte, error) {
	var message []byte
	for first := true; ; first = false {
		f, credit, err := s.in.pop(ctx)
		if err == io.EOF && !first {
			err = invalidFrame("stream ended inside a message")
		}
		if err != nil {
			return nil, err
		}
		if credit > 0 {
			if err := s.datagram(ctx, kindCredit, 0, credit, nil); err != nil && !s.in.ended() {
				return nil, err
			}
		}
		if len(message)+len(f.body) > s.max.receive {
			return nil, tooLong(len(message)+len(f.body), s.max.receive)
		}
		if first && f.flags&flagMore == 0 {
			return f.body, nil
		}
		message = append(message, f.body...)
		if f.flags&flagMore == 0 {
			return message, nil
		}
	}
}

// datagram sends a datagram of the call that carries no message.
func (s *stream) datagram(ctx context.Context, k kind, flags uint8, size uint32, body []byte) error {
	buf := getBuffer()
	defer buf.free()
	buf.b = append(appendDatagram(buf.b, k, flags, s.call, size), body...)
	return s.post(ctx, buf.b, nil)
}

// post sends a datagram, unless the stream is over, and counts it.
func (s *stream) post(ctx context.Context, frame []byte, files []alpc.Handle) error {
	s.posting.Lock()
	defer s.posting.Unlock()
	if s.over {
		return context.Canceled
	}
	err := s.port.Send(ctx, &alpc.Message{Type: alpc.TypeDatagram, Data: frame, Handles: files, ContextID: s.context})
	if err == nil {
		s.sent++
	}
	return err
}

// seal lets no more datagrams out and returns how many there were.
func (s *stream) seal() uint64 {
	s.posting.Lock()
	defer s.posting.Unlock()
	s.over = true
	return s.sent
}
