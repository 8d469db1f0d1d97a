package scm

import (
	"sallyport/ntstatus"
)

// State is a service's state, with NT's numbers (winsvc.h).
type State uint8

// The seven states. Zero is none of them.
const (
	Stopped State = 1 + iota
	StartPending
	StopPending
	Running
	ContinuePending
	PausePending
	Paused
)

// String is the name as NT prints it.
func (s State) String() string {
	if s < Stopped || s > Paused {
		return "UNKNOWN"
	}
	return [...]string{"STOPPED", "START_PENDING", "STOP_PENDING", "RUNNING", "CONTINUE_PENDING", "PAUSE_PENDING", "PAUSED"}[s-1]
}

func (s State) pending() bool {
	return s == StartPending || s == StopPending || s == ContinuePending || s == PausePending
}

// up reports whether dependents may run.
func (s State) up() bool { return s >= Running }

// EventType is what can happen to a service.
type EventType uint8

// The events: the columns of the table.
const (
	EventStart       EventType = iota // somebody or something wants it to run
	EventDepsReady                    // all that it depends on runs
	EventDepsFailed                   // something that it depends on does not, and won't by itself
	EventSpawned                      // smss has executed it
	EventSpawnFailed                  // there is no process
	EventConnected                    // a native service dispatches
	EventReady                        // READY=1
	EventReport                       // a native service's status
	EventProgress                     // a sign of life: WATCHDOG=1, EXTEND_TIMEOUT_USEC
	EventStopping                     // STOPPING=1
	EventStop                         // control STOP, admitted
	EventPause                        // control PAUSE, admitted
	EventContinue                     // control CONTINUE, admitted
	EventControl                      // any other control, admitted
	EventRefused                      // a native service's handler refused a control
	EventTimer                        // its deadline has passed
	EventExit                         // its process has ended
	eventTypes
)

// cell is what to do: a name for people, and the action. An error is the answer to whoever caused the event.
type cell struct {
	name string
	do   func(*step) error
}

func answer(name string, status ntstatus.Status) cell {
	return cell{name, func(s *step) error { return s.fail(status, "the service is "+s.run.State.String()) }}
}

// table says what each event means in each state. Every cell is filled: there is no event that nobody thought about.
func table(state State, event EventType) cell {
	var (
		ignore  = cell{"ignore", func(*step) error { return nil }}
		stray   = cell{"kill stray", (*step).killStray}
		already = answer("1056", ntstatus.ServiceAlreadyRunning)
		idle    = answer("1062", ntstatus.ServiceNotActive)
		busy    = answer("1061", ntstatus.ServiceCannotAcceptControl)
		report  = cell{"report", (*step).report}
		greet   = cell{"greet", (*step).greet}
		ended   = cell{"ended", (*step).ended}
		stop    = cell{"stop", (*step).stop}
		alive   = cell{"alive", (*step).alive}
		leave   = cell{"stopping", (*step).stopping}
		pause   = cell{"pause", func(s *step) error { return s.ask(PausePending) }}
		resume  = cell{"continue", func(s *step) error { return s.ask(ContinuePending) }}
		send    = cell{"send", (*step).send}
		back    = cell{"go back", (*step).goBack}
		begin   = cell{"begin", (*step).begin}
		spawn   = cell{"spawn", (*step).spawn}
		noDeps  = cell{"1068", (*step).depsFailed}
		spawned = cell{"spawned", (*step).spawned}
		failed  = cell{"start failed", (*step).spawnFailed}
		ready   = cell{"run", (*step).ready}
		late    = cell{"start overdue", (*step).startOverdue}
		slow    = cell{"stop overdue", (*step).kill}
		hung    = cell{"hung", (*step).hung}
		again   = cell{"restart", (*step).restart}
		cancel  = cell{"cancel restart", (*step).cancelRestart}
		forget  = cell{"acknowledge", (*step).acknowledge}
	)
	//                            start    depsReady depsFailed spawned  spawnFail connected ready   report  progress stopping stop    pause   continue control refused timer  exit
	return [...][eventTypes]cell{
		Stopped - 1:         {begin, ignore, ignore, stray, ignore, idle, ignore, idle, ignore, ignore, cancel, idle, idle, idle, ignore, again, forget},
		StartPending - 1:    {already, spawn, noDeps, spawned, failed, greet, ready, report, alive, leave, stop, busy, busy, busy, ignore, late, ended},
		StopPending - 1:     {already, ignore, ignore, spawned, failed, greet, ignore, report, alive, ignore, busy, busy, busy, busy, back, slow, ended},
		Running - 1:         {already, ignore, ignore, stray, ignore, greet, ignore, report, alive, leave, stop, pause, resume, send, ignore, hung, ended},
		ContinuePending - 1: {already, ignore, ignore, stray, ignore, greet, ignore, report, alive, leave, stop, pause, resume, send, back, hung, ended},
		PausePending - 1:    {already, ignore, ignore, stray, ignore, greet, ignore, report, alive, leave, stop, pause, resume, send, back, hung, ended},
		Paused - 1:          {already, ignore, ignore, stray, ignore, greet, ignore, report, alive, leave, stop, pause, resume, send, ignore, hung, ended},
	}[state-1][event]
}

