package rpc_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
)

const echo, chat = "/sallyport.rpc.test.Library/Echo", "/sallyport.rpc.test.Library/Chat"

// raw connects a peer that writes what it likes to a server, beside a client that behaves.
func raw(t *testing.T, c config) (*alpc.Port, *fixture) {
	f := serve(t, still(), c)
	o := alpc.PairOptions{Peer: &alpc.Client{Token: reader("hostile")}}
	peer, server, err := alpc.Pair(alpc.PairOptions{}, o)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.server.ServePort(context.Background(), server)
	}()
	t.Cleanup(func() {
		peer.Close()
		<-done
		require.Zero(t, f.server.Buffered(), "nothing stays reserved for a peer that left")
	})
	return peer, f
}

func datagram(t *testing.T, p *alpc.Port, b []byte) {
	require.NoError(t, p.Send(short(t), &alpc.Message{Type: alpc.TypeDatagram, Data: b}))
}

func TestAPeerThatBreaksTheProtocolLosesItsConnectionOnly(t *testing.T) {
	open := func(t *testing.T, p *alpc.Port) {
		go p.Call(context.Background(), &alpc.Message{Type: alpc.TypeRequest, Data: rpc.RawRequest(2, 0, 1, 1<<20, chat, nil)})
		_, err := p.Receive(short(t)) // the credit
		require.NoError(t, err)
	}
	request := func(b []byte) func(*testing.T, *alpc.Port) {
		return func(t *testing.T, p *alpc.Port) {
			p.Call(short(t), &alpc.Message{Type: alpc.TypeRequest, Data: b})
		}
	}
	for name, attack := range map[string]func(*testing.T, *alpc.Port){
		"short request":      request([]byte{1}),
		"empty request":      request(nil),
		"unknown kind":       request(rpc.RawRequest(99, 0, 1, 0, echo, nil)),
		"reserved flags":     request(rpc.RawRequest(1, 0x80, 1, 0, echo, nil)),
		"lengths beyond":     request([]byte{1, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}),
		"window too small":   request(rpc.RawRequest(2, 0, 1, 1, chat, nil)),
		"window too large":   request(rpc.RawRequest(2, 0, 1, 1<<31, chat, nil)),
		"fetch with content": request(rpc.RawRequest(3, 0, 1, 0, "x", nil)),
		"short datagram":     func(t *testing.T, p *alpc.Port) { datagram(t, p, []byte{7}) },
		"unknown datagram":   func(t *testing.T, p *alpc.Port) { datagram(t, p, rpc.RawDatagram(99, 0, 1, 0, nil)) },
		"two streams of one number": func(t *testing.T, p *alpc.Port) {
			open(t, p)
			p.Call(short(t), &alpc.Message{Type: alpc.TypeRequest, Data: rpc.RawRequest(2, 0, 1, 1<<20, chat, nil)})
		},
		"more than the window": func(t *testing.T, p *alpc.Port) {
			open(t, p)
			for range 20 { // the handler echoes them, and nobody gives it credit beyond the window
				if p.Send(short(t), &alpc.Message{Data: rpc.RawDatagram(7, 5, 1, 0, make([]byte, 60000))}) != nil {
					return
				}
			}
			for p.Send(short(t), &alpc.Message{Data: rpc.RawDatagram(7, 4, 1, 0, make([]byte, 60000))}) == nil {
			}
		},
		"credit without end": func(t *testing.T, p *alpc.Port) {
			open(t, p)
			for p.Send(short(t), &alpc.Message{Data: rpc.RawDatagram(8, 0, 1, 1<<30, nil)}) == nil {
			}
		},
		"a server's datagram": func(t *testing.T, p *alpc.Port) {
			open(t, p)
			datagram(t, p, rpc.RawDatagram(9, 0, 1, 0, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, f := raw(t, config{})
			attack(t, p)
			select {
			case <-p.Done():
			case <-time.After(5 * time.Second):
				require.Fail(t, "the connection goes on")
			}
			_, err := f.client.Echo(short(t), &testpb.Book{})
			require.NoError(t, err)
		})
	}
}

func TestWhatAPeerCanMakeTheServerKeepIsBounded(t *testing.T) {
	t.Run("parts", func(t *testing.T) {
		p, f := raw(t, config{options: rpc.ServerOptions{MaxMessage: 1 << 20, MaxBuffer: 4 << 20}})
		piece := make([]byte, 60000)
		for call := range uint32(1000) {
			datagram(t, p, rpc.RawDatagram(5, 0, call, 1<<20, piece))
		}
		m, err := p.Call(short(t), &alpc.Message{Data: rpc.RawRequest(1, 0, 999, 60000, echo, nil)})
		require.NoError(t, err)
		code, _, err := rpc.RawStatus(m.Data)
		require.NoError(t, err)
		require.EqualValues(t, codes.ResourceExhausted, code)
		require.LessOrEqual(t, f.server.Buffered(), int64(2<<20))
		// Others still get theirs.
		_, err = f.client.Echo(short(t), &testpb.Book{Text: make([]byte, 500<<10)})
		require.NoError(t, err)
	})
	t.Run("replies not fetched", func(t *testing.T) {
		p, f := raw(t, config{options: rpc.ServerOptions{MaxMessage: 1 << 20, MaxBuffer: 4 << 20}})
		for call := uint32(1); call < 200; call++ {
			body := make([]byte, 0, 64000)
			body = append(body, 0x12, 0xe0, 0xf1, 0x03) // field 2, 63712 bytes
			body = body[:4+63712]
			datagram(t, p, rpc.RawDatagram(5, 0, call, 60000, body[:60000]))
			_, err := p.Call(short(t), &alpc.Message{Data: rpc.RawRequest(1, 0, call, 60000, echo, body[60000:])})
			require.NoError(t, err)
		}
		require.LessOrEqual(t, f.server.Buffered(), int64(2<<20))
	})
	t.Run("streams", func(t *testing.T) {
		p, f := raw(t, config{options: rpc.ServerOptions{MaxCalls: 10}})
		replies := make(chan error, 20)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for call := uint32(1); call <= 20; call++ {
			go func() {
				m, err := p.Call(ctx, &alpc.Message{Data: rpc.RawRequest(2, 0, call, 1<<20, chat, nil)})
				if err == nil {
					var code int32
					if code, _, err = rpc.RawStatus(m.Data); code != int32(codes.ResourceExhausted) {
						err = ntstatus.Errorf("test", "", ntstatus.Unsuccessful, "code %d", code)
					}
				}
				replies <- err
			}()
		}
		for range 10 {
			require.NoError(t, <-replies)
		}
		_, err := f.client.Echo(short(t), &testpb.Book{})
		require.NoError(t, err)
	})
	t.Run("metadata", func(t *testing.T) {
		p, _ := raw(t, config{})
		b := rpc.RawRequest(1, 0, 1, 0, echo, make([]byte, 40000))
		b[12], b[13] = 0x50, 0x80 // 32848 bytes of it
		p.Call(short(t), &alpc.Message{Data: b})
		select {
		case <-p.Done():
		case <-time.After(5 * time.Second):
			require.Fail(t, "the connection goes on")
		}
	})
}

// Noise of all kinds: nothing panics, and the server goes on.
func TestNoise(t *testing.T) {
	f := serve(t, still(), config{})
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		peer, server, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{Peer: &alpc.Client{Token: reader("noise")}})
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.server.ServePort(context.Background(), server)
		}()
		for range 10 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			call := r.Uint32N(3)
			body := make([]byte, r.IntN(100))
			for i := range body {
				body[i] = byte(r.Uint32())
			}
			if r.IntN(2) == 0 {
				peer.Send(ctx, &alpc.Message{Data: rpc.RawDatagram(uint8(5+r.IntN(8)), uint8(r.IntN(8)), call, uint32(r.IntN(200)), body)})
			} else {
				methods := []string{echo, chat, "/sallyport.rpc.test.Library/List", "/sallyport.rpc.test.Library/WriteMany", "", "/"}
				peer.Call(ctx, &alpc.Message{Data: rpc.RawRequest(uint8(1+r.IntN(4)), uint8(r.IntN(8)), call, uint32(r.IntN(2))<<20, methods[r.IntN(len(methods))], body)})
			}
			cancel()
		}
		peer.Close()
		<-done
	}
	_, err := f.client.Echo(short(t), &testpb.Book{})
	require.NoError(t, err)
	require.Zero(t, f.server.Buffered())
}

