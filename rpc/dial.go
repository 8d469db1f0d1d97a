package rpc

import (
	"context"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// Dial connects to the port of that name and returns a Conn that connects again when the port's server was replaced. One
// DialOptions at most. Statuses are those of System.Dial.
func Dial(ctx context.Context, sys *alpc.System, name string, o ...DialOptions) (*Conn, error) {
	c := newConn(o)
	c.dial = func(ctx context.Context) (*alpc.Port, error) { return sys.Dial(ctx, name, c.options.Port) }
	if _, err := c.connected(ctx); err != nil {
		return nil, ntstatus.Wrap("rpc.Dial", name, err)
	}
	return c, nil
}
