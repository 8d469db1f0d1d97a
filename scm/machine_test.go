package scm_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/scm"
)

func at(d time.Duration) time.Time { return time.Unix(1_000_000, 0).Add(d) }

// service adds a service; tweak changes its configuration before it is checked.
func service(t *testing.T, m *scm.Machine, name string, tweak func(*scmpb.ServiceConfig)) *scm.Service {
	t.Helper()
	c := &scmpb.ServiceConfig{Name: name, Path: "/bin/true"}
	if tweak != nil {
		tweak(c)
	}
	c, err := scm.Normalize("test", c)
	require.NoError(t, err)
	return m.Add(at(0), c, nil)
}

func kind(k scmpb.ServiceKind) func(*scmpb.ServiceConfig) {
	return func(c *scmpb.ServiceConfig) { c.Kind = k }
}

func needs(names ...string) func(*scmpb.ServiceConfig) {
	return func(c *scmpb.ServiceConfig) { c.Dependencies = names }
}

// kinds lists the effects by type, without the notes.
func kinds(m *scm.Machine) (out []scm.EffectType) {
	for _, e := range m.Effects() {
		if e.Type != scm.EffectChanged {
			out = append(out, e.Type)
		}
	}
	return out
}

// up brings a service to RUNNING as the shell would.
func up(t *testing.T, m *scm.Machine, now time.Time, s *scm.Service, process uint64) {
	t.Helper()
	if s.Run.State == scm.Stopped {
		require.NoError(t, m.Start(now, s.Key, nil))
	}
	require.NoError(t, m.Step(now, scm.Event{Type: scm.EventSpawned, Service: s.Key, Attempt: s.Run.Attempt, Process: process, PID: uint32(process)}))
	switch s.Config.Kind {
	case scmpb.ServiceKind_SERVICE_KIND_NOTIFY:
		require.NoError(t, m.Step(now, scm.Event{Type: scm.EventReady, Service: s.Key}))
	case scmpb.ServiceKind_SERVICE_KIND_NATIVE:
		require.NoError(t, m.Step(now, scm.Event{Type: scm.EventConnected, Service: s.Key}))
		require.NoError(t, m.Step(now, scm.Event{Type: scm.EventReport, Service: s.Key, Report: &scmpb.NativeStatus{State: scmpb.ServiceState_SERVICE_RUNNING, ControlsAccepted: scm.AcceptStop | scm.AcceptPauseContinue}}))
	default:
		m.Tick(s.Run.Deadline)
	}
	require.Equal(t, scm.Running, s.Run.State)
}

func TestEveryCellOfTheTableIsFilled(t *testing.T) {
	for state := scm.Stopped; state <= scm.Paused; state++ {
		for event := scm.EventType(0); event < scm.EventTypes; event++ {
			require.True(t, scm.HasAction(state, event), "%s × %d", state, event)
			require.NotEmpty(t, scm.CellName(state, event))
		}
	}
}

