package security_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/ntstatus"
	"sallyport/security"
)

func TestSIDTextIsReadAndWritten(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"S-1-1-0", "S-1-1-0"},
		{"s-1-5-18", "S-1-5-18"},
		{"S-01-05-018", "S-1-5-18"}, // a leading zero is not octal in a SID
		{"S-0x1-0x5-0x12", "S-1-5-18"},
		{"S-1-4294967295-7", "S-1-4294967295-7"},
		{"S-1-4294967296-7", "S-1-0x100000000-7"},
		{"S-1-0xfedcba987654-7", "S-1-0xFEDCBA987654-7"},
		{"S-1-5-21-1-2-3-4294967295", "S-1-5-21-1-2-3-4294967295"},
		{"S-1-1" + strings.Repeat("-9", 15), "S-1-1" + strings.Repeat("-9", 15)},
		{"BA", "S-1-5-32-544"},
		{"sy", "S-1-5-18"},
		{"Si", "S-1-16-16384"},
	} {
		sid, err := security.ParseSID(c.in)
		require.NoError(t, err, c.in)
		require.Equal(t, c.want, sid.String(), c.in)
	}
}

func TestBadSIDSaysWhere(t *testing.T) {
	for _, c := range []struct {
		in  string
		pos int
	}{
		{"", 0},
		{"S", 0},
		{"Q-1-5-18", 0},
		{"XX", 0},
		{"B", 0},
		{"BAD", 2},
		{"BA ", 2},
		{" BA", 0},
		{"DA", 0}, // relative, and there is no domain
		{"S-", 2},
		{"S-0-5-18", 3},
		{"S-2-5-18", 2},
		{"S-1", 3},
		{"S-1-", 4},
		{"S-1-5", 5}, // at least one sub-authority
		{"S-1-5-", 6},
		{"S-1-5-18-", 9},
		{"S-1-5--18", 6},
		{"S-1-5-+18", 6},
		{"S-1-281474976710656-1", 4},
		{"S-1-0x1000000000000-1", 4},
		{"S-1-5-4294967296", 6},
		{"S-1-5-0x", 6},
		{"S-1-5-18 ", 8},
		{"S-1-1" + strings.Repeat("-9", 16), 36},
		{"S-1-5-" + strings.Repeat("9", 1<<16), 6},
	} {
		_, err := security.ParseSID(c.in)
		require.ErrorIs(t, err, ntstatus.InvalidSID, c.in)
		var syntax *security.SyntaxError
		require.ErrorAs(t, err, &syntax)
		require.Equal(t, c.pos, syntax.Pos, "%s: %v", c.in, err)
		require.NotEmpty(t, syntax.Want)
	}
	_, err := security.ParseSID("S-1-5-x")
	require.EqualError(t, err, `security.ParseSID: the SID is not valid: at byte 6: expected a sub-authority of 32 bits, found "x"`)
	_, err = security.ParseSID("S-1-5-")
	require.ErrorContains(t, err, "found the end")
}

func TestRelativeAliasNeedsADomain(t *testing.T) {
	domain := sid(t, "S-1-5-21-1-2-3")
	admins, err := security.ParseSIDIn("da", domain)
	require.NoError(t, err)
	require.Equal(t, sid(t, "S-1-5-21-1-2-3-512"), admins)
	full := sid(t, "S-1-1"+strings.Repeat("-9", 15))
	_, err = security.ParseSIDIn("DA", full)
	require.ErrorIs(t, err, ntstatus.InvalidSID)
}

