package alpc_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/internal/unixsock"
)

// rawEnv makes the test binary echo datagrams on descriptor 3: what the socket alone costs between two processes.
const rawEnv = "ALPC_TEST_RAW"

func echoRaw() {
	conn, err := unixsock.NewConn(3)
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, _, err := conn.Recv(buf)
		if err != nil || conn.Send(buf[:n], nil) != nil {
			return
		}
	}
}

// BenchmarkCall compares, in one run and between two processes, a bare SEQPACKET socket with both gears.
func BenchmarkCall(b *testing.B) {
	for _, size := range []int{64, 1024, 32 << 10} {
		data := make([]byte, size)
		data[0] = 'e'
		b.Run(fmt.Sprintf("raw/%d", size), func(b *testing.B) {
			fds, err := unixsock.PairFDs()
			require.NoError(b, err)
			theirs := os.NewFile(uintptr(fds[1]), "socket")
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), rawEnv+"=1")
			cmd.ExtraFiles = []*os.File{theirs}
			require.NoError(b, cmd.Start())
			theirs.Close()
			conn, err := unixsock.NewConn(fds[0])
			require.NoError(b, err)
			buf := make([]byte, 1<<16)
			for b.Loop() {
				if err := conn.Send(data, nil); err != nil {
					b.Fatal(err)
				}
				if _, _, _, err := conn.Recv(buf); err != nil {
					b.Fatal(err)
				}
			}
			conn.Close()
			cmd.Wait()
		})
		for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
			b.Run(fmt.Sprintf("%s/%d", gear, size), func(b *testing.B) {
				p := connectProcess(b)
				require.NoError(b, p.Shift(b.Context(), gear))
				m := &alpc.Message{Data: data}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := p.Call(context.Background(), m); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCallers is many callers on one connection.
func BenchmarkCallers(b *testing.B) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		b.Run(gear.String(), func(b *testing.B) {
			p := connectProcess(b)
			require.NoError(b, p.Shift(b.Context(), gear))
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				m := &alpc.Message{Data: make([]byte, 64)}
				m.Data[0] = 'e'
				for pb.Next() {
					if _, err := p.Call(context.Background(), m); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
