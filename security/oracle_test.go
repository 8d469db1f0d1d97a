package security_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/ntstatus"
	"sallyport/security"
)

// The oracle is the access check of MS-DTYP 2.5.3 once more, slow and without cleverness: it asks for every bit alone whether it
// is granted, and knows no masks, no early end and no trace.

// All DACLs of up to three entries over four SIDs and four rights, absent, NULL and empty ones, inherit-only entries, three owners, and
// labels above, at and below the token's. Each DACL of up to two entries meets each label; those of three entries share them out.
func TestAccessCheckAgreesWithTheOracleOnAllSmallDACLs(t *testing.T) {
	var entries []security.ACE
	for _, s := range []security.SID{sid(t, alice), sid(t, wheel), sid(t, nobody), security.OwnerRights()} {
		for _, mask := range []security.AccessMask{0x1, security.ReadControl | 0x2, security.GenericWrite, security.WriteDAC} {
			entries = append(entries, security.Allow(s, mask), security.Deny(s, mask))
		}
	}
	for _, childrenOnly := range []security.ACE{security.Allow(security.OwnerRights(), 0x1), security.Deny(sid(t, alice), 0x1)} {
		childrenOnly.Flags = security.InheritOnly
		entries = append(entries, childrenOnly)
	}
	var sacls []*security.ACL
	for _, s := range []string{"S:", "S:(ML;;NWNR;;;HI)", "S:(ML;;NX;;;SI)", "S:(ML;;NW;;;LW)", "S:(ML;IO;NWNRNX;;;SI)(ML;;NW;;;ME)", "S:(ML;;;;;HI)"} {
		sacls = append(sacls, parse(t, s).SACL)
	}
	dacls := []*security.ACL{nil, nil, security.NewACL()} // the first is absent, the second is NULL
	for _, a := range entries {
		dacls = append(dacls, security.NewACL(a))
		for _, b := range entries {
			dacls = append(dacls, security.NewACL(a, b))
			for _, c := range entries {
				dacls = append(dacls, security.NewACL(a, b, c))
			}
		}
	}
	owners := []security.SID{sid(t, alice), sid(t, wheel), sid(t, nobody)}
	wants := []security.AccessMask{0x1, 0x7 | security.ReadControl, security.MaximumAllowed, security.MaximumAllowed | 0x2, security.WriteDAC}
	token := aliceToken(t)
	for i, dacl := range dacls {
		for j, desired := range wants {
			for k, owner := range owners {
				few := dacl == nil || len(dacl.ACEs) < 3
				for l, sacl := range sacls {
					if !few && (i+j+k)%len(sacls) != l {
						continue
					}
					sd := &security.Descriptor{Owner: owner, Group: security.LocalSystem(), DACL: dacl, SACL: sacl}
					if i > 0 {
						sd.Control = security.DACLPresent
					}
					req := security.CheckRequest{Descriptor: sd, Token: token, Desired: desired, Mapping: mapping}
					status, granted := oracle(req)
					if got := security.AccessCheck(req); got.Status != status || got.Granted != granted {
						t.Fatalf("DACL %d, %v for %v: the oracle says %v, %v; got %v", i, sd, desired, status, granted, got)
					}
				}
			}
		}
	}
}

func TestAccessCheckAgreesWithTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := anyRequest(t)
		status, granted := oracle(req)
		got := security.AccessCheck(req)
		require.Equal(t, status, got.Status, "%v: %v", req.Descriptor, got)
		require.Equal(t, granted, got.Granted, "%v: %v", req.Descriptor, got)
		require.Equal(t, got.Allowed(), got.Missing == 0)

		req.Trace = true
		traced := security.AccessCheck(req)
		require.Equal(t, got.String(), traced.String())
		if !traced.Allowed() {
			require.Equal(t, traced.Deciding, traced.Steps[len(traced.Steps)-1], "the last step decides a denial")
			return
		}
		var sum security.AccessMask
		for _, s := range traced.Steps {
			if s.Effect == security.Granted {
				sum |= s.Bits
			}
		}
		require.Zero(t, traced.Granted&^sum, "every right that is granted was granted by a step")
	})
}

func oracle(req security.CheckRequest) (ntstatus.Status, security.AccessMask) {
	var granted security.AccessMask
	missing, sacl := false, false
	for i := range 32 {
		bit := security.AccessMask(1) << i
		if bit&(security.GenericRights|security.MaximumAllowed) != 0 {
			continue
		}
		wanted := req.Desired&bit != 0
		if !wanted && req.Desired&security.MaximumAllowed == 0 {
			continue
		}
		switch {
		case bit == security.AccessSystemSecurity && !wanted:
		case oracleBit(req, bit, wanted):
			granted |= bit
		case bit == security.AccessSystemSecurity:
			sacl = true
		case wanted:
			missing = true
		}
	}
	switch {
	case sacl && !oracleLabelDeniesAny(req):
		return ntstatus.PrivilegeNotHeld, 0
	case sacl || missing, req.Desired&security.MaximumAllowed != 0 && granted == 0:
		return ntstatus.AccessDenied, 0
	}
	return ntstatus.Success, granted
}

