package csrss

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/pty"
	"sallyport/internal/scrollback"
	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

const (
	maxConsoles         = 64 // of a session
	maxConsolesPerOwner = 16
	maxKeptPerOwner     = 16 << 20 // bytes of scrollback
	maxViewers          = 32       // of a console
	defaultKept         = 256 << 10

	consolePrefix = "console/" // of names in smss's store and of processes there
)

// consoles is the session's table of consoles. What a console is made of lies at smss before anybody hears of the console, under
// its name: the pty's master, the ring, and a deposit. Lock order: console.keeping (held during calls to smss), mu, console.mu.
type consoles struct {
	session uint32
	keeper  *sm.Client
	log     hclog.Logger

	mu     sync.Mutex
	byName map[string]*console // nil: the name is being made or removed
	next   int                 // of names that csrss chooses
}

// deposit is what smss keeps beside a console's files: all that can't be had from the files themselves.
type deposit struct {
	ID         string
	Owner      security.SID
	Created    int64
	Argv       []string
	Kept       int
	Descriptor string // the one in force is console.descriptor
	Command    bool   // it has one; smss knows its process by the ID
}

func newConsoles(session uint32, keeper *sm.Client, log hclog.Logger) *consoles {
	return &consoles{session: session, keeper: keeper, log: log, byName: map[string]*console{}}
}

// find returns the console of a name.
func (t *consoles) find(name string) *console {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byName[fold(name)]
}

// fold makes names that differ in case the same, as in the core's namespace.
func fold(name string) string { return strings.ToLower(name) }

// list is all consoles by name.
func (t *consoles) list() []*console {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sorted()
}

// sorted needs mu.
func (t *consoles) sorted() []*console {
	all := slices.DeleteFunc(slices.Collect(maps.Values(t.byName)), func(c *console) bool { return c == nil })
	slices.SortFunc(all, func(a, b *console) int { return cmp.Compare(fold(a.name), fold(b.name)) })
	return all
}

// reserve takes a name for owner, chosen where it is empty, within the limits. evicted is an ended console that has to make room;
// the caller removes it first.
func (t *consoles) reserve(name string, owner security.SID, kept int) (reserved string, evicted *console, err error) {
	const op = "csr.CreateConsole"
	t.mu.Lock()
	defer t.mu.Unlock()
	for name == "" {
		t.next++
		if candidate := fmt.Sprintf("con%d", t.next); !t.taken(candidate) {
			name = candidate
		}
	}
	switch {
	case !validName(name):
		return "", nil, ntstatus.Errorf(op, name, ntstatus.ObjectNameInvalid, "a console's name has 1 to 64 letters, digits, '.', '_' and '-'")
	case t.taken(name):
		return "", nil, ntstatus.New(op, name, ntstatus.ObjectNameCollision)
	}
	var count, bytes int
	var oldest, oldestOwn *console
	for _, c := range t.sorted() {
		own := c.deposit.Owner == owner
		if own {
			count++
			bytes += c.deposit.Kept
		}
		if !c.isEnded() {
			continue
		}
		if oldest == nil || c.deposit.Created < oldest.deposit.Created {
			oldest = c
		}
		if own && (oldestOwn == nil || c.deposit.Created < oldestOwn.deposit.Created) {
			oldestOwn = c
		}
	}
	switch {
	case count >= maxConsolesPerOwner || bytes+kept > maxKeptPerOwner:
		evicted = oldestOwn
	case len(t.byName) >= maxConsoles:
		evicted = oldest
	default:
		t.byName[fold(name)] = nil
		return name, nil, nil
	}
	if evicted == nil {
		return "", nil, ntstatus.Errorf(op, name, ntstatus.QuotaExceeded,
			"%s has %d consoles that keep %d bytes, the session has %d consoles; it may be %d, %d and %d",
			owner, count, bytes, len(t.byName), maxConsolesPerOwner, maxKeptPerOwner, maxConsoles)
	}
	return "", evicted, nil
}

// taken needs mu.
func (t *consoles) taken(name string) bool {
	_, ok := t.byName[fold(name)]
	return ok
}

// put makes a reserved name mean c; nil gives the name back.
func (t *consoles) put(name string, c *console) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c == nil {
		delete(t.byName, fold(name))
	} else {
		t.byName[fold(name)] = c
	}
}

func validName(name string) bool {
	return len(name) >= 1 && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}

// create makes a console under a name that is reserved, deposits it and puts it into the table.
func (t *consoles) create(ctx context.Context, name string, size pty.Size, d deposit, sd *security.Descriptor) (*console, error) {
	const op = "csr.CreateConsole"
	master, err := pty.Open(size)
	if err != nil {
		return nil, ntstatus.Wrap(op, name, err)
	}
	ring, file, err := scrollback.Create(d.Kept)
	if err != nil {
		master.Close()
		return nil, ntstatus.Wrap(op, name, err)
	}
	c := newConsole(name, d, sd, size, master, ring, file, t.log)
	if err = t.keep(ctx, c, sd); err == nil {
		err = c.start()
	}
	if err != nil {
		c.drop()
		t.forget(c)
		return nil, err
	}
	t.put(name, c)
	return c, nil
}

