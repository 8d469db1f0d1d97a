package security_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
)

func TestTokenSpeaksForItsEnabledSIDs(t *testing.T) {
	token := aliceToken(t)
	for s, want := range map[string]bool{alice: true, staff: true, wheel: false, idle: false, nobody: false} {
		require.Equal(t, want, token.HasSID(sid(t, s)), s)
	}
	require.False(t, token.HasSID(security.SID{}))

	token.User.Attributes = security.GroupUseForDenyOnly
	require.False(t, token.HasSID(sid(t, alice)))

	token.Restricted = []security.Group{{SID: sid(t, nobody)}}
	require.False(t, token.HasSID(sid(t, staff)), "a restricted token needs the SID on both sides")
	require.False(t, token.HasSID(sid(t, nobody)))
	token.Restricted = append(token.Restricted, security.Group{SID: sid(t, staff)})
	require.True(t, token.HasSID(sid(t, staff)))

	var none *security.Token
	require.False(t, none.HasSID(security.Everyone()))
	require.False(t, none.IsAdmin())
	require.False(t, none.Has(security.SeTcb))
	require.False(t, none.MayOwn(security.Everyone()))
	require.Nil(t, none.Clone())
}

func TestTokenWithASIDTwice(t *testing.T) {
	token := &security.Token{Groups: []security.Group{{SID: security.Users()}, {SID: security.Users(), Attributes: security.GroupEnabled}}}
	require.True(t, token.HasSID(security.Users()), "an enabled group counts beside a disabled one")
	token.Groups[0].Attributes = security.GroupUseForDenyOnly
	require.False(t, token.HasSID(security.Users()), "deny-only wins")
}

func TestTokenHoldsEnabledPrivileges(t *testing.T) {
	token := &security.Token{Privileges: []security.TokenPrivilege{
		{Privilege: security.SeTcb, Attributes: security.PrivilegeEnabled | security.PrivilegeEnabledByDefault},
		{Privilege: security.SeDebug},
		{Privilege: security.SeBackup, Attributes: security.PrivilegeEnabledByDefault},
		{Privilege: security.SeRestore, Attributes: security.PrivilegeEnabled | security.PrivilegeRemoved},
	}}
	require.True(t, token.Has(security.SeTcb))
	for _, p := range []security.Privilege{security.SeDebug, security.SeBackup, security.SeRestore, security.SeShutdown, 0} {
		require.False(t, token.Has(p), p)
	}
}

func TestAdministrators(t *testing.T) {
	require.False(t, aliceToken(t).IsAdmin())
	require.True(t, (&security.Token{User: security.Group{SID: security.LocalSystem()}}).IsAdmin())
	admin := &security.Token{Groups: []security.Group{{SID: security.Administrators(), Attributes: security.GroupDefault}}}
	require.True(t, admin.IsAdmin())
	admin.Groups[0].Attributes = security.GroupUseForDenyOnly
	require.False(t, admin.IsAdmin())
}

func TestTokenOwner(t *testing.T) {
	token := aliceToken(t)
	require.Equal(t, sid(t, alice), token.DefaultOwner())
	require.True(t, token.MayOwn(sid(t, alice)))
	require.False(t, token.MayOwn(sid(t, staff)), "a group owns only if it says so")
	token.Groups[0].Attributes |= security.GroupOwner
	require.True(t, token.MayOwn(sid(t, staff)))
	token.Groups[1].Attributes |= security.GroupOwner
	require.False(t, token.MayOwn(sid(t, wheel)), "a deny-only group does not own")
	require.False(t, token.MayOwn(security.SID{}))
	token.Owner = sid(t, staff)
	require.Equal(t, sid(t, staff), token.DefaultOwner())
	token.User.Attributes = security.GroupUseForDenyOnly
	require.False(t, token.MayOwn(sid(t, alice)))
}

func TestTokenIntegrityAndExpiry(t *testing.T) {
	token := aliceToken(t)
	require.Equal(t, uint32(8192), token.IntegrityLevel())
	token.Integrity = security.Everyone()
	require.Zero(t, token.IntegrityLevel(), "what is no label is the lowest")
	require.False(t, token.Expired(1<<62))
	token.Expiration = 100
	require.False(t, token.Expired(99))
	require.True(t, token.Expired(100))
}

