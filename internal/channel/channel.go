// Package channel is one connection between two processes that distrust each other: a SOCK_SEQPACKET socket and, when it
// is hot, one sealed section with a ring each way. docs/protocol.md has the wire as prose.
//
// The peer may write anything anywhere in the section at any time and send anything on the socket. It can end its own
// connection with that and nothing else: positions are read once and checked, headers are copied before they are
// checked, payload is copied before anybody sees it, a fault in the section is an error, every wait has a bound and
// looks again, and nothing of the peer's is kept in unbounded memory.
//
// One goroutine at a time sends (Send and Shift take turns), one at a time receives (the caller's business). Lock order:
//
//	tx (the right to send)
//	  mapped (a leaf: the section may not vanish under a waker)
//
// Teardown: End may come from anywhere; Release comes once, from the owner, when nobody is in Recv any more.
package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sallyport/internal/fdtype"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

// Gear is how one direction carries its frames.
type Gear uint32

// The two gears.
const (
	Socket Gear = 0
	Shared Gear = 1
)

// sectionWait bounds the wait of a receiver that was told to read the ring before it was handed the section.
const sectionWait = 5 * time.Second

// ErrShifted is Recv's way to say that the direction changed its gear and the next Recv reads elsewhere.
var ErrShifted = errors.New("the connection shifted its gear")

// buffers is a cache without observable state.
var buffers = unixsock.NewPool(MaxFrame)

// Options describe one end.
type Options struct {
	Side    int         // 0 is the client's end, 1 the server's
	PeerPID int         // the only process that may send here, in our pid namespace
	Accepts fdtype.Kind // the kinds of handle that may come
	Line    *Line       // live counters; nil: private ones
}

// Frame is a received frame. Payload and Files are the receiver's.
type Frame struct {
	Header
	Payload []byte
	Memory  *Memory // of a long Payload: who is through with that may free it
	Files   []*os.File
	Kinds   []fdtype.Kind // of Files, proven
}

// Close closes the frame's files, without waiting: a file system of the peer's own may hold up a close.
func (f *Frame) Close() {
	if files := f.Files; len(files) > 0 {
		go func() {
			for _, file := range files {
				file.Close()
			}
		}()
	}
	f.Files = nil
}

// Channel is one end of a connection.
type Channel struct {
	conn *unixsock.Conn
	o    Options
	line *Line

	tx  chan struct{} // the right to send; holds one token while somebody sends
	out struct {      // the sender's
		sequence uint32
		position uint32
		spinner  spinner
		head     [HeaderLen + 4*MaxHandles]byte
	}
	outGear atomic.Uint32 // written by the sender

	in struct { // the receiver's
		sequence uint32
		position uint32
		spinner  spinner
	}
	inGear atomic.Uint32 // written by the receiver

	answer    atomic.Uint32 // the gear that the peer's last shift asks us to send in
	answering atomic.Bool

	mapped  sync.Mutex // keeps section from vanishing under wakeSelf
	section *section   // set once, before ready is closed
	ready   chan struct{}

	hung chan struct{} // closed when the peer hung up; what it wrote before can still be read
	hang sync.Once
	once sync.Once
	over atomic.Bool // set before done is closed: cheaper to look at
	done chan struct{}
	err  error // set before over
}

// New makes an end of conn, which it takes.
func New(conn *unixsock.Conn, o Options) (*Channel, error) {
	if o.PeerPID <= 0 || o.Side&^1 != 0 {
		conn.Close()
		return nil, ntstatus.Errorf("channel.New", "", ntstatus.InvalidParameter, "peer %d on side %d", o.PeerPID, o.Side)
	}
	if o.Accepts == 0 {
		if err := conn.SetPassRights(false); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			conn.Close()
			return nil, ntstatus.Wrap("channel.New", "", err)
		}
	}
	c := &Channel{conn: conn, o: o, line: o.Line, tx: make(chan struct{}, 1), ready: make(chan struct{}), hung: make(chan struct{}), done: make(chan struct{})}
	if c.line == nil {
		c.line = new(Line)
	}
	c.out.spinner, c.in.spinner = newSpinner(), newSpinner()
	return c, nil
}

// Done is closed when the connection has ended; Err then says why.
func (c *Channel) Done() <-chan struct{} { return c.done }

// Err is nil until Done.
func (c *Channel) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Counters returns the line of live counters.
func (c *Channel) Counters() *Line { return c.line }

// Gears returns the gears that this end sends in and receives in.
func (c *Channel) Gears() (out, in Gear) { return Gear(c.outGear.Load()), Gear(c.inGear.Load()) }

