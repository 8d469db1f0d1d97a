package alpc

import (
	"context"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/channel"
	"sallyport/internal/fdtype"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

// Gear is how a connection carries its messages.
type Gear uint8

// What we chose.
const (
	GearSocket Gear = 0 // the socket: costs nothing when idle
	GearShared Gear = 1 // rings in shared memory
)

// String returns "socket" or "shared".
func (g Gear) String() string {
	if g == GearShared {
		return "shared"
	}
	return "socket"
}

// queueLen is how many messages wait for Receive at most; then the peer has to. With MaxMessageLength it bounds what a
// peer can pin here.
const queueLen = 32

// DefaultMaxPending is how many un-replied requests a port takes where nothing else is said.
const DefaultMaxPending = 256

// Counters are a connection's live counters. All but Pending only grow; bytes are those of whole frames.
type Counters struct {
	MessagesIn, MessagesOut uint64
	BytesIn, BytesOut       uint64
	Pending                 uint64 // requests received and not yet replied to
}

// Port is one end of a connection: NT's communication port. It is safe for concurrent use: any number of goroutines may
// Call, Send, Receive and Reply. Each message is sent whole or not at all, and messages of one sender arrive in order,
// whatever gear carries them.
//
// Nobody needs to Receive for replies to arrive. Who doesn't Receive makes the peer wait once the queue is full.
type Port struct {
	// Context is the owner's cookie, NT's PortContext; the package never touches it.
	Context any

	o    portOptions
	ch   *channel.Channel
	log  hclog.Logger
	name string // of the peer, for errors

	queue chan *Message // received and not yet given to Receive
	lead  chan struct{} // holds the right to read the ring while nobody uses it; the background holds it in the socket gear
	back  chan struct{} // gives the right back to the background: the direction shifted down

	mu       sync.Mutex
	outbound map[uint32]*call   // our requests that wait for a reply
	inbound  map[uint32]pending // the peer's requests that wait for ours
	rejected int                // refusals that wait to be sent
}

// call is a request of ours: its reply comes once, through reply, which holds one.
type call struct {
	callback uint32
	reply    chan channel.Frame
}

// calls is a cache without observable state. A call goes back when its reply has been taken or can't come any more.
var calls = sync.Pool{New: func() any { return &call{reply: make(chan channel.Frame, 1)} }}

// pending is a request of the peer's.
type pending struct {
	callback uint32
	canceled bool
}

// portOptions describe one end of a connection that somebody trusted made.
type portOptions struct {
	fd             int        // the socket; newPort takes it
	side           int        // 0 for the end that dialled, 1 for the one that listened
	peerPID        int        // who may send here; 0: the process of client.PIDFD, or without one this process
	client         *Client    // who the peer is; the port closes its PIDFD at the end
	maxMessage     int        // bytes of Data, both ways; 0: MaxMessageLength
	maxPending     int        // 0: DefaultMaxPending
	handleTypes    HandleType // what this end takes
	line           *channel.Line
	connectData    []byte
	logger         hclog.Logger
	requestSection func(context.Context) (*os.File, error) // asks for the section; a nil file means that attachSection brings it
	ended          func()                                  // called once when everything is given back; may be nil
	system         *System                                 // nil: no core made the connection
	senders        *senders                                // of a server's end: who speaks; else nil
}

// newPort makes an end of a connection and starts reading it.
func newPort(o portOptions) (*Port, error) {
	pid, err := peerPID(o)
	if err != nil {
		unixsock.CloseFDs([]int{o.fd})
		return nil, err
	}
	conn, err := unixsock.NewConn(o.fd)
	if err != nil {
		return nil, ntstatus.Wrap("alpc.Connect", "", err)
	}
	ch, err := channel.New(conn, channel.Options{Side: o.side, PeerPID: pid, Accepts: fdtype.Kind(o.handleTypes), Line: o.line})
	if err != nil {
		return nil, err
	}
	if o.maxMessage <= 0 || o.maxMessage > MaxMessageLength {
		o.maxMessage = MaxMessageLength
	}
	if o.maxPending <= 0 {
		o.maxPending = DefaultMaxPending
	}
	if o.logger == nil {
		o.logger = hclog.NewNullLogger()
	}
	p := &Port{
		o: o, ch: ch, log: o.logger, name: o.client.name(),
		queue:    make(chan *Message, queueLen),
		lead:     make(chan struct{}, 1),
		back:     make(chan struct{}, 1),
		outbound: make(map[uint32]*call),
		inbound:  make(map[uint32]pending),
	}
	go p.background()
	return p, nil
}

func peerPID(o portOptions) (int, error) {
	switch {
	case o.peerPID != 0:
		return o.peerPID, nil
	case o.client == nil || o.client.PIDFD == nil:
		return os.Getpid(), nil
	}
	pid, err := pidfd.PID(o.client.PIDFD)
	if err != nil {
		return 0, ntstatus.Errorf("alpc.Connect", "", ntstatus.PortDisconnected, "the peer is gone or in another pid namespace: %w", err)
	}
	return pid, nil
}

// attachSection hands the port the section of its connection, which it takes.
func (p *Port) attachSection(f *os.File) error { return p.ch.Attach(f) }

// Peer returns who is on the other side, as it was when the connection was made. The value is shared: nobody changes it.
func (p *Port) Peer() *Client { return p.o.client }

// MaxMessageLength returns the most bytes of Data in one message, either way.
func (p *Port) MaxMessageLength() int { return p.o.maxMessage }

// ConnectData returns the data that the peer gave with its connect or accept. The caller doesn't change it.
func (p *Port) ConnectData() []byte { return p.o.connectData }

// Done is closed when the connection has ended: closed by either side, the peer dead, or the protocol broken.
func (p *Port) Done() <-chan struct{} { return p.ch.Done() }

// Err returns nil until Done, then why the connection ended: PORT_CLOSED for our own Close, PORT_DISCONNECTED when the
// peer closed or died, another status when one side ended it for cause.
func (p *Port) Err() error { return p.fail("alpc.Port", p.ch.Err()) }

// Close ends the connection for both sides and wakes everybody who waits. What was sent still arrives.
func (p *Port) Close() error {
	p.ch.End(nil)
	return nil
}

// Gear returns how this end sends now.
func (p *Port) Gear() Gear {
	out, _ := p.ch.Gears()
	return Gear(out)
}

// Shift asks for a gear. It returns when this end sends in it; the peer follows with its own direction. Nothing is lost
// or overtaken by it. The first shift to GearShared gets the section from the core.
func (p *Port) Shift(ctx context.Context, g Gear) error {
	if g == GearShared && !p.ch.Attached() {
		if p.o.requestSection == nil {
			return ntstatus.New("alpc.Shift", p.name, ntstatus.NotSupported)
		}
		f, err := p.o.requestSection(ctx)
		if err != nil {
			return p.fail("alpc.Shift", err)
		}
		// Another Shift may have been quicker.
		if f != nil {
			if err := p.ch.Attach(f); err != nil && !p.ch.Attached() {
				return p.fail("alpc.Shift", err)
			}
		}
	}
	return p.fail("alpc.Shift", p.ch.Shift(ctx, channel.Gear(g)))
}

// Stats returns the live counters.
func (p *Port) Stats() Counters { return Counters(p.ch.Counters().Read()) }

// fail gives an error of the layer below its operation and object; nil stays nil.
func (p *Port) fail(op string, err error) error { return ntstatus.Wrap(op, p.name, err) }
