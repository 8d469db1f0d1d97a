// Command client calls the hello server by its generated stub, as any gRPC service is called.
package main

import (
	"context"
	"fmt"
	"os"

	"sallyport/alpc"
	"sallyport/examples/hello/hellopb"
	"sallyport/rpc"
)

func main() {
	if err := greet(context.Background(), "you"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func greet(ctx context.Context, name string) error {
	sys, err := alpc.Attach(ctx, alpc.Options{})
	if err != nil {
		return err
	}
	defer sys.Close()
	conn, err := rpc.Dial(ctx, sys, `\BaseNamedObjects\hello`)
	if err != nil {
		return err
	}
	defer conn.Close()
	reply, err := hellopb.NewGreeterClient(conn).Greet(ctx, &hellopb.GreetRequest{Name: name})
	if err != nil {
		return err
	}
	fmt.Println(reply.Text)
	return nil
}
