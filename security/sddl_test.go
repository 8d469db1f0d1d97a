package security_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/ntstatus"
	"sallyport/security"
)

func TestSDDLIsReadAndWritten(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"O:SYG:BA", ""},
		{"G:BAO:SY", "O:SYG:BA"},
		{"D:", ""},
		{"D:NO_ACCESS_CONTROL", ""},
		{"D:PNO_ACCESS_CONTROL", ""},
		{"S:NO_ACCESS_CONTROL", ""},
		{"S:PD:AI", "D:AIS:P"},
		{"D:AIARP", "D:PARAI"},
		{"D:(A;;GA;;;SY)", ""},
		{"D:(a;oi;ga;;;sy)", "D:(A;OI;GA;;;SY)"},
		{" O: SY D: P (A; CIOI; GR ; ; ; BA ) (D;;GA;;;WD) ", "O:SYD:P(A;OICI;GR;;;BA)(D;;GA;;;WD)"},
		{"D:(A;FASAIDIONPCIOICR;GA;;;SY)", "D:(A;OICINPIOIDCRSAFA;GA;;;SY)"},
		{"S:(AU;SAFA;0x1f01ff;;;WD)", "S:(AU;SAFA;FA;;;WD)"},
		{"S:(AL;;CC;;;WD)", ""},
		{"S:(ML;;NXNRNW;;;S-1-16-12288)", "S:(ML;;NWNRNX;;;HI)"},
		{"S:(ML;;0x9;;;LW)", ""},
		{"D:(A;;0;;;SY)", "D:(A;;;;;SY)"},
		{"D:(A;;017;;;SY)", "D:(A;;CCDCLCSW;;;SY)"},
		{"D:(A;;17;;;SY)", "D:(A;;CCRP;;;SY)"},
		{"D:(A;;0XFfFfFfFf;;;SY)", "D:(A;;0xffffffff;;;SY)"},
		{"D:(A;;FRFW;;;SY)", "D:(A;;0x12019f;;;SY)"},
		{"D:(A;;FAGX;;;SY)", "D:(A;;0x201f01ff;;;SY)"},
		{"D:(A;;FR;;;SY)(A;;FW;;;SY)(A;;FX;;;SY)", ""},
		{"D:(A;;KA;;;SY)(A;;KR;;;SY)(A;;KW;;;SY)(A;;KX;;;SY)", "D:(A;;KA;;;SY)(A;;KR;;;SY)(A;;KW;;;SY)(A;;KR;;;SY)"},
		{"D:(A;;GRGWGXGAWOWDRCSDCRLODTWPRPSWLCDCCC;;;SY)", "D:(A;;CCDCLCSWRPWPDTLOCRSDRCWDWOGAGXGWGR;;;SY)"},
	} {
		sd, err := security.ParseSDDL(c.in)
		require.NoError(t, err, c.in)
		want := c.want
		if want == "" {
			want = c.in
		}
		require.Equal(t, want, sd.String(), c.in)
	}
}

func TestSDDLTellsTheThreeEmptyDACLsApart(t *testing.T) {
	absent, null, empty := parse(t, "O:SY"), parse(t, "O:SYD:NO_ACCESS_CONTROL"), parse(t, "O:SYD:")
	require.False(t, absent.HasDACL())
	require.True(t, null.HasDACL())
	require.Nil(t, null.DACL)
	require.True(t, empty.HasDACL())
	require.NotNil(t, empty.DACL)
	require.False(t, absent.Equal(null))
	require.False(t, null.Equal(empty))
	require.True(t, (&security.Descriptor{Owner: security.LocalSystem(), DACL: security.NewACL()}).Equal(empty), "a list is present without its bit")
}

