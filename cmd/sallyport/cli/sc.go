package cli

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
	"sallyport/scm/mgr"
)

// The words of the command line for the numbers of the protocol, by number.
var (
	serviceStates = []string{"unknown", "stopped", "start pending", "stop pending", "running", "continue pending", "pause pending", "paused"}
	startTypes    = []string{"boot", "system", "auto", "demand", "disabled"}
	serviceKinds  = []string{"plain", "notify", "native"}
)

func word(words []string, n int32) string {
	if n < 0 || int(n) >= len(words) {
		return strconv.Itoa(int(n))
	}
	return words[n]
}

// serviceRow is a service's status as the verbs print it.
type serviceRow struct {
	Name        string     `json:"name"`
	State       string     `json:"state"`
	Start       string     `json:"start"`
	PID         uint32     `json:"pid"`
	Exit        string     `json:"exit"`
	Since       *time.Time `json:"since"`
	Starts      uint64     `json:"starts"`
	Failures    uint32     `json:"failures"`
	DisplayName string     `json:"display_name"`
	Text        string     `json:"text"`
	Reason      string     `json:"reason"`
	Next        string     `json:"next"`
	NextAt      *time.Time `json:"next_at"`
	LogDropped  uint64     `json:"log_bytes_dropped"`
	Deleting    bool       `json:"delete_pending"`
	Holders     []string   `json:"holders"`
}

func serviceRowOf(s *scmpb.ServiceStatus) serviceRow {
	exit := ""
	switch s.Win32ExitCode {
	case 0:
	case 1066: // ERROR_SERVICE_SPECIFIC_ERROR
		exit = "exit " + strconv.Itoa(int(s.ServiceExitCode))
	case 1077: // ERROR_SERVICE_NEVER_STARTED
		exit = "never started"
	default:
		exit = "error " + strconv.Itoa(int(s.Win32ExitCode))
		if s.ServiceExitCode != 0 {
			exit += ", exit " + strconv.Itoa(int(s.ServiceExitCode))
		}
	}
	e := s.GetExplain()
	return serviceRow{Name: s.Name, State: word(serviceStates, int32(s.State)), Start: word(startTypes, int32(s.Start)), PID: s.Pid, Exit: exit,
		Since: moment(s.SinceUnixNs), Starts: e.GetStarts(), Failures: e.GetFailures(), DisplayName: s.DisplayName, Text: s.Text, Reason: e.GetReason(),
		Next: e.GetNext(), NextAt: moment(e.GetNextUnixNs()), LogDropped: e.GetLogBytesDropped(), Deleting: s.DeletePending, Holders: e.GetHolders()}
}

// withController runs f with a stub of the service controller. The stub and not scm/mgr's handles: a verb makes one call, whose
// own right is then the only one that its user needs.
func (a *app) withController(f func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error) func(*cobra.Command, []string) error {
	return a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		conn, err := rpc.Dial(ctx, sys, mgr.PortName)
		if err != nil {
			return err
		}
		defer conn.Close()
		return f(ctx, scmpb.NewServiceControlManagerClient(conn), args)
	})
}

func (a *app) serviceNames(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
	if len(args) > 0 {
		return nil, nil
	}
	m, err := mgr.Connect(ctx, sys)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	services, err := m.Services(ctx, scmpb.ServiceStateFilter_SERVICE_STATE_ALL)
	var names []string
	for _, s := range services {
		names = append(names, s.Name)
	}
	return names, err
}

func scCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "sc", Short: "services: create, config, start, stop, query, list, delete, log, …"}
	c.AddCommand(scCreateCommand(a), scConfigCommand(a), scStartCommand(a), scStopCommand(a), scRestartCommand(a), scQueryCommand(a), scListCommand(a),
		scDeleteCommand(a), scLogCommand(a), scControlCommand(a), scSecurityCommand(a))
	return c
}

// serviceFlags are the parts of a service's record that create and config have in common.
type serviceFlags struct {
	change                              scmpb.ChangeServiceConfigRequest
	displayName, description            string
	kind, start, directory, account     string
	environment, dependencies           []string
	startTimeout, stopTimeout           time.Duration
	readyDelay, watchdog                time.Duration
	stopSignal, reloadSignal, logFiles  uint32
	logBytes                            uint64
	restart                             string
	restartDelay, maxDelay, resetPeriod time.Duration
	askPassword                         bool
	password                            *passwords
}

