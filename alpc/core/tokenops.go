package core

import (
	"slices"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// grantedOn is what the holder of something made of t gets: what it asks for, or else what it has on t.
func (m *Machine) grantedOn(a *attachment, op string, t *token, asked uint32) (security.AccessMask, *corepb.Failure) {
	desired := tokenMapping().Map(security.AccessMask(asked))
	switch {
	case desired&^(tokenMapping().All|security.MaximumAllowed) != 0:
		return 0, fail(op, tokenName(t.value.TokenID), ntstatus.InvalidParameter, "%#x are not rights of a token", asked)
	case desired == 0:
		return m.rightsOn(a, t), nil
	case desired&security.MaximumAllowed != 0:
		return tokenMapping().All, nil
	}
	return desired, nil
}

// takeToken makes the caller hold a token that is there, with the rights asked (NtOpenProcessToken).
func (m *Machine) takeToken(a *attachment, r *corepb.OpenToken, e Requested, reply *corepb.Reply) *corepb.Failure {
	const op = "core.OpenToken"
	t := m.tokens[security.LUID(r.GetTokenId())]
	if len(e.FDs) > 0 {
		t = nil
		if p := m.processes[e.Keys[0]]; p != nil && e.Keys[0] != (ProcessKey{}) {
			t = p.token
		}
	}
	if t == nil {
		return fail(op, tokenName(security.LUID(r.GetTokenId())), ntstatus.NoToken, "it does not exist, or nobody holds it any more")
	}
	desired := tokenMapping().Map(security.AccessMask(r.GetDesiredAccess()))
	if desired == 0 {
		return fail(op, tokenName(t.value.TokenID), ntstatus.AccessDenied, "no right is asked for")
	}
	question := desired
	if desired&security.MaximumAllowed != 0 {
		desired = m.rightsOn(a, t) | desired&^security.MaximumAllowed
		question = desired
	}
	// What a handle was granted before says nothing of what another may have: the descriptor decides anew.
	if t != a.token {
		if f := m.check(a, op, tokenName(t.value.TokenID), tokenDescriptor(t), tokenMapping(), question, tokenRights()); f != nil {
			return f
		}
	}
	if f := m.hold(a, op, t, desired); f != nil {
		return f
	}
	reply.Body = &corepb.Reply_Token{Token: control.TokenToWire(t.value)}
	return nil
}

// setToken changes what NtSetInformationToken does: the session needs SeTcb as well.
func (m *Machine) setToken(a *attachment, r *corepb.SetToken, reply *corepb.Reply) *corepb.Failure {
	const op = "core.SetToken"
	var desired security.AccessMask
	if r.SessionId != nil {
		desired |= TokenAdjustSessionID
		if f := m.needPrivilege(a, op, security.SeTcb); f != nil {
			return f
		}
	}
	if r.DefaultDacl != nil || r.Owner != nil || r.PrimaryGroup != nil {
		desired |= TokenAdjustDefault
	}
	id := security.LUID(r.GetTokenId())
	if desired == 0 {
		return fail(op, tokenName(id), ntstatus.InvalidParameter, "nothing is to be set")
	}
	t, f := m.openToken(a, op, id, desired)
	if f != nil {
		return f
	}
	v := t.value.Clone()
	if r.SessionId != nil {
		v.SessionID = r.GetSessionId()
	}
	if r.DefaultDacl != nil {
		v.DefaultDACL = nil
		if r.GetDefaultDacl() != "" {
			d, err := control.ParseDescriptor(r.GetDefaultDacl())
			if err != nil {
				return fail(op, tokenName(id), ntstatus.InvalidSecurityDescr, "%v", err)
			}
			v.DefaultDACL = d.DACL
		}
	}
	if r.Owner != nil {
		owner, err := security.ParseSID(r.GetOwner())
		if err != nil || !v.MayOwn(owner) {
			return fail(op, tokenName(id), ntstatus.InvalidOwner, "%s is neither the token's user nor a group of it that may own objects", r.GetOwner())
		}
		v.Owner = owner
	}
	if r.PrimaryGroup != nil {
		group, err := security.ParseSID(r.GetPrimaryGroup())
		if err != nil || group != v.User.SID && !slices.ContainsFunc(v.Groups, func(g security.Group) bool { return g.SID == group }) {
			return fail(op, tokenName(id), ntstatus.InvalidPrimaryGroup, "%s is neither the token's user nor a group of it", r.GetPrimaryGroup())
		}
		v.PrimaryGroup = group
	}
	m.change(t, v)
	reply.Body = &corepb.Reply_Token{Token: control.TokenToWire(t.value)}
	return nil
}