func TestBadSDDLSaysWhere(t *testing.T) {
	for _, c := range []struct {
		in     string
		status ntstatus.Status
		pos    int
	}{
		{"O", ntstatus.InvalidSecurityDescr, 1},
		{"O:", ntstatus.InvalidSID, 2},
		{"o:SY", ntstatus.InvalidSecurityDescr, 0},
		{"X:SY", ntstatus.InvalidSecurityDescr, 0},
		{"O:SYO:SY", ntstatus.InvalidSecurityDescr, 4},
		{"D:D:", ntstatus.InvalidSecurityDescr, 2},
		{"O:SYx", ntstatus.InvalidSecurityDescr, 4},
		{"O:DA", ntstatus.InvalidSID, 2},
		{"D:Q", ntstatus.InvalidACL, 2},
		{"D:A(A;;GA;;;SY)", ntstatus.InvalidACL, 2},
		{"D:NO_ACCESS_CONTROL(A;;GA;;;SY)", ntstatus.InvalidSecurityDescr, 19},
		{"D:(", ntstatus.InvalidACL, 3},
		{"D:()", ntstatus.InvalidACL, 3},
		{"D:(B;;GA;;;SY)", ntstatus.InvalidACL, 3},
		{"D:(AU;;GA;;;SY)", ntstatus.InvalidACL, 3},
		{"S:(A;;GA;;;SY)", ntstatus.InvalidACL, 3},
		{"S:(OA;;GA;;;SY)", ntstatus.InvalidACL, 3},
		{"D:(XU;;GA;;;SY;(a))", ntstatus.InvalidACL, 3},
		{"D:(A GA)", ntstatus.InvalidACL, 5},
		{"D:(A;O;GA;;;SY)", ntstatus.InvalidACL, 5},
		{"D:(A;QQ;GA;;;SY)", ntstatus.InvalidACL, 5},
		{"D:(A;;G;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;GAG;;;SY)", ntstatus.InvalidACL, 8},
		{"D:(A;;NW;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;GA GR;;;SY)", ntstatus.InvalidACL, 9},
		{"D:(A;;0x100000000;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;-1;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;08;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;0x;;;SY)", ntstatus.InvalidACL, 6},
		{"D:(A;;GA;f30e3bbf-9ff0-11d1-b603-0000f80367c1;;SY)", ntstatus.InvalidACL, 9},
		{"D:(A;;GA;;x;SY)", ntstatus.InvalidACL, 10},
		{"D:(A;;GA;;;)", ntstatus.InvalidSID, 11},
		{"D:(A;;GA;;;SY", ntstatus.InvalidACL, 13},
		{"D:(A;;GA;;;SY;)", ntstatus.InvalidACL, 13},
		{"D:(A;;GA;;;SY))", ntstatus.InvalidSecurityDescr, 14},
		{"S:(ML;;NW;;;SY)", ntstatus.InvalidACL, 12},
		{"D:(A;;GA;;;SY)\x00", ntstatus.InvalidSecurityDescr, 14},
	} {
		_, err := security.ParseSDDL(c.in)
		require.ErrorIs(t, err, c.status, "%s: %v", c.in, err)
		var syntax *security.SyntaxError
		require.ErrorAs(t, err, &syntax)
		require.Equal(t, c.pos, syntax.Pos, "%s: %v", c.in, err)
	}
}

func TestSDDLHasLimits(t *testing.T) {
	const entry = "(A;;GA;;;SY)" // 20 bytes in the binary form
	full := (1<<16 - 1 - 8) / 20
	_, err := security.ParseSDDL("D:" + strings.Repeat(entry, full))
	require.NoError(t, err)
	_, err = security.ParseSDDL("D:" + strings.Repeat(entry, full+1))
	require.ErrorIs(t, err, ntstatus.InvalidACL)
	_, err = security.ParseSDDL(strings.Repeat(" ", 1<<20))
	require.ErrorIs(t, err, ntstatus.InvalidSecurityDescr)
}

func TestEveryPrefixOfADescriptorIsReadOrRefused(t *testing.T) {
	const text = "O:S-1-5-21-1-2-3-500G:BAD:PAI(A;OICI;GA;;;SY)(D;IO;0x1f;;;S-1-22-1-0)S:AR(AU;SAFA;FA;;;WD)(ML;;NW;;;HI)"
	for i := range len(text) {
		if sd, err := security.ParseSDDL(text[:i]); err == nil {
			again, err := security.ParseSDDL(sd.String())
			require.NoError(t, err)
			require.True(t, sd.Equal(again), text[:i])
		}
	}
}

func TestDescriptorTravelsAsText(t *testing.T) {
	in := parse(t, "O:SYG:BAD:P(A;;GA;;;SY)")
	data, err := json.Marshal(in)
	require.NoError(t, err)
	require.Equal(t, `"O:SYG:BAD:P(A;;GA;;;SY)"`, string(data))
	var out security.Descriptor
	require.NoError(t, json.Unmarshal(data, &out))
	require.True(t, in.Equal(&out))
	require.Error(t, json.Unmarshal([]byte(`"D:("`), &out))
	require.True(t, in.Equal(&out), "a failure leaves the value alone")
}

func TestUnknownEntryIsNotWrittenAsAnother(t *testing.T) {
	sd := &security.Descriptor{DACL: security.NewACL(security.ACE{Type: 0x77, SID: security.Everyone()})}
	require.Equal(t, "D:(0x77;;;;;WD)", sd.String())
	_, err := security.ParseSDDL(sd.String())
	require.Error(t, err)
}

