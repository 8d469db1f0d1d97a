package csr

import (
	"bytes"
	"context"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	"sallyport/alpc"
	"sallyport/proto/csrpb"
)

// View is a person's terminal on a console: its streams, and what the person may do.
type View struct {
	Session uint32
	Attach  *csrpb.Attach
	In      io.Reader // what is typed; nil for none. It may be read once more after Run has returned
	Out     io.Writer
	Sizes   <-chan *csrpb.Size // new sizes of the person's window; nil for none
	Detach  byte               // the key that detaches; 0 for none

	// Event is told what is no output: attached (also each time it is attached again after csrss came back), output lost, a new
	// size, the end. May be nil. It runs between two writes to Out.
	Event func(*csrpb.AttachConsoleResponse)
}

// Run shows the console until it ends, the person detaches or ctx ends. When csrss goes and comes back, it attaches again where
// it was: no byte of output is shown twice, and none is left out that csrss kept. Keys typed meanwhile wait.
func (v View) Run(ctx context.Context, sys *alpc.System) (*csrpb.Ended, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := make(chan []byte)
	if v.In != nil {
		go v.read(ctx, keys)
	}
	request := proto.CloneOf(v.Attach)
	for {
		ended, err := v.once(ctx, sys, request, keys)
		if ended != nil || ctx.Err() != nil || !Gone(err) {
			return ended, err
		}
	}
}

// read passes on what is typed; an empty slice is the wish to detach.
func (v View) read(ctx context.Context, keys chan<- []byte) {
	for {
		b := make([]byte, 4096)
		n, err := v.In.Read(b)
		b = b[:n]
		detach := err != nil
		if i := bytes.IndexByte(b, v.Detach); v.Detach != 0 && i >= 0 {
			b, detach = b[:i], true
		}
		for _, part := range [][]byte{b, {}} {
			if len(part) == 0 && !detach {
				continue
			}
			select {
			case keys <- part:
			case <-ctx.Done():
				return
			}
		}
		if detach {
			return
		}
	}
}

// once is one attachment. It moves the request's position and size on, for the next.
func (v View) once(ctx context.Context, sys *alpc.System, request *csrpb.Attach, keys <-chan []byte) (ended *csrpb.Ended, err error) {
	c, err := Dial(ctx, sys, v.Session)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a, err := c.Attach(ctx, request)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if request.NoReplay {
		request.NoReplay, request.From = false, a.Console.End
	}
	v.event(&csrpb.AttachConsoleResponse{Message: &csrpb.AttachConsoleResponse_Attached{
		Attached: &csrpb.Attached{Viewer: a.ID, Console: a.Console}}})

	// The sender stops before once returns, so that the next attachment's alone takes keys.
	stop, stopped := make(chan struct{}), make(chan struct{})
	var last *csrpb.Size
	var leaving bool
	go func() {
		defer close(stopped)
		last, leaving = v.send(a, keys, stop)
	}()
	defer func() {
		close(stop)
		a.Close()
		<-stopped
		if last != nil {
			request.Size = last
		}
		if leaving && ended == nil { // csrss was gone before it could say so
			ended, err = &csrpb.Ended{Reason: csrpb.Ended_DETACHED}, nil
		}
	}()

	for {
		m, err := a.Recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // csrss says why it ends a stream, so this one was cut
		}
		if err != nil {
			return nil, err
		}
		switch {
		case m.GetOutput() != nil:
			if _, err := v.Out.Write(m.GetOutput().Data); err != nil {
				return nil, err
			}
			request.From = m.GetOutput().Position + uint64(len(m.GetOutput().Data))
		case m.GetEnded() != nil:
			v.event(m)
			return m.GetEnded(), nil
		default:
			if m.GetLost() != nil {
				request.From = m.GetLost().Position
			}
			v.event(m)
		}
	}
}

// send passes keys and sizes on until it is stopped or can't. It returns the last size, and whether the person wants to leave.
func (v View) send(a *Attachment, keys <-chan []byte, stop <-chan struct{}) (last *csrpb.Size, leaving bool) {
	for {
		var err error
		select {
		case <-stop:
			return last, leaving
		case b := <-keys:
			if len(b) == 0 {
				leaving = true
				err = a.Detach()
			} else {
				_, err = a.Write(b)
			}
		case s, ok := <-v.Sizes:
			if !ok {
				v.Sizes = nil
				continue
			}
			last = s
			err = a.Resize(int(s.Columns), int(s.Rows))
		}
		if err != nil {
			return last, leaving
		}
	}
}

func (v View) event(m *csrpb.AttachConsoleResponse) {
	if v.Event != nil {
		v.Event(m)
	}
}
