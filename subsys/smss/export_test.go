package smss

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Driver speaks to the machine in words, so that tests read as what happens.
type Driver struct {
	m   *machine
	Now time.Time
}

// Named is a server for Open.
type Named struct {
	Name   string
	Config *ServerConfig
}

// NewDriver returns a machine at an arbitrary time.
func NewDriver() *Driver { return &Driver{m: newMachine(), Now: time.Unix(1e9, 0)} }

// NewServerConfig is what a [server.NAME] starts from.
func NewServerConfig() *ServerConfig { return newServerConfig() }

// EmptyCells counts the cells of the life cycle that nobody filled.
func EmptyCells() (n int) {
	table := lifeCycle()
	for _, row := range table[waiting:] {
		for _, cell := range row {
			if cell == nil {
				n++
			}
		}
	}
	return n
}

// Open opens a session.
func (d *Driver) Open(session uint32, servers ...Named) []string {
	e := openSession{session: session}
	for _, s := range servers {
		e.servers = append(e.servers, specOf(s.Name, s.Config))
	}
	return d.step(e)
}

// Do makes one event of words and returns the effects as words, changes of servers left out.
func (d *Driver) Do(words string) []string {
	w := strings.Fields(words)
	number := func() int { n, _ := strconv.Atoi(w[1]); return n }
	rest := strings.Join(w[min(2, len(w)):], " ")
	switch w[0] {
	case "after":
		by, err := time.ParseDuration(w[1])
		if err != nil {
			panic(err)
		}
		d.Now = d.Now.Add(by)
		return d.step(tick{})
	case "wanted":
		return d.step(wanted{w[1]})
	case "started":
		return d.step(processStarted{w[1], 1000})
	case "exit":
		return d.step(processEnded{server: w[1], how: rest, clean: rest == "exit 0"})
	case "ready":
		return d.step(saidReady{w[1], rest})
	case "gone":
		return d.step(ownedGone{w[1]})
	case "empty":
		return d.step(sessionEmpty{uint32(number())})
	case "close":
		return d.step(closeSession{uint32(number()), rest})
	case "shutdown":
		grace, _ := time.ParseDuration(rest)
		return d.step(shutdown{reason: "test", code: number(), grace: grace})
	}
	panic("unknown event " + words)
}

func (d *Driver) step(e event) (out []string) {
	for _, e := range d.m.Step(d.Now, e) {
		switch e := e.(type) {
		case startProcess:
			out = append(out, "start "+e.server)
		case sendSignal:
			out = append(out, fmt.Sprintf("%v %s", e.signal, e.server))
		case endOwned:
			out = append(out, fmt.Sprintf("end-owned %s %v", e.server, e.grace))
		case endSession:
			out = append(out, fmt.Sprintf("end-session %d", e.session))
		case sessionChanged:
			out = append(out, strings.TrimSpace(fmt.Sprintf("session %d %s %s", e.session, [...]string{"", "starting", "active", "ending", "ended"}[e.state], e.reason)))
		case finished:
			out = append(out, fmt.Sprintf("finished %d", e.code))
		}
	}
	return out
}

// State is a server's, with how it last ended; empty for one that is not there.
func (d *Driver) State(name string) string {
	s := d.m.servers[name]
	if s == nil {
		return ""
	}
	return strings.TrimSuffix(s.state.String()+", "+s.lastEnd, ", ")
}

// Next is how long until the earliest deadline; negative for none.
func (d *Driver) Next() time.Duration {
	if at := d.m.next(); !at.IsZero() {
		return at.Sub(d.Now)
	}
	return -1
}

// Keeper is the keeper of one owner, without processes.
type Keeper struct{ k *keeper }

// NewKeeper returns an empty one.
func NewKeeper() Keeper { return Keeper{newKeeper()} }

// Store is store.
func (k Keeper) Store(name string, data []byte, files ...*os.File) error {
	return k.k.store("owner", name, files, data)
}

// Remove is remove.
func (k Keeper) Remove(name string) { k.k.remove("owner", name) }

// End is what happens when the owner's session ends.
func (k Keeper) End() { k.k.endOwner("owner", 0) }

// Pages fetches all in pages of a number of files and returns the names on each.
func (k Keeper) Pages(limit int) (pages [][]string, err error) {
	for after := ""; ; {
		entries, next, err := k.k.fetch("owner", "", after, limit)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.name)
			for _, f := range e.files {
				f.Close()
			}
		}
		pages = append(pages, names)
		if after = next; after == "" {
			return pages, nil
		}
	}
}

// Limits of an owner.
const (
	MaxEntries       = maxEntries
	MaxEntryHandles  = maxEntryHandles
	MaxStoredHandles = maxStoredHandles
	MaxEntryData     = maxEntryData
)
