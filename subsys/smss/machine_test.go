package smss_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/subsys/smss"
)

// server makes a configuration in which 2 restarts a minute are allowed.
func server(name string, changes ...func(*smss.ServerConfig)) smss.Named {
	c := smss.NewServerConfig()
	c.Critical, c.Restarts = true, 2
	for _, change := range changes {
		change(c)
	}
	return smss.Named{Name: name, Config: c}
}

func onDemand(c *smss.ServerConfig)    { c.Start = true }
func readyAtOnce(c *smss.ServerConfig) { c.Ready = true }
func dispensable(c *smss.ServerConfig) { c.Critical = false }

func restart(word string) func(*smss.ServerConfig) {
	return func(c *smss.ServerConfig) {
		if err := c.Restart.UnmarshalText([]byte(word)); err != nil {
			panic(err)
		}
	}
}

// steps is a script: an event in words, then the effects that it must have, joined by "; ".
type steps [][2]string

func (s steps) run(t *testing.T, d *smss.Driver) {
	t.Helper()
	for i, step := range s {
		require.Equal(t, step[1], strings.Join(d.Do(step[0]), "; "), "step %d, %q", i, step[0])
	}
}

func TestEveryCellIsFilled(t *testing.T) { require.Zero(t, smss.EmptyCells()) }

func TestBootAndShutdownInReverseOrder(t *testing.T) {
	d := smss.NewDriver()
	require.Equal(t, []string{"session 0 starting", "start lsass", "start scm"}, d.Open(0, server("lsass"), server("scm")))
	steps{
		{"started lsass", ""}, {"started scm", ""},
		{"ready scm", ""}, // any order: clients wait at declared ports
		{"ready lsass", "session 0 active"},
		{"ready lsass again", ""},
		{"shutdown 0 20s", "session 0 ending test; terminated scm"},
		{"after 9999ms", ""},
		{"exit scm exit 0", "end-owned scm 10s"},
		{"after 5s", ""},
		{"gone scm", "terminated lsass"},
		{"after 5001ms", "killed lsass"}, // the whole grace of 20 s is over before its own 10 s
		{"exit lsass signal 9", "end-owned lsass 0s"},
		{"gone lsass", "end-session 0"},
		{"empty 0", "session 0 ended test; finished 0"},
	}.run(t, d)
}

func TestRestartBacksOffAndRecovers(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass"))
	d.Do("started lsass")
	d.Do("ready lsass")
	require.Empty(t, d.Do("exit lsass signal 9"))
	require.Equal(t, "backing off, signal 9", d.State("lsass"))
	require.Zero(t, d.Next(), "the first restart is immediate")
	steps{
		{"after 0s", "start lsass"}, {"started lsass", ""}, {"ready lsass", ""}, {"exit lsass exit 1", ""},
	}.run(t, d)
	require.Equal(t, 100*time.Millisecond, d.Next(), "the second in a row is not")
	steps{
		{"wanted lsass", ""}, // a client can't hurry it
		{"after 100ms", "start lsass"}, {"started lsass", ""}, {"ready lsass", ""},
		{"after 1m", ""}, {"exit lsass signal 9", ""}, // it ran for long: a clean sheet
	}.run(t, d)
	require.Zero(t, d.Next())
}

func TestSpentBudgetStopsEverything(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass"), server("scm"))
	for _, name := range []string{"lsass", "scm"} {
		d.Do("started " + name)
		d.Do("ready " + name)
	}
	for range 2 {
		require.Empty(t, d.Do("exit lsass signal 9"))
		require.Equal(t, []string{"start lsass"}, d.Do("after 100ms"))
		d.Do("started lsass")
		d.Do("ready lsass")
	}
	steps{
		{"exit lsass signal 9", "session 0 ending lsass ended more than 2 times within 1m0s, last: signal 9; terminated scm"},
		{"exit scm exit 0", "end-owned scm 10s"},
		{"gone scm", "end-owned lsass 10s"},
		{"gone lsass", "end-session 0"},
		{"empty 0", "session 0 ended lsass ended more than 2 times within 1m0s, last: signal 9; finished 1"},
	}.run(t, d)
}

func TestDispensableServerFailsAlone(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("extra", dispensable), server("lsass", readyAtOnce))
	for range 3 {
		d.Do("exit extra could not be started: no such file")
		d.Do("after 1s")
	}
	require.Equal(t, "failed, could not be started: no such file", d.State("extra"))
	require.Equal(t, []string{"session 0 active"}, d.Do("started lsass"))
}

func TestServerThatIsNotReadyInTimeIsKilled(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass"))
	steps{
		{"started lsass", ""}, {"after 29999ms", ""}, {"after 1ms", "killed lsass"}, {"exit lsass signal 9", ""},
	}.run(t, d)
	require.Equal(t, "backing off, not ready within 30s", d.State("lsass"))
}

