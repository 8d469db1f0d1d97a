package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sallyport/internal/pty"
	"sallyport/ntstatus"
)

// maxPassword bounds what is read as a password, in bytes.
const maxPassword = 1024

// passwords reads passwords for one invocation: from --password-fd, from the terminal without echo, or from standard input,
// a line each.
type passwords struct {
	a    *app
	fd   int
	from *bufio.Reader
}

// passwordFlag adds --password-fd to c.
func passwordFlag(a *app, c *cobra.Command) *passwords {
	p := &passwords{a: a}
	c.Flags().IntVar(&p.fd, "password-fd", -1, "read the password from this file `descriptor` (a line; never from an argument, which others can see)")
	return p
}

// read asks for a password. With confirm a person types it twice. The caller wipes the bytes.
func (p *passwords) read(ctx context.Context, prompt string, confirm bool) ([]byte, error) {
	if p.fd < 0 && pty.IsTerminal(p.a.stdin) {
		first, err := p.ask(ctx, prompt)
		if err != nil || !confirm {
			return first, err
		}
		second, err := p.ask(ctx, "once more: ")
		defer clear(second)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(first, second) {
			clear(first)
			return nil, usage("the two are not the same")
		}
		return first, nil
	}
	if p.from == nil {
		file := p.a.stdin
		if p.fd >= 0 {
			if file = os.NewFile(uintptr(p.fd), "password"); file == nil {
				return nil, usage("--password-fd %d: no such descriptor", p.fd)
			}
		}
		p.from = bufio.NewReader(io.LimitReader(file, 4*maxPassword))
	}
	line, err := p.from.ReadBytes('\n')
	line = bytes.TrimSuffix(line, []byte("\n"))
	if err != nil && (err != io.EOF || len(line) == 0) {
		return nil, &failure{err: fmt.Errorf("no password on the input: %w", err), hint: "type it at a terminal, give it on standard input, or use --password-fd", code: exitUsage}
	}
	if len(line) > maxPassword {
		clear(line)
		return nil, ntstatus.New("password", "", ntstatus.PasswordRestriction)
	}
	return line, nil
}

// ask reads a line from the terminal with its echo off, and puts the echo back whatever happens.
func (p *passwords) ask(ctx context.Context, prompt string) ([]byte, error) {
	modes, err := pty.GetModes(p.a.stdin)
	if err != nil {
		return nil, err
	}
	if err := pty.SetModes(p.a.stdin, modes.WithEcho(false)); err != nil {
		return nil, err
	}
	defer func() {
		_ = pty.SetModes(p.a.stdin, modes) // the terminal may have gone
		fmt.Fprintln(p.a.stderr)
	}()
	fmt.Fprint(p.a.stderr, prompt)
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		// Byte by byte: what comes after the line is not ours.
		var text []byte
		one := make([]byte, 1)
		for {
			n, err := p.a.stdin.Read(one)
			if err != nil || n == 0 || one[0] == '\n' || len(text) == maxPassword {
				if one[0] == '\n' {
					err = nil
				}
				read <- line{text, err}
				return
			}
			text = append(text, one[0])
		}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
