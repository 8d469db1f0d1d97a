package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
	"sallyport/security"
)

// everyone may read the library, only administrators may write to what has no descriptor of its own.
const libraryGuard = "O:SYG:SYD:(A;;0x1;;;WD)(A;;0x3;;;BA)"

// library is the service under test; a test sets the hooks that it needs.
type library struct {
	testpb.UnimplementedLibraryServer
	echo    func(context.Context, *testpb.Book) (*testpb.Book, error)
	list    func(*testpb.Book, grpc.ServerStreamingServer[testpb.Book]) error
	collect func(grpc.ClientStreamingServer[testpb.Book, testpb.Book]) error
	chat    func(grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error
	written atomic.Int64
}

func (l *library) Echo(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
	if l.echo != nil {
		return l.echo(ctx, b)
	}
	return b, nil
}

func (l *library) List(b *testpb.Book, s grpc.ServerStreamingServer[testpb.Book]) error {
	if l.list != nil {
		return l.list(b, s)
	}
	for i := range b.Number {
		if err := s.Send(&testpb.Book{Name: b.Name, Text: b.Text, Number: i}); err != nil {
			return err
		}
	}
	return nil
}

func (l *library) Collect(s grpc.ClientStreamingServer[testpb.Book, testpb.Book]) error {
	if l.collect != nil {
		return l.collect(s)
	}
	var out testpb.Book
	for {
		b, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&out)
		}
		if err != nil {
			return err
		}
		out.Number++
		out.Text = fmt.Appendf(nil, "%d", len(b.Text))
	}
}

func (l *library) Chat(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
	if l.chat != nil {
		return l.chat(s)
	}
	for {
		b, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = s.Send(b)
		}
		if err != nil {
			return err
		}
	}
}

func (l *library) Write(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
	l.written.Add(1)
	return b, nil
}

func (l *library) WriteMany(s grpc.BidiStreamingServer[testpb.Shelf, testpb.Book]) error {
	l.written.Add(1)
	for {
		b, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = s.Send(b.Book)
		}
		if err != nil {
			return err
		}
	}
}

// reader is a token that the library's guard lets read.
func reader(name string) *security.Token {
	t := &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: security.UnixUser(4711)}, Integrity: security.IntegrityMedium(),
		AuthenticationID: 1,
		Groups:           []security.Group{{SID: security.Everyone(), Attributes: security.GroupMandatory | security.GroupEnabledByDefault | security.GroupEnabled}},
	}
	t.Source.Name = name
	return t
}

type fixture struct {
	server  *rpc.Server
	conn    *rpc.Conn
	client  testpb.LibraryClient
	ports   [2]*alpc.Port // the client's, the server's
	served  chan error
	mu      sync.Mutex
	denials []alpc.Denial // under mu
}

type config struct {
	options rpc.ServerOptions
	dial    rpc.DialOptions
	pair    [2]alpc.PairOptions
	guard   rpc.Interface
	gear    alpc.Gear
	also    func(*rpc.Server)
}

