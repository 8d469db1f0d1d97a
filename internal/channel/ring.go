package channel

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"sallyport/internal/futex"
)

// The wait policy's numbers. PERFORMANCE.md measured the budget: below 5 us callers fall into a lockstep of sleeping and
// waking, above 20 us nothing is gained.
const (
	spinBudget  = 20 * time.Microsecond
	spinChecks  = 64                     // looks between two looks at the clock
	sleepBound  = 250 * time.Millisecond // a lost wake-up costs at most this
	spuriousMax = 16                     // wake-ups for nothing in a row before the sleeper takes a rest
	spuriousNap = time.Millisecond
)

// spinner decides whether to spin: not on a machine with one processor for us, and rarely where it didn't help lately.
type spinner struct {
	off   bool
	fails uint8
	skip  uint8
}

func newSpinner() spinner { return spinner{off: runtime.GOMAXPROCS(0) < 2 || runtime.NumCPU() < 2} }

// spin looks at word until it isn't value or the budget is spent. No Gosched in the loop: it costs 40 times the wait.
func (s *spinner) spin(word *atomic.Uint32, value uint32) bool {
	if s.off {
		return false
	}
	if s.skip > 0 {
		s.skip--
		return false
	}
	var start time.Time // the clock is looked at only when the first looks found nothing
	for {
		for range spinChecks {
			if word.Load() != value {
				s.fails = 0
				return true
			}
		}
		if start.IsZero() {
			start = time.Now()
		} else if time.Since(start) > spinBudget {
			s.fails = min(s.fails+1, 6)
			s.skip = 1<<s.fails - 1
			return false
		}
	}
}

// waitWord waits until position differs from value: spins, then sleeps on sleeper, which the other side clears. It also
// returns when the connection is over or ctx is done. The caller guards against faults.
func (c *Channel) waitWord(ctx context.Context, sp *spinner, position *atomic.Uint32, value uint32, sleeper *atomic.Uint32) {
	if sp.spin(position, value) {
		return
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, c.wakeSelf)
		defer stop()
	}
	for spurious := 0; ; spurious++ {
		// The order matters: say that we sleep, then look again. The other side moves its position, then looks whether
		// somebody sleeps. Go's atomics are sequentially consistent, so one of the two sees the other.
		sleeper.Store(1)
		if position.Load() != value || c.over.Load() || c.gotHangup() || ctx.Err() != nil {
			sleeper.Store(0)
			return
		}
		if spurious >= spuriousMax {
			time.Sleep(spuriousNap) // somebody clears the word for sport; it mustn't cost us a processor
		}
		before := time.Now()
		futex.Wait(sleeper, 1, sleepBound)
		if time.Since(before) >= sleepBound/2 {
			spurious = 0
		}
	}
}

// wake ends the sleep on word, if the other side said that it sleeps.
func wake(sleeper *atomic.Uint32) {
	if sleeper.Load() != 0 {
		sleeper.Store(0)
		futex.Wake(sleeper)
	}
}

// slot returns the bytes that a frame of n bytes takes in a ring.
func slot(n int) uint32 { return uint32(n+slotAlign-1) &^ (slotAlign - 1) }

// put copies b into the ring at position, which may wrap.
func (r *ring) put(position uint32, b []byte) {
	n := copy(r.data[position%ringSize:], b)
	copy(r.data, b[n:])
}

// get copies from the ring at position into b.
func (r *ring) get(position uint32, b []byte) {
	n := copy(b, r.data[position%ringSize:])
	copy(b[n:], r.data)
}

// room waits until the ring that we write has n bytes free.
func (c *Channel) room(ctx context.Context, n uint32) (err error) {
	defer fault(c.section, debug.SetPanicOnFault(true), &err)
	return c.waitRoom(ctx, n)
}

// waitRoom is room for a caller that guards against faults.
func (c *Channel) waitRoom(ctx context.Context, n uint32) error {
	r := &c.section.rings[c.o.Side]
	for {
		head := r.head.Load()
		used := c.out.position - head
		if used > ringSize {
			return violation("reader's position %d beyond the writer's %d", head, c.out.position)
		}
		if ringSize-used >= n {
			return nil
		}
		if err := c.gone(ctx); err != nil {
			return err
		}
		c.waitWord(ctx, &c.out.spinner, r.head, head, r.writerSleeps)
	}
}

// write waits for room in the ring, puts a frame there and publishes it.
func (c *Channel) write(ctx context.Context, head, body []byte) (err error) {
	defer fault(c.section, debug.SetPanicOnFault(true), &err)
	n := slot(len(head) + len(body))
	if err := c.waitRoom(ctx, n); err != nil {
		return err
	}
	r := &c.section.rings[c.o.Side]
	r.put(c.out.position, head)
	r.put(c.out.position+uint32(len(head)), body)
	c.out.position += n
	r.tail.Store(c.out.position)
	wake(r.readerSleeps)
	return nil
}

// read waits for the next frame in the ring and returns private copies of its header and what follows it.
func (c *Channel) read(ctx context.Context) (f Frame, err error) {
	defer fault(c.section, debug.SetPanicOnFault(true), &err)
	r := &c.section.rings[1-c.o.Side]
	var ready uint32
	for {
		// Our own position is ours alone: what the section says about it is for the peer.
		tail := r.tail.Load()
		if ready = tail - c.in.position; ready != 0 {
			break
		}
		// A peer that hung up may have written between the two looks.
		if err := c.gone(ctx); err != nil && (c.over.Load() || r.tail.Load() == tail) {
			return f, err
		}
		c.waitWord(ctx, &c.in.spinner, r.tail, tail, r.readerSleeps)
	}
	if ready > ringSize || ready%slotAlign != 0 {
		return f, violation("writer's position is %d bytes beyond the reader's", ready)
	}
	var head [HeaderLen]byte
	r.get(c.in.position, head[:])
	if err := f.decode(&head); err != nil {
		return f, err
	}
	size := slot(int(f.Length))
	if size > ready {
		return f, violation("frame of %d bytes, %d written", f.Length, ready)
	}
	if n := f.Length - HeaderLen; n > 0 {
		f.Payload, f.Memory = payload(int(n))
		r.get(c.in.position+HeaderLen, f.Payload)
	}
	c.in.position += size
	r.head.Store(c.in.position)
	wake(r.writerSleeps)
	return f, nil
}

// wakeSelf ends our own sleeps: on death, close, or a context that is done.
func (c *Channel) wakeSelf() {
	c.mapped.Lock()
	defer c.mapped.Unlock()
	if c.section == nil {
		return
	}
	var err error
	defer fault(c.section, debug.SetPanicOnFault(true), &err)
	for _, sleeper := range []*atomic.Uint32{c.section.rings[1-c.o.Side].readerSleeps, c.section.rings[c.o.Side].writerSleeps} {
		sleeper.Store(0)
		futex.Wake(sleeper)
	}
}
