package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/alpc/core"
	"sallyport/internal/instance"
	"sallyport/internal/pty"
	"sallyport/internal/spawn"
	"sallyport/subsys"
	"sallyport/subsys/smss"
)

// These verbs are what the program starts itself as. They are hidden: nobody types them.

func serverCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "server NAME [ARGUMENT...]", Short: "be a server of the set, as smss starts it", Args: cobra.MinimumNArgs(1)}
	// A server's arguments are its own.
	c.DisableFlagParsing = true
	c.RunE = func(_ *cobra.Command, args []string) error {
		i := slices.IndexFunc(a.servers, func(s subsys.Server) bool { return s.Name == args[0] })
		if i < 0 {
			return usage("server %s: this program can be %s", args[0], strings.Join(a.serverNames(), ", "))
		}
		return exitStatus(subsys.Main(a.servers[i], args[1:]...))
	}
	return c
}

// serverNames are the servers that this program can be.
func (a *app) serverNames() []string {
	var names []string
	for _, s := range a.servers {
		names = append(names, s.Name)
	}
	return names
}

func coreCommand(a *app) *cobra.Command {
	var readyFD int
	c := &cobra.Command{Use: "core", Short: "be the core, as up starts it", Args: cobra.NoArgs}
	c.Flags().IntVar(&readyFD, "ready-fd", -1, "write a byte to this descriptor when the socket is bound")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		in, err := instance.Locate(a.where)
		if err != nil {
			return err
		}
		var ready *os.File
		if readyFD >= 0 {
			ready = os.NewFile(uintptr(readyFD), "ready")
		}
		return runCore(cmd.Context(), in, os.Stderr, ready)
	}
	return c
}

// runCore is the core, until ctx ends, the session manager has stopped or one of them fails.
func runCore(ctx context.Context, in instance.Instance, log *os.File, ready *os.File) error {
	release, err := in.Claim()
	if err != nil {
		return err
	}
	defer release()
	return core.Boot(ctx, core.BootOptions{
		Options: core.Options{Path: in.Socket(), Logger: processLogger("core", log)},
		Program: spawn.Program{
			Path:     "/proc/self/exe",
			Args:     []string{"sallyport", "--runtime", in.Runtime, "--state", in.State, "--config", in.Config, "smss"},
			Env:      os.Environ(),
			Files:    []*os.File{nil, log, log},
			Terminal: -1,
		},
		Ready: func() {
			if ready != nil {
				_, _ = ready.Write([]byte{'\n'}) // who started us may have gone
				ready.Close()
			}
		},
	})
}

func smssCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "smss", Short: "be the session manager, as the core starts it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := instance.Locate(a.where)
			if err != nil {
				return err
			}
			logger := processLogger("smss", os.Stderr)
			config, err := smss.Load(in.Config, a.serverNames()...)
			if err != nil {
				return err
			}
			sys, err := alpc.Attach(cmd.Context(), alpc.Options{Path: in.Socket(), Logger: logger})
			if err != nil {
				return err
			}
			defer sys.Close()
			return smss.Run(cmd.Context(), smss.Options{Config: config, System: sys, StateDir: in.State, RuntimeDir: filepath.Join(in.Runtime, "servers"), Core: in.Socket(),
				Output: os.Stderr, Logger: logger, Process: true})
		},
	}
}

// processLogger is the log of a process of the set: text on a terminal, else a JSON object per line.
func processLogger(name string, w *os.File) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv("SALLYPORT_LOG"))
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Output: w, Level: level, JSONFormat: !pty.IsTerminal(w)})
}