// serve connects a client to l over two ports in this process.
func serve(t testing.TB, l testpb.LibraryServer, c config) *fixture {
	t.Helper()
	f := &fixture{served: make(chan error, 1)}
	c.options.ReportDenial = func(ctx context.Context, d alpc.Denial) (uint64, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.denials = append(f.denials, d)
		return uint64(len(f.denials)), nil
	}
	f.server = rpc.NewServer(c.options)
	testpb.RegisterLibraryServer(f.server, l)
	if c.guard.SDDL == "" {
		c.guard.SDDL = libraryGuard
	}
	if c.guard.Resolve == nil {
		c.guard.Resolve = shelf
	}
	f.server.Secure("sallyport.rpc.test.Library", c.guard)
	if c.also != nil {
		c.also(f.server)
	}
	if c.pair[1].Peer == nil {
		c.pair[1].Peer = &alpc.Client{Attachment: 7, PID: os.Getpid(), Token: reader("test"), SessionID: 3}
	}
	if c.pair[0].Peer == nil {
		c.pair[0].Peer = &alpc.Client{Attachment: 8, PID: os.Getpid()}
	}
	client, server, err := alpc.Pair(c.pair[0], c.pair[1])
	require.NoError(t, err)
	f.ports = [2]*alpc.Port{client, server}
	go func() { f.served <- f.server.ServePort(context.Background(), server) }()
	f.conn = rpc.NewConn(client, c.dial)
	f.client = testpb.NewLibraryClient(f.conn)
	t.Cleanup(func() {
		f.conn.Close()
		f.server.Stop()
		select {
		case err := <-f.served:
			f.served <- err
		case <-time.After(5 * time.Second):
			buf := make([]byte, 1<<20)
			t.Errorf("the server did not end\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
	if c.gear == alpc.GearShared {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, client.Shift(ctx, alpc.GearShared))
		require.NoError(t, server.Shift(ctx, alpc.GearShared))
	}
	return f
}

// shelf has one book that everyone may write, one that nobody may, and no other.
func shelf(_ context.Context, name string) (*security.Descriptor, error) {
	switch name {
	case "open":
		return security.ParseSDDL("O:SYG:SYD:(A;;0x2;;;WD)")
	case "locked":
		return security.ParseSDDL("O:SYG:SYD:(A;;0x2;;;BA)")
	case "broken":
		return nil, ntstatus.New("shelf", name, ntstatus.FileCorrupt)
	}
	return nil, ntstatus.New("shelf", name, ntstatus.ObjectNameNotFound)
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// everyTransport runs the same body over a port in both gears and over plain gRPC.
func everyTransport(t *testing.T, l func() *library, body func(t *testing.T, client testpb.LibraryClient)) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run("port "+gear.String(), func(t *testing.T) { body(t, serve(t, l(), config{gear: gear}).client) })
	}
	t.Run("grpc", func(t *testing.T) { body(t, plain(t, l())) })
}

func plain(t testing.TB, l testpb.LibraryServer) testpb.LibraryClient {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	server := grpc.NewServer()
	testpb.RegisterLibraryServer(server, l)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return testpb.NewLibraryClient(conn)
}

func still() *library { return &library{} }

func TestEveryKindOfCallRunsOverEveryTransport(t *testing.T) {
	everyTransport(t, still, func(t *testing.T, client testpb.LibraryClient) {
		ctx := short(t)
		b, err := client.Echo(ctx, &testpb.Book{Name: "unary", Text: []byte("x")})
		require.NoError(t, err)
		require.Equal(t, "unary", b.Name)

		list, err := client.List(ctx, &testpb.Book{Name: "server", Number: 1000})
		require.NoError(t, err)
		for i := range 1000 {
			b, err := list.Recv()
			require.NoError(t, err)
			require.EqualValues(t, i, b.Number)
		}
		_, err = list.Recv()
		require.Equal(t, io.EOF, err)

		collect, err := client.Collect(ctx)
		require.NoError(t, err)
		for range 1000 {
			require.NoError(t, collect.Send(&testpb.Book{Text: []byte("abc")}))
		}
		b, err = collect.CloseAndRecv()
		require.NoError(t, err)
		require.EqualValues(t, 1000, b.Number)
		require.Equal(t, "3", string(b.Text))

		chat, err := client.Chat(ctx)
		require.NoError(t, err)
		for i := range 100 {
			require.NoError(t, chat.Send(&testpb.Book{Number: int64(i)}))
			b, err := chat.Recv()
			require.NoError(t, err)
			require.EqualValues(t, i, b.Number)
		}
		require.NoError(t, chat.CloseSend())
		_, err = chat.Recv()
		require.Equal(t, io.EOF, err)

		empty, err := client.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, empty.CloseSend())
		_, err = empty.Recv()
		require.Equal(t, io.EOF, err)
	})
}

func TestMessagesLargerThanAFrameOverEveryTransport(t *testing.T) {
	text := bytes.Repeat([]byte("sallyport "), 3<<20/10)
	everyTransport(t, still, func(t *testing.T, client testpb.LibraryClient) {
		ctx := short(t)
		for range 3 {
			b, err := client.Echo(ctx, &testpb.Book{Text: text})
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, b.Text))
		}
		list, err := client.List(ctx, &testpb.Book{Text: text, Number: 2})
		require.NoError(t, err)
		for range 2 {
			b, err := list.Recv()
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, b.Text))
		}
		_, err = list.Recv()
		require.Equal(t, io.EOF, err)
		chat, err := client.Chat(ctx)
		require.NoError(t, err)
		go func() {
			for range 2 {
				chat.Send(&testpb.Book{Text: text})
			}
			chat.CloseSend()
		}()
		for range 2 {
			b, err := chat.Recv()
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, b.Text))
		}
		_, err = chat.Recv()
		require.Equal(t, io.EOF, err)

		_, err = client.Echo(ctx, &testpb.Book{Text: bytes.Repeat(text, 2)})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		_, err = client.Echo(ctx, &testpb.Book{}) // the connection lives
		require.NoError(t, err)
	})
}

