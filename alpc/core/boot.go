package core

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"sallyport/internal/spawn"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

// stopGrace is how long what the session manager left behind may take to end politely.
const stopGrace = 5 * time.Second

// BootOptions say how the core's own process starts the session manager.
type BootOptions struct {
	Options
	// Path, Args and Env of the session manager; it gets LocalSystem's token and is the only process that the core starts.
	Program spawn.Program
	// Ready is called when the core takes attachments.
	Ready func()
}

// Boot is the life of the core's own process: it starts the core and the session manager, and ends when the session manager
// does. Cancelling ctx asks for an orderly shutdown. When the session manager died without being asked, everything that it
// left is stopped, services before servers and servers in reverse order of their coming, and Boot returns an error.
// Nothing is orphaned: whatever still lives is the core's child then, is told, and after a grace killed, and reaped.
func Boot(ctx context.Context, o BootOptions) error {
	if err := spawn.BecomeSubreaper(); err != nil {
		return ntstatus.Wrap("core.Boot", "", err)
	}
	o.Process = true
	c, err := Start(o.Options)
	if err != nil {
		return err
	}
	defer c.Close()
	if o.Ready != nil {
		o.Ready()
	}
	smss, err := spawn.Start(o.Program)
	if err != nil {
		return ntstatus.Wrap("core.Boot", o.Program.Path, err)
	}
	pidfd, err := unixsock.Dup(smss.PIDFD())
	if err != nil {
		smss.Kill()
		return ntstatus.Wrap("core.Boot", o.Program.Path, err)
	}
	if err := c.Launch(pidfd); err != nil {
		smss.Kill()
		return err
	}
	over := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			smss.Signal(syscall.SIGTERM, false)
		case <-over:
		}
	}()
	stopReaping := reapWhile(smss.PID())
	exit, err := smss.Wait(context.Background())
	close(over)
	stopReaping()
	smss.Reap()
	left := c.endEverything()
	switch {
	case err != nil:
		return ntstatus.Wrap("core.Boot", o.Program.Path, err)
	case exit.Signal != 0 || exit.Code != 0:
		return ntstatus.Errorf("core.Boot", "smss", ntstatus.ProcessAborted, "the session manager ended with %s; %d processes that it left were stopped", exit, left)
	}
	return nil
}

// reapWhile reaps what this process adopts while the session manager lives: in a container it is process 1.
func reapWhile(smss int) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	go func() {
		defer close(done)
		for {
			select {
			case <-signals:
				spawn.ReapOrphans(func(pid int) bool { return pid == smss })
			case <-quit:
				signal.Stop(signals)
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// endEverything stops what is left, in order, and returns how many processes that was.
func (c *Core) endEverything() (left int) {
	servers := c.attachedPIDs() // oldest first
	left, _ = spawn.ReapOrphans(func(int) bool { return false })
	if left == 0 {
		return 0
	}
	c.log.Error("the session manager is gone: stopping what it left", "processes", left)
	endPhase(func(pid int) bool { return slices.Contains(servers, pid) })
	for i := len(servers) - 1; i >= 0; i-- {
		endPhase(func(pid int) bool { return slices.Contains(servers[:i], pid) })
	}
	return left
}

// endPhase ends every child that spare does not name: politely for a grace, then by force. Each end may make new children: what it
// left behind.
func endPhase(spare func(pid int) bool) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	grace := time.After(stopGrace)
	force := false
	running, err := spawn.EndOrphans(syscall.SIGTERM, spare)
	for err == nil && running > 0 {
		select {
		case <-ended:
		case <-grace:
			force = true
		}
		if force {
			running, err = spawn.EndOrphans(syscall.SIGKILL, spare)
		} else {
			running, err = spawn.ReapOrphans(spare)
		}
	}
}

// attachedPIDs are the attached processes, oldest attachment first.
func (c *Core) attachedPIDs() []int {
	out := make(chan []int, 1)
	if !c.post(func() Event {
		var pids []int
		for _, a := range sorted(c.machine.attachments) {
			pids = append(pids, int(a.pid))
		}
		out <- pids
		return Tick{}
	}) {
		return nil
	}
	return <-out
}
