// Package svc is for programs that are services of the controller (scm) themselves: a Handler gets controls and reports its
// status, as with golang.org/x/sys/windows/svc.
//
// The controller is trusted; it in turn proves that the program is the process that it started. A controller that is
// restarted finds the service again by itself: the Handler never notices. The channel of requests and that of statuses are the
// Handler's only shared state; nothing here holds a lock while a Handler runs.
package svc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
)

// PortName is where the controller listens; EnvName is where it tells a process which service it is.
const (
	PortName = `\RPC Control\ntsvcs`
	EnvName  = "SALLYPORT_SERVICE"
)

// State of a service (winsvc.h).
type State uint32

// The states.
const (
	Stopped         State = 1
	StartPending    State = 2
	StopPending     State = 3
	Running         State = 4
	ContinuePending State = 5
	PausePending    State = 6
	Paused          State = 7
)

// Cmd is a control (winsvc.h). 128 to 255 are the service's own.
type Cmd uint32

// The controls that a Handler may get. The others are not sent yet.
const (
	Stop        Cmd = 1
	Pause       Cmd = 2
	Continue    Cmd = 3
	Interrogate Cmd = 4 // answered by Run with the last status, and passed on
	Shutdown    Cmd = 5
	ParamChange Cmd = 6
)

// Accepted says which controls a service takes.
type Accepted uint32

// The accept bits.
const (
	AcceptStop             Accepted = 1
	AcceptPauseAndContinue Accepted = 2
	AcceptShutdown         Accepted = 4
	AcceptParamChange      Accepted = 8
)

// Status is what a service says about itself.
type Status struct {
	State      State
	Accepts    Accepted
	CheckPoint uint32        // must rise with every report of the same pending state, 0 otherwise
	WaitHint   time.Duration // while pending: the next report comes within this time
	Text       string        // a sentence for people
}

// ChangeRequest is a control with the status at the time.
type ChangeRequest struct {
	Cmd           Cmd
	CurrentStatus Status
}

// Handler is a service. Execute runs from start to stop: it reports by s (StartPending while it prepares, then Running) and
// obeys r until a Stop or Shutdown, then reports StopPending and returns. What it returns becomes the exit code: exit 0 is
// success, otherwise a Win32 error, or with specific the service's own number. ctx ends when the program is told to end
// by other means; r is closed never.
type Handler interface {
	Execute(ctx context.Context, args []string, r <-chan ChangeRequest, s chan<- Status) (specific bool, exit uint32)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, args []string, r <-chan ChangeRequest, s chan<- Status) (specific bool, exit uint32)

// Execute calls f.
func (f HandlerFunc) Execute(ctx context.Context, args []string, r <-chan ChangeRequest, s chan<- Status) (bool, uint32) {
	return f(ctx, args, r, s)
}

const (
	errorNone     = 0
	errorSpecific = 1066
	errorBusy     = 1061 // ERROR_SERVICE_CANNOT_ACCEPT_CTRL

	requestBuffer = 16
	retryFirst    = 20 * time.Millisecond
	retryMost     = time.Second
	farewell      = 5 * time.Second // to say that it stopped
)

// IsService reports whether this process was started by the controller.
func IsService() bool { return os.Getenv(EnvName) != "" }

// Run connects to the controller as service name ("": the one that the environment names) and runs h until it returns. It returns
// after the controller knows that the service stopped. The connection comes first and the Handler's preparations after, so
// that a slow start is never mistaken for a dead one. AccessDenied: the controller did not start this process.
func Run(ctx context.Context, name string, h Handler) error {
	const op = "svc.Run"
	if name == "" {
		name = os.Getenv(EnvName)
	}
	if name == "" {
		return ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "not started by the service controller: no name")
	}
	sys, err := alpc.Attach(ctx, alpc.Options{})
	if err != nil {
		return ntstatus.Wrap(op, name, err)
	}
	defer sys.Close()
	s := &session{name: name, requests: make(chan ChangeRequest, requestBuffer), started: make(chan []string, 1), changed: make(chan struct{}, 1), said: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.dispatch(ctx, sys) }()
	var args []string
	select {
	case args = <-s.started:
	case err := <-ended:
		return ntstatus.Wrap(op, name, err)
	}
	statuses := make(chan Status)
	type outcome struct {
		specific bool
		exit     uint32
	}
	done := make(chan outcome, 1)
	go func() {
		specific, exit := h.Execute(ctx, args, s.requests, statuses)
		done <- outcome{specific, exit}
	}()
	for {
		select {
		case status := <-statuses:
			if status.State != Stopped { // that is Execute's return, with its exit code
				s.report(status, 0, 0)
			}
		case err := <-ended: // the core has gone: nobody is left to obey
			cancel()
			<-done
			return ntstatus.Wrap(op, name, err)
		case o := <-done:
			win32, specific := o.exit, uint32(0)
			if o.specific {
				win32, specific = errorSpecific, o.exit
			}
			s.report(Status{State: Stopped}, win32, specific)
			select {
			case <-s.said:
			case <-ended:
			case <-time.After(farewell):
			}
			return nil
		}
	}
}

