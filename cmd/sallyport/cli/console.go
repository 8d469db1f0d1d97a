package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/internal/pty"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/subsys/csrss/csr"
)

// detachKey is Ctrl-], as in telnet and virsh.
const detachKey = 0x1d

// consoleRow is a console as the verbs print it.
type consoleRow struct {
	Name     string      `json:"name"`
	Session  uint32      `json:"session"`
	State    string      `json:"state"`
	PID      uint32      `json:"pid"`
	Size     string      `json:"size"`
	Terminal string      `json:"terminal"`
	Viewers  []viewerRow `json:"viewers"`
	Kept     uint64      `json:"kept_bytes"`
	Output   uint64      `json:"output_bytes"`
	Created  *time.Time  `json:"created"`
	Command  []string    `json:"command"`
	Owner    string      `json:"owner"`
	Security string      `json:"security"`
}

type viewerRow struct {
	ID   uint64 `json:"id"`
	PID  uint32 `json:"pid"`
	User string `json:"user"`
}

func consoleRowOf(session uint32, c *csrpb.Console) consoleRow {
	state := "running"
	switch {
	case c.Ended && c.ExitCode >= 0:
		state = fmt.Sprintf("ended (%d)", c.ExitCode)
	case c.Ended:
		state = fmt.Sprintf("ended (signal %d)", c.Signal)
	case c.Pid == 0:
		state = "open"
	}
	row := consoleRow{Name: c.Name, Session: session, State: state, PID: c.Pid, Size: fmt.Sprintf("%dx%d", c.GetSize().GetColumns(), c.GetSize().GetRows()),
		Terminal: c.Terminal, Kept: c.End - c.First, Output: c.End, Created: moment(c.Created), Command: c.Argv, Owner: c.Owner, Security: c.Security}
	for _, v := range c.Viewers {
		row.Viewers = append(row.Viewers, viewerRow{ID: v.Id, PID: v.Pid, User: v.User})
	}
	return row
}

// consoles has the flag that all console verbs share: which session's csrss is asked.
type consoles struct {
	a       *app
	session uint32
}

// with runs f with a client of the session's csrss; the caller's own session where none is named.
func (c *consoles) with(f func(ctx context.Context, client *csr.Client, session uint32, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return c.a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
			session := c.of(cmd, sys)
			client, err := csr.Dial(ctx, sys, session)
			if err != nil {
				return err
			}
			defer client.Close()
			return f(ctx, client, session, args)
		})(cmd, args)
	}
}

func (c *consoles) of(cmd *cobra.Command, sys *alpc.System) uint32 {
	if cmd.Flags().Changed("session") {
		return c.session
	}
	return sys.Token().SessionID
}

func (c *consoles) names(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
	if len(args) > 0 {
		return nil, nil
	}
	session := c.session
	if session == 0 {
		session = sys.Token().SessionID
	}
	client, err := csr.Dial(ctx, sys, session)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	list, err := client.Consoles(ctx)
	var names []string
	for _, con := range list {
		names = append(names, con.Name)
	}
	return names, err
}

func consoleCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "console", Short: "consoles: list, create, attach, show, scrollback, type, resize, detach, close"}
	s := &consoles{a: a}
	c.PersistentFlags().Uint32Var(&s.session, "session", 0, "`number` of the session (default: the caller's own)")
	c.AddCommand(s.listCommand(), s.createCommand(), s.attachCommand(), s.showCommand(), s.scrollbackCommand(), s.typeCommand(), s.resizeCommand(), s.detachCommand(), s.closeCommand())
	return c
}

func (c *consoles) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "the consoles of a session", Args: cobra.NoArgs,
		RunE: c.with(func(ctx context.Context, client *csr.Client, session uint32, _ []string) error {
			list, err := client.Consoles(ctx)
			if err != nil {
				return err
			}
			rows := make([]consoleRow, 0, len(list))
			for _, con := range list {
				rows = append(rows, consoleRowOf(session, con))
			}
			return c.a.printList(rows)
		}),
	}
}

