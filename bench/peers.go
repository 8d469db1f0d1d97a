package main

import (
	"context"
	"net"
	"net/http"
	"net/rpc"
	"runtime"

	"connectrpc.com/connect"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcserver"

	"sallyport/bench/benchpb"
)

const procedure = "/sallyport.bench.Bench/Echo"

// gRPC over a Unix socket, with the workers that its documentation advises for many short calls.
func serveGRPC(address string, ready func()) error {
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.NumStreamWorkers(uint32(runtime.NumCPU())))
	benchpb.RegisterBenchServer(s, echo{})
	ready()
	return s.Serve(l)
}

func dialGRPC(_ context.Context, t *target) (*client, error) {
	conn, err := grpc.NewClient("unix:"+t.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &client{close: conn.Close, caller: stubCaller(benchpb.NewBenchClient(conn))}, nil
}

// Payload and Echoer are net/rpc's, which wants exported names.
type (
	Payload struct{ Data []byte }
	Echoer  struct{}
)

// Echo returns what it is sent.
func (Echoer) Echo(request, reply *Payload) error {
	*reply = *request
	return nil
}

func serveNetRPC(address string, ready func()) error {
	s := rpc.NewServer()
	if err := s.Register(Echoer{}); err != nil {
		return err
	}
	return accept("unix", address, ready, func(conn *net.UnixConn) { s.ServeConn(conn) })
}

func dialNetRPC(_ context.Context, t *target) (*client, error) {
	c, err := rpc.Dial("unix", t.address)
	if err != nil {
		return nil, err
	}
	return &client{close: c.Close, caller: func(size int) func(context.Context) error {
		request := &Payload{make([]byte, size)}
		return func(context.Context) error {
			var reply Payload
			if err := c.Call("Echoer.Echo", request, &reply); err != nil {
				return err
			}
			return whole(len(reply.Data), size)
		}
	}}, nil
}

// echoProto makes a caller of one that calls with protobuf messages.
func echoProto(call func(ctx context.Context, request, reply *benchpb.Payload) error) func(int) func(context.Context) error {
	return func(size int) func(context.Context) error {
		request := &benchpb.Payload{Data: make([]byte, size)}
		return func(ctx context.Context) error {
			var reply benchpb.Payload
			if err := call(ctx, request, &reply); err != nil {
				return err
			}
			return whole(len(reply.Data), size)
		}
	}
}

func serveTTRPC(address string, ready func()) error {
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	s, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	s.RegisterService("bench", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Echo": func(_ context.Context, unmarshal func(any) error) (any, error) {
			var request benchpb.Payload
			if err := unmarshal(&request); err != nil {
				return nil, err
			}
			return &request, nil
		},
	}})
	ready()
	return s.Serve(context.Background(), l)
}

func dialTTRPC(_ context.Context, t *target) (*client, error) {
	conn, err := net.Dial("unix", t.address)
	if err != nil {
		return nil, err
	}
	c := ttrpc.NewClient(conn)
	return &client{close: c.Close, caller: echoProto(func(ctx context.Context, request, reply *benchpb.Payload) error {
		return c.Call(ctx, "bench", "Echo", request, reply)
	})}, nil
}

// protoEncoding is how drpc is told of protobuf.
type protoEncoding struct{}

func (protoEncoding) Marshal(m drpc.Message) ([]byte, error) { return proto.Marshal(m.(proto.Message)) }
func (protoEncoding) Unmarshal(b []byte, m drpc.Message) error {
	return proto.Unmarshal(b, m.(proto.Message))
}

type drpcEcho struct{}

func (drpcEcho) HandleRPC(stream drpc.Stream, _ string) error {
	var request benchpb.Payload
	if err := stream.MsgRecv(&request, protoEncoding{}); err != nil {
		return err
	}
	return stream.MsgSend(&request, protoEncoding{})
}

func serveDRPC(address string, ready func()) error {
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	ready()
	return drpcserver.New(drpcEcho{}).Serve(context.Background(), l)
}

func dialDRPC(_ context.Context, t *target) (*client, error) {
	conn, err := net.Dial("unix", t.address)
	if err != nil {
		return nil, err
	}
	c := drpcconn.New(conn)
	return &client{close: c.Close, caller: echoProto(func(ctx context.Context, request, reply *benchpb.Payload) error {
		return c.Invoke(ctx, procedure, protoEncoding{}, request, reply)
	})}, nil
}

func plainHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

func serveConnect(address string, ready func()) error {
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	handler := connect.NewUnaryHandler(procedure, func(_ context.Context, r *connect.Request[benchpb.Payload]) (*connect.Response[benchpb.Payload], error) {
		return connect.NewResponse(r.Msg), nil
	})
	s := &http.Server{Handler: handler, Protocols: plainHTTP2()}
	ready()
	return s.Serve(l)
}

func dialConnect(_ context.Context, t *target) (*client, error) {
	way := &http.Transport{Protocols: plainHTTP2(), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", t.address)
	}}
	c := connect.NewClient[benchpb.Payload, benchpb.Payload](&http.Client{Transport: way}, "http://bench"+procedure)
	shut := func() error {
		way.CloseIdleConnections()
		return nil
	}
	return &client{close: shut, caller: func(size int) func(context.Context) error {
		request := &benchpb.Payload{Data: make([]byte, size)}
		return func(ctx context.Context) error {
			reply, err := c.CallUnary(ctx, connect.NewRequest(request))
			if err != nil {
				return err
			}
			return whole(len(reply.Msg.Data), size)
		}
	}}, nil
}
