package csrss

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

const (
	maxProcesses        = 1024 // of a session
	maxProcessesPerUser = 256
	maxExitNotices      = 256 // that a watcher may be behind
	maxWatchers         = 64

	processPrefix = "process/" // of names in smss's store
)

// processes is the session's table. An entry is a pidfd; it leaves when the kernel says that the process has ended. Entries of
// strangers are kept at smss as well, so that a successor has them; a console's command smss has anyway. To be in
// the table gives nobody a right over anything. mu is a leaf.
type processes struct {
	session uint32
	keeper  *sm.Client
	log     hclog.Logger
	ctx     context.Context // ends the waits
	waits   sync.WaitGroup

	mu       sync.Mutex
	byKey    map[pidfd.Key]*process
	next     uint64
	watchers map[chan *csrpb.Process]struct{}
}

type process struct {
	number  uint64 // order of registration
	info    *csrpb.Process
	user    security.SID
	pidfd   *os.File
	deposit string // name in smss's store; empty for a console's command
}

func newProcesses(ctx context.Context, session uint32, keeper *sm.Client, log hclog.Logger) *processes {
	return &processes{session: session, keeper: keeper, log: log, ctx: ctx,
		byKey: map[pidfd.Key]*process{}, watchers: map[chan *csrpb.Process]struct{}{}}
}

// record is what smss keeps beside a pidfd.
type record struct {
	Name       string
	User       security.SID
	Registered int64
}

// add enters a process, of which it takes the pidfd over; one that is there already is returned as it is. deposit says whether it
// is to be kept at smss.
func (t *processes) add(ctx context.Context, file *os.File, r record, deposit bool) (*csrpb.Process, error) {
	const op = "csr.RegisterProcess"
	key, err := pidfd.KeyOf(file)
	var pid int
	if err == nil {
		pid, err = pidfd.PID(file)
	}
	if err == nil && !pidfd.Alive(file) {
		err = syscall.ESRCH
	}
	if err != nil {
		file.Close()
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidCID, "not the pidfd of a live process: %w", err)
	}
	p := &process{user: r.User, pidfd: file, info: &csrpb.Process{
		Pid: uint32(pid), Key: key.Inode, Name: r.Name, User: r.User.String(), Session: t.session, Registered: r.Registered}}
	if key.Inode == 0 {
		p.info.Key = key.Start
	}
	if deposit {
		p.deposit = fmt.Sprintf("%s%d-%d", processPrefix, pid, p.info.Key)
	}
	if have, err := t.enter(op, key, p); have != nil || err != nil {
		file.Close()
		return have, err
	}
	if deposit {
		data, err := json.Marshal(r)
		if err == nil {
			err = t.keeper.Store(ctx, p.deposit, data, file)
		}
		if err != nil {
			t.remove(key, p, false)
			file.Close()
			return nil, ntstatus.Wrap(op, r.Name, err)
		}
	}
	t.waits.Add(1)
	go t.wait(key, p)
	return p.info, nil
}

// enter puts p into the table, or returns the entry that the process has.
func (t *processes) enter(op string, key pidfd.Key, p *process) (*csrpb.Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.byKey[key]; have != nil {
		return have.info, nil
	}
	ofUser := 0
	for _, other := range t.byKey {
		if other.user == p.user {
			ofUser++
		}
	}
	if len(t.byKey) >= maxProcesses || ofUser >= maxProcessesPerUser {
		return nil, ntstatus.Errorf(op, p.info.Name, ntstatus.QuotaExceeded, "the session has %d processes registered, %d of them by %s; it may have %d and %d",
			len(t.byKey), ofUser, p.user, maxProcesses, maxProcessesPerUser)
	}
	t.next++
	p.number = t.next
	t.byKey[key] = p
	return nil, nil
}

// wait tells the watchers of a process's end.
func (t *processes) wait(key pidfd.Key, p *process) {
	defer t.waits.Done()
	err := pidfd.Wait(t.ctx, p.pidfd)
	p.pidfd.Close()
	if t.ctx.Err() != nil {
		return
	}
	if err != nil {
		t.log.Error("can't wait for a process", "pid", p.info.Pid, "error", err)
	}
	t.remove(key, p, true)
	if p.deposit != "" {
		if err := t.keeper.Remove(t.ctx, p.deposit); err != nil {
			t.log.Warn("an ended process stays in the store", "name", p.deposit, "error", err)
		}
	}
}

// remove takes p out and, where that is because it ended, tells the watchers.
func (t *processes) remove(key pidfd.Key, p *process, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[key] == p {
		delete(t.byKey, key)
	}
	if !ended {
		return
	}
	for watcher := range t.watchers {
		select {
		case watcher <- p.info:
		default:
			delete(t.watchers, watcher)
			close(watcher)
		}
	}
}

// watch returns a channel of the processes that end from now on. It is closed when the watcher is too slow for it.
func (t *processes) watch() (chan *csrpb.Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.watchers) >= maxWatchers {
		return nil, ntstatus.Errorf("csr.WatchExits", "", ntstatus.QuotaExceeded, "%d watch already, the most that may", maxWatchers)
	}
	watcher := make(chan *csrpb.Process, maxExitNotices)
	t.watchers[watcher] = struct{}{}
	return watcher, nil
}

func (t *processes) unwatch(watcher chan *csrpb.Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.watchers[watcher]; ok {
		delete(t.watchers, watcher)
		close(watcher)
	}
}

// list is the table in the order of registration.
func (t *processes) list() []*csrpb.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.SortedFunc(maps.Values(t.byKey), func(a, b *process) int { return cmp.Compare(a.number, b.number) })
	out := make([]*csrpb.Process, len(all))
	for i, p := range all {
		out[i] = p.info
	}
	return out
}

// adopt enters what the predecessor had registered; what ended meanwhile is forgotten.
func (t *processes) adopt(ctx context.Context, s sm.Stored) error {
	var r record
	if len(s.Files) == 1 && json.Unmarshal(s.Data, &r) == nil && pidfd.Alive(s.Files[0]) {
		_, err := t.add(ctx, s.Files[0], r, true)
		if ntstatus.Of(err) != ntstatus.InvalidCID {
			return err
		}
	} else {
		closeFiles(s.Files)
	}
	return t.keeper.Remove(ctx, s.Name)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// now is when something was registered, in the form that records have.
func now() int64 { return time.Now().UnixNano() }