func (c *consoles) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "one console", Args: cobra.ExactArgs(1), ValidArgsFunction: c.a.complete(c.names),
		RunE: c.with(func(ctx context.Context, client *csr.Client, session uint32, args []string) error {
			con, err := client.Console(ctx, args[0])
			if err != nil {
				return err
			}
			return c.a.printOne(consoleRowOf(session, con))
		}),
	}
}

func (c *consoles) createCommand() *cobra.Command {
	var name, directory string
	var attach bool
	var keep uint32
	cmd := &cobra.Command{
		Use:     "create [NAME] [flags] [-- PROGRAM [ARGUMENT...]]",
		Short:   "make a console and start a program in it (default: $SHELL)",
		Example: "  sallyport console create build --attach -- make test",
		Args: func(cmd *cobra.Command, args []string) error {
			before, _ := behindDash(cmd, args)
			return cobra.MaximumNArgs(1)(cmd, before)
		},
	}
	cmd.Flags().BoolVar(&attach, "attach", false, "show it on this terminal at once")
	cmd.Flags().StringVar(&directory, "directory", "", "`directory` that the program starts in (default: this one)")
	cmd.Flags().Uint32Var(&keep, "scrollback", 0, "how many `bytes` of output are kept (default 256 KiB)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		before, command := behindDash(cmd, args)
		if len(before) > 0 {
			name = before[0]
		}
		if len(command) == 0 {
			command = []string{"/bin/sh"}
			if shell := os.Getenv("SHELL"); filepath.IsAbs(shell) {
				command[0] = shell
			}
		}
		path, err := exec.LookPath(command[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return ntstatus.Wrap("console", command[0], err)
		}
		if directory == "" {
			if directory, err = os.Getwd(); err != nil {
				return err
			}
		}
		request := &csrpb.CreateConsoleRequest{Name: name, ScrollbackBytes: keep, Size: c.a.terminalSize(),
			Command: &csrpb.Command{Argv: append([]string{path}, command[1:]...), Env: os.Environ(), Cwd: directory}}
		return c.a.attached(cmd.Context(), func(sys *alpc.System) error {
			ctx, cancel := c.a.bounded(cmd.Context())
			defer cancel()
			session := c.of(cmd, sys)
			client, err := csr.Dial(ctx, sys, session)
			if err != nil {
				return err
			}
			defer client.Close()
			con, err := client.Create(ctx, request)
			if err != nil {
				return err
			}
			if attach {
				return c.a.view(cmd.Context(), sys, session, con.Name, false)
			}
			return c.a.printOne(consoleRowOf(session, con))
		})
	}
	return cmd
}

func (c *consoles) attachCommand() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "show a console on this terminal, with what it kept; Ctrl-] detaches",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: c.a.complete(c.names),
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "watch without typing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.a.attached(cmd.Context(), func(sys *alpc.System) error {
			return c.a.view(cmd.Context(), sys, c.of(cmd, sys), args[0], readOnly)
		})
	}
	return cmd
}

func (c *consoles) scrollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "scrollback NAME", Short: "print what a console kept of its output", Args: cobra.ExactArgs(1), ValidArgsFunction: c.a.complete(c.names),
		RunE: c.with(func(ctx context.Context, client *csr.Client, _ uint32, args []string) error {
			for from := uint64(0); ; {
				data, at, err := client.Scrollback(ctx, args[0], from, 0)
				if err != nil || len(data) == 0 {
					return err
				}
				if _, err := c.a.stdout.Write(data); err != nil {
					return err
				}
				from = at + uint64(len(data))
			}
		}),
	}
}

func (c *consoles) typeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "type NAME [TEXT]", Short: "put text into a console as if it were typed, with a return; without TEXT: standard input as it is", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.a.complete(c.names),
		RunE: c.with(func(ctx context.Context, client *csr.Client, _ uint32, args []string) error {
			if len(args) == 2 {
				return client.Write(ctx, args[0], []byte(args[1]+"\r"))
			}
			text, err := io.ReadAll(io.LimitReader(c.a.stdin, 1<<20))
			if err != nil {
				return err
			}
			return client.Write(ctx, args[0], text)
		}),
	}
}

