package security

import (
	"cmp"
	"slices"

	"sallyport/ntstatus"
)

// Changes of tokens. None writes the token that it is called on: each returns another one with the same TokenID, as the core
// puts a new value behind the same object. ModifiedID becomes the LUID that the caller hands in, but only where something changed:
// who remembers it sees with one comparison that a token still says the same (FEATURES 1.3.b.6). Filter makes a token of its own, with TokenID zero.

// PrivilegeChange is what AdjustPrivileges has done.
type PrivilegeChange struct {
	Token    *Token
	Previous []TokenPrivilege // those that changed, as they were: handed to AdjustPrivileges they undo it, but for what was removed
	Status   ntstatus.Status  // Success, or NotAllAssigned, which is a success too: what is held was adjusted
}

// AdjustPrivileges is NtAdjustPrivilegesToken. Of each change PrivilegeRemoved takes the privilege out for good, PrivilegeEnabled switches it
// on, and neither switches it off. A privilege that the token does not hold makes the status NotAllAssigned.
func (t *Token) AdjustPrivileges(changes []TokenPrivilege, modified LUID) PrivilegeChange {
	c := t.Clone()
	r := PrivilegeChange{Token: c, Status: ntstatus.Success}
	removed := false
	for _, want := range changes {
		i := slices.IndexFunc(c.Privileges, func(p TokenPrivilege) bool {
			return p.Privilege == want.Privilege && p.Attributes&PrivilegeRemoved == 0
		})
		if i < 0 {
			r.Status = ntstatus.NotAllAssigned
			continue
		}
		p := &c.Privileges[i]
		before := *p
		switch {
		case want.Attributes&PrivilegeRemoved != 0:
			p.Attributes, removed = PrivilegeRemoved, true
		case want.Attributes&PrivilegeEnabled != 0:
			p.Attributes |= PrivilegeEnabled
		default:
			p.Attributes &^= PrivilegeEnabled
		}
		if *p != before {
			r.Previous = append(r.Previous, before)
		}
	}
	if removed {
		c.Privileges = slices.DeleteFunc(c.Privileges, func(p TokenPrivilege) bool { return p.Attributes&PrivilegeRemoved != 0 })
	}
	if len(r.Previous) > 0 {
		c.ModifiedID = modified
	}
	return r
}

// DisablePrivileges is NtAdjustPrivilegesToken with DisableAllPrivileges.
func (t *Token) DisablePrivileges(modified LUID) PrivilegeChange {
	off := make([]TokenPrivilege, len(t.Privileges))
	for i, p := range t.Privileges {
		off[i].Privilege = p.Privilege
	}
	return t.AdjustPrivileges(off, modified)
}

// GroupChange is what AdjustGroups has done.
type GroupChange struct {
	Token    *Token
	Previous []Group         // those that changed, as they were
	Status   ntstatus.Status // Success, or NotAllAssigned, which is a success too
}

// AdjustGroups is NtAdjustGroupsToken. Of each change GroupEnabled switches the group on, and its absence off. It fails, and changes
// nothing, with CantDisableMandatory and with CantEnableDenyOnly; a group that the token has not makes the status NotAllAssigned.
func (t *Token) AdjustGroups(changes []Group, modified LUID) (GroupChange, error) {
	const op = "security.AdjustGroups"
	c := t.Clone()
	r := GroupChange{Token: c, Status: ntstatus.Success}
	for _, want := range changes {
		i := slices.IndexFunc(c.Groups, func(g Group) bool { return g.SID == want.SID })
		if i < 0 {
			r.Status = ntstatus.NotAllAssigned
			continue
		}
		g := &c.Groups[i]
		on := want.Attributes & GroupEnabled
		switch {
		case on == g.Attributes&GroupEnabled:
			continue
		case on == 0 && g.Attributes&GroupMandatory != 0:
			return GroupChange{}, ntstatus.New(op, g.SID.String(), ntstatus.CantDisableMandatory)
		case on != 0 && g.Attributes&GroupUseForDenyOnly != 0:
			return GroupChange{}, ntstatus.New(op, g.SID.String(), ntstatus.CantEnableDenyOnly)
		}
		r.Previous = append(r.Previous, *g)
		g.Attributes ^= GroupEnabled
	}
	if len(r.Previous) > 0 {
		c.ModifiedID = modified
	}
	return r, nil
}