func TestServerThatNeverGetsReadyIsGivenUp(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass"))
	for range 2 {
		steps{
			{"started lsass", ""}, {"after 30s", "killed lsass"}, {"exit lsass signal 9", ""}, {"after 1m", "start lsass"},
		}.run(t, d)
	}
	steps{
		{"started lsass", ""}, {"after 30s", "killed lsass"},
		{"exit lsass signal 9", "session 0 ending lsass was started 3 times in a row and did not get ready, last: not ready within 30s; end-owned lsass 10s"},
	}.run(t, d)
}

func TestOnDemandStartsWithItsFirstClient(t *testing.T) {
	d := smss.NewDriver()
	require.Equal(t, []string{"session 0 starting", "session 0 active"}, d.Open(0, server("hello", onDemand, restart("on-failure"))))
	steps{
		{"wanted hello", "start hello"}, {"wanted hello", ""}, {"started hello", ""}, {"ready hello", ""}, {"wanted hello", ""},
		{"exit hello exit 0", ""}, // idle, so it left
	}.run(t, d)
	require.Equal(t, "waiting, exit 0", d.State("hello"))
	steps{
		{"wanted hello", "start hello"}, {"started hello", ""}, {"exit hello exit 3", ""}, {"after 0s", "start hello"},
		{"shutdown 0 1m", "session 0 ending test; terminated hello"},
		{"wanted hello", ""},
		{"exit hello exit 0", "end-owned hello 10s"},
	}.run(t, d)
}

func TestEndOfWinlogonEndsItsSessionOnly(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass", readyAtOnce))
	d.Do("started lsass")
	for _, n := range []uint32{1, 2} {
		csrss, winlogon := fmt.Sprintf("csrss@%d", n), fmt.Sprintf("winlogon@%d", n)
		require.Equal(t, []string{fmt.Sprintf("session %d starting", n), "start " + csrss, "start " + winlogon},
			d.Open(n, server(csrss), server(winlogon, restart("never"))))
		steps{
			{"started " + csrss, ""}, {"started " + winlogon, ""}, {"ready " + csrss, ""}, {"ready " + winlogon, fmt.Sprintf("session %d active", n)},
		}.run(t, d)
	}
	steps{
		{"exit winlogon@1 signal 9", "session 1 ending winlogon@1 ended: signal 9; end-owned winlogon@1 10s"},
		{"gone winlogon@1", "terminated csrss@1"},
		{"exit csrss@1 exit 0", "end-owned csrss@1 10s"},
		{"close 1 again", ""},
		{"gone csrss@1", "end-session 1"},
		{"empty 1", "session 1 ended winlogon@1 ended: signal 9"},
	}.run(t, d)
	require.Empty(t, d.State("csrss@1"))
	require.Equal(t, "running", d.State("winlogon@2"))
	// The other way to end: asked for. Session 0 waits for it.
	steps{
		{"close 0 no", ""},
		{"close 2 logged off", "session 2 ending logged off; terminated winlogon@2"},
		{"shutdown 0 1m", "session 0 ending test"},
		{"exit winlogon@2 exit 0", "end-owned winlogon@2 10s"},
		{"gone winlogon@2", "terminated csrss@2"},
		{"exit csrss@2 exit 0", "end-owned csrss@2 10s"},
		{"gone csrss@2", "end-session 2"},
		{"empty 2", "session 2 ended logged off; terminated lsass"},
	}.run(t, d)
}

func TestShutdownCanBeHurried(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("scm", readyAtOnce))
	steps{
		{"started scm", "session 0 active"},
		{"shutdown 0 1m", "session 0 ending test; terminated scm"},
		{"shutdown 1 2s", ""}, // the core went meanwhile
		{"after 2s", "killed scm"},
		{"exit scm signal 9", "end-owned scm 0s"},
		{"gone scm", "end-session 0"},
		{"empty 0", "session 0 ended test; finished 1"},
	}.run(t, d)
}

func TestUnknownNamesChangeNothing(t *testing.T) {
	d := smss.NewDriver()
	d.Open(0, server("lsass"))
	for _, event := range []string{"wanted x", "started x", "exit x exit 0", "ready x", "gone x", "empty 0", "empty 7", "close 7"} {
		require.Empty(t, d.Do(event), event)
	}
	require.Equal(t, "starting", d.State("lsass"))
}

