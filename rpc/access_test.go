package rpc_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
	"sallyport/security"
)

func denied(t *testing.T, err error) *ntstatus.Denial {
	t.Helper()
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	return denial
}

func TestMethodDeniedByTheInterfacesDescriptor(t *testing.T) {
	called := false
	f := serve(t, &library{echo: func(_ context.Context, b *testpb.Book) (*testpb.Book, error) { called = true; return b, nil }},
		config{guard: rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x3;;;BA)", Name: `\Library`}})
	_, err := f.client.Echo(short(t), &testpb.Book{})
	require.Equal(t, &ntstatus.Denial{Object: `\Library`, Right: "LIBRARY_READ", Decision: 1}, denied(t, err))
	list, err := f.client.List(short(t), &testpb.Book{Number: 1})
	require.NoError(t, err)
	_, err = list.Recv()
	denied(t, err)
	chat, err := f.client.Chat(short(t))
	require.NoError(t, err)
	_, err = chat.Recv()
	denied(t, err)
	require.ErrorIs(t, chat.Send(&testpb.Book{}), io.EOF)
	require.False(t, called)
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Len(t, f.denials, 3)
	require.Equal(t, "/sallyport.rpc.test.Library/Echo", f.denials[0].Op)
	require.EqualValues(t, 7, f.denials[0].Attachment)
	require.NotEmpty(t, f.denials[0].Trace)
}

func TestRightOnTheObjectThatTheRequestNames(t *testing.T) {
	lib := still()
	f := serve(t, lib, config{})
	_, err := f.client.Write(short(t), &testpb.Book{Name: "open"})
	require.NoError(t, err)
	require.EqualValues(t, 1, lib.written.Load())

	_, err = f.client.Write(short(t), &testpb.Book{Name: "locked"})
	forbidden := denied(t, err)
	require.Equal(t, &ntstatus.Denial{Object: "locked", Right: "BOOK_WRITE", Decision: 1}, forbidden)
	lockedText := err.Error()

	_, err = f.client.Write(short(t), &testpb.Book{Name: "nosuch"})
	require.Equal(t, &ntstatus.Denial{Object: "nosuch", Right: "BOOK_WRITE", Decision: 2}, denied(t, err))
	require.Equal(t, len(lockedText), len(err.Error()), "an unknown name reads like a forbidden one")

	_, err = f.client.Write(short(t), &testpb.Book{Name: "broken"})
	require.ErrorIs(t, err, ntstatus.FileCorrupt)
	require.EqualValues(t, 1, lib.written.Load())
}

func TestRightOnTheObjectThatTheFirstMessageOfAStreamNames(t *testing.T) {
	lib := still()
	f := serve(t, lib, config{})
	ok, err := f.client.WriteMany(short(t))
	require.NoError(t, err)
	for _, name := range []string{"open", "second"} {
		require.NoError(t, ok.Send(&testpb.Shelf{Book: &testpb.Book{Name: name}}))
		b, err := ok.Recv()
		require.NoError(t, err)
		require.Equal(t, name, b.Name)
	}
	require.NoError(t, ok.CloseSend())
	_, err = ok.Recv()
	require.Equal(t, io.EOF, err)

	for _, first := range []*testpb.Shelf{{Book: &testpb.Book{Name: "locked"}}, {}} {
		no, err := f.client.WriteMany(short(t))
		require.NoError(t, err)
		require.NoError(t, no.Send(first))
		_, err = no.Recv()
		denied(t, err)
	}
	nothing, err := f.client.WriteMany(short(t))
	require.NoError(t, err)
	require.NoError(t, nothing.CloseSend())
	_, err = nothing.Recv()
	require.ErrorIs(t, err, ntstatus.InvalidParameter)
	require.EqualValues(t, 1, lib.written.Load())
}

func TestACallerWithoutATokenGetsNothing(t *testing.T) {
	f := serve(t, still(), config{pair: [2]alpc.PairOptions{{}, {Peer: &alpc.Client{}}}})
	_, err := f.client.Echo(short(t), &testpb.Book{})
	denied(t, err)
}

type unguarded struct {
	testpb.UnimplementedUnguardedServer
}

func TestMethodWithoutARightIsRefusedAtRegistration(t *testing.T) {
	port := func() *alpc.Port {
		a, b, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { a.Close() })
		return b
	}
	guard := rpc.Interface{SDDL: libraryGuard}
	for name, c := range map[string]struct {
		set  func(*rpc.Server)
		want string
	}{
		"none declared": {func(s *rpc.Server) {
			testpb.RegisterUnguardedServer(s, unguarded{})
			s.Secure("sallyport.rpc.test.Unguarded", guard)
		}, "sallyport.rpc.test.Unguarded/Anything: no right is declared"},
		"not secured": {func(s *rpc.Server) { testpb.RegisterUnguardedServer(s, unguarded{}) }, "not secured"},
		"no descriptor": {func(s *rpc.Server) {
			testpb.RegisterUnguardedServer(s, unguarded{})
			s.Secure("sallyport.rpc.test.Unguarded", rpc.Interface{Rights: map[string]rpc.Right{"Anything": {Name: "X", Mask: 1}}})
		}, "gave it no descriptor"},
		"no resolve": {func(s *rpc.Server) {
			testpb.RegisterLibraryServer(s, still())
			s.Secure("sallyport.rpc.test.Library", guard)
		}, "Library/Write: BOOK_WRITE is needed on an object, and there is no Resolve"},
		"bad descriptor": {func(s *rpc.Server) {
			testpb.RegisterUnguardedServer(s, unguarded{})
			s.Secure("sallyport.rpc.test.Unguarded", rpc.Interface{SDDL: "rubbish", Rights: map[string]rpc.Right{rpc.EveryMethod: {Name: "X", Mask: 1}}})
		}, "sallyport.rpc.test.Unguarded: "},
		"twice": {func(s *rpc.Server) {
			testpb.RegisterUnguardedServer(s, unguarded{})
			testpb.RegisterUnguardedServer(s, unguarded{})
		}, "registered twice"},
		"not registered": {func(s *rpc.Server) { s.Secure("no.Such", guard) }, "no.Such: secured, and not registered"},
		"wrong type":     {func(s *rpc.Server) { s.RegisterService(&testpb.Unguarded_ServiceDesc, 7) }, "int does not implement"},
	} {
		t.Run(name, func(t *testing.T) {
			s := rpc.NewServer(rpc.ServerOptions{})
			c.set(s)
			err := s.ServePort(context.Background(), port())
			require.ErrorIs(t, err, ntstatus.InvalidParameter)
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("given in one line", func(t *testing.T) {
		f := serve(t, still(), config{also: func(s *rpc.Server) {
			testpb.RegisterUnguardedServer(s, unguarded{})
			s.Secure("sallyport.rpc.test.Unguarded", rpc.Interface{SDDL: libraryGuard, Rights: map[string]rpc.Right{rpc.EveryMethod: {Name: "X", Mask: 1}}})
		}})
		_, err := testpb.NewUnguardedClient(f.conn).Anything(short(t), &testpb.Book{})
		require.Equal(t, codes.Unimplemented, status.Code(err))
	})
}

func TestStockHealthAndReflectionServeOverAPort(t *testing.T) {
	f := serve(t, still(), config{also: func(s *rpc.Server) {
		healthpb.RegisterHealthServer(s, health.NewServer())
		s.Secure("grpc.health.v1.Health", rpc.Interface{SDDL: libraryGuard, Rights: map[string]rpc.Right{rpc.EveryMethod: {Name: "HEALTH_READ", Mask: 1}}})
		s.OfferReflection(rpc.Interface{SDDL: libraryGuard})
	}})
	h, err := healthpb.NewHealthClient(f.conn).Check(short(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, h.Status)

	stream, err := reflectionpb.NewServerReflectionClient(f.conn).ServerReflectionInfo(short(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	r, err := stream.Recv()
	require.NoError(t, err)
	var names []string
	for _, s := range r.GetListServicesResponse().Service {
		names = append(names, s.Name)
	}
	require.Contains(t, names, "sallyport.rpc.test.Library")
	require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "sallyport.rpc.test.Library"}}))
	r, err = stream.Recv()
	require.NoError(t, err)
	require.NotEmpty(t, r.GetFileDescriptorResponse().FileDescriptorProto)
	require.NoError(t, stream.CloseSend())
	_, err = stream.Recv()
	require.Equal(t, io.EOF, err)
}

func TestUnknownServiceAndMethod(t *testing.T) {
	f := serve(t, still(), config{})
	err := f.conn.Invoke(short(t), "/no.Such/Method", &testpb.Book{}, &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.RPCUnknownIf)
	require.Equal(t, codes.Unimplemented, status.Code(err))
	err = f.conn.Invoke(short(t), "/sallyport.rpc.test.Library/None", &testpb.Book{}, &testpb.Book{})
	require.ErrorIs(t, err, ntstatus.RPCProcnumOutOfRange)
	require.Equal(t, codes.Unimplemented, status.Code(err))
	err = f.conn.Invoke(short(t), "/sallyport.rpc.test.Library/List", &testpb.Book{}, &testpb.Book{}) // of another kind
	require.Equal(t, codes.Unimplemented, status.Code(err))
}

func TestADenialThatCanNotBeReportedIsStillADenial(t *testing.T) {
	s := rpc.NewServer(rpc.ServerOptions{ReportDenial: func(context.Context, alpc.Denial) (uint64, error) { return 0, errors.New("no core") }})
	testpb.RegisterLibraryServer(s, still())
	sd, err := security.ParseSDDL("O:SYG:SYD:")
	require.NoError(t, err)
	s.Secure("sallyport.rpc.test.Library", rpc.Interface{Descriptor: sd, Resolve: shelf})
	a, b, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{Peer: &alpc.Client{Token: reader("x")}})
	require.NoError(t, err)
	go s.ServePort(context.Background(), b)
	defer s.Stop()
	conn := rpc.NewConn(a)
	defer conn.Close()
	_, err = testpb.NewLibraryClient(conn).Echo(short(t), &testpb.Book{})
	require.Zero(t, denied(t, err).Decision)
}