func (c *consoles) resizeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resize NAME COLUMNSxROWS", Short: "set a console's size", Args: cobra.ExactArgs(2), ValidArgsFunction: c.a.complete(c.names),
		RunE: c.with(func(ctx context.Context, client *csr.Client, _ uint32, args []string) error {
			var columns, rows int
			if n, err := fmt.Sscanf(args[1], "%dx%d", &columns, &rows); n != 2 || err != nil {
				return usage("size %s: it takes COLUMNSxROWS, as 132x43", args[1])
			}
			return client.Resize(ctx, args[0], columns, rows)
		}),
	}
}

func (c *consoles) detachCommand() *cobra.Command {
	var viewer uint64
	cmd := &cobra.Command{Use: "detach NAME", Short: "send a console's viewers away", Args: cobra.ExactArgs(1), ValidArgsFunction: c.a.complete(c.names)}
	cmd.Flags().Uint64Var(&viewer, "viewer", 0, "only the viewer with this `number`")
	cmd.RunE = c.with(func(ctx context.Context, client *csr.Client, _ uint32, args []string) error {
		_, err := client.DetachViewer(ctx, args[0], viewer)
		return err
	})
	return cmd
}

func (c *consoles) closeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "close NAME", Short: "hang a console up and forget its output", Args: cobra.ExactArgs(1), ValidArgsFunction: c.a.complete(c.names),
		RunE: c.with(func(ctx context.Context, client *csr.Client, _ uint32, args []string) error {
			return client.CloseConsole(ctx, args[0])
		}),
	}
}

// terminalSize is this terminal's size; nil where standard input is none.
func (a *app) terminalSize() *csrpb.Size {
	size, err := pty.GetSize(a.stdin)
	if err != nil || size.Columns == 0 || size.Rows == 0 {
		return nil
	}
	return &csrpb.Size{Columns: uint32(size.Columns), Rows: uint32(size.Rows)}
}

// view shows a console on this terminal until it ends or its user detaches, and puts the terminal back as it was. Without a
// terminal it passes standard input on and stays until the console's program has ended.
func (a *app) view(ctx context.Context, sys *alpc.System, session uint32, name string, readOnly bool) error {
	v := csr.View{Session: session, Attach: &csrpb.Attach{Name: name, ReadOnly: readOnly, Size: a.terminalSize()}, Out: a.stdout}
	if !readOnly {
		v.In = patient{a.stdin, ctx.Done()}
	}
	if modes, err := pty.GetModes(a.stdin); err == nil {
		if err := pty.SetModes(a.stdin, modes.Raw()); err != nil {
			return err
		}
		// The terminal may have gone; there is nobody left to tell.
		defer func() { _ = pty.SetModes(a.stdin, modes) }()
		v.In, v.Detach = a.stdin, detachKey
		sizes, stop := a.sizes(ctx)
		defer stop()
		v.Sizes = sizes
	}
	attached := false
	v.Event = func(m *csrpb.AttachConsoleResponse) { attached = attached || m.GetAttached() != nil }
	ended, err := v.Run(ctx, sys)
	switch {
	case attached && session != 0 && exitCode(err) == exitNotRunning:
		// The session has ended and taken its csrss with it.
	case err != nil:
		return err
	case ended.GetReason() == csrpb.Ended_COMMAND_ENDED && ended.Signal != 0:
		return exitStatus(128 + int(ended.Signal))
	case ended.GetReason() == csrpb.Ended_COMMAND_ENDED && ended.ExitCode != 0:
		return exitStatus(ended.ExitCode)
	}
	return nil
}

// sizes tells this terminal's new sizes.
func (a *app) sizes(ctx context.Context) (<-chan *csrpb.Size, func()) {
	out, changed := make(chan *csrpb.Size), make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-changed:
				if size := a.terminalSize(); size != nil {
					select {
					case out <- size:
					case <-ctx.Done():
						return
					}
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, func() {
		signal.Stop(changed)
		cancel()
	}
}

// patient is an input whose end is no wish to leave: a pipe that ran dry waits for the console's program to end.
type patient struct {
	in   io.Reader
	done <-chan struct{}
}

func (p patient) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	if n == 0 && errors.Is(err, io.EOF) {
		<-p.done
	}
	return n, err
}
