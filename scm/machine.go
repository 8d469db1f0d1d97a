package scm

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
)

// What winsvc.h and its documentation fix.
const (
	errorNeverStarted  = 1077 // ERROR_SERVICE_NEVER_STARTED
	errorSpecific      = 1066 // ERROR_SERVICE_SPECIFIC_ERROR
	errorAborted       = 1067 // ERROR_PROCESS_ABORTED
	startWaitHint      = 2 * time.Second
	serviceHangTimeout = 80 * time.Second // added to the wait hint of a start that reports
)

// What we chose.
const (
	stoppedLinger   = 5 * time.Second // a native service that reported STOPPED has this long to end
	killAgain       = 5 * time.Second // a process that did not die of SIGKILL is killed again
	maxWaitHint     = 10 * time.Minute
	maxStatusText   = 1024
	restartAttempts = math.MaxUint32
)

// phase says what a START_PENDING service waits for.
type phase uint8

const (
	waitDeps  phase = 1 + iota // for services that it depends on
	waitSpawn                  // for smss
	waitReady                  // for the process
)

// Run is the volatile side of a service. It is what smss keeps for a controller that dies (as JSON), so that the next one
// goes on where it was.
type Run struct {
	State      State
	Phase      phase `json:",omitempty"`
	Prior      State `json:",omitempty"` // where a refused control goes back to
	Since      time.Time
	Accepted   uint32        `json:",omitempty"`
	Win32      uint32        `json:",omitempty"`
	Specific   uint32        `json:",omitempty"`
	CheckPoint uint32        `json:",omitempty"`
	WaitHint   time.Duration `json:",omitempty"`
	Text       string        `json:",omitempty"`
	Reason     string        `json:",omitempty"`

	Attempt uint64   `json:",omitempty"` // counts starts; names the process at smss
	Args    []string `json:",omitempty"`
	Process uint64   `json:",omitempty"` // smss's number; 0: none
	PID     uint32   `json:",omitempty"` // as shown: the service may name a descendant (MAINPID)
	Leader  uint32   `json:",omitempty"` // of the process that smss started
	Logon   uint64   `json:",omitempty"` // logon session made for this run; 0: none

	Deadline    time.Time       `json:",omitzero"`  // when EventTimer comes
	Fault       ntstatus.Status `json:",omitempty"` // why the controller killed it
	SaidStopped bool            `json:",omitempty"` // it reported SERVICE_STOPPED
	Asked       bool            `json:",omitempty"` // the stop was asked for, not its own idea
	AskedID     uint64          `json:",omitempty"` // of the control that brought it into its pending state
	StopWanted  bool            `json:",omitempty"` // to be stopped once nothing that depends on it runs
	Failures    uint32          `json:",omitempty"`
	LastFailure time.Time       `json:",omitzero"`
}

// Service is one entry of the machine's database.
type Service struct {
	Key     string // the folded name
	Config  *scmpb.ServiceConfig
	Run     Run
	Holders map[uint64]string // open handles and who holds them
}

// Event is something that happened. Only the fields that its type needs are set.
type Event struct {
	Type    EventType
	Service string // key
	Attempt uint64
	Process uint64
	PID     uint32
	Logon   uint64
	Args    []string
	Report  *scmpb.NativeStatus
	Resumed bool // Report is a running service's first word to a new controller: what was noted of it may lag behind
	Control uint32
	ID      uint64        // of a control, for its answer
	Hint    time.Duration // EventProgress: how long the service asks for; 0: a sign of life only
	Status  ntstatus.Status
	Retry   bool   // EventSpawnFailed: the cause may go away by itself
	Reason  string // for people
	Code    uint32 // EventExit
	Signal  uint32
}

// EffectType is what the shell has to do.
type EffectType uint8

// The effects.
const (
	EffectExec        EffectType = iota // make a token and execute the service
	EffectSignal                        // signal Process, or its Group
	EffectControl                       // send Control with ID to the native service
	EffectNativeStart                   // send start with Args to the native service
	EffectAcknowledge                   // tell smss that the exit of Process is dealt with
	EffectLogoff                        // end the logon session
	EffectChanged                       // note the run at smss, tell watchers and waiters
	EffectForget                        // the service is gone: remove its record and what smss keeps
)

