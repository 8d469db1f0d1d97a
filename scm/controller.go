package scm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"sallyport/alpc"
	"sallyport/internal/notify"
	"sallyport/internal/store"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/security"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/smss/sm"
)

// Names in smss's store: the descriptors of a service (log pipe, then notify socket) and the note on its run.
const (
	storedFiles = "fds:"
	storedRun   = "run:"
)

const (
	keeperTimeout = 10 * time.Second // for a call to smss or lsass that is not a start
	logoffTries   = 5
)

func services() store.Bucket[*scmpb.ServiceRecord] {
	return store.NewBucket("services", store.Codec[*scmpb.ServiceRecord]{
		Version: 1,
		Encode:  func(r *scmpb.ServiceRecord) ([]byte, error) { return proto.Marshal(r) },
		Decode: func(version uint8, data []byte) (*scmpb.ServiceRecord, error) {
			if version != 1 {
				return nil, fmt.Errorf("record version %d, this program reads 1", version)
			}
			r := &scmpb.ServiceRecord{}
			return r, proto.Unmarshal(data, r)
		},
	})
}

// entry is the shell's side of a service. Its fields are owned by controller.mu, but log, which is set once and has its own lock.
type entry struct {
	service    *Service
	record     *scmpb.ServiceRecord
	descriptor *security.Descriptor
	log        *serviceLog
	notify     *notify.Socket
	address    string // of notify
	native     *dispatch
	changed    chan struct{} // closed at the next change of the service
}

// controller is the shell around the machine.
//
// Locks: admin serializes changes of the database and is taken before mu; mu owns the machine and everything below it and is never
// held over a call or a write to disk.
type controller struct {
	sys     *alpc.System
	log     hclog.Logger
	db      *store.DB
	keeper  *sm.Client
	logs    string // directory of the logs
	runtime string // directory of the notify sockets
	manager *security.Descriptor

	admin sync.Mutex

	mu       sync.Mutex
	machine  *Machine
	entries  map[*Service]*entry
	timer    *time.Timer
	watchers map[*watcher]struct{}
	answers  map[uint64]chan uint32 // native controls that await their handler's result
	nextID   uint64
	lock     *lockHolder
	handles  map[uint64]map[uint64]*Service // by connection, then number
	leaving  map[string]chan struct{}       // deleted services that are still being removed; closed when they are
	jobs     []func(context.Context)
	working  bool          // the worker has taken jobs that are not done
	wake     chan struct{} // capacity 1: there are jobs
	ended    chan struct{} // closed when no more jobs are done
}

type lockHolder struct {
	owner      string
	connection uint64
	since      time.Time
	released   chan struct{}
}

func newController(sys *alpc.System, log hclog.Logger, db *store.DB, keeper *sm.Client, state, runtime string) (*controller, error) {
	manager, err := security.ParseSDDL(managerSDDL)
	if err != nil {
		return nil, err
	}
	c := &controller{
		sys: sys, log: log, db: db, keeper: keeper, logs: filepath.Join(state, "logs"), runtime: runtime, manager: manager,
		machine: NewMachine(), entries: map[*Service]*entry{}, watchers: map[*watcher]struct{}{}, answers: map[uint64]chan uint32{},
		leaving: map[string]chan struct{}{}, handles: map[uint64]map[uint64]*Service{}, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		nextID: uint64(time.Now().UnixNano()), // a service may still answer what a predecessor asked
	}
	c.timer = time.AfterFunc(time.Hour, func() {
		_ = c.apply(func(now time.Time) error { c.machine.Tick(now); return nil })
	})
	return c, os.MkdirAll(c.logs, 0o700)
}

