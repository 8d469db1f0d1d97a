package winlogon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"sallyport/internal/pty"
	"sallyport/ntstatus"
)

const (
	maxName     = 256
	maxPassword = 1024

	// answerTime is how long the questions after the name may take: a name that was left on the screen is forgotten.
	answerTime = 2 * time.Minute
)

var (
	errLeft        = errors.New("the person left")
	errInterrupted = errors.New("the person begins again")
	errTooSlow     = errors.New("no answer came in time")
	errTooLong     = errors.New("the answer is too long")
)

// dialogue asks a person at a terminal. What comes from the terminal is a stranger's.
type dialogue struct {
	terminal *os.File // pollable, and nobody else's description
}

// newDialogue takes a file of the terminal over, and opens the dialogue: from now on nothing is echoed by the terminal itself.
func newDialogue(terminal *os.File) (*dialogue, error) {
	f, err := pty.Pollable(terminal)
	terminal.Close()
	if err != nil {
		return nil, err
	}
	d := &dialogue{terminal: f}
	if err := d.open(); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// open makes keys come one by one, whatever a program left behind.
func (d *dialogue) open() error {
	return d.modes(func(m pty.Modes) pty.Modes { return m.Sane().Keys() })
}

// yield gives the terminal to a program: lines, echo, signals.
func (d *dialogue) yield() error { return d.modes(pty.Modes.Sane) }

func (d *dialogue) modes(change func(pty.Modes) pty.Modes) error {
	m, err := pty.GetModes(d.terminal)
	if err != nil {
		return err
	}
	return pty.SetModes(d.terminal, change(m))
}

func (d *dialogue) close() error { return d.terminal.Close() }

// say writes to the terminal.
func (d *dialogue) say(format string, args ...any) error {
	_, err := fmt.Fprintf(d.terminal, format, args...)
	return err
}

// ask asks for a line, for at most the given time (0: without end). The caller wipes the answer.
func (d *dialogue) ask(ctx context.Context, question string, e *editor, limit time.Duration) ([]byte, error) {
	if err := d.say("%s", question); err != nil {
		return nil, errLeft
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errTooSlow)
		defer cancel()
	}
	d.terminal.SetReadDeadline(time.Time{})
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		d.terminal.SetReadDeadline(time.Unix(1, 0))
		close(fired)
	})
	defer func() {
		if !stop() {
			<-fired
		}
	}()
	key := make([]byte, 1)
	for {
		// One byte at a time: what is typed ahead stays in the terminal, for the question or the shell that it is meant for.
		n, err := d.terminal.Read(key)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			e.wipe()
			d.say("\n")
			return nil, context.Cause(ctx)
		case n == 0 || err != nil && !errors.Is(err, io.EOF):
			e.wipe()
			return nil, errLeft
		}
		show, v := e.key(key[0])
		key[0] = 0
		if show != "" {
			if err := d.say("%s", show); err != nil {
				e.wipe()
				return nil, errLeft
			}
		}
		switch v {
		case finished:
			if e.spoiled {
				e.wipe()
				return nil, errTooLong
			}
			return e.line, nil
		case interrupted:
			e.wipe()
			return nil, errInterrupted
		case ended:
			return nil, errLeft
		}
	}
}

// pause makes the person wait, and forgets what they type meanwhile: it was not meant to be read as a name.
func (d *dialogue) pause(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return pty.Discard(d.terminal)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// explain says in plain words why a logon failed.
func explain(err error) string {
	messages := map[ntstatus.Status]string{
		ntstatus.LogonFailure:        "The name or the password is wrong.",
		ntstatus.AccountDisabled:     "This account is disabled. Ask an administrator.",
		ntstatus.AccountLockedOut:    "This account is locked after too many failures. Try again later, or ask an administrator.",
		ntstatus.AccountExpired:      "This account has expired. Ask an administrator.",
		ntstatus.AccountRestriction:  "This account may not log on now. Ask an administrator.",
		ntstatus.LogonTypeNotGranted: "This account may not log on at a terminal. Ask an administrator.",
		ntstatus.PasswordRestriction: "The new password does not satisfy the rules.",
		ntstatus.RPCServerTooBusy:    "Too many are logging on at this moment. Try again.",
	}
	status := ntstatus.Of(err)
	if m, ok := messages[status]; ok {
		return m
	}
	return fmt.Sprintf("It is not possible to log on now: %s.", status.Error())
}