// TestMachineKeepsItsPromises plays a world of processes that start, crash and dawdle as they please, and checks after each step what
// must hold in every run.
func TestMachineKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := smss.NewDriver()
		w := world{t: t, alive: map[string]bool{}, pending: map[string]bool{}}
		order := map[string]int{} // position in its session
		sessionOf := map[string]string{}
		open := func(n uint32, servers ...smss.Named) {
			for i, s := range servers {
				order[s.Name], sessionOf[s.Name] = i, fmt.Sprint(n)
			}
			w.apply(d.Open(n, servers...))
		}
		w.order, w.sessionOf = order, sessionOf
		open(0, server("a"), server("b", dispensable, restart("on-failure")), server("c", onDemand, readyAtOnce))
		sessions := uint32(0)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			if w.finished {
				break
			}
			name := rapid.SampledFrom(slices.Sorted(keys(order))).Draw(t, "name")
			switch rapid.SampledFrom([]string{"spawn", "ready", "crash", "leave", "time", "wanted", "clear", "open", "close", "shutdown"}).Draw(t, "what") {
			case "spawn":
				w.spawned(d)
			case "ready":
				if w.alive[name] {
					w.apply(d.Do("ready " + name))
				}
			case "crash":
				w.die(d, name, "signal 11")
			case "leave":
				w.die(d, name, "exit 0")
			case "time":
				w.apply(d.Do("after " + rapid.SampledFrom([]string{"0s", "100ms", "5s", "31s", "2m"}).Draw(t, "by")))
			case "wanted":
				w.apply(d.Do("wanted " + name))
			case "clear":
				w.clear(d)
			case "open":
				if sessions < 3 {
					sessions++
					open(sessions, server(fmt.Sprintf("csrss@%d", sessions)), server(fmt.Sprintf("winlogon@%d", sessions), restart("never")))
				}
			case "close":
				w.apply(d.Do(fmt.Sprintf("close %d bye", rapid.Uint32Range(0, 3).Draw(t, "session"))))
			case "shutdown":
				if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
					w.apply(d.Do("shutdown 0 30s"))
				}
			}
			w.check()
		}
		// Whatever happened: told to stop, in a world where the killed die, it does stop.
		if !w.finished {
			w.apply(d.Do("shutdown 0 30s"))
		}
		for range 200 {
			if w.finished {
				break
			}
			w.spawned(d)
			w.clear(d)
			for _, name := range slices.Sorted(keys(w.killed)) {
				w.die(d, name, "signal 9")
			}
			w.apply(d.Do("after 1s"))
		}
		require.True(t, w.finished, "it did not stop; left: %v", w.alive)
		require.Empty(t, w.alive, "it finished and left processes behind")
	})
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// world is what the effects act on.
type world struct {
	t         *rapid.T
	order     map[string]int
	sessionOf map[string]string
	alive     map[string]bool
	pending   map[string]bool // to be spawned
	killed    map[string]bool
	owned     []string // answers due: "gone x", "empty n"
	cleared   map[string]bool
	finished  bool
}

func (w *world) apply(effects []string) {
	for _, e := range effects {
		require.False(w.t, w.finished, "%q after the end", e)
		word := strings.Fields(e)
		switch word[0] {
		case "start":
			require.False(w.t, w.alive[word[1]] || w.pending[word[1]], "a second process for %s", word[1])
			w.pending[word[1]] = true
			delete(w.cleared, word[1])
		case "killed":
			if w.alive[word[1]] || w.pending[word[1]] {
				if w.killed == nil {
					w.killed = map[string]bool{}
				}
				w.killed[word[1]] = true
			}
		case "terminated":
			for other, at := range w.order {
				if w.sessionOf[other] == w.sessionOf[word[1]] && at > w.order[word[1]] {
					require.False(w.t, w.alive[other], "%s is stopped before %s", word[1], other)
				}
			}
		case "end-owned":
			require.False(w.t, w.alive[word[1]], "%s is alive and its processes are ended", word[1])
			w.owned = append(w.owned, "gone "+word[1])
		case "end-session":
			for name, n := range w.sessionOf {
				require.False(w.t, n == word[1] && w.alive[name], "session %s is cleared while %s lives", n, name)
			}
			w.owned = append(w.owned, "empty "+word[1])
		case "finished":
			w.finished = true
		}
	}
}

func (w *world) spawned(d *smss.Driver) {
	for _, name := range slices.Sorted(keys(w.pending)) {
		delete(w.pending, name)
		w.alive[name] = true
		w.apply(d.Do("started " + name))
	}
}

func (w *world) die(d *smss.Driver, name, how string) {
	if w.alive[name] {
		delete(w.alive, name)
		delete(w.killed, name)
		w.apply(d.Do("exit " + name + " " + how))
	}
}

func (w *world) clear(d *smss.Driver) {
	due := w.owned
	w.owned = nil
	for _, e := range due {
		w.apply(d.Do(e))
	}
}

func (w *world) check() {
	require.False(w.t, w.finished && len(w.alive) > 0, "finished with %v alive", w.alive)
}
