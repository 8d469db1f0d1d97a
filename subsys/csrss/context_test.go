package csrss_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/rpc"
	"sallyport/subsys/csrss/csr"
)

// TestNobodyRunsUnderATokenThatItMayOnlyBeKnownBy: who holds another user's token without SeImpersonate can call under it, but what
// it calls must not start programs as that user.
func TestNobodyRunsUnderATokenThatItMayOnlyBeKnownBy(t *testing.T) {
	w, ctx := start(t), alpctest.Context(t)
	authority, client := w.core.Attach(t, nil), w.core.Attach(t, w.user)
	admin, err := authority.CreateToken(ctx, alpctest.Admin(500))
	require.NoError(t, err)
	require.NoError(t, authority.GrantToken(ctx, admin.TokenID, client.ID()))
	conn, err := rpc.Dial(ctx, client, csr.PortName(0))
	require.NoError(t, err)
	defer conn.Close()
	c := csrpb.NewClientServerRuntimeClient(conn)
	_, err = c.CreateConsole(ctx, &csrpb.CreateConsoleRequest{Command: command("true")}, rpc.AsToken(admin.TokenID, alpc.QualityOfService{Level: alpc.DelegationLevel}))
	require.ErrorIs(t, err, ntstatus.BadImpersonationLevel)
}
