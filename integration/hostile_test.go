package integration_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/alpc/core"
	"sallyport/internal/control"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/proto/tourpb"
	"sallyport/rpc"
)

const (
	hostilePort = `\BaseNamedObjects\target`
	deafPort    = `\BaseNamedObjects\deaf` // whose server never accepts
	callTime    = 5 * time.Second          // a victim's deadline for a call, a connect or an attach
	attackTime  = 200 * time.Millisecond
)

// echo is the service that is attacked.
type echo struct{ tourpb.UnimplementedTourServer }

func (echo) Echo(_ context.Context, r *tourpb.EchoRequest) (*tourpb.EchoResponse, error) {
	return &tourpb.EchoResponse{Data: r.Data}, nil
}

func (echo) Reset(context.Context, *tourpb.ResetRequest) (*tourpb.ResetResponse, error) {
	return &tourpb.ResetResponse{}, nil
}

// attacks are what an attacking process does to the core and to the server. Each ends on its own; what it holds then, it holds
// until it is killed. An attacker doesn't use our library where that would be too polite.
func attacks() map[string]func(a *offender) error {
	all := map[string]func(*offender) error{
		"connects to the core and says nothing": (*offender).strangers,
		"says garbage instead of hello":         (*offender).garbageHello,
		"says garbage after hello":              (*offender).garbageRequests,
		"floods the core with descriptors":      (*offender).controlDescriptors,
		"asks the core and never reads":         (*offender).neverReads,
		"attaches and detaches":                 (*offender).cycles,
		"attaches and stays":                    (*offender).attachments,
		"connects where nobody accepts":         (*offender).halfOpen,
		"connects and stays":                    (*offender).connections,
		"connects and hangs up":                 (*offender).hangups,
		"makes objects without end":             (*offender).objects,
		"is denied without end":                 (*offender).denials,
		"calls with garbage":                    (*offender).garbageCalls,
		"begins calls and never ends them":      (*offender).openCalls,
		"asks for echoes and never reads them":  (*offender).unreadReplies,
	}
	// What a peer can do to a channel has its own suite; here the worst of it meets a server with other clients.
	for _, name := range []string{"scribbles everywhere", "punches holes", "flips as fast as it can", "never wakes", "giant length", "noise",
		"descriptors undeclared", "a descriptor flood", "requests, never reading", "datagrams, half reading", "a cancel storm", "shift without end"} {
		all["channel: "+name] = func(a *offender) error { return a.channel(name) }
	}
	return all
}

// TestHostilePeersHarmOnlyThemselves attacks a core and a server with clients of the victim's own user.
func TestHostilePeersHarmOnlyThemselves(t *testing.T) {
	limits := core.DefaultLimits()
	limits.Attachments, limits.Connections, limits.Ports, limits.HalfOpen = 128, 512, 64, 64 // soon reached
	c, ctx := alpctest.Start(t, alpctest.WithLimits(limits)), context.Background()
	sys := c.Attach(t, nil)
	server := rpc.NewServer(rpc.ServerOptions{System: sys})
	tourpb.RegisterTourServer(server, echo{})
	server.Secure("sallyport.tour.Tour", rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;AU)"})
	attributes := alpc.PortAttributes{SecurityDescriptor: "O:SYG:SYD:(A;;0x1;;;AU)", MaxConnections: 4096}
	deaf, err := sys.Listen(ctx, deafPort, attributes)
	require.NoError(t, err)
	defer deaf.Close()
	attributes.AutoAccept = true
	listener, err := sys.Listen(ctx, hostilePort, attributes)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	defer func() {
		server.Stop()
		require.NoError(t, <-served)
	}()

	// Once all is warm, what the attacks leave is compared with this.
	warm := start(t, "victim", c.Path())
	warm.awaitLine(t)
	warm.end(t)
	base, err := measure(ctx, sys)
	require.NoError(t, err)
	base.goroutines++ // each attack's own
	backToBase := func(t *testing.T) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			now, err := measure(ctx, sys)
			if err != nil {
				return err
			}
			return now.exceeds(base)
		})
	}
	for name := range attacks() {
		t.Run(name, func(t *testing.T) {
			victim := start(t, "victim", c.Path())
			require.Equal(t, "served", victim.awaitLine(t))
			attackers := []*part{start(t, "attack", c.Path(), name), start(t, "attack", c.Path(), name)}
			for _, a := range attackers {
				t.Log(a.awaitLine(t))
			}
			newcomer := start(t, "victim", c.Path())
			require.Equal(t, "served", newcomer.awaitLine(t), "who comes while they hold what they got")
			t.Log("newcomer: ", newcomer.end(t))
			t.Log("victim: ", victim.end(t))
			for _, a := range attackers {
				a.kill()
			}
			backToBase(t)
		})
	}
}

