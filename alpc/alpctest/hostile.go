package alpctest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/internal/memfd"
	"sallyport/internal/unixsock"
)

// The wire as docs/protocol.md has it, written down a second time: a hostile peer doesn't use our library.
const (
	frameHeader   = 64
	sectionSize   = 4096 + 2*ringBytes
	ringBytes     = 128 << 10
	clientState   = 256 // the words of the ring that the client's end writes
	serverState   = 256 + 512
	tailWord      = 0
	headWord      = 64
	readerWord    = 128
	writerWord    = 192
	clientRing    = 4096
	typeShift     = 0x100
	typeDown      = 0x101
	typeOnSocket  = 0x102
	attackMoments = 400 * time.Millisecond
)

// attacker is a client's end without our library: the raw socket and the mapped section.
type attacker struct {
	conn     *unixsock.Conn
	section  *os.File
	mem      []byte
	sequence uint32
	position uint32
	random   *rand.Rand
}

// attack is one way to misbehave. ends says that the victim must end the connection for it.
type attack struct {
	ends bool
	run  func(a *attacker)
}

func attacks() map[string]attack {
	return map[string]attack{
		"silence":                 {false, func(a *attacker) {}},
		"short datagram":          {true, func(a *attacker) { a.conn.Send([]byte("short"), nil) }},
		"empty datagram":          {true, func(a *attacker) { a.conn.Send([]byte{}, nil) }},
		"noise":                   {true, func(a *attacker) { a.conn.Send(a.noise(4096), nil) }},
		"giant length":            {true, func(a *attacker) { a.send(a.frame(1, nil, 0, 1<<31)) }},
		"length of nothing":       {true, func(a *attacker) { a.send(a.frame(1, nil, 0, 0)) }},
		"unknown type":            {true, func(a *attacker) { a.send(a.frame(999, []byte("x"))) }},
		"unknown version":         {true, func(a *attacker) { a.send(a.frame(1, []byte("x"), 52, 9)) }},
		"reserved bytes":          {true, func(a *attacker) { a.send(a.frame(1, []byte("x"), 60, 1)) }},
		"flags":                   {true, func(a *attacker) { a.send(a.frame(1, []byte("x"), 6, 1)) }},
		"wrong sequence":          {true, func(a *attacker) { a.send(a.frame(1, []byte("x"), 20, 77)) }},
		"handles that are not":    {true, func(a *attacker) { a.send(a.frame(1, []byte("xxxxxxxx"), 53, 2)) }},
		"too many handles":        {true, func(a *attacker) { a.send(a.frame(1, make([]byte, 1000), 53, 250)) }},
		"mark on the socket":      {true, func(a *attacker) { a.send(a.frame(typeOnSocket, nil)) }},
		"down on the socket":      {true, func(a *attacker) { a.send(a.frame(typeDown, nil)) }},
		"two requests of one id":  {true, func(a *attacker) { a.hold(7); a.hold(7) }},
		"descriptors undeclared":  {true, func(a *attacker) { a.sendFDs(a.frame(3, nil), []int{0, 1, 2}) }},
		"a descriptor flood":      {true, func(a *attacker) { a.sendFDs(a.frame(3, nil), make([]int, unixsock.MaxFDs)) }},
		"its own socket":          {true, ownSocket},
		"replies to nobody":       {false, func(a *attacker) { a.repeat(func() { a.send(a.frame(2, []byte("x"), 8, a.random.Uint32())) }) }},
		"a cancel storm":          {false, func(a *attacker) { a.repeat(func() { a.send(a.frame(12, nil, 8, a.random.Uint32())) }) }},
		"requests, never reading": {true, func(a *attacker) { a.repeat(func() { a.hold(a.random.Uint32() | 1) }) }},
		"datagrams, half reading": {false, func(a *attacker) { a.repeat(func() { a.send(a.frame(3, a.noise(4000))) }) }},
		"shift without end":       {false, shiftStorm},
		"tail jump":               {true, func(a *attacker) { a.shift(); a.set(clientState+tailWord, 1<<30) }},
		"tail backwards":          {true, func(a *attacker) { a.shift(); a.set(clientState+tailWord, ^uint32(63)) }},
		"tail misaligned":         {true, func(a *attacker) { a.shift(); a.set(clientState+tailWord, 65) }},
		"frame beyond the tail":   {true, func(a *attacker) { a.shift(); a.put(a.frame(1, nil, 0, 60000), 64) }},
		"mark without a frame":    {true, func(a *attacker) { a.shift(); a.put(a.frame(typeOnSocket, nil), 64) }},
		"handles in the ring":     {true, func(a *attacker) { a.shift(); a.put(a.frame(1, make([]byte, 4), 53, 1), 128) }},
		"shift in the ring":       {true, func(a *attacker) { a.shift(); a.put(a.frame(typeShift, nil), 64) }},
		"reader's position lies":  {false, func(a *attacker) { a.shift(); a.set(serverState+headWord, 1<<29); a.request("hello") }},
		"flips as fast as it can": {false, flip},
		"scribbles everywhere":    {false, scribble},
		"punches holes":           {false, punch},
		"never wakes":             {false, neverWakes},
		"wakes for nothing":       {false, func(a *attacker) { a.shift(); a.repeat(func() { a.set(clientState+readerWord, 0); a.request("x") }) }},
	}
}