func (s *serviceFlags) register(a *app, c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.displayName, "display-name", "", "`name` for people")
	f.StringVar(&s.description, "description", "", "what it is for")
	f.StringVar(&s.kind, "kind", "plain", "how it tells that it runs: plain (it lives), notify (sd_notify), native (package scm/svc)")
	f.StringVar(&s.start, "start", "demand", "auto, demand or disabled")
	f.StringVar(&s.directory, "directory", "", "working `directory`")
	f.StringVar(&s.account, "account", "", "LocalSystem, LocalService, NetworkService or an account's `name`")
	f.BoolVar(&s.askPassword, "ask-password", false, "ask for the account's password")
	f.StringArrayVar(&s.environment, "env", nil, "`NAME=value` to add to its environment (repeatable)")
	f.StringSliceVar(&s.dependencies, "depends", nil, "`services` that must run before it")
	f.DurationVar(&s.startTimeout, "start-timeout", 0, "how long it may take to run")
	f.DurationVar(&s.stopTimeout, "stop-timeout", 0, "how long it may take to stop before it is killed")
	f.DurationVar(&s.readyDelay, "ready-delay", 0, "how long a plain service must live to count as running")
	f.DurationVar(&s.watchdog, "watchdog", 0, "how often a notify service must say WATCHDOG=1")
	f.Uint32Var(&s.stopSignal, "stop-signal", 0, "`signal` that stops it")
	f.Uint32Var(&s.reloadSignal, "reload-signal", 0, "`signal` that makes it reload")
	f.Uint64Var(&s.logBytes, "log-bytes", 0, "`size` at which its log is rotated")
	f.Uint32Var(&s.logFiles, "log-files", 0, "how many rotated logs are kept")
	f.StringVar(&s.restart, "restart", "on-failure", "on-failure, always (also after an error that it reported) or never")
	f.DurationVar(&s.restartDelay, "restart-delay", time.Second, "delay of the first restart; it doubles")
	f.DurationVar(&s.maxDelay, "restart-max-delay", time.Minute, "longest delay")
	f.DurationVar(&s.resetPeriod, "restart-reset", 10*time.Minute, "how long without failure until failures are forgotten")
	s.password = passwordFlag(a, c)
	must(c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(serviceKinds, cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("start", cobra.FixedCompletions(startTypes[2:], cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{"on-failure", "always", "never"}, cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("depends", a.complete(func(ctx context.Context, sys *alpc.System, _ []string) ([]string, error) {
		return a.serviceNames(ctx, sys, nil)
	})))
}

// read fills change with what the command line says; command is what stood behind "--".
func (s *serviceFlags) read(cmd *cobra.Command, name string, command []string) error {
	f, c := cmd.Flags(), &s.change
	c.Name = name
	kind, start := slices.Index(serviceKinds, s.kind), slices.Index(startTypes, s.start)
	if kind < 0 {
		return usage("--kind %s: it takes %s", s.kind, strings.Join(serviceKinds, ", "))
	}
	if start < 0 {
		return usage("--start %s: it takes %s", s.start, strings.Join(startTypes[2:], ", "))
	}
	if !slices.Contains([]string{"on-failure", "always", "never"}, s.restart) {
		return usage("--restart %s: it takes on-failure, always, never", s.restart)
	}
	for flag, set := range map[string]func(){
		"display-name":  func() { c.DisplayName = &s.displayName },
		"description":   func() { c.Description = &s.description },
		"kind":          func() { c.Kind = scmpb.ServiceKind(kind).Enum() },
		"start":         func() { c.Start = scmpb.StartType(start).Enum() },
		"directory":     func() { c.Directory = &s.directory },
		"account":       func() { c.Account = &s.account },
		"env":           func() { c.Environment = &scmpb.ChangeServiceConfigRequest_List{Values: s.environment} },
		"depends":       func() { c.Dependencies = &scmpb.ChangeServiceConfigRequest_List{Values: s.dependencies} },
		"start-timeout": func() { c.StartTimeoutMs = milliseconds(s.startTimeout) },
		"stop-timeout":  func() { c.StopTimeoutMs = milliseconds(s.stopTimeout) },
		"ready-delay":   func() { c.ReadyDelayMs = milliseconds(s.readyDelay) },
		"watchdog":      func() { c.WatchdogMs = milliseconds(s.watchdog) },
		"stop-signal":   func() { c.StopSignal = &s.stopSignal },
		"reload-signal": func() { c.ReloadSignal = &s.reloadSignal },
		"log-bytes":     func() { c.LogBytes = &s.logBytes },
		"log-files":     func() { c.LogFiles = &s.logFiles },
	} {
		if f.Changed(flag) {
			set()
		}
	}
	if f.Changed("restart") || f.Changed("restart-delay") || f.Changed("restart-max-delay") || f.Changed("restart-reset") {
		c.FailureActions = &scmpb.FailureActions{OnNonCrashFailures: s.restart == "always", MaxDelayMs: *milliseconds(s.maxDelay), ResetPeriodMs: *milliseconds(s.resetPeriod)}
		if s.restart != "never" {
			c.FailureActions.Actions = []*scmpb.FailureActions_Action{{Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: *milliseconds(s.restartDelay)}}
		}
	}
	if len(command) > 0 {
		path, err := exec.LookPath(command[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return ntstatus.Wrap("sc", command[0], err)
		}
		c.Path, c.Arguments = &path, &scmpb.ChangeServiceConfigRequest_List{Values: command[1:]}
	}
	if s.askPassword || f.Changed("password-fd") {
		password, err := s.password.read(cmd.Context(), "password of "+s.account+": ", false)
		if err != nil {
			return err
		}
		c.Password = password
	}
	return nil
}

// config is change as a whole record: the two have the same fields under the same names, lists apart.
func (s *serviceFlags) config() *scmpb.ServiceConfig {
	out := &scmpb.ServiceConfig{}
	to := out.ProtoReflect()
	s.change.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		target := to.Descriptor().Fields().ByName(fd.Name())
		switch {
		case target == nil: // password
		case target.IsList():
			list := to.NewField(target)
			for _, text := range v.Message().Interface().(*scmpb.ChangeServiceConfigRequest_List).Values {
				list.List().Append(protoreflect.ValueOfString(text))
			}
			to.Set(target, list)
		default:
			to.Set(target, v)
		}
		return true
	})
	return out
}

func milliseconds(d time.Duration) *uint32 {
	ms := uint32(d.Milliseconds())
	return &ms
}

// behindDash splits arguments at "--".
func behindDash(cmd *cobra.Command, args []string) (before, behind []string) {
	if n := cmd.ArgsLenAtDash(); n >= 0 {
		return args[:n], args[n:]
	}
	return args, nil
}

func oneName(cmd *cobra.Command, args []string) error {
	before, _ := behindDash(cmd, args)
	return cobra.ExactArgs(1)(cmd, before)
}

func scCreateCommand(a *app) *cobra.Command {
	var flags serviceFlags
	var descriptor string
	c := &cobra.Command{
		Use:   "create NAME [flags] -- PROGRAM [ARGUMENT...]",
		Short: "add a service",
		Example: `  sallyport sc create web --start auto -- /usr/bin/python3 -m http.server --bind 127.0.0.1 8000
  sallyport sc create redis --kind notify -- /usr/bin/redis-server --supervised systemd --daemonize no`,
		Args: oneName,
	}
	flags.register(a, c)
	c.Flags().StringVar(&descriptor, "security", "", "its security descriptor, as `SDDL`")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		_, command := behindDash(cmd, args)
		if len(command) == 0 {
			return usage("which program? sallyport sc create %s -- PROGRAM [ARGUMENT...]", args[0])
		}
		if err := flags.read(cmd, args[0], command); err != nil {
			return err
		}
		return a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, _ []string) error {
			config, err := c.CreateService(ctx, &scmpb.CreateServiceRequest{Config: flags.config(), Password: flags.change.GetPassword(), SecurityDescriptor: descriptor})
			if err != nil {
				return err
			}
			return a.printOne(configRowOf(config))
		})(cmd, args)
	}
	return c
}

