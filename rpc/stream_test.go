package rpc_test

import (
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/alpc"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
)

// settled waits until a counter has stopped moving, and returns it.
func settled(t *testing.T, n *atomic.Int64) int64 {
	t.Helper()
	var last int64
	since := time.Now()
	require.Eventually(t, func() bool {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > 100*time.Millisecond
	}, 10*time.Second, 5*time.Millisecond)
	return last
}

func TestASlowReaderBoundsWhatItsPeerSends(t *testing.T) {
	const window = 128 << 10
	text := make([]byte, 1000)
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run("client "+gear.String(), func(t *testing.T) {
			var sent atomic.Int64
			f := serve(t, &library{list: func(_ *testpb.Book, s grpc.ServerStreamingServer[testpb.Book]) error {
				for range 5000 {
					if err := s.Send(&testpb.Book{Text: text}); err != nil {
						return err
					}
					sent.Add(1)
				}
				return nil
			}}, config{gear: gear, dial: rpc.DialOptions{Window: window}})
			list, err := f.client.List(short(t), &testpb.Book{})
			require.NoError(t, err)
			require.LessOrEqual(t, settled(t, &sent), int64(window/1000))
			_, err = f.client.Echo(short(t), &testpb.Book{}) // it does not hold up other calls
			require.NoError(t, err)
			for range 5000 {
				_, err := list.Recv()
				require.NoError(t, err)
			}
			_, err = list.Recv()
			require.Equal(t, io.EOF, err)
		})
		t.Run("server "+gear.String(), func(t *testing.T) {
			read := make(chan struct{})
			f := serve(t, &library{collect: func(s grpc.ClientStreamingServer[testpb.Book, testpb.Book]) error {
				<-read
				var out testpb.Book
				for {
					_, err := s.Recv()
					if err == io.EOF {
						return s.SendAndClose(&out)
					}
					if err != nil {
						return err
					}
					out.Number++
				}
			}}, config{gear: gear, options: rpc.ServerOptions{Window: window}})
			collect, err := f.client.Collect(short(t))
			require.NoError(t, err)
			var sent atomic.Int64
			done := make(chan error, 1)
			go func() {
				for range 5000 {
					if err := collect.Send(&testpb.Book{Text: text}); err != nil {
						done <- err
						return
					}
					sent.Add(1)
				}
				done <- nil
			}()
			require.LessOrEqual(t, settled(t, &sent), int64(window/1000))
			_, err = f.client.Echo(short(t), &testpb.Book{})
			require.NoError(t, err)
			close(read)
			require.NoError(t, <-done)
			b, err := collect.CloseAndRecv()
			require.NoError(t, err)
			require.EqualValues(t, 5000, b.Number)
		})
	}
}

func TestEmptyMessagesAreNotFree(t *testing.T) {
	var sent atomic.Int64
	f := serve(t, &library{list: func(_ *testpb.Book, s grpc.ServerStreamingServer[testpb.Book]) error {
		for {
			if err := s.Send(&testpb.Book{}); err != nil {
				return err
			}
			sent.Add(1)
		}
	}}, config{})
	ctx, cancel := context.WithCancel(short(t))
	list, err := f.client.List(ctx, &testpb.Book{})
	require.NoError(t, err)
	require.LessOrEqual(t, settled(t, &sent), int64(256<<10/64))
	cancel()
	_, err = list.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))
}

// What a stream that was given up still brings must not fill the port, or replies would wait behind it.
func TestAbandonedStreamsDoNotHoldUpTheConnection(t *testing.T) {
	f := serve(t, still(), config{})
	for range 50 {
		ctx, cancel := context.WithCancel(short(t))
		list, err := f.client.List(ctx, &testpb.Book{Number: 1 << 40})
		require.NoError(t, err)
		_, err = list.Recv()
		require.NoError(t, err)
		cancel()
		_, err = list.Recv()
		require.Equal(t, codes.Canceled, status.Code(err))
		_, err = f.client.Echo(short(t), &testpb.Book{})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		n, reading := f.conn.Streams()
		return n == 0 && !reading
	}, 5*time.Second, time.Millisecond, "nobody receives when there is no stream")
}

func TestAHandlerThatReturnsEarlyEndsTheStream(t *testing.T) {
	f := serve(t, &library{collect: func(s grpc.ClientStreamingServer[testpb.Book, testpb.Book]) error {
		if _, err := s.Recv(); err != nil {
			return err
		}
		return status.Error(codes.OutOfRange, "enough")
	}}, config{})
	collect, err := f.client.Collect(short(t))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return collect.Send(&testpb.Book{Text: make([]byte, 10000)}) == io.EOF }, 5*time.Second, time.Millisecond)
	_, err = collect.CloseAndRecv()
	require.Equal(t, codes.OutOfRange, status.Code(err))
}

// Calls of every kind, canceled at any moment, leave nothing behind.
func TestRandomCancellationLeavesNothing(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run(gear.String(), func(t *testing.T) {
			f := serve(t, still(), config{gear: gear})
			_, err := f.client.Echo(short(t), &testpb.Book{})
			require.NoError(t, err)
			before := runtime.NumGoroutine()
			large := make([]byte, 200<<10)
			var workers sync.WaitGroup
			for w := range 4 {
				workers.Go(func() {
					r := rand.New(rand.NewPCG(uint64(w), 1))
					for i := range 150 {
						ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(400))*time.Microsecond)
						switch i % 5 {
						case 0:
							f.client.Echo(ctx, &testpb.Book{})
						case 1:
							f.client.Echo(ctx, &testpb.Book{Text: large})
						case 2:
							if list, err := f.client.List(ctx, &testpb.Book{Number: 1000}); err == nil {
								for err == nil {
									_, err = list.Recv()
								}
							}
						case 3:
							if collect, err := f.client.Collect(ctx); err == nil {
								for range 3 {
									collect.Send(&testpb.Book{Text: large})
								}
								collect.CloseAndRecv()
							}
						case 4:
							if chat, err := f.client.Chat(ctx); err == nil {
								chat.Send(&testpb.Book{})
								chat.Recv()
							}
						}
						cancel()
					}
				})
			}
			workers.Wait()
			b, err := f.client.Echo(short(t), &testpb.Book{Text: large})
			require.NoError(t, err)
			require.Len(t, b.Text, len(large))
			require.Eventually(t, func() bool {
				n, reading := f.conn.Streams()
				return n == 0 && !reading && f.server.Buffered() == 0 && f.ports[1].Stats().Pending == 0 && runtime.NumGoroutine() <= before+1 // Eventually's own
			}, 5*time.Second, 5*time.Millisecond, "something was left behind")
		})
	}
}
