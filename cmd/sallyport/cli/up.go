package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/internal/instance"
	"sallyport/ntstatus"
	"sallyport/proto/smpb"
	"sallyport/subsys/smss/sm"
)

// logName is the set's own log, in the state directory.
const logName = "sallyport.log"

func upCommand(a *app) *cobra.Command {
	var foreground bool
	c := &cobra.Command{
		Use:   "up",
		Short: "start the set and wait until it is ready",
		Long: `Up starts the core, which starts the session manager, which starts the rest; it returns when every server of session 0
serves. With --foreground the core is this very process: as a container's PID 1 it reaps what nobody waits for, and SIGTERM
stops everything in order.`,
		Example: `  sallyport up
  sallyport --runtime /tmp/mine up
  exec sallyport up --foreground        # the last line of a container's entry point`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVar(&foreground, "foreground", false, "be the core, log to standard error, end with it")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		in, err := instance.Locate(a.where)
		if err != nil {
			return err
		}
		if err := in.Prepare(); err != nil {
			return err
		}
		ctx, cancel := a.bounded(cmd.Context())
		defer cancel()
		if sys, err := alpc.Attach(ctx, alpc.Options{Path: in.Socket(), Logger: a.logger()}); err == nil {
			defer sys.Close()
			if foreground {
				return ntstatus.Errorf("up", in.Runtime, ntstatus.ObjectNameCollision, "it runs already")
			}
			fmt.Fprintf(a.stderr, "it runs already in %s\n", in.Runtime)
			return a.ready(ctx, sys)
		}
		if foreground {
			return runCore(cmd.Context(), in, os.Stderr, nil)
		}
		started, err := startCore(in)
		if err != nil {
			return err
		}
		if a.noWait {
			return nil
		}
		return a.awaitCore(ctx, in, started)
	}
	return c
}

// coreProcess is a core that was started in the background.
type coreProcess struct {
	cmd   *exec.Cmd
	bound *os.File      // yields a byte when the core's socket is there, its end when the core ends before
	ended chan struct{} // closed when the process has ended; err is set before
	err   error
	log   string
	from  int64 // where this run begins in the log
}

// startCore starts this very program again as the core, in a session of its own. The executable is found through /proc, for
// that of "go run" may be gone.
func startCore(in instance.Instance) (*coreProcess, error) {
	p := &coreProcess{log: filepath.Join(in.State, logName), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, ntstatus.Wrap("up", p.log, err)
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		p.from = info.Size()
	}
	bound, tell, err := os.Pipe()
	if err != nil {
		return nil, ntstatus.Wrap("up", in.Runtime, err)
	}
	defer tell.Close()
	p.bound = bound
	p.cmd = exec.Command("/proc/self/exe", "--runtime", in.Runtime, "--state", in.State, "--config", in.Config, "core", "--ready-fd", "3")
	p.cmd.Args[0] = "sallyport"
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, "/"
	p.cmd.ExtraFiles = []*os.File{tell}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		bound.Close()
		return nil, ntstatus.Wrap("up", in.Runtime, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// awaitCore waits until the instance that p belongs to is ready, or says why it never will be.
func (a *app) awaitCore(ctx context.Context, in instance.Instance, p *coreProcess) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.ended:
			cancel(p.failure(in))
		case <-ctx.Done():
		}
	}()
	err := func() error {
		if err := p.awaitSocket(ctx); err != nil {
			return err
		}
		sys, err := alpc.Attach(ctx, alpc.Options{Path: in.Socket(), Logger: a.logger()})
		if err != nil {
			return err
		}
		defer sys.Close()
		return a.ready(ctx, sys)
	}()
	if err == nil {
		return nil
	}
	// What was being asked of a core that ends fails in many ways; the core's end is the reason.
	select {
	case <-p.ended:
	case <-ctx.Done(): // which the core's end brings about, too
	case <-time.After(deathNotice):
	}
	select {
	case <-p.ended:
		return p.failure(in)
	default:
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return hinted(err, "the log is %s; \"sallyport down\" stops what runs", p.log)
}