// disconnected is the error of a connection that is no more.
func disconnected() error {
	return ntstatus.New("channel.Receive", "", ntstatus.PortDisconnected)
}

// gone says why a wait must end: the connection is over, the peer hung up, or ctx is done.
func (c *Channel) gone(ctx context.Context) error {
	if c.over.Load() {
		return c.err
	}
	if c.gotHangup() {
		return disconnected()
	}
	return ctx.Err()
}

// Attach maps the section, which both ends must have been handed by the one that they trust, and closes it.
func (c *Channel) Attach(f *os.File) error {
	defer f.Close()
	s, err := mapSection(f)
	if err != nil {
		return err
	}
	c.mapped.Lock()
	defer c.mapped.Unlock()
	if c.section != nil || c.over.Load() {
		s.unmap()
		return ntstatus.New("channel.Attach", "", ntstatus.InvalidDeviceState)
	}
	c.section = s
	close(c.ready)
	return nil
}

// Attached reports whether the connection has its section.
func (c *Channel) Attached() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// Send sends one frame and waits, under ctx, for its turn and for room. A frame is sent whole or not at all. Files stay
// the caller's; kinds are theirs.
func (c *Channel) Send(ctx context.Context, h *Header, payload []byte, files []*os.File, kinds []fdtype.Kind) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	return c.send(ctx, h, payload, files, kinds)
}

func (c *Channel) acquire(ctx context.Context) error {
	select {
	case c.tx <- struct{}{}:
	default:
		select {
		case c.tx <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.done:
			return c.err
		}
	}
	if c.over.Load() {
		c.release()
		return c.err
	}
	return nil
}

func (c *Channel) release() { <-c.tx }

func (c *Channel) send(ctx context.Context, h *Header, payload []byte, files []*os.File, kinds []fdtype.Kind) error {
	h.Handles = uint8(len(files))
	h.Sequence = c.out.sequence
	size := HeaderLen + 4*len(files)
	h.Length = uint32(size + len(payload))
	if len(files) > MaxHandles || len(files) != len(kinds) || h.Length > MaxFrame {
		return ntstatus.New("channel.Send", "", ntstatus.PortMessageTooLong)
	}
	head := c.out.head[:size]
	h.encode((*[HeaderLen]byte)(head))
	for i, k := range kinds {
		binary.LittleEndian.PutUint32(head[HeaderLen+4*i:], uint32(k))
	}
	var err error
	shared := Gear(c.outGear.Load()) == Shared
	if shared && len(files) > 0 {
		// A frame with handles goes over the socket; then only its mark is in the ring, to keep the order. The room for the
		// mark is had before the frame is sent, so that there is never one without the other.
		err = c.room(ctx, slot(HeaderLen))
	}
	if err == nil && (!shared || len(files) > 0) {
		err = c.sendSocket(ctx, head, payload, files)
	}
	if err == nil && shared {
		if len(files) > 0 {
			mark := Header{Length: HeaderLen, Type: onSocket, Sequence: h.Sequence}
			mark.encode((*[HeaderLen]byte)(head))
			head, payload = head[:HeaderLen], nil
		}
		err = c.write(ctx, head, payload)
	}
	if err != nil {
		return c.sendFailed(ctx, err)
	}
	c.out.sequence++
	if h.Type < shiftUp {
		c.line.sent(h.Length)
	}
	return nil
}

// sendFailed sorts errors: those of ctx and of what the caller sent leave the connection whole.
func (c *Channel) sendFailed(ctx context.Context, err error) error {
	switch {
	case c.over.Load():
		return c.err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.EPERM):
		return ntstatus.Errorf("channel.Send", "", ntstatus.ObjectTypeMismatch, "the peer takes no handles")
	case errors.Is(err, syscall.ETOOMANYREFS):
		return ntstatus.Errorf("channel.Send", "", ntstatus.QuotaExceeded, "too many handles on their way: %w", err)
	case errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EBADF), errors.Is(err, syscall.EINVAL):
		return ntstatus.Errorf("channel.Send", "", ntstatus.InvalidHandle, "%w", err)
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		return ntstatus.Errorf("channel.Send", "", ntstatus.InsufficientResources, "%w", err)
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ENOTCONN):
		// Whether the peer wrote something before it left is the receiver's to find out.
		return disconnected()
	}
	c.End(err)
	return err
}

func (c *Channel) sendSocket(ctx context.Context, head, payload []byte, files []*os.File) error {
	if len(files) == 0 {
		return c.sendFDs(ctx, head, payload, nil)
	}
	return unixsock.WithFDs(files, func(fds []int) error { return c.sendFDs(ctx, head, payload, fds) })
}

