package security_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
)

// The cast: alice is in staff (enabled), wheel (deny-only) and idle (disabled).
const (
	alice  = "S-1-5-21-7-7-7-1001"
	staff  = "S-1-5-21-7-7-7-2001"
	wheel  = "S-1-5-21-7-7-7-2002"
	idle   = "S-1-5-21-7-7-7-2003"
	nobody = "S-1-5-21-7-7-7-9999"
)

// A type of object with two rights to read, two to write and one to execute.
var mapping = security.GenericMapping{
	Read:    0x03 | security.ReadControl,
	Write:   0x0c | security.ReadControl,
	Execute: 0x10 | security.ReadControl,
	All:     0x1f | security.StandardRights,
}

func aliceToken(t require.TestingT) *security.Token {
	return &security.Token{
		Type: security.TokenPrimary,
		User: security.Group{SID: sid(t, alice)},
		Groups: []security.Group{
			{SID: sid(t, staff), Attributes: security.GroupDefault},
			{SID: sid(t, wheel), Attributes: security.GroupUseForDenyOnly},
			{SID: sid(t, idle)},
		},
		Integrity:       security.IntegrityMedium(),
		MandatoryPolicy: security.PolicyDefault,
	}
}

func with(privileges ...security.Privilege) func(*security.CheckRequest) {
	return func(r *security.CheckRequest) {
		for _, p := range privileges {
			r.Token.Privileges = append(r.Token.Privileges, security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabled})
		}
	}
}

func integrity(s security.SID) func(*security.CheckRequest) {
	return func(r *security.CheckRequest) { r.Token.Integrity = s }
}

func restrictedTo(sids ...security.SID) func(*security.CheckRequest) {
	return func(r *security.CheckRequest) {
		for _, s := range sids {
			r.Token.Restricted = append(r.Token.Restricted, security.Group{SID: s})
		}
	}
}

func level(l security.ImpersonationLevel) func(*security.CheckRequest) {
	return func(r *security.CheckRequest) { r.Token.Type, r.Token.Level = security.TokenImpersonation, l }
}

func mode(m security.CheckMode) func(*security.CheckRequest) {
	return func(r *security.CheckRequest) { r.Mode = m }
}

