package alpc

import (
	"context"
)

// Gear is how a connection carries its messages.
type Gear uint8

// What we chose.
const (
	GearSocket Gear = 0 // the socket: costs nothing when idle
	GearShared Gear = 1 // rings in shared memory
)

// Counters are a connection's live counters: monotonic, but for Pending.
type Counters struct {
	MessagesIn, MessagesOut uint64
	BytesIn, BytesOut       uint64
	Pending                 uint64 // calls that wait for their reply
}

// Port is one end of a connection. It is safe for concurrent use.
type Port struct {
	// Context is the owner's cookie, NT's PortContext; the package never touches it.
	Context any
}

func (p *Port) Call(ctx context.Context, m *Message) (*Message, error)   { panic(0) }
func (p *Port) Send(ctx context.Context, m *Message) error               { panic(0) }
func (p *Port) Receive(ctx context.Context) (*Message, error)            { panic(0) }
func (p *Port) Reply(ctx context.Context, request, reply *Message) error { panic(0) }
func (p *Port) Peer() *Client                                            { panic(0) }
func (p *Port) MaxMessageLength() int                                    { panic(0) }
func (p *Port) ConnectData() []byte                                      { panic(0) }
func (p *Port) Done() <-chan struct{}                                    { panic(0) }
func (p *Port) Err() error                                               { panic(0) }
func (p *Port) Close() error                                             { panic(0) }
func (p *Port) Shift(ctx context.Context, g Gear) error                  { panic(0) }
func (p *Port) Gear() Gear                                               { panic(0) }
func (p *Port) Stats() Counters                                          { panic(0) }
