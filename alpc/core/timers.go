package core

import (
	"container/heap"
	"time"
)

// timers are the machine's deadlines. A timer that is stopped stays in the heap, empty, until it is due: deadlines are
// short, and the number of live ones is bounded by what they guard.
type timers struct{ queue timerQueue }

type timer struct {
	at   time.Time
	fire func()
}

func (t *timers) start(at time.Time, fire func()) *timer {
	tm := &timer{at, fire}
	heap.Push(&t.queue, tm)
	return tm
}

func (t *timer) stop() {
	if t != nil {
		t.fire = nil
	}
}

func (t *timers) run(now time.Time) {
	for len(t.queue) > 0 && (t.queue[0].fire == nil || !t.queue[0].at.After(now)) {
		tm := heap.Pop(&t.queue).(*timer)
		if fire := tm.fire; fire != nil {
			tm.fire = nil
			fire()
		}
	}
}

func (t *timers) next() time.Time {
	if len(t.queue) == 0 {
		return time.Time{}
	}
	return t.queue[0].at
}

type timerQueue []*timer

func (q timerQueue) Len() int           { return len(q) }
func (q timerQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q timerQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *timerQueue) Push(x any)        { *q = append(*q, x.(*timer)) }
func (q *timerQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return x
}
