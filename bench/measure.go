package main

import (
	"context"
	"slices"
	"sync"
	"time"
)

// result is one run of one case, or one series of connects.
type result struct {
	Calls   int           `json:"calls,omitempty"` // measured
	All     int           `json:"all,omitempty"`   // with those of the warm-up
	Elapsed time.Duration `json:"elapsed,omitempty"`
	P50     time.Duration `json:"p50,omitempty"`
	P99     time.Duration `json:"p99,omitempty"`
}

const warmUp = 20 * time.Millisecond

// driver is the client's process: it holds the connection that is measured, and idle ones.
type driver struct {
	transport *transport
	target    target
	main      *client
	idle      []*client
}

func (d *driver) obey(o order) (a answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), o.Duration+time.Minute)
	defer cancel()
	switch o.Op {
	case "dial":
		d.main, err = d.transport.dial(ctx, &d.target)
	case "run":
		a.Result, err = d.run(ctx, o)
	case "connect":
		start := time.Now()
		for range o.Count {
			c, err := d.transport.dial(ctx, &d.target)
			if err != nil {
				return a, err
			}
			d.idle = append(d.idle, c)
			if err := c.caller(64)(ctx); err != nil {
				return a, err
			}
		}
		a.Result = result{Calls: o.Count, Elapsed: time.Since(start)}
	case "disconnect":
		for _, c := range d.idle {
			c.close()
		}
		d.idle = nil
	}
	return a, err
}

// run calls from so many goroutines over one connection. Each call's time is the distance between two looks at the clock.
func (d *driver) run(ctx context.Context, o order) (r result, err error) {
	times := make([][]time.Duration, o.Callers)
	errs := make([]error, o.Callers)
	counts := make([]int, o.Callers)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range o.Callers {
		call := d.main.caller(o.Size)
		wg.Go(func() {
			taken := make([]time.Duration, 0, 1<<12)
			for last := time.Now(); ; {
				if errs[i] = call(ctx); errs[i] != nil {
					return
				}
				counts[i]++
				now := time.Now()
				if now.Sub(start) > warmUp {
					taken = append(taken, now.Sub(last))
				}
				if last = now; now.Sub(start) >= o.Duration+warmUp {
					break
				}
			}
			times[i] = taken
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return r, err
		}
		r.All += counts[i]
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	r.Calls, r.Elapsed = len(all), o.Duration
	if len(all) > 0 {
		r.P50, r.P99 = all[len(all)/2], all[len(all)*99/100]
	}
	return r, nil
}