// configRow is a service's record as the verbs print it.
type configRow struct {
	Name         string   `json:"name"`
	Kind         string   `json:"kind"`
	Start        string   `json:"start"`
	Command      []string `json:"command"`
	Account      string   `json:"account"`
	Dependencies []string `json:"dependencies"`
	Environment  []string `json:"environment"`
	Directory    string   `json:"directory"`
	DisplayName  string   `json:"display_name"`
	Description  string   `json:"description"`
	StartTimeout string   `json:"start_timeout"`
	StopTimeout  string   `json:"stop_timeout"`
	ReadyDelay   string   `json:"ready_delay"`
	Watchdog     string   `json:"watchdog"`
	StopSignal   uint32   `json:"stop_signal"`
	ReloadSignal uint32   `json:"reload_signal"`
	Restart      []string `json:"restart"` // delays
	LogBytes     uint64   `json:"log_bytes"`
	LogFiles     uint32   `json:"log_files"`
	Deleting     bool     `json:"delete_pending"`
}

func configRowOf(c *scmpb.ServiceConfig) configRow {
	ms := func(n uint32) string { return (time.Duration(n) * time.Millisecond).String() }
	var restart []string
	for _, action := range c.GetFailureActions().GetActions() {
		if action.Type == scmpb.FailureAction_SC_ACTION_RESTART {
			restart = append(restart, "after "+ms(action.DelayMs))
		} else {
			restart = append(restart, "no")
		}
	}
	return configRow{Name: c.Name, Kind: word(serviceKinds, int32(c.Kind)), Start: word(startTypes, int32(c.GetStart())), Command: append([]string{c.Path}, c.Arguments...),
		Account: c.Account, Dependencies: c.Dependencies, Environment: c.Environment, Directory: c.Directory, DisplayName: c.DisplayName,
		Description: c.Description, StartTimeout: ms(c.StartTimeoutMs), StopTimeout: ms(c.StopTimeoutMs), ReadyDelay: ms(c.ReadyDelayMs),
		Watchdog: ms(c.WatchdogMs), StopSignal: c.StopSignal, ReloadSignal: c.ReloadSignal, Restart: restart, LogBytes: c.LogBytes,
		LogFiles: c.LogFiles, Deleting: c.DeletePending}
}

