package alpc_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/security"
)

const everybody = "D:(A;;GA;;;SY)(A;;0x1;;;WD)"

func TestCallThroughTheCore(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		for name, auto := range map[string]bool{"decided": false, "automatic": true} {
			t.Run(gear.String()+" "+name, func(t *testing.T) {
				c, ctx := alpctest.Start(t), alpctest.Context(t)
				server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
				l, err := server.Listen(ctx, `\RPC Control\echo`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: auto})
				require.NoError(t, err)
				accepted := make(chan *alpc.Port, 1)
				go func() {
					r, err := l.Accept(ctx)
					if err != nil {
						return
					}
					p, err := r.Accept(ctx, []byte("welcome"))
					if err != nil {
						return
					}
					accepted <- p
					for {
						m, err := p.Receive(ctx)
						if err != nil {
							return
						}
						p.Reply(ctx, m, &alpc.Message{Data: append([]byte("re: "), m.Data...)})
					}
				}()
				p, err := client.Dial(ctx, "/rpc control/ECHO", alpc.DialOptions{Gear: gear, Data: []byte("hello")})
				require.NoError(t, err)
				if !auto {
					require.Equal(t, "welcome", string(p.ConnectData()))
				}
				reply, err := p.Call(ctx, &alpc.Message{Data: []byte("x")})
				require.NoError(t, err)
				require.Equal(t, "re: x", string(reply.Data))
				require.Equal(t, gear, p.Gear())
				peer := (<-accepted).Peer()
				require.Equal(t, alpctest.User(1001).User.SID, peer.Token.User.SID)
				require.Equal(t, client.ID(), peer.Attachment)
				require.Equal(t, security.LevelIdentification, peer.Token.Level)
				var conns []alpc.ConnectionInfo
				require.Eventually(t, func() bool { // the server counts what it has sent after that has arrived
					conns, err = server.Connections(ctx)
					return err == nil && len(conns) == 1 && conns[0].Counters.MessagesOut > 0
				}, 10*time.Second, time.Millisecond)
				require.Equal(t, gear == alpc.GearShared, conns[0].Shared)
			})
		}
	}
}

func TestDialDeniedByDescriptorIsExplained(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	_, err := server.Listen(ctx, `\RPC Control\secret`, alpc.PortAttributes{SecurityDescriptor: "D:(D;;0x1;;;BU)(A;;0x1;;;WD)"})
	require.NoError(t, err)
	_, err = client.Dial(ctx, `\RPC Control\secret`, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	require.Equal(t, "PORT_CONNECT (0x1)", denial.Right)
	own, err := client.Explain(ctx, denial.Decision)
	require.NoError(t, err)
	require.Empty(t, own.Trace, "who may not read the descriptor is not shown it")
	full, err := server.Explain(ctx, denial.Decision)
	require.NoError(t, err)
	require.Contains(t, full.Trace[len(full.Trace)-1], "(D;;")
	before, err := server.Evaluate(ctx, alpc.Question{Name: `\RPC Control\secret`, Token: client.Token()})
	require.NoError(t, err)
	require.Equal(t, full.Trace, before.Trace)
	require.Equal(t, ntstatus.AccessDenied, before.Status)
}

func TestDeclaredPortHoldsConnectsUntilItsServerComes(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	smss, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	name := `\RPC Control\late`
	require.NoError(t, smss.Declare(ctx, name, alpc.PortAttributes{SecurityDescriptor: everybody}, security.LocalSystem()))
	_, err := client.Listen(ctx, name, alpc.PortAttributes{})
	require.ErrorIs(t, err, ntstatus.AccessDenied, "a squatter")
	dialled := make(chan error, 1)
	go func() {
		p, err := client.Dial(ctx, name, alpc.DialOptions{})
		if err == nil {
			_, err = p.Call(ctx, &alpc.Message{Data: []byte("x")})
		}
		dialled <- err
	}()
	require.Equal(t, name, <-smss.Activations())
	first := c.Attach(t, nil)
	_, err = first.Listen(ctx, name, alpc.PortAttributes{})
	require.NoError(t, err)
	first.Close() // dies undecided: the connect waits for the next one
	second := c.Attach(t, nil)
	l, err := second.Listen(ctx, name, alpc.PortAttributes{})
	require.NoError(t, err)
	r, err := l.Accept(ctx)
	require.NoError(t, err)
	p, err := r.Accept(ctx, nil)
	require.NoError(t, err)
	m, err := p.Receive(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Reply(ctx, m, &alpc.Message{}))
	require.NoError(t, <-dialled)
	require.ErrorIs(t, c.Attach(t, nil).Remove(ctx, name), ntstatus.ResourceInUse)
	require.NoError(t, smss.Remove(ctx, name), "who declared it takes it back")
	<-p.Done()
	_, err = client.Dial(ctx, name, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.ObjectNameNotFound)
}

func TestServerDeathWakesEveryWaiterAndChargesReturnToZero(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	watcher := c.Attach(t, nil)
	before, err := watcher.Charges(ctx)
	require.NoError(t, err)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\dies`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	errs := make(chan error, 8)
	for range cap(errs) {
		p, err := client.Dial(ctx, l.Name(), alpc.DialOptions{})
		require.NoError(t, err)
		go func() { _, err := p.Call(ctx, &alpc.Message{Data: []byte("x")}); errs <- err }()
	}
	for range cap(errs) {
		r, err := l.Accept(ctx)
		require.NoError(t, err)
		p, err := r.Accept(ctx, nil)
		require.NoError(t, err)
		_, err = p.Receive(ctx)
		require.NoError(t, err)
	}
	server.Close()
	for range cap(errs) {
		require.ErrorIs(t, <-errs, ntstatus.PortDisconnected)
	}
	client.Close()
	require.Eventually(t, func() bool {
		after, err := watcher.Charges(ctx)
		return err == nil && equalCharges(before, after)
	}, 10*time.Second, time.Millisecond)
}

func equalCharges(a, b []alpc.Charge) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