// apply runs fn on the machine and sets everything in motion that came of it.
func (c *controller) apply(fn func(now time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := fn(time.Now())
	for _, e := range c.machine.Effects() {
		c.effect(e)
	}
	if d := c.machine.Deadline(); !d.IsZero() {
		c.timer.Reset(max(time.Until(d), 0))
	}
	return err
}

// step is apply for one event.
func (c *controller) step(e Event) error {
	return c.apply(func(now time.Time) error { return c.machine.Step(now, e) })
}

// effect does what is quick and queues the rest. The caller holds mu.
func (c *controller) effect(e Effect) {
	entry := c.entries[e.Service]
	key := e.Service.Key
	switch e.Type {
	case EffectChanged:
		run := e.Service.Run
		// What was never started needs no note: smss keeps so many, and a successor begins with just that.
		c.queue(func(ctx context.Context) {
			if run.State == Stopped && run.Win32 == errorNeverStarted {
				return
			}
			note, err := json.Marshal(run)
			if err == nil {
				err = c.keeper.Store(ctx, storedRun+key, note)
			}
			if err != nil {
				c.log.Error("a service's run could not be noted", "service", key, "error", err)
			}
		})
		if entry != nil {
			close(entry.changed)
			entry.changed = make(chan struct{})
			c.publish(&scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_STATUS, Status: c.status(entry)})
			c.log.Debug("service", "name", key, "state", run.State.String(), "reason", run.Reason)
		}
	case EffectExec:
		if entry != nil {
			// In the queue behind the note, so that a successor knows of every process before it is made.
			c.queue(func(ctx context.Context) { go c.exec(context.WithoutCancel(ctx), entry, e.Attempt, e.Args) })
		}
	case EffectSignal:
		c.queue(func(ctx context.Context) {
			err := c.keeper.Signal(ctx, e.Process, e.Signal, e.Group)
			if err != nil && !errors.Is(err, ntstatus.InvalidCID) {
				c.log.Warn("a signal was not sent", "service", key, "signal", int(e.Signal), "error", err)
			}
		})
	case EffectAcknowledge:
		c.queue(func(ctx context.Context) {
			if err := c.keeper.Acknowledge(ctx, e.Process); err != nil && !errors.Is(err, ntstatus.InvalidCID) {
				c.log.Warn("an exit was not acknowledged", "service", key, "error", err)
			}
		})
	case EffectLogoff:
		go c.logoff(security.LUID(e.Logon))
	case EffectControl, EffectNativeStart:
		message := &scmpb.ToService{Body: &scmpb.ToService_Control{Control: &scmpb.Control{Id: e.ID, Control: e.Control}}}
		if e.Type == EffectNativeStart {
			message = &scmpb.ToService{Body: &scmpb.ToService_Start{Start: &scmpb.Start{Arguments: e.Args}}}
		}
		if entry != nil && entry.native != nil {
			entry.native.send(message)
		} // else it gets a STOP when it dispatches again, and other controls time out
	case EffectForget:
		if entry == nil {
			return
		}
		delete(c.entries, e.Service)
		close(entry.changed)
		entry.changed = nil
		c.leaving[key] = make(chan struct{})
		c.publish(&scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_DELETED, Status: c.status(entry)})
		c.queue(func(ctx context.Context) { c.forget(ctx, entry) })
	}
}

// queue adds a job for the worker: what is asked of smss keeps the order in which the machine asked for it. The caller holds mu.
func (c *controller) queue(job func(context.Context)) {
	c.jobs = append(c.jobs, job)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// work does the jobs until ctx ends.
func (c *controller) work(ctx context.Context) {
	defer close(c.ended)
	for {
		c.mu.Lock()
		jobs := c.jobs
		c.jobs, c.working = nil, len(c.jobs) > 0
		c.mu.Unlock()
		for _, job := range jobs {
			call, cancel := context.WithTimeout(ctx, keeperTimeout)
			job(call)
			cancel()
		}
		if len(jobs) > 0 {
			continue
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
	}
}

// forget removes what is left of a deleted service: its record last, so that a controller that dies before goes on with it.
func (c *controller) forget(ctx context.Context, e *entry) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.leaving[e.service.Key])
		delete(c.leaving, e.service.Key)
	}()
	if e.log != nil {
		e.log.close()
		e.log.remove()
	}
	if e.notify != nil {
		e.notify.Close()
		if !strings.HasPrefix(e.address, "@") {
			os.Remove(e.address)
		}
	}
	for _, name := range []string{storedFiles + e.service.Key, storedRun + e.service.Key} {
		if err := c.keeper.Remove(ctx, name); err != nil {
			c.log.Warn("descriptors of a deleted service were not removed", "name", name, "error", err)
		}
	}
	if err := c.db.Update(func(tx *store.Tx) error { return services().Delete(tx, e.service.Key) }); err != nil {
		c.log.Error("a deleted service's record could not be removed", "service", e.service.Key, "error", err)
	}
}

