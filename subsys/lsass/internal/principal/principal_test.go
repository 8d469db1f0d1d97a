package principal_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/principal"
)

const (
	interactive = lsapb.LogonType_LOGON_TYPE_INTERACTIVE
	network     = lsapb.LogonType_LOGON_TYPE_NETWORK
	service     = lsapb.LogonType_LOGON_TYPE_SERVICE
)

func logon() principal.Logon {
	user, _ := security.ParseSID("S-1-5-21-1-2-3-1000")
	return principal.Logon{
		User: user, Primary: user.Domain().WithRID(513), Aliases: []security.SID{security.Users()}, Type: interactive, ID: 0x1_0000_0002,
		Origin: 7, Session: 3, UID: 501000, GID: 501001, Source: security.TokenSource{Name: "winlogon"}, Expires: 99,
	}
}

func sids(t *security.Token) []string {
	var out []string
	for _, g := range t.Groups {
		out = append(out, g.SID.String())
	}
	return out
}

func TestTokenOfAUserIsAssembledInOrder(t *testing.T) {
	token, err := principal.Token(logon())
	require.NoError(t, err)
	require.Equal(t, []string{
		"S-1-5-21-1-2-3-513", "S-1-1-0", "S-1-5-32-545", "S-1-5-4", "S-1-5-11", "S-1-5-5-1-2", "S-1-22-1-501000", "S-1-22-2-501001",
	}, sids(token))
	i := slices.IndexFunc(token.Groups, func(g security.Group) bool { return g.SID == security.LogonSID(0x1_0000_0002) })
	require.Equal(t, security.GroupDefault|security.GroupLogonID, token.Groups[i].Attributes)
	require.Equal(t, security.TokenPrimary, token.Type)
	require.Equal(t, security.IntegrityMedium(), token.Integrity)
	require.Equal(t, security.PolicyDefault, token.MandatoryPolicy)
	require.Equal(t, token.User.SID, token.Owner)
	require.Equal(t, "S-1-5-21-1-2-3-513", token.PrimaryGroup.String())
	require.Equal(t, []any{security.LUID(0x1_0000_0002), security.LUID(7), uint32(3), "winlogon", int64(99)},
		[]any{token.AuthenticationID, token.OriginID, token.SessionID, token.Source.Name, token.Expiration})
	require.Equal(t, []security.ACE{security.Allow(token.User.SID, security.GenericAll), security.Allow(security.LocalSystem(), security.GenericAll)}, token.DefaultDACL.ACEs)
	require.False(t, token.IsAdmin())
	for _, p := range token.Privileges {
		require.Equal(t, p.Privilege == security.SeChangeNotify, token.Has(p.Privilege), p.Privilege)
	}
}

func TestAdministratorsOwnAsAGroupAndRankHigher(t *testing.T) {
	l := logon()
	l.Aliases = []security.SID{security.Administrators(), security.Users()}
	token, err := principal.Token(l)
	require.NoError(t, err)
	require.True(t, token.IsAdmin())
	require.True(t, token.MayOwn(security.Administrators()))
	require.Equal(t, security.Administrators(), token.Owner)
	require.Equal(t, security.IntegrityHigh(), token.Integrity)
	require.Equal(t, security.Allow(security.Administrators(), security.GenericAll), token.DefaultDACL.ACEs[0])
	require.True(t, token.Has(security.SeImpersonate))
	for _, held := range []security.Privilege{security.SeDebug, security.SeBackup, security.SeTakeOwnership} {
		require.True(t, slices.ContainsFunc(token.Privileges, func(p security.TokenPrivilege) bool { return p.Privilege == held }), held)
		require.False(t, token.Has(held), "%s is held, and disabled until it is wanted", held)
	}
	require.False(t, slices.ContainsFunc(token.Privileges, func(p security.TokenPrivilege) bool { return p.Privilege == security.SeTcb }))
}

func TestTokensOfServices(t *testing.T) {
	virtual := security.ServiceSID("web")
	for _, c := range []struct {
		user      security.SID
		integrity security.SID
		admin     bool
		tcb       bool
	}{
		{security.LocalSystem(), security.IntegritySystem(), true, true},
		{security.LocalService(), security.IntegritySystem(), false, false},
		{security.NetworkService(), security.IntegritySystem(), false, false},
		{virtual, security.IntegrityHigh(), false, false},
	} {
		require.True(t, principal.IsService(c.user))
		token, err := principal.Token(principal.Logon{
			User: c.user, Primary: c.user, Type: service, ID: 5,
			LocalGroups: []security.Group{{SID: virtual, Attributes: security.GroupDefault | security.GroupOwner}},
		})
		require.NoError(t, err)
		require.Equal(t, c.integrity, token.Integrity, c.user)
		require.Equal(t, c.admin, token.IsAdmin(), c.user)
		require.Equal(t, c.tcb, token.Has(security.SeTcb), c.user)
		require.True(t, token.Has(security.SeImpersonate))
		require.True(t, token.HasSID(virtual))
		require.True(t, token.HasSID(security.Service()))
		require.False(t, slices.ContainsFunc(token.Groups, func(g security.Group) bool { return g.SID == c.user }), "the user is not among its groups")
		require.Equal(t, service, principal.TypeOf(token))
	}
	require.False(t, principal.IsService(security.ServiceSID("web").Domain()))
	require.False(t, principal.IsService(security.Administrators()))
}