func TestDuplicateNeverRaisesTheLevel(t *testing.T) {
	const refused = ntstatus.BadImpersonationLevel
	anonymous, identification, impersonation, delegation := security.LevelAnonymous, security.LevelIdentification, security.LevelImpersonation, security.LevelDelegation
	for _, c := range []struct {
		from security.ImpersonationLevel
		// By the level asked, and last for a primary token.
		want [5]ntstatus.Status
	}{
		{anonymous, [5]ntstatus.Status{0, refused, refused, refused, refused}},
		{identification, [5]ntstatus.Status{0, 0, refused, refused, refused}},
		{impersonation, [5]ntstatus.Status{0, 0, 0, refused, 0}},
		{delegation, [5]ntstatus.Status{}},
	} {
		token := aliceToken(t)
		token.Type, token.Level, token.TokenID, token.AuthenticationID, token.ModifiedID = security.TokenImpersonation, c.from, 7, 8, 9
		for i, want := range c.want {
			o := security.DuplicateOptions{Type: security.TokenImpersonation, Level: security.ImpersonationLevel(i)}
			if i == 4 {
				o = security.DuplicateOptions{Type: security.TokenPrimary}
			}
			got, err := token.Duplicate(o)
			if want != ntstatus.Success {
				require.ErrorIs(t, err, want, "%v as %+v", c.from, o)
				continue
			}
			require.NoError(t, err, "%v as %+v", c.from, o)
			require.Equal(t, o.Type, got.Type)
			require.Equal(t, o.Level, got.Level)
			require.Zero(t, got.TokenID, "the core gives a new one")
			require.Equal(t, security.LUID(8), got.AuthenticationID)
			require.Equal(t, security.LUID(9), got.ModifiedID)
		}
	}
	primary := aliceToken(t)
	got, err := primary.Duplicate(security.DuplicateOptions{Type: security.TokenImpersonation, Level: delegation})
	require.NoError(t, err, "a process gives of itself what it wants")
	require.Equal(t, delegation, got.Level)
	for _, o := range []security.DuplicateOptions{{}, {Type: 3}, {Type: security.TokenImpersonation, Level: 4}} {
		_, err := primary.Duplicate(o)
		require.ErrorIs(t, err, ntstatus.InvalidParameter)
	}
}

func TestEffectiveOnlyDropsWhatIsDisabled(t *testing.T) {
	token := aliceToken(t)
	token.Privileges = []security.TokenPrivilege{{Privilege: security.SeTcb, Attributes: security.PrivilegeEnabled}, {Privilege: security.SeDebug}}
	got, err := token.Duplicate(security.DuplicateOptions{Type: security.TokenPrimary, EffectiveOnly: true})
	require.NoError(t, err)
	require.Equal(t, []security.Group{
		{SID: sid(t, staff), Attributes: security.GroupDefault},
		{SID: sid(t, wheel), Attributes: security.GroupUseForDenyOnly},
	}, got.Groups)
	require.Equal(t, token.Privileges[:1], got.Privileges)
	require.Len(t, token.Groups, 3, "the original stays")
	require.Len(t, token.Privileges, 2)
}

func TestTokenClonesShareNothing(t *testing.T) {
	token := aliceToken(t)
	token.DefaultDACL = security.NewACL(security.Allow(security.LocalSystem(), security.GenericAll))
	token.Privileges = []security.TokenPrivilege{{Privilege: security.SeTcb}}
	token.Restricted = []security.Group{{SID: security.RestrictedCode()}}
	c := token.Clone()
	require.Equal(t, token, c)
	c.Groups[0].Attributes, c.Privileges[0].Attributes, c.Restricted[0].SID, c.DefaultDACL.ACEs[0].Mask = 0, 2, security.SID{}, 0
	require.Equal(t, security.GroupDefault, token.Groups[0].Attributes)
	require.Zero(t, token.Privileges[0].Attributes)
	require.Equal(t, security.RestrictedCode(), token.Restricted[0].SID)
	require.Equal(t, security.GenericAll, token.DefaultDACL.ACEs[0].Mask)
}

func TestPrivilegeNames(t *testing.T) {
	for p := security.FirstPrivilege; p <= security.LastPrivilege; p++ {
		require.True(t, strings.HasPrefix(p.String(), "Se") && strings.HasSuffix(p.String(), "Privilege"), "%d is %s", uint32(p), p)
		again, err := security.ParsePrivilege(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	}
	require.Equal(t, "SeTcbPrivilege", security.SeTcb.String())
	require.Equal(t, "SeImpersonatePrivilege", security.Privilege(29).String())
	for _, p := range []security.Privilege{0, 1, 37, 1 << 31} {
		require.NotContains(t, p.String(), "Se")
	}
	for _, name := range []string{"", "SeTcb", "setcbprivilege", "0"} {
		_, err := security.ParsePrivilege(name)
		require.ErrorIs(t, err, ntstatus.NoSuchPrivilege, name)
	}
}

func TestLevelsAndLUIDsHaveNames(t *testing.T) {
	require.Equal(t, "identification", security.LevelIdentification.String())
	require.Equal(t, "unknown", security.ImpersonationLevel(9).String())
	require.Equal(t, "0:3e7", security.SystemLUID.String())
	require.Equal(t, "1:2", security.LUID(1<<32|2).String())
}