func TestAdmissionFollowsTheDocumentedTable(t *testing.T) {
	const (
		stop, pause, cont, interrogate, param, user = 1, 2, 3, 4, 6, 200
		all                                         = scm.AcceptStop | scm.AcceptPauseContinue | scm.AcceptParamChange
	)
	ok, idle, busy, bad := ntstatus.Success, ntstatus.ServiceNotActive, ntstatus.ServiceCannotAcceptControl, ntstatus.InvalidServiceControl
	for _, tt := range []struct {
		states   []scm.State
		accepted uint32
		controls []uint32
		want     ntstatus.Status
	}{
		{[]scm.State{scm.Stopped}, all, []uint32{stop, pause, cont, interrogate, param, user}, idle},
		{[]scm.State{scm.StartPending}, all, []uint32{stop}, ok},
		{[]scm.State{scm.StartPending}, 0, []uint32{stop}, busy},
		{[]scm.State{scm.StartPending}, all, []uint32{pause, cont, interrogate, param, user}, busy},
		{[]scm.State{scm.StopPending}, all, []uint32{stop, pause, cont, interrogate, param, user}, busy},
		{[]scm.State{scm.Running, scm.Paused, scm.PausePending, scm.ContinuePending}, all, []uint32{stop, pause, cont, interrogate, param, user}, ok},
		{[]scm.State{scm.Running, scm.Paused, scm.PausePending, scm.ContinuePending}, 0, []uint32{stop, pause, cont, param}, bad},
		{[]scm.State{scm.Running, scm.Paused}, 0, []uint32{interrogate, user}, ok},
		{[]scm.State{scm.Stopped, scm.Running}, all, []uint32{0, 5, 7, 13, 15, 127, 256, 1 << 31}, ntstatus.InvalidParameter},
	} {
		for _, state := range tt.states {
			for _, control := range tt.controls {
				require.Equal(t, tt.want, scm.Admit(state, tt.accepted, control), "%s, accepts 0x%x, control %d", state, tt.accepted, control)
			}
		}
	}
}

func TestStartShowsNTsFirstStatus(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "Slow", kind(scmpb.ServiceKind_SERVICE_KIND_NATIVE))
	require.EqualValues(t, 1077, s.Run.Win32, "never started")
	require.NoError(t, m.Start(at(0), "slow", []string{"a"}))
	require.Equal(t, scm.StartPending, s.Run.State)
	require.Zero(t, s.Run.Accepted)
	require.Zero(t, s.Run.CheckPoint)
	require.Equal(t, 2*time.Second, s.Run.WaitHint)
	require.Equal(t, []scm.EffectType{scm.EffectExec}, kinds(m))
	require.ErrorIs(t, m.Start(at(0), "slow", nil), ntstatus.ServiceAlreadyRunning)
	require.ErrorIs(t, m.Control(at(0), "slow", 2, 1, false), ntstatus.ServiceCannotAcceptControl)
}

func TestAPlainServiceRunsWhenItHasLivedLongEnough(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "web", func(c *scmpb.ServiceConfig) { c.ReadyDelayMs = 500 })
	require.NoError(t, m.Start(at(0), "web", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "web", Attempt: 1, Process: 7, PID: 70}))
	m.Tick(at(499 * time.Millisecond))
	require.Equal(t, scm.StartPending, s.Run.State)
	m.Tick(at(500 * time.Millisecond))
	require.Equal(t, scm.Running, s.Run.State)
	require.Equal(t, scm.AcceptStop|scm.AcceptShutdown, s.Run.Accepted)

	kinds(m)
	require.NoError(t, m.Control(at(time.Second), "web", 1, 0, false))
	require.Equal(t, scm.StopPending, s.Run.State)
	effects := m.Effects()
	last := effects[len(effects)-1]
	require.Equal(t, scm.EffectSignal, last.Type)
	require.Equal(t, syscall.SIGTERM, last.Signal)
	require.False(t, last.Group)
	require.NoError(t, m.Step(at(2*time.Second), scm.Event{Type: scm.EventExit, Service: "web", Process: 7, Signal: 15}))
	require.Equal(t, scm.Stopped, s.Run.State)
	require.Zero(t, s.Run.Win32, "a stop that was asked for is no failure")
	require.Zero(t, s.Run.Failures)
	require.True(t, m.Deadline().IsZero())
}

func TestAStopThatIsNotObeyedEndsInAKill(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "deaf", func(c *scmpb.ServiceConfig) { c.StopTimeoutMs = 1000 })
	up(t, m, at(0), s, 7)
	require.NoError(t, m.Control(at(time.Second), "deaf", 1, 0, false))
	kinds(m)
	m.Tick(at(2 * time.Second))
	effects := m.Effects()
	last := effects[len(effects)-1]
	require.Equal(t, syscall.SIGKILL, last.Signal)
	require.True(t, last.Group)
	require.NoError(t, m.Step(at(3*time.Second), scm.Event{Type: scm.EventExit, Service: "deaf", Process: 7, Signal: 9}))
	require.Equal(t, scm.Stopped, s.Run.State)
	require.True(t, m.Deadline().IsZero(), "a service that had to be killed for a stop is not restarted")
}

