package scm

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/proto/scmpb"
)

// watchBuffer is how many events a slow watcher may leave unread before it loses its place.
const watchBuffer = 512

// watcher gets events of one service, or of all.
type watcher struct {
	name   string // folded; empty: all
	events chan *scmpb.ServiceEvent
	lost   bool // events did not fit: events is closed
}

func (c *controller) watch(name string) *watcher {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &watcher{name: Fold(name), events: make(chan *scmpb.ServiceEvent, watchBuffer)}
	c.watchers[w] = struct{}{}
	return w
}

func (c *controller) unwatch(w *watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watchers, w)
}

// publish tells the watchers. The caller holds mu.
func (c *controller) publish(e *scmpb.ServiceEvent) {
	for w := range c.watchers {
		if w.name != "" && w.name != Fold(e.Status.Name) {
			continue
		}
		select {
		case w.events <- e:
		default:
			w.lost = true
			close(w.events)
			delete(c.watchers, w)
		}
	}
}

// status is what a service shows. The caller holds mu.
func (c *controller) status(e *entry) *scmpb.ServiceStatus {
	s, r := e.service, &e.service.Run
	st := &scmpb.ServiceStatus{
		Name: s.Config.Name, DisplayName: s.Config.DisplayName, State: scmpb.ServiceState(r.State), ControlsAccepted: r.Accepted,
		Win32ExitCode: r.Win32, ServiceExitCode: r.Specific, CheckPoint: r.CheckPoint, WaitHintMs: uint32(r.WaitHint.Milliseconds()),
		Pid: r.PID, Text: r.Text, SinceUnixNs: r.Since.UnixNano(), ServiceType: s.Config.ServiceType, Start: s.Config.GetStart(),
		DeletePending: s.Config.DeletePending,
	}
	x := &scmpb.Explain{Reason: r.Reason, Failures: r.Failures, Starts: r.Attempt}
	if r.Failures > 0 {
		x.FailuresResetUnixNs = r.LastFailure.Add(milliseconds(s.Config.FailureActions.ResetPeriodMs)).UnixNano()
	}
	if !r.Deadline.IsZero() {
		x.NextUnixNs = r.Deadline.UnixNano()
		x.Next = map[State]string{
			Stopped:      fmt.Sprintf("it is restarted, after %s", failureText(r.Failures)),
			StartPending: "it is given up and killed unless it says that it runs",
			StopPending:  "it is killed unless it ends",
			Running:      "it is killed unless it gives a sign of life",
		}[r.State]
		if r.State == StartPending && s.Config.Kind == scmpb.ServiceKind_SERVICE_KIND_PLAIN {
			x.Next = "it counts as running if it lives that long"
		}
	}
	if r.State == StartPending && r.Phase == waitDeps {
		for _, d := range s.Config.Dependencies {
			if dep, ok := c.machine.Get(d); ok && !dep.Run.State.up() {
				x.Next = fmt.Sprintf("it is executed once %s runs, which is %s", dep.Config.Name, dep.Run.State)
				break
			}
		}
	}
	if s.Config.DeletePending {
		for _, who := range s.Holders {
			x.Holders = append(x.Holders, who)
		}
		slices.Sort(x.Holders)
	}
	if e.log != nil {
		x.LogBytesDropped = e.log.lost()
	}
	st.Explain = x
	return st
}

// shown is a service's record for the outside.
func shown(e *entry) *scmpb.ServiceConfig { return proto.CloneOf(e.service.Config) }

// matches applies ServiceStateFilter.
func matches(f scmpb.ServiceStateFilter, s State) bool {
	if s == Stopped {
		return f&scmpb.ServiceStateFilter_SERVICE_INACTIVE != 0
	}
	return f&scmpb.ServiceStateFilter_SERVICE_ACTIVE != 0
}

// controlTimeout is how long a native service's handler may take to answer (NT's 30 seconds).
const controlTimeout = 30 * time.Second
