package core

import (
	"fmt"
	"time"

	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// connection is one connect, from the request to the end of the channel.
type connection struct {
	id        uint64
	port      *object
	client    *attachment
	server    *attachment // nil while it waits for one
	request   uint64      // the client's request id, while it is unanswered
	state     connectState
	level     security.ImpersonationLevel
	data      []byte
	takes     uint32 // handle types that the client takes
	length    uint32
	pending   uint32
	required  security.SID
	section   bool
	line      uint32
	deadline  *timer
	since     int64
	charges   []item
	portID    uint64
	identity  *corepb.Identity // of the client, as the server sees it: a snapshot of the connect
	sectioned bool
	acceptID  uint64          // the server's request id, while it accepts
	refusal   ntstatus.Status // what the server refuses with

	// Security contexts (contexts.go). 0 is the connection's own, which follows the client's token where it is dynamic.
	dynamic       bool
	effectiveOnly bool
	told          security.LUID // ModifiedID of the client's token as the server knows it
	contexts      map[uint32]*speaker
	lastContext   uint32
}

// connectState and connectEvent span the table of the handshake.
type connectState uint8

const (
	connWaiting   connectState = iota // the port has no server yet
	connRequested                     // the server decides
	connGranted                       // automatic accept: open, and the server has yet to take it
	connOpen
	connStates
)

type connectEvent uint8

const (
	serverCame connectEvent = iota
	serverAccepts
	serverRefuses
	deadlinePassed
	clientGone // cancelled, or detached
	serverGone
	eitherCloses
	connectEvents
)

type connectAction func(m *Machine, c *connection) *corepb.Failure

// connectTable has an action for every cell; nil stands for nothing in no cell.
func connectTable() [connStates][connectEvents]connectAction {
	return [connStates][connectEvents]connectAction{
		//               serverCame     serverAccepts  serverRefuses  deadlinePassed  clientGone  serverGone  eitherCloses
		connWaiting:   {askServer, notYours, notYours, timeOut, withdraw, stay, withdraw},
		connRequested: {stay, grant, refuseConnect, timeOut, withdraw, waitAgain, withdraw},
		connGranted:   {stay, takeGranted, notRefusable, stay, hangUp, hangUp, hangUp},
		connOpen:      {stay, answeredAlready, answeredAlready, stay, hangUp, hangUp, hangUp},
	}
}

func (m *Machine) move(c *connection, e connectEvent) *corepb.Failure {
	return connectTable()[c.state][e](m, c)
}

// connect starts the handshake: resolve, access check, required server, then the server's word.
func (m *Machine) connect(a *attachment, id uint64, r *corepb.Connect) (*corepb.Failure, bool) {
	const op = "core.Connect"
	name := r.GetName()
	if len(r.GetData()) > maxConnectData {
		return fail(op, name, ntstatus.PortMessageTooLong, "connection data of %d bytes, at most %d are allowed", len(r.GetData()), maxConnectData), false
	}
	if a.requests[id] != nil {
		return fail(op, name, ntstatus.InvalidParameter, "request %d is in use", id), false
	}
	level := security.ImpersonationLevel(r.GetLevel())
	if level > security.LevelDelegation {
		return fail(op, name, ntstatus.BadImpersonationLevel, "%d is not an impersonation level", r.GetLevel()), false
	}
	var required security.SID
	if r.GetRequiredServer() != "" {
		var err error
		if required, err = security.ParseSID(r.GetRequiredServer()); err != nil {
			return fail(op, name, ntstatus.InvalidSID, "the required server: %v", err), false
		}
	}
	o, _, f := m.lookup(a, op, name, false)
	if f != nil {
		return f, false
	}
	if o.kind != kindPort {
		return fail(op, name, ntstatus.InvalidPortHandle, "it is a %s, not a port", o.kind), false
	}
	if f := m.checkObject(a, op, o, PortConnect); f != nil {
		return f, false
	}
	p := o.port
	if len(p.waiting)+len(p.unanswered) >= maxHalfOpen {
		return fail(op, name, ntstatus.PortDoNotDisturb, "%d connects wait for an answer already", maxHalfOpen), false
	}
	c := &connection{
		id: m.newID(), port: o, client: a, request: id, level: level, data: r.GetData(), takes: r.GetHandleTypes(), required: required,
		length: bounded(r.GetMaxMessageLength(), p.attributes.MaxMessageLength, p.attributes.MaxMessageLength), pending: p.attributes.MaxPending,
		section: r.GetSection(), dynamic: r.GetDynamic(), effectiveOnly: r.GetEffectiveOnly(), contexts: map[uint32]*speaker{},
	}
	m.identify(c)
	c.charges = []item{{connectionsCharge, 1}, {socketBytesCharge, socketBytes}, {pendingCallsCharge, uint64(c.pending)}, {halfOpenCharge, 1}}
	if c.section {
		c.charges = append(c.charges, item{sectionBytesCharge, m.setup.SectionBytes})
	}
	if f := m.charge(a, op, name, c.charges...); f != nil {
		return f, false
	}
	timeout := time.Duration(r.GetTimeoutNs())
	if timeout <= 0 {
		timeout = defaultConnect
	}
	c.deadline = m.timers.start(m.now.Add(min(timeout, maxConnectTime)), func() { m.move(c, deadlinePassed) })
	a.requests[id], a.connections[c.id], m.connections[c.id] = c, c, c
	if p.server == nil {
		p.waiting = append(p.waiting, c)
		if len(p.waiting) == 1 {
			m.notify(p.declarer.id, &corepb.Notice{Body: &corepb.Notice_Activation{Activation: &corepb.Activation{Name: o.name}}})
		}
		return nil, true
	}
	m.move(c, serverCame)
	return nil, true
}

// askServer: the port has a server; is it the one that the client requires, and has it room?
func askServer(m *Machine, c *connection) *corepb.Failure {
	p := c.port.port
	if t := p.server.token.value; !c.required.IsZero() && t.User.SID != c.required && !t.HasSID(c.required) {
		m.endConnect(c, m.denied(c.client, &corepb.Denial{
			Op: "core.Connect", Object: c.port.name, Right: "a server that has " + c.required.String(), Status: uint32(ntstatus.ServerSIDMismatch),
			Trace: []string{fmt.Sprintf("the server is %s, whose token does not hold %s enabled, which the client requires", t.User.SID, c.required)},
		}))
		return nil
	}
	if len(p.lines) == 0 {
		m.endConnect(c, fail("core.Connect", c.port.name, ntstatus.PortDoNotDisturb, "the port has its %d connections", p.attributes.MaxConnections))
		return nil
	}
	if c.dynamic {
		m.identify(c) // it may have waited
	}
	c.server, c.portID = p.server, p.id
	c.line, p.lines = p.lines[len(p.lines)-1], p.lines[:len(p.lines)-1]
	p.live[c.id], p.unanswered[c.id], p.server.connections[c.id] = c, true, c
	notice := &corepb.ConnectRequest{
		Connection: c.id, Port: p.id, Client: c.identity, Level: uint32(c.level), Data: c.data, MaxMessageLength: c.length,
		MaxPending: c.pending, HandleTypes: c.takes, Line: c.line, Section: c.section, Accepted: p.attributes.AutoAccept,
		Generation: m.generation,
	}
	send := Send{To: c.server.id, Frame: noticeFrame(&corepb.Notice{Body: &corepb.Notice_ConnectRequest{ConnectRequest: notice}}), FDs: []FD{c.client.pidfd}}
	if !p.attributes.AutoAccept {
		c.state = connRequested
		m.emit(send)
		return nil
	}
	c.state = connGranted
	m.open(c, nil, send)
	return nil
}

// accept is the server's yes; for an automatic port it acknowledges that the connection was taken.
func (m *Machine) accept(a *attachment, id uint64, r *corepb.Accept) (*corepb.Failure, bool) {
	const op = "core.Accept"
	if len(r.GetData()) > maxConnectData {
		return fail(op, "", ntstatus.PortMessageTooLong, "connection data of %d bytes, at most %d are allowed", len(r.GetData()), maxConnectData), false
	}
	c, f := m.asked(a, op, r.GetConnection())
	if f != nil {
		return f, false
	}
	state := c.state
	c.data, c.acceptID = r.GetData(), id
	if f := m.move(c, serverAccepts); f != nil {
		return f, false
	}
	return nil, state == connRequested
}

func (m *Machine) refuse(a *attachment, r *corepb.Refuse) *corepb.Failure {
	const op = "core.Refuse"
	c, f := m.asked(a, op, r.GetConnection())
	if f != nil {
		return f
	}
	if len(r.GetData()) > maxRefuseData {
		return fail(op, "", ntstatus.PortMessageTooLong, "refusal data of %d bytes, at most %d are allowed", len(r.GetData()), maxRefuseData)
	}
	c.refusal, c.data = ntstatus.Status(r.GetStatus()), r.GetData()
	return m.move(c, serverRefuses)
}

// asked finds a connect that the caller, as server, is to answer, and marks it answered.
func (m *Machine) asked(a *attachment, op string, id uint64) (*connection, *corepb.Failure) {
	for _, o := range a.ports {
		delete(o.port.unanswered, id)
	}
	c := m.connections[id]
	if c == nil || c.server != a || c.state == connWaiting {
		return nil, fail(op, "", ntstatus.InvalidCID, "connect %d is not waiting for an answer: the client has gone, or its time was over", id)
	}
	return c, nil
}

// grant: the channel is made, one end for each.
func grant(m *Machine, c *connection) *corepb.Failure {
	stale := c.dynamic && c.told != c.client.token.value.ModifiedID
	if stale {
		// The server knows the connection only with the channel: so the word goes before it, and the notice behind.
		defer m.tellServer(c.server, c.client.token, c.level, c.effectiveOnly, []told{{c, 0}})
		m.emit(Raise{Port: c.portID, Line: c.line, To: m.generation + 1})
	}
	m.open(c, c.data, Send{To: c.server.id, Frame: replyFrame(&corepb.Reply{Id: c.acceptID, Body: &corepb.Reply_Accept{Accept: &corepb.AcceptReply{Connection: c.id}}})})
	c.state = connOpen
	return nil
}

func (m *Machine) open(c *connection, data []byte, toServer Send) {
	reply := &corepb.ConnectReply{
		Connection: c.id, Data: data, MaxMessageLength: c.length, MaxPending: c.pending, Server: identity(c.server, security.LevelIdentification, false),
		HandleTypes: c.port.port.attributes.HandleTypes,
	}
	m.emit(MakeChannel{
		Connection: c.id, Section: c.section, ClientTakes: c.takes, ServerTakes: c.port.port.attributes.HandleTypes, ToServer: toServer,
		ToClient: Send{To: c.client.id, Frame: replyFrame(&corepb.Reply{Id: c.request, Body: &corepb.Reply_Connect{Connect: reply}}), FDs: []FD{c.server.pidfd}},
	})
	m.answered(c)
	c.since, c.sectioned = m.now.UnixNano(), c.section
}

// grantFailed: the shell could not make the channel. Nobody has heard of the connection yet but by its requests.
func (m *Machine) grantFailed(c *connection, status ntstatus.Status) {
	f := fail("core.Connect", c.port.name, status, "the core could not make the channel")
	client, server := c.client, c.server
	if server != nil {
		delete(c.port.port.unanswered, c.id)
		if c.state == connOpen && server.live {
			m.reply(server, &corepb.Reply{Id: c.acceptID, Failure: f})
		}
	}
	m.erase(c)
	if client.live {
		m.reply(client, &corepb.Reply{Id: c.request, Failure: f})
	}
}

// answered: the client's request is no longer open.
func (m *Machine) answered(c *connection) {
	c.deadline.stop()
	delete(c.client.requests, c.request)
	for i, it := range c.charges {
		if it.resource == halfOpenCharge {
			m.uncharge(c.client, it)
			c.charges = append(c.charges[:i], c.charges[i+1:]...)
			break
		}
	}
}

func takeGranted(m *Machine, c *connection) *corepb.Failure { c.state = connOpen; return nil }
func stay(*Machine, *connection) *corepb.Failure            { return nil }

func notYours(_ *Machine, c *connection) *corepb.Failure {
	return fail("core.Accept", c.port.name, ntstatus.InvalidCID, "the connect was not put to the caller")
}

func notRefusable(_ *Machine, c *connection) *corepb.Failure {
	return fail("core.Refuse", c.port.name, ntstatus.InvalidDeviceState, "the port accepts automatically; close the connection instead")
}

func answeredAlready(_ *Machine, c *connection) *corepb.Failure {
	return fail("core.Accept", c.port.name, ntstatus.InvalidDeviceState, "the connect was answered already")
}

// refuseConnect: the client learns the server's status; its handle stays untouched, as in NT.
func refuseConnect(m *Machine, c *connection) *corepb.Failure {
	status := c.refusal
	if status.IsSuccess() {
		status = ntstatus.PortConnectionRefused
	}
	f := fail("core.Connect", c.port.name, status, "the server said no")
	f.Data = c.data
	m.endConnect(c, f)
	return nil
}

func timeOut(m *Machine, c *connection) *corepb.Failure {
	who := "no server came"
	if c.server != nil {
		who = fmt.Sprintf("its server, attachment %d, did not answer", c.server.id)
	}
	server := c.server
	m.endConnect(c, fail("core.Connect", c.port.name, ntstatus.IOTimeout, "%s within the connect's deadline", who))
	m.tellCancelled(c, server)
	return nil
}

// withdraw: the client does not want it any more.
func withdraw(m *Machine, c *connection) *corepb.Failure {
	server := c.server
	m.endConnect(c, fail("core.Connect", c.port.name, ntstatus.RequestCanceled, "the client withdrew"))
	m.tellCancelled(c, server)
	return nil
}

func (m *Machine) tellCancelled(c *connection, server *attachment) {
	if server != nil && server.live {
		m.notify(server.id, &corepb.Notice{Body: &corepb.Notice_ConnectCancelled{ConnectCancelled: &corepb.ConnectCancelled{Connection: c.id}}})
	}
}

// waitAgain: the server died with the connect undecided. A declared port gets another server, so the connect waits on.
func waitAgain(m *Machine, c *connection) *corepb.Failure {
	p := c.port.port
	m.unserve(c)
	if p.declarer == nil {
		m.endConnect(c, fail("core.Connect", c.port.name, ntstatus.PortDisconnected, "the server went before it answered"))
		return nil
	}
	c.state = connWaiting
	p.waiting = append(p.waiting, c)
	return nil
}

// hangUp ends an open connection.
func hangUp(m *Machine, c *connection) *corepb.Failure {
	m.closeConnection(c, ntstatus.PortDisconnected, nil)
	return nil
}

// unserve takes a connection from its server; the cache line is free again while the same server still has the port.
func (m *Machine) unserve(c *connection) {
	if c.server == nil {
		return
	}
	p := c.port.port
	delete(p.live, c.id)
	delete(c.server.connections, c.id)
	if c.server == c.client {
		c.client.connections[c.id] = c
	}
	if p.server == c.server && p.id == c.portID {
		p.lines = append(p.lines, c.line)
	}
	c.server = nil
}

// endConnect answers a connect that came to nothing.
func (m *Machine) endConnect(c *connection, f *corepb.Failure) {
	if c.client.live {
		m.reply(c.client, &corepb.Reply{Id: c.request, Failure: f})
	}
	m.answered(c)
	m.erase(c)
}

// erase forgets a connection and gives everything back.
func (m *Machine) erase(c *connection) {
	p := c.port.port
	for i, w := range p.waiting {
		if w == c {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			break
		}
	}
	m.unserve(c)
	delete(m.connections, c.id)
	delete(c.client.connections, c.id)
	m.uncharge(c.client, c.charges...)
	c.charges = nil
	for id := range c.contexts {
		m.dropContext(c, id)
	}
}

// closeConnection ends a connection and tells the sides that do not know: all but gone.
func (m *Machine) closeConnection(c *connection, status ntstatus.Status, gone *attachment) {
	if c.state == connWaiting || c.state == connRequested {
		e := clientGone
		if gone != nil && gone == c.server && gone != c.client {
			e = serverGone
		}
		m.move(c, e)
		return
	}
	client, server := c.client, c.server
	m.erase(c)
	for _, side := range []*attachment{client, server} {
		if side != nil && side != gone && side.live {
			m.notify(side.id, &corepb.Notice{Body: &corepb.Notice_ConnectionClosed{ConnectionClosed: &corepb.ConnectionClosed{Connection: c.id, Status: uint32(status)}}})
		}
	}
}

func (m *Machine) cancelConnect(a *attachment, r *corepb.CancelConnect) *corepb.Failure {
	c := a.requests[r.GetRequest()]
	if c == nil {
		return fail("core.CancelConnect", "", ntstatus.InvalidCID, "request %d is not an open connect", r.GetRequest())
	}
	return m.move(c, clientGone)
}

// disconnect is one side's word that the connection is over.
func (m *Machine) disconnect(a *attachment, id uint64) *corepb.Failure {
	c := m.connections[id]
	if c == nil || (c.client != a && c.server != a) {
		return nil // the other side was quicker
	}
	m.closeConnection(c, ntstatus.PortDisconnected, a)
	return nil
}

// offerSection gives an open connection the section of the shared gear, at the client's charge.
func (m *Machine) offerSection(a *attachment, id, connection uint64) (*corepb.Failure, bool) {
	const op = "core.OfferSection"
	c := m.connections[connection]
	if c == nil || c.client != a || (c.state != connOpen && c.state != connGranted) {
		return fail(op, "", ntstatus.InvalidPortHandle, "connection %d is not the caller's, as client, or not open", connection), false
	}
	if c.sectioned {
		return fail(op, c.port.name, ntstatus.ResourceInUse, "the connection has its section"), false
	}
	section := item{sectionBytesCharge, m.setup.SectionBytes}
	if f := m.charge(a, op, c.port.name, section); f != nil {
		return f, false
	}
	c.sectioned, c.charges = true, append(c.charges, section)
	m.emit(MakeSection{
		Connection: c.id,
		ToClient:   Send{To: a.id, Frame: replyFrame(&corepb.Reply{Id: id, Body: &corepb.Reply_Section{Section: &corepb.Empty{}}})},
		ToServer:   Send{To: c.server.id, Frame: noticeFrame(&corepb.Notice{Body: &corepb.Notice_SectionOffered{SectionOffered: &corepb.SectionOffered{Connection: c.id}}})},
	})
	return nil, true
}