func TestFailuresAreRestartedWithBackOffUntilAQuietPeriodForgetsThem(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "flaky", func(c *scmpb.ServiceConfig) {
		c.FailureActions = &scmpb.FailureActions{ResetPeriodMs: 60_000, MaxDelayMs: 5_000, Actions: []*scmpb.FailureActions_Action{
			{Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: 100}, {Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: 1000},
		}}
	})
	now := time.Duration(0)
	up(t, m, at(now), s, 1)
	for i, want := range []time.Duration{100 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		now += time.Second
		process := s.Run.Process
		require.NoError(t, m.Step(at(now), scm.Event{Type: scm.EventExit, Service: "flaky", Process: process, Signal: 9}))
		require.Equal(t, scm.Stopped, s.Run.State)
		require.EqualValues(t, 1067, s.Run.Win32)
		require.EqualValues(t, 137, s.Run.Specific)
		require.EqualValues(t, i+1, s.Run.Failures)
		require.Equal(t, at(now+want), m.Deadline(), "failure %d", i+1)
		m.Tick(at(now + want - 1))
		require.Equal(t, scm.Stopped, s.Run.State)
		now += want
		m.Tick(at(now))
		require.Equal(t, scm.StartPending, s.Run.State)
		up(t, m, at(now), s, uint64(100+i))
	}
	now += 61 * time.Second
	require.NoError(t, m.Step(at(now), scm.Event{Type: scm.EventExit, Service: "flaky", Process: s.Run.Process, Code: 1}))
	require.EqualValues(t, 1, s.Run.Failures, "a quiet minute forgets")
	require.Equal(t, at(now+100*time.Millisecond), m.Deadline())

	require.NoError(t, m.Control(at(now), "flaky", 1, 0, false), "a stop cancels the restart that is to come")
	require.True(t, m.Deadline().IsZero())
	require.ErrorIs(t, m.Control(at(now), "flaky", 1, 0, false), ntstatus.ServiceNotActive)
}

func TestWhatIsNoFailureIsNotRestarted(t *testing.T) {
	for name, tt := range map[string]struct {
		actions *scmpb.FailureActions
		exit    scm.Event
		restart bool
	}{
		"exit 0 of a plain service": {nil, scm.Event{Code: 0}, false},
		"exit 1":                    {nil, scm.Event{Code: 1}, true},
		"no actions":                {&scmpb.FailureActions{}, scm.Event{Code: 1}, false},
		"action none":               {&scmpb.FailureActions{Actions: []*scmpb.FailureActions_Action{{}}}, scm.Event{Signal: 11}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := scm.NewMachine()
			s := service(t, m, "x", func(c *scmpb.ServiceConfig) { c.FailureActions = tt.actions })
			up(t, m, at(0), s, 1)
			tt.exit.Type, tt.exit.Service, tt.exit.Process = scm.EventExit, "x", 1
			require.NoError(t, m.Step(at(time.Minute), tt.exit))
			require.Equal(t, tt.restart, !m.Deadline().IsZero(), s.Run.Reason)
			require.NotEmpty(t, s.Run.Reason)
		})
	}
}

func TestAStartThatCannotSucceedIsNotTriedAgain(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "x", nil)
	require.NoError(t, m.Start(at(0), "x", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawnFailed, Service: "x", Attempt: 1, Status: ntstatus.ObjectNameNotFound, Reason: "no such file"}))
	require.Equal(t, scm.Stopped, s.Run.State)
	require.EqualValues(t, 2, s.Run.Win32)
	require.True(t, m.Deadline().IsZero())
	require.NoError(t, m.Start(at(0), "x", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawnFailed, Service: "x", Attempt: 2, Status: ntstatus.ServiceLogonFailed, Retry: true, Reason: "lsass is away"}))
	require.EqualValues(t, 1069, s.Run.Win32)
	require.Equal(t, at(time.Second), m.Deadline(), "lsass may come back")
}

