package smss

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// serverState is where a server is in its life; the numbers are those of smpb.ServerState.
type serverState uint8

const (
	waiting    serverState = iota + 1 // for its first client
	starting                          // asked for or forked, not ready yet
	running                           // ready
	backingOff                        // ended, will be started again at its deadline
	stopping                          // told to stop
	stopped                           // ended for good, as it should
	failed                            // ended for good: its budget is spent
	serverStates
)

// String is the state as people read it.
func (s serverState) String() string {
	return [...]string{"", "waiting", "starting", "running", "backing off", "stopping", "stopped", "failed"}[s]
}

// serverEvent is what can happen to one server.
type serverEvent uint8

const (
	onStart   serverEvent = iota // it is wanted
	onSpawned                    // its process exists
	onReady                      // it said that it serves
	onExit                       // its process ended, or could not be made
	onTimer                      // its deadline passed
	onStop                       // its session ends
	serverEvents
)

// action is one cell of the table.
type action func(m *machine, s *server, e event)

// lifeCycle is the whole life of a server: a row per state, a column per event. A cell that does nothing says so.
//
//	waiting ─start─▶ starting ─ready─▶ running ─stop─▶ stopping ─exit─▶ stopped
//	   ▲  clean exit   │  ▲              │
//	   └───────────────┤  └──timer── backing off ◀─exit── (running, starting)
//	                   └─exit, budget spent─▶ failed
func lifeCycle() (t [serverStates][serverEvents]action) {
	nop := func(*machine, *server, event) {}
	var (
		spawn, spawned, adopt action = (*machine).spawn, (*machine).spawned, (*machine).adopt
		ready, restate        action = (*machine).ready, (*machine).restate
		ended, wentDown       action = (*machine).ended, (*machine).wentDown
		tooSlow, kill         action = (*machine).tooSlow, (*machine).kill
		stop, giveUp          action = (*machine).stop, (*machine).giveUp
	)
	type row = [serverEvents]action
	// columns: start, spawned, ready, exit, timer, stop
	t[waiting] = row{spawn, nop, nop, nop, nop, giveUp}
	t[starting] = row{nop, spawned, ready, ended, tooSlow, stop}
	t[running] = row{nop, nop, restate, ended, nop, stop}
	t[backingOff] = row{nop, nop, nop, nop, spawn, giveUp}
	t[stopping] = row{nop, adopt, nop, wentDown, kill, nop}
	t[stopped] = row{nop, kill, nop, nop, nop, nop}
	t[failed] = row{nop, kill, nop, nop, nop, nop}
	return t
}

// restartPolicy says after which ends a server is started again.
type restartPolicy uint8

const (
	restartAlways    restartPolicy = iota
	restartOnFailure               // not after exit 0
	restartNever
)

// serverSpec is what the machine must know of a server.
type serverSpec struct {
	name         string // instance: "lsass", "csrss@3"
	onDemand     bool   // started when its first client connects
	reportsReady bool   // else it counts as ready once its process exists
	critical     bool   // its session ends with it
	restart      restartPolicy
	limit        int // restarts within the window, then it has failed
	within       time.Duration
	backoff      time.Duration // before the second restart in a row; doubles up to backoffMax
	backoffMax   time.Duration // a server that ran this long starts with a clean sheet
	readyTimeout time.Duration
	stopTimeout  time.Duration
}

// server is one instance. Its session owns it.
type server struct {
	serverSpec
	session  *session
	state    serverState
	since    time.Time   // of the state
	deadline time.Time   // zero: none
	pid      int         // 0: no process
	recent   []time.Time // restarts within the window
	restarts uint32      // in its whole life
	inARow   int         // restarts since it last ran for long
	overdue  bool        // killed because it was not ready in time
	lastEnd  string
	status   string
	draining bool // the shell was asked to end what it owned
	drained  bool // that is gone too
}

// sessionState is where a session is; the numbers are those of smpb.SessionState.
type sessionState uint8

const (
	sessionStarting sessionState = iota + 1
	sessionActive
	sessionEnding
	sessionEnded
)

