package security_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
)

const (
	wholeType = "00000000-0000-0000-0000-0000000000aa"
	setOne    = "00000000-0000-0000-0000-000000000001"
	setTwo    = "00000000-0000-0000-0000-000000000002"
	property  = "00000000-0000-0000-0000-000000000011"
)

// tree is an object with two sets of properties, the first of which has one property.
func tree(t require.TestingT) []security.ObjectType {
	node := func(level int, s string) security.ObjectType {
		g, err := security.ParseGUID(s)
		require.NoError(t, err)
		return security.ObjectType{Level: level, Type: g}
	}
	return []security.ObjectType{node(0, wholeType), node(1, setOne), node(2, property), node(1, setTwo)}
}

func TestPartsOfAnObject(t *testing.T) {
	const (
		yes  = ntstatus.Success
		no   = ntstatus.AccessDenied
		head = "O:SYG:SYD:"
		a    = ";;" + alice + ")"
		max  = security.MaximumAllowed
	)
	for _, c := range []struct {
		name    string
		dacl    string
		desired security.AccessMask
		status  ntstatus.Status
		granted security.AccessMask
		parts   [4]security.AccessMask // what each part is granted; 0 is denied
		change  func(*security.CheckRequest)
	}{
		{"all of it", "(A;;0x3;;" + a[1:], 0x3, yes, 0x3, [4]security.AccessMask{3, 3, 3, 3}, nil},
		{"one set", "(OA;;0x3;" + setOne + a, 0x3, no, 0, [4]security.AccessMask{0, 3, 3, 0}, nil},
		{"both sets are all of it", "(OA;;0x3;" + setOne + a + "(OA;;0x3;" + setTwo + a, 0x3, yes, 0x3, [4]security.AccessMask{3, 3, 3, 3}, nil},
		{"a property is its set, where it is the only one", "(OA;;0x1;" + property + a, 0x1, no, 0, [4]security.AccessMask{0, 1, 1, 0}, nil},
		{"a denied property denies the whole", "(OD;;0x1;" + property + a + "(A;;0x3;;" + a[1:], 0x1, no, 0, [4]security.AccessMask{0, 0, 0, 1}, nil},
		{"a deny comes too late", "(A;;0x3;;" + a[1:] + "(OD;;0x1;" + property + a, 0x1, yes, 0x1, [4]security.AccessMask{1, 1, 1, 1}, nil},
		{"a deny after a grant of a part", "(OA;;0x1;" + setOne + a + "(D;;0x1;;" + a[1:], 0x1, no, 0, [4]security.AccessMask{0, 1, 1, 0}, nil},
		{"another part", "(OA;;0x3;" + typeA + a, 0x1, no, 0, [4]security.AccessMask{}, nil},
		{"an object entry without a type", "(OA;;0x3;;" + a[1:], 0x1, yes, 0x1, [4]security.AccessMask{1, 1, 1, 1}, nil},
		{"all there is", "(OA;;0x1;" + setTwo + a + "(A;;0x2;;" + a[1:] + "(OD;;0x10;" + property + a + "(A;;0x10;;" + a[1:], max, yes, 0x2,
			[4]security.AccessMask{2, 2, 2, 0x13}, nil},
		{"all there is, of parts only", "(OA;;0x1;" + setTwo + a, max, no, 0, [4]security.AccessMask{0, 0, 0, 1}, nil},
		{"twice the same", "(OA;;0x1;" + setOne + a + "(OA;;0x1;" + property + a, 0x1, no, 0, [4]security.AccessMask{0, 1, 1, 0}, nil},
		{"restricted", "(A;;0x1;;" + a[1:] + "(OA;;0x1;" + setTwo + ";;RC)", 0x1, no, 0, [4]security.AccessMask{0, 0, 0, 1}, restrictedTo(security.RestrictedCode())},
		{"by privilege", "", security.WriteOwner, yes, security.WriteOwner, [4]security.AccessMask{security.WriteOwner, security.WriteOwner, security.WriteOwner, security.WriteOwner}, with(security.SeTakeOwnership)},
		{"a label denies all parts", "(A;;0x4;;" + a[1:], 0x4, no, 0, [4]security.AccessMask{}, integrity(security.IntegrityLow())},
		{"a policy narrows all parts", "(A;;0x3;;" + a[1:], 0x1, no, 0, [4]security.AccessMask{}, func(r *security.CheckRequest) {
			r.Descriptor.SACL = parse(t, "S:(SP;;;;;S-1-17-9)").SACL
		}},
	} {
		req := security.CheckRequest{Descriptor: parse(t, head+c.dacl), Token: aliceToken(t), Desired: c.desired, Mapping: mapping, ObjectTypes: tree(t), Trace: true}
		if c.change != nil {
			c.change(&req)
		}
		d := security.AccessCheck(req)
		require.Equal(t, c.status, d.Status, "%s: %v", c.name, d.Explain())
		require.Equal(t, c.granted, d.Granted, "%s: %v", c.name, d.Explain())
		for i, p := range d.Parts {
			want := yes
			if c.parts[i] == 0 {
				want = no
			}
			require.Equal(t, security.PartDecision{Granted: c.parts[i], Status: want}, p, "%s, part %d: %v", c.name, i, d.Explain())
		}
	}
	d := security.AccessCheck(security.CheckRequest{Descriptor: parse(t, head+"(OA;;0x3;"+setOne+a+"(OA;;0x3;"+typeA+a), Token: aliceToken(t), Desired: 1,
		Mapping: mapping, ObjectTypes: tree(t), Trace: true})
	require.Contains(t, d.Explain()[0], "grants 0x1 of "+setOne)
	require.Contains(t, d.Explain()[1], "is about another part of the object")
	d = security.AccessCheck(security.CheckRequest{Descriptor: parse(t, head+"(OA;;0x3;"+setOne+a), Token: aliceToken(t), Desired: 1, Mapping: mapping})
	require.Equal(t, no, d.Status, "without object types an entry about a part is about nothing that was asked")
	require.Nil(t, d.Parts)
}