// logoff ends a service's logon session. lsass may be away for a moment.
func (c *controller) logoff(id security.LUID) {
	for try := range logoffTries {
		ctx, cancel := context.WithTimeout(context.Background(), keeperTimeout)
		authority, err := lsa.Dial(ctx, c.sys)
		if err == nil {
			err = authority.LogOff(ctx, id)
			authority.Close()
		}
		cancel()
		switch {
		case err == nil, errors.Is(err, ntstatus.NoSuchLogonSession), errors.Is(err, ntstatus.AccessDenied):
			return // a session that is gone already is not told from one that is another's
		case try == logoffTries-1:
			c.log.Warn("a service's logon session was not ended", "logon", id, "error", err)
		}
		time.Sleep(time.Second << try)
	}
}

// load reads the database and adopts what runs: nothing is restarted, and what ended meanwhile is learnt from smss.
func (c *controller) load(ctx context.Context) error {
	var records []*scmpb.ServiceRecord
	if err := c.db.View(func(tx *store.Tx) error {
		return services().Each(tx, "", func(_ string, r *scmpb.ServiceRecord) error {
			records = append(records, r)
			return nil
		})
	}); err != nil {
		return err
	}
	stored, err := c.keeper.FetchAll(ctx)
	if err != nil {
		return err
	}
	kept := map[string]sm.Stored{}
	for _, s := range stored {
		kept[s.Name] = s
	}
	processes, err := c.keeper.List(ctx)
	if err != nil {
		return err
	}
	mine := map[string][]sm.Process{}
	for _, p := range processes {
		if p.PIDFD != nil {
			p.PIDFD.Close() // smss signals for us
		}
		key, _, _ := cutAttempt(p.Name)
		mine[key] = append(mine[key], p)
	}
	return c.apply(func(now time.Time) error {
		for _, r := range records {
			config, err := normalize("scm.Load", r.Config)
			if err != nil {
				return err
			}
			descriptor, err := security.ParseSDDL(r.SecurityDescriptor)
			if err != nil {
				return err
			}
			key := Fold(config.Name)
			var run *Run
			if note, ok := kept[storedRun+key]; ok {
				run = &Run{}
				if err := json.Unmarshal(note.Data, run); err != nil || run.State < Stopped || run.State > Paused {
					c.log.Error("the note on a service's run can't be read", "service", key, "error", err)
					run = nil
				}
			}
			s := c.machine.Add(now, config, run)
			e := c.enter(s, r, descriptor)
			if err := c.adoptFiles(e, kept[storedFiles+key]); err != nil {
				return err
			}
			delete(kept, storedFiles+key)
			c.adopt(now, s, mine[key])
			c.machine.Resume(s)
			delete(mine, key)
		}
		for key, orphans := range mine {
			for _, p := range orphans {
				c.log.Warn("a process of no known service is ended", "service", key, "pid", p.PID)
				c.end(p)
			}
		}
		for name, s := range kept {
			for _, f := range s.Files {
				f.Close()
			}
			key, isRun := strings.CutPrefix(name, storedRun)
			if _, known := c.machine.Get(key); name != booted && !(isRun && known) {
				c.queue(func(ctx context.Context) { _ = c.keeper.Remove(ctx, name) })
			}
		}
		c.machine.settle(now)
		return nil
	})
}