// session is the life of the service over as many connections as it takes.
type session struct {
	name     string
	requests chan ChangeRequest
	started  chan []string
	changed  chan struct{} // capacity 1: there is a status to send
	said     chan struct{} // closed once the controller has heard that the service stopped

	mu     sync.Mutex // guards what follows; a leaf
	begun  bool       // start has come
	queue  []*scmpb.NativeStatus
	last   *scmpb.NativeStatus // what a new controller is told
	status Status
}

// report queues a status for the controller.
func (s *session) report(status Status, win32, specific uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
	s.last = &scmpb.NativeStatus{
		State: scmpb.ServiceState(status.State), ControlsAccepted: uint32(status.Accepts), CheckPoint: status.CheckPoint,
		WaitHintMs: uint32(status.WaitHint.Milliseconds()), Text: status.Text, Win32ExitCode: win32, ServiceExitCode: specific,
	}
	s.queue = append(s.queue, s.last)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// dispatch keeps a channel to the controller, whichever it is. It ends when ctx or the attachment does, or when the first
// controller refuses.
func (s *session) dispatch(ctx context.Context, sys *alpc.System) error {
	for delay := retryFirst; ; delay = min(2*delay, retryMost) {
		connected, err := s.connect(ctx, sys)
		s.mu.Lock()
		begun := s.begun
		s.mu.Unlock()
		if connected {
			delay = retryFirst
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !begun && errors.Is(err, ntstatus.AccessDenied):
			return err
		}
		select {
		case <-time.After(delay):
		case <-sys.Done():
			return ntstatus.Errorf("svc.Dispatch", s.name, ntstatus.PortDisconnected, "the core has gone")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connect is one connection, until it ends.
func (s *session) connect(ctx context.Context, sys *alpc.System) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := rpc.Dial(ctx, sys, PortName)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := scmpb.NewDispatcherClient(conn).Dispatch(ctx)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	hello := &scmpb.Hello{Name: s.name}
	if s.begun {
		hello.Status = s.last
		s.queue = nil
		if hello.Status == nil {
			hello.Status = &scmpb.NativeStatus{State: scmpb.ServiceState_SERVICE_START_PENDING}
		}
	}
	s.mu.Unlock()
	if err := stream.Send(&scmpb.FromService{Body: &scmpb.FromService_Hello{Hello: hello}}); err != nil {
		return false, err
	}
	incoming := make(chan *scmpb.ToService)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case incoming <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case m := <-incoming:
			if err := s.obey(m, stream.Send); err != nil {
				return true, err
			}
		case <-s.changed:
			if err := s.flush(stream.Send); err != nil {
				return true, err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) { // only after SERVICE_STOPPED does the controller end the channel in peace
				close(s.said)
				<-ctx.Done()
			}
			return true, err
		}
	}
}

// flush sends what is queued; what could not be sent is told to the next controller by the hello.
func (s *session) flush(send func(*scmpb.FromService) error) error {
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, status := range queue {
		if err := send(&scmpb.FromService{Body: &scmpb.FromService_Status{Status: status}}); err != nil {
			return err
		}
	}
	return nil
}

// obey takes a message of the controller's. A control that finds the Handler's queue full is refused: it is busy.
func (s *session) obey(m *scmpb.ToService, send func(*scmpb.FromService) error) error {
	if start := m.GetStart(); start != nil {
		s.mu.Lock()
		again := s.begun
		s.begun = true
		s.mu.Unlock()
		if !again {
			s.started <- start.Arguments
		}
		return nil
	}
	c := m.GetControl()
	if c == nil {
		return nil // of a later version
	}
	s.mu.Lock()
	status, last := s.status, s.last
	s.mu.Unlock()
	result := uint32(errorNone)
	select {
	case s.requests <- ChangeRequest{Cmd: Cmd(c.Control), CurrentStatus: status}:
	default:
		result = errorBusy
	}
	if Cmd(c.Control) == Interrogate && last != nil {
		if err := send(&scmpb.FromService{Body: &scmpb.FromService_Status{Status: last}}); err != nil {
			return err
		}
	}
	return send(&scmpb.FromService{Body: &scmpb.FromService_Result{Result: &scmpb.ControlResult{Id: c.Id, Win32Error: result}}})
}
