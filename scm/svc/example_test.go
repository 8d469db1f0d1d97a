package svc_test

import (
	"context"
	"fmt"
	"os"

	"sallyport/scm/svc"
)

// A service in a few lines: it runs until it is told to stop. "sallyport sc create" with kind native starts it.
func ExampleRun() {
	err := svc.Run(context.Background(), "", svc.HandlerFunc(func(_ context.Context, _ []string, r <-chan svc.ChangeRequest, s chan<- svc.Status) (bool, uint32) {
		s <- svc.Status{State: svc.StartPending}
		// Prepare here.
		s <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
		for c := range r {
			if c.Cmd == svc.Stop || c.Cmd == svc.Shutdown {
				break
			}
		}
		s <- svc.Status{State: svc.StopPending}
		return false, 0
	}))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func ExampleIsService() {
	fmt.Println(svc.IsService())
	// Output: false
}
