package core

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// Well-known logon sessions (NT's LUIDs).
const (
	systemLogon    security.LUID = 0x3e7
	anonymousLogon security.LUID = 0x3e6
)

// token is a token object. value is immutable; what changes makes a new ModifiedID in a new value.
type token struct {
	value      *security.Token
	references uint32 // attachments and processes that have it as their own, handles held, and security contexts
	creator    security.SID
	linked     *token // referenced, so that it is there to be asked for; always older, so that there is no circle
}

// holding is an attachment's handle of a token: how many times it holds it, and what it may do with it.
type holding struct {
	references uint32
	granted    security.AccessMask
}

func tokenName(id security.LUID) string { return fmt.Sprintf("token %#x", uint64(id)) }

// newToken makes an object of t, with ids of this core. It has no reference yet.
func (m *Machine) newToken(t *security.Token) *token {
	v := t.Clone()
	v.TokenID, v.ModifiedID = m.newLUID(), m.newLUID()
	if v.AuthenticationID == 0 {
		v.AuthenticationID = m.newLUID()
	}
	if v.Owner.IsZero() {
		v.Owner = v.User.SID
	}
	tk := &token{value: v, creator: v.User.SID}
	if tk.linked = m.tokens[v.Linked]; tk.linked != nil {
		tk.linked.references++
	}
	m.tokens[v.TokenID] = tk
	return tk
}

// release gives n references back. A token that nobody has is gone, and its logon session with the last one.
func (m *Machine) release(t *token, n uint32) {
	if t == nil {
		return
	}
	t.references -= n
	if t.references > 0 {
		return
	}
	delete(m.tokens, t.value.TokenID)
	defer m.release(t.linked, 1)
	if auth := t.value.AuthenticationID; m.ended[auth] {
		for _, other := range m.tokens {
			if other.value.AuthenticationID == auth {
				return
			}
		}
		delete(m.ended, auth)
	}
}

// openToken finds a token for the rights asked. Who holds it has what it was granted with the handle; its own token is
// everybody's whole; for anybody else the token's descriptor decides.
func (m *Machine) openToken(a *attachment, op string, id security.LUID, desired security.AccessMask) (*token, *corepb.Failure) {
	t := m.tokens[id]
	if t == nil {
		return nil, fail(op, tokenName(id), ntstatus.NoToken, "it does not exist, or nobody holds it any more")
	}
	h, held := a.held[id]
	if t == a.token || h.granted&desired == desired && held {
		return t, nil
	}
	if held {
		return nil, m.denied(a, &corepb.Denial{
			Op: op, Object: tokenName(id), Right: tokenRights().Describe(desired), Desired: uint32(desired), Status: uint32(ntstatus.AccessDenied),
			Trace: []string{fmt.Sprintf("the caller holds it with %s; %s is missing", tokenRights().Describe(h.granted), tokenRights().Describe(desired&^h.granted))},
		})
	}
	if f := m.check(a, op, tokenName(id), tokenDescriptor(t), tokenMapping(), desired, tokenRights()); f != nil {
		return nil, f
	}
	return t, nil
}

// rightsOn is all that a may do with t.
func (m *Machine) rightsOn(a *attachment, t *token) security.AccessMask {
	if h, held := a.held[t.value.TokenID]; held && t != a.token {
		return h.granted
	}
	return m.grants(a, t)
}

// grants is all that a may open t for.
func (m *Machine) grants(a *attachment, t *token) security.AccessMask {
	if t == a.token {
		return tokenMapping().All
	}
	return security.AccessCheck(security.CheckRequest{
		Descriptor: tokenDescriptor(t), Token: a.token.value, Desired: security.MaximumAllowed, Mapping: tokenMapping(),
	}).Granted
}

// hold gives a one more reference to t, and the rights beside those that it has.
func (m *Machine) hold(a *attachment, op string, t *token, granted security.AccessMask) *corepb.Failure {
	id := t.value.TokenID
	h, held := a.held[id]
	if !held {
		if f := m.charge(a, op, tokenName(id), item{tokensCharge, 1}); f != nil {
			return f
		}
	}
	a.held[id] = holding{h.references + 1, h.granted | granted}
	t.references++
	return nil
}

// needPrivilege refuses a caller whose token has not the privilege enabled.
func (m *Machine) needPrivilege(a *attachment, op string, p security.Privilege) *corepb.Failure {
	if a.token.value.Has(p) {
		return nil
	}
	return m.denied(a, &corepb.Denial{
		Op: op, Object: "the caller's token", Right: p.String(), Status: uint32(ntstatus.PrivilegeNotHeld),
		Trace: []string{fmt.Sprintf("the token of %s does not hold %s, or has it disabled", a.token.value.User.SID, p)},
	})
}