func TestMetadataHeadersAndTrailersOverEveryTransport(t *testing.T) {
	lib := func() *library {
		answer := func(ctx context.Context) error {
			md, _ := metadata.FromIncomingContext(ctx)
			if err := grpc.SetHeader(ctx, metadata.Pairs("h", strings.Join(md.Get("key"), "+"))); err != nil {
				return err
			}
			return grpc.SetTrailer(ctx, metadata.Pairs("t-bin", strings.Join(md.Get("key-bin"), "+")))
		}
		return &library{
			echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) { return b, answer(ctx) },
			chat: func(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
				if err := answer(s.Context()); err != nil {
					return err
				}
				if err := s.SendHeader(metadata.Pairs("more", "1")); err != nil {
					return err
				}
				if s.SetHeader(metadata.Pairs("late", "1")) == nil {
					return errors.New("a header after the header")
				}
				_, err := s.Recv()
				return errors.Join(status.Error(codes.DataLoss, "with a trailer"), err)
			},
		}
	}
	everyTransport(t, lib, func(t *testing.T, client testpb.LibraryClient) {
		ctx := metadata.AppendToOutgoingContext(short(t), "key", "a", "key", "b", "key-bin", "\x00\xff", "grpc-secret", "no")
		var header, trailer metadata.MD
		var who peer.Peer
		_, err := client.Echo(ctx, &testpb.Book{}, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&who))
		require.NoError(t, err)
		require.Equal(t, []string{"a+b"}, header.Get("h"))
		require.Equal(t, []string{"\x00\xff"}, trailer.Get("t-bin"))
		require.NotNil(t, who.Addr)

		chat, err := client.Chat(ctx)
		require.NoError(t, err)
		header, err = chat.Header() // before any message
		require.NoError(t, err)
		require.Equal(t, []string{"a+b"}, header.Get("h"))
		require.Equal(t, []string{"1"}, header.Get("more"))
		require.NoError(t, chat.Send(&testpb.Book{}))
		_, err = chat.Recv()
		require.Equal(t, codes.DataLoss, status.Code(err))
		require.Equal(t, []string{"\x00\xff"}, chat.Trailer().Get("t-bin"))

		_, err = client.Echo(metadata.AppendToOutgoingContext(ctx, "bad", "a\nb"), &testpb.Book{})
		require.Equal(t, codes.Internal, status.Code(err))
	})
}

func TestStatusWithDetailsOverEveryTransport(t *testing.T) {
	lib := func() *library {
		return &library{echo: func(context.Context, *testpb.Book) (*testpb.Book, error) {
			st, err := status.New(codes.Aborted, "t\tü: Straße").WithDetails(&errdetails.ErrorInfo{Reason: "R"})
			if err != nil {
				return nil, err
			}
			return nil, st.Err()
		}, list: func(*testpb.Book, grpc.ServerStreamingServer[testpb.Book]) error { return errors.New("plain") }}
	}
	everyTransport(t, lib, func(t *testing.T, client testpb.LibraryClient) {
		_, err := client.Echo(short(t), &testpb.Book{})
		st, ok := status.FromError(err)
		require.True(t, ok)
		require.Equal(t, codes.Aborted, st.Code())
		require.Equal(t, "t\tü: Straße", st.Message())
		require.Equal(t, "R", st.Details()[0].(*errdetails.ErrorInfo).Reason)
		require.Equal(t, "rpc error: code = Aborted desc = t\tü: Straße", err.Error())

		list, err := client.List(short(t), &testpb.Book{})
		require.NoError(t, err)
		_, err = list.Recv()
		require.Equal(t, codes.Unknown, status.Code(err))
		require.Equal(t, "plain", status.Convert(err).Message())
	})
}

