package csrss

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/pty"
	"sallyport/internal/scrollback"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

const (
	// drainTime is how long a console waits, once its command has ended, for what others still write to it.
	drainTime = time.Second
	// hangUpTime is what programs get between SIGHUP and SIGKILL when their console is closed: NT's hung-app time.
	hangUpTime = 5 * time.Second
)

// consoleState is where a console is in its life.
type consoleState uint8

const (
	stateLive   consoleState = iota // its terminal may be used
	stateEnding                     // its command has ended, output may still come
	stateEnded                      // nothing more comes; what was kept can be read
	stateClosed                     // gone from the table; the terminal is hung up
)

// console is one pty and what came out of it. The programs in it may do anything to the terminal; they can lose their own output
// and nothing else. Output goes from the pty straight into the ring, whoever watches and however slowly: a viewer is a
// position in the ring, nothing is queued for it.
type console struct {
	name     string
	terminal string
	deposit  deposit // as it was made
	master   *os.File
	ring     *scrollback.Ring
	file     *os.File // the ring's
	log      hclog.Logger

	typing chan struct{} // capacity 1: who fills it writes to master
	pumped chan struct{} // closed when nothing more is read from master

	keeping   sync.Mutex // one at a time talks to smss about the console
	forgotten bool       // under keeping: smss must not hear of it again

	mu         sync.Mutex
	peer       *os.File // keeps the terminal from hanging up between programs; nil once the command has ended
	descriptor *security.Descriptor
	size       pty.Size
	viewers    map[uint64]*viewer
	process    uint64 // its command at smss; 0 for none, or not started yet
	pid        int
	exit       *sm.Exit
	state      consoleState
	leaving    bool          // csrss stops: see lastWords
	changed    chan struct{} // closed and replaced when size, state or viewers change
}

// viewer is one attachment.
type viewer struct {
	id       uint64
	token    *security.Token
	pid      int
	writing  bool
	detached bool               // under console.mu
	cancel   context.CancelFunc // ends what it is typing
}

// newConsole takes the files and the ring over.
func newConsole(name string, d deposit, sd *security.Descriptor, size pty.Size, master *os.File, ring *scrollback.Ring, file *os.File, log hclog.Logger) *console {
	return &console{name: name, deposit: d, master: master, ring: ring, file: file, log: log, descriptor: sd, size: size,
		typing: make(chan struct{}, 1), pumped: make(chan struct{}), viewers: map[uint64]*viewer{}, changed: make(chan struct{})}
}

// start makes the console work.
func (c *console) start() error {
	peer, err := pty.Peer(c.master)
	if err != nil {
		return ntstatus.Wrap("csr.CreateConsole", c.name, err)
	}
	c.peer, c.terminal = peer, peer.Name()
	go c.pump()
	return nil
}

// drop undoes newConsole for a console that was not started, or has ended its pump.
func (c *console) drop() {
	c.master.Close()
	c.ring.Close()
	c.file.Close()
}

// pump moves output into the ring until the terminal is finished.
func (c *console) pump() {
	defer close(c.pumped)
	for {
		_, err := c.ring.Fill(c.master)
		if err != nil && !c.heal(err) {
			return
		}
	}
}

// heal opens the terminal again after a program hung it up (vhangup(2)), while it may still be used.
func (c *console) heal(cause error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateLive || c.leaving || !errors.Is(cause, syscall.EIO) {
		return false
	}
	peer, err := pty.Peer(c.master)
	if err != nil {
		c.log.Error("can't open a terminal again", "console", c.name, "error", err)
		return false
	}
	c.peer.Close()
	c.peer = peer
	return true
}

// broadcast needs mu.
func (c *console) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// commandEnded records how the command ended and, once its output is all there, says so to the viewers. False says that the
// console was closed before, so that nobody will ask.
func (c *console) commandEnded(exit sm.Exit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateLive {
		return c.state != stateClosed
	}
	c.state, c.exit = stateEnding, &exit
	c.peer.Close() // the pump then ends with the last program that holds the terminal
	c.peer = nil
	go func() {
		timer := time.NewTimer(drainTime)
		defer timer.Stop()
		select {
		case <-c.pumped:
		case <-timer.C:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.state == stateEnding {
			c.state = stateEnded
			c.broadcast()
		}
	}()
	return true
}

// close hangs the terminal up and detaches everybody. The ring stays readable for viewers that are still being served.
func (c *console) close() {
	c.mu.Lock()
	if c.state == stateClosed {
		c.mu.Unlock()
		return
	}
	c.state = stateClosed
	for _, v := range c.viewers {
		v.cancel()
	}
	if c.peer != nil {
		c.peer.Close()
		c.peer = nil
	}
	c.broadcast()
	c.mu.Unlock()
	c.master.Close()
	<-c.pumped
	c.drop()
}

// lastWords lets csrss's own side of the terminal go, if somebody watches: the pump then ends when nobody has the terminal any more
// and all that was written is in the ring. It returns what to wait for, nil for nothing.
func (c *console) lastWords() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateLive || len(c.viewers) == 0 {
		return nil
	}
	c.leaving = true
	if c.peer != nil {
		c.peer.Close()
		c.peer = nil
	}
	return c.pumped
}