// session is a group of servers that stops together. Session 0 is the system's: when it has ended, all has.
type session struct {
	id      uint32
	state   sessionState
	servers []*server // in the order in which they start
	reason  string    // why it ends
	asked   bool      // everything is down, the shell was asked to clear what else is in it
}

// machine decides what smss does. It has no clock, process, lock or file: Step gets the time and what happened, and returns
// what is to be done. Not safe for concurrent use; the shell owns it.
type machine struct {
	table    [serverStates][serverEvents]action
	now      time.Time
	servers  map[string]*server
	sessions map[uint32]*session
	stopping bool
	deadline time.Time // of the whole stop; zero: each server's own
	code     int       // exit code once all has stopped
	out      []effect
}

// event is what the shell reports: one of the types below.
type event any

type (
	// tick: time passed; see next.
	tick struct{}
	// wanted: a client waits at a port of the server.
	wanted struct{ server string }
	// processStarted: the spawn of the server worked.
	processStarted struct {
		server string
		pid    int
	}
	// processEnded: its process ended, or could not be made.
	processEnded struct {
		server string
		how    string
		clean  bool // exit 0
	}
	// saidReady: the server serves.
	saidReady struct{ server, status string }
	// ownedGone: what the server owned is gone (endOwned).
	ownedGone struct{ server string }
	// sessionEmpty: nothing runs in the session any more (endSession).
	sessionEmpty struct{ session uint32 }
	// openSession: a new session with its servers.
	openSession struct {
		session uint32
		servers []serverSpec
	}
	// closeSession ends one.
	closeSession struct {
		session uint32
		reason  string
	}
	// shutdown ends all of them. grace 0 leaves each server its own stop time.
	shutdown struct {
		reason string
		code   int
		grace  time.Duration
	}
)

// effect is what the shell does: one of the types below, in the order in which they are returned.
type effect any

type (
	// startProcess for the server; answered by processStarted or processEnded.
	startProcess struct{ server string }
	// sendSignal to the server's process.
	sendSignal struct {
		server string
		signal syscall.Signal
	}
	// endOwned ends what the server had started, within its grace; answered by ownedGone.
	endOwned struct {
		server string
		grace  time.Duration
	}
	// endSession clears what is left in the session and removes its names; answered by sessionEmpty.
	endSession struct{ session uint32 }
	// serverChanged and sessionChanged tell whoever watches.
	serverChanged  struct{ server string }
	sessionChanged struct {
		session uint32
		state   sessionState
		reason  string
	}
	// finished: nothing is left to do but exit.
	finished struct{ code int }
)

func newMachine() *machine {
	return &machine{table: lifeCycle(), servers: map[string]*server{}, sessions: map[uint32]*session{}}
}

// Step takes in one event and returns what is to be done about it. An event about somebody unknown changes nothing.
func (m *machine) Step(now time.Time, e event) []effect {
	m.now, m.out = now, nil
	switch e := e.(type) {
	case tick:
		for _, s := range m.serversInOrder() {
			if !s.deadline.IsZero() && !s.deadline.After(now) {
				s.deadline = time.Time{}
				m.feed(s, onTimer, e)
			}
		}
	case wanted:
		m.feed(m.servers[e.server], onStart, e)
	case processStarted:
		m.feed(m.servers[e.server], onSpawned, e)
	case processEnded:
		m.feed(m.servers[e.server], onExit, e)
	case saidReady:
		m.feed(m.servers[e.server], onReady, e)
	case ownedGone:
		if s := m.servers[e.server]; s != nil {
			s.drained = true
		}
	case openSession:
		m.open(e)
	case closeSession:
		if s := m.sessions[e.session]; s != nil && e.session != 0 {
			m.end(s, e.reason)
		}
	case sessionEmpty:
		if s := m.sessions[e.session]; s != nil && s.asked {
			m.close(s)
		}
	case shutdown:
		m.shutdown(e)
	}
	for _, s := range m.sessionsInOrder() {
		m.advance(s)
	}
	return m.out
}

