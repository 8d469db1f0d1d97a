package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// What a server keeps for its clients, unless ServerOptions say otherwise.
const (
	defaultMaxMessage = 4 << 20 // as gRPC's
	defaultMaxCalls   = 128
	defaultMaxBuffer  = 64 << 20
)

// ServerOptions are a server's limits and what it is given. Zero values are the defaults.
type ServerOptions struct {
	System *alpc.System
	Logger hclog.Logger // nil is silent

	MaxMessage int // bytes of one message, either way; 4 MiB
	MaxCalls   int // calls in progress of one connection, streams included; 128. Above: RPC_NT_SERVER_TOO_BUSY
	MaxBuffer  int // bytes of large unary messages in assembly or waiting to be fetched, of all connections; 64 MiB
	Window     int // bytes of a stream's messages that wait for a slow handler; 256 KiB

	// ReportDenial records a refusal and returns its number for the caller; nil: System.ReportDenial, or none without a System.
	ReportDenial func(context.Context, alpc.Denial) (uint64, error)
}

// Server serves gRPC services to the clients of ports. Register and Secure first, then Serve: from then on the services are
// fixed. Serve, ServePort and the stops may be called from any goroutine.
//
// A unary handler runs on the goroutine that received its request. If it takes longer than a fraction of a millisecond,
// another goroutine goes on with the connection; a stream's handler always has its own. Calls of one connection so run beside each
// other, bounded by MaxCalls.
type Server struct {
	options ServerOptions
	log     hclog.Logger

	mu       sync.Mutex
	services map[string]*registration
	guards   map[string]Interface
	faults   []string
	methods  map[string]*method // set once, by seal
	sealed   bool
	sealErr  error
	stop     chan struct{} // closed: accept no more
	stopped  bool
	conns    map[*serverConn]struct{}

	draining atomic.Bool
	idle     chan struct{} // capacity 1: a call ended while draining
	buffered atomic.Int64
}

type registration struct {
	desc *grpc.ServiceDesc
	impl any
}

// NewServer returns a server without services.
func NewServer(o ServerOptions) *Server {
	orDefault := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	orDefault(&o.MaxMessage, defaultMaxMessage)
	orDefault(&o.MaxCalls, defaultMaxCalls)
	orDefault(&o.MaxBuffer, defaultMaxBuffer)
	orDefault(&o.Window, defaultWindow)
	o.Window = min(max(o.Window, minWindow), maxWindow)
	s := &Server{
		options: o, log: o.Logger, services: map[string]*registration{}, guards: map[string]Interface{},
		stop: make(chan struct{}), conns: map[*serverConn]struct{}{}, idle: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if o.ReportDenial == nil && o.System != nil {
		s.options.ReportDenial = o.System.ReportDenial
	}
	return s
}

// RegisterService is what the generated RegisterXServer functions call. A service that can't be served as it is (registered
// twice, the wrong type, a method without a right) makes Serve fail and say why: it does not end the program.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch want := reflect.TypeOf(desc.HandlerType); {
	case s.sealed:
		s.log.Error("a service was registered after Serve and is not offered", "service", desc.ServiceName)
	case s.services[desc.ServiceName] != nil:
		s.faults = append(s.faults, desc.ServiceName+": registered twice")
	case impl != nil && want != nil && !reflect.TypeOf(impl).Implements(want.Elem()):
		s.faults = append(s.faults, fmt.Sprintf("%s: %T does not implement %v", desc.ServiceName, impl, want.Elem()))
	default:
		s.services[desc.ServiceName] = &registration{desc: desc, impl: impl}
	}
}

// Secure says how a service (by its full name) is guarded. Every registered service needs it.
func (s *Server) Secure(service string, i Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed {
		s.log.Error("Secure after Serve has no effect", "service", service)
		return
	}
	s.guards[service] = i
}

// OfferReflection registers gRPC's own reflection service, both versions, guarded by i.Descriptor or i.SDDL; the right that it
// needs is INTERFACE_QUERY (0x1).
func (s *Server) OfferReflection(i Interface) {
	i.Rights = map[string]Right{EveryMethod: {Name: "INTERFACE_QUERY", Mask: 0x1}}
	s.Secure("grpc.reflection.v1.ServerReflection", i)
	s.Secure("grpc.reflection.v1alpha.ServerReflection", i)
	reflection.Register(s)
}