// A server may be hostile too: its client gets an error and loses the connection.
func TestAServerThatBreaksTheProtocol(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":           nil,
		"not a reply":       rpc.RawDatagram(7, 4, 1, 0, nil),
		"lengths beyond":    append([]byte{4, 0, 0, 0, 255, 255, 255, 255}, make([]byte, 16)...),
		"status that is OK": append(append([]byte{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0}, make([]byte, 8)...), 8, 0),
		"endless fetch":     append([]byte{4, 8, 0, 0}, append(make([]byte, 12), 255, 255, 255, 255, 255, 255, 255, 255)...),
		"empty pieces":      append([]byte{4, 8, 0, 0}, append(make([]byte, 12), 255, 0, 0, 0, 0, 0, 0, 0)...),
		"not protobuf":      append(append([]byte{4, 0, 0, 0}, make([]byte, 20)...), 255, 255, 255),
	} {
		t.Run(name, func(t *testing.T) {
			client, server, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
			require.NoError(t, err)
			defer server.Close()
			go func() {
				for {
					m, err := server.Receive(context.Background())
					if err != nil {
						return
					}
					if m.Type == alpc.TypeRequest {
						server.Reply(context.Background(), m, &alpc.Message{Data: answer})
					}
				}
			}()
			conn := rpc.NewConn(client)
			defer conn.Close()
			_, err = testpb.NewLibraryClient(conn).Echo(short(t), &testpb.Book{})
			require.Error(t, err)
			stream, err := testpb.NewLibraryClient(conn).List(short(t), &testpb.Book{})
			if err == nil {
				_, err = stream.Recv()
			}
			require.Error(t, err)
		})
	}
}

func TestAServerThatDiesBeforeItSentWhatItsReplyPromised(t *testing.T) {
	client, server, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
	require.NoError(t, err)
	conn := rpc.NewConn(client)
	defer conn.Close()
	stream, err := testpb.NewLibraryClient(conn).List(short(t), &testpb.Book{})
	require.NoError(t, err)
	m, err := server.Receive(short(t))
	require.NoError(t, err)
	promise := append([]byte{4, 0, 0, 0}, append(make([]byte, 12), 1, 0, 0, 0, 0, 0, 0, 0)...)
	require.NoError(t, server.Reply(short(t), m, &alpc.Message{Data: promise}))
	require.NoError(t, server.Close())
	_, err = stream.Recv()
	require.ErrorIs(t, err, ntstatus.PortDisconnected)
}

var _ grpc.ClientConnInterface = (*rpc.Conn)(nil)