func oracleLabelDeniesAny(req security.CheckRequest) bool {
	for i := range 32 {
		bit := security.AccessMask(1) << i
		if req.Desired&bit&^(security.MaximumAllowed|security.AccessSystemSecurity) != 0 && oracleLabelDenies(req, bit) {
			return true
		}
	}
	return false
}

func oracleLabelDenies(req security.CheckRequest, bit security.AccessMask) bool {
	label, policy := security.IntegrityMedium(), security.NoWriteUp
	if req.Descriptor.SACL != nil {
		for _, a := range req.Descriptor.SACL.ACEs {
			if a.Type == security.MandatoryLabel && a.Flags&security.InheritOnly == 0 {
				label, policy = a.SID, a.Mask
				break
			}
		}
	}
	below := req.Token.Integrity.RID() < label.RID()
	if !below || policy&7 == 0 || req.Token.MandatoryPolicy&security.PolicyNoWriteUp == 0 || bit == security.AccessSystemSecurity {
		return false
	}
	if bit == security.WriteOwner && oracleHas(req.Token, security.SeRelabel) {
		return false
	}
	return !(policy&security.NoReadUp == 0 && req.Mapping.Read&bit != 0 ||
		policy&security.NoWriteUp == 0 && req.Mapping.Write&bit != 0 ||
		policy&security.NoExecuteUp == 0 && req.Mapping.Execute&bit != 0)
}

func oracleBit(req security.CheckRequest, bit security.AccessMask, wanted bool) bool {
	sd, token := req.Descriptor, req.Token
	if oracleLabelDenies(req, bit) {
		return false
	}
	if bit == security.AccessSystemSecurity {
		return oracleHas(token, security.SeSecurity)
	}
	if bit == security.WriteOwner && wanted && oracleHas(token, security.SeTakeOwnership) {
		return true
	}
	owner := oracleMatch(token, sd.Owner, false)
	// Each of the up to three sides of the token must grant the bit, by owning or by an entry.
	side := func(owns bool, match func(security.SID, bool) bool) bool {
		if owns && (bit == security.ReadControl || bit == security.WriteDAC) && !oracleHasOwnerRights(sd) {
			return true
		}
		if sd.DACL == nil {
			return wanted || req.Mapping.All&bit != 0
		}
		return oracleWalk(req, bit, owns, match)
	}
	onlyWriting := security.Delete | security.WriteDAC | security.WriteOwner | req.Mapping.Write&^req.Mapping.Read&^req.Mapping.Execute
	restricted := len(token.Restricted) > 0
	if restricted && !token.WriteRestricted {
		owner = owner && oracleRestricted(token, sd.Owner)
	}
	if !side(owner, func(s security.SID, deny bool) bool { return oracleMatch(token, s, deny) }) {
		return false
	}
	if restricted && (!token.WriteRestricted || onlyWriting&bit != 0) &&
		!side(owner && oracleRestricted(token, sd.Owner), func(s security.SID, _ bool) bool { return oracleRestricted(token, s) }) {
		return false
	}
	return token.AppContainer.IsZero() || side(false, func(s security.SID, _ bool) bool {
		return s == token.AppContainer || s == security.AllRestrictedAppPackages() || s == security.AllAppPackages() && !token.LowPrivilege
	})
}

// oracleWalk finds the first entry that says anything about the bit.
func oracleWalk(req security.CheckRequest, bit security.AccessMask, owns bool, match func(security.SID, bool) bool) bool {
	for _, a := range req.Descriptor.DACL.ACEs {
		deny := a.Type == security.AccessDenied
		if a.Flags&security.InheritOnly != 0 || req.Mapping.Map(a.Mask)&bit == 0 {
			continue
		}
		applies := match(a.SID, deny)
		switch a.SID {
		case security.OwnerRights():
			applies = owns || deny && oracleMatch(req.Token, req.Descriptor.Owner, true)
		case security.PrincipalSelf():
			applies = !req.Self.IsZero() && match(req.Self, deny)
		}
		if applies {
			return !deny
		}
	}
	return false
}

func oracleHasOwnerRights(sd *security.Descriptor) bool {
	if sd.DACL == nil {
		return false
	}
	for _, a := range sd.DACL.ACEs {
		if a.SID == security.OwnerRights() && a.Flags&security.InheritOnly == 0 {
			return true
		}
	}
	return false
}

