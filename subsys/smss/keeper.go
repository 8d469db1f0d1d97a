package smss

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"sallyport/internal/fdkeep"
	"sallyport/internal/pidfd"
	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/security"
)

// What one owner may pin here.
const (
	maxProcesses     = 1024             // running, or ended and not acknowledged
	maxEntries       = 1024             // names in the store
	maxEntryHandles  = 16               // files under one name
	maxStoredHandles = 2048             // files in the store
	maxEntryData     = 16 << 10         // bytes beside them
	maxNameLength    = 256              // bytes of a process's or an entry's name
	forceAfterKill   = time.Second * 10 // how long a killed process may take to go
)

// keeper has what must outlive a server: its processes and their exits, and the files that it left here.
//
// forks is taken before mu. forks makes "fork and note the child" one step for whoever looks through the list of children;
// mu guards the maps. Neither is held while anything waits for a process.
type keeper struct {
	forks sync.Mutex

	mu     sync.Mutex
	last   uint64
	owners map[string]*owner
	over   map[uint32]bool // sessions in which nothing is started any more
	pids   map[int]bool    // children that somebody here waits for
}

// owner is a server as the keeper knows it. It stays when the server's process dies.
type owner struct {
	processes map[uint64]*process
	entries   map[string]*entry
	handles   int
	changed   chan struct{} // closed and renewed at each exit
	over      bool          // its session ends: nothing is started for it any more
}

// process is a child of an owner's.
type process struct {
	id      uint64
	owner   string
	name    string
	session uint32
	token   security.LUID
	started time.Time
	proc    *spawn.Process
	gone    chan struct{} // closed when it has ended; the fields below hold then
	exit    spawn.Exit
	ended   time.Time
}

// entry is one name in an owner's store.
type entry struct {
	kept []fdkeep.Kept
	data []byte
}

func newKeeper() *keeper {
	return &keeper{owners: map[string]*owner{}, over: map[uint32]bool{}, pids: map[int]bool{}}
}

// of finds or makes an owner; mu is held.
func (k *keeper) of(name string) *owner {
	o := k.owners[name]
	if o == nil {
		o = &owner{processes: map[uint64]*process{}, entries: map[string]*entry{}, changed: make(chan struct{})}
		k.owners[name] = o
	}
	return o
}

// known reports whether a child is waited for by somebody here; forks is held.
func (k *keeper) known(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pids[pid]
}

// fork starts a program and notes its pid.
func (k *keeper) fork(p spawn.Program) (*spawn.Process, error) {
	k.forks.Lock()
	defer k.forks.Unlock()
	proc, err := spawn.Start(p)
	if err == nil {
		k.mu.Lock()
		k.pids[proc.PID()] = true
		k.mu.Unlock()
	}
	return proc, err
}

// reap frees an ended child's number.
func (k *keeper) reap(proc *spawn.Process) {
	k.forks.Lock()
	defer k.forks.Unlock()
	if proc.Reap() == nil {
		k.mu.Lock()
		delete(k.pids, proc.PID())
		k.mu.Unlock()
	}
}

// discard kills a child that must not run, and reaps it.
func (k *keeper) discard(proc *spawn.Process) {
	proc.Signal(syscall.SIGKILL, true)
	ctx, cancel := context.WithTimeout(context.Background(), forceAfterKill)
	defer cancel()
	if _, err := proc.Wait(ctx); err == nil {
		k.reap(proc)
	}
}

// endOrphans ends adopted orphans that match says are meant, with all that they leave behind: asked once, killed after the grace.
func (k *keeper) endOrphans(ctx context.Context, grace time.Duration, match func(pid int) bool) error {
	sig, deadline := syscall.SIGTERM, time.Now().Add(grace)
	for {
		// Each pass holds forks for a moment only, so that fork is not kept waiting by a stubborn orphan.
		left := 0
		var err error
		k.orphans(func(known func(int) bool) {
			left, err = spawn.EndOrphans(sig, func(pid int) bool { return known(pid) || !match(pid) })
		})
		if left == 0 || err != nil {
			return err
		}
		sig = 0
		if time.Now().After(deadline) {
			sig = syscall.SIGKILL
		}
		// The kernel tells of an orphan's end by SIGCHLD, which says nothing of whose; a short pause is as good.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// orphans runs f, which reaps or kills orphans, with a list of children that can't change meanwhile.
func (k *keeper) orphans(f func(known func(pid int) bool)) {
	k.forks.Lock()
	defer k.forks.Unlock()
	f(k.known)
}

// reserve checks an owner's limit and that its name is free.
func (k *keeper) reserve(ownerName, name string) (uint64, error) {
	const op = "sm.ExecPgm"
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.of(ownerName)
	switch {
	case name == "" || len(name) > maxNameLength:
		return 0, ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "a process needs a name of 1 to %d bytes", maxNameLength)
	case len(o.processes) >= maxProcesses:
		return 0, ntstatus.Errorf(op, name, ntstatus.QuotaExceeded, "%s has %d processes that run or wait to be acknowledged", ownerName, len(o.processes))
	}
	for _, p := range o.processes {
		if p.name == name {
			return 0, ntstatus.Errorf(op, name, ntstatus.ObjectNameCollision, "process %d has that name; acknowledge its exit first", p.id)
		}
	}
	k.last++
	id := k.last
	// The place is taken before the fork, so that two calls can't both find it free.
	o.processes[id] = &process{id: id, owner: ownerName, name: name, gone: make(chan struct{})}
	return id, nil
}

// unreserve gives the place back.
func (k *keeper) unreserve(ownerName string, id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.of(ownerName).processes, id)
}