func TestNotifyServicesSayWhenTheyRun(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "db", func(c *scmpb.ServiceConfig) {
		c.Kind, c.StartTimeoutMs, c.WatchdogMs = scmpb.ServiceKind_SERVICE_KIND_NOTIFY, 10_000, 2000
	})
	require.NoError(t, m.Start(at(0), "db", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventReady, Service: "db", Attempt: 1}))
	require.Equal(t, scm.StartPending, s.Run.State, "nobody can be ready before there is a process")
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "db", Attempt: 1, Process: 5}))
	require.NoError(t, m.Step(at(9*time.Second), scm.Event{Type: scm.EventProgress, Service: "db", Hint: 30 * time.Second}))
	m.Tick(at(11 * time.Second))
	require.Equal(t, scm.StartPending, s.Run.State)
	require.Zero(t, s.Run.Fault, "it asked for more time")
	require.NoError(t, m.Step(at(20*time.Second), scm.Event{Type: scm.EventReady, Service: "db", Attempt: 1}))
	require.Equal(t, scm.Running, s.Run.State)
	require.NoError(t, m.Step(at(21*time.Second), scm.Event{Type: scm.EventProgress, Service: "db"}))
	require.Equal(t, at(23*time.Second), m.Deadline())
	kinds(m)
	m.Tick(at(23 * time.Second))
	require.Equal(t, []scm.EffectType{scm.EffectSignal}, kinds(m), "no sign of life: killed")
	require.NoError(t, m.Step(at(24*time.Second), scm.Event{Type: scm.EventExit, Service: "db", Process: 5, Signal: 9}))
	require.EqualValues(t, 1053, s.Run.Win32)
	require.Equal(t, at(25*time.Second), m.Deadline())

	m.Tick(at(25 * time.Second))
	require.NoError(t, m.Step(at(25*time.Second), scm.Event{Type: scm.EventSpawned, Service: "db", Attempt: 2, Process: 6}))
	kinds(m)
	m.Tick(at(35 * time.Second))
	require.Equal(t, []scm.EffectType{scm.EffectSignal}, kinds(m), "a start that takes too long is killed")
	require.NoError(t, m.Step(at(36*time.Second), scm.Event{Type: scm.EventExit, Service: "db", Process: 6, Signal: 9}))
	require.EqualValues(t, 1053, s.Run.Win32)
}

// TestAResumedServiceIsBelieved: a controller that was killed may have noted less than the service did, so the first word to the
// next one overrides what was noted, except where a stop was asked for.
func TestAResumedServiceIsBelieved(t *testing.T) {
	states := []scm.State{scm.StartPending, scm.Running, scm.PausePending, scm.Paused, scm.ContinuePending}
	for _, noted := range states {
		for _, is := range states {
			m := scm.NewMachine()
			s := service(t, m, "n", kind(scmpb.ServiceKind_SERVICE_KIND_NATIVE))
			up(t, m, at(0), s, 5)
			s.Run.State = noted
			require.NoError(t, m.Step(at(1), scm.Event{Type: scm.EventReport, Service: "n", Resumed: true, Report: &scmpb.NativeStatus{State: scmpb.ServiceState(is)}}))
			require.Equal(t, is, s.Run.State, "noted %s", noted)
		}
	}
}

