package scm

import (
	"context"
	"os"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/logpipe"
)

// What the black-box tests see of the inside.

// CellName is what the table does with an event in a state.
func CellName(state State, event EventType) string { return table(state, event).name }

// HasAction reports whether the cell is filled.
func HasAction(state State, event EventType) bool { return table(state, event).do != nil }

const EventTypes = eventTypes

var (
	Admit      = admit
	Reportable = reportable
	Normalize  = normalize
	Change     = change
	LogPath    = logPath
	Belongs    = belongs
)

// TestLog is a service's log with its pipe.
type TestLog struct{ l *serviceLog }

// OpenTestLog opens a log as openFiles does; pipe ends may be another log's, as after a restart.
func OpenTestLog(path string, limit int64, keep int, r, w *os.File) (*TestLog, error) {
	l, err := openLog(path, limit, keep, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	if r == nil {
		if r, w, err = logpipe.New(); err != nil {
			return nil, err
		}
	}
	l.pipe, l.write = r, w
	return &TestLog{l}, nil
}

func (t *TestLog) Run()            { t.l.run() }
func (t *TestLog) Seam()           { t.l.seam() }
func (t *TestLog) Close()          { t.l.close() }
func (t *TestLog) Dropped() uint64 { return t.l.lost() }
func (t *TestLog) Write() *os.File { return t.l.write }

// Drain takes out what is in the pipe.
func (t *TestLog) Drain() {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	for before := int64(-1); before != t.l.size; {
		before = t.l.size
		_ = t.l.drain()
	}
}

// KeepPipe ends the log as a kill does: the pipe stays.
func (t *TestLog) KeepPipe() (r, w *os.File) {
	r, w = t.l.pipe, t.l.write
	t.l.pipe, t.l.write = nil, nil
	t.l.close()
	return r, w
}

// Swap puts another file in the place of the log's, and returns the old one.
func (t *TestLog) Swap(f *os.File) *os.File {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	old := t.l.file
	t.l.file = f
	return old
}

func (t *TestLog) Read(ctx context.Context, tail int, follow bool, send func([]byte) error) error {
	return t.l.read(ctx, tail, follow, send)
}
