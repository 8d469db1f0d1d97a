package rpc_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	interop "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/rpc"
)

const initialKey, trailingKey = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"

// interopServer is the server of gRPC's interoperability description, the part that the cases below need.
type interopServer struct {
	interop.UnimplementedTestServiceServer
}

func echoMetadata(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(initialKey); len(v) > 0 {
		if err := grpc.SetHeader(ctx, metadata.Pairs(initialKey, v[0])); err != nil {
			return err
		}
	}
	if v := md.Get(trailingKey); len(v) > 0 {
		return grpc.SetTrailer(ctx, metadata.Pairs(trailingKey, v[0]))
	}
	return nil
}

func payload(size int32) *interop.Payload { return &interop.Payload{Body: make([]byte, size)} }

func (interopServer) EmptyCall(context.Context, *interop.Empty) (*interop.Empty, error) {
	return &interop.Empty{}, nil
}

func (interopServer) UnaryCall(ctx context.Context, r *interop.SimpleRequest) (*interop.SimpleResponse, error) {
	if err := echoMetadata(ctx); err != nil {
		return nil, err
	}
	if st := r.ResponseStatus; st.GetCode() != 0 {
		return nil, status.Error(codes.Code(st.Code), st.Message)
	}
	return &interop.SimpleResponse{Payload: payload(r.ResponseSize)}, nil
}

func (interopServer) StreamingOutputCall(r *interop.StreamingOutputCallRequest, s grpc.ServerStreamingServer[interop.StreamingOutputCallResponse]) error {
	for _, p := range r.ResponseParameters {
		if err := s.Send(&interop.StreamingOutputCallResponse{Payload: payload(p.Size)}); err != nil {
			return err
		}
	}
	return nil
}

func (interopServer) StreamingInputCall(s grpc.ClientStreamingServer[interop.StreamingInputCallRequest, interop.StreamingInputCallResponse]) error {
	var sum int32
	for {
		r, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&interop.StreamingInputCallResponse{AggregatedPayloadSize: sum})
		}
		if err != nil {
			return err
		}
		sum += int32(len(r.Payload.GetBody()))
	}
}

func (interopServer) FullDuplexCall(s grpc.BidiStreamingServer[interop.StreamingOutputCallRequest, interop.StreamingOutputCallResponse]) error {
	if err := echoMetadata(s.Context()); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if st := r.ResponseStatus; st.GetCode() != 0 {
			return status.Error(codes.Code(st.Code), st.Message)
		}
		for _, p := range r.ResponseParameters {
			time.Sleep(time.Duration(p.IntervalUs) * time.Microsecond)
			if err := s.Send(&interop.StreamingOutputCallResponse{Payload: payload(p.Size)}); err != nil {
				return err
			}
		}
	}
}

func want(size int32) *interop.StreamingOutputCallRequest {
	return &interop.StreamingOutputCallRequest{ResponseParameters: []*interop.ResponseParameters{{Size: size}}, Payload: payload(size / 2)}
}

