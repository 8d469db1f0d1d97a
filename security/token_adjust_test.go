package security_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
)

const (
	on      = security.PrivilegeEnabled
	removed = security.PrivilegeRemoved
)

func powerful(t require.TestingT) *security.Token {
	token := aliceToken(t)
	token.TokenID, token.ModifiedID, token.AuthenticationID = 1, 2, 3
	token.Privileges = []security.TokenPrivilege{{security.SeBackup, on}, {security.SeDebug, 0}, {security.SeChangeNotify, on}}
	token.Groups = append(token.Groups, security.Group{SID: security.Administrators(), Attributes: security.GroupDefault | security.GroupOwner},
		security.Group{SID: security.LogonSID(3), Attributes: security.GroupLogonID | security.GroupDefault},
		security.Group{SID: security.Interactive(), Attributes: security.GroupEnabled | security.GroupEnabledByDefault})
	token.Owner = security.Administrators()
	token.Integrity = security.IntegrityHigh()
	return token
}

func TestPrivilegesAreAdjusted(t *testing.T) {
	token := powerful(t)
	original := token.Clone()
	for _, c := range []struct {
		name     string
		changes  []security.TokenPrivilege
		status   ntstatus.Status
		previous []security.TokenPrivilege
		want     []security.TokenPrivilege
	}{
		{"nothing", nil, 0, nil, token.Privileges},
		{"as it is", []security.TokenPrivilege{{security.SeBackup, on}, {security.SeDebug, 0}}, 0, nil, token.Privileges},
		{"on and off", []security.TokenPrivilege{{security.SeDebug, on}, {security.SeBackup, 0}}, 0,
			[]security.TokenPrivilege{{security.SeDebug, 0}, {security.SeBackup, on}},
			[]security.TokenPrivilege{{security.SeBackup, 0}, {security.SeDebug, on}, {security.SeChangeNotify, on}}},
		{"not held", []security.TokenPrivilege{{security.SeTcb, on}, {security.SeDebug, on}}, ntstatus.NotAllAssigned,
			[]security.TokenPrivilege{{security.SeDebug, 0}}, []security.TokenPrivilege{{security.SeBackup, on}, {security.SeDebug, on}, {security.SeChangeNotify, on}}},
		{"none held", []security.TokenPrivilege{{security.SeTcb, on}}, ntstatus.NotAllAssigned, nil, token.Privileges},
		{"removed for good", []security.TokenPrivilege{{security.SeBackup, removed}, {security.SeBackup, on}}, ntstatus.NotAllAssigned,
			[]security.TokenPrivilege{{security.SeBackup, on}}, []security.TokenPrivilege{{security.SeDebug, 0}, {security.SeChangeNotify, on}}},
	} {
		got := token.AdjustPrivileges(c.changes, 99)
		require.Equal(t, c.status, got.Status, c.name)
		require.True(t, got.Status.IsSuccess())
		require.Equal(t, c.previous, got.Previous, c.name)
		require.Equal(t, c.want, got.Token.Privileges, c.name)
		changed := len(c.previous) > 0
		require.Equal(t, changed, got.Token.ModifiedID == 99, "%s: ModifiedId changes with the token, and only then", c.name)
		require.Equal(t, security.LUID(1), got.Token.TokenID)
		require.Equal(t, original, token, "%s: the original stays", c.name)
	}
	got := token.DisablePrivileges(99)
	require.Len(t, got.Previous, 2)
	require.False(t, got.Token.Has(security.SeBackup))
	require.Equal(t, token.Privileges, got.Token.AdjustPrivileges(got.Previous, 100).Token.Privileges, "undone")
}

func TestGroupsAreAdjusted(t *testing.T) {
	token := powerful(t)
	got, err := token.AdjustGroups([]security.Group{{SID: sid(t, idle), Attributes: security.GroupEnabled}, {SID: security.Interactive()}, {SID: sid(t, staff), Attributes: security.GroupEnabled}}, 99)
	require.NoError(t, err)
	require.Equal(t, ntstatus.Success, got.Status)
	require.True(t, got.Token.HasSID(sid(t, idle)))
	require.False(t, got.Token.HasSID(security.Interactive()))
	require.Len(t, got.Previous, 2)
	require.Equal(t, security.LUID(99), got.Token.ModifiedID)
	require.True(t, token.HasSID(security.Interactive()), "the original stays")
	reset := got.Token.ResetGroups(100)
	require.Equal(t, token.Groups, reset.Token.Groups)
	require.Equal(t, security.LUID(100), reset.Token.ModifiedID)

	for s, want := range map[security.SID]ntstatus.Status{sid(t, staff): ntstatus.CantDisableMandatory} {
		_, err := token.AdjustGroups([]security.Group{{SID: security.Interactive()}, {SID: s}}, 99)
		require.ErrorIs(t, err, want)
	}
	_, err = token.AdjustGroups([]security.Group{{SID: sid(t, wheel), Attributes: security.GroupEnabled}}, 99)
	require.ErrorIs(t, err, ntstatus.CantEnableDenyOnly)
	got, err = token.AdjustGroups([]security.Group{{SID: sid(t, nobody)}}, 99)
	require.NoError(t, err)
	require.Equal(t, ntstatus.NotAllAssigned, got.Status)
	require.Equal(t, security.LUID(2), got.Token.ModifiedID)
}