// Attack runs one attack of Hostile from the client's end, whose socket descriptor it takes, in a process of its own. The
// caller is killed when the victim has seen enough.
func Attack(name string, socket int, section *os.File) error {
	at, ok := attacks()[name]
	if !ok {
		return fmt.Errorf("no attack %q", name)
	}
	conn, err := unixsock.NewConn(socket)
	if err != nil {
		return err
	}
	mem, err := memfd.Map(section, sectionSize, true)
	if err != nil {
		return err
	}
	at.run(&attacker{conn: conn, section: section, mem: mem, random: rand.New(rand.NewPCG(1, 2))})
	return conn.WaitHangup() // hold the connection: the victim mustn't need our death
}

// Hostile checks that a peer which breaks every rule ruins its own connection only. start makes a connection whose client
// is a process that runs Attack(name); it returns the victim's end. An innocent client is served all the while.
func Hostile(t *testing.T, start func(t *testing.T, name string) *alpc.Port) {
	innocent, server, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
	require.NoError(t, err)
	go ServePeer(server)
	defer innocent.Close()
	require.NoError(t, innocent.Shift(t.Context(), alpc.GearShared))
	for name, at := range attacks() {
		t.Run(name, func(t *testing.T) {
			victim := start(t, name)
			served := make(chan struct{})
			go func() {
				defer close(served)
				serveVictim(victim)
			}()
			defer func() {
				victim.Close()
				<-served
			}()
			deadline := time.After(8 * time.Second)
			moments := time.After(attackMoments)
			for ended, looked := victim.Done(), at.ends; ended != nil; {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				require.NoError(t, echo(ctx, innocent, []byte("innocent")))
				cancel()
				select {
				case <-ended:
					t.Log(victim.Err())
					ended = nil
				case <-moments:
					if !looked {
						return
					}
				case <-deadline:
					t.Fatal("the victim holds on to the connection")
				default:
				}
			}
		})
	}
}

// serveVictim is a simple server: holds what begins with 'h', echoes the rest, and talks itself, so that its sending is
// attacked too.
func serveVictim(p *alpc.Port) {
	for {
		m, err := p.Receive(context.Background())
		if err != nil {
			return
		}
		m.CloseHandles()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if m.Type == alpc.TypeRequest && (len(m.Data) == 0 || m.Data[0] != doHold) {
			if p.Reply(ctx, m, &alpc.Message{Data: m.Data}) != nil {
				p.Close() // what a server does with a client that doesn't take its replies
			}
		} else {
			p.Send(ctx, &alpc.Message{Data: make([]byte, 1000)})
		}
		cancel()
	}
}

