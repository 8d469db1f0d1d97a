package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/internal/instance"
	"sallyport/ntstatus"
	"sallyport/subsys/smss/sm"
)

// attach joins the instance that the flags name, after its directory was verified.
func (a *app) attach(ctx context.Context) (*alpc.System, error) {
	in, err := instance.Locate(a.where)
	if err != nil {
		return nil, err
	}
	// Inside an instance (a service, a console) its core is known by the environment.
	path := ""
	if a.where == (instance.Options{}) {
		path = os.Getenv(instance.EnvCore)
	}
	if path == "" {
		if err := in.Verify(); err != nil {
			return nil, notRunning(in, err)
		}
		path = in.Socket()
	}
	sys, err := alpc.Attach(ctx, alpc.Options{Path: path, Logger: a.logger()})
	if err != nil {
		return nil, notRunning(in, err)
	}
	return sys, nil
}

// notRunning says that there is no instance, where that is what err means.
func notRunning(in instance.Instance, err error) error {
	switch ntstatus.Of(err) {
	case ntstatus.ObjectNameNotFound, ntstatus.ObjectPathNotFound, ntstatus.PortConnectionRefused, ntstatus.NotFound:
		return &failure{err: fmt.Errorf("nothing runs in %s", in.Runtime),
			hint: "start it with \"sallyport up\", or name another instance with --runtime, --user or --system", code: exitNotRunning}
	}
	return err
}

// withSystem runs f attached to the instance, under --timeout.
func (a *app) withSystem(f func(ctx context.Context, sys *alpc.System, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := a.bounded(cmd.Context())
		defer cancel()
		return a.attached(ctx, func(sys *alpc.System) error { return f(ctx, sys, args) })
	}
}

// attached runs f attached to the instance, with ctx as it is: for verbs that last as long as their user likes.
func (a *app) attached(ctx context.Context, f func(*alpc.System) error) error {
	within, cancel := a.bounded(ctx)
	defer cancel()
	sys, err := a.attach(within)
	if err != nil {
		return err
	}
	defer sys.Close()
	return f(sys)
}

// withManager runs f with a client of the session manager.
func (a *app) withManager(f func(ctx context.Context, c *sm.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		c, err := sm.Dial(ctx, sys)
		if err != nil {
			return err
		}
		defer c.Close()
		return f(ctx, c, args)
	})
}