func TestNativeServicesReportByTheTable(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "n", kind(scmpb.ServiceKind_SERVICE_KIND_NATIVE))
	require.NoError(t, m.Start(at(0), "n", []string{"x"}))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "n", Attempt: 1, Process: 5}))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventConnected, Service: "n", Attempt: 1}))
	require.Equal(t, []scm.EffectType{scm.EffectExec, scm.EffectNativeStart}, kinds(m))
	report := func(d time.Duration, state scm.State, checkpoint uint32, hint time.Duration) error {
		return m.Step(at(d), scm.Event{Type: scm.EventReport, Service: "n", Report: &scmpb.NativeStatus{
			State: scmpb.ServiceState(state), CheckPoint: checkpoint, WaitHintMs: uint32(hint.Milliseconds()), ControlsAccepted: 3,
		}})
	}
	require.NoError(t, report(time.Second, scm.StartPending, 1, time.Second))
	require.Equal(t, at(82*time.Second), m.Deadline(), "80 s and the hint without progress is a hang")
	require.NoError(t, report(50*time.Second, scm.StartPending, 1, time.Minute))
	require.Equal(t, at(82*time.Second), m.Deadline(), "the same checkpoint is no progress")
	require.ErrorIs(t, report(51*time.Second, scm.Paused, 0, 0), ntstatus.InvalidParameter)
	require.ErrorIs(t, report(51*time.Second, 9, 0, 0), ntstatus.InvalidParameter)
	require.NoError(t, report(52*time.Second, scm.Running, 0, 0))

	require.NoError(t, m.Control(at(53*time.Second), "n", 2, 77, false))
	require.Equal(t, scm.PausePending, s.Run.State)
	require.NoError(t, m.Step(at(53*time.Second), scm.Event{Type: scm.EventRefused, Service: "n", ID: 76}))
	require.Equal(t, scm.PausePending, s.Run.State, "another control was refused")
	require.NoError(t, m.Step(at(53*time.Second), scm.Event{Type: scm.EventRefused, Service: "n", ID: 77}))
	require.Equal(t, scm.Running, s.Run.State)
	require.NoError(t, report(54*time.Second, scm.Paused, 0, 0))
	require.NoError(t, m.Control(at(55*time.Second), "n", 1, 78, false))
	require.NoError(t, m.Step(at(55*time.Second), scm.Event{Type: scm.EventReport, Service: "n", Report: &scmpb.NativeStatus{State: 1, Win32ExitCode: 1066, ServiceExitCode: 3}}))
	require.Equal(t, scm.StopPending, s.Run.State, "it has stopped when its process has ended")
	require.NoError(t, m.Step(at(56*time.Second), scm.Event{Type: scm.EventExit, Service: "n", Process: 5}))
	require.Equal(t, scm.Stopped, s.Run.State)
	require.EqualValues(t, 1066, s.Run.Win32)
	require.EqualValues(t, 3, s.Run.Specific)
	require.True(t, m.Deadline().IsZero())
}

func TestAProcessThatNeverDispatchesIsARequestTimeout(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "n", kind(scmpb.ServiceKind_SERVICE_KIND_NATIVE))
	require.NoError(t, m.Start(at(0), "n", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "n", Attempt: 1, Process: 5}))
	m.Tick(at(30 * time.Second))
	require.NoError(t, m.Step(at(31*time.Second), scm.Event{Type: scm.EventExit, Service: "n", Process: 5, Signal: 9}))
	require.EqualValues(t, 1053, s.Run.Win32)
}