func (m *Machine) createToken(a *attachment, w *corepb.Token, reply *corepb.Reply) *corepb.Failure {
	const op = "core.CreateToken"
	if f := m.needPrivilege(a, op, security.SeCreateToken); f != nil {
		return f
	}
	v, err := control.TokenFromWire(w)
	if err != nil {
		return fail(op, "", ntstatus.InvalidParameter, "%v", err)
	}
	if m.ended[v.AuthenticationID] {
		return fail(op, "", ntstatus.NoSuchLogonSession, "logon session %#x has ended", uint64(v.AuthenticationID))
	}
	var full *token
	if v.Linked != 0 {
		var f *corepb.Failure
		if full, f = m.openToken(a, op, v.Linked, TokenDuplicate|TokenQuery); f != nil {
			return f
		}
		if full.value.Linked != 0 {
			return fail(op, tokenName(v.Linked), ntstatus.InvalidDeviceState, "it is linked already")
		}
	}
	t := m.newToken(v)
	if f := m.handOut(a, op, t, tokenMapping().All, reply); f != nil || full == nil {
		return f
	}
	full.value = full.value.Clone()
	full.value.Linked = t.value.TokenID
	return nil
}

// queryLinkedToken is the other token of a logon that made two, one limited and one full (TokenLinkedToken): to SeTcb the token itself, to
// anybody else a copy that tells and does not act.
func (m *Machine) queryLinkedToken(a *attachment, id security.LUID, reply *corepb.Reply) *corepb.Failure {
	const op = "core.QueryLinkedToken"
	t, f := m.openToken(a, op, id, TokenQuery)
	if f != nil {
		return f
	}
	l := m.tokens[t.value.Linked]
	if l == nil {
		return fail(op, tokenName(id), ntstatus.NoSuchLogonSession, "it is not linked to another token, or that one is gone")
	}
	if a.token.value.Has(security.SeTcb) {
		if f := m.hold(a, op, l, tokenMapping().All); f != nil {
			return f
		}
		reply.Body = &corepb.Reply_Token{Token: control.TokenToWire(l.value)}
		return nil
	}
	v, err := l.value.Duplicate(security.DuplicateOptions{Type: security.TokenImpersonation, Level: security.LevelIdentification})
	if err != nil {
		return fail(op, tokenName(id), ntstatus.Of(err), "%v", err)
	}
	return m.handOut(a, op, m.newToken(v), TokenQuery|TokenDuplicate, reply)
}

// handOut makes a hold the fresh token t and puts it into the reply.
func (m *Machine) handOut(a *attachment, op string, t *token, granted security.AccessMask, reply *corepb.Reply) *corepb.Failure {
	wire := control.TokenToWire(t.value)
	f := m.hold(a, op, t, granted)
	if n := proto.Size(wire); f == nil && n > maxToken {
		m.closeToken(a, t.value.TokenID)
		return fail(op, "", ntstatus.InvalidParameter, "the token has %d bytes, at most %d are allowed", n, maxToken)
	}
	if f != nil {
		t.references++ // nobody has it: it goes, and lets go of what it is linked to
		m.release(t, 1)
		return f
	}
	reply.Body = &corepb.Reply_Token{Token: wire}
	return nil
}

func (m *Machine) duplicateToken(a *attachment, r *corepb.DuplicateToken, reply *corepb.Reply) *corepb.Failure {
	const op = "core.DuplicateToken"
	t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenDuplicate)
	if f != nil {
		return f
	}
	granted, f := m.grantedOn(a, op, t, r.GetDesiredAccess())
	if f != nil {
		return f
	}
	v, err := t.value.Duplicate(security.DuplicateOptions{
		Type: security.TokenType(r.GetType()), Level: security.ImpersonationLevel(r.GetLevel()), EffectiveOnly: r.GetEffectiveOnly(),
	})
	if err != nil {
		return fail(op, tokenName(t.value.TokenID), ntstatus.Of(err), "%v", err)
	}
	if r.GetSetSession() {
		if f := m.needPrivilege(a, op, security.SeTcb); f != nil {
			return f
		}
		v.SessionID = r.GetSessionId()
	}
	if r.GetFilterPrivileges() {
		keep := map[security.Privilege]bool{}
		for _, p := range r.GetKeepPrivileges() {
			keep[security.Privilege(p)] = true
		}
		kept := v.Privileges[:0]
		for _, p := range v.Privileges {
			if keep[p.Privilege] {
				kept = append(kept, p)
			}
		}
		v.Privileges = kept
	}
	return m.handOut(a, op, m.newToken(v), granted, reply)
}