// victimMode calls again and again over one connection, and now and then over a new attachment. It fails if one call fails.
func victimMode(args []string) error {
	ctx := untilStdinEnds()
	bounded := func(f func(context.Context) error) (time.Duration, error) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		err := f(ctx)
		return time.Since(began), err
	}
	call := func(ctx context.Context, conn *rpc.Conn, n int) error {
		data := fmt.Appendf(nil, "call %d", n)
		r, err := tourpb.NewTourClient(conn).Echo(ctx, &tourpb.EchoRequest{Data: data})
		if err == nil && string(r.Data) != string(data) {
			err = fmt.Errorf("said %q and heard %q", data, r.Data)
		}
		return err
	}
	var sys *alpc.System
	var standing *rpc.Conn
	if _, err := bounded(func(ctx context.Context) (err error) {
		if sys, err = alpc.Attach(ctx, alpc.Options{Path: args[0]}); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		standing, err = rpc.Dial(ctx, sys, hostilePort, rpc.DialOptions{Port: alpc.DialOptions{Gear: alpc.GearShared}})
		return err
	}); err != nil {
		return err
	}
	defer sys.Close()
	defer standing.Close()
	var slowest, newest time.Duration
	n := 0
	for ; n < 16 || ctx.Err() == nil; n++ {
		took, err := bounded(func(ctx context.Context) error { return call(ctx, standing, n) })
		if err != nil {
			return fmt.Errorf("call %d after %s: %w", n, took, err)
		}
		slowest = max(slowest, took)
		if n%64 == 8 {
			took, err := bounded(func(ctx context.Context) error {
				sys, err := alpc.Attach(ctx, alpc.Options{Path: args[0]})
				if err != nil {
					return fmt.Errorf("attach: %w", err)
				}
				defer sys.Close()
				conn, err := rpc.Dial(ctx, sys, hostilePort)
				if err != nil {
					return fmt.Errorf("dial: %w", err)
				}
				defer conn.Close()
				return call(ctx, conn, n)
			})
			if err != nil {
				return fmt.Errorf("newcomer at call %d, after %s: %w", n, took, err)
			}
			newest = max(newest, took)
		}
		if n == 15 {
			fmt.Println("served")
		}
	}
	fmt.Printf("%d calls, the slowest took %s; of new attachments %s\n", n, slowest, newest)
	return nil
}

// offender is a process that attacks.
type offender struct {
	path   string
	random *rand.Rand
	until  time.Time
	kept   []io.Closer
}

// attackMode attacks, says so, and holds on to what it has until it is killed.
func attackMode(args []string) error {
	a := &offender{path: args[0], random: rand.New(rand.NewPCG(3, uint64(os.Getpid()))), until: time.Now().Add(attackTime)}
	// One that dies of its own attack would hold nothing.
	if err := attacks()[args[1]](a); err != nil {
		return err
	}
	fmt.Printf("%s: holds %d things\n", args[1], len(a.kept))
	select {}
}

func (a *offender) going() bool { return time.Now().Before(a.until) }

// keep holds on to a thing; what was got is never given back.
func (a *offender) keep(c io.Closer) { a.kept = append(a.kept, c) }

func (a *offender) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(a.random.Uint32())
	}
	return b
}