// next is the time of the earliest deadline; zero if there is none.
func (m *machine) next() (at time.Time) {
	for _, s := range m.servers {
		if !s.deadline.IsZero() && (at.IsZero() || s.deadline.Before(at)) {
			at = s.deadline
		}
	}
	return at
}

// sessionsInOrder is all sessions by number, so that a run can be repeated.
func (m *machine) sessionsInOrder() []*session {
	out := make([]*session, 0, len(m.sessions))
	for _, s := range m.sessions {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *session) int { return int(a.id) - int(b.id) })
	return out
}

// serversInOrder is all servers in the order in which they started.
func (m *machine) serversInOrder() (out []*server) {
	for _, s := range m.sessionsInOrder() {
		out = append(out, s.servers...)
	}
	return out
}

func (m *machine) feed(s *server, k serverEvent, e event) {
	if s != nil {
		m.table[s.state][k](m, s, e)
	}
}

func (m *machine) emit(e effect) { m.out = append(m.out, e) }

func (m *machine) enter(s *server, state serverState) {
	s.state, s.since, s.deadline = state, m.now, time.Time{}
	m.emit(serverChanged{s.name})
}

// The cells of the table.

func (m *machine) spawn(s *server, _ event) {
	s.status, s.overdue = "", false
	m.enter(s, starting)
	s.deadline = m.now.Add(s.readyTimeout)
	m.emit(startProcess{s.name})
}

func (m *machine) spawned(s *server, e event) {
	s.pid = e.(processStarted).pid
	if !s.reportsReady {
		m.enter(s, running)
		return
	}
	m.emit(serverChanged{s.name})
}

func (m *machine) adopt(s *server, e event) { s.pid = e.(processStarted).pid }

func (m *machine) ready(s *server, e event) {
	s.status = e.(saidReady).status
	m.enter(s, running)
}

// restate: a ready server has something new to say about itself.
func (m *machine) restate(s *server, e event) {
	s.status = e.(saidReady).status
	m.emit(serverChanged{s.name})
}

func (m *machine) tooSlow(s *server, _ event) {
	s.overdue = true
	m.emit(sendSignal{s.name, syscall.SIGKILL})
}

func (m *machine) kill(s *server, _ event) { m.emit(sendSignal{s.name, syscall.SIGKILL}) }

func (m *machine) giveUp(s *server, _ event) { m.enter(s, stopped) }

func (m *machine) stop(s *server, _ event) {
	m.enter(s, stopping)
	s.deadline = m.now.Add(s.stopTimeout)
	if !m.deadline.IsZero() && m.deadline.Before(s.deadline) {
		s.deadline = m.deadline
	}
	m.emit(sendSignal{s.name, syscall.SIGTERM})
}

func (m *machine) wentDown(s *server, e event) {
	s.pid, s.lastEnd = 0, e.(processEnded).how
	m.enter(s, stopped)
}

// ended: a server is gone that nobody told to stop.
func (m *machine) ended(s *server, e event) {
	end := e.(processEnded)
	s.pid, s.lastEnd = 0, end.how
	if s.overdue {
		s.lastEnd = fmt.Sprintf("not ready within %v", s.readyTimeout)
	}
	if s.session.state == sessionEnding {
		m.enter(s, stopped) // what ends restarts nothing
		return
	}
	if s.restart == restartNever || (s.restart == restartOnFailure && end.clean) {
		if s.onDemand && end.clean {
			m.enter(s, waiting)
			return
		}
		m.enter(s, stopped)
		if s.critical {
			m.end(s.session, fmt.Sprintf("%s ended: %s", s.name, s.lastEnd))
		}
		return
	}
	if s.state == running && m.now.Sub(s.since) >= s.backoffMax {
		s.inARow = 0
	}
	s.recent = slices.DeleteFunc(s.recent, func(at time.Time) bool { return m.now.Sub(at) >= s.within })
	spent := ""
	switch {
	case len(s.recent) >= s.limit:
		spent = fmt.Sprintf("%s ended more than %d times within %v, last: %s", s.name, s.limit, s.within, s.lastEnd)
	case s.state == starting && s.inARow >= s.limit:
		// However slowly it fails: a server that never gets ready would keep its clients waiting for ever.
		spent = fmt.Sprintf("%s was started %d times in a row and did not get ready, last: %s", s.name, s.inARow+1, s.lastEnd)
	}
	if spent != "" {
		m.enter(s, failed)
		if s.critical {
			m.end(s.session, spent)
		}
		return
	}
	delay := min(s.backoffMax, backoff(s.backoff, s.inARow))
	s.recent = append(s.recent, m.now)
	s.restarts++
	s.inARow++
	m.enter(s, backingOff)
	s.deadline = m.now.Add(delay)
}