func TestDependenciesStartFirstAndStopLast(t *testing.T) {
	m := scm.NewMachine()
	db := service(t, m, "db", kind(scmpb.ServiceKind_SERVICE_KIND_NOTIFY))
	app := service(t, m, "app", needs("DB"))
	web := service(t, m, "web", needs("app", "db"))
	require.NoError(t, m.Start(at(0), "web", nil))
	effects := m.Effects()
	var execs []string
	for _, e := range effects {
		if e.Type == scm.EffectExec {
			execs = append(execs, e.Service.Key)
		}
	}
	require.Equal(t, []string{"db"}, execs)
	require.Equal(t, scm.StartPending, web.Run.State)
	up(t, m, at(0), db, 1)
	up(t, m, at(0), app, 2)
	up(t, m, at(0), web, 3)

	require.ErrorIs(t, m.Control(at(time.Hour), "db", 1, 0, false), ntstatus.DependentServicesRunning)
	require.NoError(t, m.Control(at(time.Hour), "db", 1, 0, true))
	require.Equal(t, []scm.State{scm.Running, scm.Running, scm.StopPending}, []scm.State{db.Run.State, app.Run.State, web.Run.State})
	require.NoError(t, m.Step(at(time.Hour), scm.Event{Type: scm.EventExit, Service: "web", Process: 3}))
	require.Equal(t, []scm.State{scm.Running, scm.StopPending, scm.Stopped}, []scm.State{db.Run.State, app.Run.State, web.Run.State})
	require.NoError(t, m.Step(at(time.Hour), scm.Event{Type: scm.EventExit, Service: "app", Process: 2}))
	require.Equal(t, scm.StopPending, db.Run.State)
}

func TestDependencyFailures(t *testing.T) {
	m := scm.NewMachine()
	db := service(t, m, "db", func(c *scmpb.ServiceConfig) { c.FailureActions = &scmpb.FailureActions{} })
	app := service(t, m, "app", needs("db"))
	require.NoError(t, m.Start(at(0), "app", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "db", Attempt: 1, Process: 1}))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventExit, Service: "db", Process: 1, Code: 1}))
	require.Equal(t, scm.Stopped, app.Run.State)
	require.EqualValues(t, 1068, app.Run.Win32)
	require.Contains(t, app.Run.Reason, "db")

	db.Config.FailureActions.Actions = []*scmpb.FailureActions_Action{{Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: 1000}}
	require.NoError(t, m.Start(at(0), "app", nil))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventSpawned, Service: "db", Attempt: 2, Process: 2}))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventExit, Service: "db", Process: 2, Code: 1}))
	require.Equal(t, scm.StartPending, app.Run.State, "db will be restarted: it is worth waiting for")
	m.Tick(at(time.Second))
	up(t, m, at(time.Second), db, 3)
	up(t, m, at(2*time.Second), app, 4)

	service(t, m, "lost", needs("nowhere"))
	require.ErrorIs(t, m.Start(at(0), "lost", nil), ntstatus.ServiceDependencyDeleted)
	service(t, m, "off", func(c *scmpb.ServiceConfig) { c.Start = scmpb.StartType_SERVICE_DISABLED.Enum() })
	require.ErrorIs(t, m.Start(at(0), "off", nil), ntstatus.ServiceDisabled)
	service(t, m, "on", needs("off"))
	require.ErrorIs(t, m.Start(at(0), "on", nil), ntstatus.ServiceDependencyFail)
}

func TestCyclesAreNamedWithTheirPath(t *testing.T) {
	m := scm.NewMachine()
	service(t, m, "c", needs("a"))
	service(t, m, "b", needs("c"))
	err := m.CheckDependencies("A", []string{"x", "b"})
	require.ErrorIs(t, err, ntstatus.CircularDependency)
	require.ErrorContains(t, err, "A -> b -> c -> a")
	require.ErrorIs(t, m.CheckDependencies("self", []string{"SELF"}), ntstatus.CircularDependency)
	require.NoError(t, m.CheckDependencies("d", []string{"b"}))

	service(t, m, "a", needs("b")) // as a file of an older version might hold
	err = m.Start(at(0), "b", nil)
	require.ErrorIs(t, err, ntstatus.CircularDependency)
	require.ErrorContains(t, err, "b -> c -> a -> b")
}