func (m *Machine) queryToken(a *attachment, id security.LUID, reply *corepb.Reply) *corepb.Failure {
	t, f := m.openToken(a, "core.QueryToken", id, TokenQuery)
	if f != nil {
		return f
	}
	reply.Body = &corepb.Reply_Token{Token: control.TokenToWire(t.value)}
	return nil
}

func (m *Machine) closeToken(a *attachment, id security.LUID) *corepb.Failure {
	h, held := a.held[id]
	if !held {
		return fail("core.CloseToken", tokenName(id), ntstatus.InvalidHandle, "this attachment does not hold it")
	}
	if h.references--; h.references == 0 {
		delete(a.held, id)
		m.uncharge(a, item{tokensCharge, 1})
	} else {
		a.held[id] = h
	}
	m.release(m.tokens[id], 1)
	return nil
}

// grantToken makes another attachment hold a token: NT's handle, duplicated into the process that the port proves to be
// the caller. The receiver is charged for it; who can't pay gets none.
func (m *Machine) grantToken(a *attachment, r *corepb.GrantToken) *corepb.Failure {
	const op = "core.GrantToken"
	if f := m.needPrivilege(a, op, security.SeTcb); f != nil {
		return f
	}
	desired := tokenMapping().Map(security.AccessMask(r.GetDesiredAccess()))
	t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenDuplicate|desired)
	if f != nil {
		return f
	}
	if desired == 0 {
		desired = m.rightsOn(a, t)
	}
	to := m.attachments[r.GetAttachment()]
	if to == nil || !to.live {
		return fail(op, tokenName(t.value.TokenID), ntstatus.InvalidCID, "attachment %d is gone", r.GetAttachment())
	}
	return m.hold(to, op, t, desired)
}

func (m *Machine) newLogonSession(a *attachment, reply *corepb.Reply) *corepb.Failure {
	if f := m.needPrivilege(a, "core.NewLogonSession", security.SeTcb); f != nil {
		return f
	}
	reply.Body = &corepb.Reply_Luid{Luid: &corepb.LUID{Luid: uint64(m.newLUID())}}
	return nil
}

// endLogonSession: tokens of the session open nothing any more, whoever has them.
func (m *Machine) endLogonSession(a *attachment, auth security.LUID) *corepb.Failure {
	const op = "core.EndLogonSession"
	if f := m.needPrivilege(a, op, security.SeTcb); f != nil {
		return f
	}
	if auth == systemLogon || auth == anonymousLogon {
		return fail(op, "", ntstatus.InvalidParameter, "logon session %#x is the system's own", uint64(auth))
	}
	for _, t := range sorted(m.tokens) { // without one it is over already
		if t.value.AuthenticationID == auth {
			m.ended[auth] = true
			m.tellServers(t, true)
		}
	}
	return nil
}

// Descriptors and mappings of token objects.

// tokenDescriptor: whose the token is may use it, unless it is below the token; a process that gave rights up must not find
// them again in another token of its user.
func tokenDescriptor(t *token) *security.Descriptor {
	label := t.value.Integrity
	if label.IsZero() {
		label = security.IntegrityUntrusted()
	}
	return &security.Descriptor{
		Owner: t.creator, Group: t.creator,
		DACL: security.NewACL(
			security.Allow(security.LocalSystem(), tokenMapping().All),
			security.Allow(security.Administrators(), TokenQuery|security.ReadControl),
			security.Allow(t.value.User.SID, TokenQuery|TokenQuerySource|TokenDuplicate|TokenImpersonate|security.ReadControl)),
		SACL: security.NewACL(security.ACE{Type: security.MandatoryLabel, Mask: security.NoWriteUp | security.NoExecuteUp, SID: label}),
	}
}

func tokenMapping() security.GenericMapping {
	return security.GenericMapping{
		Read:    security.ReadControl | TokenQuery | TokenQuerySource,
		Write:   security.ReadControl | TokenAssignPrimary | TokenDuplicate | TokenAdjustPrivileges | TokenAdjustGroups | TokenAdjustDefault | TokenAdjustSessionID,
		Execute: security.ReadControl | TokenImpersonate,
		All:     security.StandardRights | 0x1FF,
	}
}