// Effect is one of them, on a service.
type Effect struct {
	Type    EffectType
	Service *Service
	Attempt uint64
	Args    []string
	Process uint64
	Signal  syscall.Signal
	Group   bool
	Control uint32
	ID      uint64
	Logon   uint64
}

// Machine is the controller's logic over all services. It is not safe for concurrent use; the clock is handed in with each
// call, and what is to be done is handed out by Effects.
type Machine struct {
	services map[string]*Service
	locked   bool // LockServiceDatabase
	stopping bool // shutdown: nothing starts any more
	effects  []Effect
	changed  []string
}

// NewMachine returns a machine without services.
func NewMachine() *Machine { return &Machine{services: map[string]*Service{}} }

// Fold is the form of a name under which services are found: names are compared without case.
func Fold(name string) string { return strings.ToLower(name) }

// Add puts a service into the database, stopped and never started unless run says otherwise (adoption).
func (m *Machine) Add(now time.Time, config *scmpb.ServiceConfig, run *Run) *Service {
	s := &Service{Key: Fold(config.Name), Config: config, Holders: map[uint64]string{},
		Run: Run{State: Stopped, Since: now, Win32: errorNeverStarted, Reason: "it was never started"}}
	if run != nil {
		s.Run = *run
	}
	m.services[s.Key] = s
	m.touch(s)
	return s
}

// Resume says again what a predecessor may have died before saying: a stop that it noted. A native service hears it when it
// dispatches again.
func (m *Machine) Resume(s *Service) {
	if s.Run.State == StopPending && s.Run.Asked && s.Run.Process != 0 && s.Config.Kind != scmpb.ServiceKind_SERVICE_KIND_NATIVE {
		m.effects = append(m.effects, Effect{Type: EffectSignal, Service: s, Process: s.Run.Process, Signal: syscall.Signal(s.Config.StopSignal)})
	}
}

// Get finds a service by name.
func (m *Machine) Get(name string) (*Service, bool) {
	s, ok := m.services[Fold(name)]
	return s, ok
}

