package alpc

import (
	"context"
	"os"
	"time"

	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// DialOptions say what a client wants of a connection (NtAlpcConnectPort). The zero value works.
type DialOptions struct {
	// Data goes to the server with the connect; at most 4 KiB.
	Data []byte
	// RequiredServer is a SID that the server's token must have; else ServerSIDMismatch. Zero asks for none.
	RequiredServer security.SID
	// Level is the most that the server may do in the client's name. Zero means Identification; AnonymousLevel hides who asks.
	Level DialLevel
	// Dynamic lets the server follow this process's token as it is adjusted; else it sees what it was at the connect.
	Dynamic bool
	// EffectiveOnly keeps from the server what is disabled in the token.
	EffectiveOnly bool
	// HandleTypes are the kinds of handle that the client takes from the server; none by default.
	HandleTypes HandleType
	// Gear GearShared asks for the shared gear from the start.
	Gear Gear
	// MaxMessageLength narrows the port's; 0 leaves it.
	MaxMessageLength int
}

// DialLevel is an impersonation level as a client grants it, with a zero value that is the sensible default.
type DialLevel uint8

// The levels that a client can grant.
const (
	DefaultLevel       DialLevel = 0 // Identification
	AnonymousLevel     DialLevel = 1
	IdentificationOnly DialLevel = 2
	ImpersonationLevel DialLevel = 3
	DelegationLevel    DialLevel = 4
)

func (l DialLevel) level() security.ImpersonationLevel {
	if l == DefaultLevel {
		return security.LevelIdentification
	}
	return security.ImpersonationLevel(l - 1)
}

// Dial connects to a port by name. The context's deadline bounds the whole handshake; a declared port without a server
// holds the connect until one comes. Statuses: AccessDenied (with *ntstatus.Denial), ObjectNameNotFound,
// InvalidPortHandle, ServerSIDMismatch, PortConnectionRefused or what the server refused with (with *Refusal), QuotaExceeded,
// PortDoNotDisturb, IOTimeout, RequestCanceled.
func (s *System) Dial(ctx context.Context, name string, o DialOptions) (*Port, error) {
	connect := &corepb.Connect{
		Name: name, Data: o.Data, Level: uint32(o.Level.level()), HandleTypes: uint32(o.HandleTypes),
		MaxMessageLength: uint32(max(o.MaxMessageLength, 0)), Section: o.Gear == GearShared,
		Dynamic: o.Dynamic, EffectiveOnly: o.EffectiveOnly,
	}
	if !o.RequiredServer.IsZero() {
		connect.RequiredServer = o.RequiredServer.String()
	}
	if deadline, ok := ctx.Deadline(); ok {
		connect.TimeoutNs = max(int64(time.Until(deadline)), 1)
	}
	var port *Port
	call := &coreCall{lost: func() { port.Close() }}
	call.take = func(r *corepb.Reply, files []*os.File) (err error) {
		w := r.GetConnect()
		if len(files) == 0 {
			return ntstatus.New("alpc.Dial", name, ntstatus.RPCProtocolError)
		}
		server, err := clientOf(w.GetServer(), w.GetConnection(), security.LevelIdentification, files[0])
		if err != nil {
			closeFiles(files)
			return ntstatus.Errorf("alpc.Dial", name, ntstatus.RPCProtocolError, "%v", err)
		}
		port, err = s.newPort(files[1:], portOptions{
			client: server, maxMessage: int(w.GetMaxMessageLength()), maxPending: int(w.GetMaxPending()), handleTypes: o.HandleTypes, connectData: w.GetData(),
		})
		if err != nil {
			server.PIDFD.Close()
			s.closeConnection(w.GetConnection())
		}
		return err
	}
	if _, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_Connect{Connect: connect}}, nil, call); err != nil {
		return nil, err
	}
	if o.Gear == GearShared {
		if err := port.Shift(ctx, GearShared); err != nil {
			port.Close()
			return nil, err
		}
	}
	return port, nil
}

// closeConnection tells the core that a connection is over.
func (s *System) closeConnection(id uint64) {
	s.mu.Lock()
	delete(s.ports, id)
	s.mu.Unlock()
	s.tell(&corepb.ToCore{Request: &corepb.ToCore_CloseConnection{CloseConnection: &corepb.CloseConnection{Connection: id}}})
}

// tell sends a request whose reply nobody waits for.
func (s *System) tell(request *corepb.ToCore) {
	go s.do(context.Background(), request, nil, &coreCall{})
}

// requestSection asks the core for the section of a connection; the server gets it by notice.
func (s *System) requestSection(ctx context.Context, connection uint64) (*os.File, error) {
	var section *os.File
	call := &coreCall{
		take: func(_ *corepb.Reply, files []*os.File) error {
			if len(files) != 1 {
				closeFiles(files)
				return ntstatus.New("alpc.Shift", "", ntstatus.RPCProtocolError)
			}
			section = files[0]
			return nil
		},
		lost: func() { section.Close() },
	}
	_, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_OfferSection{OfferSection: &corepb.OfferSection{Connection: connection}}}, nil, call)
	return section, err
}

// newPort makes this end of a connection that the core made: files are the channel and, if it was asked for, the section. It
// runs on the receiving goroutine, so that the port is known before the next notice is read. It takes the files over, and
// o.client.PIDFD unless it fails.
func (s *System) newPort(files []*os.File, o portOptions) (*Port, error) {
	if len(files) == 0 || len(files) > 2 {
		closeFiles(files)
		return nil, ntstatus.New("alpc.Connect", o.client.name(), ntstatus.RPCProtocolError)
	}
	id := o.client.Connection
	var err error
	if o.fd, err = unixsock.Detach(files[0]); err != nil {
		closeFiles(files[1:])
		return nil, ntstatus.Wrap("alpc.Connect", o.client.name(), err)
	}
	o.logger, o.system = s.log, s
	o.ended = func() { s.closeConnection(id) }
	o.requestSection = func(ctx context.Context) (*os.File, error) {
		if o.side == 1 {
			return nil, ntstatus.Errorf("alpc.Shift", "", ntstatus.InvalidDeviceRequest, "the client asks for the shared gear, and pays for it")
		}
		return s.requestSection(ctx, id)
	}
	p, err := newPort(o)
	if err != nil {
		closeFiles(files[1:])
		return nil, err
	}
	if len(files) == 2 {
		if err := p.attachSection(files[1]); err != nil {
			p.Close()
			return nil, err
		}
	}
	s.mu.Lock()
	s.ports[id] = p
	s.mu.Unlock()
	select {
	case <-p.Done(): // it may have ended before it was known
		s.mu.Lock()
		delete(s.ports, id)
		s.mu.Unlock()
	default:
	}
	return p, nil
}