// started completes a reserved process and watches it. It refuses when the end of the owner or the session has begun since,
// so that what ends them need not wait for a fork: the caller discards the child.
func (k *keeper) started(ownerName string, id uint64, proc *spawn.Process, session uint32, token security.LUID) error {
	k.mu.Lock()
	o := k.of(ownerName)
	if o.over || k.over[session] {
		k.mu.Unlock()
		return ntstatus.Errorf("sm.ExecPgm", ownerName, ntstatus.ShutdownInProgress, "session %d ends", session)
	}
	p := o.processes[id]
	p.proc, p.session, p.token, p.started = proc, session, token, time.Now()
	k.mu.Unlock()
	go func() {
		exit, err := proc.Wait(context.Background())
		if err != nil {
			exit = spawn.Exit{Code: -1}
		}
		k.mu.Lock()
		p.exit, p.ended = exit, time.Now()
		close(p.gone)
		close(o.changed)
		o.changed = make(chan struct{})
		k.mu.Unlock()
	}()
	return nil
}

// find returns an owner's process. One that is still being forked is not there yet.
func (k *keeper) find(op, ownerName string, id uint64) (*process, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.of(ownerName).processes[id]
	if p == nil || p.proc == nil {
		return nil, ntstatus.Errorf(op, ownerName, ntstatus.InvalidCID, "%s has no process %d, or has acknowledged its exit", ownerName, id)
	}
	return p, nil
}

// list returns an owner's processes in the order of their start, and what is closed at its next exit.
func (k *keeper) list(ownerName string) ([]*process, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.of(ownerName)
	return sortedProcesses(o.processes), o.changed
}

func sortedProcesses(from map[uint64]*process) []*process {
	out := slices.DeleteFunc(slices.Collect(maps.Values(from)), func(p *process) bool { return p.proc == nil })
	slices.SortFunc(out, func(a, b *process) int { return cmp.Compare(a.id, b.id) })
	return out
}

// hasEnded reports whether p's exit is known.
func (p *process) hasEnded() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// acknowledge forgets an ended process; that it was forgotten already is no error, so that a retry is safe.
func (k *keeper) acknowledge(ownerName string, id uint64) error {
	p, err := k.find("sm.AcknowledgeExit", ownerName, id)
	if err != nil {
		return nil
	}
	if !p.hasEnded() {
		return ntstatus.Errorf("sm.AcknowledgeExit", p.name, ntstatus.InvalidDeviceState, "process %d still runs", id)
	}
	k.forget(p)
	return nil
}

func (k *keeper) forget(p *process) {
	k.reap(p.proc)
	k.unreserve(p.owner, p.id)
}

// inSession counts the processes that run in a session.
func (k *keeper) inSession(session uint32) (n uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range k.owners {
		for _, p := range o.processes {
			if p.proc != nil && p.session == session && !p.hasEnded() {
				n++
			}
		}
	}
	return n
}

// endOwner ends all that an owner started and drops what it stored: nobody will come to ask for it.
func (k *keeper) endOwner(ownerName string, grace time.Duration) {
	k.mu.Lock()
	o := k.of(ownerName)
	o.over = true
	all := sortedProcesses(o.processes)
	k.mu.Unlock()
	k.end(all, grace)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range o.entries {
		e.close()
	}
	o.entries, o.handles = map[string]*entry{}, 0
}

// endSession ends what runs in a session, whoever started it.
func (k *keeper) endSession(session uint32, grace time.Duration) {
	k.mu.Lock()
	k.over[session] = true
	var all []*process
	for _, o := range k.owners {
		for _, p := range sortedProcesses(o.processes) {
			if p.session == session {
				all = append(all, p)
			}
		}
	}
	k.mu.Unlock()
	k.end(all, grace)
}

