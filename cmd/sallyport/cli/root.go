// Package cli is the sallyport program: one multi-call command with a file per verb. It trusts what an administrator typed and
// the core whose runtime directory it has verified; what servers answer is printed, never obeyed, with control characters
// taken out.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"sallyport/internal/instance"
	"sallyport/subsys"
)

// app is one invocation: its streams, its global flags and the table of servers that this binary can be.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	servers        []subsys.Server

	where    instance.Options
	output   string
	color    string
	timeout  time.Duration
	noWait   bool
	verbose  bool
	coloured bool

	// running is set when a verb's own work begins: an error before that is one of usage.
	running bool
}

// Main runs the program and returns its exit code. servers is what "server NAME" can be.
func Main(args []string, servers []subsys.Server) int {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, servers: servers}
	root := a.root()
	root.SetArgs(args[1:])
	// A verb that serves handles its signals itself; every other is interrupted, once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := root.ExecuteContext(ctx)
	var ended exitStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &ended):
		return int(ended)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 130
	case !a.running:
		err = &failure{err: err, hint: "see \"sallyport help\"", code: exitUsage}
	}
	writeError(a.stderr, a.output, err)
	return exitCode(err)
}

// exitStatus ends the program with a code and without a word: a server's, a console program's, or that of a verb which has
// said all on standard output.
type exitStatus int

func (e exitStatus) Error() string { return "exit status" }

const rootHelp = `Sallyport runs a machine's own system servers the way Windows NT builds its own: a core, servers on named,
guarded ports, and programs that call them.

  sallyport tour                              see all of it at work, in a temporary instance
  sallyport up                                start the set and wait until it is ready
  sallyport ports                             what is there
  sallyport call '\SmApiPort'                 what can be called, and what right each method needs
  sallyport user add alice                    an account; then: sallyport logon alice
  sallyport sc create web --start auto -- /usr/bin/python3 -m http.server`

// verbs is the table of what the program can do, in the order in which help shows it.
func (a *app) verbs() []struct {
	group string
	make  func(*app) *cobra.Command
} {
	return []struct {
		group string
		make  func(*app) *cobra.Command
	}{
		{"begin", tourCommand}, {"begin", upCommand}, {"begin", statusCommand}, {"begin", doctorCommand}, {"begin", downCommand},
		{"look", portsCommand}, {"look", portCommand}, {"look", callCommand}, {"look", explainCommand}, {"look", sdCommand}, {"look", whoamiCommand},
		{"use", userCommand}, {"use", logonCommand}, {"use", sessionCommand}, {"use", consoleCommand}, {"use", scCommand},
		{"", serverCommand}, {"", coreCommand}, {"", smssCommand}, {"", demoServiceCommand},
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "sallyport",
		Short:         "system servers on guarded ports",
		Long:          rootHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(formats[:], a.output) {
				return usage("-o %s: it takes %s", a.output, strings.Join(formats[:], ", "))
			}
			if !slices.Contains([]string{"auto", "always", "never"}, a.color) {
				return usage("--color %s: it takes auto, always, never", a.color)
			}
			a.coloured = wantsColour(a.color, os.Stdout)
			return nil
		},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVar(&a.where.Runtime, "runtime", "", "runtime `directory` of the instance (default $SALLYPORT_RUNTIME_DIR, else the system's or the user's own)")
	f.StringVar(&a.where.State, "state", "", "state `directory` of the instance (default $SALLYPORT_STATE_DIR)")
	f.StringVar(&a.where.Config, "config", "", "configuration `file` of the instance (default $SALLYPORT_CONFIG)")
	f.BoolVar(&a.where.System, "system", false, "the system's instance (default for root)")
	f.BoolVar(&a.where.User, "user", false, "the user's own instance (default for others)")
	f.StringVarP(&a.output, "output", "o", "table", "`format`: "+strings.Join(formats[:], ", "))
	f.StringVar(&a.color, "color", "auto", "colour: auto (a terminal, and no NO_COLOR), always, never")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for an answer or a state")
	f.BoolVar(&a.noWait, "no-wait", false, "return when the request is taken, not when its state is true")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log to standard error what happens")
	root.MarkFlagsMutuallyExclusive("system", "user")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats[:], cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("color", cobra.FixedCompletions([]string{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.MarkPersistentFlagDirname("runtime"))
	must(root.MarkPersistentFlagDirname("state"))

	root.AddGroup(&cobra.Group{ID: "begin", Title: "The set:"}, &cobra.Group{ID: "look", Title: "Ports and rights:"},
		&cobra.Group{ID: "use", Title: "Users, sessions, services:"})
	for _, v := range a.verbs() {
		c := v.make(a)
		c.GroupID, c.Hidden = v.group, v.group == ""
		root.AddCommand(c)
	}
	a.markRunning(root)
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "what the exit codes mean", Long: exitCodesHelp})
	return root
}

// markRunning makes every verb below c say when its own work begins: cobra checks flags in several places before.
func (a *app) markRunning(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.markRunning(sub)
		if run := sub.RunE; run != nil {
			sub.RunE = func(cmd *cobra.Command, args []string) error {
				a.running = true
				return run(cmd, args)
			}
		}
	}
}

// must is for the wiring of flags: it fails only where a flag's name is misspelt above.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// logger writes to standard error, if that was asked for.
func (a *app) logger() hclog.Logger {
	if !a.verbose {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Name: "sallyport", Output: a.stderr, Level: hclog.Debug})
}

// bounded is ctx with --timeout.
func (a *app) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}
