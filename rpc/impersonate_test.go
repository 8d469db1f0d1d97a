package rpc_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
	"sallyport/security"
)

// caller writes who calls into the book.
func caller(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
	c, ok := rpc.Caller(ctx)
	p, _ := peer.FromContext(ctx)
	if !ok || p.AuthInfo.(rpc.AuthInfo).Client != c {
		return nil, ntstatus.New("test", "", ntstatus.InternalError)
	}
	return &testpb.Book{Name: c.Token.User.SID.String(), Text: []byte(c.Level.String())}, nil
}

// TestNarrowedRightIsRefusedAtOnce: from the moment on at which the client has the answer to giving a group up, no server that follows
// its token grants what took the group, whatever it granted before on the same connection.
func TestNarrowedRightIsRefusedAtOnce(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run(gear.String(), func(t *testing.T) {
			c, ctx := alpctest.Start(t), alpctest.Context(t)
			token := alpctest.User(1001)
			token.Groups = append(token.Groups, security.Group{SID: security.BackupOperators(), Attributes: security.GroupEnabled | security.GroupEnabledByDefault})
			system, user := c.Attach(t, nil), c.Attach(t, token)
			s := rpc.NewServer(rpc.ServerOptions{System: system})
			testpb.RegisterLibraryServer(s, &library{})
			s.Secure("sallyport.rpc.test.Library", rpc.Interface{
				SDDL:    "O:SYG:SYD:(A;;0x3;;;BO)",
				Resolve: func(context.Context, string) (*security.Descriptor, error) { return nil, nil },
			})
			l, err := system.Listen(ctx, `\RPC Control\library`, alpc.PortAttributes{SecurityDescriptor: "O:SYG:SYD:(A;;0x1;;;WD)", AutoAccept: true})
			require.NoError(t, err)
			served := make(chan error, 1)
			go func() { served <- s.Serve(ctx, l) }()
			conn, err := rpc.Dial(ctx, user, `\RPC Control\library`, rpc.DialOptions{Port: alpc.DialOptions{Dynamic: true, Gear: gear}})
			require.NoError(t, err)
			fixed, err := rpc.Dial(ctx, user, `\RPC Control\library`, rpc.DialOptions{Port: alpc.DialOptions{Gear: gear}})
			require.NoError(t, err)
			follows, stays := testpb.NewLibraryClient(conn), testpb.NewLibraryClient(fixed)
			for range 100 {
				_, err = follows.Echo(ctx, &testpb.Book{})
				require.NoError(t, err)
				_, err := user.AdjustGroups(ctx, user.Token().TokenID, security.Group{SID: security.BackupOperators()})
				require.NoError(t, err)
				_, err = follows.Echo(ctx, &testpb.Book{})
				require.ErrorIs(t, err, ntstatus.AccessDenied)
				_, err = stays.Echo(ctx, &testpb.Book{})
				require.NoError(t, err, "a connection that does not follow the token is what it was")
				_, err = user.ResetGroups(ctx, user.Token().TokenID)
				require.NoError(t, err)
			}
			s.Stop()
			require.NoError(t, <-served)
		})
	}
}

func TestCallIsMadeUnderAnotherToken(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	system, user := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	s := rpc.NewServer(rpc.ServerOptions{System: system})
	testpb.RegisterLibraryServer(s, &library{
		echo: caller,
		list: func(b *testpb.Book, s grpc.ServerStreamingServer[testpb.Book]) error {
			b, err := caller(s.Context(), b)
			if err != nil {
				return err
			}
			return s.Send(b)
		},
		chat: func(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
			for {
				if _, err := s.Recv(); err != nil {
					return nil
				}
				b, err := caller(s.Context(), nil)
				if err != nil {
					return err
				}
				if err := s.Send(b); err != nil {
					return err
				}
			}
		},
	})
	s.Secure("sallyport.rpc.test.Library", rpc.Interface{
		SDDL:    "O:SYG:SYD:(A;;0x3;;;BA)",
		Resolve: func(context.Context, string) (*security.Descriptor, error) { return nil, nil },
	})
	l, err := system.Listen(ctx, `\RPC Control\library`, alpc.PortAttributes{SecurityDescriptor: "O:SYG:SYD:(A;;0x1;;;WD)", AutoAccept: true})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	conn, err := rpc.Dial(ctx, user, `\RPC Control\library`)
	require.NoError(t, err)
	client := testpb.NewLibraryClient(conn)

	_, err = client.Echo(ctx, &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.AccessDenied, "in its own name")
	admin, err := system.CreateToken(ctx, alpctest.Admin(500))
	require.NoError(t, err)
	as := rpc.AsToken(admin.TokenID, alpc.QualityOfService{Level: alpc.ImpersonationLevel})
	_, err = client.Echo(ctx, &testpb.Book{}, as)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "a token that it does not hold")
	require.NoError(t, system.GrantToken(ctx, admin.TokenID, user.ID()))
	for range 2 {
		b, err := client.Echo(ctx, &testpb.Book{Text: make([]byte, 100000)}, as)
		require.NoError(t, err)
		require.Equal(t, admin.User.SID.String(), b.Name)
		require.Equal(t, "identification", string(b.Text), "another user's, without SeImpersonate: it is known, and no more")
		_, err = client.Echo(ctx, &testpb.Book{})
		require.ErrorIs(t, err, ntstatus.AccessDenied, "what was granted to the one is not granted to the other")
	}
	list, err := client.List(ctx, &testpb.Book{}, as)
	require.NoError(t, err)
	b, err := list.Recv()
	require.NoError(t, err)
	require.Equal(t, admin.User.SID.String(), b.Name)
	chat, err := client.Chat(ctx, as)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, chat.Send(&testpb.Book{}))
		b, err = chat.Recv()
		require.NoError(t, err)
		require.Equal(t, admin.User.SID.String(), b.Name)
	}
	require.NoError(t, chat.CloseSend())
	require.NoError(t, conn.Forget(ctx, admin.TokenID))
	require.NoError(t, user.CloseToken(ctx, admin.TokenID))
	_, err = client.Echo(ctx, &testpb.Book{}, as)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "it is gone with what held it")
	s.Stop()
	require.NoError(t, <-served)
}