func TestDeadlineAndCancelOverEveryTransport(t *testing.T) {
	ended := make(chan error, 10)
	lib := func() *library {
		wait := func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				ended <- errors.New("no deadline came")
			}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
		return &library{
			echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) { return nil, wait(ctx) },
			chat: func(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
				if _, err := s.Recv(); err != nil {
					return err
				}
				if err := s.Send(&testpb.Book{}); err != nil {
					return err
				}
				return wait(s.Context())
			},
		}
	}
	everyTransport(t, lib, func(t *testing.T, client testpb.LibraryClient) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		_, err := client.Echo(ctx, &testpb.Book{})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.ErrorContains(t, <-ended, "context")

		ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
		time.AfterFunc(5*time.Millisecond, cancel)
		_, err = client.Echo(ctx, &testpb.Book{})
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Equal(t, context.Canceled, <-ended)

		ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
		chat, err := client.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, chat.Send(&testpb.Book{}))
		_, err = chat.Recv()
		require.NoError(t, err)
		cancel()
		_, err = chat.Recv()
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Equal(t, context.Canceled, <-ended)

		_, err = client.Echo(ctx, &testpb.Book{}) // with a context that has ended already
		require.Equal(t, codes.Canceled, status.Code(err))
	})
}

func TestNTStatusCrossesWhole(t *testing.T) {
	inner := ntstatus.Errorf("sam.Open", "bob", ntstatus.NoSuchUser, "page %d", 7)
	for name, c := range map[string]struct {
		err    error
		status ntstatus.Status
		code   codes.Code
	}{
		"error":       {inner, ntstatus.NoSuchUser, codes.NotFound},
		"bare":        {ntstatus.DiskFull, ntstatus.DiskFull, codes.ResourceExhausted},
		"nested":      {&ntstatus.Error{Op: "lsa.Logon", Object: "bob", Status: ntstatus.LogonFailure, Err: inner}, ntstatus.LogonFailure, codes.Unauthenticated},
		"wrapped":     {fmt.Errorf("while looking: %w", inner), ntstatus.NoSuchUser, codes.NotFound},
		"statusCause": {&ntstatus.Error{Op: "a.B", Status: ntstatus.AccessDenied, Err: ntstatus.PrivilegeNotHeld}, ntstatus.AccessDenied, codes.PermissionDenied},
		"information": {ntstatus.New("a.B", "", ntstatus.Timeout), ntstatus.Timeout, codes.DeadlineExceeded},
		"notUTF8":     {ntstatus.New("a.B", "\xff\xfe", ntstatus.NotFound), ntstatus.NotFound, codes.NotFound},
		"unknown":     {ntstatus.New("a.B", "", 0xC0990001), 0xC0990001, codes.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, &library{
				echo: func(context.Context, *testpb.Book) (*testpb.Book, error) { return nil, c.err },
				list: func(*testpb.Book, grpc.ServerStreamingServer[testpb.Book]) error { return c.err },
			}, config{})
			_, err := f.client.Echo(short(t), &testpb.Book{})
			list, serr := f.client.List(short(t), &testpb.Book{})
			require.NoError(t, serr)
			_, serr = list.Recv()
			for _, err := range []error{err, serr} {
				require.ErrorIs(t, err, c.status)
				require.Equal(t, c.status, ntstatus.Of(err))
				require.Equal(t, c.code, status.Code(err))
				var want, got *ntstatus.Error
				if errors.As(c.err, &want) && name != "notUTF8" {
					require.ErrorAs(t, err, &got)
					require.Equal(t, want.Error(), got.Error())
					require.Equal(t, want.Op, got.Op)
				}
			}
		})
	}
	t.Run("a cause that is an error keeps its status", func(t *testing.T) {
		f := serve(t, &library{echo: func(context.Context, *testpb.Book) (*testpb.Book, error) {
			return nil, ntstatus.Wrap("scm.Start", "svc", &ntstatus.Error{Op: "x.Y", Status: ntstatus.AccessDenied, Err: &ntstatus.Denial{Object: "o", Right: "R", Decision: 9}})
		}}, config{})
		_, err := f.client.Echo(short(t), &testpb.Book{})
		var denial *ntstatus.Denial
		require.ErrorAs(t, err, &denial)
		require.Equal(t, &ntstatus.Denial{Object: "o", Right: "R", Decision: 9}, denial)
	})
	t.Run("a chain without end", func(t *testing.T) {
		err := error(inner)
		for range 100 {
			err = &ntstatus.Error{Op: "a.B", Status: ntstatus.DiskFull, Err: err}
		}
		f := serve(t, &library{echo: func(context.Context, *testpb.Book) (*testpb.Book, error) { return nil, err }}, config{})
		_, got := f.client.Echo(short(t), &testpb.Book{})
		require.ErrorIs(t, got, ntstatus.DiskFull)
	})
}

