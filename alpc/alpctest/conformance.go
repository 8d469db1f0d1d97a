package alpctest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// PeerMaxPending is the MaxPending, and PeerHandles the handle types, that both ends of a connection under Conformance
// are made with.
const (
	PeerMaxPending = 16
	PeerHandles    = alpc.HandlePipe
)

// The first byte of a request to ServePeer says what to do with the rest.
const (
	doEcho     = 'e' // reply with the rest and the same handles
	doHold     = 'h' // tell by datagram, reply only when canceled, and tell again
	doDie      = 'd' // end the connection without a word
	doCount    = 'n' // reply with how many numbered datagrams came
	doCallBack = 'c' // call the client with the rest and reply with its reply
	doHeader   = 't' // reply with deadline, trace id and context id
	doPause    = 'p' // receive nothing for as many milliseconds as the rest says
	doTwice    = 'r' // reply twice and tell the second status by datagram
)

// ServePeer is the far side of a connection under Conformance: in a goroutine, or in a process of its own. It returns
// when the connection has ended.
func ServePeer(port *alpc.Port) error {
	ctx := context.Background()
	var next uint64
	held := make(map[uint32]*alpc.Message)
	for {
		m, err := port.Receive(ctx)
		if err != nil {
			port.Close()
			return err
		}
		switch m.Type {
		case alpc.TypeDatagram:
			if len(m.Data) < 8 || binary.LittleEndian.Uint64(m.Data) != next {
				port.Close()
				return fmt.Errorf("datagram % x where number %d was due", m.Data[:min(8, len(m.Data))], next)
			}
			next++
			continue
		case alpc.TypeCanceled:
			if r := held[m.ID]; r != nil {
				delete(held, m.ID)
				port.Reply(ctx, r, &alpc.Message{})
				port.Send(ctx, &alpc.Message{Data: []byte("canceled")})
			}
			continue
		case alpc.TypeRequest:
		default:
			port.Close()
			return fmt.Errorf("message of type %s", m.Type)
		}
		if len(m.Data) == 0 {
			port.Close()
			return errors.New("empty request")
		}
		rest := m.Data[1:]
		switch m.Data[0] {
		case doEcho:
			err = port.Reply(ctx, m, &alpc.Message{Data: rest, Handles: m.Handles})
		case doHold:
			held[m.ID] = m
			err = port.Send(ctx, &alpc.Message{Data: []byte("held")})
		case doDie:
			port.Close()
		case doCount:
			err = port.Reply(ctx, m, &alpc.Message{Data: binary.LittleEndian.AppendUint64(nil, next)})
		case doCallBack:
			go func() {
				r, err := port.Call(ctx, &alpc.Message{Data: rest})
				if err != nil {
					r = &alpc.Message{Data: []byte(err.Error())}
				}
				port.Reply(ctx, m, &alpc.Message{Data: r.Data})
			}()
		case doHeader:
			b := binary.LittleEndian.AppendUint64(nil, uint64(time.Until(m.Deadline)))
			b = append(b, m.TraceID[:]...)
			err = port.Reply(ctx, m, &alpc.Message{Data: b})
		case doPause:
			time.Sleep(time.Duration(binary.LittleEndian.Uint16(rest)) * time.Millisecond)
			err = port.Reply(ctx, m, &alpc.Message{})
		case doTwice:
			first := port.Reply(ctx, m, &alpc.Message{})
			second := port.Reply(ctx, m, &alpc.Message{})
			err = errors.Join(first, port.Send(ctx, &alpc.Message{Data: binary.LittleEndian.AppendUint32(nil, uint32(ntstatus.Of(second)))}))
		}
		m.CloseHandles()
		if err != nil && !errors.Is(err, ntstatus.PortClosed) && !errors.Is(err, ntstatus.PortDisconnected) {
			port.Close()
			return err
		}
	}
}