// ResetGroups is NtAdjustGroupsToken with ResetToDefault: each group is on or off as it was in the beginning.
func (t *Token) ResetGroups(modified LUID) GroupChange {
	var changes []Group
	for _, g := range t.Groups {
		if g.Attributes&(GroupMandatory|GroupUseForDenyOnly) == 0 {
			enabled := GroupAttributes(0)
			if g.Attributes&GroupEnabledByDefault != 0 {
				enabled = GroupEnabled
			}
			changes = append(changes, Group{SID: g.SID, Attributes: enabled})
		}
	}
	r, _ := t.AdjustGroups(changes, modified) // neither mandatory nor deny-only: nothing to refuse
	return r
}

// WithOwner is NtSetInformationToken(TokenOwner): the owner of what the token makes. It fails with InvalidOwner where MayOwn says no.
func (t *Token) WithOwner(owner SID, modified LUID) (*Token, error) {
	if !t.MayOwn(owner) {
		return nil, ntstatus.New("security.WithOwner", owner.String(), ntstatus.InvalidOwner)
	}
	c := t.Clone()
	c.Owner, c.ModifiedID = owner, modified
	return c, nil
}

// WithPrimaryGroup is NtSetInformationToken(TokenPrimaryGroup). It fails with InvalidPrimaryGroup where the token has not the group.
func (t *Token) WithPrimaryGroup(group SID, modified LUID) (*Token, error) {
	if group != t.User.SID && !slices.ContainsFunc(t.Groups, func(g Group) bool { return g.SID == group }) || group.IsZero() {
		return nil, ntstatus.New("security.WithPrimaryGroup", group.String(), ntstatus.InvalidPrimaryGroup)
	}
	c := t.Clone()
	c.PrimaryGroup, c.ModifiedID = group, modified
	return c, nil
}

// WithDefaultDACL is NtSetInformationToken(TokenDefaultDacl); nil takes it away.
func (t *Token) WithDefaultDACL(dacl *ACL, modified LUID) *Token {
	c := t.Clone()
	c.DefaultDACL, c.ModifiedID = dacl.Clone(), modified
	return c
}

// FilterOptions say what a filtered token has not.
type FilterOptions struct {
	DisableMaxPrivilege bool        // no privileges but SeChangeNotify
	Limited             bool        // LUA_TOKEN: no administrator's groups and privileges, integrity at most medium
	WriteRestricted     bool        // the restricting SIDs count for writing only
	Disable             []SID       // for denying only from now on
	Delete              []Privilege // taken out
	Restrict            []SID       // a check must pass for these as well
}

// limitedPrivileges are what an ordinary user has (LUA_TOKEN keeps no others).
var limitedPrivileges = [...]Privilege{SeChangeNotify, SeShutdown, SeUndock, SeIncreaseWorkingSet, SeTimeZone}

// limitedRIDs are the groups that are more than an ordinary user: of Builtin, and of any domain.
var limitedBuiltin, limitedDomain = [...]uint32{544, 547, 548, 549, 550, 551, 552, 554, 556, 569, 578, 580},
	[...]uint32{498, 512, 516, 517, 518, 519, 520, 521, 553, 571, 572}

func isLimited(s SID) bool {
	if s.Domain() == Builtin() {
		return slices.Contains(limitedBuiltin[:], s.RID())
	}
	return s.HasPrefix(makeSID(authorityNT, 21)) && s.Len() == 5 && slices.Contains(limitedDomain[:], s.RID())
}

// Filter is NtFilterToken: a token of the same logon session that can do less, with TokenID zero for the core to fill. What is already
// restricted stays so: the restricting SIDs are those that both sides name, and a token that would be left with none is
// restricted to Nobody. It fails with InvalidParameter where a SID is zero.
func (t *Token) Filter(o FilterOptions) (*Token, error) {
	for _, list := range [][]SID{o.Disable, o.Restrict} {
		if slices.ContainsFunc(list, SID.IsZero) {
			return nil, ntstatus.New("security.Filter", "a SID", ntstatus.InvalidParameter)
		}
	}
	c := t.Clone()
	c.TokenID = 0
	disabled := func(s SID) bool { return slices.Contains(o.Disable, s) || o.Limited && isLimited(s) }
	if disabled(c.User.SID) {
		c.User.Attributes |= GroupUseForDenyOnly
	}
	for i := range c.Groups {
		if g := &c.Groups[i]; disabled(g.SID) && g.Attributes&GroupIntegrity == 0 {
			g.Attributes = g.Attributes&^(GroupMandatory|GroupEnabledByDefault|GroupEnabled|GroupOwner) | GroupUseForDenyOnly
		}
	}
	if !c.MayOwn(c.Owner) {
		c.Owner = SID{}
	}
	c.Privileges = slices.DeleteFunc(c.Privileges, func(p TokenPrivilege) bool {
		return slices.Contains(o.Delete, p.Privilege) || o.DisableMaxPrivilege && p.Privilege != SeChangeNotify ||
			o.Limited && !slices.Contains(limitedPrivileges[:], p.Privilege)
	})
	if o.Limited {
		if medium, _ := IntegrityMedium().IntegrityLevel(); c.IntegrityLevel() > medium {
			c.Integrity = IntegrityMedium()
		}
		c.Elevation = ElevationLimited
	}
	c.restrict(o.Restrict, o.WriteRestricted)
	return c, nil
}

