// Command bench compares ways to call another process on this machine, in one run: Sallyport's ports in both gears, bare and
// by generated stubs with identity and access check on, against raw sockets, the usual RPC libraries, and the floor.
//
// Client and server are always two processes (this program again), and Sallyport's core is a third. Rounds are
// interleaved: each measures every case of every transport, so what else the machine does hits all alike; ratios are
// taken within a round, and every number printed is the median of the rounds.
//
//	go -C bench run . [-rounds 5] [-quick] [-o table|json|markdown] [-only substring]
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	switch os.Getenv(roleEnv) {
	case "core":
		return runCore(os.Args[2])
	case "server":
		t, err := transportOf(os.Args[1])
		if err != nil {
			return err
		}
		return runServer(t, os.Args[2])
	case "client":
		t, err := transportOf(os.Args[1])
		if err != nil {
			return err
		}
		d := &driver{transport: t, target: target{address: os.Args[2]}}
		obey(d.obey)
		return nil
	}
	p := plan{rounds: 5, time: 250 * time.Millisecond, connections: 500, cases: cases()}
	flag.IntVar(&p.rounds, "rounds", p.rounds, "how many `times` everything is measured")
	quick := flag.Bool("quick", false, "one short round: shows that it works, not how fast")
	output := flag.String("o", "table", "table, json or markdown")
	only := flag.String("only", "", "measure only transports whose name contains this, and "+baseline)
	flag.Parse()
	if *quick {
		p.rounds, p.time, p.connections = 1, 30*time.Millisecond, 50
	}
	show, known := formats()[*output]
	if flag.NArg() > 0 || p.rounds < 1 || !known {
		flag.Usage()
		os.Exit(2)
	}
	for _, t := range transports() {
		if strings.Contains(t.name, *only) || t.name == baseline {
			p.transports = append(p.transports, t)
		}
	}
	r, err := p.measure()
	if err != nil {
		return err
	}
	return show(os.Stdout, r)
}

// runServer serves until there are no more orders.
func runServer(t *transport, address string) error {
	failed := make(chan error, 1)
	ready := make(chan struct{})
	go func() { failed <- t.serve(address, func() { close(ready) }) }()
	select {
	case err := <-failed:
		return err
	case <-ready:
	}
	obey(func(order) (answer, error) { return answer{}, errors.New("servers only serve") })
	return nil
}

// plan is what is measured.
type plan struct {
	rounds      int
	time        time.Duration // of one case in one round
	connections int
	transports  []*transport
	cases       []benchCase
}

// benchCase is a kind of load on one connection.
type benchCase struct {
	Name    string
	Size    int
	Callers int
}

func cases() []benchCase {
	return []benchCase{
		{"64 B", 64, 1}, {"1 KiB", 1 << 10, 1}, {"64 KiB", 64 << 10, 1}, {"1 MiB", 1 << 20, 1},
		{"8 callers", 64, 8}, {"64 callers", 64, 64},
	}
}

func (t *transport) can(c benchCase) bool {
	return (t.max == 0 || c.Size <= t.max) && (!t.alone || c.Callers == 1)
}

// measure runs the plan; progress goes to stderr.
func (p *plan) measure() (*report, error) {
	dir, err := os.MkdirTemp("", "sallyport-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "core.sock")
	core, err := spawn("core", "", socket)
	if err != nil {
		return nil, err
	}
	defer core.stop()

	r := newReport(p)
	start := time.Now()
	steps, step := p.rounds*len(p.transports), 0
	progress := func(t *transport, round int) {
		step++
		fmt.Fprintf(os.Stderr, "[%3d/%d] %4.0fs round %d: %s\n", step, steps, time.Since(start).Seconds(), round+1, t.name)
	}
	for round := range p.rounds {
		// Each round begins with another transport, so that none always follows the same.
		for i := range p.transports {
			t := p.transports[(i+round)%len(p.transports)]
			progress(t, round)
			address := socket
			if !t.core {
				address = filepath.Join(dir, fmt.Sprintf("%d-%d", round, i))
			}
			if err := p.transport(r.of(t.name), t, address, core); err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	return r, nil
}

// transport measures every case of one transport once, between two processes of its own.
func (p *plan) transport(row *row, t *transport, address string, core *process) error {
	server, err := spawn("server", t.name, address)
	if err != nil {
		return err
	}
	defer server.stop()
	client, err := spawn("client", t.name, address)
	if err != nil {
		return err
	}
	defer client.stop()
	if _, err := client.do(order{Op: "dial"}); err != nil {
		return err
	}
	both := []*process{server, client}
	for i, c := range p.cases {
		if !t.can(c) {
			continue
		}
		before, err := ask(both, "usage")
		if err != nil {
			return err
		}
		a, err := client.do(order{Op: "run", Size: c.Size, Callers: c.Callers, Duration: p.time})
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		after, err := ask(both, "usage")
		if err != nil {
			return err
		}
		row.add(i, a.Result, after.CPU-before.CPU, after.Mallocs-before.Mallocs)
	}
	if t.alone {
		return nil
	}
	servers := []*process{server}
	if t.core {
		servers = append(servers, core) // what the core keeps for a connection is part of its price
	}
	serverBefore, err := ask(servers, "memory")
	if err != nil {
		return err
	}
	clientBefore, err := ask([]*process{client}, "memory")
	if err != nil {
		return err
	}
	a, err := client.do(order{Op: "connect", Count: p.connections})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	serverAfter, err := ask(servers, "memory")
	if err != nil {
		return err
	}
	clientAfter, err := ask([]*process{client}, "memory")
	if err != nil {
		return err
	}
	n := float64(p.connections)
	row.connects(a.Result, float64(serverAfter.Bytes-serverBefore.Bytes)/n, float64(clientAfter.Bytes-clientBefore.Bytes)/n)
	_, err = client.do(order{Op: "disconnect"})
	return err
}

// ask adds up what processes answer.
func ask(processes []*process, op string) (sum answer, err error) {
	for _, p := range processes {
		a, err := p.do(order{Op: op})
		if err != nil {
			return sum, err
		}
		sum.CPU, sum.Mallocs, sum.Bytes = sum.CPU+a.CPU, sum.Mallocs+a.Mallocs, sum.Bytes+a.Bytes
	}
	return sum, nil
}