func (c *Channel) sendFDs(ctx context.Context, head, payload []byte, fds []int) error {
	err := c.conn.TrySendParts(head, payload, fds)
	if err != unixsock.ErrWouldBlock {
		return err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	err = c.conn.SendParts(head, payload, fds)
	if !stop() {
		<-fired
		c.conn.SetWriteDeadline(time.Time{})
	}
	return err
}

// Shift changes the gear that this end sends in; what was sent before arrives before. The peer answers in kind. The
// section must be attached.
func (c *Channel) Shift(ctx context.Context, g Gear) error { return c.shift(ctx, g, 0) }

func (c *Channel) shift(ctx context.Context, g Gear, flags uint16) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if Gear(c.outGear.Load()) == g {
		return nil
	}
	h := Header{Type: shiftUp, Flags: flags}
	switch {
	case g == Socket:
		h.Type = shiftDown
	case !c.Attached():
		return ntstatus.Errorf("channel.Shift", "", ntstatus.InvalidDeviceState, "no section attached")
	}
	if err := c.send(ctx, &h, nil, nil, nil); err != nil {
		return err
	}
	c.outGear.Store(uint32(g))
	return nil
}

// Recv returns the peer's next frame. On the socket it waits whatever ctx says, until the connection ends; in the ring
// it obeys ctx. ErrShifted means that the next Recv reads in the other gear, any other error but ctx's that the
// connection has ended.
func (c *Channel) Recv(ctx context.Context) (Frame, error) {
	if c.over.Load() {
		return Frame{}, c.err
	}
	var f Frame
	var err error
	if Gear(c.inGear.Load()) == Socket {
		f, err = c.recvSocket(c.conn.RecvPool)
	} else {
		f, err = c.recvRing(ctx)
	}
	if err == nil && f.Sequence != c.in.sequence {
		err = violation("frame %d where %d was due", f.Sequence, c.in.sequence)
	}
	if err == nil {
		c.in.sequence++
		if f.Type < shiftUp {
			c.line.received(f.Length)
		}
		err = c.follow(&f)
	}
	if err != nil {
		f.Close()
		if err != ErrShifted && err != ctx.Err() {
			c.End(err)
			err = c.err
		}
		return Frame{}, err
	}
	return f, nil
}

func (c *Channel) recvSocket(recv func(*unixsock.Pool) (*unixsock.Buffer, int, []int, unixsock.Ucred, error)) (f Frame, err error) {
	b, n, fds, cred, err := recv(buffers)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return f, disconnected()
		}
		return f, ntstatus.Errorf("channel.Receive", "", ntstatus.InvalidMessage, "%w", err)
	}
	defer buffers.Put(b)
	if err := c.check(&f, b.Data[:n], fds, cred); err != nil {
		unixsock.Discard(fds)
		return f, err
	}
	for _, fd := range fds {
		f.Files = append(f.Files, os.NewFile(uintptr(fd), "handle"))
	}
	if data := b.Data[HeaderLen+4*len(fds) : n]; len(data) > 0 {
		f.Payload, f.Memory = payload(len(data))
		copy(f.Payload, data)
	}
	return f, nil
}

// check decodes and checks the datagram that came with fds, which stay the caller's.
func (c *Channel) check(f *Frame, data []byte, fds []int, cred unixsock.Ucred) error {
	if cred.PID != c.o.PeerPID {
		return ntstatus.Errorf("channel.Receive", "", ntstatus.AccessDenied, "message of process %d on the connection of process %d", cred.PID, c.o.PeerPID)
	}
	if len(data) < HeaderLen {
		return violation("datagram of %d bytes", len(data))
	}
	if err := f.decode((*[HeaderLen]byte)(data)); err != nil {
		return err
	}
	if int(f.Length) != len(data) || int(f.Handles) != len(fds) || f.Type == shiftDown || f.Type == onSocket {
		return violation("%s of %d bytes and %d handles in a datagram of %d and %d", f.Type, f.Length, f.Handles, len(data), len(fds))
	}
	for i, fd := range fds {
		said := fdtype.Kind(binary.LittleEndian.Uint32(data[HeaderLen+4*i:]))
		kind := fdtype.OfFD(fd)
		if kind == 0 || kind != said || kind&c.o.Accepts == 0 {
			return ntstatus.Errorf("channel.Receive", "", ntstatus.ObjectTypeMismatch, "handle of type %#x, said to be %#x; taken are %#x", kind, said, c.o.Accepts)
		}
		if kind == fdtype.File || kind == fdtype.Directory {
			// Or package os would poll it, which a file system of the peer's own may hold up.
			fdtype.SetBlocking(fd)
		}
		f.Kinds = append(f.Kinds, kind)
	}
	return nil
}

