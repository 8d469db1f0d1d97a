package security_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/ntstatus"
	"sallyport/security"
)

const (
	typeA = "bf967aba-0de6-11d0-a285-00aa003049e2"
	typeB = "bf967a86-0de6-11d0-a285-00aa003049e2"
)

func creator(t require.TestingT) *security.Token {
	token := aliceToken(t)
	token.PrimaryGroup = security.Users()
	token.DefaultDACL = parse(t, "D:(A;;GA;;;CO)(A;;GR;;;SY)").DACL
	return token
}

func TestNewObjectsInherit(t *testing.T) {
	const group = "G:BU"
	for _, c := range []struct {
		name             string
		parent, explicit string // "-" is none
		change           func(*security.NewObject)
		want             string // without owner and group
	}{
		{"default of the token", "-", "-", nil, "D:(A;;CCDCLCSWRPSDRCWDWO;;;" + alice + ")(A;;CCDCRC;;;SY)"},
		{"no default either", "-", "-", func(n *security.NewObject) { n.Token.DefaultDACL = nil }, ""},
		{"said", "D:(A;CI;GA;;;BU)", "D:(A;;GR;;;BA)", nil, "D:(A;;CCDCRC;;;BA)"},
		{"NULL said", "D:(A;OI;GA;;;BU)", "D:NO_ACCESS_CONTROL", nil, "D:NO_ACCESS_CONTROL"},
		{"inherited", "D:(A;OI;GR;;;BU)(A;CI;GR;;;BA)", "-", nil, "D:(A;;CCDCRC;;;BU)"},
		{"a container inherits both", "D:(A;OI;GR;;;BU)(A;CI;RC;;;BA)", "-", container, "D:(A;OIIO;GR;;;BU)(A;CI;RC;;;BA)"},
		{"generic rights stay generic for children", "D:(A;CI;GR;;;BU)", "-", container, "D:(A;;CCDCRC;;;BU)(A;CIIO;GR;;;BU)"},
		{"creators are replaced", "D:(A;CIOI;RC;;;CO)(A;CIOI;RC;;;CG)", "-", container,
			"D:(A;;RC;;;" + alice + ")(A;OICIIO;RC;;;CO)(A;;RC;;;BU)(A;OICIIO;RC;;;CG)"},
		{"no further", "D:(A;CINP;RC;;;BU)", "-", container, "D:(A;;RC;;;BU)"},
		{"for another type of child", "D:(OA;OI;RC;;" + typeB + ";BU)(OA;OI;RC;" + typeB + ";" + typeA + ";BU)", "-", typed,
			"D:(OA;;RC;" + typeB + ";" + typeA + ";BU)"},
		{"for another type below", "D:(OA;CI;RC;;" + typeB + ";BU)", "-", func(n *security.NewObject) { container(n); typed(n) }, "D:(OA;CIIO;RC;;" + typeB + ";BU)"},
		{"auto: marked", "D:(A;OI;GR;;;BU)", "-", auto, "D:AI(A;ID;CCDCRC;;;BU)"},
		{"auto: added to what is said", "D:(A;OI;RC;;;BU)", "D:(A;;WD;;;BA)(A;ID;WO;;;BA)", auto, "D:AI(A;;WD;;;BA)(A;ID;RC;;;BU)"},
		{"auto: protected", "D:(A;OI;RC;;;BU)", "D:P(A;;WD;;;BA)", auto, "D:PAI(A;;WD;;;BA)"},
		{"auto: said by default", "D:(A;OI;RC;;;BU)", "D:(A;;WD;;;BA)", func(n *security.NewObject) { auto(n); n.Explicit.Control |= security.DACLDefaulted }, "D:AI(A;ID;RC;;;BU)"},
		{"labels have no rights to map", "S:(ML;OI;NW;;;ME)", "D:", nil, "D:S:(ML;;NW;;;ME)"},
		{"audits are inherited", "S:(AU;OISA;GR;;;WD)", "D:", nil, "D:S:(AU;SA;CCDCRC;;;WD)"},
		{"for children only as said", "-", "D:(A;OIIO;GR;;;BU)", container, "D:(A;OIIO;GR;;;BU)"},
	} {
		n := security.NewObject{Token: creator(t), Mapping: mapping}
		if c.parent != "-" {
			n.Parent = parse(t, c.parent)
		}
		if c.explicit != "-" {
			n.Explicit = parse(t, c.explicit)
		}
		if c.change != nil {
			c.change(&n)
		}
		got, err := security.NewDescriptor(n)
		require.NoError(t, err, c.name)
		require.Equal(t, "O:"+alice+group+c.want, got.String(), c.name)
	}
}

func container(n *security.NewObject) { n.Container = true }
func auto(n *security.NewObject)      { n.AutoInherit = true }
func typed(n *security.NewObject)     { n.Type, _ = security.ParseGUID(typeA) }

