package alpc_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/security"
)

// TestServerOpensFilesAsItsClient: over a real connection, to the level that the client granted.
func TestServerOpensFilesAsItsClient(t *testing.T) {
	const uid, gid = 54321, 54322
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server := c.Attach(t, nil)
	heard := scribe(t, server, `\RPC Control\files`)
	dir, err := os.MkdirTemp("", "impersonate")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	its, mine := filepath.Join(dir, "its"), filepath.Join(dir, "mine")
	for _, path := range []string{its, mine} {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	member := alpctest.User(1001, security.UnixUser(uid), security.UnixGroup(gid))
	deny := alpctest.User(1001, security.UnixUser(uid))
	deny.Groups[len(deny.Groups)-1].Attributes = security.GroupUseForDenyOnly
	sender := func(token *security.Token, level alpc.DialLevel) *alpc.Client {
		p, err := c.Attach(t, token).Dial(ctx, `\RPC Control\files`, alpc.DialOptions{Level: level})
		require.NoError(t, err)
		_, err = p.Call(ctx, &alpc.Message{})
		require.NoError(t, err)
		return (<-heard).sender
	}
	never := func() error { return errors.New("it ran") }
	sd, err := security.ParseSDDL("O:SYG:SYD:(A;;RC;;;WD)(A;;RC;;;AN)")
	require.NoError(t, err)
	open := func(c *alpc.Client) ntstatus.Status {
		return security.AccessCheck(security.CheckRequest{Descriptor: sd, Token: c.Token, Desired: security.ReadControl, Mode: security.CheckOpen}).Status
	}
	require.Equal(t, ntstatus.Success, open(sender(member, alpc.ImpersonationLevel)))
	for _, level := range []alpc.DialLevel{alpc.DefaultLevel, alpc.AnonymousLevel, alpc.IdentificationOnly} {
		require.Equal(t, ntstatus.BadImpersonationLevel, open(sender(member, level)), "to be known is not to act")
		require.ErrorIs(t, sender(member, level).Impersonate(never), ntstatus.BadImpersonationLevel)
	}
	require.ErrorIs(t, sender(alpctest.User(1002), alpc.ImpersonationLevel).Impersonate(never), ntstatus.NoneMapped)
	require.ErrorIs(t, sender(deny, alpc.ImpersonationLevel).Impersonate(never), ntstatus.NoneMapped)

	client := sender(member, alpc.ImpersonationLevel)
	if err := os.Chown(its, uid, gid); err != nil {
		require.ErrorIs(t, client.Impersonate(never), ntstatus.PrivilegeNotHeld)
		t.Skipf("to act as another user takes root: %v", err)
	}
	require.NoError(t, client.Impersonate(func() error { _, err := os.ReadFile(its); return err }))
	require.ErrorIs(t, client.Impersonate(func() error { _, err := os.ReadFile(mine); return err }), fs.ErrPermission)
	_, err = os.ReadFile(mine)
	require.NoError(t, err)
}