func TestClonesShareNothing(t *testing.T) {
	sd := parse(t, "O:SYG:BAD:(A;;GA;;;SY)S:(AU;SA;GA;;;WD)")
	c := sd.Clone()
	require.True(t, sd.Equal(c))
	c.DACL.ACEs[0].Mask = 0
	c.SACL.ACEs[0].Mask = 0
	require.Equal(t, "O:SYG:BAD:(A;;GA;;;SY)S:(AU;SA;GA;;;WD)", sd.String())
	require.False(t, sd.Equal(c))
	var none *security.Descriptor
	require.Nil(t, none.Clone())
	require.True(t, none.Equal(nil))
	require.False(t, none.Equal(sd))
	require.Empty(t, none.String())
}

func TestSDDLRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyDescriptor().Draw(t, "descriptor")
		got, err := security.ParseSDDL(want.String())
		require.NoError(t, err, want.String())
		require.True(t, want.Equal(got), "%s\n%s", want, got)
		require.Equal(t, want.String(), got.String())
	})
}

func FuzzParseSDDL(f *testing.F) {
	for _, s := range []string{
		"O:SYG:BAD:PAI(A;OICI;GA;;;SY)(D;IO;0x1f;;;S-1-22-1-0)S:AR(AU;SAFA;FA;;;WD)(ML;;NW;;;HI)",
		"D:NO_ACCESS_CONTROL", "S:D:P", " O: SY D: P (A; CIOI; GR ; ; ; BA )", "D:(XA;;;;;WD;(a))", "D:(A;;017;;;DA)",
	} {
		f.Add(s)
	}
	domain := security.Builtin()
	f.Fuzz(func(t *testing.T, s string) {
		sd, err := security.ParseSDDLIn(s, domain)
		if err != nil {
			var syntax *security.SyntaxError
			if !errors.As(err, &syntax) || syntax.Pos < 0 || syntax.Pos > len(s) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		text := sd.Format(domain)
		again, err := security.ParseSDDLIn(text, domain)
		if err != nil || !again.Equal(sd) || again.Format(domain) != text {
			t.Fatalf("%q is %s, which is read as %v, %v", s, text, again, err)
		}
	})
}

func parse(t require.TestingT, sddl string) *security.Descriptor {
	sd, err := security.ParseSDDL(sddl)
	require.NoError(t, err)
	return sd
}

func anyDescriptor() *rapid.Generator[*security.Descriptor] {
	named := rapid.Custom(func(t *rapid.T) security.SID { // has a text form
		s := anySID().Draw(t, "sid")
		if s.Len() == 0 {
			return rapid.SampledFrom([]security.SID{security.Everyone(), security.Administrators(), security.UnixUser(0)}).Draw(t, "known")
		}
		return s
	})
	list := func(types ...security.ACEType) *rapid.Generator[*security.ACL] {
		return rapid.Custom(func(t *rapid.T) *security.ACL {
			acl := security.NewACL()
			for range rapid.IntRange(0, 6).Draw(t, "entries") {
				a := security.ACE{Type: rapid.SampledFrom(types).Draw(t, "type"), Flags: security.ACEFlags(rapid.Byte().Draw(t, "flags")),
					Mask: security.AccessMask(rapid.Uint32().Draw(t, "mask")), SID: named.Draw(t, "sid")}
				if a.Type == security.MandatoryLabel {
					a.SID = rapid.SampledFrom([]security.SID{security.IntegrityLow(), security.IntegrityHigh(), sid(t, "S-1-16-77")}).Draw(t, "label")
				}
				acl.ACEs = append(acl.ACEs, a)
			}
			return acl
		})
	}
	return rapid.Custom(func(t *rapid.T) *security.Descriptor {
		d := &security.Descriptor{}
		if rapid.Bool().Draw(t, "owner") {
			d.Owner = named.Draw(t, "owner")
		}
		if rapid.Bool().Draw(t, "group") {
			d.Group = named.Draw(t, "group")
		}
		if rapid.Bool().Draw(t, "has DACL") {
			d.Control |= security.DACLPresent | security.Control(rapid.Uint16().Draw(t, "control"))&
				(security.DACLProtected|security.DACLAutoInherited|security.DACLAutoInheritReq)
			if rapid.Bool().Draw(t, "not NULL") {
				d.DACL = list(security.AccessAllowed, security.AccessDenied).Draw(t, "DACL")
			}
		}
		if rapid.Bool().Draw(t, "has SACL") {
			d.Control |= security.SACLPresent | security.Control(rapid.Uint16().Draw(t, "control"))&
				(security.SACLProtected|security.SACLAutoInherited|security.SACLAutoInheritReq)
			d.SACL = list(security.SystemAudit, security.SystemAlarm, security.MandatoryLabel).Draw(t, "SACL")
		}
		return d
	})
}
