package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
)

// completionTime is how long a shell may wait for names.
const completionTime = 2 * time.Second

// complete offers the names that live says there are: of ports, users, services or consoles of the running instance. args are
// the arguments before the one that is being typed.
func (a *app) complete(live func(ctx context.Context, sys *alpc.System, args []string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		sys, err := a.attach(ctx)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer sys.Close()
		names, err := live(ctx, sys, args)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