// end asks the groups of processes to end, after the grace kills them, and forgets them.
func (k *keeper) end(processes []*process, grace time.Duration) {
	tell := func(sig syscall.Signal) {
		for _, p := range processes {
			if !p.hasEnded() {
				p.proc.Signal(sig, true)
			}
		}
	}
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		for _, p := range processes {
			select {
			case <-p.gone:
			case <-timer.C:
				return
			}
		}
	}
	if len(processes) == 0 {
		return
	}
	// A shell ignores SIGTERM and heeds SIGHUP; a stopped process hears neither before SIGCONT.
	tell(syscall.SIGTERM)
	tell(syscall.SIGHUP)
	tell(syscall.SIGCONT)
	wait(grace)
	for _, p := range processes {
		// The group's members may outlive its leader: they get it in any case.
		p.proc.Signal(syscall.SIGKILL, true)
	}
	wait(forceAfterKill)
	for _, p := range processes {
		if p.hasEnded() {
			k.forget(p)
		}
	}
}

// pidfdOf opens a new descriptor of a process that runs, nil for one that has ended.
func (p *process) pidfdOf() (*os.File, error) {
	if p.hasEnded() {
		return nil, nil
	}
	// The number is the process's until it is acknowledged, which takes an exit.
	f, err := pidfd.Open(p.proc.PID())
	if errors.Is(err, syscall.ESRCH) {
		return nil, nil
	}
	return f, err
}

// The store.

func (e *entry) close() {
	for i := range e.kept {
		e.kept[i].Close()
	}
}

// store keeps files under a name, in place of what was there.
func (k *keeper) store(ownerName, name string, files []*os.File, data []byte) error {
	const op = "sm.StoreHandles"
	switch {
	case name == "" || len(name) > maxNameLength:
		return ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "an entry needs a name of 1 to %d bytes", maxNameLength)
	case len(files) > maxEntryHandles:
		return ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "%d files under one name, at most %d are kept", len(files), maxEntryHandles)
	case len(data) > maxEntryData:
		return ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "%d bytes of data, at most %d are kept", len(data), maxEntryData)
	}
	e := &entry{data: slices.Clone(data)}
	for _, f := range files {
		kept, err := fdkeep.Keep(f)
		if err != nil {
			e.close()
			return ntstatus.Wrap(op, name, err)
		}
		e.kept = append(e.kept, kept)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.of(ownerName)
	old := o.entries[name]
	entries, handles := len(o.entries)+1, o.handles+len(e.kept)
	if old != nil {
		entries, handles = entries-1, handles-len(old.kept)
	}
	if entries > maxEntries || handles > maxStoredHandles {
		e.close()
		return ntstatus.Errorf(op, name, ntstatus.QuotaExceeded, "%s keeps %d entries with %d files already", ownerName, len(o.entries), o.handles)
	}
	if old != nil {
		old.close()
	}
	o.entries[name], o.handles = e, handles
	return nil
}

// stored is a duplicate of an entry.
type stored struct {
	name  string
	files []*os.File
	data  []byte
}

// fetch duplicates entries in the order of their names, from the one after a name on, as long as the files are not more
// than limit and the data not more than a quarter of a mebibyte. next is empty when there are no more.
func (k *keeper) fetch(ownerName, name, after string, limit int) (out []stored, next string, err error) {
	const op, most = "sm.FetchHandles", 256 << 10
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.of(ownerName)
	names := slices.Sorted(maps.Keys(o.entries))
	if name != "" {
		if o.entries[name] == nil {
			return nil, "", ntstatus.New(op, name, ntstatus.NotFound)
		}
		names, after = []string{name}, ""
	}
	size := 0
	for _, n := range names {
		e := o.entries[n]
		if after != "" && n <= after {
			continue
		}
		if limit -= len(e.kept); limit < 0 || size+len(e.data) > most {
			return out, next, nil
		}
		size += len(e.data)
		s := stored{name: n, data: e.data}
		for _, kept := range e.kept {
			f, err := kept.File()
			if err != nil {
				for _, done := range append(out, s) {
					for _, f := range done.files {
						f.Close()
					}
				}
				return nil, "", ntstatus.Wrap(op, n, err)
			}
			s.files = append(s.files, f)
		}
		out, next = append(out, s), n
	}
	return out, "", nil
}

// remove closes and forgets an entry.
func (k *keeper) remove(ownerName, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.of(ownerName)
	if e := o.entries[name]; e != nil {
		e.close()
		o.handles -= len(e.kept)
		delete(o.entries, name)
	}
}