// GetServiceInfo is what reflection asks.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]grpc.ServiceInfo, len(s.services))
	for name, r := range s.services {
		info := grpc.ServiceInfo{Metadata: r.desc.Metadata}
		for _, m := range r.desc.Methods {
			info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
		}
		for _, m := range r.desc.Streams {
			info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
		}
		out[name] = info
	}
	return out
}

// seal fixes the services, once, and says what is wrong with them.
func (s *Server) seal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed {
		return s.sealErr
	}
	s.sealed, s.methods = true, map[string]*method{}
	faults := s.faults
	for _, name := range slices.Sorted(maps.Keys(s.services)) {
		guard, secured := s.guards[name]
		_, methods, wrong := secure(s.services[name].desc, s.services[name].impl, guard, secured)
		faults = append(faults, wrong...)
		for _, m := range methods {
			m.index = len(s.methods)
			s.methods[m.full] = m
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.guards)) {
		if s.services[name] == nil {
			faults = append(faults, name+": secured, and not registered")
		}
	}
	if len(faults) > 0 {
		s.sealErr = ntstatus.Errorf("rpc.Serve", "", ntstatus.InvalidParameter, "%s", strings.Join(faults, "; "))
		s.log.Error("refusing to serve", "faults", faults)
	}
	return s.sealErr
}

// Serve accepts connections on l, which it owns from now on, until a stop or until ctx is done, which is a Stop. It returns nil after
// either; INVALID_PARAMETER at once where the services are not as they must be; and the listener's error if that ends.
func (s *Server) Serve(ctx context.Context, l *alpc.Listener) error {
	if err := s.seal(); err != nil {
		_ = l.Close()
		return err
	}
	accepting, cancel := context.WithCancel(ctx)
	defer cancel()
	var ports sync.WaitGroup
	defer ports.Wait()
	ports.Go(func() { // whoever waits for Serve finds the port's name free
		select {
		case <-s.stop:
		case <-ctx.Done():
			s.Stop()
		}
		cancel()
		_ = l.Close()
	})
	for {
		request, err := l.Accept(accepting)
		if err != nil {
			if s.isStopping() || ctx.Err() != nil {
				return nil
			}
			s.Stop()
			return ntstatus.Wrap("rpc.Serve", l.Name(), err)
		}
		ports.Go(func() {
			port, err := request.Accept(ctx, nil)
			if err != nil {
				s.log.Debug("a connection was not accepted", "port", l.Name(), "error", err)
				return
			}
			if err := s.ServePort(ctx, port); err != nil {
				s.log.Warn("connection ended", "port", l.Name(), "error", err)
			}
		})
	}
}

// ServePort serves one connection, which it owns from now on, until it ends. A peer that leaves, a stop and ctx are a nil error; a
// peer that breaks the protocol is one.
func (s *Server) ServePort(ctx context.Context, p *alpc.Port) error {
	if err := s.seal(); err != nil {
		_ = p.Close()
		return err
	}
	c := newServerConn(ctx, s, p)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		_ = p.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	err := c.run()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wakeDrain()
	return err
}

// Stop ends every call (its context is canceled, its caller gets PORT_DISCONNECTED) and every connection. Serve returns
// when all handlers have.
func (s *Server) Stop() {
	s.stopAccepting()
	s.mu.Lock()
	s.stopped = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.close(nil)
	}
}

// GracefulStop accepts no more connections and calls (SYSTEM_SHUTDOWN to their callers), waits until the calls in progress
// have ended, or ctx is done, then stops.
func (s *Server) GracefulStop(ctx context.Context) {
	s.draining.Store(true)
	s.stopAccepting()
	for s.busy() && ctx.Err() == nil {
		select {
		case <-s.idle:
		case <-ctx.Done():
		}
	}
	s.Stop()
}

func (s *Server) stopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
}

func (s *Server) isStopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *Server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.inflight.Load() > 0 {
			return true
		}
	}
	return false
}

func (s *Server) wakeDrain() {
	if s.draining.Load() {
		select {
		case s.idle <- struct{}{}:
		default:
		}
	}
}

// reserve counts n bytes that a connection makes the server keep. One connection gets at most half of what the
// others leave, so none can starve the rest.
func (s *Server) reserve(c *serverConn, n int) bool {
	mine := c.buffered.Add(int64(n))
	total := s.buffered.Add(int64(n))
	if mine <= (int64(s.options.MaxBuffer)-(total-mine))/2 {
		return true
	}
	s.release(c, n)
	return false
}

func (s *Server) release(c *serverConn, n int) {
	c.buffered.Add(-int64(n))
	s.buffered.Add(-int64(n))
}

var errStopped = errors.New("the server stopped")