func TestSIDArithmetic(t *testing.T) {
	account := sid(t, "S-1-5-21-1-2-3-1001")
	require.Equal(t, uint32(1001), account.RID())
	require.Equal(t, "S-1-5-21-1-2-3", account.Domain().String())
	require.Equal(t, account, account.Domain().WithRID(1001))
	require.Equal(t, uint64(5), account.Authority())
	require.Equal(t, 5, account.Len())
	require.Equal(t, uint32(21), account.Sub(0))
	require.Panics(t, func() { account.Sub(5) })

	require.True(t, account.HasPrefix(account.Domain()))
	require.True(t, account.HasPrefix(account))
	require.False(t, account.Domain().HasPrefix(account))
	require.False(t, account.HasPrefix(sid(t, "S-1-5-22")))
	require.False(t, account.HasPrefix(security.SID{}))

	var none security.SID
	require.True(t, none.IsZero())
	require.Empty(t, none.String())
	require.Zero(t, none.RID())
	require.True(t, none.Domain().IsZero())
	require.True(t, none.WithRID(1).IsZero())
	bare, err := security.NewSID(5)
	require.NoError(t, err)
	require.False(t, bare.IsZero())
	require.True(t, bare.Domain().IsZero())
	require.True(t, account.HasPrefix(bare))
}

func TestNewSIDKeepsItsBounds(t *testing.T) {
	s, err := security.NewSID(1<<48-1, make([]uint32, 15)...)
	require.NoError(t, err)
	require.Equal(t, "S-1-0xFFFFFFFFFFFF"+strings.Repeat("-0", 15), s.String())
	require.True(t, s.WithRID(1).IsZero())
	_, err = security.NewSID(1<<48, 1)
	require.ErrorIs(t, err, ntstatus.InvalidSID)
	_, err = security.NewSID(1, make([]uint32, 16)...)
	require.ErrorIs(t, err, ntstatus.InvalidSID)
}

func TestSIDsAreOrdered(t *testing.T) {
	want := []security.SID{{}, sid(t, "S-1-1-0"), sid(t, "S-1-5-18"), sid(t, "S-1-5-32-544"), sid(t, "S-1-5-32-545"), sid(t, "S-1-22-1-0"),
		sid(t, "S-1-0x100000000-1")}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, security.SID.Compare)
	require.Equal(t, want, got)
}

func TestSIDTravelsAsText(t *testing.T) {
	type message struct{ User, Nobody security.SID }
	in := message{User: security.LocalSystem()}
	data, err := json.Marshal(in)
	require.NoError(t, err)
	require.JSONEq(t, `{"User":"S-1-5-18","Nobody":""}`, string(data))
	var out message
	require.NoError(t, json.Unmarshal(data, &out))
	require.Equal(t, in, out)
	require.Error(t, json.Unmarshal([]byte(`{"User":"root"}`), &out))
	require.Equal(t, in, out, "a failure leaves the value alone")
}

func TestWellKnownSIDs(t *testing.T) {
	for want, got := range map[string]security.SID{
		"S-1-0-0":       security.Nobody(),
		"S-1-1-0":       security.Everyone(),
		"S-1-2-0":       security.Local(),
		"S-1-2-1":       security.ConsoleLogon(),
		"S-1-3-0":       security.CreatorOwner(),
		"S-1-3-1":       security.CreatorGroup(),
		"S-1-3-4":       security.OwnerRights(),
		"S-1-5-2":       security.Network(),
		"S-1-5-3":       security.Batch(),
		"S-1-5-4":       security.Interactive(),
		"S-1-5-5-1-2":   security.LogonSID(1<<32 | 2),
		"S-1-5-6":       security.Service(),
		"S-1-5-7":       security.Anonymous(),
		"S-1-5-10":      security.PrincipalSelf(),
		"S-1-5-11":      security.AuthenticatedUsers(),
		"S-1-5-12":      security.RestrictedCode(),
		"S-1-5-18":      security.LocalSystem(),
		"S-1-5-19":      security.LocalService(),
		"S-1-5-20":      security.NetworkService(),
		"S-1-5-32":      security.Builtin(),
		"S-1-5-32-544":  security.Administrators(),
		"S-1-5-32-545":  security.Users(),
		"S-1-5-32-546":  security.Guests(),
		"S-1-5-32-551":  security.BackupOperators(),
		"S-1-5-33":      security.WriteRestricted(),
		"S-1-15-2-1":    security.AllAppPackages(),
		"S-1-16-0":      security.IntegrityUntrusted(),
		"S-1-16-4096":   security.IntegrityLow(),
		"S-1-16-8192":   security.IntegrityMedium(),
		"S-1-16-8448":   security.IntegrityMediumPlus(),
		"S-1-16-12288":  security.IntegrityHigh(),
		"S-1-16-16384":  security.IntegritySystem(),
		"S-1-22-1-1000": security.UnixUser(1000),
		"S-1-22-2-27":   security.UnixGroup(27),
		// Documented by Microsoft as the identity of the service TrustedInstaller.
		"S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464": security.ServiceSID("trustedinstaller"),
	} {
		require.Equal(t, want, got.String())
	}
}