func scConfigCommand(a *app) *cobra.Command {
	var flags serviceFlags
	c := &cobra.Command{
		Use:               "config NAME [flags] [-- PROGRAM [ARGUMENT...]]",
		Short:             "show a service's record, or change the parts that are given",
		Args:              oneName,
		ValidArgsFunction: a.complete(a.serviceNames),
	}
	flags.register(a, c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		_, command := behindDash(cmd, args)
		if err := flags.read(cmd, args[0], command); err != nil {
			return err
		}
		changes := 0
		flags.change.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { changes++; return true })
		return a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, _ []string) error {
			var config *scmpb.ServiceConfig
			var err error
			if changes == 1 { // the name alone
				config, err = c.QueryServiceConfig(ctx, &scmpb.ServiceRequest{Name: args[0]})
			} else {
				config, err = c.ChangeServiceConfig(ctx, &flags.change)
			}
			if err != nil {
				return err
			}
			return a.printOne(configRowOf(config))
		})(cmd, args)
	}
	return c
}

func scStartCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "start NAME [-- ARGUMENT...]", Short: "start a service and what it depends on, and wait until it runs", Args: oneName, ValidArgsFunction: a.complete(a.serviceNames)}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		_, arguments := behindDash(cmd, args)
		return a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, _ []string) error {
			return a.printStatus(c.StartService(ctx, &scmpb.StartServiceRequest{Name: args[0], Arguments: arguments, Wait: !a.noWait}))
		})(cmd, args)
	}
	return c
}

// printStatus prints what a control answered. A start or stop that failed has more to say in "sc query".
func (a *app) printStatus(s *scmpb.ServiceStatus, err error) error {
	if err != nil {
		return err
	}
	return a.printOne(serviceRowOf(s))
}

func scStopCommand(a *app) *cobra.Command {
	var dependents bool
	c := &cobra.Command{
		Use: "stop NAME", Short: "stop a service and wait until it has stopped", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.serviceNames),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			return a.printStatus(c.StopService(ctx, &scmpb.StopServiceRequest{Name: args[0], Dependents: dependents, Wait: !a.noWait}))
		}),
	}
	c.Flags().BoolVar(&dependents, "dependents", false, "stop what depends on it first")
	return c
}

func scRestartCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "restart NAME", Short: "stop a service if it runs, and start it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.serviceNames),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			_, err := c.StopService(ctx, &scmpb.StopServiceRequest{Name: args[0], Wait: true})
			if err != nil && ntstatus.Of(err) != ntstatus.ServiceNotActive {
				return err
			}
			return a.printStatus(c.StartService(ctx, &scmpb.StartServiceRequest{Name: args[0], Wait: !a.noWait}))
		}),
	}
}

func scQueryCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "query NAME", Short: "a service's status: its state, why, and what happens next", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.serviceNames),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			return a.printStatus(c.QueryServiceStatus(ctx, &scmpb.ServiceRequest{Name: args[0]}))
		}),
	}
}