// backoff is the delay before restart number n in a row, counted from 0: the first is immediate, then it doubles.
func backoff(base time.Duration, n int) time.Duration {
	if n == 0 {
		return 0
	}
	return base << min(n-1, 20)
}

// Sessions.

func (m *machine) changed(s *session) { m.emit(sessionChanged{s.id, s.state, s.reason}) }

func (m *machine) open(e openSession) {
	if m.stopping || m.sessions[e.session] != nil {
		return
	}
	s := &session{id: e.session, state: sessionStarting}
	m.sessions[s.id] = s
	for _, spec := range e.servers {
		v := &server{serverSpec: spec, session: s, state: waiting, since: m.now}
		s.servers = append(s.servers, v)
		m.servers[v.name] = v
	}
	m.changed(s)
	for _, v := range s.servers {
		if v.onDemand {
			m.emit(serverChanged{v.name})
		} else {
			m.feed(v, onStart, e)
		}
	}
}

// end begins the end of a session; of session 0, that of everything.
func (m *machine) end(s *session, reason string) {
	if s.id == 0 {
		m.shutdown(shutdown{reason: reason, code: 1})
		return
	}
	if s.state >= sessionEnding {
		return
	}
	s.state, s.reason = sessionEnding, reason
	m.changed(s)
}

func (m *machine) shutdown(e shutdown) {
	if e.grace > 0 {
		if at := m.now.Add(e.grace); m.deadline.IsZero() || at.Before(m.deadline) {
			m.deadline = at
		}
	}
	m.code = max(m.code, e.code)
	for _, s := range m.servers {
		if s.state == stopping && !s.deadline.IsZero() && !m.deadline.IsZero() && m.deadline.Before(s.deadline) {
			s.deadline = m.deadline
		}
	}
	if m.stopping {
		return
	}
	m.stopping = true
	for _, s := range m.sessionsInOrder() {
		if s.id != 0 {
			m.end(s, e.reason)
		}
	}
	if zero := m.sessions[0]; zero != nil {
		zero.state, zero.reason = sessionEnding, e.reason
		m.changed(zero)
	} else {
		m.emit(finished{m.code})
	}
}

// advance moves a session on as far as its servers allow.
func (m *machine) advance(s *session) {
	switch s.state {
	case sessionStarting:
		for _, v := range s.servers {
			if v.state == starting || v.state == backingOff {
				return
			}
		}
		s.state = sessionActive
		m.changed(s)
	case sessionEnding:
		if s.id == 0 && len(m.sessions) > 1 {
			return // the interactive ones first
		}
		for _, v := range slices.Backward(s.servers) {
			if v.drained {
				continue
			}
			m.feed(v, onStop, nil)
			if v.state == stopped || v.state == failed {
				m.drain(v)
			}
			return // in reverse order, each after the one before is gone with all that it owned
		}
		if !s.asked {
			s.asked = true
			m.emit(endSession{s.id})
		}
	}
}

// drain asks once for the end of what a stopped server owned.
func (m *machine) drain(s *server) {
	if s.draining {
		return
	}
	s.draining = true
	grace := s.stopTimeout
	if !m.deadline.IsZero() {
		grace = max(0, min(grace, m.deadline.Sub(m.now)))
	}
	m.emit(endOwned{s.name, grace})
}

// close forgets an ended session.
func (m *machine) close(s *session) {
	s.state = sessionEnded
	m.changed(s)
	for _, v := range s.servers {
		delete(m.servers, v.name)
	}
	delete(m.sessions, s.id)
	if s.id == 0 {
		m.emit(finished{m.code})
	}
}
