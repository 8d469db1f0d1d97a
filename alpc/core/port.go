package core

import (
	"cmp"
	"maps"
	"slices"

	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// port is the part of an object that is a connection port.
type port struct {
	id         uint64 // of this incarnation; new with every server
	attributes *corepb.PortAttributes
	declarer   *attachment  // nil: the port lives as long as its server
	require    security.SID // declared: who may serve it
	server     *attachment  // nil: nobody yet
	lines      []uint32     // free cache lines of the slab
	live       map[uint64]*connection
	unanswered map[uint64]bool // connects that the server has been told of and has not answered
	waiting    []*connection   // connects that wait for a server
}

func (p *port) slabBytes() uint64 { return uint64(p.attributes.MaxConnections) * lineBytes }

// granted fills in what the asker left open and cuts what is beyond the maxima.
func granted(asked *corepb.PortAttributes) *corepb.PortAttributes {
	return &corepb.PortAttributes{
		MaxMessageLength: bounded(asked.GetMaxMessageLength(), defaultMessageLength, maxMessageLength),
		MaxPending:       bounded(asked.GetMaxPending(), defaultPending, maxPortPending),
		MaxConnections:   bounded(asked.GetMaxConnections(), defaultConnections, maxPortLines),
		HandleTypes:      asked.GetHandleTypes(), AutoAccept: asked.GetAutoAccept(),
	}
}

func bounded(asked, standard, most uint32) uint32 {
	if asked == 0 {
		return standard
	}
	return min(asked, most)
}

// declare reserves a port for a server that comes later: connects wait for it.
func (m *Machine) declare(a *attachment, r *corepb.Declare) *corepb.Failure {
	const op = "core.Declare"
	server, err := security.ParseSID(r.GetServer())
	if err != nil {
		return fail(op, r.GetName(), ntstatus.InvalidSID, "the server: %v", err)
	}
	o, f := m.insert(a, op, r.GetName(), r.GetAttributes().GetSecurityDescriptor(), kindPort, DirectoryCreateObject)
	if f != nil {
		return f
	}
	o.port = &port{attributes: granted(r.GetAttributes()), declarer: a, require: server, live: map[uint64]*connection{}, unanswered: map[uint64]bool{}}
	return nil
}

// undeclare removes a declared port, or lets it end with the server that it has.
func (m *Machine) undeclare(o *object) {
	o.port.declarer = nil
	if o.port.server == nil {
		m.abandon(o)
	}
}

// listen makes the caller the server of a port: a new one, or one that was declared for it.
func (m *Machine) listen(a *attachment, id uint64, r *corepb.Listen) (*corepb.Failure, bool) {
	const op = "core.Listen"
	attributes := granted(r.GetAttributes())
	dir, last, f := m.lookup(a, op, r.GetName(), true)
	if f != nil {
		return f, false
	}
	o := dir.children[fold(last)]
	declared := o != nil && o.kind == kindPort && o.port.declarer != nil && o.port.server == nil
	if declared {
		if !a.token.value.HasSID(o.port.require) {
			return m.denied(a, &corepb.Denial{
				Op: op, Object: o.name, Right: "to be its server", Status: uint32(ntstatus.AccessDenied),
				Trace:              []string{"the port was declared for " + o.port.require.String() + ", which the token of " + a.token.value.User.SID.String() + " does not hold enabled"},
				SecurityDescriptor: o.sddl,
			}), false
		}
		if f := m.expired(a); f != nil {
			return f, false
		}
	}
	charges := []item{{portsCharge, 1}, {sectionBytesCharge, uint64(attributes.MaxConnections) * lineBytes}}
	if f := m.charge(a, op, r.GetName(), charges...); f != nil {
		return f, false
	}
	if !declared {
		if o, f = m.insert(a, op, r.GetName(), r.GetAttributes().GetSecurityDescriptor(), kindPort, DirectoryCreateObject); f != nil {
			m.uncharge(a, charges...)
			return f, false
		}
		o.port = &port{live: map[uint64]*connection{}, unanswered: map[uint64]bool{}}
	}
	p := o.port
	p.id, p.attributes, p.server = m.newID(), attributes, a
	p.lines = make([]uint32, attributes.MaxConnections)
	for i := range p.lines {
		p.lines[i] = attributes.MaxConnections - 1 - uint32(i)
	}
	a.ports[p.id], m.ports[p.id] = o, o
	reply := &corepb.Reply{Id: id, Body: &corepb.Reply_Listen{Listen: &corepb.ListenReply{Port: p.id, Attributes: attributes}}}
	m.emit(MakeSlab{Port: p.id, Lines: attributes.MaxConnections, Reply: Send{To: a.id, Frame: replyFrame(reply)}})
	waiting := p.waiting
	p.waiting = nil
	for _, c := range waiting {
		m.move(c, serverCame)
	}
	return nil, true
}

func (m *Machine) closeListener(a *attachment, r *corepb.CloseListener) *corepb.Failure {
	o := a.ports[r.GetPort()]
	if o == nil {
		return fail("core.CloseListener", "", ntstatus.InvalidPortHandle, "the caller does not serve port %d", r.GetPort())
	}
	m.releasePort(o)
	return nil
}

// releasePort takes the server from a port: its connections end, and a declared port waits for the next server.
func (m *Machine) releasePort(o *object) {
	p := o.port
	a := p.server
	delete(a.ports, p.id)
	delete(m.ports, p.id)
	m.emit(DropSlab{p.id})
	m.uncharge(a, item{portsCharge, 1}, item{sectionBytesCharge, p.slabBytes()})
	p.server, p.unanswered = nil, map[uint64]bool{}
	for _, c := range sorted(p.live) {
		m.move(c, serverGone)
	}
	if p.declarer == nil {
		m.abandon(o)
	} else if len(p.waiting) > 0 {
		m.notify(p.declarer.id, &corepb.Notice{Body: &corepb.Notice_Activation{Activation: &corepb.Activation{Name: o.name}}})
	}
}

// abandon removes a port that has neither server nor declarer; whoever waits for it is told.
func (m *Machine) abandon(o *object) {
	waiting := o.port.waiting
	o.port.waiting = nil
	for _, c := range waiting {
		m.endConnect(c, fail("core.Connect", o.name, ntstatus.PortDisconnected, "the port was removed while the connect waited"))
	}
	m.unlink(o)
}

// sorted makes walks over maps repeatable: the same events give the same effects.
func sorted[K cmp.Ordered, V any](by map[K]V) []V {
	out := make([]V, 0, len(by))
	for _, k := range slices.Sorted(maps.Keys(by)) {
		out = append(out, by[k])
	}
	return out
}