// raw connects to the core without our library; hello makes it say who it is, properly.
func (a *offender) raw(hello bool) (*unixsock.Conn, error) {
	conn, err := unixsock.Dial(a.path)
	if err != nil || !hello {
		return conn, err
	}
	conn.SetWriteDeadline(a.until.Add(callTime))
	conn.SetReadDeadline(a.until.Add(callTime))
	_, _, err = a.ask(conn, &corepb.ToCore{Id: 1, Request: &corepb.ToCore_Hello{Hello: &corepb.Hello{Version: 1}}})
	if err != nil {
		conn.Close()
	}
	return conn, err
}

func (a *offender) ask(conn *unixsock.Conn, request *corepb.ToCore) (*corepb.Reply, []int, error) {
	frame, err := proto.Marshal(request)
	if err != nil {
		return nil, nil, err
	}
	if err := conn.Send(frame, nil); err != nil {
		return nil, nil, err
	}
	buf := make([]byte, control.MaxFrame)
	n, fds, _, err := conn.Recv(buf)
	reply := &corepb.FromCore{}
	if err == nil {
		err = proto.Unmarshal(buf[:n], reply)
	}
	if f := reply.GetReply().GetFailure(); err == nil && f != nil {
		err = ntstatus.New(f.GetOp(), f.GetObject(), ntstatus.Status(f.GetStatus()))
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return reply.GetReply(), fds, err
}

func (a *offender) attach() (*alpc.System, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return alpc.Attach(ctx, alpc.Options{Path: a.path})
}

func (a *offender) dial(sys *alpc.System, name string) (*alpc.Port, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return sys.Dial(ctx, name, alpc.DialOptions{})
}

func (a *offender) strangers() error {
	for a.going() {
		if conn, err := a.raw(false); err == nil {
			a.keep(conn)
		}
	}
	return nil
}

func (a *offender) garbageHello() error {
	for a.going() {
		conn, err := a.raw(false)
		if err != nil {
			continue
		}
		conn.SetWriteDeadline(a.until)
		for range 4 {
			conn.Send(a.noise(1+a.random.IntN(8000)), nil)
		}
		conn.Close()
	}
	return nil
}

// garbageRequests sends noise, and requests of which some bits are not as they were.
func (a *offender) garbageRequests() error {
	requests := []*corepb.ToCore{
		{Id: 2, Request: &corepb.ToCore_Listen{Listen: &corepb.Listen{Name: `\BaseNamedObjects\mine`, Attributes: &corepb.PortAttributes{SecurityDescriptor: "D:(A;;GA;;;WD)"}}}},
		{Id: 3, Request: &corepb.ToCore_Connect{Connect: &corepb.Connect{Name: hostilePort, Section: true, TimeoutNs: 1 << 30}}},
		{Id: 4, Request: &corepb.ToCore_Accept{Accept: &corepb.Accept{Connection: 1, Data: make([]byte, 1000)}}},
		{Id: 5, Request: &corepb.ToCore_Evaluate{Evaluate: &corepb.Evaluate{Name: hostilePort, SecurityDescriptor: "O:SYG:SYD:(A;;0x1;;;AU)(D;;GA;;;BA)"}}},
		{Id: 6, Request: &corepb.ToCore_CreateToken{CreateToken: &corepb.CreateToken{Token: &corepb.Token{User: &corepb.Group{Sid: "S-1-5-18"}, Integrity: "S-1-16-16384"}}}},
		{Id: 7, Request: &corepb.ToCore_AssignToken{AssignToken: &corepb.AssignToken{TokenId: 999}}},
		{Id: 8, Request: &corepb.ToCore_List{List: &corepb.List{Kind: corepb.Kind_ATTACHMENTS, After: "0"}}},
		{Id: 9, Request: &corepb.ToCore_CancelConnect{CancelConnect: &corepb.CancelConnect{Request: 3}}},
	}
	for a.going() {
		conn, err := a.raw(true)
		if err != nil {
			continue
		}
		for range 50 {
			frame := a.noise(1 + a.random.IntN(2000))
			if a.random.IntN(10) > 0 {
				if frame, err = proto.Marshal(requests[a.random.IntN(len(requests))]); err != nil {
					return err
				}
				for range a.random.IntN(3) {
					frame[a.random.IntN(len(frame))] ^= 1 << a.random.IntN(8)
				}
			}
			if conn.TrySend(frame, nil) != nil {
				break
			}
		}
		conn.Close()
	}
	return nil
}

func (a *offender) controlDescriptors() error {
	own, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	a.keep(own)
	files := make([]*os.File, unixsock.MaxFDs)
	for i := range files {
		files[i] = own
	}
	for hello := false; a.going(); hello = !hello {
		conn, err := a.raw(hello)
		if err != nil {
			continue
		}
		conn.SetWriteDeadline(a.until)
		for _, n := range []int{1, 4, 5, len(files), len(files)} {
			frame, err := proto.Marshal(&corepb.ToCore{Id: 2, Request: &corepb.ToCore_Disown{Disown: &corepb.Disown{}}})
			if err != nil {
				return err
			}
			unixsock.WithFDs(files[:n], func(fds []int) error { return conn.Send(frame, fds) })
		}
		conn.Close()
	}
	return nil
}

func (a *offender) neverReads() error {
	frame, err := proto.Marshal(&corepb.ToCore{Id: 2, Request: &corepb.ToCore_List{List: &corepb.List{}}})
	if err != nil {
		return err
	}
	for a.going() {
		conn, err := a.raw(true)
		if err != nil {
			continue
		}
		a.keep(conn)
		conn.SetWriteDeadline(time.Now().Add(attackTime / 3))
		for conn.Send(frame, nil) == nil {
		}
	}
	return nil
}

func (a *offender) cycles() error {
	for n := 0; a.going() || n < 1000; n++ {
		conn, err := a.raw(true)
		if err != nil {
			return fmt.Errorf("cycle %d: %w", n, err)
		}
		conn.Close()
	}
	return nil
}

func (a *offender) attachments() error {
	for {
		conn, err := a.raw(true)
		if err != nil {
			return nil // there is a limit to what we get
		}
		a.keep(conn)
	}
}

func (a *offender) halfOpen() error {
	conn, err := a.raw(true)
	if err != nil {
		return err
	}
	a.keep(conn)
	for id := uint64(2); a.going(); id++ {
		frame, err := proto.Marshal(&corepb.ToCore{Id: id, Request: &corepb.ToCore_Connect{Connect: &corepb.Connect{Name: deafPort, TimeoutNs: 1 << 60}}})
		if err != nil {
			return err
		}
		if err := conn.TrySend(frame, nil); err != nil && !errors.Is(err, unixsock.ErrWouldBlock) {
			return nil // cut, as it never reads
		}
	}
	return nil
}

func (a *offender) connections() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	for {
		port, err := a.dial(sys, hostilePort)
		if err != nil {
			return nil // there is a limit to what we get
		}
		a.keep(port)
	}
}