func tokenRights() security.RightNames {
	return security.RightNames{{Mask: TokenAssignPrimary, Name: "TOKEN_ASSIGN_PRIMARY"}, {Mask: TokenDuplicate, Name: "TOKEN_DUPLICATE"},
		{Mask: TokenImpersonate, Name: "TOKEN_IMPERSONATE"}, {Mask: TokenQuery, Name: "TOKEN_QUERY"}, {Mask: TokenQuerySource, Name: "TOKEN_QUERY_SOURCE"},
		{Mask: TokenAdjustPrivileges, Name: "TOKEN_ADJUST_PRIVILEGES"}, {Mask: TokenAdjustGroups, Name: "TOKEN_ADJUST_GROUPS"},
		{Mask: TokenAdjustDefault, Name: "TOKEN_ADJUST_DEFAULT"}, {Mask: TokenAdjustSessionID, Name: "TOKEN_ADJUST_SESSIONID"}}
}

// Tokens that the core makes itself.

func groups(sids ...security.SID) []security.Group {
	out := make([]security.Group, len(sids))
	for i, s := range sids {
		out[i] = security.Group{SID: s, Attributes: security.GroupDefault}
	}
	return out
}

func privileges(ps ...security.Privilege) []security.TokenPrivilege {
	out := make([]security.TokenPrivilege, len(ps))
	for i, p := range ps {
		out[i] = security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabledByDefault | security.PrivilegeEnabled}
	}
	return out
}

func allPrivileges() []security.TokenPrivilege {
	var all []security.Privilege
	for p := security.FirstPrivilege; p <= security.LastPrivilege; p++ {
		all = append(all, p)
	}
	return privileges(all...)
}

// systemToken is LocalSystem's, on the uid that the core runs as.
func systemToken(uid uint32) *security.Token {
	return &security.Token{
		AuthenticationID: systemLogon, Type: security.TokenPrimary, User: security.Group{SID: security.LocalSystem()},
		Groups:     append(groups(security.Administrators(), security.Everyone(), security.AuthenticatedUsers()), groups(security.UnixUser(uid))...),
		Privileges: allPrivileges(), Owner: security.Administrators(), PrimaryGroup: security.LocalSystem(),
		Integrity: security.IntegritySystem(), MandatoryPolicy: security.PolicyNoWriteUp, Source: security.TokenSource{Name: "*SYSTEM*"},
	}
}

// credentialsToken is rule 4: what the kernel's credentials make of a process.
func credentialsToken(s Setup, uid, gid uint32, supplementary []uint32) *security.Token {
	if uid == 0 && s.System {
		return systemToken(0)
	}
	t := &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: security.UnixUser(uid)}, PrimaryGroup: security.UnixGroup(gid),
		Groups:     groups(security.Everyone(), security.AuthenticatedUsers(), security.Users(), security.UnixGroup(gid)),
		Privileges: privileges(security.SeChangeNotify), Integrity: security.IntegrityMedium(),
		MandatoryPolicy: security.PolicyNoWriteUp, Source: security.TokenSource{Name: "kernel"},
	}
	for _, g := range supplementary {
		if g != gid {
			t.Groups = append(t.Groups, groups(security.UnixGroup(g))...)
		}
	}
	if uid == s.Owner && !s.System {
		admin := security.Group{SID: security.Administrators(), Attributes: security.GroupDefault | security.GroupOwner}
		t.Groups = append(t.Groups, admin)
		t.Owner, t.Integrity = admin.SID, security.IntegrityHigh()
		t.Privileges = privileges(security.SeChangeNotify, security.SeSecurity, security.SeTakeOwnership, security.SeDebug, security.SeShutdown,
			security.SeImpersonate, security.SeCreateGlobal, security.SeBackup, security.SeRestore)
	}
	return t
}

// detachedToken is rule 3: the uid, and nothing that would let it in anywhere.
func detachedToken(uid uint32) *security.Token {
	return &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: security.UnixUser(uid)}, PrimaryGroup: security.UnixUser(uid),
		Integrity: security.IntegrityLow(), MandatoryPolicy: security.PolicyNoWriteUp, Source: security.TokenSource{Name: "detached"},
	}
}

func anonymousToken() *security.Token {
	return &security.Token{
		AuthenticationID: anonymousLogon, Type: security.TokenImpersonation, Level: security.LevelAnonymous,
		User: security.Group{SID: security.Anonymous()}, Owner: security.Anonymous(), PrimaryGroup: security.Anonymous(), Integrity: security.IntegrityUntrusted(),
	}
}
