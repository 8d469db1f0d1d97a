package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/smpb"
	"sallyport/subsys/smss/sm"
)

// serverRow is a server as status prints it.
type serverRow struct {
	Name     string     `json:"name"`
	State    string     `json:"state"`
	PID      uint32     `json:"pid"`
	Restarts uint32     `json:"restarts"`
	Session  uint32     `json:"session"`
	Since    *time.Time `json:"since"`
	LastEnd  string     `json:"last_end"`
	Status   string     `json:"status"`
	User     string     `json:"user"`
	Ports    []string   `json:"ports"`
}

// chargeRow is what a uid has of a resource.
type chargeRow struct {
	UID      uint32 `json:"uid"`
	Resource string `json:"resource"`
	Used     uint64 `json:"used"`
	Limit    uint64 `json:"limit"`
}

// statusReport is all that status prints.
type statusReport struct {
	State       string      `json:"state"` // ready, starting or degraded
	Servers     []serverRow `json:"servers"`
	Sessions    int         `json:"sessions"`
	Attachments int         `json:"attachments"`
	Charges     []chargeRow `json:"charges"`
}

func serverRows(servers []*smpb.Server) []serverRow {
	rows := make([]serverRow, 0, len(servers))
	for _, s := range servers {
		rows = append(rows, serverRow{Name: s.Name, State: serverState(s.State), PID: s.Pid, Restarts: s.Restarts, Session: s.Session,
			Since: moment(s.SinceUnixNs), LastEnd: s.LastEnd, Status: s.Status, User: s.User, Ports: s.Ports})
	}
	return rows
}

func statusCommand(a *app) *cobra.Command {
	var ready, all bool
	c := &cobra.Command{
		Use:   "status",
		Short: "the servers, their processes and restarts, and what users are charged",
		Args:  cobra.NoArgs,
	}
	c.Flags().BoolVar(&ready, "ready", false, "say nothing; exit 0 if every server of session 0 serves, 7 if not (for health checks)")
	c.Flags().BoolVarP(&all, "all", "a", false, "also charges of nothing")
	c.RunE = a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
		c, err := sm.Dial(ctx, sys)
		if err != nil {
			return err
		}
		defer c.Close()
		report := statusReport{State: "ready"}
		servers, err := c.Servers(ctx)
		if err != nil {
			return err
		}
		report.Servers = serverRows(servers)
		for _, s := range servers {
			switch s.State {
			case smpb.ServerState_SERVER_STATE_RUNNING:
			case smpb.ServerState_SERVER_STATE_STARTING, smpb.ServerState_SERVER_STATE_WAITING:
				if report.State == "ready" {
					report.State = "starting"
				}
			default:
				report.State = "degraded"
			}
		}
		if ready {
			if report.State != "ready" {
				return ntstatus.Errorf("status", "", ntstatus.PortDoNotDisturb, "the set is %s", report.State)
			}
			return nil
		}
		sessions, err := c.Sessions(ctx)
		if err != nil {
			return err
		}
		report.Sessions = len(sessions)
		attachments, err := sys.Attachments(ctx)
		if err != nil {
			return err
		}
		report.Attachments = len(attachments)
		if report.Charges, err = charges(ctx, sys, all); err != nil {
			return err
		}
		return a.printOne(report)
	})
	return c
}

// charges are what the caller may see: its own uid's, or all.
func charges(ctx context.Context, sys *alpc.System, nothing bool) ([]chargeRow, error) {
	all, err := sys.Charges(ctx)
	var rows []chargeRow
	for _, c := range all {
		if c.Used > 0 || nothing {
			rows = append(rows, chargeRow(c))
		}
	}
	return rows, err
}
