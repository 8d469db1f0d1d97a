package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc/alpctest"
	"sallyport/examples/hello/hellopb"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys"
)

// The whole system in a test: a core, the server, and two clients under tokens of the test's making.
func TestGreetKnowsItsCallerAndStrangersAreRefused(t *testing.T) {
	core, ctx := alpctest.Start(t), alpctest.Context(t)
	_, err := subsys.Host(ctx, subsys.Server{Name: "hello", Run: run}, subsys.Env{System: core.Attach(t, nil)})
	require.NoError(t, err)

	alice := alpctest.User(1001)
	conn, err := rpc.Dial(ctx, core.Attach(t, alice), port)
	require.NoError(t, err)
	defer conn.Close()
	reply, err := hellopb.NewGreeterClient(conn).Greet(ctx, &hellopb.GreetRequest{Name: "you"})
	require.NoError(t, err)
	require.Equal(t, "Hello you, whom the core knows as "+alice.User.SID.String()+".", reply.Text)

	stranger := &security.Token{Type: security.TokenPrimary, User: security.Group{SID: security.Anonymous()}, Integrity: security.IntegrityUntrusted()}
	_, err = rpc.Dial(ctx, core.Attach(t, stranger), port)
	require.ErrorIs(t, err, ntstatus.AccessDenied)
}
