package main

import (
	"context"
	"errors"

	"sallyport/alpc"
	"sallyport/alpc/core"
	"sallyport/bench/benchpb"
	"sallyport/rpc"
)

const (
	directory = `\BaseNamedObjects`
	plainPort = directory + `\bench-alpc`
	typedPort = directory + `\bench-rpc`

	// Whoever is authenticated may connect, and may call: both are checked, as everywhere.
	connectors = "D:(A;;0x1;;;AU)"
	callers    = "O:SYG:SYD:(A;;0x1;;;AU)"
)

// runCore is the core's process.
func runCore(path string) error {
	limits := core.DefaultLimits()
	limits.Connections *= 2
	c, err := core.Start(core.Options{Path: path, Limits: limits})
	if err != nil {
		return err
	}
	defer c.Close()
	control, err := c.Attach(core.SystemToken(), "bench")
	if err != nil {
		return err
	}
	system, err := alpc.Attach(context.Background(), alpc.Options{Control: control})
	if err != nil {
		return err
	}
	defer system.Close()
	if err := system.CreateDirectory(context.Background(), directory, "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;GRGX;;;WD)"); err != nil {
		return err
	}
	obey(func(order) (answer, error) { return answer{}, errors.New("not the core's business") })
	return nil
}

func listen(path, port string) (*alpc.System, *alpc.Listener, error) {
	system, err := alpc.Attach(context.Background(), alpc.Options{Path: path})
	if err != nil {
		return nil, nil, err
	}
	l, err := system.Listen(context.Background(), port, alpc.PortAttributes{SecurityDescriptor: connectors, AutoAccept: true, MaxConnections: 8192})
	return system, l, err
}

// serveAlpc echoes messages without types.
func serveAlpc(path string, ready func()) error {
	_, l, err := listen(path, plainPort)
	if err != nil {
		return err
	}
	ready()
	ctx := context.Background()
	for {
		request, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		go func() {
			p, err := request.Accept(ctx, nil)
			if err != nil {
				return
			}
			defer p.Close()
			for {
				m, err := p.Receive(ctx)
				if err != nil || p.Reply(ctx, m, &alpc.Message{Data: m.Data}) != nil {
					return
				}
			}
		}()
	}
}

func dialAlpc(gear alpc.Gear) func(context.Context, *target) (*client, error) {
	return func(ctx context.Context, t *target) (*client, error) {
		system, err := t.attached(ctx)
		if err != nil {
			return nil, err
		}
		p, err := system.Dial(ctx, plainPort, alpc.DialOptions{Gear: gear})
		if err != nil {
			return nil, err
		}
		return &client{close: p.Close, caller: func(size int) func(context.Context) error {
			m := &alpc.Message{Data: make([]byte, size)}
			return func(ctx context.Context) error {
				reply, err := p.Call(ctx, m)
				if err != nil {
					return err
				}
				return whole(len(reply.Data), size)
			}
		}}, nil
	}
}

type echo struct {
	benchpb.UnimplementedBenchServer
}

func (echo) Echo(_ context.Context, r *benchpb.Payload) (*benchpb.Payload, error) { return r, nil }

// serveRPC serves the generated service behind its access check.
func serveRPC(path string, ready func()) error {
	system, l, err := listen(path, typedPort)
	if err != nil {
		return err
	}
	s := rpc.NewServer(rpc.ServerOptions{System: system})
	benchpb.RegisterBenchServer(s, echo{})
	s.Secure(benchpb.Bench_ServiceDesc.ServiceName, rpc.Interface{SDDL: callers})
	ready()
	return s.Serve(context.Background(), l)
}

func dialRPC(gear alpc.Gear) func(context.Context, *target) (*client, error) {
	return func(ctx context.Context, t *target) (*client, error) {
		system, err := t.attached(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := rpc.Dial(ctx, system, typedPort, rpc.DialOptions{Port: alpc.DialOptions{Gear: gear}})
		if err != nil {
			return nil, err
		}
		return &client{close: conn.Close, caller: stubCaller(benchpb.NewBenchClient(conn))}, nil
	}
}

// attached returns the client process's attachment, which its connections share.
func (t *target) attached(ctx context.Context) (*alpc.System, error) {
	if t.system != nil {
		return t.system, nil
	}
	system, err := alpc.Attach(ctx, alpc.Options{Path: t.address})
	t.system = system
	return system, err
}

// stubCaller calls by the generated stub, over whatever carries it.
func stubCaller(stub benchpb.BenchClient) func(int) func(context.Context) error {
	return func(size int) func(context.Context) error {
		request := &benchpb.Payload{Data: make([]byte, size)}
		return func(ctx context.Context) error {
			reply, err := stub.Echo(ctx, request)
			if err != nil {
				return err
			}
			return whole(len(reply.Data), size)
		}
	}
}