func scListCommand(a *app) *cobra.Command {
	var active, inactive bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "the services and their states", Args: cobra.NoArgs,
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, _ []string) error {
			filter := scmpb.ServiceStateFilter_SERVICE_STATE_ALL
			switch {
			case active:
				filter = scmpb.ServiceStateFilter_SERVICE_ACTIVE
			case inactive:
				filter = scmpb.ServiceStateFilter_SERVICE_INACTIVE
			}
			list, err := c.ListServices(ctx, &scmpb.ListServicesRequest{State: filter})
			if err != nil {
				return err
			}
			rows := make([]serviceRow, 0, len(list.Services))
			for _, s := range list.Services {
				rows = append(rows, serviceRowOf(s))
			}
			return a.printList(rows)
		}),
	}
	c.Flags().BoolVar(&active, "active", false, "only those that do not stand still")
	c.Flags().BoolVar(&inactive, "inactive", false, "only those that are stopped")
	c.MarkFlagsMutuallyExclusive("active", "inactive")
	return c
}

func scDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "remove a service; a running one vanishes when it has stopped", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.serviceNames),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			_, err := c.DeleteService(ctx, &scmpb.ServiceRequest{Name: args[0]})
			return err
		}),
	}
}

func scLogCommand(a *app) *cobra.Command {
	var follow bool
	var tail int
	c := &cobra.Command{Use: "log NAME", Short: "what a service wrote to its standard output and error", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.serviceNames)}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is still to come")
	c.Flags().IntVarP(&tail, "tail", "n", -1, "begin with the last so many `lines`")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.attached(cmd.Context(), func(sys *alpc.System) error {
			ctx, cancel := cmd.Context(), func() {}
			if !follow {
				ctx, cancel = a.bounded(ctx)
			}
			defer cancel()
			m, err := mgr.Connect(ctx, sys)
			if err != nil {
				return err
			}
			defer m.Close()
			s, err := m.OpenService(ctx, args[0], mgr.ReadLog)
			if err != nil {
				return err
			}
			return s.Log(ctx, terminalSafe{a.stdout}, mgr.LogOptions{Follow: follow, Tail: tail})
		})
	}
	return c
}

// terminalSafe passes text on without the control characters that could steer the reader's terminal; tabs and colours in a
// service's log are not worth the risk.
type terminalSafe struct{ w io.Writer }

func (t terminalSafe) Write(p []byte) (int, error) {
	if _, err := io.WriteString(t.w, printable(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

func scControlCommand(a *app) *cobra.Command {
	controls := map[string]uint32{"pause": mgr.ControlPause, "continue": mgr.ControlContinue, "reload": mgr.ControlParamChange, "interrogate": mgr.ControlInterrogate}
	words := []string{"pause", "continue", "reload", "interrogate"}
	return &cobra.Command{
		Use: "control NAME CONTROL", Short: "send a control: pause, continue, reload, interrogate, or a number from 128 to 255", Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.complete(func(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
			if len(args) == 1 {
				return words, nil
			}
			return a.serviceNames(ctx, sys, args)
		}),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			control, ok := controls[args[1]]
			if !ok {
				n, err := strconv.ParseUint(args[1], 0, 8)
				if err != nil || uint32(n) < mgr.ControlUserFirst {
					return usage("control %s: it takes %s, or a number from 128 to 255", args[1], strings.Join(words, ", "))
				}
				control = uint32(n)
			}
			switch r := (&scmpb.ControlRequest{Name: args[0], Control: control}); {
			case control == mgr.ControlInterrogate:
				return a.printStatus(c.InterrogateService(ctx, &scmpb.ServiceRequest{Name: args[0]}))
			case control >= mgr.ControlUserFirst:
				return a.printStatus(c.UserControlService(ctx, r))
			default:
				return a.printStatus(c.PauseContinueService(ctx, r))
			}
		}),
	}
}

func scSecurityCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "security NAME [SDDL]", Short: "show or replace a service's security descriptor", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.complete(a.serviceNames),
		RunE: a.withController(func(ctx context.Context, c scmpb.ServiceControlManagerClient, args []string) error {
			var s *scmpb.ServiceSecurity
			var err error
			if len(args) == 2 {
				s, err = c.SetServiceSecurity(ctx, &scmpb.ServiceSecurity{Name: args[0], SecurityDescriptor: args[1]})
			} else {
				s, err = c.QueryServiceSecurity(ctx, &scmpb.ServiceRequest{Name: args[0]})
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, s.SecurityDescriptor)
			return err
		}),
	}
}
