package scm

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
)

// What MS-SCMR fixes.
const (
	maxName         = 256      // characters, of a name or display name
	maxPath         = 32 << 10 // bytes, of the path with its arguments
	maxDependencies = 4 << 10  // characters of all names together
	maxStartArgs    = 1024
	maxStartArg     = 1024
	ownProcess      = 0x10 // SERVICE_WIN32_OWN_PROCESS
)

// What we chose.
const (
	maxDescription = 4 << 10
	maxEnvironment = 64 << 10
	maxActions     = 16
	maxTimeout     = 24 * time.Hour
	minLog         = 4 << 10
	maxLog         = 1 << 30
	maxLogFiles    = 100

	defaultStartTimeout = 30 * time.Second
	defaultStopTimeout  = 20 * time.Second
	defaultReadyDelay   = 200 * time.Millisecond
	defaultStopSignal   = 15
	defaultLogBytes     = 1 << 20
	defaultLogFiles     = 4
	defaultReset        = 10 * time.Minute
	defaultMaxDelay     = time.Minute
	defaultDelay        = time.Second
)

// The accounts that need no password.
const (
	accountLocalSystem    = "LocalSystem"
	accountLocalService   = "LocalService"
	accountNetworkService = "NetworkService"
)

// checkName says whether a name can be a service's: 1 to 256 characters, no slashes, nothing that can't be shown.
func checkName(op, name string) error {
	if name == "" || utf8.RuneCountInString(name) > maxName || !utf8.ValidString(name) || strings.ContainsAny(name, `/\`) ||
		strings.ContainsFunc(name, unicode.IsControl) || strings.TrimSpace(name) != name {
		return ntstatus.Errorf(op, clip(name), ntstatus.InvalidName, "a name has 1 to 256 characters, no slashes and no spaces around it")
	}
	return nil
}

// normalize checks a whole configuration and fills in the defaults: what comes out is what is stored, shown and run.
func normalize(op string, in *scmpb.ServiceConfig) (*scmpb.ServiceConfig, error) {
	c := proto.CloneOf(in)
	if c == nil {
		c = &scmpb.ServiceConfig{}
	}
	if err := checkName(op, c.Name); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*scmpb.ServiceConfig, error) {
		return nil, ntstatus.Errorf(op, c.Name, ntstatus.InvalidParameter, format, args...)
	}
	if c.DisplayName == "" {
		c.DisplayName = c.Name
	}
	if utf8.RuneCountInString(c.DisplayName) > maxName || strings.ContainsFunc(c.DisplayName, unicode.IsControl) {
		return nil, ntstatus.Errorf(op, c.Name, ntstatus.InvalidName, "a display name has at most 256 characters")
	}
	for field, text := range map[string]struct {
		text  string
		limit int
	}{
		"description": {c.Description, maxDescription}, "path": {c.Path + strings.Join(c.Arguments, ""), maxPath},
		"directory": {c.Directory, maxPath}, "account": {c.Account, maxName},
		"environment": {strings.Join(c.Environment, ""), maxEnvironment},
	} {
		if len(text.text) > text.limit {
			return bad("%s is longer than %d bytes", field, text.limit)
		}
		if strings.ContainsRune(text.text, 0) {
			return bad("%s holds a zero byte", field)
		}
	}
	if !filepath.IsAbs(c.Path) {
		return bad("path %q is not absolute", c.Path)
	}
	if c.Directory == "" {
		c.Directory = "/"
	}
	if !filepath.IsAbs(c.Directory) {
		return bad("directory %q is not absolute", c.Directory)
	}
	for _, e := range c.Environment {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return bad("environment: %q is not NAME=value", clip(e))
		}
	}
	if _, ok := scmpb.ServiceKind_name[int32(c.Kind)]; !ok {
		return bad("there is no service kind %d", c.Kind)
	}
	if c.ServiceType == 0 {
		c.ServiceType = ownProcess
	}
	if c.ServiceType != ownProcess {
		return bad("service type 0x%x: only services with a process of their own (0x10) can be run", c.ServiceType)
	}
	if c.Start == nil {
		c.Start = scmpb.StartType_SERVICE_DEMAND_START.Enum()
	}
	if *c.Start < scmpb.StartType_SERVICE_AUTO_START || *c.Start > scmpb.StartType_SERVICE_DISABLED {
		return bad("start type %d is for drivers", *c.Start)
	}
	if c.ErrorControl == nil {
		c.ErrorControl = scmpb.ErrorControl_SERVICE_ERROR_NORMAL.Enum()
	}
	if _, ok := scmpb.ErrorControl_name[int32(*c.ErrorControl)]; !ok {
		return bad("there is no error control %d", *c.ErrorControl)
	}
	if c.SidType == nil {
		c.SidType = scmpb.ServiceSIDType_SERVICE_SID_TYPE_UNRESTRICTED.Enum()
	}
	if _, ok := scmpb.ServiceSIDType_name[int32(*c.SidType)]; !ok {
		return bad("there is no service SID type %d", *c.SidType)
	}
	if c.Account == "" {
		c.Account = accountLocalSystem
	}
	if strings.TrimSpace(c.Account) != c.Account || strings.ContainsFunc(c.Account, unicode.IsControl) {
		return nil, ntstatus.New(op, c.Name, ntstatus.InvalidServiceAccount)
	}
	total := 0
	seen := map[string]bool{}
	for _, d := range c.Dependencies {
		if err := checkName(op, d); err != nil {
			return nil, err
		}
		if total += utf8.RuneCountInString(d) + 1; total > maxDependencies {
			return bad("the dependencies are longer than %d characters", maxDependencies)
		}
		if seen[Fold(d)] {
			return bad("it depends on %s twice", d)
		}
		seen[Fold(d)] = true
	}
	if err := normalizeActions(op, c); err != nil {
		return nil, err
	}
	for _, t := range []struct {
		name  string
		field *uint32
		def   time.Duration
	}{
		{"start_timeout_ms", &c.StartTimeoutMs, defaultStartTimeout}, {"stop_timeout_ms", &c.StopTimeoutMs, defaultStopTimeout},
		{"ready_delay_ms", &c.ReadyDelayMs, defaultReadyDelay}, {"watchdog_ms", &c.WatchdogMs, 0},
	} {
		if *t.field == 0 {
			*t.field = uint32(t.def.Milliseconds())
		}
		if milliseconds(*t.field) > maxTimeout {
			return bad("%s is longer than a day", t.name)
		}
	}
	if c.WatchdogMs != 0 && c.Kind != scmpb.ServiceKind_SERVICE_KIND_NOTIFY {
		return bad("only a notify service has a watchdog")
	}
	if c.StopSignal == 0 {
		c.StopSignal = defaultStopSignal
	}
	if c.StopSignal > 64 || c.ReloadSignal > 64 {
		return bad("there is no signal above 64")
	}
	if c.LogBytes == 0 {
		c.LogBytes = defaultLogBytes
	}
	if c.LogBytes < minLog || c.LogBytes > maxLog {
		return bad("log_bytes is not between %d and %d", minLog, maxLog)
	}
	if c.LogFiles == 0 {
		c.LogFiles = defaultLogFiles
	}
	if c.LogFiles > maxLogFiles {
		return bad("log_files is more than %d", maxLogFiles)
	}
	return c, nil
}

func normalizeActions(op string, c *scmpb.ServiceConfig) error {
	if c.FailureActions == nil {
		c.FailureActions = &scmpb.FailureActions{Actions: []*scmpb.FailureActions_Action{
			{Type: scmpb.FailureAction_SC_ACTION_RESTART, DelayMs: uint32(defaultDelay.Milliseconds())},
		}}
	}
	a := c.FailureActions
	if a.ResetPeriodMs == 0 {
		a.ResetPeriodMs = uint32(defaultReset.Milliseconds())
	}
	if a.MaxDelayMs == 0 {
		a.MaxDelayMs = uint32(defaultMaxDelay.Milliseconds())
	}
	if len(a.Actions) > maxActions || milliseconds(a.MaxDelayMs) > maxTimeout {
		return ntstatus.Errorf(op, c.Name, ntstatus.InvalidParameter, "more than %d failure actions, or a delay of more than a day", maxActions)
	}
	for _, action := range a.Actions {
		if _, ok := scmpb.FailureAction_name[int32(action.GetType())]; !ok || milliseconds(action.DelayMs) > maxTimeout {
			return ntstatus.Errorf(op, c.Name, ntstatus.InvalidParameter, "a failure action is neither none nor restart, or waits more than a day")
		}
	}
	return nil
}

// change applies the fields that are present in r to a copy of c and checks the whole again.
func change(op string, c *scmpb.ServiceConfig, r *scmpb.ChangeServiceConfigRequest) (*scmpb.ServiceConfig, error) {
	c = proto.CloneOf(c)
	set(&c.DisplayName, r.DisplayName)
	set(&c.Description, r.Description)
	set(&c.Kind, r.Kind)
	if r.Start != nil {
		c.Start = r.Start
	}
	if r.ErrorControl != nil {
		c.ErrorControl = r.ErrorControl
	}
	set(&c.Path, r.Path)
	for _, l := range []struct {
		to   *[]string
		from *scmpb.ChangeServiceConfigRequest_List
	}{{&c.Arguments, r.Arguments}, {&c.Environment, r.Environment}, {&c.Dependencies, r.Dependencies}} {
		if l.from != nil {
			*l.to = l.from.Values
		}
	}
	set(&c.Directory, r.Directory)
	set(&c.Account, r.Account)
	if r.SidType != nil {
		c.SidType = r.SidType
	}
	if r.FailureActions != nil {
		c.FailureActions = r.FailureActions
	}
	set(&c.StartTimeoutMs, r.StartTimeoutMs)
	set(&c.StopTimeoutMs, r.StopTimeoutMs)
	set(&c.ReadyDelayMs, r.ReadyDelayMs)
	set(&c.StopSignal, r.StopSignal)
	set(&c.ReloadSignal, r.ReloadSignal)
	set(&c.WatchdogMs, r.WatchdogMs)
	set(&c.LogBytes, r.LogBytes)
	set(&c.LogFiles, r.LogFiles)
	return normalize(op, c)
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// checkStartArgs bounds what StartService may add.
func checkStartArgs(op, name string, args []string) error {
	if len(args) > maxStartArgs {
		return ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "more than %d arguments", maxStartArgs)
	}
	for i, a := range args {
		if len(a) > maxStartArg || strings.ContainsRune(a, 0) {
			return ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "argument %d is longer than %d bytes, or holds a zero byte", i+1, maxStartArg)
		}
	}
	return nil
}

// checkNames keeps display names unique among all names and display names, without case. self is the service that is changed.
func (m *Machine) checkNames(op string, c *scmpb.ServiceConfig, self *Service) error {
	if s, ok := m.Get(c.Name); ok && s != self {
		if s.Config.DeletePending {
			return ntstatus.New(op, c.Name, ntstatus.ServiceMarkedForDelete)
		}
		return ntstatus.New(op, c.Name, ntstatus.ServiceExists)
	}
	for _, s := range m.services {
		if s == self {
			continue
		}
		for _, taken := range []string{s.Config.Name, s.Config.DisplayName} {
			if Fold(taken) == Fold(c.DisplayName) || Fold(taken) == Fold(c.Name) {
				return ntstatus.Errorf(op, c.Name, ntstatus.DuplicateServiceName, "service %s has the name %q", s.Config.Name, taken)
			}
		}
	}
	return nil
}

// failureText says what a failure count means for people.
func failureText(n uint32) string {
	if n == 1 {
		return "the first failure"
	}
	return fmt.Sprintf("failure %d", n)
}
