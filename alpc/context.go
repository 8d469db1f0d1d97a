package alpc

import (
	"context"
	"sync"
	"sync/atomic"

	"sallyport/internal/channel"
	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// QualityOfService says what a server may do with a token that its client speaks under (SECURITY_QUALITY_OF_SERVICE).
type QualityOfService struct {
	Level DialLevel // the most; zero means Identification
	// Dynamic follows the token as it is adjusted; else the server sees what it was when the context was made.
	Dynamic bool
	// EffectiveOnly keeps from the server what is disabled in the token.
	EffectiveOnly bool
}

// SecurityContext is a token under which a client sends some of its messages (Message.ContextID). It belongs to one connection.
type SecurityContext struct {
	ID uint32
	// Level is what the core granted: Identification at most, where the client has neither SeImpersonate nor is the
	// token's user nor the one whose logon made it.
	Level security.ImpersonationLevel
}

// CreateSecurityContext registers a token, which the caller holds with TOKEN_IMPERSONATE, for messages of this connection
// (NtAlpcCreateSecurityContext). When it returns, the server knows. Statuses: InvalidPortHandle where this is not the client's
// end, NoToken, AccessDenied, NoSuchLogonSession, QuotaExceeded beyond 64.
func (p *Port) CreateSecurityContext(ctx context.Context, token security.LUID, q QualityOfService) (SecurityContext, error) {
	const op = "alpc.CreateSecurityContext"
	if p.o.system == nil {
		return SecurityContext{}, ntstatus.Errorf(op, p.name, ntstatus.NotSupported, "no core made this connection")
	}
	r, err := p.o.system.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_CreateSecurityContext{CreateSecurityContext: &corepb.CreateSecurityContext{
		Connection: p.o.client.Connection, TokenId: uint64(token), Level: uint32(q.Level.level()), Dynamic: q.Dynamic, EffectiveOnly: q.EffectiveOnly,
	}}})
	c := r.GetSecurityContext()
	return SecurityContext{ID: c.GetContext(), Level: security.ImpersonationLevel(c.GetLevel())}, err
}

// DeleteSecurityContext ends a context, from the client's end or the server's (NtAlpcDeleteSecurityContext,
// NtAlpcRevokeSecurityContext): requests under it that have not been received are refused.
func (p *Port) DeleteSecurityContext(ctx context.Context, id uint32) error {
	if p.o.system == nil {
		return ntstatus.New("alpc.DeleteSecurityContext", p.name, ntstatus.InvalidHandle)
	}
	_, err := p.o.system.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_DeleteSecurityContext{DeleteSecurityContext: &corepb.DeleteSecurityContext{
		Connection: p.o.client.Connection, Context: id,
	}}})
	return err
}

// senders is who speaks on a server's end of a connection, by security context. The core writes the connection's word in
// the port's page after it has queued a notice and before it answers the client; so a word beyond what was applied says
// that a notice is to be waited for.
type senders struct {
	page    *channel.Generations
	line    int
	gone    <-chan struct{} // the attachment's end: no notice comes any more
	applied atomic.Uint64
	own     atomic.Pointer[Client] // of context 0

	mu      sync.Mutex // a leaf
	changed chan struct{}
	by      map[uint32]*Client
	last    uint32 // the highest id that the core made
}

func newSenders(client *Client, page *channel.Generations, line int, generation uint64, gone <-chan struct{}) *senders {
	s := &senders{page: page, line: line, gone: gone, changed: make(chan struct{}), by: map[uint32]*Client{}}
	s.applied.Store(generation)
	s.own.Store(client)
	return s
}

// apply takes a notice in. Notices come in the order of their generations.
func (s *senders) apply(generation uint64, id uint32, token *security.Token, level security.ImpersonationLevel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case token == nil:
		delete(s.by, id)
	default:
		c := *s.own.Load()
		c.Token, c.Level, c.SessionID, c.Context = token, level, token.SessionID, id
		if id == 0 {
			s.own.Store(&c)
			break
		}
		s.by[id], s.last = &c, max(s.last, id)
	}
	s.applied.Store(generation)
	close(s.changed)
	s.changed = make(chan struct{})
}

// drain waits until every notice that the word speaks of was applied; false means that it can't be any more.
func (s *senders) drain(over <-chan struct{}) bool {
	for s.page.Read(s.line) > s.applied.Load() {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.page.Read(s.line) <= s.applied.Load() {
			return true
		}
		select {
		case <-changed:
		case <-s.gone:
			return s.page.Read(s.line) <= s.applied.Load()
		case <-over:
			return false
		}
	}
	return true
}

// senderOf says who sent m; it is not known where its context was deleted. An error ends the connection.
func (p *Port) senderOf(m *Message) (sender *Client, known bool, err error) {
	s := p.o.senders
	if s == nil {
		return p.o.client, true, nil
	}
	if !s.drain(p.ch.Done()) {
		return nil, false, ntstatus.Errorf("alpc.Receive", p.name, ntstatus.PortDisconnected, "the core has gone and took with it who sends")
	}
	if m.ContextID == 0 {
		return s.own.Load(), true, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.ContextID > s.last {
		return nil, false, ntstatus.Errorf("alpc.Receive", p.name, ntstatus.InvalidMessage, "security context %d was never made", m.ContextID)
	}
	sender = s.by[m.ContextID]
	return sender, sender != nil, nil
}

// turnAway refuses a message that nobody sent: its context was deleted.
func (p *Port) turnAway(m *Message) {
	m.CloseHandles()
	if m.Type != TypeRequest {
		return
	}
	p.mu.Lock()
	delete(p.inbound, m.ID)
	flood := p.rejected >= maxRefusals
	p.rejected++
	p.mu.Unlock()
	p.ch.Counters().AddPending(-1)
	if flood {
		p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.QuotaExceeded, "%d refusals unread", maxRefusals))
		return
	}
	go p.refuse(m.ID, m.CallbackID, ntstatus.InvalidHandle)
}

// senderChanged applies a notice of the core to the connections that it names. It runs on the attachment's receiving goroutine.
func (s *System) senderChanged(n *corepb.SenderChanged) {
	var token *security.Token
	var err error
	if n.GetToken() != nil {
		token, err = control.TokenFromWire(n.GetToken())
	}
	for i, id := range n.GetConnections() {
		s.mu.Lock()
		p := s.ports[id]
		s.mu.Unlock()
		switch {
		case p == nil || p.o.senders == nil || i >= len(n.GetContexts()):
		case err != nil: // whoever speaks there, it is not the one that was known
			p.ch.End(ntstatus.Errorf("alpc.Receive", p.name, ntstatus.RPCProtocolError, "the core's word of who sends: %v", err))
		default:
			p.o.senders.apply(n.GetGeneration(), n.GetContexts()[i], token, security.ImpersonationLevel(n.GetLevel()))
		}
	}
}
