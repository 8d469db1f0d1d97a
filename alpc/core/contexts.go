package core

import (
	"maps"
	"slices"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// speaker is a security context of a connection: whom its client may speak as, beside itself.
type speaker struct {
	token         *token
	level         security.ImpersonationLevel // as granted
	dynamic       bool
	effectiveOnly bool
}

// told names a context of a connection.
type told struct {
	c       *connection
	context uint32
}

// identify takes the snapshot of a client that its server gets with the connect.
func (m *Machine) identify(c *connection) {
	c.identity, c.told = identity(c.client, c.level, c.effectiveOnly), c.client.token.value.ModifiedID
}

// levelUnder is how far a caller may go with somebody's token; a process of a package is nobody outside of it.
func levelUnder(caller, t *security.Token) security.ImpersonationLevel {
	level := caller.ImpersonationOf(t)
	if !caller.AppContainer.IsZero() && caller.AppContainer != t.AppContainer {
		level = min(level, security.LevelIdentification)
	}
	return level
}

// createContext registers a token that the client may send under (NtAlpcCreateSecurityContext). The server is told before
// the client has the answer.
func (m *Machine) createContext(a *attachment, r *corepb.CreateSecurityContext, reply *corepb.Reply) *corepb.Failure {
	const op = "core.CreateSecurityContext"
	c := m.connections[r.GetConnection()]
	if c == nil || c.client != a || (c.state != connOpen && c.state != connGranted) {
		return fail(op, "", ntstatus.InvalidPortHandle, "connection %d is not the caller's, as client, or not open", r.GetConnection())
	}
	level := security.ImpersonationLevel(r.GetLevel())
	if level > security.LevelDelegation {
		return fail(op, c.port.name, ntstatus.BadImpersonationLevel, "%d is not an impersonation level", r.GetLevel())
	}
	if f := m.expired(a); f != nil {
		f.Op, f.Object = op, c.port.name
		return f
	}
	t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenImpersonate)
	if f != nil {
		return f
	}
	if m.ended[t.value.AuthenticationID] {
		return fail(op, tokenName(t.value.TokenID), ntstatus.NoSuchLogonSession, "its logon session has ended")
	}
	if len(c.contexts) >= maxContexts || c.lastContext == ^uint32(0) {
		return fail(op, c.port.name, ntstatus.QuotaExceeded, "the connection has its %d security contexts", maxContexts)
	}
	if f := m.charge(a, op, c.port.name, item{tokensCharge, 1}); f != nil {
		return f
	}
	level = min(level, levelUnder(a.token.value, t.value))
	c.lastContext++
	c.contexts[c.lastContext] = &speaker{token: t, level: level, dynamic: r.GetDynamic(), effectiveOnly: r.GetEffectiveOnly()}
	t.references++
	m.tellServer(c.server, t, level, r.GetEffectiveOnly(), []told{{c, c.lastContext}})
	reply.Body = &corepb.Reply_SecurityContext{SecurityContext: &corepb.SecurityContext{Context: c.lastContext, Level: uint32(level)}}
	return nil
}

// deleteContext ends a context: the client wants it no more, or the server takes it no more.
func (m *Machine) deleteContext(a *attachment, r *corepb.DeleteSecurityContext) *corepb.Failure {
	c := m.connections[r.GetConnection()]
	if c == nil || (c.client != a && c.server != a) || c.contexts[r.GetContext()] == nil {
		return fail("core.DeleteSecurityContext", "", ntstatus.InvalidHandle, "connection %d of the caller has no security context %d", r.GetConnection(), r.GetContext())
	}
	m.dropContext(c, r.GetContext())
	m.tellServer(c.server, nil, security.LevelAnonymous, false, []told{{c, r.GetContext()}})
	return nil
}

func (m *Machine) dropContext(c *connection, id uint32) {
	t := c.contexts[id].token
	delete(c.contexts, id)
	m.uncharge(c.client, item{tokensCharge, 1})
	m.release(t, 1)
}

// change gives a token object its new value. Whoever has it as its own is told, and the servers that follow it, before
// the one who asked is answered.
func (m *Machine) change(t *token, v *security.Token) {
	t.value = v
	for _, a := range sorted(m.attachments) {
		if a.token == t && a.live {
			m.notify(a.id, &corepb.Notice{Body: &corepb.Notice_TokenChanged{TokenChanged: control.TokenToWire(v)}})
		}
	}
	m.tellServers(t, false)
}

// tellServers tells every server who speaks under t now: where tracking is dynamic, or where the token is worth nothing any
// more also where a context was fixed.
func (m *Machine) tellServers(t *token, over bool) {
	type view struct {
		server        uint64
		level         security.ImpersonationLevel
		effectiveOnly bool
	}
	views, whom := []view{}, map[view][]told{}
	add := func(c *connection, id uint32, level security.ImpersonationLevel, effectiveOnly bool) {
		v := view{c.server.id, level, effectiveOnly}
		if whom[v] == nil {
			views = append(views, v)
		}
		whom[v] = append(whom[v], told{c, id})
	}
	for _, c := range sorted(m.connections) {
		if c.state != connOpen && c.state != connGranted {
			continue
		}
		if c.client.token == t && c.dynamic {
			add(c, 0, c.level, c.effectiveOnly)
			c.told = t.value.ModifiedID
		}
		for _, id := range slices.Sorted(maps.Keys(c.contexts)) {
			if s := c.contexts[id]; s.token == t && (s.dynamic || over) {
				add(c, id, s.level, s.effectiveOnly)
			}
		}
	}
	for _, v := range views {
		for part := range slices.Chunk(whom[v], maxTold) {
			m.tellServer(m.attachments[v.server], t, v.level, v.effectiveOnly, part)
		}
	}
}

// tellServer queues the notice and then raises the words of its connections, in this order; the caller answers after it.
// Without a token nobody speaks under the context any more.
func (m *Machine) tellServer(server *attachment, t *token, level security.ImpersonationLevel, effectiveOnly bool, whom []told) {
	m.generation++
	n := &corepb.SenderChanged{Generation: m.generation, Level: uint32(level)}
	if t != nil {
		if m.ended[t.value.AuthenticationID] {
			n.Level = uint32(security.LevelAnonymous)
		}
		n.Token = seen(t.value, security.ImpersonationLevel(n.Level), effectiveOnly)
	}
	for _, w := range whom {
		n.Connections, n.Contexts = append(n.Connections, w.c.id), append(n.Contexts, w.context)
	}
	m.notify(server.id, &corepb.Notice{Body: &corepb.Notice_SenderChanged{SenderChanged: n}})
	for _, w := range whom {
		m.emit(Raise{Port: w.c.portID, Line: w.c.line, To: m.generation})
	}
}
