package alpc_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/security"
)

// adjustable is a user with a privilege that is off, one that is on, and a group that can be switched.
func adjustable() *security.Token {
	t := alpctest.User(1001)
	t.Privileges = []security.TokenPrivilege{{Privilege: security.SeShutdown}, {Privilege: security.SeChangeNotify, Attributes: security.PrivilegeEnabled | security.PrivilegeEnabledByDefault}}
	t.Groups = append(t.Groups, security.Group{SID: security.BackupOperators(), Attributes: security.GroupEnabled | security.GroupEnabledByDefault},
		security.Group{SID: security.Guests(), Attributes: security.GroupUseForDenyOnly})
	return t
}

func TestPrivilegesAreAdjusted(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	client := c.Attach(t, adjustable())
	on := func(p security.Privilege) security.TokenPrivilege {
		return security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabled}
	}
	before := client.Token()
	a, err := client.AdjustPrivileges(ctx, before.TokenID, on(security.SeShutdown), on(security.SeTcb))
	require.NoError(t, err)
	require.True(t, a.NotAllAssigned, "what it does not hold is not there to be switched on: a success, with a flag")
	require.Equal(t, []security.TokenPrivilege{{Privilege: security.SeShutdown}}, a.Privileges, "what changed, as it was")
	require.True(t, a.Token.Has(security.SeShutdown))
	require.False(t, a.Token.Has(security.SeTcb))
	require.Equal(t, a.Token, client.Token())
	require.False(t, before.Has(security.SeShutdown), "a snapshot stays what it is")
	require.Equal(t, before.TokenID, a.Token.TokenID)
	require.Equal(t, before.AuthenticationID, a.Token.AuthenticationID)
	require.NotEqual(t, before.ModifiedID, a.Token.ModifiedID)

	again, err := client.AdjustPrivileges(ctx, before.TokenID, on(security.SeShutdown))
	require.NoError(t, err)
	require.Equal(t, a.Token.ModifiedID, again.Token.ModifiedID, "it was on already")
	require.False(t, again.NotAllAssigned)
	off, err := client.DisablePrivileges(ctx, before.TokenID)
	require.NoError(t, err)
	require.False(t, off.Token.Has(security.SeShutdown) || off.Token.Has(security.SeChangeNotify))
	back, err := client.AdjustPrivileges(ctx, before.TokenID, off.Privileges...)
	require.NoError(t, err)
	require.Equal(t, a.Token.Privileges, back.Token.Privileges, "what was changed undoes the change")
	gone, err := client.AdjustPrivileges(ctx, before.TokenID, security.TokenPrivilege{Privilege: security.SeShutdown, Attributes: security.PrivilegeRemoved})
	require.NoError(t, err)
	require.Len(t, gone.Token.Privileges, 1)
	late, err := client.AdjustPrivileges(ctx, before.TokenID, on(security.SeShutdown))
	require.NoError(t, err)
	require.True(t, late.NotAllAssigned, "removed is for good")
}

// TestDisabledPrivilegeIsNotHeld: the core looks at the token as it is.
func TestDisabledPrivilegeIsNotHeld(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	system := c.Attach(t, nil)
	_, err := system.NewLogonSession(ctx)
	require.NoError(t, err)
	off, err := system.DisablePrivileges(ctx, system.Token().TokenID)
	require.NoError(t, err)
	_, err = system.NewLogonSession(ctx)
	require.ErrorIs(t, err, ntstatus.PrivilegeNotHeld)
	_, err = system.AdjustPrivileges(ctx, system.Token().TokenID, off.Privileges...)
	require.NoError(t, err)
	_, err = system.NewLogonSession(ctx)
	require.NoError(t, err)
}

func TestGroupsAreAdjusted(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, adjustable())
	l, err := server.Listen(ctx, `\RPC Control\backup`, alpc.PortAttributes{SecurityDescriptor: "O:SYG:SYD:(A;;0x1;;;BO)", AutoAccept: true})
	require.NoError(t, err)
	dial := func() error { _, err := client.Dial(ctx, l.Name(), alpc.DialOptions{}); return err }
	require.NoError(t, dial())
	own := client.Token().TokenID
	a, err := client.AdjustGroups(ctx, own, security.Group{SID: security.BackupOperators()}, security.Group{SID: security.Administrators(), Attributes: security.GroupEnabled})
	require.NoError(t, err)
	require.True(t, a.NotAllAssigned)
	require.Equal(t, security.BackupOperators(), a.Groups[0].SID)
	require.ErrorIs(t, dial(), ntstatus.AccessDenied)
	_, err = client.ResetGroups(ctx, own)
	require.NoError(t, err)
	require.NoError(t, dial())
	before := client.Token()
	_, err = client.AdjustGroups(ctx, own, security.Group{SID: security.BackupOperators()}, security.Group{SID: security.Everyone()})
	require.ErrorIs(t, err, ntstatus.CantDisableMandatory)
	_, err = client.AdjustGroups(ctx, own, security.Group{SID: security.Guests(), Attributes: security.GroupEnabled})
	require.Error(t, err, "deny-only stays that")
	require.Equal(t, before, client.Token(), "all or nothing")
}

func TestFilteredTokenCanDoLessAndNotFindItBack(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, admin := c.Attach(t, nil), c.Attach(t, alpctest.Admin(500))
	full := admin.Token()
	limited, err := admin.FilterToken(ctx, full.TokenID, security.FilterOptions{Limited: true})
	require.NoError(t, err)
	require.NotEqual(t, full.TokenID, limited.TokenID)
	require.Equal(t, full.AuthenticationID, limited.AuthenticationID)
	require.True(t, full.IsAdmin())
	require.False(t, limited.IsAdmin())
	restricted, err := admin.FilterToken(ctx, full.TokenID, security.FilterOptions{DisableMaxPrivilege: true, Restrict: []security.SID{security.Everyone()}, Delete: []security.Privilege{security.SeShutdown}})
	require.NoError(t, err)
	require.Len(t, restricted.Restricted, 1)
	for name, token := range map[string]*security.Token{"limited": limited, "restricted": restricted} {
		t.Run(name, func(t *testing.T) {
			sandboxed := c.Attach(t, token)
			_, err := sandboxed.DuplicateToken(ctx, full.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary})
			require.ErrorIs(t, err, ntstatus.AccessDenied)
			_, err = sandboxed.OpenToken(ctx, full.TokenID, 0x4)
			require.ErrorIs(t, err, ntstatus.AccessDenied)
			_, err = sandboxed.FilterToken(ctx, full.TokenID, security.FilterOptions{})
			require.ErrorIs(t, err, ntstatus.AccessDenied)
		})
	}
	_, err = admin.FilterToken(ctx, full.TokenID, security.FilterOptions{Disable: make([]security.SID, 1)})
	require.Error(t, err)
	_, err = c.Attach(t, alpctest.User(1001)).FilterToken(ctx, full.TokenID, security.FilterOptions{})
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	_, err = authority.FilterToken(ctx, limited.TokenID, security.FilterOptions{})
	require.NoError(t, err)
}
