package channel

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// epoch ties Go's monotonic clock, which says only differences, to CLOCK_MONOTONIC, which both ends of a connection
// share. It is measured once per process.
var epoch = sync.OnceValue(func() (e struct {
	at time.Time
	ns int64
}) {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // can't fail: the clock is always there
	e.at, e.ns = time.Now(), ts.Nano()
	return e
})

// Deadline returns t as a frame's Deadline: CLOCK_MONOTONIC in ns; the zero time is 0.
func Deadline(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	e := epoch()
	return max(1, e.ns+int64(t.Sub(e.at)))
}

// Time returns a frame's Deadline as a time with a monotonic reading; 0 is the zero time.
func Time(deadline int64) time.Time {
	if deadline == 0 {
		return time.Time{}
	}
	e := epoch()
	return e.at.Add(time.Duration(deadline - e.ns))
}