func TestOwnersOfNewObjects(t *testing.T) {
	parent := parse(t, "O:BAG:BO")
	for _, c := range []struct {
		name   string
		change func(*security.NewObject)
		status ntstatus.Status
		want   string
	}{
		{"the token's", func(n *security.NewObject) { n.Token.Owner = sid(t, staff) }, 0, "O:" + staff + "G:BU"},
		{"said", func(n *security.NewObject) { n.Explicit = parse(t, "O:"+alice+"G:WD") }, 0, "O:" + alice + "G:WD"},
		{"another's", func(n *security.NewObject) { n.Explicit = parse(t, "O:SY") }, ntstatus.InvalidOwner, ""},
		{"another's with a privilege", func(n *security.NewObject) {
			n.Explicit = parse(t, "O:SY")
			n.Token.Privileges = []security.TokenPrivilege{{Privilege: security.SeRestore, Attributes: security.PrivilegeEnabled}}
		}, 0, "O:SYG:BU"},
		{"another's, trusted", func(n *security.NewObject) { n.Explicit, n.Trusted = parse(t, "O:SY"), true }, 0, "O:SYG:BU"},
		{"the container's", func(n *security.NewObject) { n.Parent, n.OwnerFromParent, n.GroupFromParent = parent, true, true }, 0, "O:BAG:BO"},
		{"of no container", func(n *security.NewObject) { n.OwnerFromParent, n.GroupFromParent = true, true }, ntstatus.InvalidOwner, ""},
		{"the group of no container", func(n *security.NewObject) { n.GroupFromParent = true }, ntstatus.InvalidPrimaryGroup, ""},
		{"no group", func(n *security.NewObject) { n.Token.PrimaryGroup = security.SID{} }, ntstatus.InvalidPrimaryGroup, ""},
		{"nobody", func(n *security.NewObject) { n.Token = nil }, ntstatus.NoToken, ""},
		{"audits", func(n *security.NewObject) { n.Explicit = parse(t, "S:(AU;SA;GR;;;WD)") }, ntstatus.PrivilegeNotHeld, ""},
		{"audits with a privilege", func(n *security.NewObject) {
			n.Explicit = parse(t, "S:(AU;SA;RC;;;WD)")
			n.Token.Privileges = []security.TokenPrivilege{{Privilege: security.SeSecurity, Attributes: security.PrivilegeEnabled}}
		}, 0, "O:" + alice + "G:BUS:(AU;SA;RC;;;WD)"},
		{"a label above", func(n *security.NewObject) { n.Explicit = parse(t, "S:(ML;;NW;;;HI)") }, ntstatus.PrivilegeNotHeld, ""},
		{"a label below", func(n *security.NewObject) { n.Explicit = parse(t, "S:(ML;;NW;;;LW)") }, 0, "O:" + alice + "G:BUS:(ML;;NW;;;LW)"},
		{"too much", func(n *security.NewObject) {
			long := strings.Repeat("(A;CIOI;GR;;;CO)", 2000)
			n.Parent, n.Container = parse(t, "D:"+long), true
		}, ntstatus.InvalidACL, ""},
	} {
		n := security.NewObject{Token: creator(t), Mapping: mapping}
		n.Token.DefaultDACL = nil
		c.change(&n)
		got, err := security.NewDescriptor(n)
		if c.status != 0 {
			require.ErrorIs(t, err, c.status, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got.String(), c.name)
	}
}

func TestReinheritance(t *testing.T) {
	n := security.NewObject{Mapping: mapping, Parent: parse(t, "D:(A;OI;RC;;;BU)(A;OI;WD;;;CO)")}
	for _, c := range []struct{ in, want string }{
		{"O:SYG:SYD:ARAI(A;;WO;;;BA)(A;ID;CC;;;WD)", "O:SYG:SYD:AI(A;;WO;;;BA)(A;ID;RC;;;BU)(A;ID;WD;;;SY)"},
		{"O:SYG:SYD:PAI(A;;WO;;;BA)(A;ID;CC;;;WD)", "O:SYG:SYD:PAI(A;;WO;;;BA)(A;ID;CC;;;WD)"},
		{"O:SYG:SYD:NO_ACCESS_CONTROL", "O:SYG:SYD:NO_ACCESS_CONTROL"},
		{"O:SYG:SY", "O:SYG:SY"},
		{"O:SYG:SYD:S:(AU;IDSA;CC;;;WD)", "O:SYG:SYD:AI(A;ID;RC;;;BU)(A;ID;WD;;;SY)S:AI"},
	} {
		n.Explicit = parse(t, c.in)
		got := security.Reinherit(n)
		require.Equal(t, c.want, got.String())
		require.Equal(t, c.in, n.Explicit.String(), "the original stays")
		n.Explicit = got
		require.Equal(t, c.want, security.Reinherit(n).String(), "twice is once")
	}
	n.Explicit, n.Parent = parse(t, "O:SYG:SYD:(A;ID;CC;;;WD)"), nil
	require.Equal(t, "O:SYG:SYD:AI", security.Reinherit(n).String(), "no container, nothing inherited")
	require.Nil(t, security.Reinherit(security.NewObject{Parent: n.Explicit}))
}

func TestReinheritanceIsIdempotentAndFindsWhatANewObjectGets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := security.NewObject{Token: creator(t), Mapping: mapping, AutoInherit: true, Trusted: true, Container: rapid.Bool().Draw(t, "container"),
			Parent: anyDescriptor().Draw(t, "parent"), Explicit: anyDescriptor().Draw(t, "explicit")}
		made, err := security.NewDescriptor(n)
		require.NoError(t, err)
		n.Explicit = made
		again := security.Reinherit(n)
		if n.Explicit.DACL != nil && n.Parent.DACL != nil {
			require.Equal(t, made.DACL, again.DACL)
		}
		n.Explicit = again
		require.True(t, again.Equal(security.Reinherit(n)))
	})
}

func TestControlBits(t *testing.T) {
	d := parse(t, "D:AI(A;;GA;;;SY)")
	require.NoError(t, d.SetControl(security.DACLProtected|security.DACLAutoInherited, security.DACLProtected))
	require.Equal(t, "D:P(A;;GA;;;SY)", d.String())
	for _, bit := range []security.Control{0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x4000, 0x8000} {
		require.ErrorIs(t, d.SetControl(bit, 0), ntstatus.InvalidParameter)
		require.ErrorIs(t, d.SetControl(0, bit), ntstatus.InvalidParameter)
	}
	require.NoError(t, d.SetControl(0xc0, 0xc0))
}