// keep deposits a console, with a descriptor, at smss. Once it was forgotten that fails.
func (t *consoles) keep(ctx context.Context, c *console, sd *security.Descriptor) error {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	if c.forgotten {
		return ntstatus.New("csr.keep", c.name, ntstatus.ObjectNameNotFound)
	}
	d := c.deposit
	d.Descriptor = sd.String()
	data, err := json.Marshal(d)
	if err == nil {
		err = t.keeper.Store(ctx, consolePrefix+c.name, data, c.master, c.file)
	}
	return ntstatus.Wrap("csr.keep", c.name, err)
}

// forget takes a console's deposit back. It must happen even where its caller has gone.
func (t *consoles) forget(c *console) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	c.forgotten = true
	ctx, cancel := context.WithTimeout(context.Background(), hangUpTime)
	defer cancel()
	if err := t.keeper.Remove(ctx, consolePrefix+c.name); err != nil {
		t.log.Error("a console stays in the store", "console", c.name, "error", err)
	}
}

// remove ends a console: nobody finds it any more, its terminal is hung up, its name is free. Only the first remover does it.
func (t *consoles) remove(c *console) {
	t.mu.Lock()
	mine := t.byName[fold(c.name)] == c
	if mine {
		t.byName[fold(c.name)] = nil
	}
	t.mu.Unlock()
	if !mine {
		return
	}
	t.forget(c) // smss's file of the master goes first: the terminal hangs up with the last one
	c.close()
	c.mu.Lock()
	process, ended := c.process, c.exit != nil
	c.mu.Unlock()
	switch {
	case process == 0:
	case ended:
		t.acknowledge(process, c.name)
	default:
		// What does not go when its terminal hangs up is killed. Its exit is acknowledged when it comes (exited).
		time.AfterFunc(hangUpTime, func() { t.kill(process, c.name) })
	}
	t.put(c.name, nil)
}

func (t *consoles) kill(process uint64, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), hangUpTime)
	defer cancel()
	err := t.keeper.Signal(ctx, process, syscall.SIGKILL, true)
	if s := ntstatus.Of(err); err != nil && s != ntstatus.InvalidCID && s != ntstatus.NotFound {
		t.log.Warn("can't kill what ran in a closed console", "console", name, "error", err)
	}
}

func (t *consoles) acknowledge(process uint64, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), hangUpTime)
	defer cancel()
	if err := t.keeper.Acknowledge(ctx, process); err != nil {
		t.log.Warn("an exit stays unacknowledged", "console", name, "error", err)
	}
}

// exited takes an exit from smss. That of a console's command is acknowledged when the console is removed, so that a successor
// learns it too.
func (t *consoles) exited(exit sm.Exit) {
	c := t.byID(exit.Name)
	if (c == nil || !c.commandEnded(exit)) && strings.HasPrefix(exit.Name, consolePrefix) {
		t.acknowledge(exit.Process, exit.Name)
	}
}

func (t *consoles) byID(id string) *console {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.byName {
		if c != nil && c.deposit.ID == id {
			return c
		}
	}
	return nil
}

// adopt makes a console again from what its last keeper deposited. Commands are the session's processes at smss, by console id;
// a console whose command never started was never answered for, and goes.
func (t *consoles) adopt(s sm.Stored, commands map[string]sm.Process) (err error) {
	name := strings.TrimPrefix(s.Name, consolePrefix)
	defer func() {
		if err != nil {
			closeFiles(s.Files)
			err = ntstatus.Wrap("csr.adopt", name, err)
		}
	}()
	if len(s.Files) != 2 {
		return ntstatus.FileCorrupt
	}
	var d deposit
	if err := json.Unmarshal(s.Data, &d); err != nil {
		return err
	}
	command, started := commands[d.ID]
	if d.Command && !started {
		return ntstatus.NotFound
	}
	sd, err := security.ParseSDDL(d.Descriptor)
	if err != nil {
		return err
	}
	ring, err := scrollback.Open(s.Files[1])
	if err != nil {
		return err
	}
	master, err := pty.Pollable(s.Files[0])
	if err != nil {
		ring.Close()
		return err
	}
	size, err := pty.GetSize(master)
	c := newConsole(name, d, sd, size, master, ring, s.Files[1], t.log)
	c.process, c.pid = command.ID, command.PID
	if err == nil {
		err = c.start()
	}
	if err != nil {
		ring.Close()
		master.Close()
		return err
	}
	s.Files[0].Close()
	t.put(name, c)
	if command.Exit != nil {
		c.commandEnded(*command.Exit)
	}
	return nil
}

// setSecurity replaces a console's descriptor, at smss first.
func (t *consoles) setSecurity(ctx context.Context, c *console, sd *security.Descriptor) error {
	if err := t.keep(ctx, c, sd); err != nil {
		return ntstatus.Wrap("csr.SetConsoleSecurity", c.name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.descriptor = sd
	return nil
}

// lastWords waits until all that programs which have ended wrote to a watched console is in its ring. Programs that go on hold it up
// until the time is over.
func (t *consoles) lastWords(limit time.Duration) {
	over := time.After(limit)
	for _, c := range t.list() {
		if pumped := c.lastWords(); pumped != nil {
			select {
			case <-pumped:
			case <-over:
				return
			}
		}
	}
}

// release lets go of everything without ending it: a successor adopts it.
func (t *consoles) release() {
	for _, c := range t.list() {
		c.close()
	}
}
