package alpc_test

import (
	"context"
	"fmt"

	"sallyport/alpc"
)

// Two ends of a connection in one process, without a core: what a program's own tests use.
func ExamplePair() {
	client, server, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	ctx := context.Background()
	go func() {
		for {
			m, err := server.Receive(ctx)
			if err != nil {
				return
			}
			server.Reply(ctx, m, &alpc.Message{Data: append([]byte("hello, "), m.Data...)})
		}
	}()
	reply, err := client.Call(ctx, &alpc.Message{Data: []byte("world")})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s %s\n", reply.Type, reply.Data)
	// Output: REPLY hello, world
}
