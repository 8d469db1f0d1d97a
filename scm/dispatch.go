package scm

import (
	"sync"
	"time"

	"google.golang.org/grpc"

	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
)

// dispatchBuffer is how many messages a native service may leave unread before its channel is cut.
const dispatchBuffer = 64

// dispatcher answers native services: the Dispatcher service.
type dispatcher struct {
	scmpb.UnimplementedDispatcherServer
	c *controller
}

// dispatch is the control channel of one native service.
type dispatch struct {
	out  chan *scmpb.ToService
	cut  chan struct{} // closed: replaced, or too slow
	once sync.Once
}

func (d *dispatch) send(m *scmpb.ToService) {
	select {
	case d.out <- m:
	default:
		d.close()
	}
}

func (d *dispatch) close() { d.once.Do(func() { close(d.cut) }) }

// Dispatch connects the process of a native service. Who it is, is what the core proved: the process that smss started for the
// service and no other, whatever name it says.
func (s *dispatcher) Dispatch(stream grpc.BidiStreamingServer[scmpb.FromService, scmpb.ToService]) error {
	const op = "scm.Dispatch"
	c := s.c
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "a service says hello first")
	}
	key := Fold(hello.Name)
	main, attempt, ok := c.mainProcess(key)
	caller, known := rpc.Caller(stream.Context())
	if !ok || !known || caller.PIDFD == nil || caller.PID != main || !pidfd.Alive(caller.PIDFD) {
		return ntstatus.Errorf(op, clip(hello.Name), ntstatus.AccessDenied, "the caller is not the process that was started for the service")
	}
	d := &dispatch{out: make(chan *scmpb.ToService, dispatchBuffer), cut: make(chan struct{})}
	var e *entry
	if err := c.apply(func(now time.Time) error {
		if e, err = c.find(op, hello.Name); err != nil {
			return err
		}
		if e.service.Config.Kind != scmpb.ServiceKind_SERVICE_KIND_NATIVE || e.service.Run.Attempt != attempt {
			return ntstatus.Errorf(op, hello.Name, ntstatus.InvalidDeviceRequest, "it is not a native service")
		}
		if e.native != nil {
			e.native.close()
		}
		e.native = d
		said := State(hello.Status.GetState())
		if hello.Status == nil || e.service.Run.State == StopPending && said != StopPending && said != Stopped {
			return c.machine.Step(now, Event{Type: EventConnected, Service: key, Attempt: attempt})
		}
		// One that has a status was started by this controller's predecessor and must not be started twice.
		return c.machine.Step(now, Event{Type: EventReport, Service: key, Attempt: attempt, Report: hello.Status, Resumed: true})
	}); err != nil {
		return err
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e.native == d {
			e.native = nil
		}
	}()
	if State(hello.Status.GetState()) == Stopped {
		return nil
	}
	gone := make(chan error, 1)
	go func() { gone <- c.hear(stream, key, attempt) }()
	for {
		select {
		case m := <-d.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-d.cut:
			return ntstatus.Errorf(op, hello.Name, ntstatus.PortDisconnected, "the channel was replaced, or was not read")
		case err := <-gone:
			return err
		}
	}
}

// hear takes what a service says until its channel ends. A report that the table does not allow is refused and logged; the service
// goes on. After SERVICE_STOPPED the controller ends the channel: that tells the service that its last word was heard.
func (c *controller) hear(stream grpc.BidiStreamingServer[scmpb.FromService, scmpb.ToService], key string, attempt uint64) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.GetStatus() != nil:
			if err := c.step(Event{Type: EventReport, Service: key, Attempt: attempt, Report: m.GetStatus()}); err != nil {
				c.log.Warn("a status was refused", "service", key, "error", err)
			} else if State(m.GetStatus().State) == Stopped {
				return nil
			}
		case m.GetResult() != nil:
			r := m.GetResult()
			_ = c.apply(func(now time.Time) error {
				var err error
				if r.Win32Error != 0 {
					err = c.machine.Step(now, Event{Type: EventRefused, Service: key, Attempt: attempt, ID: r.Id})
				}
				if answer := c.answers[r.Id]; answer != nil {
					select {
					case answer <- r.Win32Error:
					default: // answered already
					}
					if s, ok := c.machine.Get(key); ok {
						c.machine.touch(s) // wakes who waits for the answer
					}
				}
				return err
			})
		default:
			return ntstatus.Errorf("scm.Dispatch", key, ntstatus.InvalidParameter, "neither a status nor a result")
		}
	}
}
