package scm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/scm/mgr"
	"sallyport/scm/svc"
	"sallyport/security"
)

// recorded is how many cases of each group hold: fewer is a regression. What Go has no word for (buffers, information levels) is
// skipped step by step and said.
var recorded = map[string]int{
	"open_service": 1, "create": 4, "tags": 1, "names": 1, "status": 1, "enum": 3, "config2": 1, "start": 2, "control": 1, "lock": 5,
	"doc_start": 3, "doc_control": 8, "doc_create": 1,
}

type behaviour struct {
	Cases []struct {
		ID, Group, Title string
		Informational    bool
		Steps            []behaviourStep
	}
}

type behaviourStep struct {
	Call, Expect, Save, Check string
	Args                      map[string]any
}

// errNoWord is a step that can't be said in this API.
var errNoWord = errors.New("no word for it")

// posed is a native service that poses in the state that its arguments say: "state accepts", one after the other.
func posed() int {
	err := svc.Run(context.Background(), "", svc.HandlerFunc(func(ctx context.Context, args []string, r <-chan svc.ChangeRequest, s chan<- svc.Status) (bool, uint32) {
		for _, pose := range args {
			state, accepts, _ := strings.Cut(pose, " ")
			n, _ := strconv.Atoi(state)
			a, _ := strconv.Atoi(accepts)
			s <- svc.Status{State: svc.State(n), Accepts: svc.Accepted(a)}
		}
		for c := range r {
			if c.Cmd == svc.Stop {
				break
			}
		}
		return false, 0
	}))
	if err != nil {
		return 1
	}
	return 0
}

func TestPublishedBehaviour(t *testing.T) {
	dir := os.Getenv("SALLYPORT_CASES")
	if dir == "" {
		t.Skip("SALLYPORT_CASES is not set: it names a folder with cases that can't be part of this repository")
	}
	text, err := os.ReadFile(filepath.Join(dir, "scm_behaviour.json"))
	require.NoError(t, err)
	var all behaviour
	require.NoError(t, json.Unmarshal(text, &all))
	s := boot(t)
	score, total := map[string]int{}, map[string]int{}
	for i, c := range all.Cases {
		r := &runner{set: s, saved: map[string]any{}, suffix: fmt.Sprintf("_%d", i)}
		err := r.run(c.Steps)
		r.clean()
		switch {
		case c.Informational:
			t.Logf("%s (informational): %v", c.ID, err)
			continue
		case err == nil:
			score[c.Group]++
		case errors.Is(err, errNoWord):
			t.Logf("%s %s: %v", c.ID, c.Title, err)
		default:
			t.Logf("FAILED %s %s: %v", c.ID, c.Title, err)
		}
		total[c.Group]++
	}
	for group, n := range total {
		t.Logf("%s: %d of %d", group, score[group], n)
		require.GreaterOrEqual(t, score[group], recorded[group], group)
	}
}

// runner plays the steps of one case.
type runner struct {
	*set
	saved   map[string]any
	suffix  string // names are per case, as the database is not
	created []string
}

func (r *runner) run(steps []behaviourStep) error {
	told := 0
	for _, step := range steps {
		value, err := r.call(step)
		if errors.Is(err, errNoWord) {
			continue
		}
		told++
		if got := names(err); got[0] != step.Expect && got[1] != step.Expect {
			return fmt.Errorf("%s %v: got %v (%v), want %s", step.Call, step.Args, got, err, step.Expect)
		}
		if step.Save != "" {
			r.saved["$"+step.Save] = value
		}
		if err := r.check(step, value); err != nil {
			return fmt.Errorf("%s: %s: %w", step.Call, step.Check, err)
		}
	}
	if told == 0 {
		return errNoWord
	}
	return nil
}

// names are what the published cases call an outcome; some have two.
func names(err error) [2]string {
	name := map[ntstatus.Status]string{
		ntstatus.Success: "ok", ntstatus.InvalidName: "ERROR_INVALID_NAME", ntstatus.DuplicateServiceName: "ERROR_DUPLICATE_SERVICE_NAME",
		ntstatus.AccessDenied: "ERROR_ACCESS_DENIED", ntstatus.InvalidHandle: "ERROR_INVALID_HANDLE", ntstatus.ServiceDoesNotExist: "ERROR_SERVICE_DOES_NOT_EXIST",
		ntstatus.InvalidParameter: "ERROR_INVALID_PARAMETER", ntstatus.ServiceDisabled: "ERROR_SERVICE_DISABLED", ntstatus.ServiceNotActive: "ERROR_SERVICE_NOT_ACTIVE",
		ntstatus.ServiceAlreadyRunning: "ERROR_SERVICE_ALREADY_RUNNING", mgr.InvalidServiceLock: "ERROR_INVALID_SERVICE_LOCK",
		ntstatus.ServiceMarkedForDelete: "ERROR_SERVICE_MARKED_FOR_DELETE", ntstatus.ServiceCannotAcceptControl: "ERROR_SERVICE_CANNOT_ACCEPT_CTRL",
		ntstatus.InvalidServiceControl: "ERROR_INVALID_SERVICE_CONTROL", ntstatus.ServiceExists: "ERROR_SERVICE_EXISTS",
	}[ntstatus.Of(err)]
	if name == "ERROR_INVALID_PARAMETER" {
		return [2]string{name, "ERROR_INVALID_ADDRESS"} // in a language without pointers
	}
	return [2]string{name, name}
}