// Conformance checks that a transport keeps what package alpc promises. connect makes a connection whose far side runs
// ServePeer, in the gear to test, with PeerMaxPending and PeerHandles at both ends.
func Conformance(t *testing.T, connect func(t *testing.T) *alpc.Port) {
	for name, body := range map[string]func(t *testing.T, p *alpc.Port){
		"echoes every length":                       echoesEveryLength,
		"refuses what is too long and lives":        refusesTooLong,
		"keeps datagrams and requests in order":     keepsOrder,
		"serves many callers":                       servesManyCallers,
		"passes handles of declared types only":     passesHandles,
		"tells the server of a cancel":              tellsCancel,
		"carries deadline and trace":                carriesHeader,
		"refuses more than MaxPending":              refusesMoreThanMaxPending,
		"calls back while the client waits":         callsBack,
		"shifts under load without loss":            shiftsUnderLoad,
		"makes a sender wait, not memory grow":      pushesBack,
		"answers a request once":                    answersOnce,
		"wakes every waiter when the peer is gone":  wakesWaiters,
		"wakes its own waiters when it is closed":   closeWakes,
		"counts what went through":                  counts,
		"obeys the context of a Receive in silence": receiveObeysContext,
	} {
		t.Run(name, func(t *testing.T) { body(t, connect(t)) })
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func request(what byte, rest ...byte) *alpc.Message {
	return &alpc.Message{Data: append([]byte{what}, rest...)}
}

func echo(ctx context.Context, p *alpc.Port, data []byte) error {
	r, err := p.Call(ctx, request(doEcho, data...))
	if err == nil && string(r.Data) != string(data) {
		err = fmt.Errorf("sent %d bytes, got %d others", len(data), len(r.Data))
	}
	return err
}

func echoesEveryLength(t *testing.T, p *alpc.Port) {
	for _, n := range []int{0, 1, 62, 63, 64, 65, 4096, 30000, p.MaxMessageLength() - 1} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i * 31)
		}
		for range 4 {
			require.NoError(t, echo(within(t), p, data), n)
		}
	}
}

func refusesTooLong(t *testing.T, p *alpc.Port) {
	_, err := p.Call(within(t), &alpc.Message{Data: make([]byte, p.MaxMessageLength()+1)})
	require.ErrorIs(t, err, ntstatus.PortMessageTooLong)
	_, err = p.Call(within(t), &alpc.Message{Data: []byte{doEcho}, Handles: make([]alpc.Handle, alpc.MaxHandles+1)})
	require.ErrorIs(t, err, ntstatus.PortMessageTooLong)
	require.NoError(t, echo(within(t), p, []byte("alive")))
}

func sendNumbered(ctx context.Context, p *alpc.Port, from, to int) error {
	for i := from; i < to; i++ {
		data := binary.LittleEndian.AppendUint64(nil, uint64(i))
		if err := p.Send(ctx, &alpc.Message{Data: append(data, make([]byte, i%700)...)}); err != nil {
			return err
		}
	}
	return nil
}

func requireCount(t *testing.T, p *alpc.Port, n int) {
	r, err := p.Call(within(t), request(doCount))
	require.NoError(t, err)
	require.EqualValues(t, n, binary.LittleEndian.Uint64(r.Data))
}

func keepsOrder(t *testing.T, p *alpc.Port) {
	for i := range 20 {
		require.NoError(t, sendNumbered(within(t), p, i*50, (i+1)*50))
		requireCount(t, p, (i+1)*50)
	}
}