// check decides about a right on the console; trace keeps the reasons.
func (c *console) check(token *security.Token, right security.AccessMask, trace bool) security.Decision {
	return security.AccessCheck(security.CheckRequest{
		Descriptor: c.security(), Token: token, Desired: right, Mapping: mapping(), Rights: rightNames(), Trace: trace,
	})
}

func (c *console) security() *security.Descriptor {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.descriptor
}

// input types data into the terminal. It waits while the programs don't read, until ctx ends.
func (c *console) input(ctx context.Context, data []byte) error {
	const op = "csr.WriteConsole"
	select {
	case c.typing <- struct{}{}:
	case <-ctx.Done():
		return ntstatus.Wrap(op, c.name, context.Cause(ctx))
	}
	defer func() { <-c.typing }()
	c.master.SetWriteDeadline(time.Time{})
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.master.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	_, err := c.master.Write(data)
	if !stop() {
		<-fired // or it would stop the next one's write
	}
	if errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EIO) {
		err = ntstatus.ObjectNameNotFound // closed, or ended, meanwhile
	}
	return ntstatus.Wrap(op, c.name, err)
}

// resize makes size the terminal's. The last one to say holds: a person's window counts while they use it.
func (c *console) resize(size pty.Size) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == stateClosed || size == c.size {
		return nil
	}
	if err := pty.SetSize(c.master, size); err != nil {
		return ntstatus.Wrap("csr.ResizeConsole", c.name, err)
	}
	c.size = size
	c.broadcast()
	return nil
}

// openTerminal returns a new file of the terminal; the caller owns it.
func (c *console) openTerminal() (*os.File, error) {
	const op = "csr.OpenConsoleTerminal"
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateLive {
		return nil, ntstatus.Errorf(op, c.name, ntstatus.InvalidDeviceState, "its command has ended")
	}
	f, err := pty.Peer(c.master)
	return f, ntstatus.Wrap(op, c.name, err)
}

// attach enters a viewer.
func (c *console) attach(v *viewer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == stateClosed {
		return ntstatus.New("csr.AttachConsole", c.name, ntstatus.ObjectNameNotFound)
	}
	if len(c.viewers) >= maxViewers {
		return ntstatus.Errorf("csr.AttachConsole", c.name, ntstatus.QuotaExceeded, "it has %d viewers, the most that it may have", maxViewers)
	}
	c.viewers[v.id] = v
	return nil
}

// leave forgets a viewer.
func (c *console) leave(v *viewer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.viewers, v.id)
}

// detach ends the attachment of one viewer, or of all for 0, and returns of how many.
func (c *console) detach(id uint64) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.viewers {
		if (id == 0 || id == v.id) && !v.detached {
			v.detached = true
			v.cancel()
			n++
		}
	}
	if n > 0 {
		c.broadcast()
	}
	return n
}

// view is what a viewer has to know beside the output.
type view struct {
	changed <-chan struct{}
	size    pty.Size
	ended   *csrpb.Ended // not nil: the stream ends, with COMMAND_ENDED when all output was sent
}

func (c *console) view(v *viewer) view {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := view{changed: c.changed, size: c.size}
	switch {
	case v.detached:
		w.ended = &csrpb.Ended{Reason: csrpb.Ended_DETACHED}
	case c.state == stateClosed:
		w.ended = &csrpb.Ended{Reason: csrpb.Ended_CLOSED}
	case c.state == stateEnded:
		w.ended = &csrpb.Ended{Reason: csrpb.Ended_COMMAND_ENDED, ExitCode: int32(c.exit.Code), Signal: uint32(c.exit.Signal)}
	}
	return w
}

// describe is the console as a message; with READ_CONTROL also its descriptor.
func (c *console) describe(withSecurity bool) *csrpb.Console {
	first, end := c.ring.Bounds()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &csrpb.Console{
		Name: c.name, Owner: c.deposit.Owner.String(), Size: &csrpb.Size{Columns: uint32(c.size.Columns), Rows: uint32(c.size.Rows)},
		Terminal: c.terminal, Created: c.deposit.Created, First: first, End: end, Argv: c.deposit.Argv, Pid: uint32(c.pid),
		Ended: c.state == stateEnded,
	}
	if withSecurity {
		p.Security = c.descriptor.String()
	}
	if p.Ended {
		p.ExitCode, p.Signal = int32(c.exit.Code), uint32(c.exit.Signal)
	}
	for _, v := range c.viewers {
		if !v.detached {
			p.Viewers = append(p.Viewers, &csrpb.Viewer{Id: v.id, User: v.token.User.SID.String(), Pid: uint32(v.pid), Writing: v.writing})
		}
	}
	return p
}

func (c *console) isEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == stateEnded
}