func mask(words map[string]security.AccessMask, v any) security.AccessMask {
	text, _ := v.(string)
	switch text {
	case "GENERIC_ALL":
		return security.GenericAll
	case "GENERIC_READ":
		return security.GenericRead
	case "READ_CONTROL":
		return security.ReadControl
	case "DELETE":
		return security.Delete
	}
	return words[text]
}

func (r *runner) managerOf(v any) *mgr.Manager {
	name, _ := v.(string)
	m, _ := r.saved[name].(*mgr.Manager)
	if m == nil && name == "$scm" {
		return r.manager
	}
	return m
}

// serviceOf is a saved handle, or one of the fixtures that the cases start from.
func (r *runner) serviceOf(args map[string]any) (*mgr.Service, error) {
	name, _ := args["svc"].(string)
	if saved, ok := r.saved[name]; ok {
		return saved.(*mgr.Service), nil
	}
	precondition, _ := args["precondition"].(string)
	poses := []string{"4 7"}
	switch {
	case name == "":
		return nil, nil
	case name == "$slow":
		poses = nil
	case strings.HasPrefix(precondition, "state "):
		words := strings.FieldsFunc(precondition, func(c rune) bool { return c == ' ' || c == ',' })
		accepts := "7"
		if strings.Contains(precondition, "does not accept STOP") {
			accepts = "6"
		} else if strings.Contains(precondition, "does not accept PAUSE") {
			accepts = "5"
		}
		poses = map[string][]string{"START_PENDING": {"2 " + accepts}, "RUNNING": {"4 " + accepts}, "PAUSE_PENDING": {"4 7", "6 " + accepts}, "PAUSED": {"4 7", "7 " + accepts}}[words[1]]
	}
	service := r.create("fixture"+r.suffix, "native", func(c *scmpb.ServiceConfig) { c.Environment = []string{role + "=posed"} })
	r.created = append(r.created, service.Name())
	r.saved[name] = service
	if name == "$slow" {
		return service, nil // its start is the case
	}
	if _, err := service.Start(r.context(), false, poses...); err != nil {
		return nil, err
	}
	state, accepts, _ := strings.Cut(poses[len(poses)-1], " ")
	r.await(service, "the pose", func(st *scmpb.ServiceStatus) bool {
		return strconv.Itoa(int(st.State)) == state && fmt.Sprint(st.ControlsAccepted) == accepts
	})
	if precondition == "marked for deletion" {
		if err := service.Delete(r.context()); err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(name, "handle with every right but") {
		return r.manager.OpenService(r.context(), service.Name(), mgr.AllAccess&^mgr.PauseContinue)
	}
	return service, nil
}

func (r *runner) call(step behaviourStep) (any, error) {
	ctx, a := r.context(), step.Args
	text := func(key string) string { s, _ := a[key].(string); return s }
	if _, ok := a["bufsize"]; ok && strings.HasSuffix(step.Expect, "INSUFFICIENT_BUFFER") {
		return nil, errNoWord
	}
	switch step.Call {
	case "OpenSCManager":
		return r.manager.Limit(mask(map[string]security.AccessMask{
			"SC_MANAGER_CONNECT": mgr.ManagerConnect, "SC_MANAGER_CREATE_SERVICE": mgr.ManagerConnect | mgr.ManagerCreateService,
			"SC_MANAGER_ENUMERATE_SERVICE": mgr.ManagerEnumerate, "SC_MANAGER_LOCK": mgr.ManagerLock, "SC_MANAGER_QUERY_LOCK_STATUS": mgr.ManagerQueryLockStatus,
		}, a["access"])), nil
	case "CreateService":
		c := &scmpb.ServiceConfig{Name: r.own(text("name")), Path: text("path"), Start: scmpb.StartType_SERVICE_DISABLED.Enum(), ErrorControl: scmpb.ErrorControl_SERVICE_ERROR_IGNORE.Enum()}
		if text("display") != "" {
			c.DisplayName = text("display") + r.suffix
		}
		if text("type") == "KERNEL_DRIVER" {
			c.ServiceType = 1
		}
		service, err := r.managerOf(a["scm"]).CreateService(ctx, c, mgr.CreateOptions{Access: mask(nil, a["access"])})
		if err == nil {
			r.created = append(r.created, service.Name())
		}
		return service, err
	case "OpenService":
		return r.managerOf(a["scm"]).OpenService(ctx, r.own(text("name")), mask(nil, a["access"]))
	case "CloseServiceHandle":
		return nil, r.saved[text("h")].(*mgr.Service).Close()
	case "GetServiceKeyName":
		return r.managerOf(a["scm"]).KeyName(ctx, text("display"))
	case "LockServiceDatabase":
		lock, err := r.managerOf(a["scm"]).LockDatabase(ctx)
		return lock, err
	case "UnlockServiceDatabase":
		lock, _ := r.saved[text("lock")].(*mgr.Lock)
		return nil, lock.Unlock()
	case "QueryServiceLockStatus":
		return r.managerOf(a["scm"]).LockStatus(ctx)
	case "EnumServicesStatusEx":
		if _, ok := a["level"]; ok {
			return nil, errNoWord
		}
		state := map[any]scmpb.ServiceStateFilter{"SERVICE_ACTIVE": 1, "SERVICE_INACTIVE": 2, "STATE_ALL": 3}[a["state"]]
		return r.managerOf(a["scm"]).Services(ctx, state)
	}
	service, err := r.serviceOf(a)
	if err != nil {
		return nil, err
	}
	switch step.Call {
	case "DeleteService":
		return nil, service.Delete(ctx)
	case "StartService":
		return service.Start(ctx, false)
	case "QueryServiceStatus", "QueryServiceStatusEx":
		return service.Query(ctx)
	case "ControlService":
		code := map[any]uint32{"STOP": mgr.ControlStop, "PAUSE": mgr.ControlPause, float64(0): 0}[a["control"]]
		return service.Control(ctx, code)
	case "QueryServiceConfig2":
		c, err := service.Config(ctx)
		return c.GetDescription(), err
	case "ChangeServiceConfig2":
		change := &scmpb.ChangeServiceConfigRequest{}
		if v, ok := a["value"].(string); ok {
			change.Description = &v
		}
		return service.Change(ctx, change)
	}
	return nil, errNoWord
}

// own makes a case's names its own; those that are wrong on purpose stay as they are.
func (r *runner) own(name string) string {
	if name == "" || strings.ContainsAny(name, `/\`) || len(name) > 250 {
		return name
	}
	return name + r.suffix
}

// check holds the assertions that the cases make in words.
func (r *runner) check(step behaviourStep, value any) error {
	want := func(ok bool) error {
		if !ok {
			return fmt.Errorf("is not so: %v", value)
		}
		return nil
	}
	switch step.Check {
	case "STOPPED, pid 0":
		st := value.(*scmpb.ServiceStatus)
		return want(st.State == scmpb.ServiceState_SERVICE_STOPPED && st.Pid == 0)
	case "START_PENDING, controls 0, checkpoint 0, waithint 2000":
		st := value.(*scmpb.ServiceStatus)
		return want(st.State == scmpb.ServiceState_SERVICE_START_PENDING && st.ControlsAccepted == 0 && st.CheckPoint == 0 && st.WaitHintMs == 2000)
	case "null":
		return want(value == "")
	case `"Description"`:
		return want(value == "Description")
	case `locked == 0, owner == "", duration == 0`:
		st := value.(*scmpb.LockStatus)
		return want(!st.Locked && st.Owner == "" && st.Seconds == 0)
	}
	if strings.HasPrefix(step.Check, "count == a + i") {
		list := value.([]*scmpb.ServiceStatus)
		for _, st := range list {
			if st.Name == "" || st.DisplayName == "" || (st.Pid != 0) != (st.State != scmpb.ServiceState_SERVICE_STOPPED) {
				return fmt.Errorf("%v", st)
			}
		}
		return want(len(list) == len(r.saved["$a"].([]*scmpb.ServiceStatus))+len(r.saved["$i"].([]*scmpb.ServiceStatus)))
	}
	return nil
}

// clean removes what a case made.
func (r *runner) clean() {
	for _, v := range r.saved {
		switch v := v.(type) {
		case *mgr.Service:
			_ = v.Close()
		case *mgr.Lock:
			_ = v.Unlock()
		}
	}
	for _, name := range r.created {
		if service, err := r.manager.OpenService(r.context(), name, mgr.AllAccess); err == nil {
			if st, err := service.Query(r.context()); err == nil && st.Pid != 0 {
				_ = syscall.Kill(int(st.Pid), syscall.SIGKILL)
			}
			_ = service.Delete(r.context())
			_ = service.Close()
		}
	}
}
