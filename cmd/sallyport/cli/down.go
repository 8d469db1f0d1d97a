package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/internal/instance"
	"sallyport/ntstatus"
	"sallyport/subsys/smss/sm"
)

func downCommand(a *app) *cobra.Command {
	var grace time.Duration
	var reason string
	c := &cobra.Command{
		Use:   "down",
		Short: "stop the set in order, and wait until nothing of it is left",
		Args:  cobra.NoArgs,
	}
	c.Flags().DurationVar(&grace, "grace", 0, "how long the orderly part may take (default: each server's own stop time)")
	c.Flags().StringVar(&reason, "reason", "sallyport down", "why, for the log")
	c.RunE = a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
		c, err := sm.Dial(ctx, sys)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.Shutdown(ctx, reason, grace); err != nil {
			return err
		}
		if a.noWait {
			return nil
		}
		// The core goes last; its socket is the last thing to vanish.
		select {
		case <-sys.Done():
		case <-ctx.Done():
			return hinted(ctx.Err(), "it is still stopping: \"sallyport status\" shows what waits; --timeout says how long to wait")
		}
		return a.gone(ctx)
	})
	return c
}

// gone waits until the core's socket is away, so that "up" may follow "down" at once.
func (a *app) gone(ctx context.Context) error {
	in, err := instance.Locate(a.where)
	if err != nil {
		return err
	}
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		if _, err := os.Lstat(in.Socket()); os.IsNotExist(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ntstatus.Wrap("down", fmt.Sprintf("%s is still there", in.Socket()), ctx.Err())
		case <-look.C:
		}
	}
}