func servesManyCallers(t *testing.T, p *alpc.Port) {
	ctx := within(t)
	errs := make(chan error, 8)
	for caller := range cap(errs) {
		go func() {
			var err error
			for i := 0; i < 200 && err == nil; i++ {
				err = echo(ctx, p, fmt.Appendf(nil, "%d of %d", i, caller))
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
}

func passesHandles(t *testing.T, p *alpc.Port) {
	for range 50 {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		m := request(doEcho, []byte("with a pipe")...)
		m.Handles = []alpc.Handle{{File: w}, {Type: alpc.HandlePipe, File: r}}
		reply, err := p.Call(within(t), m)
		require.NoError(t, err)
		require.Equal(t, "with a pipe", string(reply.Data))
		require.Len(t, reply.Handles, 2)
		require.NoError(t, w.Close())
		_, err = reply.Handles[0].File.WriteString("through")
		require.NoError(t, err)
		reply.CloseHandles()
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "through", string(got))
		require.NoError(t, r.Close())
		require.NoError(t, echo(within(t), p, []byte("between")))
	}
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer self.Close()
	m := request(doEcho)
	m.Handles = []alpc.Handle{{Type: alpc.HandlePipe, File: self}}
	_, err = p.Call(within(t), m)
	require.ErrorIs(t, err, ntstatus.ObjectTypeMismatch, "the sender finds out")
	require.NoError(t, echo(within(t), p, []byte("alive")))
	m.Handles[0].Type = alpc.HandleFile
	_, err = p.Call(within(t), m)
	require.Error(t, err, "the receiver doesn't take files")
	<-p.Done()
	require.Error(t, p.Err())
}

func requireTold(t *testing.T, p *alpc.Port, what string) {
	m, err := p.Receive(within(t))
	require.NoError(t, err)
	require.Equal(t, what, string(m.Data))
}

func tellsCancel(t *testing.T, p *alpc.Port) {
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan error, 1)
	go func() {
		_, err := p.Call(ctx, request(doHold))
		done <- err
	}()
	requireTold(t, p, "held")
	cancel()
	require.ErrorIs(t, <-done, ntstatus.RequestCanceled)
	requireTold(t, p, "canceled")
	require.NoError(t, echo(within(t), p, []byte("alive")))
}

func carriesHeader(t *testing.T, p *alpc.Port) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m := request(doHeader)
	m.TraceID = [16]byte{1, 2, 3, 15: 16}
	r, err := p.Call(ctx, m)
	require.NoError(t, err)
	require.InDelta(t, time.Minute.Seconds(), time.Duration(binary.LittleEndian.Uint64(r.Data)).Seconds(), 5)
	require.Equal(t, m.TraceID[:], r.Data[8:24])

	short, stop := context.WithTimeout(context.Background(), time.Millisecond)
	defer stop()
	_, err = p.Call(short, request(doHold))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, ntstatus.IOTimeout)
}

func refusesMoreThanMaxPending(t *testing.T, p *alpc.Port) {
	ctx, cancel := context.WithCancel(within(t))
	var held sync.WaitGroup
	for range PeerMaxPending {
		held.Go(func() {
			// An echo may have the last place at the moment.
			for err := error(ntstatus.RPCServerTooBusy); errors.Is(err, ntstatus.RPCServerTooBusy); {
				_, err = p.Call(ctx, request(doHold))
			}
		})
	}
	var err error
	for err == nil {
		err = echo(within(t), p, nil)
	}
	require.ErrorIs(t, err, ntstatus.RPCServerTooBusy)
	cancel()
	held.Wait()
	for range 2 * PeerMaxPending {
		_, err := p.Receive(within(t))
		require.NoError(t, err)
	}
	require.NoError(t, echo(within(t), p, nil), "places come back")
}

func callsBack(t *testing.T, p *alpc.Port) {
	ctx := within(t)
	done := make(chan error, 1)
	go func() {
		m, err := p.Receive(ctx)
		if err == nil {
			err = p.Reply(ctx, m, &alpc.Message{Data: append([]byte("you said "), m.Data...)})
		}
		done <- err
	}()
	r, err := p.Call(ctx, request(doCallBack, []byte("hello")...))
	require.NoError(t, err)
	require.Equal(t, "you said hello", string(r.Data))
	require.NoError(t, <-done)
}