func TestTypeDecidesGroupAndKindOfToken(t *testing.T) {
	for typ := range lsapb.LogonType(14) {
		l := logon()
		l.Type = typ
		token, err := principal.Token(l)
		switch typ {
		case 2, 3, 4, 5:
			require.NoError(t, err)
			require.Equal(t, typ, principal.TypeOf(token))
		case 7:
			require.NoError(t, err)
			require.Equal(t, interactive, principal.TypeOf(token))
		default:
			require.ErrorIs(t, err, ntstatus.InvalidParameter)
			continue
		}
		require.Equal(t, typ == network, token.Type == security.TokenImpersonation)
	}
	require.Zero(t, principal.TypeOf(&security.Token{}))
}

func TestWellKnownNamesGoBothWays(t *testing.T) {
	for _, c := range []struct{ domain, name, sid, full string }{
		{"", "everyone", "S-1-1-0", "Everyone"},
		{"", "System", "S-1-5-18", `NT AUTHORITY\SYSTEM`},
		{"nt authority", "system", "S-1-5-18", `NT AUTHORITY\SYSTEM`},
		{"", "LocalSystem", "S-1-5-18", `NT AUTHORITY\SYSTEM`},
		{"", "network service", "S-1-5-20", `NT AUTHORITY\NETWORK SERVICE`},
		{"NT Authority", "NetworkService", "S-1-5-20", `NT AUTHORITY\NETWORK SERVICE`},
		{"BUILTIN", "users", "S-1-5-32-545", `BUILTIN\Users`},
		{"", "Administrators", "S-1-5-32-544", `BUILTIN\Administrators`},
		{"", "BUILTIN", "S-1-5-32", "BUILTIN"},
		{"builtin", "", "S-1-5-32", "BUILTIN"},
		{"Unix User", "1000", "S-1-22-1-1000", `Unix User\1000`},
		{"Unix Group", "0", "S-1-22-2-0", `Unix Group\0`},
		{"Mandatory Label", "High Mandatory Level", "S-1-16-12288", `Mandatory Label\High Mandatory Level`},
	} {
		e, ok := principal.ByName(c.domain, c.name)
		require.True(t, ok, c.name)
		require.Equal(t, []string{c.sid, c.full}, []string{e.SID.String(), e.String()})
		back, ok := principal.BySID(e.SID)
		require.True(t, ok, c.sid)
		require.Equal(t, e, back)
	}
	e, ok := principal.ByName("NT SERVICE", "web")
	require.True(t, ok)
	require.Equal(t, security.ServiceSID("WEB"), e.SID)
	e, ok = principal.BySID(security.LogonSID(0x1_0000_0002))
	require.True(t, ok)
	require.Equal(t, `NT AUTHORITY\LogonSessionId_1_2`, e.String())
	for _, unknown := range [][2]string{
		{"", ""}, {"", "Local  Service"}, {"BUILTIN", "SYSTEM"}, {"NT AUTHORITY", "Users"}, {"NT SERVICE", ""}, {"NT SERVICE", `a\b`},
		{"Unix User", "-1"}, {"Unix User", "4294967296"}, {"", "web"}, {"ELSEWHERE", "Everyone"},
	} {
		_, ok := principal.ByName(unknown[0], unknown[1])
		require.False(t, ok, "%q", unknown)
	}
	_, ok = principal.BySID(logon().User)
	require.False(t, ok)
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"alice", `HOST\alice`, "NT SERVICE\\web", "Unix User\\7", "S-1-5-18", "a\x00b", "\xff", "İstanbul"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		domain, account := principal.Split(name)
		if e, ok := principal.ByName(domain, account); ok && e.SID.IsZero() {
			t.Fatalf("%q has no SID", name)
		}
		if principal.CheckName("HOST", name) != nil {
			return
		}
		if strings.ContainsAny(name, "\\/\x00@") || principal.Fold(principal.Fold(name)) != principal.Fold(name) || !principal.Equal(name, principal.Fold(name)) {
			t.Fatalf("%q is taken", name)
		}
	})
}
