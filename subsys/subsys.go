// Package subsys is what a subsystem server is: a value with a name and a function, which runs as a process of its own
// (Main) or as a part of another program (Host), and can't tell the difference.
//
// A server trusts the core and smss; it owns nothing that it was not handed in its Env. It is stopped by the end of its
// context, in an orderly way, and that is also what it sees when the core goes: without a core nobody can prove who calls.
package subsys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/subsys/smss/sm"
)

// What smss tells the process of a server, beside the directories.
const (
	envServer  = "SALLYPORT_SERVER"
	envSession = "SALLYPORT_SESSION"
	envState   = "SALLYPORT_STATE_DIR"
	envRuntime = "SALLYPORT_RUNTIME_DIR"
	envLog     = "SALLYPORT_LOG"
)

// Exit codes of Main.
const (
	ExitStopped = 0 // it was told to stop, or had nothing left to do
	ExitFailed  = 1 // Run returned an error
	ExitHung    = 2 // Run did not return within its grace
	ExitNoCore  = 3 // there is no core, or it went
)

const (
	attachTimeout = 10 * time.Second
	readyTimeout  = 10 * time.Second
	stopGrace     = 8 * time.Second
)

// Server is a server in a program's table of servers.
type Server struct {
	Name string
	// Run serves until ctx ends, then stops in an orderly way and returns nil. An error means that the server can't go
	// on: smss starts it again within its budget. It calls env.Ready once it serves.
	Run func(ctx context.Context, env *Env) error
	// Grace is how long Run may take to stop; 0 means 8 s. It is less than smss's stop_timeout of the server, so that who
	// hangs says so itself.
	Grace time.Duration
}

// Env is what a server is handed. It is not changed after Run began.
type Env struct {
	Name       string // the instance: "lsass"; in an interactive session "csrss@3"
	System     *alpc.System
	Logger     hclog.Logger
	StateDir   string // what must survive: the server's own, mode 0700; empty if there is none
	RuntimeDir string // sockets and the like; empty if there is none
	Session    uint32
	Args       []string
	// Manager speaks to smss; nil for a server that smss did not start.
	Manager *sm.Client
	// Ready says that the server serves. It may be called again.
	Ready func() error
}

// Main is the life of a server's process: it attaches to the core, runs the server until SIGTERM or SIGINT (which mean the
// same) and returns the exit code. Logs go to the standard error: text on a terminal, else a JSON object per line; the
// variable SALLYPORT_LOG sets their level.
func Main(server Server, args ...string) int {
	name := os.Getenv(envServer)
	started := name != ""
	if !started {
		name = server.Name
	}
	log := processLogger(name)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	sys, err := attach(ctx, log)
	if err != nil {
		log.Error("there is no core to attach to", "error", err)
		return ExitNoCore
	}
	defer sys.Close()
	env := Env{Name: name, System: sys, Logger: log, StateDir: os.Getenv(envState), RuntimeDir: os.Getenv(envRuntime), Args: args}
	if n, err := strconv.ParseUint(os.Getenv(envSession), 10, 32); err == nil {
		env.Session = uint32(n)
	}
	if started {
		dialing, done := context.WithTimeout(ctx, attachTimeout)
		env.Manager, err = sm.Dial(dialing, sys)
		done()
		if err != nil {
			log.Error("the session manager does not answer", "error", err)
			return ExitFailed
		}
		defer env.Manager.Close()
	}
	hosted := begin(ctx, server, env)
	select {
	case <-hosted.done:
	case <-ctx.Done():
		log.Info("stopping")
	case <-sys.Done():
		log.Error("the core is gone, stopping", "error", sys.Err())
	}
	// From here on a second signal has its default effect.
	cancel()
	grace := cmp.Or(server.Grace, stopGrace)
	stopping, done := context.WithTimeout(context.Background(), grace)
	defer done()
	err = hosted.Stop(stopping)
	switch {
	case errors.Is(err, errHung):
		log.Error("did not stop in time", "grace", grace)
		return ExitHung
	case sys.Err() != nil:
		return ExitNoCore
	case err != nil:
		log.Error("failed", "error", err)
		return ExitFailed
	}
	log.Info("stopped")
	return ExitStopped
}

