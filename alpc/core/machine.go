package core

import (
	"fmt"
	"time"

	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// ProcessKey names one process of this boot for good. The zero value names nobody.
type ProcessKey = pidfd.Key

// FD stands in events and effects for a descriptor that the shell holds. 0 is none.
type FD uint64

// Event is something that happened; the types below are all there are.
type Event interface{ event() }

// Attaching: a process connected to the core's socket. The shell has asked the kernel who it is and walked its
// ancestors, nearest first; Proven is false when the chain changed under the walk.
type Attaching struct {
	ID      uint64 // chosen by the shell, never reused
	PID     int32
	UID     uint32
	GID     uint32
	Groups  []uint32
	Process ProcessKey
	PIDFD   FD
	Chain   []Ancestor
	Proven  bool
	Program string
	Hello   *corepb.ToCore
}

// Ancestor is one proven ancestor of a process.
type Ancestor struct {
	Process ProcessKey
	UID     uint32 // effective
}

// Stated: the program that embeds the core attached one of its own parts over a socketpair, with a token that it states.
type Stated struct {
	ID      uint64
	PID     int32
	UID     uint32
	Process ProcessKey
	PIDFD   FD
	Token   *security.Token
	Program string
	Hello   *corepb.ToCore
}

// Launched: the shell itself started a process that is to be LocalSystem: the session manager.
type Launched struct {
	UID     uint32
	Process ProcessKey
	PIDFD   FD
}

// Requested: an attachment sent a request. Keys and UIDs have, for each descriptor that is the pidfd of a living process,
// which process that is and its effective uid.
type Requested struct {
	ID      uint64
	Message *corepb.ToCore
	FDs     []FD
	Keys    []ProcessKey
	UIDs    []uint32
}

// Detached: the control socket closed or its process died.
type Detached struct{ ID uint64 }

// ProcessExited: a process that was assigned a token has died.
type ProcessExited struct{ Process ProcessKey }

// GrantFailed: the shell could not make the channel of a connection.
type GrantFailed struct {
	Connection uint64
	Status     ntstatus.Status
}

// Tick: time passed; deadlines that are due are acted on.
type Tick struct{}

func (Attaching) event()     {}
func (Stated) event()        {}
func (Launched) event()      {}
func (Requested) event()     {}
func (Detached) event()      {}
func (ProcessExited) event() {}
func (GrantFailed) event()   {}
func (Tick) event()          {}

// Effect is something that the shell is to do; the types below are all there are. Effects are done in order.
type Effect interface{ effect() }

// Send delivers a frame with descriptors (which stay the shell's).
type Send struct {
	To    uint64
	Frame *corepb.FromCore
	FDs   []FD
}

// MakeChannel makes a channel's socket pair, and a section if asked for, and sends one end to each side: after the
// descriptors that the frames already have.
type MakeChannel struct {
	Connection  uint64
	Section     bool
	ClientTakes uint32 // handle types; 0 makes the kernel refuse descriptors
	ServerTakes uint32
	ToClient    Send
	ToServer    Send
}

// MakeSection makes a section for a connection that has a channel, and sends it to both sides.
type MakeSection struct {
	Connection uint64
	ToClient   Send
	ToServer   Send
}

// MakeSlab makes a port's slab of live counters and its page of generations and sends them with the reply.
type MakeSlab struct {
	Port  uint64
	Lines uint32
	Reply Send
}

// DropSlab forgets the slab and the page of a port that is gone.
type DropSlab struct{ Port uint64 }

// Raise raises the word of a connection in its port's page: a notice of that generation has been queued.
type Raise struct {
	Port uint64
	Line uint32
	To   uint64
}

// Drop closes an attachment's control socket, once what is queued has been sent.
type Drop struct{ ID uint64 }

// Watch reports the death of the process behind a pidfd as ProcessExited. The machine gives the descriptor up.
type Watch struct {
	Process ProcessKey
	FD      FD
}

// Audit puts a refusal into the audit log.
type Audit struct{ Denial *corepb.Denial }

// CloseFD gives a descriptor back.
type CloseFD struct{ FD FD }

func (Send) effect()        {}
func (MakeChannel) effect() {}
func (MakeSection) effect() {}
func (MakeSlab) effect()    {}
func (DropSlab) effect()    {}
func (Raise) effect()       {}
func (Drop) effect()        {}
func (Watch) effect()       {}
func (CloseFD) effect()     {}
func (Audit) effect()       {}

// Counters are the live counters of one connection, as its server publishes them. They inform; nothing is decided by
// them, since the server can write what it likes.
type Counters struct{ MessagesIn, MessagesOut, BytesIn, BytesOut, Pending uint64 }

// Setup is what a machine needs to know of the world.
type Setup struct {
	System bool       // the core runs as root of its user namespace: uid 0 is LocalSystem
	Owner  uint32     // uid that the core runs as
	Self   ProcessKey // the core's own process, if it is a subreaper; zero for an embedded core
	Limits Limits
	// SectionBytes is what a shared-gear section pins.
	SectionBytes uint64
	Counters     func(port uint64, line uint32) Counters
}

// Machine is the core's whole state. It is not safe for concurrent use.
type Machine struct {
	setup       Setup
	now         time.Time
	out         []Effect
	root        *object
	attachments map[uint64]*attachment
	processes   map[ProcessKey]*process
	tokens      map[security.LUID]*token
	ended       map[security.LUID]bool // logon sessions that have ended and still have tokens
	accounts    map[uint32]*account
	ports       map[uint64]*object
	connections map[uint64]*connection
	denials     denialLog
	timers      timers
	lastLUID    security.LUID
	lastID      uint64
	generation  uint64 // of notices that change who speaks
}

// NewMachine returns a core with an empty root directory.
func NewMachine(s Setup) *Machine {
	if s.Limits == (Limits{}) {
		s.Limits = DefaultLimits()
	}
	if s.Counters == nil {
		s.Counters = func(uint64, uint32) Counters { return Counters{} }
	}
	m := &Machine{
		setup:       s,
		root:        &object{kind: kindDirectory, name: `\`, children: map[string]*object{}, sd: rootDescriptor()},
		attachments: map[uint64]*attachment{},
		processes:   map[ProcessKey]*process{},
		tokens:      map[security.LUID]*token{},
		ended:       map[security.LUID]bool{},
		accounts:    map[uint32]*account{},
		ports:       map[uint64]*object{},
		connections: map[uint64]*connection{},
		lastLUID:    0x1000,
	}
	if s.Self != (ProcessKey{}) {
		m.processOf(s.Self).spawner = true
	}
	return m
}

// Step takes one event in. The effects are valid until the next call.
func (m *Machine) Step(now time.Time, event Event) []Effect {
	m.now, m.out = now, m.out[:0]
	switch e := event.(type) {
	case Attaching:
		m.attaching(e)
	case Stated:
		m.stated(e)
	case Launched:
		m.launched(e)
	case Requested:
		m.requested(e)
	case Detached:
		if a := m.attachments[e.ID]; a != nil {
			m.detach(a)
		}
	case ProcessExited:
		m.processExited(e.Process)
	case GrantFailed:
		if c := m.connections[e.Connection]; c != nil {
			m.grantFailed(c, e.Status)
		}
	case Tick:
	}
	m.timers.run(now)
	return m.out
}

// Deadline is when the machine next wants a Tick; zero for never.
func (m *Machine) Deadline() time.Time { return m.timers.next() }

func (m *Machine) emit(e Effect) { m.out = append(m.out, e) }

func (m *Machine) newLUID() security.LUID { m.lastLUID++; return m.lastLUID }
func (m *Machine) newID() uint64          { m.lastID++; return m.lastID }

// requested answers one request. Descriptors that the request does not use are given back.
func (m *Machine) requested(e Requested) {
	a := m.attachments[e.ID]
	if a == nil || !a.live {
		// Nobody may speak before it is known who it is; a well-behaved client waits for the reply to its hello.
		if a != nil {
			m.drop(a)
		}
		m.closeAll(e.FDs)
		return
	}
	reply := &corepb.Reply{Id: e.Message.GetId()}
	failure, sent := m.dispatch(a, e, reply)
	m.closeAll(e.FDs)
	if sent {
		return
	}
	reply.Failure = failure
	m.reply(a, reply)
}

// dispatch finds the request's verb. sent means that the reply has gone out or comes later.
func (m *Machine) dispatch(a *attachment, e Requested, reply *corepb.Reply) (failure *corepb.Failure, sent bool) {
	id := e.Message.GetId()
	switch r := e.Message.GetRequest().(type) {
	case *corepb.ToCore_Hello:
		return fail("core.Hello", "", ntstatus.InvalidDeviceRequest, "this attachment has said hello already"), false
	case *corepb.ToCore_Listen:
		return m.listen(a, id, r.Listen)
	case *corepb.ToCore_CloseListener:
		return m.closeListener(a, r.CloseListener), false
	case *corepb.ToCore_Declare:
		return m.declare(a, r.Declare), false
	case *corepb.ToCore_Connect:
		return m.connect(a, id, r.Connect)
	case *corepb.ToCore_CancelConnect:
		return m.cancelConnect(a, r.CancelConnect), false
	case *corepb.ToCore_Accept:
		return m.accept(a, id, r.Accept)
	case *corepb.ToCore_Refuse:
		return m.refuse(a, r.Refuse), false
	case *corepb.ToCore_CloseConnection:
		return m.disconnect(a, r.CloseConnection.GetConnection()), false
	case *corepb.ToCore_OfferSection:
		return m.offerSection(a, id, r.OfferSection.GetConnection())
	case *corepb.ToCore_CreateDirectory:
		return m.createDirectory(a, r.CreateDirectory), false
	case *corepb.ToCore_CreateSymbolicLink:
		return m.createSymbolicLink(a, r.CreateSymbolicLink), false
	case *corepb.ToCore_Remove:
		return m.remove(a, r.Remove.GetName()), false
	case *corepb.ToCore_CreateToken:
		return m.createToken(a, r.CreateToken.GetToken(), reply), false
	case *corepb.ToCore_DuplicateToken:
		return m.duplicateToken(a, r.DuplicateToken, reply), false
	case *corepb.ToCore_QueryToken:
		return m.queryToken(a, security.LUID(r.QueryToken.GetTokenId()), reply), false
	case *corepb.ToCore_CloseToken:
		return m.closeToken(a, security.LUID(r.CloseToken.GetTokenId())), false
	case *corepb.ToCore_GrantToken:
		return m.grantToken(a, r.GrantToken), false
	case *corepb.ToCore_QueryLinkedToken:
		return m.queryLinkedToken(a, security.LUID(r.QueryLinkedToken.GetTokenId()), reply), false
	case *corepb.ToCore_OpenToken:
		return m.takeToken(a, r.OpenToken, e, reply), false
	case *corepb.ToCore_FilterToken:
		return m.filterToken(a, r.FilterToken, reply), false
	case *corepb.ToCore_AdjustPrivileges:
		return m.adjustPrivileges(a, r.AdjustPrivileges, reply), false
	case *corepb.ToCore_AdjustGroups:
		return m.adjustGroups(a, r.AdjustGroups, reply), false
	case *corepb.ToCore_SetToken:
		return m.setToken(a, r.SetToken, reply), false
	case *corepb.ToCore_CreateSecurityContext:
		return m.createContext(a, r.CreateSecurityContext, reply), false
	case *corepb.ToCore_DeleteSecurityContext:
		return m.deleteContext(a, r.DeleteSecurityContext), false
	case *corepb.ToCore_NewLogonSession:
		return m.newLogonSession(a, reply), false
	case *corepb.ToCore_EndLogonSession:
		return m.endLogonSession(a, security.LUID(r.EndLogonSession.GetAuthenticationId())), false
	case *corepb.ToCore_RegisterSpawner:
		return m.registerSpawner(a), false
	case *corepb.ToCore_AssignToken:
		return m.assignToken(a, security.LUID(r.AssignToken.GetTokenId()), e), false
	case *corepb.ToCore_Disown:
		return m.disown(a, e), false
	case *corepb.ToCore_ReportDenial:
		return m.reportDenial(a, r.ReportDenial, reply), false
	case *corepb.ToCore_Explain:
		return m.explain(a, r.Explain.GetDecision(), reply), false
	case *corepb.ToCore_Evaluate:
		return m.evaluate(a, r.Evaluate, reply), false
	case *corepb.ToCore_List:
		return m.list(a, r.List, reply), false
	case *corepb.ToCore_QueryCharges:
		return m.queryCharges(a, r.QueryCharges, reply), false
	}
	return fail("core.Request", "", ntstatus.NotImplemented, "this core does not know the request"), false
}

func (m *Machine) reply(a *attachment, r *corepb.Reply) {
	m.emit(Send{To: a.id, Frame: replyFrame(r)})
}

func (m *Machine) notify(to uint64, n *corepb.Notice, fds ...FD) {
	m.emit(Send{To: to, Frame: noticeFrame(n), FDs: fds})
}

func (m *Machine) closeAll(fds []FD) {
	for _, fd := range fds {
		if fd != 0 {
			m.emit(CloseFD{fd})
		}
	}
}

func replyFrame(r *corepb.Reply) *corepb.FromCore {
	return &corepb.FromCore{Frame: &corepb.FromCore_Reply{Reply: r}}
}

func noticeFrame(n *corepb.Notice) *corepb.FromCore {
	return &corepb.FromCore{Frame: &corepb.FromCore_Notice{Notice: n}}
}

// fail is the wire form of an outcome.
func fail(op, object string, status ntstatus.Status, format string, args ...any) *corepb.Failure {
	return &corepb.Failure{Status: uint32(status), Op: op, Object: object, Text: fmt.Sprintf(format, args...)}
}