func TestTokenDefaultsAreSet(t *testing.T) {
	token := powerful(t)
	got, err := token.WithOwner(sid(t, alice), 99)
	require.NoError(t, err)
	require.Equal(t, sid(t, alice), got.DefaultOwner())
	require.Equal(t, security.LUID(99), got.ModifiedID)
	_, err = token.WithOwner(sid(t, staff), 99)
	require.ErrorIs(t, err, ntstatus.InvalidOwner)
	got, err = token.WithPrimaryGroup(sid(t, staff), 99)
	require.NoError(t, err)
	require.Equal(t, sid(t, staff), got.PrimaryGroup)
	for _, s := range []security.SID{{}, sid(t, nobody)} {
		_, err = token.WithPrimaryGroup(s, 99)
		require.ErrorIs(t, err, ntstatus.InvalidPrimaryGroup)
	}
	dacl := parse(t, "D:(A;;GA;;;SY)").DACL
	got = token.WithDefaultDACL(dacl, 99)
	require.Equal(t, dacl, got.DefaultDACL)
	require.NotSame(t, dacl, got.DefaultDACL)
	require.Nil(t, got.WithDefaultDACL(nil, 99).DefaultDACL)
	require.Equal(t, security.LogonSID(3), token.LogonSID())
	require.True(t, aliceToken(t).LogonSID().IsZero())
}

func TestTokensAreFiltered(t *testing.T) {
	token := powerful(t)
	original := token.Clone()
	filter := func(o security.FilterOptions) *security.Token {
		got, err := token.Filter(o)
		require.NoError(t, err)
		require.Equal(t, original, token, "the original stays")
		require.Zero(t, got.TokenID)
		require.Equal(t, token.AuthenticationID, got.AuthenticationID)
		return got
	}
	got := filter(security.FilterOptions{Disable: []security.SID{security.Administrators(), sid(t, alice), sid(t, nobody)}, Delete: []security.Privilege{security.SeBackup, security.SeTcb}})
	require.False(t, got.HasSID(security.Administrators()))
	require.False(t, got.HasSID(sid(t, alice)))
	require.Equal(t, security.GroupUseForDenyOnly, got.Groups[3].Attributes)
	require.Len(t, got.Privileges, 2)
	require.True(t, got.Owner.IsZero(), "what is for denying only owns nothing")

	require.Len(t, filter(security.FilterOptions{DisableMaxPrivilege: true}).Privileges, 1)

	limited := filter(security.FilterOptions{Limited: true})
	require.False(t, limited.IsAdmin())
	require.Equal(t, []security.TokenPrivilege{{security.SeChangeNotify, on}}, limited.Privileges)
	require.Equal(t, security.IntegrityMedium(), limited.Integrity)
	require.Equal(t, security.ElevationLimited, limited.Elevation)
	require.False(t, limited.Elevated())
	require.True(t, (&security.Token{Elevation: security.ElevationFull}).Elevated())
	domain := token.Clone()
	domain.Groups = []security.Group{{SID: sid(t, "S-1-5-21-1-2-3-512"), Attributes: security.GroupDefault}, {SID: sid(t, "S-1-5-21-1-2-3-513"), Attributes: security.GroupDefault}}
	domain.Integrity = security.IntegrityLow()
	domain, err := domain.Filter(security.FilterOptions{Limited: true})
	require.NoError(t, err)
	require.False(t, domain.HasSID(sid(t, "S-1-5-21-1-2-3-512")))
	require.True(t, domain.HasSID(sid(t, "S-1-5-21-1-2-3-513")))
	require.Equal(t, security.IntegrityLow(), domain.Integrity)

	restricted := filter(security.FilterOptions{Restrict: []security.SID{security.RestrictedCode(), security.Users()}, WriteRestricted: true})
	require.True(t, restricted.WriteRestricted)
	require.True(t, restricted.HasSID(sid(t, staff)), "reading is not restricted")
	token = restricted
	original = token.Clone()
	again := filter(security.FilterOptions{Restrict: []security.SID{security.Users(), security.Everyone()}})
	require.Equal(t, []security.Group{{SID: security.Users(), Attributes: security.GroupDefault}}, again.Restricted, "what both name")
	require.False(t, again.WriteRestricted)
	token, original = again, again.Clone()
	none := filter(security.FilterOptions{Restrict: []security.SID{security.Everyone()}, WriteRestricted: true})
	require.Equal(t, security.Nobody(), none.Restricted[0].SID, "nothing in common is no licence")
	require.False(t, none.WriteRestricted, "what was restricted stays so")

	for _, o := range []security.FilterOptions{{Disable: []security.SID{{}}}, {Restrict: []security.SID{{}}}} {
		_, err := token.Filter(o)
		require.ErrorIs(t, err, ntstatus.InvalidParameter)
	}
}