// frame returns a frame of the given type; edits are pairs of a byte offset and a 32-bit value (offsets 6, 52, 53 and 60: a
// byte) that make it wrong.
func (a *attacker) frame(kind uint16, payload []byte, edits ...uint32) []byte {
	b := make([]byte, frameHeader, frameHeader+len(payload))
	le := binary.LittleEndian
	le.PutUint32(b, uint32(frameHeader+len(payload)))
	le.PutUint16(b[4:], kind)
	le.PutUint32(b[8:], a.random.Uint32()|1)
	le.PutUint32(b[20:], a.sequence)
	b[52] = 1
	a.sequence++
	for i := 0; i+1 < len(edits); i += 2 {
		switch at := edits[i]; at {
		case 6, 52, 53, 60:
			b[at] = byte(edits[i+1])
		default:
			le.PutUint32(b[at:], edits[i+1])
		}
	}
	return append(b, payload...)
}

func (a *attacker) send(frame []byte)               { a.sendFDs(frame, nil) }
func (a *attacker) sendFDs(frame []byte, fds []int) { a.conn.Send(frame, fds) }

func (a *attacker) hold(id uint32) { a.send(a.frame(1, []byte{doHold}, 8, id)) }

func (a *attacker) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(a.random.Uint32())
	}
	return b
}

// repeat does something for a while, and reads nothing.
func (a *attacker) repeat(do func()) {
	a.conn.SetWriteDeadline(time.Now().Add(attackMoments))
	for end := time.Now().Add(attackMoments); time.Now().Before(end); {
		do()
	}
}

func (a *attacker) shift() { a.send(a.frame(typeShift, nil)) }

func (a *attacker) set(offset int, v uint32) { storeWord(a.mem, offset, v) }

// put writes a frame where the client's ring is at, and says that it took so many bytes.
func (a *attacker) put(frame []byte, taken uint32) {
	at := a.position % ringBytes
	n := copy(a.mem[clientRing+at:clientRing+ringBytes], frame)
	copy(a.mem[clientRing:], frame[n:])
	a.position += taken
	a.set(clientState+tailWord, a.position)
	wakeWord(a.mem, clientState+readerWord)
}

// request puts a well-formed request into the ring.
func (a *attacker) request(text string) {
	a.put(a.frame(1, []byte(text)), uint32(frameHeader+len(text)+63)&^63)
}

func ownSocket(a *attacker) {
	f, err := a.conn.File()
	if err != nil {
		return
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	b := a.frame(3, binary.LittleEndian.AppendUint32(nil, uint32(alpc.HandleSocket)), 53, 1)
	raw.Control(func(fd uintptr) { a.sendFDs(b, []int{int(fd)}) })
}

func shiftStorm(a *attacker) {
	a.repeat(func() {
		a.shift()
		a.put(a.frame(typeDown, nil), 64)
		a.send(a.frame(1, []byte("x")))
	})
}

// flip changes what a reader may look at twice: a length and the tail.
func flip(a *attacker) {
	a.shift()
	for range 50 {
		a.request("a request whose length is never the same")
	}
	a.repeat(func() {
		for i := range 1000 {
			a.set(clientRing+(i%50)*128, uint32(i*977))
			a.set(clientState+tailWord, uint32(i)*64)
		}
	})
}

func scribble(a *attacker) {
	a.shift()
	a.request("once upon a time")
	a.repeat(func() {
		for range 1000 {
			a.set(int(a.random.Uint32()%(sectionSize/4))*4, a.random.Uint32())
		}
		for _, state := range []int{clientState, serverState} {
			a.set(state+tailWord, a.random.Uint32()%ringBytes&^63)
		}
	})
}

func punch(a *attacker) {
	a.shift()
	a.repeat(func() {
		a.request("hole")
		memfd.PunchHole(a.section, 0, sectionSize)
	})
}

// neverWakes says that it sleeps, stops reading, and clears the words that the victim sleeps on without waking it.
func neverWakes(a *attacker) {
	a.shift()
	a.repeat(func() {
		a.set(clientState+readerWord, 0)
		a.set(serverState+writerWord, 0)
		a.set(serverState+readerWord, 1)
	})
}