// All returns the services in the order of their names.
func (m *Machine) All() []*Service {
	all := make([]*Service, 0, len(m.services))
	for _, s := range m.services {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Service) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// Effects returns what is to be done since the last call, in order: what changed is noted before anything is done about it.
func (m *Machine) Effects() []Effect {
	var out []Effect
	for _, key := range m.changed {
		if s, ok := m.services[key]; ok {
			out = append(out, Effect{Type: EffectChanged, Service: s})
		}
	}
	out = append(out, m.effects...)
	m.effects, m.changed = nil, nil
	return out
}

// Deadline is the earliest time at which Tick has something to do; zero for never.
func (m *Machine) Deadline() time.Time {
	var first time.Time
	for _, s := range m.services {
		if d := s.Run.Deadline; !d.IsZero() && (first.IsZero() || d.Before(first)) {
			first = d
		}
	}
	return first
}

// Tick lets every deadline that has passed take its effect.
func (m *Machine) Tick(now time.Time) {
	for _, s := range m.All() {
		if d := s.Run.Deadline; !d.IsZero() && !now.Before(d) {
			_ = m.Step(now, Event{Type: EventTimer, Service: s.Key}) // a timer has nobody to answer
		}
	}
}

// Step takes one event. The error is the answer to whoever caused it; the machine is sound either way. An event of another attempt
// than the present one is EventSpawned's business (it is a stray) and dropped otherwise.
func (m *Machine) Step(now time.Time, e Event) error {
	s, ok := m.services[e.Service]
	if !ok {
		return ntstatus.New("scm.Step", e.Service, ntstatus.ServiceDoesNotExist)
	}
	err := m.step(now, s, e)
	m.settle(now)
	return err
}

func (m *Machine) step(now time.Time, s *Service, e Event) error {
	if e.Attempt != 0 && e.Attempt != s.Run.Attempt && e.Type != EventSpawned && e.Type != EventExit {
		return nil
	}
	return table(s.Run.State, e.Type).do(&step{m: m, Service: s, run: &s.Run, now: now, e: e})
}

// settle follows the consequences through the dependencies until nothing moves any more.
func (m *Machine) settle(now time.Time) {
	for moved := true; moved; {
		moved = false
		for _, s := range m.All() {
			switch {
			case s.Run.State == StartPending && s.Run.Phase == waitDeps:
				if e, ok := m.depsEvent(s); ok {
					_ = m.step(now, s, e)
					moved = true
				}
			case s.Run.StopWanted && s.Run.State != StopPending && len(m.active(m.Dependents(s))) == 0:
				s.Run.StopWanted = false
				if s.Run.State != Stopped {
					_ = m.step(now, s, Event{Type: EventStop, Control: controlStop, Service: s.Key})
					moved = true
				}
			case s.Config.DeletePending && s.Run.State == Stopped && len(s.Holders) == 0:
				delete(m.services, s.Key)
				m.effects = append(m.effects, Effect{Type: EffectForget, Service: s})
				moved = true
			}
		}
	}
}

// depsEvent says how the services that s depends on stand: all up, one failed for good, or still to be waited for.
func (m *Machine) depsEvent(s *Service) (Event, bool) {
	waiting := false
	for _, name := range s.Config.Dependencies {
		dep, ok := m.Get(name)
		switch {
		case !ok, dep.Run.State == Stopped && dep.Run.Deadline.IsZero(), dep.Run.State == StopPending && dep.Run.Asked:
			return Event{Type: EventDepsFailed, Reason: fmt.Sprintf("%s, which it depends on, does not run", name)}, true
		case !dep.Run.State.up():
			waiting = true
		}
	}
	return Event{Type: EventDepsReady}, !waiting
}

// touch has the service's change told once, after all that the event brings about.
func (m *Machine) touch(s *Service) {
	if !slices.Contains(m.changed, s.Key) {
		m.changed = append(m.changed, s.Key)
	}
}

// Start is StartService: the closure of what the service depends on starts with it. NT's order of checks: marked, disabled, the
// database lock, the state, then the dependencies.
func (m *Machine) Start(now time.Time, key string, args []string) error {
	s, ok := m.services[key]
	if !ok {
		return ntstatus.New("scm.StartService", key, ntstatus.ServiceDoesNotExist)
	}
	if err := m.startable(s); err != nil {
		return err
	}
	if s.Run.State != Stopped {
		return m.Step(now, Event{Type: EventStart, Service: key})
	}
	order, err := m.startOrder(s)
	if err != nil {
		return err
	}
	for _, dep := range order {
		if dep == s || dep.Run.State != Stopped || !dep.Run.Deadline.IsZero() {
			continue // it runs, is on its way, or will be restarted by itself
		}
		if err := m.startable(dep); err != nil {
			return ntstatus.Errorf("scm.StartService", s.Config.Name, ntstatus.ServiceDependencyFail, "%w", err)
		}
	}
	for _, dep := range order {
		if dep != s && dep.Run.State == Stopped && dep.Run.Deadline.IsZero() {
			_ = m.step(now, dep, Event{Type: EventStart, Service: dep.Key, Reason: "it is started for " + s.Config.Name})
		}
	}
	err = m.step(now, s, Event{Type: EventStart, Service: key, Args: args, Reason: "a start was asked for"})
	m.settle(now)
	return err
}

func (m *Machine) startable(s *Service) error {
	const op = "scm.StartService"
	switch {
	case s.Config.DeletePending:
		return ntstatus.New(op, s.Config.Name, ntstatus.ServiceMarkedForDelete)
	case s.Config.GetStart() == scmpb.StartType_SERVICE_DISABLED:
		return ntstatus.New(op, s.Config.Name, ntstatus.ServiceDisabled)
	case m.stopping:
		return ntstatus.New(op, s.Config.Name, ntstatus.SystemShutdownInProgress)
	case m.locked:
		return ntstatus.New(op, s.Config.Name, ntstatus.ServiceDatabaseLocked)
	}
	return nil
}

// StartAll starts every automatic service that can be started: at boot.
func (m *Machine) StartAll(now time.Time) map[string]error {
	failed := map[string]error{}
	for _, s := range m.All() {
		if s.Config.GetStart() == scmpb.StartType_SERVICE_AUTO_START && s.Run.State == Stopped && s.Run.Deadline.IsZero() {
			if err := m.Start(now, s.Key, nil); err != nil {
				failed[s.Key] = err
				s.Run.Win32, s.Run.Reason = win32Of(ntstatus.Of(err)), err.Error()
				m.touch(s)
			}
		}
	}
	return failed
}

// Control is ControlService for every code that clients may send: admission first, then the event. With dependents a STOP
// stops what depends on the service before it.
func (m *Machine) Control(now time.Time, key string, control uint32, id uint64, dependents bool) error {
	const op = "scm.ControlService"
	s, ok := m.services[key]
	if !ok {
		return ntstatus.New(op, key, ntstatus.ServiceDoesNotExist)
	}
	if control == controlStop && s.Run.State == Stopped && !s.Run.Deadline.IsZero() {
		return m.Step(now, Event{Type: EventStop, Service: key}) // ours: a stop cancels a restart to come
	}
	if status := admit(s.Run.State, s.Run.Accepted, control); status != ntstatus.Success {
		return ntstatus.Errorf(op, s.Config.Name, status, "the service is %s and accepts 0x%x", s.Run.State, s.Run.Accepted)
	}
	typ := EventControl
	switch control {
	case controlPause:
		typ = EventPause
	case controlContinue:
		typ = EventContinue
	case controlStop:
		typ = EventStop
		if active := m.active(m.Dependents(s)); len(active) > 0 {
			if !dependents {
				return ntstatus.Errorf(op, s.Config.Name, ntstatus.DependentServicesRunning, "%s depends on it", active[0].Config.Name)
			}
			for _, d := range active {
				status := admit(d.Run.State, d.Run.Accepted, controlStop)
				if status != ntstatus.Success && d.Run.State != StopPending {
					return ntstatus.New(op, d.Config.Name, status)
				}
			}
			for _, d := range append(active, s) {
				d.Run.StopWanted, d.Run.Reason = true, "a stop of "+s.Config.Name+" was asked for"
				m.touch(d)
			}
			m.settle(now)
			return nil
		}
	}
	return m.Step(now, Event{Type: typ, Service: key, Control: control, ID: id})
}

// Shutdown stops everything, dependents first, and starts nothing any more.
func (m *Machine) Shutdown(now time.Time) {
	m.stopping = true
	for _, s := range m.All() {
		if s.Run.State == Stopped {
			_ = m.step(now, s, Event{Type: EventStop}) // cancels a restart
			continue
		}
		s.Run.StopWanted, s.Run.Reason = true, "the system shuts down"
		m.touch(s)
	}
	m.settle(now)
}

// Idle reports whether nothing runs.
func (m *Machine) Idle() bool {
	for _, s := range m.services {
		if s.Run.State != Stopped {
			return false
		}
	}
	return true
}

// Lock takes or releases the database lock.
func (m *Machine) Lock(held bool) { m.locked = held }

// Locked reports whether somebody has it.
func (m *Machine) Locked() bool { return m.locked }

// Hold counts an open handle; Release its end.
func (m *Machine) Hold(key string, id uint64, who string) error {
	s, ok := m.services[key]
	if !ok {
		return ntstatus.New("scm.OpenService", key, ntstatus.ServiceDoesNotExist)
	}
	s.Holders[id] = who
	return nil
}

// Release ends a handle; what was only kept for it vanishes. s is what Hold was given: the name may be another's by now.
func (m *Machine) Release(now time.Time, s *Service, id uint64) {
	delete(s.Holders, id)
	m.settle(now)
}

// Delete marks a service. It may still be stopped, never started again.
func (m *Machine) Delete(now time.Time, key string) error {
	const op = "scm.DeleteService"
	s, ok := m.services[key]
	switch {
	case !ok:
		return ntstatus.New(op, key, ntstatus.ServiceDoesNotExist)
	case s.Config.DeletePending:
		return ntstatus.New(op, s.Config.Name, ntstatus.ServiceMarkedForDelete)
	}
	s.Config.DeletePending = true
	if s.Run.State == Stopped {
		s.Run.Deadline = time.Time{}
	}
	m.touch(s)
	m.settle(now)
	return nil
}

// step is one event on one service: what the actions of the table work on.
type step struct {
	*Service
	m   *Machine
	run *Run
	now time.Time
	e   Event
}

func (s *step) fail(status ntstatus.Status, text string) error {
	return ntstatus.Errorf("scm.Control", s.Config.Name, status, "%s", text)
}

func (s *step) effect(e Effect) {
	e.Service, e.Attempt = s.Service, s.run.Attempt
	s.m.effects = append(s.m.effects, e)
}

// enter changes the state; what belonged to the old one is cleared.
func (s *step) enter(state State, reason string) {
	s.run.State, s.run.Since, s.run.Reason = state, s.now, reason
	s.run.CheckPoint, s.run.WaitHint, s.run.Deadline, s.run.Phase = 0, 0, time.Time{}, 0
	s.m.touch(s.Service)
}

func (s *step) in(d time.Duration) time.Time { return s.now.Add(d) }

func (s *step) native() bool { return s.Config.Kind == scmpb.ServiceKind_SERVICE_KIND_NATIVE }

// begin: STOPPED to START_PENDING. A start that is asked for overtakes a restart that was planned.
func (s *step) begin() error {
	s.enter(StartPending, s.e.Reason)
	*s.run = Run{State: StartPending, Since: s.now, Reason: s.e.Reason, Phase: waitDeps, WaitHint: startWaitHint, Args: s.e.Args,
		Attempt: s.run.Attempt + 1, Failures: s.run.Failures, LastFailure: s.run.LastFailure}
	return nil
}

// restart is the timer in STOPPED: the delay of a failure action is over. The dependencies are started again, too.
func (s *step) restart() error {
	args := s.run.Args
	s.run.Deadline = time.Time{}
	if err := s.m.Start(s.now, s.Key, args); err != nil {
		s.run.Win32, s.run.Reason = win32Of(ntstatus.Of(err)), "the restart was refused: "+err.Error()
		if s.m.locked {
			s.run.Deadline = s.in(time.Second)
		}
		s.m.touch(s.Service)
	}
	return nil
}

func (s *step) cancelRestart() error {
	if s.run.Deadline.IsZero() {
		return s.fail(ntstatus.ServiceNotActive, "the service is STOPPED")
	}
	s.run.Deadline, s.run.Reason = time.Time{}, "a stop was asked for; the restart that was planned is cancelled"
	s.m.touch(s.Service)
	return nil
}

func (s *step) spawn() error {
	s.run.Phase = waitSpawn
	s.run.Reason = "it is being executed"
	s.effect(Effect{Type: EffectExec, Args: s.run.Args})
	s.m.touch(s.Service)
	return nil
}

func (s *step) depsFailed() error {
	if s.run.Phase != waitDeps {
		return nil
	}
	s.stopped(win32Of(ntstatus.ServiceDependencyFail), 0, s.e.Reason)
	return nil
}

// spawned: the process exists. A stop that came while it was made takes effect now.
func (s *step) spawned() error {
	if s.e.Process == s.run.Process {
		return nil
	}
	if s.e.Attempt != s.run.Attempt || s.run.Process != 0 {
		return s.killStray()
	}
	s.run.Process, s.run.PID, s.run.Leader, s.run.Logon = s.e.Process, s.e.PID, s.e.PID, s.e.Logon
	s.m.touch(s.Service)
	if s.run.State == StopPending {
		s.effect(Effect{Type: EffectSignal, Process: s.run.Process, Signal: syscall.SIGKILL, Group: true})
		s.run.Deadline = s.in(killAgain)
		return nil
	}
	s.run.Phase = waitReady
	s.run.Deadline = s.in(milliseconds(s.Config.StartTimeoutMs))
	s.run.Reason = "it has not said yet that it runs"
	if s.Config.Kind == scmpb.ServiceKind_SERVICE_KIND_PLAIN {
		s.run.Deadline = s.in(milliseconds(s.Config.ReadyDelayMs))
	}
	if !s.native() {
		s.run.Accepted = AcceptStop | AcceptShutdown
	}
	return nil
}

// killStray ends a process that no present attempt asked for.
func (s *step) killStray() error {
	s.effect(Effect{Type: EffectSignal, Process: s.e.Process, Signal: syscall.SIGKILL, Group: true})
	if s.e.Logon != 0 {
		s.effect(Effect{Type: EffectLogoff, Logon: s.e.Logon})
	}
	return nil
}

func (s *step) spawnFailed() error {
	if s.run.Process != 0 {
		return nil
	}
	if s.e.Logon != 0 {
		s.effect(Effect{Type: EffectLogoff, Logon: s.e.Logon})
	}
	asked := s.run.State == StopPending
	s.stopped(win32Of(s.e.Status), 0, s.e.Reason)
	switch {
	case asked:
		s.run.Win32 = 0
	case s.e.Retry:
		s.failure()
	default:
		s.run.Reason += "; trying again would not help"
	}
	return nil
}

// greet: a native service dispatches, for the first time or to a new controller.
func (s *step) greet() error {
	switch s.run.State {
	case StartPending:
		s.run.Deadline = s.in(serviceHangTimeout + startWaitHint)
		s.run.Reason = "it dispatches and has not reported yet"
		s.effect(Effect{Type: EffectNativeStart, Args: s.run.Args})
		s.m.touch(s.Service)
	case StopPending:
		if !s.run.SaidStopped {
			s.effect(Effect{Type: EffectControl, Control: controlStop})
		}
	}
	return nil
}

func (s *step) ready() error {
	if s.run.Phase != waitReady || s.Config.Kind != scmpb.ServiceKind_SERVICE_KIND_NOTIFY {
		return nil
	}
	s.running("it said that it is ready")
	return nil
}

func (s *step) running(reason string) {
	s.enter(Running, reason)
	s.run.Win32, s.run.Specific = 0, 0
	if !s.native() {
		s.run.Accepted = AcceptStop | AcceptShutdown
		if s.Config.ReloadSignal != 0 {
			s.run.Accepted |= AcceptParamChange
		}
		if s.Config.WatchdogMs != 0 {
			s.run.Deadline = s.in(milliseconds(s.Config.WatchdogMs))
		}
	}
}

// report takes a native service's status. A transition that the table does not allow is refused and changes nothing.
func (s *step) report() error {
	r := s.e.Report
	to := State(r.State)
	lagging := s.e.Resumed && s.run.State != Stopped && s.run.State != StopPending && to != Stopped
	if r.State <= 0 || r.State > scmpb.ServiceState(Paused) || !(lagging || reportable(s.run.State, to)) || !s.native() {
		return ntstatus.Errorf("scm.SetServiceStatus", s.Config.Name, ntstatus.InvalidParameter, "a service that is %s can't become %d", s.run.State, r.State)
	}
	hint := min(milliseconds(r.WaitHintMs), maxWaitHint)
	s.run.Text = clip(r.Text)
	if to == Stopped {
		s.run.SaidStopped = true
		if s.run.State != StopPending {
			s.enter(StopPending, "it reported that it stopped")
		}
		s.run.Win32, s.run.Specific, s.run.Accepted = r.Win32ExitCode, r.ServiceExitCode, 0
		s.run.Deadline = s.in(stoppedLinger)
		s.m.touch(s.Service)
		return nil
	}
	from := s.run.State
	progress := to != from || r.CheckPoint > s.run.CheckPoint
	if to != from {
		was := *s.run
		switch {
		case to == Running:
			s.running("it reported that it runs")
		case to == StopPending:
			s.stopping()
		default:
			s.enter(to, "it reported "+to.String())
		}
		if to.pending() {
			s.run.Prior = was.State
		}
	}
	s.run.Accepted = r.ControlsAccepted
	if to.pending() && progress {
		s.run.CheckPoint, s.run.WaitHint = r.CheckPoint, hint
		switch to {
		case StartPending:
			s.run.Deadline = s.in(serviceHangTimeout + hint)
		case StopPending:
			if d := s.in(hint); d.After(s.run.Deadline) {
				s.run.Deadline = d
			}
		default:
			s.run.Deadline = s.in(serviceHangTimeout + hint)
		}
	}
	s.m.touch(s.Service)
	return nil
}

// alive: WATCHDOG=1 or EXTEND_TIMEOUT_USEC.
func (s *step) alive() error {
	hint := min(s.e.Hint, maxWaitHint)
	switch {
	case hint > 0 && s.run.State.pending() && s.run.Process != 0:
		if d := s.in(hint); d.After(s.run.Deadline) {
			s.run.Deadline, s.run.WaitHint = d, hint
			s.m.touch(s.Service)
		}
	case hint == 0 && s.run.State == Running && s.Config.WatchdogMs != 0 && s.run.Fault == 0:
		s.run.Deadline = s.in(milliseconds(s.Config.WatchdogMs))
	}
	return nil
}

// stopping: the service stops by itself.
func (s *step) stopping() error {
	s.run.Prior = s.run.State
	s.enter(StopPending, "it said that it stops")
	s.run.Deadline = s.in(milliseconds(s.Config.StopTimeoutMs))
	return nil
}

// stop: somebody wants it stopped, and nothing that runs depends on it.
func (s *step) stop() error {
	phase, prior := s.run.Phase, s.run.State
	accepted := s.run.Accepted
	s.enter(StopPending, "a stop was asked for")
	s.run.Prior, s.run.Asked, s.run.AskedID = prior, true, s.e.ID
	s.run.Deadline = s.in(milliseconds(s.Config.StopTimeoutMs))
	s.run.WaitHint = milliseconds(s.Config.StopTimeoutMs)
	switch {
	case phase == waitDeps:
		s.stopped(0, 0, "a stop was asked for while it waited for what it depends on")
	case s.run.Process == 0:
		s.run.Deadline = time.Time{} // smss answers first
	case s.native():
		control := controlStop
		if s.m.stopping && accepted&AcceptShutdown != 0 {
			control = controlShutdown
		}
		s.effect(Effect{Type: EffectControl, Control: control, ID: s.e.ID})
	default:
		s.effect(Effect{Type: EffectSignal, Process: s.run.Process, Signal: syscall.Signal(s.Config.StopSignal)})
	}
	return nil
}

// ask sends PAUSE or CONTINUE and shows the pending state at once.
func (s *step) ask(pending State) error {
	if s.run.State != pending {
		prior, accepted := s.run.State, s.run.Accepted
		s.enter(pending, "a client asked for it")
		s.run.Prior, s.run.Accepted, s.run.WaitHint, s.run.AskedID = prior, accepted, startWaitHint, s.e.ID
		s.run.Deadline = s.in(serviceHangTimeout)
	}
	return s.send()
}

func (s *step) send() error {
	switch {
	case s.native():
		s.effect(Effect{Type: EffectControl, Control: s.e.Control, ID: s.e.ID})
	case s.e.Control == controlParamChange:
		s.effect(Effect{Type: EffectSignal, Process: s.run.Process, Signal: syscall.Signal(s.Config.ReloadSignal)})
	case s.e.Control != controlInterrogate: // the controller itself knows the status of a process that can't be asked
		return s.fail(ntstatus.InvalidServiceControl, "only native services take this control")
	}
	return nil
}

// goBack: the handler refused the control that brought the service into this state.
func (s *step) goBack() error {
	if s.e.ID != s.run.AskedID || !s.run.Asked && s.run.State == StopPending || s.run.SaidStopped || s.run.Prior == 0 {
		return nil
	}
	prior, accepted := s.run.Prior, s.run.Accepted
	s.enter(prior, "it refused the control")
	s.run.Accepted, s.run.Prior, s.run.Asked = accepted, 0, false
	if prior == StartPending {
		s.run.Phase = waitReady
		s.run.Deadline = s.in(serviceHangTimeout)
	}
	return nil
}

// startOverdue is the timer in START_PENDING: for a plain service the moment it counts as running, for others too late.
func (s *step) startOverdue() error {
	if s.run.Phase == waitReady && s.Config.Kind == scmpb.ServiceKind_SERVICE_KIND_PLAIN {
		s.running(fmt.Sprintf("it was executed and lived for %s", milliseconds(s.Config.ReadyDelayMs)))
		return nil
	}
	fault := ntstatus.ServiceRequestTimeout
	if s.native() && s.run.CheckPoint > 0 {
		fault = ntstatus.ServiceStartHang
	}
	return s.killFor(fault, "it did not say in time that it runs")
}

// hung is the timer while it runs: the watchdog, or a pending pause or continue without progress. The latter is only shown: the
// service may well do its work.
func (s *step) hung() error {
	if s.run.State == Running {
		return s.killFor(ntstatus.ServiceRequestTimeout, "it gave no sign of life within its watchdog time")
	}
	s.run.Deadline, s.run.Reason = time.Time{}, "it reports no progress: it seems to hang"
	s.m.touch(s.Service)
	return nil
}

func (s *step) killFor(fault ntstatus.Status, reason string) error {
	s.run.Fault, s.run.Reason = fault, reason
	return s.kill()
}

func (s *step) kill() error {
	s.effect(Effect{Type: EffectSignal, Process: s.run.Process, Signal: syscall.SIGKILL, Group: true})
	s.run.Deadline = s.in(killAgain)
	if s.run.State == StopPending && s.run.Fault == 0 {
		s.run.Reason = "it did not stop in time and was killed"
	}
	s.m.touch(s.Service)
	return nil
}

// acknowledge: the end of a process that is nobody's any more.
func (s *step) acknowledge() error {
	s.effect(Effect{Type: EffectAcknowledge, Process: s.e.Process})
	return nil
}

// ended: the process is gone, and with it the run. What is left of its group goes too, so that the next start finds its ports and
// files free.
func (s *step) ended() error {
	if s.e.Process != s.run.Process {
		return s.acknowledge()
	}
	run := *s.run
	s.effect(Effect{Type: EffectSignal, Process: run.Process, Signal: syscall.SIGKILL, Group: true})
	if run.Logon != 0 {
		s.effect(Effect{Type: EffectLogoff, Logon: run.Logon})
	}
	specific := s.e.Code
	how := fmt.Sprintf("its process %d exited with code %d", run.Leader, s.e.Code)
	if s.e.Signal != 0 {
		specific = 128 + s.e.Signal
		how = fmt.Sprintf("its process %d was ended by signal %d (%s)", run.Leader, s.e.Signal, syscall.Signal(s.e.Signal))
	}
	switch {
	case run.Fault != 0:
		s.stopped(win32Of(run.Fault), specific, run.Reason+"; "+how)
		s.failure()
	case run.SaidStopped:
		s.stopped(run.Win32, run.Specific, run.Reason+"; "+how)
		if run.Win32 != 0 && !run.Asked && s.actions().OnNonCrashFailures {
			s.failure()
		}
	case run.State == StopPending && run.Asked && !s.native():
		s.stopped(0, specific, run.Reason+"; "+how)
	case run.State != StartPending && specific == 0 && !s.native():
		s.stopped(0, 0, "it ended by itself; "+how)
	default:
		s.stopped(errorAborted, specific, how)
		if !run.Asked {
			s.failure()
		}
	}
	s.effect(Effect{Type: EffectAcknowledge, Process: run.Process})
	return nil
}

func (s *step) stopped(win32, specific uint32, reason string) {
	run := s.run
	s.enter(Stopped, reason)
	*run = Run{State: Stopped, Since: s.now, Win32: win32, Specific: specific, Reason: reason, Text: run.Text,
		Args: run.Args, Attempt: run.Attempt, Failures: run.Failures, LastFailure: run.LastFailure}
}

func (s *step) actions() *scmpb.FailureActions { return s.Config.FailureActions }

// failure counts a failure and plans what its action says; in STOPPED.
func (s *step) failure() {
	a := s.actions()
	reset := milliseconds(a.ResetPeriodMs)
	if s.now.Sub(s.run.LastFailure) > reset {
		s.run.Failures = 0
	}
	if s.run.Failures < restartAttempts {
		s.run.Failures++
	}
	s.run.LastFailure = s.now
	switch {
	case s.m.stopping || s.Config.DeletePending || s.Config.GetStart() == scmpb.StartType_SERVICE_DISABLED:
		return
	case len(a.Actions) == 0:
		s.run.Reason += "; its configuration has no failure action"
		return
	}
	n := min(int(s.run.Failures), len(a.Actions))
	action := a.Actions[n-1]
	if action.Type != scmpb.FailureAction_SC_ACTION_RESTART {
		s.run.Reason += fmt.Sprintf("; failure %d takes no action", s.run.Failures)
		return
	}
	delay, limit := milliseconds(action.DelayMs), milliseconds(a.MaxDelayMs)
	for i := n; i < int(s.run.Failures) && delay > 0 && delay < limit; i++ {
		delay *= 2
	}
	if int(s.run.Failures) > len(a.Actions) {
		delay = min(delay, max(limit, milliseconds(action.DelayMs)))
	}
	s.run.Deadline = s.in(delay)
}

func milliseconds(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }

// clip bounds what a service says about itself.
func clip(text string) string {
	if len(text) > maxStatusText {
		text = text[:maxStatusText]
	}
	return strings.ToValidUTF8(text, "?")
}

// win32Of is the Win32 number that SERVICE_STATUS carries for a status.
func win32Of(status ntstatus.Status) uint32 {
	if uint32(status)&0xFFFF0000 == 0xC0070000 {
		return uint32(status) & 0xFFFF
	}
	switch status {
	case ntstatus.Success:
		return 0
	case ntstatus.ObjectNameNotFound, ntstatus.ObjectPathNotFound:
		return 2 // ERROR_FILE_NOT_FOUND
	case ntstatus.AccessDenied:
		return 5 // ERROR_ACCESS_DENIED
	case ntstatus.InvalidParameter:
		return 87 // ERROR_INVALID_PARAMETER
	}
	return 31 // ERROR_GEN_FAILURE
}