func (t *Token) restrict(sids []SID, writes bool) {
	if len(sids) == 0 {
		return
	}
	again := len(t.Restricted) > 0
	// What was restricted in everything stays so.
	t.WriteRestricted = writes && (!again || t.WriteRestricted)
	var both []Group
	for _, s := range sids {
		if !again || t.matchRestricted(&s) {
			both = append(both, Group{SID: s, Attributes: GroupDefault})
		}
	}
	if len(both) == 0 {
		both = []Group{{SID: Nobody(), Attributes: GroupDefault}}
	}
	t.Restricted = both
}

// CheckPrivileges is NtPrivilegeCheck: whether the token has all of the privileges, or with any one of them, enabled. It fails
// with BadImpersonationLevel on a token below Identification.
func (t *Token) CheckPrivileges(anyOne bool, privileges ...Privilege) (bool, error) {
	if t != nil && t.Type == TokenImpersonation && t.Level < LevelIdentification {
		return false, ntstatus.New("security.CheckPrivileges", "", ntstatus.BadImpersonationLevel)
	}
	if anyOne {
		return slices.ContainsFunc(privileges, t.Has), nil
	}
	return !slices.ContainsFunc(privileges, func(p Privilege) bool { return !t.Has(p) }), nil
}

// LogonSID is the SID of the token's logon session, the zero SID where the token has none.
func (t *Token) LogonSID() SID {
	for _, g := range t.Groups {
		if g.Attributes&GroupLogonID == GroupLogonID {
			return g.SID
		}
	}
	return SID{}
}

// ImpersonationOf is the level at which a thread of a process with token t gets to impersonate client (FEATURES 1.3.b.7, PsImpersonateClient):
// the client's own, where t has SeImpersonate, or client comes from a logon that t's session made, or it is the same user,
// neither less restricted nor of a higher integrity; else at most Identification. It is no error: the caller is told.
func (t *Token) ImpersonationOf(client *Token) ImpersonationLevel {
	level := client.Level
	if client.Type == TokenPrimary {
		level = LevelImpersonation
	}
	own := t.User.SID == client.User.SID && client.IntegrityLevel() <= t.IntegrityLevel() &&
		(len(t.Restricted) == 0 || len(client.Restricted) > 0)
	made := client.OriginID != 0 && client.OriginID == t.AuthenticationID
	if level <= LevelIdentification || own || made || t.Has(SeImpersonate) {
		return level
	}
	return LevelIdentification
}

// Equal is NtCompareTokens: whether an access check can't tell the tokens apart: the same user, groups, restricting SIDs, privileges and
// package. Type, level and ids do not count.
func (t *Token) Equal(o *Token) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.User == o.User && sameGroups(t.Groups, o.Groups) && sameGroups(t.Restricted, o.Restricted) &&
		t.WriteRestricted == o.WriteRestricted && t.AppContainer == o.AppContainer && t.LowPrivilege == o.LowPrivilege &&
		sameGroups(t.Capabilities, o.Capabilities) && slices.Equal(sortedPrivileges(t.Privileges), sortedPrivileges(o.Privileges))
}

func sameGroups(a, b []Group) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	order := func(x, y Group) int {
		return cmp.Or(x.SID.Compare(y.SID), cmp.Compare(x.Attributes, y.Attributes))
	}
	slices.SortFunc(a, order)
	slices.SortFunc(b, order)
	return slices.Equal(a, b)
}

func sortedPrivileges(p []TokenPrivilege) []TokenPrivilege {
	p = slices.Clone(p)
	slices.SortFunc(p, func(x, y TokenPrivilege) int {
		return cmp.Or(cmp.Compare(x.Privilege, y.Privilege), cmp.Compare(x.Attributes, y.Attributes))
	})
	return p
}