func TestDeleteOnlyMarksUntilNobodyHolds(t *testing.T) {
	m := scm.NewMachine()
	s := service(t, m, "x", nil)
	up(t, m, at(0), s, 1)
	require.NoError(t, m.Hold("x", 1, "somebody"))
	require.NoError(t, m.Delete(at(0), "x"))
	require.ErrorIs(t, m.Delete(at(0), "x"), ntstatus.ServiceMarkedForDelete)
	require.NoError(t, m.Control(at(0), "x", 1, 0, false))
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventExit, Service: "x", Process: 1, Signal: 9}))
	require.ErrorIs(t, m.Start(at(0), "x", nil), ntstatus.ServiceMarkedForDelete)
	_, there := m.Get("X")
	require.True(t, there, "it is still held")
	kinds(m)
	m.Release(at(0), s, 1)
	_, there = m.Get("X")
	require.False(t, there)
	require.Equal(t, []scm.EffectType{scm.EffectForget}, kinds(m))
}

func TestTheDatabaseLockKeepsServicesFromStarting(t *testing.T) {
	m := scm.NewMachine()
	service(t, m, "x", nil)
	m.Lock(true)
	require.ErrorIs(t, m.Start(at(0), "x", nil), ntstatus.ServiceDatabaseLocked)
	m.Lock(false)
	require.NoError(t, m.Start(at(0), "x", nil))
}

func TestShutdownStopsInOrderAndStartsNothing(t *testing.T) {
	m := scm.NewMachine()
	db := service(t, m, "db", nil)
	app := service(t, m, "app", needs("db"))
	failed := service(t, m, "failed", nil)
	up(t, m, at(0), failed, 9)
	require.NoError(t, m.Step(at(0), scm.Event{Type: scm.EventExit, Service: "failed", Process: 9, Code: 1}))
	up(t, m, at(0), db, 1)
	up(t, m, at(0), app, 2)
	m.Shutdown(at(time.Minute))
	require.Equal(t, scm.Running, db.Run.State)
	require.Equal(t, scm.StopPending, app.Run.State)
	require.ErrorIs(t, m.Start(at(0), "failed", nil), ntstatus.SystemShutdownInProgress)
	require.True(t, failed.Run.Deadline.IsZero(), "the restart that was planned is cancelled")
	require.NoError(t, m.Step(at(time.Minute), scm.Event{Type: scm.EventExit, Service: "app", Process: 2, Signal: 9}))
	require.NoError(t, m.Step(at(time.Minute), scm.Event{Type: scm.EventExit, Service: "db", Process: 1, Signal: 11}))
	require.True(t, m.Idle())
	require.True(t, m.Deadline().IsZero())
}

func TestAutomaticServicesStartAndFailuresAreTold(t *testing.T) {
	m := scm.NewMachine()
	auto := func(c *scmpb.ServiceConfig) { c.Start = scmpb.StartType_SERVICE_AUTO_START.Enum() }
	a, manual := service(t, m, "a", auto), service(t, m, "manual", nil)
	broken := service(t, m, "broken", func(c *scmpb.ServiceConfig) { auto(c); c.Dependencies = []string{"nowhere"} })
	failed := m.StartAll(at(0))
	require.Equal(t, scm.StartPending, a.Run.State)
	require.Equal(t, scm.Stopped, manual.Run.State)
	require.ErrorIs(t, failed["broken"], ntstatus.ServiceDependencyDeleted)
	require.EqualValues(t, 1075, broken.Run.Win32)
	require.Contains(t, broken.Run.Reason, "nowhere")
}