func (a *offender) hangups() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	for a.going() {
		port, err := a.dial(sys, hostilePort)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		port.Send(context.Background(), &alpc.Message{Data: a.noise(100)})
		port.Close()
	}
	return nil
}

func (a *offender) objects() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	ctx, name := context.Background(), ""
	for n := 0; a.going(); n++ {
		name = fmt.Sprintf(`\BaseNamedObjects\junk-%d-%d`, os.Getpid(), n)
		if _, err := sys.Listen(ctx, name, alpc.PortAttributes{SecurityDescriptor: "D:(A;;GA;;;WD)"}); errors.Is(err, ntstatus.QuotaExceeded) || errors.Is(err, ntstatus.AccessDenied) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (a *offender) denials() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	for a.going() {
		if err := sys.RegisterSpawner(context.Background()); !errors.Is(err, ntstatus.PrivilegeNotHeld) {
			return fmt.Errorf("registered as a spawner: %w", err)
		}
		if _, err := sys.Explain(context.Background(), a.random.Uint64()); err == nil {
			return errors.New("explained what never was")
		}
	}
	return nil
}

// garbageCalls sends requests that alpc takes and rpc doesn't, some of them beginning like proper ones.
func (a *offender) garbageCalls() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	for a.going() {
		port, err := a.dial(sys, hostilePort)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), attackTime/4)
		for range 32 {
			data := a.noise(a.random.IntN(3000))
			if len(data) > 8 && a.random.IntN(2) == 0 {
				copy(data, []byte{byte(a.random.IntN(8)), byte(a.random.IntN(8)), 0, 0})
				binary.LittleEndian.PutUint32(data[4:], uint32(a.random.IntN(1<<20)))
			}
			if a.random.IntN(2) == 0 {
				port.Call(ctx, &alpc.Message{Data: data})
			} else {
				port.Send(ctx, &alpc.Message{Data: data})
			}
		}
		cancel()
		port.Close()
	}
	return nil
}

