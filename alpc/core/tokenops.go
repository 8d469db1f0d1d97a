package core

import (
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
	if t.value.Type == security.TokenImpersonation && t.value.Level == security.LevelAnonymous {
		return fail(op, tokenName(t.value.TokenID), ntstatus.CantOpenAnonymous, "it stands for somebody who does not want to be known")
	}
	desired := tokenMapping().Map(security.AccessMask(r.GetDesiredAccess()))
	if desired == 0 {
		return fail(op, tokenName(t.value.TokenID), ntstatus.AccessDenied, "no right is asked for")
	}
	if desired&security.MaximumAllowed != 0 {
		desired = desired&^security.MaximumAllowed | m.grants(a, t)
		if desired == 0 {
			desired = TokenQuery // which is refused, and logged
		}
	}
	// What a handle was granted before says nothing of what another may have: the descriptor decides anew.
	if t != a.token {
		if f := m.check(a, op, tokenName(t.value.TokenID), tokenDescriptor(t), tokenMapping(), desired, tokenRights()); f != nil {
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
	t, f := m.openToken(a, op, id, desired|TokenQuery)
	if f != nil {
		return f
	}
	v, modified := t.value, m.newLUID()
	var err error
	if r.SessionId != nil {
		v = v.Clone()
		v.SessionID, v.ModifiedID = r.GetSessionId(), modified
	}
	if r.DefaultDacl != nil {
		d := &security.Descriptor{}
		if r.GetDefaultDacl() != "" {
			if d, err = control.ParseDescriptor(r.GetDefaultDacl()); err != nil {
				return fail(op, tokenName(id), ntstatus.InvalidSecurityDescr, "%v", err)
			}
		}
		v = v.WithDefaultDACL(d.DACL, modified)
	}
	for _, set := range []struct {
		sid *string
		to  func(*security.Token, security.SID, security.LUID) (*security.Token, error)
	}{{r.Owner, (*security.Token).WithOwner}, {r.PrimaryGroup, (*security.Token).WithPrimaryGroup}} {
		if set.sid == nil {
			continue
		}
		sid, err := security.ParseSID(*set.sid)
		if err != nil {
			return fail(op, tokenName(id), ntstatus.InvalidSID, "%v", err)
		}
		if v, err = set.to(v, sid, modified); err != nil {
			return fail(op, tokenName(id), ntstatus.Of(err), "%v", err)
		}
	}
	m.change(t, v)
	reply.Body = &corepb.Reply_Token{Token: control.TokenToWire(t.value)}
	return nil
}

// filterToken makes a token that can do less (NtFilterToken). It takes no privilege: anybody may give up what is its own.
func (m *Machine) filterToken(a *attachment, r *corepb.FilterToken, reply *corepb.Reply) *corepb.Failure {
	const op = "core.FilterToken"
	t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenDuplicate)
	if f != nil {
		return f
	}
	name := tokenName(t.value.TokenID)
	const disableMax, sandboxInert, limited, writeRestricted = 1, 2, 4, 8 // NtFilterToken's flags
	if r.GetFlags()&^(disableMax|sandboxInert|limited|writeRestricted) != 0 {
		return fail(op, name, ntstatus.InvalidParameter, "flags %#x", r.GetFlags())
	}
	if n := len(r.GetDenyOnly()) + len(r.GetRestrict()) + len(r.GetDeletePrivileges()); n > maxFiltered {
		return fail(op, name, ntstatus.InvalidParameter, "%d SIDs and privileges, at most %d are allowed", n, maxFiltered)
	}
	o := security.FilterOptions{
		DisableMaxPrivilege: r.GetFlags()&disableMax != 0, Limited: r.GetFlags()&limited != 0, WriteRestricted: r.GetFlags()&writeRestricted != 0,
	}
	for _, list := range []struct {
		from []string
		to   *[]security.SID
	}{{r.GetDenyOnly(), &o.Disable}, {r.GetRestrict(), &o.Restrict}} {
		for _, text := range list.from {
			sid, err := security.ParseSID(text)
			if err != nil {
				return fail(op, name, ntstatus.InvalidSID, "%v", err)
			}
			*list.to = append(*list.to, sid)
		}
	}
	for _, p := range r.GetDeletePrivileges() {
		o.Delete = append(o.Delete, security.Privilege(p))
	}
	v, err := t.value.Filter(o)
	if err != nil {
		return fail(op, name, ntstatus.Of(err), "%v", err)
	}
	return m.handOut(a, op, m.newToken(v), m.rightsOn(a, t), reply)
}

// adjustPrivileges is NtAdjustPrivilegesToken.
func (m *Machine) adjustPrivileges(a *attachment, r *corepb.AdjustPrivileges, reply *corepb.Reply) *corepb.Failure {
	t, f := m.openToken(a, "core.AdjustPrivileges", security.LUID(r.GetTokenId()), TokenAdjustPrivileges|TokenQuery)
	if f != nil {
		return f
	}
	var changes []security.TokenPrivilege
	for _, p := range r.GetPrivileges() {
		changes = append(changes, security.TokenPrivilege{Privilege: security.Privilege(p.GetPrivilege()), Attributes: security.PrivilegeAttributes(p.GetAttributes())})
	}
	modified := m.newLUID()
	var c security.PrivilegeChange
	if r.GetDisableAll() {
		c = t.value.DisablePrivileges(modified)
	} else {
		c = t.value.AdjustPrivileges(changes, modified)
	}
	out := m.adjusted(t, c.Token, c.Status, reply)
	for _, p := range c.Previous {
		out.Privileges = append(out.Privileges, &corepb.Privilege{Privilege: uint32(p.Privilege), Attributes: uint32(p.Attributes)})
	}
	return nil
}

// adjustGroups is NtAdjustGroupsToken.
func (m *Machine) adjustGroups(a *attachment, r *corepb.AdjustGroups, reply *corepb.Reply) *corepb.Failure {
	const op = "core.AdjustGroups"
	t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenAdjustGroups|TokenQuery)
	if f != nil {
		return f
	}
	var changes []security.Group
	for _, g := range r.GetGroups() {
		sid, err := security.ParseSID(g.GetSid())
		if err != nil {
			return fail(op, tokenName(t.value.TokenID), ntstatus.InvalidSID, "%v", err)
		}
		changes = append(changes, security.Group{SID: sid, Attributes: security.GroupAttributes(g.GetAttributes())})
	}
	modified := m.newLUID()
	c := security.GroupChange{}
	if r.GetReset_() {
		c = t.value.ResetGroups(modified)
	} else {
		var err error
		if c, err = t.value.AdjustGroups(changes, modified); err != nil {
			return fail(op, tokenName(t.value.TokenID), ntstatus.Of(err), "%v", err)
		}
	}
	out := m.adjusted(t, c.Token, c.Status, reply)
	for _, g := range c.Previous {
		out.Groups = append(out.Groups, &corepb.Group{Sid: g.SID.String(), Attributes: uint32(g.Attributes)})
	}
	return nil
}

// adjusted puts the outcome in place, where it is a change, and into the reply.
func (m *Machine) adjusted(t *token, v *security.Token, status ntstatus.Status, reply *corepb.Reply) *corepb.Adjusted {
	if v.ModifiedID != t.value.ModifiedID {
		m.change(t, v)
	}
	out := &corepb.Adjusted{Token: control.TokenToWire(t.value), NotAllAssigned: status == ntstatus.NotAllAssigned}
	reply.Body = &corepb.Reply_Adjusted{Adjusted: out}
	return out
}
