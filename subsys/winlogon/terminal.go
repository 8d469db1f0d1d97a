package winlogon

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"sallyport/internal/pty"
	"sallyport/proto/csrpb"
	"sallyport/subsys/csrss/csr"
)

// flushTime is how long the last output may take to its terminal when winlogon leaves.
const flushTime = time.Second

// lent is a terminal that smss gave this process (CreateSession's): winlogon shows its console there, as any viewer would.
type lent struct {
	l     *logon
	modes pty.Modes
	keys  chan []byte
	shown atomic.Uint64 // bytes of the present console
}

// lend takes the process's terminal for the consoles of l; nil where smss gave it none. A program that has winlogon as a part of
// itself keeps its own.
func (l *logon) lend() (*lent, error) {
	if os.Getenv("SALLYPORT_SERVER") == "" || !pty.IsTerminal(os.Stdin) {
		return nil, nil
	}
	modes, err := pty.GetModes(os.Stdin)
	if err != nil {
		return nil, err
	}
	t := &lent{l: l, modes: modes, keys: make(chan []byte)}
	go t.read()
	return t, pty.SetModes(os.Stdin, modes.Raw())
}

// read is the terminal's only reader, for one console after the other. It ends with the process, or when the terminal hangs up.
func (t *lent) read() {
	defer close(t.keys)
	for {
		b := make([]byte, 1024)
		n, err := os.Stdin.Read(b)
		if n > 0 {
			t.keys <- b[:n]
		}
		if err != nil {
			return
		}
	}
}

// show shows the present console until that ends.
func (t *lent) show(ctx context.Context) {
	t.shown.Store(0)
	go func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		v := csr.View{Session: t.l.env.Session, Attach: &csrpb.Attach{Name: ConsoleName, Size: size()}, In: &typed{ctx: ctx, keys: t.keys}, Out: counted{t}}
		if _, err := v.Run(ctx, t.l.env.System); err != nil && ctx.Err() == nil {
			t.l.env.Logger.Warn("the console is no longer shown at the terminal", "error", err)
		}
	}()
}

// giveBack waits until the terminal has shown everything, and puts it back as it was.
func (t *lent) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	var end uint64
	if err := t.l.runtime(ctx, func(c *csr.Client) error {
		info, err := c.Console(ctx, ConsoleName)
		end = info.GetEnd()
		return err
	}); err == nil {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for t.shown.Load() < end && ctx.Err() == nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
	if err := pty.SetModes(os.Stdin, t.modes); err != nil {
		t.l.env.Logger.Debug("the terminal stays as it is", "error", err) // it hung up
	}
}

// size is the terminal's; nil where it does not tell.
func size() *csrpb.Size {
	s, err := pty.GetSize(os.Stdin)
	if err != nil || s.Columns == 0 || s.Rows == 0 {
		return nil
	}
	return &csrpb.Size{Columns: uint32(min(s.Columns, 1000)), Rows: uint32(min(s.Rows, 1000))}
}

// typed is what is typed while one console is shown.
type typed struct {
	ctx  context.Context
	keys <-chan []byte
	rest []byte
}

func (r *typed) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		select {
		case b, ok := <-r.keys:
			if !ok {
				return 0, io.EOF
			}
			r.rest = b
		case <-r.ctx.Done():
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// counted writes to the terminal and counts.
type counted struct{ t *lent }

func (w counted) Write(p []byte) (int, error) {
	n, err := os.Stdout.Write(p)
	w.t.shown.Add(uint64(n))
	return n, err
}