// openCalls sends huge calls of which the end never comes, and leaves them.
func (a *offender) openCalls() error {
	sys, err := a.attach()
	if err != nil {
		return err
	}
	a.keep(sys)
	conn, err := rpc.Dial(context.Background(), sys, hostilePort)
	if err != nil {
		return err
	}
	a.keep(conn)
	huge := &tourpb.EchoRequest{Data: make([]byte, 3<<20)}
	for a.going() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		tourpb.NewTourClient(conn).Echo(ctx, huge)
		cancel()
	}
	return nil
}

// unreadReplies calls properly and never takes an answer from the socket.
func (a *offender) unreadReplies() error {
	channel, _, err := a.rawChannel(false)
	if err != nil {
		return err
	}
	a.keep(channel)
	// docs/protocol.md by hand: a frame's header, a call's header, the method, and a message of one field.
	const method = "/sallyport.tour.Tour/Echo"
	body := append([]byte{0x0A, 0x80, 0x20}, make([]byte, 4096)...)
	call := make([]byte, 64+16, 64+16+len(method)+len(body))
	call = append(append(call, method...), body...)
	le := binary.LittleEndian
	le.PutUint32(call, uint32(len(call)))
	le.PutUint16(call[4:], 1)
	call[52], call[64] = 1, 1
	le.PutUint16(call[66:], uint16(len(method)))
	channel.SetWriteDeadline(a.until)
	for sequence := uint32(0); a.going(); sequence++ {
		le.PutUint32(call[8:], sequence+1)
		le.PutUint32(call[20:], sequence)
		le.PutUint32(call[68:], sequence+1)
		if channel.Send(call, nil) != nil {
			break
		}
	}
	return nil
}

// rawChannel connects to the server without our library: the socket, and the section if asked for.
func (a *offender) rawChannel(section bool) (*unixsock.Conn, *os.File, error) {
	conn, err := a.raw(true)
	if err != nil {
		return nil, nil, err
	}
	a.keep(conn)
	_, fds, err := a.ask(conn, &corepb.ToCore{Id: 2, Request: &corepb.ToCore_Connect{Connect: &corepb.Connect{Name: hostilePort, Section: section, TimeoutNs: int64(callTime)}}})
	if err != nil {
		return nil, nil, err
	}
	if len(fds) < 2 {
		return nil, nil, fmt.Errorf("%d descriptors came with the connection", len(fds))
	}
	channel, err := unixsock.NewConn(fds[1])
	if err != nil || !section {
		return channel, nil, err
	}
	return channel, os.NewFile(uintptr(fds[2]), "section"), nil
}

// channel runs one of the attacks on a channel.
func (a *offender) channel(name string) error {
	conn, section, err := a.rawChannel(true)
	if err != nil {
		return err
	}
	file, err := conn.File()
	if err != nil {
		return err
	}
	fd, err := unixsock.Detach(file)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- alpctest.Attack(strings.TrimPrefix(name, "channel: "), fd, section) }()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * attackTime): // Attack holds on to its connection for ever
		a.keep(conn)
		return nil
	}
}