// deathNotice is how long the end of a process may take to be seen after its connections broke.
const deathNotice = time.Second

func (p *coreProcess) awaitSocket(ctx context.Context) error {
	defer p.bound.Close()
	stop := context.AfterFunc(ctx, func() { p.bound.SetReadDeadline(time.Now()) })
	defer stop()
	if _, err := io.ReadFull(p.bound, make([]byte, 1)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return ntstatus.Errorf("up", p.log, ntstatus.PortDisconnected, "the core ended before it served")
	}
	return nil
}

// failure says how the core ended, with the last words of its log.
func (p *coreProcess) failure(in instance.Instance) error {
	status := ntstatus.ProcessAborted
	var ended *exec.ExitError
	if errors.As(p.err, &ended) && ended.ExitCode() == exitConflict {
		status = ntstatus.ObjectNameCollision // another "up" was faster
	}
	err := ntstatus.Errorf("up", in.Runtime, status, "the core ended: %v", p.err)
	if words := p.lastWords(); words != "" {
		return hinted(err, "it said:\n%s\nThe whole log is %s", words, p.log)
	}
	return hinted(err, "the log is %s", p.log)
}

// lastWords are the last lines that say that something is wrong, in words.
func (p *coreProcess) lastWords() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	var last []string
	lines := bufio.NewScanner(io.NewSectionReader(f, p.from, 1<<20))
	for lines.Scan() {
		var line struct{ Module, Message, Level, Error string }
		names := map[string]*string{"@module": &line.Module, "@message": &line.Message, "@level": &line.Level, "error": &line.Error}
		var fields map[string]any
		text := lines.Text()
		if json.Unmarshal([]byte(text), &fields) == nil {
			for name, field := range names {
				*field, _ = fields[name].(string)
			}
			if line.Level != "error" && line.Level != "warn" {
				continue
			}
			text = strings.TrimSuffix(line.Module+": "+line.Message+": "+line.Error, ": ")
		}
		if last = append(last, "  "+text); len(last) > 6 {
			last = last[1:]
		}
	}
	return strings.Join(last, "\n")
}

// ready waits until session 0 is active, which is when all of its servers serve.
func (a *app) ready(ctx context.Context, sys *alpc.System) error {
	c, err := awaitManager(ctx, sys)
	if err != nil {
		return err
	}
	defer c.Close()
	found := errors.New("found")
	waiting := map[string]string{}
	err = c.Watch(ctx, func(change *smpb.StateChange) error {
		switch {
		case change.GetStopping() != "":
			return ntstatus.Errorf("up", "", ntstatus.ShutdownInProgress, "%s", change.GetStopping())
		case change.GetServer() != nil:
			s := change.GetServer()
			delete(waiting, s.Name)
			if s.State != smpb.ServerState_SERVER_STATE_RUNNING {
				waiting[s.Name] = serverState(s.State) + " " + s.LastEnd
			}
		case change.GetSession().GetSession() == 0 && change.GetSession().GetState() == smpb.SessionState_SESSION_STATE_ACTIVE:
			return found
		}
		return nil
	})
	switch {
	case errors.Is(err, found):
		return nil
	case err == nil:
		return ntstatus.Errorf("up", "", ntstatus.PortDisconnected, "the session manager stopped")
	case len(waiting) > 0:
		return hinted(err, "not ready: %v", waiting)
	}
	return err
}

// awaitManager connects to a session manager that may just be starting: nothing can declare its port before it.
func awaitManager(ctx context.Context, sys *alpc.System) (*sm.Client, error) {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		c, err := sm.Dial(ctx, sys)
		if err == nil || ntstatus.Of(err) != ntstatus.ObjectNameNotFound {
			return c, err
		}
		select {
		case <-look.C:
		case <-sys.Done():
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

func serverState(s smpb.ServerState) string {
	return enumWord(s.String(), "SERVER_STATE_")
}