// Accept bits (winsvc.h).
const (
	AcceptStop          uint32 = 0x01
	AcceptPauseContinue uint32 = 0x02
	AcceptShutdown      uint32 = 0x04
	AcceptParamChange   uint32 = 0x08
)

// Controls (winsvc.h); 128 to 255 are the service's own and need no accept bit.
const (
	controlStop        uint32 = 1
	controlPause       uint32 = 2
	controlContinue    uint32 = 3
	controlInterrogate uint32 = 4
	controlShutdown    uint32 = 5
	controlParamChange uint32 = 6
	controlUserFirst   uint32 = 128
	controlUserLast    uint32 = 255
)

// verdict is what admission says about a control before the service hears of it.
type verdict uint8

const (
	admitAccepted verdict = iota // if the service accepts it, else 1052
	admitPending                 // if the service accepts it, else 1061
	admitAlways
	refuseIdle // 1062
	refuseBusy // 1061
)

// admission is the table of ControlService's documentation: what each state does with stop, interrogate and the rest.
func admission(state State, control uint32) verdict {
	column := 2
	switch control {
	case controlStop:
		column = 0
	case controlInterrogate:
		column = 1
	}
	return [...][3]verdict{
		Stopped - 1:         {refuseIdle, refuseIdle, refuseIdle},
		StartPending - 1:    {admitPending, refuseBusy, refuseBusy},
		StopPending - 1:     {refuseBusy, refuseBusy, refuseBusy},
		Running - 1:         {admitAccepted, admitAlways, admitAccepted},
		ContinuePending - 1: {admitAccepted, admitAlways, admitAccepted},
		PausePending - 1:    {admitAccepted, admitAlways, admitAccepted},
		Paused - 1:          {admitAccepted, admitAlways, admitAccepted},
	}[state-1][column]
}

// admit applies the admission table for a service that accepts these bits.
func admit(state State, accepted, control uint32) ntstatus.Status {
	needed := map[uint32]uint32{
		controlStop: AcceptStop, controlPause: AcceptPauseContinue, controlContinue: AcceptPauseContinue,
		controlParamChange: AcceptParamChange,
	}[control]
	switch {
	case control >= controlUserFirst && control <= controlUserLast, control == controlInterrogate:
	case needed == 0:
		return ntstatus.InvalidParameter
	}
	accepts := accepted&needed == needed
	switch v := admission(state, control); {
	case v == refuseIdle:
		return ntstatus.ServiceNotActive
	case v == refuseBusy, v == admitPending && !accepts:
		return ntstatus.ServiceCannotAcceptControl
	case v == admitAccepted && !accepts:
		return ntstatus.InvalidServiceControl
	}
	return ntstatus.Success
}

// reportable is the table of transitions that a service may report; NT's own controller takes any.
func reportable(from, to State) bool {
	const (
		o = false
		x = true
	)
	if to < Stopped || to > Paused {
		return false
	}
	return [...][7]bool{ //  STOPPED START STOP RUNNING CONTINUE PAUSE PAUSED
		Stopped - 1:         {o, o, o, o, o, o, o},
		StartPending - 1:    {x, x, x, x, o, o, o},
		StopPending - 1:     {x, o, x, o, o, o, o},
		Running - 1:         {x, o, x, x, o, x, x},
		ContinuePending - 1: {x, o, x, x, x, o, x},
		PausePending - 1:    {x, o, x, x, o, x, x},
		Paused - 1:          {x, o, x, x, x, o, x},
	}[from-1][to-1]
}