func TestPrivilegeCheck(t *testing.T) {
	token := powerful(t)
	for _, c := range []struct {
		anyOne bool
		ask    []security.Privilege
		want   bool
	}{
		{false, nil, true}, {false, []security.Privilege{security.SeBackup, security.SeChangeNotify}, true}, {false, []security.Privilege{security.SeBackup, security.SeDebug}, false},
		{true, nil, false}, {true, []security.Privilege{security.SeBackup, security.SeDebug}, true}, {true, []security.Privilege{security.SeDebug}, false},
	} {
		got, err := token.CheckPrivileges(c.anyOne, c.ask...)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	token.Type = security.TokenImpersonation
	_, err := token.CheckPrivileges(false)
	require.ErrorIs(t, err, ntstatus.BadImpersonationLevel)
	token.Level = security.LevelIdentification
	_, err = token.CheckPrivileges(false)
	require.NoError(t, err, "who may be asked may be asked for privileges")
	held, err := (*security.Token)(nil).CheckPrivileges(false, security.SeTcb)
	require.NoError(t, err)
	require.False(t, held)
}

// FEATURES 1.3.b.7.
func TestImpersonationNeedsARight(t *testing.T) {
	const identification, impersonation = security.LevelIdentification, security.LevelImpersonation
	for _, c := range []struct {
		name   string
		change func(server, client *security.Token)
		want   security.ImpersonationLevel
	}{
		{"a stranger", func(*security.Token, *security.Token) {}, identification},
		{"who allows less", func(_, c *security.Token) { c.Level = security.LevelAnonymous }, security.LevelAnonymous},
		{"with the privilege", func(s, _ *security.Token) {
			s.Privileges = []security.TokenPrivilege{{security.SeImpersonate, on}}
		}, impersonation},
		{"with the privilege switched off", func(s, _ *security.Token) {
			s.Privileges = []security.TokenPrivilege{{security.SeImpersonate, 0}}
		}, identification},
		{"the same user", func(s, c *security.Token) { c.User = s.User }, impersonation},
		{"the same user with more integrity", func(s, c *security.Token) { c.User, c.Integrity = s.User, security.IntegrityHigh() }, identification},
		{"the same user, less restricted", func(s, c *security.Token) {
			c.User, s.Restricted = s.User, []security.Group{{SID: security.RestrictedCode()}}
		}, identification},
		{"the same user, as restricted", func(s, c *security.Token) {
			s.Restricted = []security.Group{{SID: security.RestrictedCode()}}
			c.User, c.Restricted = s.User, s.Restricted
		}, impersonation},
		{"whom it logged on", func(s, c *security.Token) { s.AuthenticationID, c.OriginID = 7, 7 }, impersonation},
		{"a primary token", func(s, c *security.Token) { c.User, c.Type, c.Level = s.User, security.TokenPrimary, 0 }, impersonation},
	} {
		server, client := aliceToken(t), aliceToken(t)
		client.User.SID, client.Type, client.Level = sid(t, nobody), security.TokenImpersonation, impersonation
		c.change(server, client)
		require.Equal(t, c.want, server.ImpersonationOf(client), c.name)
	}
}

func TestTokensAreCompared(t *testing.T) {
	a, b := powerful(t), powerful(t)
	b.TokenID, b.Type, b.Level = 7, security.TokenImpersonation, security.LevelIdentification
	b.Groups[0], b.Groups[1] = b.Groups[1], b.Groups[0]
	b.Privileges[0], b.Privileges[2] = b.Privileges[2], b.Privileges[0]
	require.True(t, a.Equal(b))
	for _, change := range []func(*security.Token){
		func(t *security.Token) { t.User.SID = security.Everyone() }, func(t *security.Token) { t.Groups = t.Groups[1:] }, func(t *security.Token) { t.Privileges[0].Attributes ^= on },
		func(t *security.Token) { t.Restricted = t.Groups[:1] }, func(t *security.Token) { t.WriteRestricted = true }, func(t *security.Token) { t.LowPrivilege = true },
		func(t *security.Token) { t.AppContainer = security.Everyone() }, func(t *security.Token) { t.Capabilities = t.Groups[:1] },
	} {
		c := a.Clone()
		change(c)
		require.False(t, a.Equal(c))
	}
	require.False(t, a.Equal(nil))
	require.True(t, (*security.Token)(nil).Equal(nil))
}