// interopCases are the published interoperability cases that fit a ClientConnInterface, by their published names.
func interopCases() map[string]func(*testing.T, grpc.ClientConnInterface) {
	service := func(cc grpc.ClientConnInterface) interop.TestServiceClient { return interop.NewTestServiceClient(cc) }
	outcome := func(t *testing.T, cc grpc.ClientConnInterface, code codes.Code, text string) {
		echo := &interop.EchoStatus{Code: int32(code), Message: text}
		_, err := service(cc).UnaryCall(short(t), &interop.SimpleRequest{ResponseStatus: echo})
		require.Equal(t, code, status.Code(err))
		require.Equal(t, text, status.Convert(err).Message())
		stream, err := service(cc).FullDuplexCall(short(t))
		require.NoError(t, err)
		require.NoError(t, stream.Send(&interop.StreamingOutputCallRequest{ResponseStatus: echo}))
		require.NoError(t, stream.CloseSend())
		_, err = stream.Recv()
		require.Equal(t, code, status.Code(err))
		require.Equal(t, text, status.Convert(err).Message())
	}
	return map[string]func(*testing.T, grpc.ClientConnInterface){
		"empty_unary": func(t *testing.T, cc grpc.ClientConnInterface) {
			_, err := service(cc).EmptyCall(short(t), &interop.Empty{})
			require.NoError(t, err)
		},
		"large_unary": func(t *testing.T, cc grpc.ClientConnInterface) {
			r, err := service(cc).UnaryCall(short(t), &interop.SimpleRequest{ResponseSize: 314159, Payload: payload(271828)})
			require.NoError(t, err)
			require.Len(t, r.Payload.Body, 314159)
		},
		"client_streaming": func(t *testing.T, cc grpc.ClientConnInterface) {
			stream, err := service(cc).StreamingInputCall(short(t))
			require.NoError(t, err)
			var sum int32
			for _, size := range []int32{27182, 8, 1828, 45904} {
				require.NoError(t, stream.Send(&interop.StreamingInputCallRequest{Payload: payload(size)}))
				sum += size
			}
			r, err := stream.CloseAndRecv()
			require.NoError(t, err)
			require.Equal(t, sum, r.AggregatedPayloadSize)
		},
		"server_streaming": func(t *testing.T, cc grpc.ClientConnInterface) {
			r := &interop.StreamingOutputCallRequest{}
			sizes := []int32{31415, 9, 2653, 58979}
			for _, size := range sizes {
				r.ResponseParameters = append(r.ResponseParameters, &interop.ResponseParameters{Size: size})
			}
			stream, err := service(cc).StreamingOutputCall(short(t), r)
			require.NoError(t, err)
			for _, size := range sizes {
				m, err := stream.Recv()
				require.NoError(t, err)
				require.Len(t, m.Payload.Body, int(size))
			}
			_, err = stream.Recv()
			require.Equal(t, io.EOF, err)
		},
		"ping_pong": func(t *testing.T, cc grpc.ClientConnInterface) {
			stream, err := service(cc).FullDuplexCall(short(t))
			require.NoError(t, err)
			for _, size := range []int32{31415, 9, 2653, 58979} {
				require.NoError(t, stream.Send(want(size)))
				m, err := stream.Recv()
				require.NoError(t, err)
				require.Len(t, m.Payload.Body, int(size))
			}
			require.NoError(t, stream.CloseSend())
			_, err = stream.Recv()
			require.Equal(t, io.EOF, err)
		},
		"empty_stream": func(t *testing.T, cc grpc.ClientConnInterface) {
			stream, err := service(cc).FullDuplexCall(short(t))
			require.NoError(t, err)
			require.NoError(t, stream.CloseSend())
			_, err = stream.Recv()
			require.Equal(t, io.EOF, err)
		},
		"timeout_on_sleeping_server": func(t *testing.T, cc grpc.ClientConnInterface) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			stream, err := service(cc).FullDuplexCall(ctx)
			if err == nil {
				_ = stream.Send(&interop.StreamingOutputCallRequest{ResponseParameters: []*interop.ResponseParameters{{IntervalUs: 10000}}})
				_, err = stream.Recv()
			}
			require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		},
		"cancel_after_begin": func(t *testing.T, cc grpc.ClientConnInterface) {
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(short(t), "k", "v"))
			stream, err := service(cc).StreamingInputCall(ctx)
			require.NoError(t, err)
			cancel()
			_, err = stream.CloseAndRecv()
			require.Equal(t, codes.Canceled, status.Code(err))
		},
		"cancel_after_first_response": func(t *testing.T, cc grpc.ClientConnInterface) {
			ctx, cancel := context.WithCancel(short(t))
			defer cancel()
			stream, err := service(cc).FullDuplexCall(ctx)
			require.NoError(t, err)
			require.NoError(t, stream.Send(want(31415)))
			_, err = stream.Recv()
			require.NoError(t, err)
			cancel()
			_, err = stream.Recv()
			require.Equal(t, codes.Canceled, status.Code(err))
		},
		"custom_metadata": func(t *testing.T, cc grpc.ClientConnInterface) {
			ctx := metadata.AppendToOutgoingContext(short(t), initialKey, "initial", trailingKey, "\x0a\x0b\x0a\x0b")
			var header, trailer metadata.MD
			_, err := service(cc).UnaryCall(ctx, &interop.SimpleRequest{ResponseSize: 1}, grpc.Header(&header), grpc.Trailer(&trailer))
			require.NoError(t, err)
			require.Equal(t, []string{"initial"}, header.Get(initialKey))
			require.Equal(t, []string{"\x0a\x0b\x0a\x0b"}, trailer.Get(trailingKey))
			stream, err := service(cc).FullDuplexCall(ctx)
			require.NoError(t, err)
			require.NoError(t, stream.Send(want(1)))
			header, err = stream.Header()
			require.NoError(t, err)
			require.Equal(t, []string{"initial"}, header.Get(initialKey))
			_, err = stream.Recv()
			require.NoError(t, err)
			require.NoError(t, stream.CloseSend())
			_, err = stream.Recv()
			require.Equal(t, io.EOF, err)
			require.Equal(t, []string{"\x0a\x0b\x0a\x0b"}, stream.Trailer().Get(trailingKey))
		},
		"status_code_and_message": func(t *testing.T, cc grpc.ClientConnInterface) {
			outcome(t, cc, codes.Unknown, "test status message")
		},
		"special_status_message": func(t *testing.T, cc grpc.ClientConnInterface) {
			outcome(t, cc, codes.Unknown, "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n")
		},
		"unimplemented_service": func(t *testing.T, cc grpc.ClientConnInterface) {
			_, err := interop.NewUnimplementedServiceClient(cc).UnimplementedCall(short(t), &interop.Empty{})
			require.Equal(t, codes.Unimplemented, status.Code(err))
		},
		"unimplemented_method": func(t *testing.T, cc grpc.ClientConnInterface) {
			err := cc.Invoke(short(t), "/grpc.testing.TestService/UnimplementedCall", &interop.Empty{}, &interop.Empty{})
			require.Equal(t, codes.Unimplemented, status.Code(err))
		},
		"health_check": func(t *testing.T, cc grpc.ClientConnInterface) {
			r, err := healthpb.NewHealthClient(cc).Check(short(t), &healthpb.HealthCheckRequest{})
			require.NoError(t, err)
			require.Equal(t, healthpb.HealthCheckResponse_SERVING, r.Status)
		},
		"reflection_list_services": func(t *testing.T, cc grpc.ClientConnInterface) {
			stream, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(short(t))
			require.NoError(t, err)
			require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
			r, err := stream.Recv()
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(r.GetListServicesResponse().GetService()), 3)
		},
	}
}

