package cli

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/proto/tourpb"
	"sallyport/rpc"
	"sallyport/scm/svc"
)

// demoPort is where the tour's service listens; demoRights say who may do what there: everybody who is authenticated may echo,
// and only administrators and the system may reset.
const (
	demoPort   = `\BaseNamedObjects\tour`
	demoRights = "O:SYG:SYD:(A;;0x3;;;SY)(A;;0x3;;;BA)(D;;0x2;;;AU)(A;;0x1;;;AU)"
)

// demo is a native service: this program, run by the service controller.
type demo struct {
	tourpb.UnimplementedTourServer
	count atomic.Uint64
}

func (d *demo) Echo(ctx context.Context, r *tourpb.EchoRequest) (*tourpb.EchoResponse, error) {
	caller, _ := rpc.Caller(ctx)
	return &tourpb.EchoResponse{Data: r.Data, Caller: caller.Token.User.SID.String(), Count: d.count.Add(1)}, nil
}

func (d *demo) Reset(context.Context, *tourpb.ResetRequest) (*tourpb.ResetResponse, error) {
	return &tourpb.ResetResponse{Count: d.count.Swap(0)}, nil
}

func demoServiceCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use: "demo-service", Short: "be the tour's service, as the service controller starts it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return svc.Run(cmd.Context(), "", svc.HandlerFunc(runDemo))
		},
	}
}

// runDemo serves until the controller says stop, or serving fails.
func runDemo(ctx context.Context, _ []string, requests <-chan svc.ChangeRequest, report chan<- svc.Status) (bool, uint32) {
	report <- svc.Status{State: svc.StartPending}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- serveDemo(ctx, func() { close(running) }) }()
	for {
		select {
		case <-running:
			running = nil // a nil channel is never ready again
			report <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
		case r := <-requests:
			if r.Cmd == svc.Interrogate {
				report <- r.CurrentStatus
				continue
			}
			report <- svc.Status{State: svc.StopPending}
			cancel()
			<-ended
			return false, 0
		case err := <-ended:
			fmt.Fprintln(os.Stderr, "demo-service:", err)
			return true, 1
		}
	}
}

// serveDemo serves the demo until ctx ends; running is called when it listens.
func serveDemo(ctx context.Context, running func()) error {
	sys, err := alpc.Attach(ctx, alpc.Options{})
	if err != nil {
		return err
	}
	defer sys.Close()
	l, err := sys.Listen(ctx, demoPort, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)", AutoAccept: true})
	if err != nil {
		return err
	}
	s := rpc.NewServer(rpc.ServerOptions{System: sys})
	tourpb.RegisterTourServer(s, &demo{})
	s.Secure("sallyport.tour.Tour", rpc.Interface{SDDL: demoRights})
	s.OfferReflection(rpc.Interface{SDDL: demoRights})
	running()
	return s.Serve(ctx, l)
}
