package rpc_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/rpc/internal/testpb"
)

// Side by side in one run: a port in both gears, with identity and access check on, and grpc-go on a Unix socket.
func transports(b *testing.B, body func(b *testing.B, client testpb.LibraryClient)) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		b.Run("port-"+gear.String(), func(b *testing.B) {
			f := serve(b, still(), config{gear: gear})
			b.ReportAllocs()
			body(b, f.client)
		})
	}
	b.Run("grpc-unix", func(b *testing.B) {
		client := plain(b, still())
		b.ReportAllocs()
		body(b, client)
	})
}

func BenchmarkUnary(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 32 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			transports(b, func(b *testing.B, client testpb.LibraryClient) {
				request := &testpb.Book{Text: make([]byte, size)}
				_, err := client.Echo(context.Background(), request)
				require.NoError(b, err)
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := client.Echo(context.Background(), request); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkUnaryParallel(b *testing.B) {
	transports(b, func(b *testing.B, client testpb.LibraryClient) {
		request := &testpb.Book{Text: make([]byte, 64)}
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := client.Echo(context.Background(), request); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkStream counts messages of 1 KiB that a server streams.
func BenchmarkStream(b *testing.B) {
	transports(b, func(b *testing.B, client testpb.LibraryClient) {
		list, err := client.List(context.Background(), &testpb.Book{Number: int64(b.N), Text: make([]byte, 1<<10)})
		require.NoError(b, err)
		b.SetBytes(1 << 10)
		b.ResetTimer()
		for range b.N {
			if _, err := list.Recv(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpenStream counts whole streams of one message.
func BenchmarkOpenStream(b *testing.B) {
	transports(b, func(b *testing.B, client testpb.LibraryClient) {
		for b.Loop() {
			list, err := client.List(context.Background(), &testpb.Book{Number: 1})
			if err != nil {
				b.Fatal(err)
			}
			for err == nil {
				_, err = list.Recv()
			}
		}
	})
}