func TestAccessCheck(t *testing.T) {
	const (
		all     = security.MaximumAllowed
		owned   = security.ReadControl | security.WriteDAC
		success = ntstatus.Success
		denied  = ntstatus.AccessDenied
		others  = "O:SYG:SY"
		her     = "O:" + alice + "G:SY"
	)
	for _, c := range []struct {
		name    string
		sddl    string
		desired security.AccessMask
		status  ntstatus.Status
		granted security.AccessMask
		because string // part of the sentence that names what decided
		change  func(*security.CheckRequest)
	}{
		{"nothing is always granted", others + "D:", 0, success, 0, "nothing was asked", nil},
		{"an absent DACL grants what is asked", others, 0x1f, success, 0x1f, "no DACL", nil},
		{"an absent DACL grants all of the type", others, all | 0x20, success, 0x20 | mapping.All, "no DACL", nil},
		{"a NULL DACL grants what is asked", others + "D:NO_ACCESS_CONTROL", 0x1f, success, 0x1f, "no DACL", nil},
		{"an empty DACL denies", others + "D:", 0x1, denied, 0, "no entry", nil},
		{"an empty DACL leaves nothing to find", others + "D:", all, denied, 0, "no entry", nil},
		{"an empty DACL leaves the owner the descriptor", her + "D:", owned, success, owned, "the owner", nil},
		{"all that an owner has", her + "D:", all, success, owned, "the owner", nil},

		{"an entry for the user grants", others + "D:(A;;0x3;;;" + alice + ")", 0x1, success, 0x1, "entry 0", nil},
		{"an entry for a group grants", others + "D:(A;;0x3;;;" + staff + ")", 0x1, success, 0x1, "entry 0", nil},
		{"an entry for somebody else does not", others + "D:(A;;0x3;;;" + nobody + ")", 0x1, denied, 0, "no entry", nil},
		{"a deny-only group is granted nothing", others + "D:(A;;0x3;;;" + wheel + ")", 0x1, denied, 0, "no entry", nil},
		{"a deny-only group is denied", others + "D:(D;;0x1;;;" + wheel + ")(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "entry 0", nil},
		{"a disabled group is granted nothing", others + "D:(A;;0x3;;;" + idle + ")", 0x1, denied, 0, "no entry", nil},
		{"a disabled group is not denied", others + "D:(D;;0x1;;;" + idle + ")(A;;0x1;;;" + alice + ")", 0x1, success, 0x1, "entry 1", nil},
		{"a deny-only user is granted nothing", others + "D:(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "no entry", func(r *security.CheckRequest) {
			r.Token.User.Attributes = security.GroupUseForDenyOnly
		}},

		{"rights add up over entries", others + "D:(A;;0x1;;;" + alice + ")(A;;0x2;;;" + staff + ")", 0x3, success, 0x3, "entry 1", nil},
		{"part of what is asked is a denial of all", others + "D:(A;;0x1;;;" + alice + ")", 0x3, denied, 0, "no entry grants 0x2", nil},
		{"a deny before the allow wins", others + "D:(D;;0x1;;;" + staff + ")(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "entry 0", nil},
		{"a deny after the allow comes too late", others + "D:(A;;0x1;;;" + alice + ")(D;;0x1;;;" + staff + ")", 0x1, success, 0x1, "entry 0", nil},
		{"a deny of what was not asked is nothing", others + "D:(D;;0x2;;;" + staff + ")(A;;0x3;;;" + alice + ")", 0x1, success, 0x1, "entry 1", nil},
		{"all keeps to the stored order", others + "D:(A;;0x1;;;" + alice + ")(D;;0x3;;;" + staff + ")(A;;0x7;;;" + alice + ")", all, success, 0x5, "entry 2", nil},
		{"all and one more needs the one", others + "D:(A;;0x1;;;" + alice + ")", all | 0x2, denied, 0, "no entry grants 0x2", nil},
		{"all and a denied one fails", others + "D:(A;;0x1;;;" + alice + ")(D;;0x2;;;WD)(D;;0x2;;;" + staff + ")(A;;0x2;;;" + alice + ")", all | 0x2, denied, 0, "entry 2", nil},
		{"an inherit-only entry does not count", others + "D:(D;IO;0x1;;;" + alice + ")(A;;0x1;;;" + alice + ")", 0x1, success, 0x1, "entry 1", nil},
		{"generic rights of an entry are mapped", others + "D:(A;;GR;;;" + alice + ")", mapping.Read, success, mapping.Read, "entry 0", nil},
		{"generic rights of an entry deny what they mean", others + "D:(D;;GW;;;" + alice + ")(A;;GA;;;" + alice + ")", all, success,
			mapping.All &^ mapping.Write, "entry 1", nil},
		{"generic rights of the request are a mistake", others, security.GenericRead, ntstatus.GenericNotMapped, 0, "not mapped", nil},

		{"an owner without an entry may not write", her + "D:", 0x1, denied, 0, "no entry", nil},
		{"an owner can't be denied the descriptor", her + "D:(D;;RCWD;;;" + alice + ")", owned, success, owned, "the owner", nil},
		{"a group may own", "O:" + staff + "G:SYD:", owned, success, owned, "the owner", nil},
		{"a deny-only group does not own", "O:" + wheel + "G:SYD:", security.ReadControl, denied, 0, "no entry", nil},
		{"owner rights replace what an owner has", her + "D:(A;;RC;;;OW)", owned, denied, 0, "no entry grants WRITE_DAC", nil},
		{"owner rights can be more", her + "D:(A;;0x3;;;OW)", 0x3, success, 0x3, "entry 0", nil},
		{"owner rights add to the owner's own entries", her + "D:(A;;RC;;;OW)(A;;0x1;;;" + alice + ")", all, success, security.ReadControl | 0x1, "entry 1", nil},
		{"owner rights are nobody else's", others + "D:(A;;0x1;;;OW)", 0x1, denied, 0, "no entry", nil},
		{"owner rights deny whom the owner's SID is deny-only", "O:" + wheel + "G:SYD:(D;;0x1;;;OW)(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "entry 0", nil},
		{"inherit-only owner rights change nothing", her + "D:(A;IO;RC;;;OW)", owned, success, owned, "the owner", nil},
		{"self stands for the object", others + "D:(A;;0x1;;;PS)", 0x1, success, 0x1, "entry 0", func(r *security.CheckRequest) { r.Self = sid(t, alice) }},
		{"self of no object is nobody", others + "D:(A;;0x1;;;PS)", 0x1, denied, 0, "no entry", nil},

		{"the SACL takes a privilege", others, security.AccessSystemSecurity, ntstatus.PrivilegeNotHeld, 0, "SeSecurityPrivilege", nil},
		{"the SACL by privilege", others + "D:", security.AccessSystemSecurity, success, security.AccessSystemSecurity, "SeSecurityPrivilege", with(security.SeSecurity)},
		{"the SACL is not an entry's to give", others + "D:(A;;0x1000001;;;" + alice + ")", security.AccessSystemSecurity, ntstatus.PrivilegeNotHeld, 0, "SeSecurityPrivilege", nil},
		{"all is without the SACL", others + "D:(A;;0x1000001;;;" + alice + ")", all, success, 0x1, "entry 0", with(security.SeSecurity)},
		{"a disabled privilege is none", others, security.AccessSystemSecurity, ntstatus.PrivilegeNotHeld, 0, "SeSecurityPrivilege", func(r *security.CheckRequest) {
			r.Token.Privileges = []security.TokenPrivilege{{Privilege: security.SeSecurity}}
		}},
		{"ownership is taken past a deny", others + "D:(D;;WO;;;WD)", security.WriteOwner, success, security.WriteOwner, "SeTakeOwnershipPrivilege", with(security.SeTakeOwnership)},
		{"ownership and a denied right fails", others + "D:", security.WriteOwner | 0x1, denied, 0, "no entry grants 0x1", with(security.SeTakeOwnership)},

		{"the same integrity writes", others + "S:(ML;;NW;;;ME)", 0x4, success, 0x4, "no DACL", nil},
		{"low integrity does not write up", others + "S:(ML;;NW;;;ME)", 0x4, denied, 0, "entry 0 of the SACL", integrity(security.IntegrityLow())},
		{"low integrity reads up", others + "S:(ML;;NW;;;ME)", 0x3, success, 0x3, "no DACL", integrity(security.IntegrityLow())},
		{"without a label an object is medium", others, 0x4, denied, 0, "the default label", integrity(security.IntegrityLow())},
		{"without a label a token is untrusted", others + "S:(ML;;NW;;;LW)", 0x4, denied, 0, "S-1-16-0 is below LW", integrity(security.SID{})},
		{"no read up", others + "S:(ML;;NRNW;;;HI)", 0x3, denied, 0, "entry 0 of the SACL", nil},
		{"no read up still executes", others + "S:(ML;;NRNW;;;HI)", 0x10, success, 0x10, "no DACL", nil},
		{"no execute up", others + "S:(ML;;NX;;;HI)", 0x10, denied, 0, "entry 0 of the SACL", nil},
		{"a label that forbids nothing", others + "S:(ML;;;;;HI)", 0x1f, success, 0x1f, "no DACL", nil},
		{"an inherit-only label is for children", others + "S:(ML;IO;NW;;;HI)", 0x4, success, 0x4, "no DACL", nil},
		{"the first label counts", others + "S:(ML;;NW;;;LW)(ML;;NW;;;SI)", 0x4, success, 0x4, "no DACL", nil},
		{"what is in no generic right is not for those below", others + "S:(ML;;NW;;;HI)", security.WriteDAC, denied, 0, "WRITE_DAC", nil},
		{"a label binds the owner", her + "D:S:(ML;;NW;;;HI)", security.WriteDAC, denied, 0, "entry 0 of the SACL", nil},
		{"all is what the label leaves", others + "D:(A;;GA;;;" + alice + ")S:(ML;;NW;;;HI)", all, success, mapping.Read | mapping.Execute, "entry 0", nil},
		{"relabelling is for who may", others + "D:(A;;GA;;;" + alice + ")S:(ML;;NW;;;HI)", security.WriteOwner, success, security.WriteOwner, "entry 0", with(security.SeRelabel)},
		{"a token whose policy is off is not bound", others, 0x4, success, 0x4, "no DACL", func(r *security.CheckRequest) {
			r.Token.Integrity, r.Token.MandatoryPolicy = security.IntegrityLow(), security.PolicyOff
		}},

		{"a restricted token needs both", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;RC)", 0x1, success, 0x1, "entry 1", restrictedTo(security.RestrictedCode())},
		{"a restricted token with one is denied", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;RC)", 0x2, denied, 0, "no entry (for the restricting SIDs)", restrictedTo(security.RestrictedCode())},
		{"a restricted token is not allowed by the restricting SID alone", others + "D:(A;;0x1;;;RC)", 0x1, denied, 0, "no entry grants", restrictedTo(security.RestrictedCode())},
		{"a restricting SID is denied", others + "D:(D;;0x1;;;RC)(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "(for the restricting SIDs)", restrictedTo(security.RestrictedCode())},
		{"all of a restricted token is what both have", others + "D:(A;;0x3;;;" + alice + ")(A;;0x6;;;RC)", all, success, 0x2, "entry 1", restrictedTo(security.RestrictedCode())},
		{"all of a restricted token may be nothing", others + "D:(A;;0x1;;;" + alice + ")(A;;0x2;;;RC)", all, denied, 0, "(for the restricting SIDs)", restrictedTo(security.RestrictedCode())},
		{"a restricted owner is none", her + "D:", security.ReadControl, denied, 0, "no entry", restrictedTo(security.RestrictedCode())},
		{"a restricted owner", her + "D:", security.ReadControl, success, security.ReadControl, "the owner", func(r *security.CheckRequest) { restrictedTo(sid(t, alice))(r) }},

		{"identification may ask", others, 0x1, success, 0x1, "no DACL", level(security.LevelIdentification)},
		{"anonymous may not", others, 0x1, ntstatus.BadImpersonationLevel, 0, "anonymous", level(security.LevelAnonymous)},
		{"identification may not act", others, 0x1, ntstatus.BadImpersonationLevel, 0, "identification", func(r *security.CheckRequest) {
			level(security.LevelIdentification)(r)
			r.Mode = security.CheckOpen
		}},
		{"impersonation may act", others, 0x1, success, 0x1, "no DACL", func(r *security.CheckRequest) {
			level(security.LevelImpersonation)(r)
			r.Mode = security.CheckOpen
		}},
		{"a process may act for itself", others, 0x1, success, 0x1, "no DACL", mode(security.CheckOpen)},
		{"the query takes a client's token", others, 0x1, ntstatus.NoImpersonationToken, 0, "a process's own", mode(security.CheckQuery)},
		{"a token of no type is not trusted", others, 0x1, ntstatus.BadTokenType, 0, "neither", func(r *security.CheckRequest) { r.Token.Type = 0 }},
		{"no token", others, 0x1, ntstatus.NoToken, 0, "no token", func(r *security.CheckRequest) { r.Token = nil }},
		{"a generic right is a mistake before the level is one", others, security.GenericAll, ntstatus.GenericNotMapped, 0, "not mapped", level(security.LevelAnonymous)},
		{"no descriptor denies", others, 0x1, denied, 0, "no security descriptor", func(r *security.CheckRequest) { r.Descriptor = nil }},
		{"no owner", "G:SY", 0x1, ntstatus.InvalidSecurityDescr, 0, "lacks an owner", nil},
		{"no group", "O:SY", 0x1, ntstatus.InvalidSecurityDescr, 0, "lacks an owner or a group", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := security.CheckRequest{Descriptor: parse(t, c.sddl), Token: aliceToken(t), Desired: c.desired, Mapping: mapping}
			if c.change != nil {
				c.change(&req)
			}
			got := security.AccessCheck(req)
			require.Equal(t, c.status, got.Status, "%v", got)
			require.Equal(t, c.granted, got.Granted, "%v", got)
			require.Equal(t, c.status == success, got.Allowed())
			require.Contains(t, got.String(), c.because)

			req.Trace = true
			traced := security.AccessCheck(req)
			require.Equal(t, got.String(), traced.String(), "a trace changes nothing")
			require.Equal(t, got.Explain(), traced.Explain()[len(traced.Explain())-1:])
		})
	}
}

func TestEntriesThatAreNotUnderstoodFailTheCheck(t *testing.T) {
	unknown := security.ACE{Type: 0x77, SID: security.Everyone()}
	sd := parse(t, "O:SYG:SYD:(A;;0x1;;;"+alice+")")
	sd.DACL.ACEs = append(sd.DACL.ACEs, unknown)
	req := security.CheckRequest{Descriptor: sd, Token: aliceToken(t), Desired: 0x1, Mapping: mapping}
	require.True(t, security.AccessCheck(req).Allowed(), "no entry takes back what an earlier one granted")
	req.Desired = 0x2
	got := security.AccessCheck(req)
	require.Equal(t, ntstatus.InvalidACL, got.Status)
	require.Contains(t, got.String(), "entry 1 of the DACL (0x77;;;;;WD) is not understood")

	sd = parse(t, "O:SYG:SYD:(A;;0x1;;;"+alice+")")
	sd.SACL = security.NewACL(unknown) // may be an access filter, which narrows
	req.Descriptor, req.Desired = sd, 0x1
	got = security.AccessCheck(req)
	require.Equal(t, ntstatus.InvalidACL, got.Status)
	require.Contains(t, got.String(), "entry 0 of the SACL (0x77;;;;;WD) is not understood")

	sd.SACL = security.NewACL(security.ACE{Type: security.MandatoryLabel, SID: security.Everyone()})
	require.Equal(t, ntstatus.InvalidACL, security.AccessCheck(req).Status, "a label must be one")
}

func TestDecisionExplainsItselfStepByStep(t *testing.T) {
	req := security.CheckRequest{
		Descriptor: parse(t, "O:"+alice+"G:SYD:(D;;0x4;;;"+wheel+")(A;;0x1;;;"+nobody+")(A;;0x1;;;"+wheel+")(A;IO;0x1;;;"+alice+")(A;;RC;;;"+alice+
			")(A;;0x3;;;"+staff+")"),
		Token:   aliceToken(t),
		Desired: security.ReadControl | 0x9,
		Mapping: mapping,
		Rights:  security.RightNames{{Name: "PORT_CONNECT", Mask: 0x1}, {Name: "PORT_SHUT", Mask: 0x8}},
		Trace:   true,
	}
	d := security.AccessCheck(req)
	require.Equal(t, []string{
		"the owner " + alice + " has READ_CONTROL (0x20000)",
		"entry 0 of the DACL (D;;LC;;;" + wheel + ") changes nothing",
		"entry 1 of the DACL (A;;CC;;;" + nobody + ") is for somebody else",
		"entry 2 of the DACL (A;;CC;;;" + wheel + ") does not count: the token has its SID for denying only",
		"entry 3 of the DACL (A;IO;CC;;;" + alice + ") is for children only",
		"entry 4 of the DACL (A;;RC;;;" + alice + ") changes nothing",
		"entry 5 of the DACL (A;;CCDC;;;" + staff + ") grants PORT_CONNECT (0x1)",
		"no entry grants PORT_SHUT (0x8)",
		"access denied, PORT_SHUT (0x8) missing: no entry grants PORT_SHUT (0x8)",
	}, d.Explain())
	require.Equal(t, security.AccessMask(0x8), d.Missing)
	require.Equal(t, security.RuleEnd, d.Deciding.Rule)
}

func TestAccessCheckDoesNotAllocate(t *testing.T) {
	req := typicalRequest(t)
	require.True(t, security.AccessCheck(req).Allowed())
	require.Zero(t, testing.AllocsPerRun(100, func() { security.AccessCheck(req) }))
}

func BenchmarkAccessCheck(b *testing.B) {
	req := typicalRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		security.AccessCheck(req)
	}
}

func BenchmarkSIDMapLookup(b *testing.B) {
	m := map[security.SID]int{}
	for i := range uint32(100) {
		m[security.UnixUser(i)] = int(i)
	}
	key := security.UnixUser(50)
	for b.Loop() {
		_ = m[key]
	}
}

// typicalRequest is a descriptor of six entries and a token with twenty groups, decided by the last entry.
func typicalRequest(t require.TestingT) security.CheckRequest {
	token := aliceToken(t)
	for i := range uint32(17) {
		token.Groups = append(token.Groups, security.Group{SID: security.UnixGroup(i), Attributes: security.GroupDefault})
	}
	sddl := "O:SYG:SYD:(D;;GW;;;" + nobody + ")" + strings.Repeat("(A;;0x1;;;"+nobody+")", 4) + "(A;;GR;;;S-1-22-2-16)"
	return security.CheckRequest{Descriptor: parse(t, sddl), Token: token, Desired: 0x3, Mapping: mapping}
}