// adopt brings a service's noted run and what smss knows of its processes together.
func (c *controller) adopt(now time.Time, s *Service, processes []sm.Process) {
	found := false
	for _, p := range processes {
		_, attempt, ok := cutAttempt(p.Name)
		switch {
		case s.Run.Process != 0 && p.ID == s.Run.Process:
			found = true // its exit, if any, comes with the stream of exits
		case ok && attempt == s.Run.Attempt && s.Run.Process == 0 && (s.Run.State == StartPending || s.Run.State == StopPending):
			// The predecessor died between executing it and noting that.
			_ = c.machine.step(now, s, Event{Type: EventSpawned, Attempt: attempt, Process: p.ID, PID: uint32(p.PID)})
			found = true
		default:
			c.end(p)
		}
	}
	switch {
	case s.Run.Process != 0 && !found:
		_ = c.machine.step(now, s, Event{Type: EventExit, Process: s.Run.Process, Signal: uint32(syscall.SIGKILL)})
	case s.Run.State == StartPending && s.Run.Phase == waitSpawn && s.Run.Process == 0:
		s.Run.Phase = waitDeps // it was never executed: settle does it again
	case s.Run.State == StopPending && s.Run.Process == 0:
		_ = c.machine.step(now, s, Event{Type: EventSpawnFailed, Reason: "it was stopped before it was executed"})
	}
}

// end kills a process that belongs to no run. The caller holds mu.
func (c *controller) end(p sm.Process) {
	c.queue(func(ctx context.Context) {
		_ = c.keeper.Signal(ctx, p.ID, syscall.SIGKILL, true)
		if p.Exit != nil {
			_ = c.keeper.Acknowledge(ctx, p.ID)
		}
	})
}

// exits feeds the machine with the ends of processes, those that nobody acknowledged first, until ctx ends or smss goes.
func (c *controller) exits(ctx context.Context) error {
	return c.keeper.Exits(ctx, func(x sm.Exit) error {
		key, _, _ := cutAttempt(x.Name)
		err := c.apply(func(now time.Time) error {
			if s, ok := c.machine.Get(key); ok && s.Run.Process == 0 && s.Run.State != Stopped {
				// It ended before exec could tell that it began: the two reach the machine in their true order.
				_, attempt, _ := cutAttempt(x.Name)
				_ = c.machine.Step(now, Event{Type: EventSpawned, Service: key, Attempt: attempt, Process: x.Process, PID: uint32(x.PID)})
			}
			return c.machine.Step(now, Event{Type: EventExit, Service: key, Process: x.Process, Code: uint32(x.Code), Signal: uint32(x.Signal)})
		})
		if err != nil { // a service that is gone
			_ = c.apply(func(time.Time) error { c.end(sm.Process{ID: x.Process, Exit: &x}); return nil })
		}
		return nil
	})
}

// processName is what smss knows a service's process by.
func processName(key string, attempt uint64) string {
	return key + "#" + strconv.FormatUint(attempt, 10)
}

func cutAttempt(name string) (key string, attempt uint64, ok bool) {
	i := strings.LastIndexByte(name, '#')
	if i < 0 {
		return name, 0, false
	}
	attempt, err := strconv.ParseUint(name[i+1:], 10, 64)
	return name[:i], attempt, err == nil
}

// enter makes the shell's side of a service. The caller holds mu.
func (c *controller) enter(s *Service, r *scmpb.ServiceRecord, d *security.Descriptor) *entry {
	e := &entry{service: s, record: r, descriptor: d, changed: make(chan struct{})}
	c.entries[s] = e
	return e
}

// find returns a service's entry; the caller holds mu.
func (c *controller) find(op, name string) (*entry, error) {
	if s, ok := c.machine.Get(name); ok {
		return c.entries[s], nil
	}
	return nil, ntstatus.New(op, clip(name), ntstatus.ServiceDoesNotExist)
}

// shutdown stops everything and waits until nothing runs, or ctx ends.
func (c *controller) shutdown(ctx context.Context) {
	_ = c.apply(func(now time.Time) error { c.machine.Shutdown(now); return nil })
	w := c.watch("")
	defer c.unwatch(w)
	for {
		c.mu.Lock()
		idle := c.machine.Idle() && len(c.jobs) == 0 && !c.working
		c.mu.Unlock()
		if idle {
			return
		}
		select {
		case <-w.events:
		case <-time.After(50 * time.Millisecond): // the worker's last jobs tell nobody
		case <-ctx.Done():
			return
		}
	}
}

// close lets go of files. What smss keeps stays kept.
func (c *controller) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer.Stop()
	for _, e := range c.entries {
		if e.log != nil {
			e.log.close()
		}
		if e.notify != nil {
			e.notify.Close()
		}
	}
}