func TestInteroperabilityCases(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		f := serve(t, still(), config{gear: gear, also: func(s *rpc.Server) {
			interop.RegisterTestServiceServer(s, interopServer{})
			healthpb.RegisterHealthServer(s, health.NewServer())
			i := rpc.Interface{SDDL: libraryGuard, Rights: map[string]rpc.Right{rpc.EveryMethod: {Name: "TEST", Mask: 1}}}
			s.Secure("grpc.testing.TestService", i)
			s.Secure("grpc.health.v1.Health", i)
			s.OfferReflection(i)
		}})
		for name, run := range interopCases() {
			t.Run(gear.String()+"/"+name, func(t *testing.T) { run(t, f.conn) })
		}
	}
}

// The published list says which cases fit; none of those may be missing here.
func TestInteroperabilityListIsCovered(t *testing.T) {
	dir := os.Getenv("SALLYPORT_CASES")
	if dir == "" {
		t.Skip("SALLYPORT_CASES is not set: it names a folder with cases that can't be part of this repository")
	}
	b, err := os.ReadFile(filepath.Join(dir, "grpc_interop.json"))
	require.NoError(t, err)
	var list struct {
		Cases []struct {
			Case   string
			Usable bool `json:"usable_over_ClientConnInterface"`
		}
	}
	require.NoError(t, json.Unmarshal(b, &list))
	require.NotEmpty(t, list.Cases)
	for _, c := range list.Cases {
		if c.Usable {
			require.Contains(t, interopCases(), c.Case)
		}
	}
}
