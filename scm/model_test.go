package scm_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/proto/scmpb"
	"sallyport/scm"
)

const (
	waitFor = 20 * time.Second
	tick    = 5 * time.Millisecond
)

// eventually waits until ok, on the test's own goroutine, so that ok may use require.
func eventually(t require.TestingT, ok func() bool, what ...any) {
	for deadline := time.Now().Add(waitFor); !ok(); time.Sleep(tick) {
		require.True(t, time.Now().Before(deadline), what...)
	}
}

// world is the slow and obvious model of what surrounds the machine: which processes there are. Whatever happens in whatever
// order, the machine never has two of one service, never forgets one, and never starts one whose dependencies do not run.
type world struct {
	alive map[uint64]string // process → service
	acked map[uint64]bool
	next  uint64
}

func (w *world) of(key string) (n int) {
	for _, k := range w.alive {
		if k == key {
			n++
		}
	}
	return n
}

func TestAnyHistoryKeepsTheWorldInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := at(0)
		m := scm.NewMachine()
		w := &world{alive: map[uint64]string{}, acked: map[uint64]bool{}}
		names := []string{"a", "b", "c", "d"}
		for i, name := range names {
			c := &scmpb.ServiceConfig{Name: name, Path: "/bin/true", Kind: scmpb.ServiceKind(rapid.IntRange(0, 2).Draw(t, "kind"))}
			for _, dep := range names[:i] {
				if rapid.Bool().Draw(t, "depends") {
					c.Dependencies = append(c.Dependencies, dep)
				}
			}
			c, err := scm.Normalize("test", c)
			require.NoError(t, err)
			m.Add(now, c, nil)
		}
		pending := map[string]uint64{} // execs under way: service → attempt
		ended := map[uint64]string{}   // exits that were not told yet
		carry := func() {
			for _, e := range m.Effects() {
				switch e.Type {
				case scm.EffectExec:
					for _, dep := range e.Service.Config.Dependencies {
						d, ok := m.Get(dep)
						require.True(t, ok)
						require.GreaterOrEqual(t, d.Run.State, scm.Running, "%s is executed while %s is %s", e.Service.Key, dep, d.Run.State)
					}
					_, twice := pending[e.Service.Key]
					require.False(t, twice, "two starts of %s at once", e.Service.Key)
					pending[e.Service.Key] = e.Attempt
				case scm.EffectSignal:
					if key, ok := w.alive[e.Process]; ok && e.Signal == 9 {
						delete(w.alive, e.Process)
						ended[e.Process] = key
					}
				case scm.EffectAcknowledge:
					require.False(t, w.acked[e.Process], "acknowledged twice")
					require.NotContains(t, w.alive, e.Process)
					w.acked[e.Process] = true
				}
			}
			for _, name := range names {
				require.LessOrEqual(t, w.of(name), 1, "two processes of %s", name)
				if s, ok := m.Get(name); ok && s.Run.State == scm.Stopped {
					require.Zero(t, w.of(name), "%s is STOPPED and runs", name)
				}
			}
		}
		tell := func(process uint64) {
			key := ended[process]
			delete(ended, process)
			_ = m.Step(now, scm.Event{Type: scm.EventExit, Service: key, Process: process, Signal: 9})
			carry()
		}
		pick := func(label string) string { return rapid.SampledFrom(names).Draw(t, label) }
		t.Repeat(map[string]func(*rapid.T){
			"start":    func(t *rapid.T) { _ = m.Start(now, pick("name"), nil) },
			"stop":     func(t *rapid.T) { _ = m.Control(now, pick("name"), 1, 0, rapid.Bool().Draw(t, "dependents")) },
			"pause":    func(t *rapid.T) { _ = m.Control(now, pick("name"), 2, 5, false) },
			"continue": func(t *rapid.T) { _ = m.Control(now, pick("name"), 3, 5, false) },
			"refuse":   func(t *rapid.T) { _ = m.Step(now, scm.Event{Type: scm.EventRefused, Service: pick("name"), ID: 5}) },
			"executed": func(t *rapid.T) {
				name := pick("name")
				attempt, ok := pending[name]
				if !ok {
					return
				}
				delete(pending, name)
				if rapid.Bool().Draw(t, "works") {
					w.next++
					w.alive[w.next] = name
					_ = m.Step(now, scm.Event{Type: scm.EventSpawned, Service: name, Attempt: attempt, Process: w.next, PID: uint32(w.next)})
				} else {
					_ = m.Step(now, scm.Event{Type: scm.EventSpawnFailed, Service: name, Attempt: attempt, Retry: rapid.Bool().Draw(t, "retry")})
				}
			},
			"ready": func(t *rapid.T) { _ = m.Step(now, scm.Event{Type: scm.EventReady, Service: pick("name")}) },
			"report": func(t *rapid.T) {
				name := pick("name")
				if w.of(name) == 0 {
					return
				}
				_ = m.Step(now, scm.Event{Type: scm.EventConnected, Service: name})
				_ = m.Step(now, scm.Event{Type: scm.EventReport, Service: name, Report: &scmpb.NativeStatus{
					State: scmpb.ServiceState(rapid.IntRange(-1, 9).Draw(t, "state")), ControlsAccepted: rapid.Uint32Range(0, 15).Draw(t, "accepts"),
					CheckPoint: rapid.Uint32Range(0, 3).Draw(t, "checkpoint"), WaitHintMs: 100,
				}})
			},
			"dies": func(t *rapid.T) {
				if len(w.alive) > 0 {
					process := slices.Min(slices.Collect(maps.Keys(w.alive)))
					ended[process] = w.alive[process]
					delete(w.alive, process)
				}
			},
			"told": func(t *rapid.T) {
				if len(ended) > 0 {
					tell(slices.Min(slices.Collect(maps.Keys(ended))))
				}
			},
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 120_000).Draw(t, "ms")) * time.Millisecond)
				m.Tick(now)
			},
			"": func(*rapid.T) { carry() },
		})
		// However it stands: an orderly end ends everything.
		m.Shutdown(now)
		carry()
		for range 50 {
			for name, attempt := range pending {
				delete(pending, name)
				_ = m.Step(now, scm.Event{Type: scm.EventSpawnFailed, Service: name, Attempt: attempt})
			}
			carry()
			for process := range ended {
				tell(process)
			}
			now = now.Add(time.Minute)
			m.Tick(now)
			carry()
		}
		require.True(t, m.Idle())
		require.Empty(t, w.alive)
		require.True(t, m.Deadline().IsZero())
	})
}