func TestCallerIsInTheContext(t *testing.T) {
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		caller, ok := rpc.Caller(ctx)
		p, _ := peer.FromContext(ctx)
		if !ok || p.Addr.Network() != "alpc" {
			return nil, ntstatus.New("test", "", ntstatus.NoToken)
		}
		derived, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if again, _ := rpc.Caller(derived); again != caller {
			return nil, ntstatus.New("test", "", ntstatus.InvalidCID)
		}
		return &testpb.Book{Name: caller.Token.User.SID.String(), Number: int64(caller.SessionID)}, nil
	}}, config{})
	b, err := f.client.Echo(short(t), &testpb.Book{})
	require.NoError(t, err)
	require.Equal(t, "S-1-22-1-4711", b.Name)
	require.EqualValues(t, 3, b.Number)
	_, ok := rpc.Caller(context.Background())
	require.False(t, ok)
}

func TestPanicIsAnInternalErrorAndTheServerLives(t *testing.T) {
	f := serve(t, &library{
		echo: func(_ context.Context, b *testpb.Book) (*testpb.Book, error) {
			switch b.Name {
			case "panic":
				panic("boom")
			case "exit":
				runtime.Goexit()
			}
			return b, nil
		},
		list: func(*testpb.Book, grpc.ServerStreamingServer[testpb.Book]) error { panic("boom") },
	}, config{})
	for _, name := range []string{"panic", "exit"} {
		_, err := f.client.Echo(short(t), &testpb.Book{Name: name})
		require.ErrorIs(t, err, ntstatus.InternalError)
		require.Equal(t, codes.Internal, status.Code(err))
	}
	list, err := f.client.List(short(t), &testpb.Book{})
	require.NoError(t, err)
	_, err = list.Recv()
	require.ErrorIs(t, err, ntstatus.InternalError)
	_, err = f.client.Echo(short(t), &testpb.Book{})
	require.NoError(t, err)
}

func TestServerDeathWakesEveryWaiter(t *testing.T) {
	entered := make(chan struct{}, 100)
	f := serve(t, &library{
		echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
			entered <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		},
		chat: func(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
			entered <- struct{}{}
			<-s.Context().Done()
			return nil
		},
	}, config{})
	errs := make(chan error, 100)
	for range 20 {
		go func() {
			_, err := f.client.Echo(context.Background(), &testpb.Book{})
			errs <- err
		}()
		go func() {
			chat, err := f.client.Chat(context.Background())
			if err == nil {
				_, err = chat.Recv()
			}
			errs <- err
		}()
	}
	for range 40 {
		<-entered
	}
	f.ports[1].Close()
	for range 40 {
		select {
		case err := <-errs:
			require.ErrorIs(t, err, ntstatus.PortDisconnected)
			require.Equal(t, codes.Unavailable, status.Code(err))
		case <-time.After(5 * time.Second):
			require.Fail(t, "a caller hangs")
		}
	}
	_, err := f.client.Echo(short(t), &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.PortDisconnected)
}