func TestUnixIdentityOfASID(t *testing.T) {
	uid, ok := security.UnixUser(1000).UnixUID()
	require.True(t, ok)
	require.Equal(t, uint32(1000), uid)
	gid, ok := security.UnixGroup(0).UnixGID()
	require.True(t, ok)
	require.Zero(t, gid)
	for _, other := range []security.SID{{}, security.Everyone(), security.UnixGroup(5), sid(t, "S-1-22-1"), sid(t, "S-1-22-1-0-0"), sid(t, "S-1-23-1-0")} {
		_, ok := other.UnixUID()
		require.False(t, ok, other)
	}
	_, ok = security.UnixUser(5).UnixGID()
	require.False(t, ok)
}

func TestAliasesAreWrittenBack(t *testing.T) {
	domain := sid(t, "S-1-5-21-1-2-3")
	// MS-DTYP 2.5.1.1, sid-token.
	for _, name := range strings.Fields(`AA AC AN AO AP AS AU BA BG BO BU CA CD CG CN CO CY DA DC DD DG DU EA ED EK ER ES HA HI HO IS IU KA LA
		LG LS LU LW ME MP MS MU NO NS NU OW PA PO PS PU RA RC RD RE RM RO RS RU SA SI SO SS SU SY UD WD WR`) {
		sd, err := security.ParseSDDLIn("O:"+name, domain)
		require.NoError(t, err, name)
		require.Equal(t, "O:"+name, sd.Format(domain))
		again, err := security.ParseSDDL(sd.String())
		require.NoError(t, err, name)
		require.Equal(t, sd.Owner, again.Owner)
	}
}

func TestSIDRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anySID().Draw(t, "sid")
		if want.Len() == 0 {
			return // has no text form that Windows takes
		}
		got, err := security.ParseSID(want.String())
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Zero(t, want.Compare(got))
	})
}

func FuzzParseSID(f *testing.F) {
	for _, s := range []string{"S-1-5-32-544", "S-1-0x100000000-1", "BA", "da", "S-1-5-", "S-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1"} {
		f.Add(s)
	}
	domain := security.Builtin()
	f.Fuzz(func(t *testing.T, s string) {
		v, err := security.ParseSIDIn(s, domain)
		if err != nil {
			var syntax *security.SyntaxError
			if !errors.As(err, &syntax) || syntax.Pos < 0 || syntax.Pos > len(s) || !errors.Is(err, ntstatus.InvalidSID) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := security.ParseSID(v.String())
		if err != nil || again != v {
			t.Fatalf("%q is %v, which is read as %v, %v", s, v, again, err)
		}
	})
}

func sid(t require.TestingT, s string) security.SID {
	v, err := security.ParseSID(s)
	require.NoError(t, err)
	return v
}

func anySID() *rapid.Generator[security.SID] {
	return rapid.Custom(func(t *rapid.T) security.SID {
		s, err := security.NewSID(rapid.Uint64Range(0, 1<<48-1).Draw(t, "authority"), rapid.SliceOfN(rapid.Uint32(), 0, 15).Draw(t, "sub")...)
		require.NoError(t, err)
		return s
	})
}
