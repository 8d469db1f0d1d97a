package kdf

import (
	"context"
	"sync"

	"sallyport/ntstatus"
)

// Queue bounds the memory of all hashing and is fair between those who ask: each waits in a line of its own, and the lines
// take turns. It is safe for concurrent use; its lock is never held while anybody waits or hashes.
type Queue struct {
	memory  uint32 // KiB; immutable
	waiting int    // places in all lines together, half of which one line may fill; immutable

	mu    sync.Mutex
	used  uint32             // KiB of those who hash
	count int                // waiters in all lines
	lines map[string][]*turn // never empty lines
	order []string           // whose line is next
}

type turn struct {
	memory  uint32
	granted chan struct{}
}

// NewQueue grants at most memory KiB at a time and lets at most waiting callers wait.
func NewQueue(memory uint32, waiting int) *Queue {
	return &Queue{memory: memory, waiting: waiting, lines: map[string][]*turn{}}
}

// Memory is the most that one caller can be granted, in KiB.
func (q *Queue) Memory() uint32 { return q.memory }

// Acquire waits in who's line for memory KiB, until ctx ends. The caller must call release once it has hashed. It returns
// RPC_S_SERVER_TOO_BUSY when the line, or all together, are too long.
func (q *Queue) Acquire(ctx context.Context, who string, memory uint32) (release func(), err error) {
	const op = "kdf.Acquire"
	if memory > q.memory {
		return nil, ntstatus.Errorf(op, "", ntstatus.InsufficientResources, "one hash wants %d KiB of all %d", memory, q.memory)
	}
	t := &turn{memory, make(chan struct{})}
	q.mu.Lock()
	if q.count >= q.waiting || len(q.lines[who]) >= (q.waiting+1)/2 {
		q.mu.Unlock()
		return nil, ntstatus.Errorf(op, "", ntstatus.RPCServerTooBusy, "too many passwords wait to be verified; try again later")
	}
	if len(q.lines[who]) == 0 {
		q.order = append(q.order, who)
	}
	q.lines[who] = append(q.lines[who], t)
	q.count++
	q.grantLocked()
	q.mu.Unlock()
	select {
	case <-t.granted:
		return func() { q.release(memory) }, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-t.granted: // at the same moment
		q.used -= memory
	default:
		q.removeLocked(who, t)
	}
	q.grantLocked()
	return nil, ntstatus.Wrap(op, "", ctx.Err())
}

func (q *Queue) release(memory uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= memory
	q.grantLocked()
}

// grantLocked gives turns out, a line at a time, until the memory is spent. The first that doesn't fit stops it, so that
// small requests can't starve a big one.
func (q *Queue) grantLocked() {
	for len(q.order) > 0 {
		who := q.order[0]
		t := q.lines[who][0]
		if t.memory > q.memory-q.used {
			return
		}
		q.used += t.memory
		close(t.granted)
		q.removeLocked(who, t)
		if len(q.lines[who]) > 0 { // to the end of the round
			q.order = append(q.order[1:], who)
		}
	}
}

// removeLocked takes t out of who's line, and the line out of the round when that was its last.
func (q *Queue) removeLocked(who string, t *turn) {
	line := q.lines[who]
	for i := range line {
		if line[i] == t {
			q.lines[who] = append(line[:i:i], line[i+1:]...)
			q.count--
			break
		}
	}
	if len(q.lines[who]) > 0 {
		return
	}
	delete(q.lines, who)
	for i := range q.order {
		if q.order[i] == who {
			q.order = append(q.order[:i:i], q.order[i+1:]...)
			return
		}
	}
}