func TestClientDeathCancelsItsCalls(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan struct{}, 2)
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		close(entered)
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	}}, config{})
	go f.client.Echo(context.Background(), &testpb.Book{})
	<-entered
	f.ports[0].Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		require.Fail(t, "the handler does not notice")
	}
	require.NoError(t, <-f.served)
	f.served <- nil
}

func TestCallsOfOneConnectionRunBesideEachOther(t *testing.T) {
	var met sync.WaitGroup
	met.Add(8)
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		met.Done()
		met.Wait()
		return b, nil
	}}, config{})
	errs := make(chan error, 8)
	for range 8 {
		go func() {
			_, err := f.client.Echo(short(t), &testpb.Book{})
			errs <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
}

func TestMoreCallsThanAllowedAreTooBusy(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		if b.Name == "wait" {
			entered <- struct{}{}
			<-release
		}
		return b, nil
	}}, config{options: rpc.ServerOptions{MaxCalls: 4}})
	errs := make(chan error, 4)
	for range 4 {
		go func() {
			_, err := f.client.Echo(short(t), &testpb.Book{Name: "wait"})
			errs <- err
		}()
	}
	for range 4 {
		<-entered
	}
	require.Eventually(t, func() bool {
		_, err := f.client.Echo(short(t), &testpb.Book{})
		return errors.Is(err, ntstatus.RPCServerTooBusy)
	}, 5*time.Second, time.Millisecond)
	close(release)
	for range 4 {
		require.NoError(t, <-errs)
	}
	require.Eventually(t, func() bool {
		_, err := f.client.Echo(short(t), &testpb.Book{})
		return err == nil
	}, 5*time.Second, time.Millisecond)
}

func TestGracefulStopLetsCallsFinish(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{})
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		if b.Name == "wait" {
			close(entered)
			<-release
		}
		return b, nil
	}}, config{})
	errs := make(chan error, 1)
	go func() {
		_, err := f.client.Echo(short(t), &testpb.Book{Name: "wait"})
		errs <- err
	}()
	<-entered
	stopped := make(chan struct{})
	go func() {
		f.server.GracefulStop(short(t))
		close(stopped)
	}()
	require.Eventually(t, func() bool {
		_, err := f.client.Echo(short(t), &testpb.Book{})
		return errors.Is(err, ntstatus.ShutdownInProgress)
	}, 5*time.Second, time.Millisecond)
	close(release)
	require.NoError(t, <-errs)
	<-stopped
	_, err := f.client.Echo(short(t), &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.PortDisconnected)
}

func TestCallOptionsThatMeanNothingHereAreRefused(t *testing.T) {
	f := serve(t, still(), config{})
	_, err := f.client.Echo(short(t), &testpb.Book{}, grpc.PerRPCCredentials(nil))
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	_, err = f.client.Echo(short(t), &testpb.Book{}, grpc.CallContentSubtype("json"))
	require.Equal(t, codes.Unimplemented, status.Code(err))
	var finished error
	_, err = f.client.Echo(short(t), &testpb.Book{Text: make([]byte, 100)}, grpc.MaxCallRecvMsgSize(50), grpc.OnFinish(func(err error) { finished = err }))
	require.ErrorIs(t, err, ntstatus.PortMessageTooLong)
	require.Equal(t, err, finished)
}

// Long messages share memory between calls: what one caller gets must be its own, and stay so while others call.
func TestLongMessagesDoNotMix(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run(gear.String(), func(t *testing.T) {
			f := serve(t, still(), config{gear: gear})
			errs := make(chan error, 8)
			for i := range cap(errs) {
				go func() {
					var kept [][]byte
					for n := range 12 {
						want := bytes.Repeat([]byte{byte(16*i + n)}, 5000+n*n*1500)
						got, err := f.client.Echo(short(t), &testpb.Book{Text: want})
						if err != nil {
							errs <- err
							return
						}
						kept = append(kept, want, got.Text)
					}
					for n := 0; n < len(kept); n += 2 {
						if !bytes.Equal(kept[n], kept[n+1]) {
							errs <- fmt.Errorf("caller %d got another's message %d", i, n/2)
							return
						}
					}
					errs <- nil
				}()
			}
			for range cap(errs) {
				require.NoError(t, <-errs)
			}
		})
	}
}
