package channel_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sallyport/internal/channel"
	"sallyport/internal/memfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

// heirEnv makes the test binary the heir of a connection's descriptor 3: it sends one well-formed frame on it.
const heirEnv = "CHANNEL_TEST_HEIR"

func TestMain(m *testing.M) {
	if os.Getenv(heirEnv) != "" {
		conn, err := unixsock.NewConn(3)
		if err == nil {
			b := channel.EncodeHeader(&channel.Header{Length: channel.HeaderLen, Type: channel.Datagram})
			err = conn.Send(b[:], nil)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// ends makes a channel and the bare socket of its peer.
func ends(t testing.TB, o channel.Options) (*channel.Channel, *unixsock.Conn) {
	a, b, err := unixsock.Pair()
	require.NoError(t, err)
	o.PeerPID = os.Getpid()
	c, err := channel.New(a, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		c.End(nil)
		c.Release()
		b.Close()
	})
	return c, b
}

func both(t testing.TB) (client, server *channel.Channel) {
	a, b, err := unixsock.Pair()
	require.NoError(t, err)
	section, err := channel.CreateSection(1)
	require.NoError(t, err)
	for side, conn := range []*unixsock.Conn{a, b} {
		c, err := channel.New(conn, channel.Options{Side: side, PeerPID: os.Getpid()})
		require.NoError(t, err)
		t.Cleanup(func() {
			c.End(nil)
			c.Release()
		})
		f, err := memfd.Dup(section)
		require.NoError(t, err)
		require.NoError(t, c.Attach(f))
		if side == 0 {
			client = c
		} else {
			server = c
		}
	}
	section.Close()
	return client, server
}

func TestHeirOfTheSocketIsRefused(t *testing.T) {
	c, peer := ends(t, channel.Options{Side: 1})
	f, err := peer.File()
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), heirEnv+"=1")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(t, cmd.Run())
	f.Close()
	_, err = c.Recv(t.Context())
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	<-c.Done()
	require.ErrorIs(t, c.Err(), ntstatus.AccessDenied)
}

