package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/rpc"
)

// objectRow is an object of the namespace as ports prints it.
type objectRow struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	ServerPID   int    `json:"server_pid"`
	Connections int    `json:"connections"`
	Waiting     int    `json:"waiting"`
	ServerUser  string `json:"server_user"`
	Target      string `json:"target"`
	Security    string `json:"security"`
}

func objectRowOf(o alpc.ObjectInfo) objectRow {
	return objectRow{Name: o.Name, Type: o.Type, ServerPID: o.ServerPID, Connections: o.Connections, Waiting: o.Waiting, ServerUser: o.ServerUser,
		Target: o.Target, Security: o.SecurityDescriptor}
}

// portNames are for completion.
func portNames(ctx context.Context, sys *alpc.System) ([]string, error) {
	objects, err := sys.Objects(ctx, "")
	var names []string
	for _, o := range objects {
		if o.Type == "Port" {
			names = append(names, o.Name)
		}
	}
	return names, err
}

func completePort(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
	if len(args) > 0 {
		return nil, nil
	}
	return portNames(ctx, sys)
}

func portsCommand(a *app) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "ports [PREFIX]",
		Short: "the ports that there are, who serves them and who may connect",
		Args:  cobra.MaximumNArgs(1),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "directories and symbolic links, too")
	c.RunE = a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		objects, err := sys.Objects(ctx, strings.Join(args, ""))
		if err != nil {
			return err
		}
		rows := make([]objectRow, 0, len(objects))
		for _, o := range objects {
			if all || o.Type == "Port" {
				rows = append(rows, objectRowOf(o))
			}
		}
		return a.printList(rows)
	})
	c.ValidArgsFunction = a.complete(completePort)
	return c
}

// portReport is all that port prints.
type portReport struct {
	objectRow
	MaxMessage     int             `json:"max_message_bytes"`
	MaxPending     int             `json:"max_pending"`
	MaxConnections int             `json:"max_connections"`
	Handles        uint32          `json:"handle_types"`
	AutoAccept     bool            `json:"auto_accept"`
	Open           []connectionRow `json:"open_connections"`
	Methods        []methodRow     `json:"methods"`
}

// connectionRow is an open connection with its server's live counters.
type connectionRow struct {
	ID          uint64    `json:"id"`
	ClientPID   int       `json:"client_pid"`
	ClientUser  string    `json:"client_user"`
	Gear        string    `json:"gear"`
	Since       time.Time `json:"since"`
	MessagesIn  uint64    `json:"messages_in"`
	MessagesOut uint64    `json:"messages_out"`
	BytesIn     uint64    `json:"bytes_in"`
	BytesOut    uint64    `json:"bytes_out"`
	Pending     uint64    `json:"pending"`
}

func portCommand(a *app) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "port NAME",
		Short: "one port: its limits and descriptor, open connections with live counters, methods and the right that each needs",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: a.complete(completePort),
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until somebody serves it, and print nothing")
	c.RunE = a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		if wait {
			return awaitPort(ctx, sys, args[0])
		}
		report, err := reportPort(ctx, sys, args[0])
		if err != nil {
			return err
		}
		return a.printOne(report)
	})
	return c
}

func findPort(ctx context.Context, sys *alpc.System, name string) (alpc.ObjectInfo, error) {
	objects, err := sys.Objects(ctx, name)
	if err != nil {
		return alpc.ObjectInfo{}, err
	}
	if i := slices.IndexFunc(objects, func(o alpc.ObjectInfo) bool { return sameName(o.Name, name) }); i >= 0 {
		return objects[i], nil
	}
	return alpc.ObjectInfo{}, ntstatus.New("port", name, ntstatus.ObjectNameNotFound)
}

// awaitPort looks until the port is served: the core tells nobody of new names.
func awaitPort(ctx context.Context, sys *alpc.System, name string) error {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		o, err := findPort(ctx, sys, name)
		if err == nil && o.Server != 0 {
			return nil
		}
		if err != nil && exitCode(err) != exitNotRunning {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ntstatus.Wrap("port", name, ctx.Err())
		}
	}
}

func reportPort(ctx context.Context, sys *alpc.System, name string) (*portReport, error) {
	o, err := findPort(ctx, sys, name)
	if err != nil {
		return nil, err
	}
	report := &portReport{objectRow: objectRowOf(o), MaxMessage: o.Attributes.MaxMessageLength, MaxPending: o.Attributes.MaxPending,
		MaxConnections: o.Attributes.MaxConnections, Handles: uint32(o.Attributes.HandleTypes), AutoAccept: o.Attributes.AutoAccept}
	connections, err := sys.Connections(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range connections {
		if !sameName(c.Port, o.Name) {
			continue
		}
		gear := alpc.GearSocket
		if c.Shared {
			gear = alpc.GearShared
		}
		report.Open = append(report.Open, connectionRow{ID: c.ID, ClientPID: c.ClientPID, ClientUser: c.ClientUser, Gear: gear.String(), Since: c.Since,
			MessagesIn: c.Counters.MessagesIn, MessagesOut: c.Counters.MessagesOut, BytesIn: c.Counters.BytesIn, BytesOut: c.Counters.BytesOut, Pending: c.Counters.Pending})
	}
	// To look is not to wake: a declared port without a server is not started for this.
	if o.Type == "Port" && o.Server != 0 {
		if report.Methods, err = methodsOf(ctx, sys, o.Name); err != nil && ctx.Err() != nil {
			return nil, err
		}
	}
	return report, nil
}

// methodsOf asks the port's server. Not every server speaks gRPC, nor tells everybody what it serves: the caller decides what
// an error is worth.
func methodsOf(ctx context.Context, sys *alpc.System, name string) ([]methodRow, error) {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	conn, err := rpc.Dial(ctx, sys, name)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	d, err := describe(ctx, conn)
	if err != nil {
		return nil, err
	}
	return d.methods(), nil
}

// sameName compares object names as the core does: without case, either separator.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, "/", `\`), strings.ReplaceAll(b, "/", `\`))
}
