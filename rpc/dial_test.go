package rpc_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
)

func portGuard(owner *alpc.System) string {
	sid := owner.Token().User.SID.String()
	return "O:" + sid + "G:" + sid + "D:(A;;GA;;;WD)"
}

// host serves the library at name from an attachment of its own, which end takes away as a death would.
func host(t *testing.T, core *alpctest.Core, name string, l *library) (end func()) {
	sys := core.Attach(t, alpctest.Admin(500))
	listener, err := sys.Listen(short(t), name, alpc.PortAttributes{SecurityDescriptor: portGuard(sys)})
	require.NoError(t, err)
	server := rpc.NewServer(rpc.ServerOptions{System: sys})
	testpb.RegisterLibraryServer(server, l)
	server.Secure("sallyport.rpc.test.Library", rpc.Interface{SDDL: libraryGuard, Resolve: shelf})
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), listener) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		server.Stop()
		select {
		case err := <-served:
			require.NoError(t, err)
		case <-time.After(5 * time.Second):
			require.Fail(t, "Serve does not return")
		}
		sys.Close()
	}
	t.Cleanup(end)
	return end
}

func TestDialServeAndADenialThatTheCoreExplains(t *testing.T) {
	core := alpctest.Start(t)
	host(t, core, `\RPC Control\library`, still())
	admin, user := core.Attach(t, alpctest.Admin(501)), core.Attach(t, alpctest.User(1001))
	conn, err := rpc.Dial(short(t), user, `\RPC Control\library`)
	require.NoError(t, err)
	defer conn.Close()
	client := testpb.NewLibraryClient(conn)
	_, err = client.Echo(short(t), &testpb.Book{})
	require.NoError(t, err)
	require.NotNil(t, conn.Peer())

	_, err = client.Write(short(t), &testpb.Book{Name: "locked"})
	denial := denied(t, err)
	require.NotZero(t, denial.Decision)
	logged, err := admin.Explain(short(t), denial.Decision)
	require.NoError(t, err)
	require.Equal(t, "locked", logged.Object)
	require.Equal(t, "BOOK_WRITE", logged.Right)
	require.Equal(t, user.ID(), logged.Attachment)
	require.NotEmpty(t, logged.Trace)

	_, err = rpc.Dial(short(t), user, `\RPC Control\none`)
	require.ErrorIs(t, err, ntstatus.ObjectNameNotFound)
}

func TestConnFindsTheServersSuccessor(t *testing.T) {
	core := alpctest.Start(t)
	owner := core.Attach(t, alpctest.Admin(500))
	const name = `\RPC Control\library`
	require.NoError(t, owner.Declare(short(t), name, alpc.PortAttributes{SecurityDescriptor: portGuard(owner)}, owner.Token().User.SID))
	entered := make(chan struct{}, 1)
	waiting := &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		if b.Name == "wait" {
			entered <- struct{}{}
			<-ctx.Done()
		}
		return b, ctx.Err()
	}}
	end := host(t, core, name, waiting)
	conn, err := rpc.Dial(short(t), core.Attach(t, alpctest.User(1001)), name)
	require.NoError(t, err)
	defer conn.Close()
	client := testpb.NewLibraryClient(conn)

	failed := make(chan error, 1)
	go func() {
		_, err := client.Echo(context.Background(), &testpb.Book{Name: "wait"})
		failed <- err
	}()
	<-entered
	end()
	require.ErrorIs(t, <-failed, ntstatus.PortDisconnected, "the call in progress is not repeated")

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = client.Echo(ctx, &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.IOTimeout, "a call waits for the declared port under its own context")

	answered := make(chan error, 1)
	go func() {
		_, err := client.Echo(short(t), &testpb.Book{})
		answered <- err
	}()
	host(t, core, name, still())
	require.NoError(t, <-answered)

	require.NoError(t, conn.Close())
	_, err = client.Echo(short(t), &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.PortClosed)
}