func shiftsUnderLoad(t *testing.T, p *alpc.Port) {
	ctx := within(t)
	errs := make(chan error, 3)
	go func() { errs <- sendNumbered(ctx, p, 0, 2000) }()
	go func() {
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			err = echo(ctx, p, make([]byte, i*7))
		}
		errs <- err
	}()
	go func() {
		var err error
		for i := 0; i < 40 && err == nil; i++ {
			err = p.Shift(ctx, alpc.Gear(i%2))
		}
		errs <- err
	}()
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
	requireCount(t, p, 2000)
	require.NoError(t, p.Shift(ctx, alpc.GearShared))
	require.Equal(t, alpc.GearShared, p.Gear())
	require.NoError(t, echo(ctx, p, []byte("alive")))
}

func pushesBack(t *testing.T, p *alpc.Port) {
	paused := make(chan error, 1)
	go func() {
		_, err := p.Call(within(t), request(doPause, 200, 0))
		paused <- err
	}()
	// Everything between the two ends fills up; then a send can only wait.
	n := 0
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		data := make([]byte, 8000)
		binary.LittleEndian.PutUint64(data, uint64(n))
		err := p.Send(ctx, &alpc.Message{Data: data})
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			break
		}
		n++
		require.Less(t, n, 10000, "nothing pushes back")
	}
	require.NoError(t, <-paused)
	requireCount(t, p, n)
}

func answersOnce(t *testing.T, p *alpc.Port) {
	_, err := p.Call(within(t), request(doTwice))
	require.NoError(t, err)
	m, err := p.Receive(within(t))
	require.NoError(t, err)
	require.Equal(t, ntstatus.ReplyMessageMismatch, ntstatus.Status(binary.LittleEndian.Uint32(m.Data)))
	require.ErrorIs(t, p.Reply(within(t), m, &alpc.Message{}), ntstatus.ReplyMessageMismatch, "a datagram has no reply")
}

func wakesWaiters(t *testing.T, p *alpc.Port) {
	ctx := within(t)
	errs := make(chan error, 6)
	for range 5 {
		go func() {
			_, err := p.Call(ctx, request(doHold))
			errs <- err
		}()
	}
	for range 5 {
		requireTold(t, p, "held")
	}
	go func() {
		_, err := p.Receive(ctx)
		errs <- err
	}()
	_, err := p.Call(ctx, request(doDie))
	require.ErrorIs(t, err, ntstatus.PortDisconnected)
	for range cap(errs) {
		require.ErrorIs(t, <-errs, ntstatus.PortDisconnected)
	}
	<-p.Done()
	require.ErrorIs(t, p.Err(), ntstatus.PortDisconnected)
	require.ErrorIs(t, p.Send(ctx, request(doEcho)), ntstatus.PortDisconnected)
}

func closeWakes(t *testing.T, p *alpc.Port) {
	ctx := within(t)
	errs := make(chan error, 2)
	go func() {
		_, err := p.Call(ctx, request(doHold))
		errs <- err
	}()
	requireTold(t, p, "held")
	go func() {
		_, err := p.Receive(ctx)
		errs <- err
	}()
	require.NoError(t, p.Close())
	for range cap(errs) {
		require.ErrorIs(t, <-errs, ntstatus.PortClosed)
	}
	require.ErrorIs(t, p.Err(), ntstatus.PortClosed)
}

func counts(t *testing.T, p *alpc.Port) {
	before := p.Stats()
	for range 10 {
		require.NoError(t, echo(within(t), p, make([]byte, 99)))
	}
	after := p.Stats()
	require.EqualValues(t, 10, after.MessagesIn-before.MessagesIn)
	require.EqualValues(t, 10, after.MessagesOut-before.MessagesOut)
	require.EqualValues(t, 10*(64+100), after.BytesOut-before.BytesOut)
	require.EqualValues(t, 10*(64+99), after.BytesIn-before.BytesIn)
}

func receiveObeysContext(t *testing.T, p *alpc.Port) {
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		_, err := p.Receive(ctx)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.NoError(t, echo(within(t), p, []byte("alive")))
}