func TestForgedSenderIsRefused(t *testing.T) {
	c, peer := ends(t, channel.Options{Side: 1})
	b := channel.EncodeHeader(&channel.Header{Length: channel.HeaderLen, Type: channel.Datagram})
	err := peer.SendAs(b[:], nil, unixsock.Ucred{PID: 1, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		require.ErrorIs(t, err, os.ErrPermission, "only root may even try")
		return
	}
	_, err = c.Recv(t.Context())
	require.ErrorIs(t, err, ntstatus.AccessDenied)
}

func TestPeerIsToldWhyTheConnectionEnded(t *testing.T) {
	c, peer := ends(t, channel.Options{Side: 1})
	require.NoError(t, peer.Send([]byte("nonsense"), nil))
	_, err := c.Recv(t.Context())
	require.ErrorIs(t, err, ntstatus.InvalidMessage)
	buf := make([]byte, channel.MaxFrame)
	n, _, _, err := peer.Recv(buf)
	require.NoError(t, err)
	require.Equal(t, channel.HeaderLen, n)
	h, err := channel.DecodeHeader((*[channel.HeaderLen]byte)(buf))
	require.NoError(t, err)
	require.Equal(t, channel.PortClosed, h.Type)
	require.Equal(t, ntstatus.InvalidMessage, h.Status)
}

func TestMemoryThatIsGoneEndsTheConnectionOnly(t *testing.T) {
	for name, access := range map[string]func(c *channel.Channel) error{
		"reading": func(c *channel.Channel) error {
			for {
				if _, err := c.Recv(context.Background()); err != channel.ErrShifted {
					return err
				}
			}
		},
		"writing": func(c *channel.Channel) error {
			if err := c.Shift(context.Background(), channel.Shared); err != nil {
				return err
			}
			return c.Send(context.Background(), &channel.Header{Type: channel.Datagram}, []byte("x"), nil, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, peer := ends(t, channel.Options{Side: 1})
			// Without seals, so that it can be made to fault for certain: a hole that can't be filled does the same.
			fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
			require.NoError(t, err)
			require.NoError(t, unix.Ftruncate(fd, channel.SectionSize))
			mem, err := unix.Mmap(fd, 0, channel.SectionSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			require.NoError(t, err)
			c.AttachMemory(mem)
			b := channel.EncodeHeader(&channel.Header{Length: channel.HeaderLen, Type: channel.ShiftUp})
			require.NoError(t, peer.Send(b[:], nil))
			require.NoError(t, unix.Ftruncate(fd, 0))
			unix.Close(fd)
			require.ErrorIs(t, access(c), ntstatus.InvalidMessage)
			<-c.Done()
		})
	}
}

func TestSectionThatIsNotOursIsRefused(t *testing.T) {
	c, _ := ends(t, channel.Options{})
	for name, make := range map[string]func() (*os.File, error){
		"wrong size": func() (*os.File, error) { return memfd.Create("x", 4096) },
		"no magic":   func() (*os.File, error) { return memfd.Create("x", channel.SectionSize) },
		"no memfd":   func() (*os.File, error) { return os.Open("/dev/zero") },
	} {
		f, err := make()
		require.NoError(t, err)
		require.ErrorIs(t, c.Attach(f), ntstatus.InvalidParameter, name)
	}
	require.False(t, c.Attached())
	require.ErrorIs(t, c.Shift(t.Context(), channel.Shared), ntstatus.InvalidDeviceState)
}

// TestRingAgainstAChannel sends frames of random lengths through a ring and a Go channel; the same must come out.
func TestRingAgainstAChannel(t *testing.T) {
	client, server := both(t)
	require.NoError(t, client.Shift(t.Context(), channel.Shared))
	const frames = 20000
	oracle := make(chan []byte, frames)
	failed := make(chan error, 1)
	go func() {
		for i := range frames {
			n := i * 7919 % 3000
			if i%500 == 0 {
				n = channel.MaxPayload
			}
			b := make([]byte, n)
			for j := range b {
				b[j] = byte(i + j)
			}
			oracle <- b
			if err := client.Send(context.Background(), &channel.Header{Type: channel.Datagram, ID: uint32(i)}, b, nil, nil); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	_, err := server.Recv(t.Context())
	require.Equal(t, channel.ErrShifted, err)
	for i := range frames {
		f, err := server.Recv(t.Context())
		require.NoError(t, err)
		if f.ID != uint32(i) || string(f.Payload) != string(<-oracle) {
			t.Fatalf("frame %d is not what was sent", i)
		}
	}
	require.NoError(t, <-failed)
}

func TestFullRingWaitsUnderTheContext(t *testing.T) {
	client, server := both(t)
	require.NoError(t, client.Shift(t.Context(), channel.Shared))
	_, err := server.Recv(t.Context())
	require.Equal(t, channel.ErrShifted, err)
	sent := 0
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		err := client.Send(ctx, &channel.Header{Type: channel.Datagram}, make([]byte, 30000), nil, nil)
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			break
		}
		sent++
	}
	require.Less(t, sent, 6)
	for range sent {
		_, err := server.Recv(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, client.Send(t.Context(), &channel.Header{Type: channel.Datagram}, nil, nil, nil))
}

func TestShiftWithoutASectionWaitsForIt(t *testing.T) {
	a, b, err := unixsock.Pair()
	require.NoError(t, err)
	c, err := channel.New(a, channel.Options{Side: 1, PeerPID: os.Getpid()})
	require.NoError(t, err)
	defer func() { c.End(nil); c.Release(); b.Close() }()
	head := channel.EncodeHeader(&channel.Header{Length: channel.HeaderLen, Type: channel.ShiftUp})
	require.NoError(t, b.Send(head[:], nil))
	got := make(chan error, 1)
	go func() {
		_, err := c.Recv(context.Background())
		got <- err
	}()
	section, err := channel.CreateSection(1)
	require.NoError(t, err)
	require.NoError(t, c.Attach(section))
	require.Equal(t, channel.ErrShifted, <-got)
}

func TestDeadlineSurvivesTheWire(t *testing.T) {
	for _, want := range []time.Time{{}, time.Now().Add(time.Hour), time.Now().Add(-time.Second)} {
		require.WithinDuration(t, want, channel.Time(channel.Deadline(want)), time.Microsecond)
	}
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	require.InDelta(t, ts.Nano(), channel.Deadline(time.Now()), 1e8, "another process must understand it")
}

func TestSlabShowsTheServersCountersToTheCore(t *testing.T) {
	f, err := channel.CreateSlab(100)
	require.NoError(t, err)
	server, err := channel.MapSlab(f, 100, true)
	require.NoError(t, err)
	core, err := channel.MapSlab(f, 100, false)
	require.NoError(t, err)
	line, err := server.Line(42)
	require.NoError(t, err)
	c, peer := ends(t, channel.Options{Line: line})
	require.NoError(t, c.Send(t.Context(), &channel.Header{Type: channel.Datagram}, make([]byte, 36), nil, nil))
	line.AddPending(3)
	line.AddPending(-1)
	_, _, _, err = peer.Recv(make([]byte, 200))
	require.NoError(t, err)
	got, err := core.Read(42)
	require.NoError(t, err)
	require.Equal(t, channel.Counters{MessagesOut: 1, BytesOut: 100, Pending: 2}, got)
	for _, out := range []int{-1, 100} {
		_, err = core.Read(out)
		require.Error(t, err)
		_, err = server.Line(out)
		require.Error(t, err)
	}
	require.NoError(t, memfd.PunchHole(f, 0, 4096))
	got, err = core.Read(42)
	require.NoError(t, err)
	require.Zero(t, got)
	require.NoError(t, f.Close())
}

func FuzzHeader(f *testing.F) {
	for _, h := range []channel.Header{
		{Length: 64, Type: channel.Request, ID: 1},
		{Length: 100, Type: channel.Reply, ID: 7, CallbackID: 2, Status: ntstatus.RPCServerTooBusy},
		{Length: 80, Type: channel.Datagram, Handles: 4, Deadline: 1 << 40, TraceID: [16]byte{1, 15: 2}},
		{Length: 64, Type: channel.ShiftUp, Flags: 1, Sequence: 9},
	} {
		b := channel.EncodeHeader(&h)
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < channel.HeaderLen {
			return
		}
		b := [channel.HeaderLen]byte(data)
		h, err := channel.DecodeHeader(&b)
		if err != nil {
			require.ErrorIs(t, err, ntstatus.InvalidMessage)
			return
		}
		require.Equal(t, b, channel.EncodeHeader(&h))
		require.LessOrEqual(t, h.Length, uint32(channel.MaxFrame))
	})
}

// FuzzRing lets the peer write anything into the section: a reader returns frames or an error, and never waits on it
// past its context.
func FuzzRing(f *testing.F) {
	good := channel.EncodeHeader(&channel.Header{Length: 70, Type: channel.Request, ID: 1, Sequence: 1})
	f.Add(uint32(128), append(good[:], "hello!"...))
	f.Add(uint32(64), good[:])
	f.Add(uint32(1<<31), []byte{})
	mark := channel.EncodeHeader(&channel.Header{Length: 64, Type: channel.OnSocket, Sequence: 1})
	f.Add(uint32(64), mark[:])
	f.Fuzz(func(t *testing.T, tail uint32, data []byte) {
		section, err := channel.CreateSection(1)
		require.NoError(t, err)
		mem, err := memfd.Map(section, channel.SectionSize, true)
		require.NoError(t, err)
		defer memfd.Unmap(mem)
		c, peer := ends(t, channel.Options{Side: 1})
		require.NoError(t, c.Attach(section))
		head := channel.EncodeHeader(&channel.Header{Length: 64, Type: channel.ShiftUp, Flags: 1})
		require.NoError(t, peer.Send(head[:], nil))
		copy(mem[4096:], data)
		copy(mem[256:], []byte{byte(tail), byte(tail >> 8), byte(tail >> 16), byte(tail >> 24)})
		_, err = c.Recv(context.Background())
		require.Equal(t, channel.ErrShifted, err)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for taken := 0; ; taken++ {
			require.LessOrEqual(t, taken, 2048)
			fr, err := c.Recv(ctx)
			if err == channel.ErrShifted {
				return
			}
			if err != nil {
				require.True(t, errors.Is(err, context.Canceled) || ntstatus.Of(err) == ntstatus.InvalidMessage, err)
				return
			}
			require.LessOrEqual(t, len(fr.Payload), channel.MaxFrame)
		}
	})
}

func BenchmarkRawSeqpacket(b *testing.B) {
	client, server, err := unixsock.Pair()
	require.NoError(b, err)
	defer client.Close()
	go func() {
		defer server.Close()
		buf := make([]byte, 256)
		for {
			n, _, _, err := server.Recv(buf)
			if err != nil || server.Send(buf[:n], nil) != nil {
				return
			}
		}
	}()
	msg, buf := make([]byte, 128), make([]byte, 256)
	for b.Loop() {
		if client.Send(msg, nil) != nil {
			b.Fatal("send")
		}
		if _, _, _, err := client.Recv(buf); err != nil {
			b.Fatal(err)
		}
	}
}