func (c *Channel) recvRing(ctx context.Context) (f Frame, err error) {
	if f, err = c.read(ctx); err != nil {
		return f, err
	}
	switch h := f.Header; {
	case h.Type == onSocket:
		// The sender sent the frame first, so it is there.
		if f, err = c.recvSocket(c.conn.TryRecvPool); err == nil && (f.Sequence != h.Sequence || len(f.Files) == 0) {
			err = violation("frame %d on the socket, %d marked in the ring", f.Sequence, h.Sequence)
		}
		return f, err
	case h.Type == shiftUp, h.Handles != 0:
		return f, violation("%s with %d handles in the ring", h.Type, h.Handles)
	}
	return f, nil
}

// follow obeys the peer's shift and answers it.
func (c *Channel) follow(f *Frame) error {
	var g Gear
	switch f.Type {
	case shiftUp:
		g = Shared
		bound := time.NewTimer(sectionWait)
		defer bound.Stop()
		select {
		case <-c.ready:
		case <-c.done:
			return c.err
		case <-bound.C:
			return violation("shifted without a section")
		}
	case shiftDown:
		g = Socket
	default:
		return nil
	}
	c.inGear.Store(uint32(g))
	if f.Flags&flagAnswer == 0 {
		c.answer.Store(uint32(g))
		if c.answering.CompareAndSwap(false, true) {
			go c.answerShift()
		}
	}
	return ErrShifted
}

// answerShift follows the peer's last shift with our own direction. There is one at a time, however often the peer shifts.
func (c *Channel) answerShift() {
	for {
		g := c.answer.Load()
		ctx, cancel := context.WithTimeout(context.Background(), sectionWait)
		c.shift(ctx, Gear(g), flagAnswer) // where it fails the directions differ in gear, which is allowed
		cancel()
		c.answering.Store(false)
		if c.answer.Load() == g || !c.answering.CompareAndSwap(false, true) {
			return
		}
	}
}

// WatchHangup waits until the peer hung up or StopWatch. It must not run while Recv reads the socket. After a hang-up,
// Recv in the ring returns what is left there and then the end.
func (c *Channel) WatchHangup() {
	if err := c.conn.WaitHangup(); errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	c.hang.Do(func() { close(c.hung) })
	c.wakeSelf()
}

// StopWatch makes the WatchHangup that runs, or else the next one, return. ReadAgain undoes it.
func (c *Channel) StopWatch() { c.conn.SetReadDeadline(time.Unix(1, 0)) }

// ReadAgain allows Recv on the socket after StopWatch.
func (c *Channel) ReadAgain() { c.conn.SetReadDeadline(time.Time{}) }

// Hangup makes the connection as if the peer had closed it, for one that is known to be dead while somebody else still
// holds its end. What it sent before still arrives.
func (c *Channel) Hangup() { c.conn.Shutdown() }

// HungUp is closed when a WatchHangup saw the peer hang up.
func (c *Channel) HungUp() <-chan struct{} { return c.hung }

func (c *Channel) gotHangup() bool {
	select {
	case <-c.hung:
		return true
	default:
		return false
	}
}

// End ends the connection for both sides; the first caller's reason is Err, nil is an orderly close. The peer is told the
// status where that needs no wait.
func (c *Channel) End(reason error) {
	c.once.Do(func() {
		status := ntstatus.Of(reason)
		if reason == nil {
			reason = ntstatus.New("channel.End", "", ntstatus.PortClosed)
		}
		select {
		case c.tx <- struct{}{}:
			if status != ntstatus.Success && status != ntstatus.PortDisconnected && Gear(c.outGear.Load()) == Socket {
				var b [HeaderLen]byte
				h := Header{Length: HeaderLen, Type: PortClosed, Sequence: c.out.sequence, Status: status}
				h.encode(&b)
				c.conn.TrySend(b[:], nil)
			}
			<-c.tx
		default:
		}
		c.err = reason
		c.over.Store(true)
		close(c.done)
		c.conn.Shutdown()
		c.wakeSelf()
	})
}

// Release waits for the sender and gives everything back. It comes once, after End, from the one that receives.
func (c *Channel) Release() {
	c.tx <- struct{}{} // for good: nobody sends any more
	c.mapped.Lock()
	if c.section != nil {
		c.section.unmap()
		c.section = nil
	}
	c.mapped.Unlock()
	c.conn.Close()
}
