package core

import (
	"fmt"

	"sallyport/alpc"
	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// process is what is known of a process that is attached, or was assigned a token.
type process struct {
	key      ProcessKey
	uid      uint32
	token    *token
	source   alpc.IdentitySource
	evidence string
	attached int  // live attachments
	assigned bool // kept until the process dies
	disowned bool // its creator wants no part in its identity
	spawner  bool // its children wait to be assigned
	waiting  []*attachment
}

// attachment is one control connection: the unit of identity, accounting and death.
type attachment struct {
	id      uint64
	pid     int32
	uid     uint32
	pidfd   FD
	process *process // nil where the host stated the identity
	key     ProcessKey
	token   *token
	source  alpc.IdentitySource
	basis   string // evidence, for a person
	program string
	live    bool // identity settled, hello answered
	hello   uint64
	evt     Attaching
	timer   *timer
	since   int64

	used        usage
	ports       map[uint64]*object
	objects     map[*object]bool
	connections map[uint64]*connection // as client or server
	requests    map[uint64]*connection // half-open, by request id
	held        map[security.LUID]holding
}

// trusted: holds SeTcb, and so is a server of the set: it has the reserve.
func (a *attachment) trusted() bool {
	return a.token != nil && a.token.value.Has(security.SeTcb)
}

func (a *attachment) admin() bool { return a.token.value.IsAdmin() || a.trusted() }

// attaching settles who a process is, by the four rules of the design, in their order.
func (m *Machine) attaching(e Attaching) {
	a := m.newAttachment(e.ID, e.PID, e.UID, e.PIDFD, e.Program)
	a.key, a.evt, a.hello = e.Process, e, e.Hello.GetId()
	if e.Hello.GetHello().GetVersion() < Version {
		m.refuseAttach(a, fail("core.Attach", "", ntstatus.NotSupported, "this core speaks version %d of the control protocol, the caller %d", Version, e.Hello.GetHello().GetVersion()))
		return
	}
	if f := m.charge(a, "core.Attach", "", item{attachmentsCharge, 1}); f != nil {
		m.refuseAttach(a, f)
		return
	}
	known := m.processes[e.Process]
	if known != nil && known.token != nil && known.uid == e.UID {
		m.settle(a, known.token, known.source, known.evidence)
		return
	}
	if known != nil && known.assigned {
		// Assigned, but now of another uid: a set-uid program does not get its caller's token, nor its own.
		m.settle(a, m.newToken(detachedToken(e.UID)), alpc.SourceDetached, fmt.Sprintf("was assigned a token as uid %d and is now uid %d", known.uid, e.UID))
		return
	}
	if len(e.Chain) > 0 && (known == nil || !known.disowned) {
		if parent := m.processes[e.Chain[0].Process]; parent != nil && parent.spawner {
			// Rule 1: its creator has not said yet whose it is. It may be an orphan that the spawner adopted and has not
			// noticed, so it is told.
			p := m.processOf(e.Process)
			p.waiting = append(p.waiting, a)
			for _, s := range sorted(m.attachments) {
				if s.process == parent {
					m.notify(s.id, &corepb.Notice{Body: &corepb.Notice_UnassignedChild{UnassignedChild: &corepb.UnassignedChild{Pid: a.pid}}}, a.pidfd)
					break
				}
			}
			a.timer = m.timers.start(m.now.Add(assignTime), func() {
				m.refuseAttach(a, fail("core.Attach", "", ntstatus.IOTimeout, "the spawner of pid %d neither assigned it a token nor disowned it within %s", a.pid, assignTime))
			})
			return
		}
	}
	m.settleByChain(a)
}

// settleByChain applies rules 2 to 4.
func (m *Machine) settleByChain(a *attachment) {
	e := a.evt
	inside := false  // an ancestor belongs to this instance's own spawners
	decided := false // the nearest ancestor with an identity was met
	for i, ancestor := range e.Chain {
		p := m.processes[ancestor.Process]
		switch {
		case p == nil:
		case p.spawner:
			inside = true
		case p.token != nil && !decided:
			decided = true
			// Rule 2: that one decides, or nobody does.
			if !inside && e.Proven && ancestor.UID == e.UID && p.uid == e.UID && !p.disowned {
				m.settle(a, m.newToken(p.token.value), alpc.SourceInherited, fmt.Sprintf("inherited over %d generation(s) from %s", i+1, p.evidence))
				return
			}
		}
	}
	switch {
	case inside:
		m.settle(a, m.newToken(detachedToken(e.UID)), alpc.SourceDetached, "a descendant of this instance that left its session")
	case !e.Proven:
		m.settle(a, m.newToken(detachedToken(e.UID)), alpc.SourceDetached, "its ancestors changed while they were read, so nothing is proven of it but its uid")
	default:
		t := credentialsToken(m.setup, e.UID, e.GID, e.Groups)
		m.settle(a, m.newToken(t), alpc.SourceKernel, fmt.Sprintf("the kernel's credentials of pid %d: uid %d, gid %d", e.PID, e.UID, e.GID))
	}
}

// stated attaches a part of the embedding program.
func (m *Machine) stated(e Stated) {
	a := m.newAttachment(e.ID, e.PID, e.UID, e.PIDFD, e.Program)
	a.hello = e.Hello.GetId()
	if f := m.charge(a, "core.Attach", "", item{attachmentsCharge, 1}); f != nil {
		m.refuseAttach(a, f)
		return
	}
	m.settle(a, m.newToken(e.Token), alpc.SourceAsserted, "stated by the program that embeds the core")
}

func (m *Machine) newAttachment(id uint64, pid int32, uid uint32, pidfd FD, program string) *attachment {
	a := &attachment{
		id: id, pid: pid, uid: uid, pidfd: pidfd, program: program, since: m.now.UnixNano(),
		ports: map[uint64]*object{}, objects: map[*object]bool{}, connections: map[uint64]*connection{},
		requests: map[uint64]*connection{}, held: map[security.LUID]holding{},
	}
	m.attachments[id] = a
	return a
}

func (m *Machine) processOf(key ProcessKey) *process {
	p := m.processes[key]
	if p == nil {
		p = &process{key: key}
		m.processes[key] = p
	}
	return p
}

// settle gives a its identity and answers its hello.
func (m *Machine) settle(a *attachment, t *token, source alpc.IdentitySource, evidence string) {
	a.timer.stop()
	a.token, a.source, a.basis, a.live = t, source, evidence, true
	t.references++
	if source != alpc.SourceAsserted {
		p := m.processOf(a.key)
		p.attached++
		a.process = p
		if p.token == nil {
			p.token, p.source, p.evidence, p.uid = t, source, evidence, a.uid
			t.references++
		}
	}
	m.reply(a, &corepb.Reply{Id: a.hello, Body: &corepb.Reply_Hello{Hello: &corepb.HelloReply{
		Version: Version, Attachment: a.id, Identity: identity(a, security.LevelDelegation, false),
	}}})
}

// refuseAttach answers the hello with a failure and closes.
func (m *Machine) refuseAttach(a *attachment, f *corepb.Failure) {
	m.reply(a, &corepb.Reply{Id: a.hello, Failure: f})
	m.detach(a)
	m.emit(Drop{a.id})
}

// drop ends an attachment that broke the protocol.
func (m *Machine) drop(a *attachment) {
	m.detach(a)
	m.emit(Drop{a.id})
}

// detach undoes everything that a pinned: connections (their other sides are told), ports, tokens, charges.
func (m *Machine) detach(a *attachment) {
	a.timer.stop()
	a.live = false
	delete(m.attachments, a.id)
	for _, c := range sorted(a.connections) {
		m.closeConnection(c, ntstatus.PortDisconnected, a)
	}
	for _, p := range sorted(a.ports) {
		m.releasePort(p)
	}
	m.orphan(a)
	for id, h := range a.held {
		m.uncharge(a, item{tokensCharge, 1})
		m.release(m.tokens[id], h.references)
	}
	if a.used[attachmentsCharge] > 0 {
		m.uncharge(a, item{attachmentsCharge, 1})
	}
	if a.token != nil {
		m.release(a.token, 1)
	}
	if p := m.processes[a.key]; p != nil && a.process == nil {
		for i, w := range p.waiting {
			if w == a {
				p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
				break
			}
		}
		m.forget(p)
	} else if p != nil {
		p.attached--
		m.forget(p)
	}
	m.emit(CloseFD{a.pidfd})
}

// forget drops a process of which nothing is known any more.
func (m *Machine) forget(p *process) {
	if p.attached > 0 || p.assigned || p.disowned || len(p.waiting) > 0 {
		return
	}
	delete(m.processes, p.key)
	if p.token != nil {
		m.release(p.token, 1)
	}
}

func (m *Machine) processExited(key ProcessKey) {
	if p := m.processes[key]; p != nil {
		p.assigned, p.disowned = false, false
		m.forget(p)
	}
}

// registerSpawner: from now on children of a's process wait until they are assigned or disowned.
func (m *Machine) registerSpawner(a *attachment) *corepb.Failure {
	if f := m.needPrivilege(a, "core.RegisterSpawner", security.SeAssignPrimaryToken); f != nil {
		return f
	}
	if a.process != nil {
		a.process.spawner = true
	}
	return nil
}

// assignToken gives the process behind a pidfd its token, before it acts. The first word counts: a process that has an
// identity keeps it.
func (m *Machine) assignToken(a *attachment, id security.LUID, e Requested) *corepb.Failure {
	const op = "core.AssignToken"
	if f := m.needPrivilege(a, op, security.SeAssignPrimaryToken); f != nil {
		return f
	}
	t, f := m.openToken(a, op, id, TokenAssignPrimary)
	if f != nil {
		return f
	}
	if t.value.Type != security.TokenPrimary {
		return fail(op, tokenName(id), ntstatus.InvalidParameter, "only a primary token can be assigned to a process")
	}
	if len(e.FDs) != 1 || e.Keys[0] == (ProcessKey{}) {
		return fail(op, "", ntstatus.InvalidParameter, "the request must carry one pidfd of a living process")
	}
	return m.assign(op, e.Keys[0], e.UIDs[0], t, fmt.Sprintf("assigned by attachment %d (pid %d)", a.id, a.pid), &e.FDs[0])
}

// assign is the half that the core's own launch of the session manager shares. It takes *fd over.
func (m *Machine) assign(op string, key ProcessKey, uid uint32, t *token, evidence string, fd *FD) *corepb.Failure {
	p := m.processOf(key)
	if p.token != nil || p.disowned {
		return fail(op, "", ntstatus.InvalidDeviceState, "the process has an identity already")
	}
	if m.inUse(t) {
		t = m.newToken(t.value)
	}
	p.token, p.source, p.evidence, p.uid, p.assigned = t, alpc.SourceAssigned, evidence, uid, true
	t.references++
	m.emit(Watch{key, *fd})
	*fd = 0
	waiting := p.waiting
	p.waiting = nil
	for _, w := range waiting {
		if w.uid == uid {
			m.settle(w, t, p.source, evidence)
		} else {
			m.settle(w, m.newToken(detachedToken(w.uid)), alpc.SourceDetached, fmt.Sprintf("was assigned a token as uid %d and is uid %d", uid, w.uid))
		}
	}
	return nil
}

// inUse: t is somebody's own already. Each process has a token of its own, so that an adjustment is that process's business.
func (m *Machine) inUse(t *token) bool {
	for _, p := range m.processes {
		if p.token == t {
			return true
		}
	}
	for _, a := range m.attachments {
		if a.token == t {
			return true
		}
	}
	return false
}

// disown: the spawner has nothing to do with a child's identity; rules 2 to 4 decide.
func (m *Machine) disown(a *attachment, e Requested) *corepb.Failure {
	const op = "core.Disown"
	if f := m.needPrivilege(a, op, security.SeAssignPrimaryToken); f != nil {
		return f
	}
	if len(e.FDs) != 1 || e.Keys[0] == (ProcessKey{}) {
		return fail(op, "", ntstatus.InvalidParameter, "the request must carry one pidfd of a living process")
	}
	p := m.processOf(e.Keys[0])
	if p.token != nil {
		return fail(op, "", ntstatus.InvalidDeviceState, "the process has an identity already")
	}
	p.disowned = true
	m.emit(Watch{e.Keys[0], e.FDs[0]})
	e.FDs[0] = 0
	waiting := p.waiting
	p.waiting = nil
	for _, w := range waiting {
		m.settleByChain(w)
	}
	return nil
}

// launched: the core's own shell started a process, with every right, and assigns it a token itself.
func (m *Machine) launched(e Launched) {
	fd := e.PIDFD
	if f := m.assign("core.Launch", e.Process, e.UID, m.newToken(systemToken(m.setup.Owner)), "started by the core", &fd); f != nil {
		m.closeAll([]FD{fd})
	}
}

// identity is what others are told of a, up to an impersonation level.
func identity(a *attachment, level security.ImpersonationLevel, effectiveOnly bool) *corepb.Identity {
	return &corepb.Identity{
		Token: seen(a.token.value, level, effectiveOnly), Source: uint32(a.source), Evidence: a.basis, Pid: a.pid, Attachment: a.id,
	}
}

// seen is as much of a token as somebody may learn who was granted the level.
func seen(t *security.Token, level security.ImpersonationLevel, effectiveOnly bool) *corepb.Token {
	if level == security.LevelAnonymous {
		t = anonymousToken()
	} else if effectiveOnly {
		if v, err := t.Duplicate(security.DuplicateOptions{Type: t.Type, Level: t.Level, EffectiveOnly: true}); err == nil {
			v.TokenID = t.TokenID
			t = v
		}
	}
	wire := control.TokenToWire(t)
	if level < security.LevelDelegation {
		wire.Type, wire.Level = uint32(security.TokenImpersonation), uint32(level)
	}
	return wire
}