// attach tries until there is a core: a server may be started a moment before it.
func attach(ctx context.Context, log hclog.Logger) (*alpc.System, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	const first = 5 * time.Millisecond
	for pause := first; ; pause = min(2*pause, 250*time.Millisecond) {
		sys, err := alpc.Attach(ctx, alpc.Options{Logger: log.Named("alpc")})
		if s := ntstatus.Of(err); s != ntstatus.ObjectNameNotFound && s != ntstatus.PortConnectionRefused {
			return sys, err
		}
		if pause == first {
			log.Info("waiting for the core", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (tried for %v)", err, attachTimeout)
		case <-time.After(pause):
		}
	}
}

func processLogger(name string) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv(envLog))
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	terminal := false
	if info, err := os.Stderr.Stat(); err == nil {
		terminal = info.Mode()&os.ModeCharDevice != 0
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Output: os.Stderr, Level: level, JSONFormat: !terminal})
}

// Hosted is a server that runs as a part of this program. It is safe for concurrent use.
type Hosted struct {
	cancel context.CancelFunc
	ready  chan struct{}
	done   chan struct{}
	err    error // once done is closed
}

// errHung is Stop's own: the server's goroutines are still there.
var errHung = errors.New("the server did not stop in time")

// Host starts a server in this program and returns once it is ready: an embedded system, or a test. env needs a System, an
// attachment of the server's own; Name, Logger and Ready are filled in where they are empty. The server runs until Stop, until
// ctx ends or until its core goes; what is left of env stays the caller's to close.
func Host(ctx context.Context, server Server, env Env) (*Hosted, error) {
	h := begin(ctx, server, env)
	select {
	case <-h.ready:
		return h, nil
	case <-h.done:
		if h.err == nil {
			return nil, ntstatus.Errorf("subsys.Host", server.Name, ntstatus.ProcessAborted, "the server ended before it was ready")
		}
		return nil, ntstatus.Wrap("subsys.Host", server.Name, h.err)
	}
}

// begin runs a server on a goroutine.
func begin(ctx context.Context, server Server, env Env) *Hosted {
	ctx, cancel := context.WithCancel(ctx)
	h := &Hosted{cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	if env.Name == "" {
		env.Name = server.Name
	}
	if env.Logger == nil {
		env.Logger = hclog.NewNullLogger()
	}
	tell := env.Ready
	said := make(chan struct{}, 1)
	env.Ready = func() error {
		if env.Manager != nil {
			saying, done := context.WithTimeout(ctx, readyTimeout)
			defer done()
			if err := env.Manager.Ready(saying, ""); err != nil {
				return err
			}
		}
		if tell != nil {
			if err := tell(); err != nil {
				return err
			}
		}
		select {
		case said <- struct{}{}:
			close(h.ready)
		default: // said before
		}
		return nil
	}
	go func() {
		select {
		case <-env.System.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	go func() {
		defer close(h.done)
		defer cancel()
		h.err = server.Run(ctx, &env)
		// The end of the context is what Run was asked for, however it puts it.
		if ctx.Err() != nil && (errors.Is(h.err, context.Canceled) || ntstatus.Of(h.err) == ntstatus.RequestCanceled) {
			h.err = nil
		}
	}()
	return h
}

// Done is closed when the server has ended.
func (h *Hosted) Done() <-chan struct{} { return h.done }

// Stop ends the server and returns its outcome; if ctx ends first, an error, and the server may still run.
func (h *Hosted) Stop(ctx context.Context) error {
	h.cancel()
	select {
	case <-h.done:
		return h.err
	case <-ctx.Done():
		return errHung
	}
}