func TestObjectTypesAreATree(t *testing.T) {
	for _, levels := range [][]int{{1}, {0, 0}, {0, 2}, {0, 1, 3}, {0, -1}, {0, 1, 2, 3, 4, 5}} {
		req := security.CheckRequest{Descriptor: parse(t, "O:SYG:SY"), Token: aliceToken(t), Desired: 1, Mapping: mapping}
		for i, l := range levels {
			req.ObjectTypes = append(req.ObjectTypes, security.ObjectType{Level: l, Type: security.GUID{byte(i)}})
		}
		d := security.AccessCheck(req)
		require.Equal(t, ntstatus.InvalidParameter, d.Status, levels)
		require.Contains(t, d.String(), "no tree")
		require.Nil(t, d.Parts)
	}
	twice := security.CheckRequest{Descriptor: parse(t, "O:SYG:SY"), Token: aliceToken(t), ObjectTypes: append(tree(t), tree(t)[2])}
	require.Equal(t, ntstatus.InvalidParameter, security.AccessCheck(twice).Status)
}

func TestWhatElseNarrowsAndWidens(t *testing.T) {
	const (
		success = ntstatus.Success
		denied  = ntstatus.AccessDenied
		all     = security.MaximumAllowed
		others  = "O:SYG:SY"
		her     = "O:" + alice + "G:SY"
		sacl    = security.AccessSystemSecurity
		pkg     = "S-1-15-2-7-7"
	)
	lowbox := func(r *security.CheckRequest) {
		r.Token.AppContainer = sid(t, pkg)
		r.Token.Capabilities = []security.Group{{SID: sid(t, "S-1-15-3-1"), Attributes: security.GroupEnabled}}
	}
	writeRestricted := func(r *security.CheckRequest) {
		restrictedTo(security.WriteRestricted())(r)
		r.Token.WriteRestricted = true
	}
	policy := func(rules ...security.PolicyRule) func(*security.CheckRequest) {
		return func(r *security.CheckRequest) {
			r.Policies = func(s security.SID) ([]security.PolicyRule, bool) { return rules, s == sid(t, "S-1-17-1") }
		}
	}
	rule := func(sddl string) security.PolicyRule { return security.PolicyRule{Descriptor: parse(t, sddl)} }
	red, err := security.ParseCondition(`(@Resource.colour == "red")`)
	require.NoError(t, err)
	backup := func(r *security.CheckRequest) { with(security.SeBackup)(r); r.Backup = true }
	restore := func(r *security.CheckRequest) { with(security.SeRestore)(r); r.Restore = true }
	for _, c := range []struct {
		name    string
		sddl    string
		desired security.AccessMask
		status  ntstatus.Status
		granted security.AccessMask
		because string
		change  func(*security.CheckRequest)
	}{
		{"backup reads", others + "D:", mapping.Read | sacl, success, mapping.Read | sacl, "SeBackupPrivilege", backup},
		{"backup reads up", others + "D:S:(ML;;NR;;;SI)", mapping.Read, success, mapping.Read, "SeBackupPrivilege", backup},
		{"backup does not write", others + "D:", 0x4, denied, 0, "no entry", backup},
		{"backup must be said", others + "D:", 0x1, denied, 0, "no entry", with(security.SeBackup)},
		{"backup must be held", others + "D:", 0x1, denied, 0, "no entry", func(r *security.CheckRequest) { r.Backup, r.Restore = true, true }},
		{"restore writes", others + "D:", mapping.Write | security.WriteOwner | security.Delete, success, mapping.Write | security.WriteOwner | security.Delete, "SeRestorePrivilege", restore},
		{"restore does not read", others + "D:", 0x1, denied, 0, "no entry", restore},
		{"granted before", others + "D:", 0x1, success, 0x1, "granted before", func(r *security.CheckRequest) { r.Previously = 0x3 }},

		{"write-restricted reads", others + "D:(A;;0x7;;;" + alice + ")", 0x3, success, 0x3, "entry 0", writeRestricted},
		{"write-restricted does not write", others + "D:(A;;0x7;;;" + alice + ")", 0x4, denied, 0, "(for the restricting SIDs)", writeRestricted},
		{"write-restricted writes where it may", others + "D:(A;;0x7;;;" + alice + ")(A;;0x4;;;WR)", 0x7, success, 0x7, "entry 1", writeRestricted},
		{"all of a write-restricted one", others + "D:(A;;0x7;;;" + alice + ")", all, success, 0x3, "entry 0", writeRestricted},
		{"a write-restricted owner reads the descriptor", her + "D:", security.ReadControl, success, security.ReadControl, "the owner", writeRestricted},
		{"a write-restricted owner does not write it", her + "D:", security.WriteDAC, denied, 0, "(for the restricting SIDs)", writeRestricted},
		{"owner rights of a write-restricted owner", her + "D:(A;;0x7;;;OW)", 0x4, denied, 0, "(for the restricting SIDs)", writeRestricted},

		{"a package needs an entry", others + "D:(A;;0x3;;;" + alice + ")", 0x1, denied, 0, "(for the package)", lowbox},
		{"a package with one", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;" + pkg + ")", all, success, 0x1, "entry 1", lowbox},
		{"a package by capability", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;S-1-15-3-1)", 0x1, success, 0x1, "entry 1", lowbox},
		{"a package like all", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;AC)", 0x1, success, 0x1, "entry 1", lowbox},
		{"a package that is less than all", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;AC)", 0x1, denied, 0, "(for the package)", func(r *security.CheckRequest) { lowbox(r); r.Token.LowPrivilege = true }},
		{"a package like all restricted ones", others + "D:(A;;0x3;;;" + alice + ")(A;;0x1;;;S-1-15-2-2)", 0x1, success, 0x1, "entry 1", func(r *security.CheckRequest) { lowbox(r); r.Token.LowPrivilege = true }},
		{"a package without its user", others + "D:(A;;0x1;;;" + pkg + ")", 0x1, denied, 0, "no entry", lowbox},
		{"a package is no owner", her + "D:", security.ReadControl, denied, 0, "(for the package)", lowbox},
		{"a package has no owner rights", her + "D:(A;;RC;;;OW)", security.ReadControl, denied, 0, "(for the package)", lowbox},
		{"a package keeps its privileges", others + "D:", security.WriteOwner, success, security.WriteOwner, "SeTakeOwnership", func(r *security.CheckRequest) {
			lowbox(r)
			with(security.SeTakeOwnership)(r)
		}},

		{"a condition that holds", others + "D:(XA;;0x1;;;WD;(Member_of {SID(" + staff + ")}))", 0x1, denied, 0, "no entry", nil},
		{"a condition that holds for her", others + "D:(XA;;0x1;;;" + alice + ";(Member_of {SID(" + staff + ")}))", 0x1, success, 0x1, "entry 0", nil},
		{"a condition that fails", others + "D:(XA;;0x1;;;" + alice + ";(Member_of {SID(BA)}))", 0x1, denied, 0, "no entry", nil},
		{"an unknown condition does not allow", others + "D:(XA;;0x1;;;" + alice + ";(@User.a))", 0x1, denied, 0, "no entry", nil},
		{"an unknown condition denies", others + "D:(XD;;0x1;;;" + alice + ";(@User.a))(A;;0x1;;;" + alice + ")", 0x1, denied, 0, "entry 0", nil},
		{"a false condition does not deny", others + "D:(XD;;0x1;;;" + alice + ";(Member_of {SID(BA)}))(A;;0x1;;;" + alice + ")", 0x1, success, 0x1, "entry 1", nil},
		{"a condition on the object", others + "D:(XA;;0x1;;;" + alice + `;(@Resource.colour == "red"))S:(RA;;;;;WD;("colour",TS,0x0,"red"))`, 0x1, success, 0x1, "entry 0", nil},
		{"an attribute for children", others + "D:(XA;;0x1;;;" + alice + `;(@Resource.colour == "red"))S:(RA;OIIO;;;;WD;("colour",TS,0x0,"red"))`, 0x1, denied, 0, "no entry", nil},

		{"trusted less", others + "S:(TL;;0x1;;;S-1-19-512-4096)", 0x2, denied, 0, "not as trusted", nil},
		{"trusted less, and it is enough", others + "S:(TL;;0x1;;;S-1-19-512-4096)", 0x1, success, 0x1, "no DACL", nil},
		{"trusted enough", others + "S:(TL;;0x1;;;S-1-19-512-4096)", 0x2, success, 0x2, "no DACL", func(r *security.CheckRequest) { r.Token.TrustLevel = security.TrustLabel(1024, 8192) }},
		{"trusted at another type", others + "S:(TL;;0x1;;;S-1-19-1024-4096)", 0x2, denied, 0, "not as trusted", func(r *security.CheckRequest) { r.Token.TrustLevel = security.TrustLabel(512, 8192) }},
		{"a filter", others + "D:(A;;0x3;;;" + alice + ")S:(FL;;0x1;;;" + alice + ";(@User.a))", all, success, 0x1, "entry 0", nil},
		{"a filter denies", others + "S:(FL;;0x1;;;" + alice + ";(@User.a))", 0x2, denied, 0, "its condition is not true", nil},
		{"a filter whose condition is true", others + "S:(FL;;0x1;;;" + alice + ";(Not_Exists a))", 0x2, success, 0x2, "no DACL", nil},
		{"a filter for others", others + "S:(FL;;0x1;;;BA;(@User.a))", 0x2, success, 0x2, "no DACL", nil},

		{"a policy that nobody knows", others + "S:(SP;;;;;S-1-17-9)", 0x1, denied, 0, "the policy of entry 0", policy()},
		{"a policy that nobody knows leaves the owner", her + "S:(SP;;;;;S-1-17-9)", 0x1, success, 0x1, "no DACL", nil},
		{"a policy without rules", others + "S:(SP;;;;;S-1-17-1)", 0x1, success, 0x1, "no DACL", policy()},
		{"a policy that allows", others + "S:(SP;;;;;S-1-17-1)", 0x1, success, 0x1, "no DACL", policy(rule("D:(A;;GR;;;" + alice + ")"))},
		{"a policy that narrows", others + "S:(SP;;;;;S-1-17-1)", all, success, 0x1, "the policy of entry 0", policy(rule("D:(D;;0x2;;;" + alice + ")(A;;0x3;;;" + alice + ")"))},
		{"a policy with parts and conditions", others + "S:(SP;;;;;S-1-17-1)", all, success, 0x2, "the policy of entry 0",
			policy(rule("D:(OA;;0x1;" + setOne + ";;" + alice + ")(XA;;0x1;;;" + alice + ";(a))(A;IO;0x1;;;" + alice + ")(A;;0x2;;;" + alice + ")"))},
		{"a policy of another object", others + "S:(SP;;;;;S-1-17-1)(RA;;;;;WD;(\"colour\",TS,0x0,\"blue\"))", 0x1, success, 0x1, "no DACL", policy(security.PolicyRule{AppliesTo: red, Descriptor: parse(t, "D:")})},
		{"a policy of the object", others + "S:(SP;;;;;S-1-17-1)(RA;;;;;WD;(\"colour\",TS,0x0,\"red\"))", 0x1, denied, 0, "the policy of entry 0", policy(security.PolicyRule{AppliesTo: red, Descriptor: parse(t, "D:")})},
		{"a policy without a list", others + "S:(SP;;;;;S-1-17-1)", 0x1, denied, 0, "the policy of entry 0", policy(security.PolicyRule{})},
		{"a policy leaves what a privilege gave", others + "D:S:(SP;;;;;S-1-17-1)", security.WriteOwner, success, security.WriteOwner, "SeTakeOwnership", func(r *security.CheckRequest) {
			with(security.SeTakeOwnership)(r)
			policy(security.PolicyRule{})(r)
		}},
		{"a policy that is not understood", others + "S:(SP;;;;;S-1-17-1)", 0x1, denied, 0, "the policy of entry 0",
			policy(security.PolicyRule{Descriptor: &security.Descriptor{DACL: security.NewACL(security.ACE{Type: 0x77})}})},
		{"all, and nothing is left", others + "S:(SP;;;;;S-1-17-1)", all, denied, 0, "no entry grants", policy(rule("D:"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := security.CheckRequest{Descriptor: parse(t, c.sddl), Token: aliceToken(t), Desired: c.desired, Mapping: mapping}
			if c.change != nil {
				c.change(&req)
			}
			got := security.AccessCheck(req)
			require.Equal(t, c.status, got.Status, "%v", got)
			require.Equal(t, c.granted, got.Granted, "%v", got)
			req.Trace = true
			traced := security.AccessCheck(req)
			require.Equal(t, got.String(), traced.String(), "a trace changes nothing")
			require.Contains(t, lines(traced), c.because)
		})
	}
}

func lines(d security.Decision) (all string) {
	for _, l := range d.Explain() {
		all += l + "\n"
	}
	return all
}

func TestFailingConditionsAreExplained(t *testing.T) {
	req := security.CheckRequest{Descriptor: parse(t, "O:SYG:SYD:(XA;;0x1;;;"+alice+";(@User.a))"), Token: aliceToken(t), Desired: 1, Mapping: mapping, Trace: true}
	require.Contains(t, lines(security.AccessCheck(req)), "does not count: its condition does not hold")
}

func TestPrivilegesThatWereUsed(t *testing.T) {
	req := security.CheckRequest{Descriptor: parse(t, "O:SYG:SYD:(A;;0x1;;;"+alice+")"), Token: aliceToken(t), Desired: 0x1, Mapping: mapping}
	with(security.SeSecurity, security.SeTakeOwnership)(&req)
	require.Zero(t, security.AccessCheck(req).Used)
	req.Desired |= security.WriteOwner
	used := security.AccessCheck(req).Used
	require.True(t, used.Has(security.SeTakeOwnership))
	require.False(t, used.Has(security.SeSecurity))
}

func TestAudit(t *testing.T) {
	for _, c := range []struct {
		sacl    string
		desired security.AccessMask
		entry   int // -1: not told
	}{
		{"", 0x1, -1},
		{"(AU;SA;0x1;;;" + alice + ")", 0x1, 0},
		{"(AU;SA;GR;;;" + staff + ")", 0x1, 0},
		{"(AU;SA;0x1;;;" + wheel + ")", 0x1, 0}, // deny-only is there all the same
		{"(AU;SA;0x1;;;" + nobody + ")", 0x1, -1},
		{"(AU;FA;0x1;;;" + alice + ")", 0x1, -1},
		{"(AU;FA;0x2;;;" + alice + ")", 0x2, 0},
		{"(AU;SA;0x2;;;" + alice + ")", 0x2, -1},
		{"(AU;SA;0x2;;;" + alice + ")", 0x1, -1}, // another right
		{"(AU;IOSA;0x1;;;" + alice + ")", 0x1, -1},
		{"(AL;SA;0x1;;;" + alice + ")", 0x1, -1},
		{"(AU;FA;0x1;;;" + alice + ")(AU;SAFA;0x1;;;" + alice + ")", 0x1, 1},
		{"(AU;SA;0x1;;;" + alice + ")", security.MaximumAllowed, 0},
		{"(AU;FA;0x8;;;" + alice + ")", security.MaximumAllowed | 0x2, 0},
		{"(XU;SA;0x1;;;" + alice + ";(@User.a))", 0x1, 0}, // unknown is told
		{"(XU;SA;0x1;;;" + alice + ";(Exists a))", 0x1, -1},
		{"(OU;SA;0x1;" + setOne + ";;" + alice + ")", 0x1, -1},
		{"(OU;SA;0x1;;;" + alice + ")", 0x1, 0},
	} {
		req := security.CheckRequest{Descriptor: parse(t, "O:SYG:SYD:(A;;0x1;;;"+alice+")"), Token: aliceToken(t), Desired: c.desired, Mapping: mapping}
		if c.sacl != "" {
			req.Descriptor.SACL = parse(t, "S:"+c.sacl).SACL
		}
		d := security.AccessCheck(req)
		require.Equal(t, c.entry >= 0, d.Audit, "%s: %v", c.sacl, d)
		if d.Audit {
			require.Equal(t, c.entry, d.AuditEntry)
		}
	}
}

func TestClaimsAreClonedWithTheirToken(t *testing.T) {
	token := aliceToken(t)
	token.UserClaims = []security.Claim{security.IntClaim("a", 1)}
	c := token.Clone()
	c.UserClaims[0].Values[0].Number = 2
	require.Equal(t, uint64(1), token.UserClaims[0].Values[0].Number)
}