func TestConfigurations(t *testing.T) {
	good := func() *scmpb.ServiceConfig { return &scmpb.ServiceConfig{Name: "x", Path: "/bin/true"} }
	for name, tt := range map[string]struct {
		tweak func(*scmpb.ServiceConfig)
		want  ntstatus.Status
	}{
		"no name":              {func(c *scmpb.ServiceConfig) { c.Name = "" }, ntstatus.InvalidName},
		"slash":                {func(c *scmpb.ServiceConfig) { c.Name = "a/b" }, ntstatus.InvalidName},
		"backslash":            {func(c *scmpb.ServiceConfig) { c.Name = `a\b` }, ntstatus.InvalidName},
		"257 characters":       {func(c *scmpb.ServiceConfig) { c.Name = strings.Repeat("ä", 257) }, ntstatus.InvalidName},
		"256 characters":       {func(c *scmpb.ServiceConfig) { c.Name = strings.Repeat("ä", 256) }, ntstatus.Success},
		"control character":    {func(c *scmpb.ServiceConfig) { c.Name = "a\nb" }, ntstatus.InvalidName},
		"relative path":        {func(c *scmpb.ServiceConfig) { c.Path = "true" }, ntstatus.InvalidParameter},
		"path too long":        {func(c *scmpb.ServiceConfig) { c.Arguments = []string{strings.Repeat("x", 32<<10)} }, ntstatus.InvalidParameter},
		"zero byte":            {func(c *scmpb.ServiceConfig) { c.Arguments = []string{"a\x00"} }, ntstatus.InvalidParameter},
		"driver":               {func(c *scmpb.ServiceConfig) { c.ServiceType = 1 }, ntstatus.InvalidParameter},
		"boot start":           {func(c *scmpb.ServiceConfig) { c.Start = scmpb.StartType_SERVICE_BOOT_START.Enum() }, ntstatus.InvalidParameter},
		"twice the same need":  {needs("a", "A"), ntstatus.InvalidParameter},
		"watchdog on plain":    {func(c *scmpb.ServiceConfig) { c.WatchdogMs = 1 }, ntstatus.InvalidParameter},
		"environment":          {func(c *scmpb.ServiceConfig) { c.Environment = []string{"=x"} }, ntstatus.InvalidParameter},
		"tiny log":             {func(c *scmpb.ServiceConfig) { c.LogBytes = 1 }, ntstatus.InvalidParameter},
		"unknown kind":         {kind(17), ntstatus.InvalidParameter},
		"signal 65":            {func(c *scmpb.ServiceConfig) { c.StopSignal = 65 }, ntstatus.InvalidParameter},
		"names with many dots": {func(c *scmpb.ServiceConfig) { c.Name = "../.." }, ntstatus.InvalidName},
		"plain":                {func(*scmpb.ServiceConfig) {}, ntstatus.Success},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			tt.tweak(c)
			out, err := scm.Normalize("test", c)
			require.Equal(t, tt.want, ntstatus.Of(err), "%v", err)
			if err == nil {
				again, err := scm.Normalize("test", out)
				require.NoError(t, err)
				require.Equal(t, out.String(), again.String(), "what is stored is stable")
			}
		})
	}
	_, err := scm.Normalize("test", nil)
	require.ErrorIs(t, err, ntstatus.InvalidName)
}

func TestChangeLeavesWhatIsAbsent(t *testing.T) {
	c, err := scm.Normalize("test", &scmpb.ServiceConfig{Name: "x", Path: "/bin/true", Description: "old", Arguments: []string{"a"}})
	require.NoError(t, err)
	empty := ""
	changed, err := scm.Change("test", c, &scmpb.ChangeServiceConfigRequest{})
	require.NoError(t, err)
	require.Equal(t, c.String(), changed.String())
	changed, err = scm.Change("test", c, &scmpb.ChangeServiceConfigRequest{Description: &empty, Arguments: &scmpb.ChangeServiceConfigRequest_List{}})
	require.NoError(t, err)
	require.Empty(t, changed.Description)
	require.Empty(t, changed.Arguments)
	require.Equal(t, "old", c.Description, "the record in use is not touched")
}

func TestLogNamesStayInTheirDirectory(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"..", ".", "a b", "a%20b", "ä", strings.Repeat("x", 256), strings.Repeat("x", 255) + "y", strings.Repeat("ä", 256)} {
		path := scm.LogPath("/logs", scm.Fold(name))
		require.Equal(t, "/logs/", path[:6])
		require.NotContains(t, path[6:], "/")
		require.LessOrEqual(t, len(path), 255)
		require.Empty(t, seen[path], fmt.Sprintf("%s and %s", name, seen[path]))
		seen[path] = name
	}
}