func oracleMatch(t *security.Token, s security.SID, deny bool) bool {
	for _, g := range t.Groups {
		if g.SID == s && (g.Attributes&security.GroupUseForDenyOnly != 0 && deny ||
			g.Attributes&(security.GroupUseForDenyOnly|security.GroupEnabled) == security.GroupEnabled) {
			return true
		}
	}
	return t.User.SID == s && (deny || t.User.Attributes&security.GroupUseForDenyOnly == 0)
}

func oracleRestricted(t *security.Token, s security.SID) bool {
	for _, g := range t.Restricted {
		if g.SID == s {
			return true
		}
	}
	return false
}

func oracleHas(t *security.Token, p security.Privilege) bool {
	for _, tp := range t.Privileges {
		if tp.Privilege == p && tp.Attributes&security.PrivilegeEnabled != 0 {
			return true
		}
	}
	return false
}

// anyRequest draws from a small world, so that things meet.
func anyRequest(t *rapid.T) security.CheckRequest {
	people := rapid.SampledFrom([]security.SID{sid(t, alice), sid(t, staff), sid(t, wheel), sid(t, idle), sid(t, nobody),
		security.OwnerRights(), security.PrincipalSelf(), security.RestrictedCode(), security.AllAppPackages(), sid(t, "S-1-15-2-7")})
	mask := rapid.Custom(func(t *rapid.T) security.AccessMask {
		return security.AccessMask(rapid.Uint32().Draw(t, "a") & rapid.Uint32().Draw(t, "b"))
	})
	labels := rapid.SampledFrom([]security.SID{security.IntegrityUntrusted(), security.IntegrityLow(), security.IntegrityMedium(), security.IntegrityHigh()})
	flags := rapid.SampledFrom([]security.ACEFlags{0, 0, 0, security.InheritOnly, security.InheritedACE})
	token := aliceToken(t)
	token.User.Attributes = rapid.SampledFrom([]security.GroupAttributes{0, 0, 0, security.GroupUseForDenyOnly}).Draw(t, "user")
	token.Integrity = rapid.OneOf(labels, rapid.Just(security.SID{})).Draw(t, "integrity")
	token.MandatoryPolicy = rapid.SampledFrom([]security.MandatoryPolicy{security.PolicyDefault, security.PolicyDefault, security.PolicyOff}).Draw(t, "policy")
	for _, p := range rapid.SliceOfDistinct(rapid.SampledFrom([]security.Privilege{security.SeSecurity, security.SeTakeOwnership, security.SeRelabel}),
		rapid.ID[security.Privilege]).Draw(t, "privileges") {
		token.Privileges = append(token.Privileges, security.TokenPrivilege{Privilege: p,
			Attributes: rapid.SampledFrom([]security.PrivilegeAttributes{0, security.PrivilegeEnabled}).Draw(t, "enabled")})
	}
	if rapid.IntRange(0, 3).Draw(t, "restricted") == 0 {
		for _, s := range rapid.SliceOfN(people, 1, 3).Draw(t, "restricting") {
			token.Restricted = append(token.Restricted, security.Group{SID: s})
		}
		token.WriteRestricted = rapid.Bool().Draw(t, "write-restricted")
	}
	if rapid.IntRange(0, 3).Draw(t, "package") == 0 {
		token.AppContainer, token.LowPrivilege = sid(t, "S-1-15-2-7"), rapid.Bool().Draw(t, "low privilege")
	}
	owner := rapid.SampledFrom([]security.SID{sid(t, alice), sid(t, staff), sid(t, wheel), sid(t, nobody)}).Draw(t, "owner")
	sd := &security.Descriptor{Owner: owner, Group: security.Users()}
	if rapid.IntRange(0, 9).Draw(t, "has DACL") > 0 {
		sd.DACL = security.NewACL()
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			sd.DACL.ACEs = append(sd.DACL.ACEs, security.ACE{
				Type:  rapid.SampledFrom([]security.ACEType{security.AccessAllowed, security.AccessAllowed, security.AccessDenied}).Draw(t, "type"),
				Flags: flags.Draw(t, "flags"), Mask: mask.Draw(t, "mask"), SID: people.Draw(t, "sid"),
			})
		}
	}
	if rapid.Bool().Draw(t, "has SACL") {
		sd.SACL = security.NewACL(
			security.ACE{Type: security.SystemAudit, SID: security.Everyone()},
			security.ACE{Type: security.MandatoryLabel, Flags: flags.Draw(t, "flags"), Mask: security.AccessMask(rapid.IntRange(0, 7).Draw(t, "policy")), SID: labels.Draw(t, "label")},
		)
	}
	desired := mask.Draw(t, "desired") & mask.Draw(t, "and") &^ security.GenericRights
	return security.CheckRequest{Descriptor: sd, Token: token, Desired: desired, Mapping: mapping,
		Self: rapid.SampledFrom([]security.SID{{}, sid(t, alice), sid(t, wheel)}).Draw(t, "self")}
}
