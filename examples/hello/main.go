// Command hello is the smallest subsystem server: one gRPC service behind a guarded port.
package main

import (
	"context"
	"fmt"
	"os"

	"sallyport/alpc"
	"sallyport/examples/hello/hellopb"
	"sallyport/rpc"
	"sallyport/subsys"
)

const port = `\BaseNamedObjects\hello`

type greeter struct {
	hellopb.UnimplementedGreeterServer
}

// Greet knows who calls from the port, not from the request. That the caller may call was checked before.
func (greeter) Greet(ctx context.Context, r *hellopb.GreetRequest) (*hellopb.GreetReply, error) {
	caller, _ := rpc.Caller(ctx)
	return &hellopb.GreetReply{Text: fmt.Sprintf("Hello %s, whom the core knows as %s.", r.Name, caller.Token.User.SID)}, nil
}

func run(ctx context.Context, env *subsys.Env) error {
	// Who may connect, and who may call: everybody who is authenticated (AU).
	l, err := env.System.Listen(ctx, port, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)", AutoAccept: true})
	if err != nil {
		return err
	}
	s := rpc.NewServer(rpc.ServerOptions{System: env.System, Logger: env.Logger})
	hellopb.RegisterGreeterServer(s, greeter{})
	s.Secure("hello.Greeter", rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;AU)"})
	s.OfferReflection(rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;AU)"})
	if err := env.Ready(); err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

func main() { os.Exit(subsys.Main(subsys.Server{Name: "hello", Run: run})) }
