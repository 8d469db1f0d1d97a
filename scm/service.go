package scm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"sallyport/internal/store"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
	"sallyport/scm/mgr"
	"sallyport/security"
)

// The default descriptors (FEATURES' numbers are winsvc.h's; 0x200 is ours, SERVICE_READ_LOG). Manager: the system and
// administrators all, authenticated users connect, enumerate and query the lock. A new service: the system and
// administrators all; interactive users and services query, interrogate and send user controls.
const (
	managerSDDL = "O:SYG:SYD:(A;;0xf003f;;;SY)(A;;0xf003f;;;BA)(A;;0x20015;;;AU)"
	serviceSDDL = "O:SYG:SYD:(A;;0xf03ff;;;SY)(A;;0xf03ff;;;BA)(A;;0x2018d;;;IU)(A;;0x2018d;;;SU)"
)

// server answers controllers: the ServiceControlManager service.
type server struct {
	scmpb.UnimplementedServiceControlManagerServer
	c *controller
}

func statusOp(method string) string { return "scm." + method }

// resolve finds a service's descriptor for the framework's check. Whoever may enumerate services may also learn that there is
// none of a name: for them the handler answers. Others can't tell it from one that they may not touch.
func (c *controller) resolve(ctx context.Context, name string) (*security.Descriptor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, err := c.find("scm.Resolve", name); err == nil {
		return e.descriptor, nil
	}
	caller, ok := rpc.Caller(ctx)
	if !ok || !security.AccessCheck(security.CheckRequest{
		Descriptor: c.manager, Token: caller.Token, Desired: mgr.ManagerEnumerate, Mapping: mgr.ManagerMapping(),
	}).Allowed() {
		return nil, ntstatus.New("scm.Resolve", clip(name), ntstatus.AccessDenied)
	}
	return security.ParseSDDL("O:SYG:SYD:(A;;0xf03ff;;;WD)")
}

// answer runs fn on a service and returns its status then.
func (c *controller) answer(op, name string, fn func(now time.Time, e *entry) error) (st *scmpb.ServiceStatus, err error) {
	err = c.apply(func(now time.Time) error {
		e, err := c.find(op, name)
		if err != nil {
			return err
		}
		if err = fn(now, e); err == nil {
			st = c.status(e)
		}
		return err
	})
	return st, err
}

func (s *server) QueryServiceStatus(_ context.Context, r *scmpb.ServiceRequest) (*scmpb.ServiceStatus, error) {
	return s.c.answer(statusOp("QueryServiceStatus"), r.Name, func(time.Time, *entry) error { return nil })
}

func (s *server) QueryServiceConfig(_ context.Context, r *scmpb.ServiceRequest) (out *scmpb.ServiceConfig, err error) {
	_, err = s.c.answer(statusOp("QueryServiceConfig"), r.Name, func(_ time.Time, e *entry) error { out = shown(e); return nil })
	return out, err
}

// CreateService checks in NT's order: the right (by the framework), the name, the rest. It answers when the record is on disk.
func (s *server) CreateService(ctx context.Context, r *scmpb.CreateServiceRequest) (*scmpb.ServiceConfig, error) {
	const op = "scm.CreateService"
	c := s.c
	config, err := normalize(op, r.Config)
	if err != nil {
		return nil, err
	}
	config.DeletePending = false
	if err := checkAccount(op, config, len(r.Password) > 0); err != nil {
		return nil, err
	}
	sddl := r.SecurityDescriptor
	if sddl == "" {
		sddl = serviceSDDL
	}
	descriptor, err := parseDescriptor(op, config.Name, sddl, nil)
	if err != nil {
		return nil, err
	}
	if err := c.awaitLeaving(ctx, Fold(config.Name)); err != nil {
		return nil, err
	}
	c.admin.Lock()
	defer c.admin.Unlock()
	record := &scmpb.ServiceRecord{Config: config, SecurityDescriptor: descriptor.String(), Password: r.Password}
	c.mu.Lock()
	err = c.machine.checkNames(op, config, nil)
	if err == nil {
		err = c.machine.CheckDependencies(config.Name, config.Dependencies)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := c.save(record); err != nil {
		return nil, ntstatus.Wrap(op, config.Name, err)
	}
	var out *scmpb.ServiceConfig
	err = c.apply(func(now time.Time) error {
		e := c.enter(c.machine.Add(now, config, nil), record, descriptor)
		c.publish(&scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_CREATED, Status: c.status(e)})
		out = shown(e)
		return nil
	})
	return out, err
}

// awaitLeaving waits until a deleted service of the name is removed altogether.
func (c *controller) awaitLeaving(ctx context.Context, key string) error {
	for {
		c.mu.Lock()
		gone := c.leaving[key]
		c.mu.Unlock()
		if gone == nil {
			return nil
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkAccount refuses a password where none can be, and the lack of one where it must be: SERVICE_INVALID_ACCOUNT.
func checkAccount(op string, config *scmpb.ServiceConfig, password bool) error {
	if builtIn(config.Account) == password {
		return ntstatus.Errorf(op, config.Name, ntstatus.InvalidServiceAccount,
			"%s, %s and %s take no password, every other account needs one", accountLocalSystem, accountLocalService, accountNetworkService)
	}
	return nil
}

func builtIn(account string) bool {
	name := account
	if domain, rest, ok := strings.Cut(account, `\`); ok && (strings.EqualFold(domain, "NT AUTHORITY") || strings.EqualFold(domain, "NT SERVICE")) {
		if strings.EqualFold(domain, "NT SERVICE") {
			return true
		}
		name = rest
	}
	return slices.ContainsFunc([]string{accountLocalSystem, accountLocalService, accountNetworkService, "SYSTEM"}, func(a string) bool { return strings.EqualFold(a, name) })
}

// parseDescriptor reads SDDL for a service: generic rights are replaced by what they mean, a missing owner or group is old's.
func parseDescriptor(op, name, sddl string, old *security.Descriptor) (*security.Descriptor, error) {
	d, err := security.ParseSDDL(sddl)
	if err != nil {
		return nil, ntstatus.Wrap(op, name, err)
	}
	if old == nil {
		old = &security.Descriptor{Owner: security.LocalSystem(), Group: security.LocalSystem()}
	}
	if d.Owner.IsZero() {
		d.Owner = old.Owner
	}
	if d.Group.IsZero() {
		d.Group = old.Group
	}
	if d.DACL != nil {
		mapping := mgr.ServiceMapping()
		for i := range d.DACL.ACEs {
			d.DACL.ACEs[i].Mask = mapping.Map(d.DACL.ACEs[i].Mask)
		}
	}
	return d, nil
}

func (c *controller) save(r *scmpb.ServiceRecord) error {
	return c.db.Update(func(tx *store.Tx) error { return services().Put(tx, Fold(r.Config.Name), r) })
}

// ChangeServiceConfig sets what is present. The machine reads the new record at the next start; limits of the log at once.
func (s *server) ChangeServiceConfig(ctx context.Context, r *scmpb.ChangeServiceConfigRequest) (*scmpb.ServiceConfig, error) {
	const op = "scm.ChangeServiceConfig"
	c := s.c
	c.admin.Lock()
	defer c.admin.Unlock()
	c.mu.Lock()
	e, err := c.find(op, r.Name)
	var old *scmpb.ServiceRecord
	var descriptor *security.Descriptor
	if err == nil {
		old, descriptor = e.record, e.descriptor
		if e.service.Config.DeletePending {
			err = ntstatus.New(op, r.Name, ntstatus.ServiceMarkedForDelete)
		}
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	config, err := change(op, old.Config, r)
	if err != nil {
		return nil, err
	}
	password := old.Password
	if r.Account != nil || r.Password != nil {
		password = r.Password
		if err := checkAccount(op, config, len(password) > 0); err != nil {
			return nil, err
		}
	}
	if restarts(r.FailureActions) && !allowed(ctx, descriptor, mgr.Start) {
		return nil, ntstatus.Errorf(op, config.Name, ntstatus.AccessDenied, "a failure action that restarts needs SERVICE_START")
	}
	c.mu.Lock()
	if err = c.machine.checkNames(op, config, e.service); err == nil {
		err = c.machine.CheckDependencies(config.Name, config.Dependencies)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	record := &scmpb.ServiceRecord{Config: config, SecurityDescriptor: old.SecurityDescriptor, Password: password}
	if err := c.save(record); err != nil {
		return nil, ntstatus.Wrap(op, config.Name, err)
	}
	_, err = c.answer(op, config.Name, func(_ time.Time, e *entry) error {
		pending := e.service.Config.DeletePending
		e.record, e.service.Config = record, config
		e.service.Config.DeletePending = pending
		if e.log != nil {
			e.log.configure(int64(config.LogBytes), int(config.LogFiles))
		}
		c.machine.touch(e.service)
		return nil
	})
	return config, err
}

func restarts(a *scmpb.FailureActions) bool {
	return slices.ContainsFunc(a.GetActions(), func(a *scmpb.FailureActions_Action) bool {
		return a.GetType() == scmpb.FailureAction_SC_ACTION_RESTART
	})
}

// allowed asks what the .proto can't say: a right that depends on a request's content. Outside a port nobody is known, and
// nothing allowed.
func allowed(ctx context.Context, d *security.Descriptor, right security.AccessMask) bool {
	caller, ok := rpc.Caller(ctx)
	return ok && security.AccessCheck(security.CheckRequest{Descriptor: d, Token: caller.Token, Desired: right, Mapping: mgr.ServiceMapping()}).Allowed()
}

// maxHandles is how many services one connection may hold open.
const maxHandles = 4096

// HoldHandles ends the connection's handles when it ends: a client that dies can't keep a deleted service.
func (s *server) HoldHandles(_ *scmpb.HoldHandlesRequest, stream grpc.ServerStreamingServer[scmpb.HoldHandlesResponse]) error {
	const op = "scm.HoldHandles"
	c, ctx := s.c, stream.Context()
	caller, ok := rpc.Caller(ctx)
	if !ok {
		return ntstatus.New(op, "", ntstatus.AccessDenied)
	}
	c.mu.Lock()
	_, twice := c.handles[caller.Connection]
	if !twice {
		c.handles[caller.Connection] = map[uint64]*Service{}
	}
	c.mu.Unlock()
	if twice {
		return ntstatus.Errorf(op, "", ntstatus.InvalidDeviceState, "the connection holds its handles already")
	}
	defer func() {
		_ = c.apply(func(now time.Time) error {
			mine := c.handles[caller.Connection]
			delete(c.handles, caller.Connection)
			for id, service := range mine {
				c.machine.Release(now, service, id)
			}
			return nil
		})
	}()
	if err := stream.Send(&scmpb.HoldHandlesResponse{}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// OpenService grants what the caller may of desired_access.
func (s *server) OpenService(ctx context.Context, r *scmpb.OpenServiceRequest) (*scmpb.OpenServiceResponse, error) {
	const op = "scm.OpenService"
	c := s.c
	if r.Name == "" {
		return nil, ntstatus.New(op, "", ntstatus.InvalidParameter)
	}
	if _, err := c.resolve(ctx, r.Name); err != nil {
		return nil, err
	}
	caller, ok := rpc.Caller(ctx)
	if !ok {
		return nil, ntstatus.New(op, r.Name, ntstatus.AccessDenied)
	}
	out := &scmpb.OpenServiceResponse{}
	return out, c.apply(func(time.Time) error {
		e, err := c.find(op, r.Name)
		if err != nil {
			return err
		}
		if desired := mgr.ServiceMapping().Map(security.AccessMask(r.DesiredAccess)); desired != 0 {
			d := security.AccessCheck(security.CheckRequest{Descriptor: e.descriptor, Token: caller.Token, Desired: desired, Mapping: mgr.ServiceMapping()})
			if !d.Allowed() {
				return ntstatus.Errorf(op, e.service.Config.Name, d.Status, "%s", d)
			}
			out.GrantedAccess = uint32(d.Granted)
		}
		mine, held := c.handles[caller.Connection]
		switch {
		case !held:
			return ntstatus.Errorf(op, r.Name, ntstatus.InvalidDeviceState, "call HoldHandles first")
		case len(mine) >= maxHandles:
			return ntstatus.Errorf(op, r.Name, ntstatus.QuotaExceeded, "the connection has %d open services", maxHandles)
		}
		c.nextID++
		out.Name, out.Handle = e.service.Config.Name, c.nextID
		mine[out.Handle] = e.service
		return c.machine.Hold(e.service.Key, out.Handle, fmt.Sprintf("process %d (%s)", caller.PID, caller.Token.User.SID))
	})
}

// CloseServiceHandle is CloseServiceHandle: what was only kept for the handle is gone when it answers.
func (s *server) CloseServiceHandle(ctx context.Context, r *scmpb.CloseServiceHandleRequest) (*scmpb.CloseServiceHandleResponse, error) {
	caller, known := rpc.Caller(ctx)
	if !known {
		return nil, ntstatus.New(statusOp("CloseServiceHandle"), "", ntstatus.AccessDenied)
	}
	return &scmpb.CloseServiceHandleResponse{}, s.c.apply(func(now time.Time) error {
		mine := s.c.handles[caller.Connection]
		service, ok := mine[r.Handle]
		if !ok {
			return ntstatus.New(statusOp("CloseServiceHandle"), "", ntstatus.InvalidHandle)
		}
		delete(mine, r.Handle)
		s.c.machine.Release(now, service, r.Handle)
		return nil
	})
}

func (s *server) StartService(ctx context.Context, r *scmpb.StartServiceRequest) (*scmpb.ServiceStatus, error) {
	const op = "scm.StartService"
	if err := checkStartArgs(op, r.Name, r.Arguments); err != nil {
		return nil, err
	}
	var attempt uint64
	st, err := s.c.answer(op, r.Name, func(now time.Time, e *entry) error {
		err := s.c.machine.Start(now, e.service.Key, r.Arguments)
		attempt = e.service.Run.Attempt
		return err
	})
	if err != nil || !r.Wait {
		return st, err
	}
	return s.c.await(ctx, op, r.Name, func(run *Run) (bool, error) {
		switch {
		case run.State.up():
			return true, nil
		case run.Attempt != attempt:
			return true, ntstatus.Errorf(op, r.Name, ntstatus.ProcessAborted, "it failed and is being restarted: %s", run.Reason)
		case run.State == Stopped:
			return true, ntstatus.Errorf(op, r.Name, startError(run), "%s", run.Reason)
		}
		return false, nil
	})
}

// startError is the status for a start that ended in STOPPED.
func startError(run *Run) ntstatus.Status {
	switch run.Win32 {
	case 0:
		return ntstatus.ProcessAborted
	case 2:
		return ntstatus.ObjectNameNotFound
	case 5:
		return ntstatus.AccessDenied
	case 31:
		return ntstatus.Unsuccessful
	}
	return win32Status(run.Win32)
}

// win32Status carries a Win32 number as the service controller's statuses do.
func win32Status(n uint32) ntstatus.Status { return ntstatus.Status(0xC0070000 | n&0xFFFF) }

// await waits until done says so, and returns the service's status then.
func (c *controller) await(ctx context.Context, op, name string, done func(*Run) (bool, error)) (*scmpb.ServiceStatus, error) {
	for {
		c.mu.Lock()
		e, err := c.find(op, name)
		if err != nil {
			c.mu.Unlock()
			return nil, err
		}
		ok, err := done(&e.service.Run)
		st, changed := c.status(e), e.changed
		c.mu.Unlock()
		if ok {
			return st, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ntstatus.Errorf(op, name, ntstatus.Of(ctx.Err()), "the service is %s: %s", State(st.State), st.Explain.Reason)
		}
	}
}

func (s *server) StopService(ctx context.Context, r *scmpb.StopServiceRequest) (*scmpb.ServiceStatus, error) {
	const op = "scm.StopService"
	st, err := s.c.control(ctx, op, r.Name, controlStop, r.Dependents)
	if err != nil || !r.Wait {
		return st, err
	}
	st, err = s.c.await(ctx, op, r.Name, func(run *Run) (bool, error) {
		return run.State == Stopped || run.State.up() && !run.StopWanted, nil
	})
	switch {
	case errors.Is(err, ntstatus.ServiceDoesNotExist): // it was marked for deletion, and is gone
		return &scmpb.ServiceStatus{Name: r.Name, State: scmpb.ServiceState(Stopped)}, nil
	case err == nil && State(st.State) != Stopped:
		return st, ntstatus.Errorf(op, r.Name, ntstatus.ServiceCannotAcceptControl, "it refused to stop")
	}
	return st, err
}

func (s *server) PauseContinueService(ctx context.Context, r *scmpb.ControlRequest) (*scmpb.ServiceStatus, error) {
	switch r.Control {
	case controlPause, controlContinue, controlParamChange:
		return s.c.control(ctx, statusOp("PauseContinueService"), r.Name, r.Control, false)
	}
	return nil, ntstatus.Errorf(statusOp("PauseContinueService"), r.Name, ntstatus.InvalidParameter, "control %d", r.Control)
}

func (s *server) InterrogateService(ctx context.Context, r *scmpb.ServiceRequest) (*scmpb.ServiceStatus, error) {
	return s.c.control(ctx, statusOp("InterrogateService"), r.Name, controlInterrogate, false)
}

func (s *server) UserControlService(ctx context.Context, r *scmpb.ControlRequest) (*scmpb.ServiceStatus, error) {
	if r.Control < controlUserFirst || r.Control > controlUserLast {
		return nil, ntstatus.Errorf(statusOp("UserControlService"), r.Name, ntstatus.InvalidParameter, "control %d", r.Control)
	}
	return s.c.control(ctx, statusOp("UserControlService"), r.Name, r.Control, false)
}

// control sends a control and, for a native service, waits for its handler's answer: each service for itself, so that one that hangs
// delays nobody else.
func (c *controller) control(ctx context.Context, op, name string, control uint32, dependents bool) (*scmpb.ServiceStatus, error) {
	var id, process uint64
	var answer chan uint32
	st, err := c.answer(op, name, func(now time.Time, e *entry) error {
		c.nextID++
		id = c.nextID
		native := e.service.Config.Kind == scmpb.ServiceKind_SERVICE_KIND_NATIVE && e.service.Run.Process != 0
		if err := c.machine.Control(now, e.service.Key, control, id, dependents); err != nil {
			return err
		}
		if process = e.service.Run.Process; native && !e.service.Run.StopWanted {
			answer = make(chan uint32, 1)
			c.answers[id] = answer
		}
		return nil
	})
	if err != nil || answer == nil {
		return st, err
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.answers, id)
	}()
	wait, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	st, err = c.await(wait, op, name, func(run *Run) (bool, error) {
		select {
		case code := <-answer:
			if code != 0 {
				return true, ntstatus.Errorf(op, name, win32Status(code), "the service's handler refused control %d", control)
			}
			return true, nil
		default:
			return run.Process != process, nil // it has ended, which answers a stop
		}
	})
	switch {
	case ctx.Err() == nil && wait.Err() != nil:
		return nil, ntstatus.New(op, name, ntstatus.ServiceRequestTimeout)
	case errors.Is(err, ntstatus.ServiceDoesNotExist): // it was marked for deletion
		return &scmpb.ServiceStatus{Name: name, State: scmpb.ServiceState(Stopped)}, nil
	case err == nil && State(st.State) == Stopped && control != controlStop:
		return nil, ntstatus.New(op, name, ntstatus.ServiceNotActive)
	}
	return st, err
}

// DeleteService marks on disk first, so that the mark survives what it acknowledges.
func (s *server) DeleteService(_ context.Context, r *scmpb.ServiceRequest) (*scmpb.ServiceStatus, error) {
	const op = "scm.DeleteService"
	c := s.c
	c.admin.Lock()
	defer c.admin.Unlock()
	c.mu.Lock()
	e, err := c.find(op, r.Name)
	if err == nil && e.service.Config.DeletePending {
		err = ntstatus.New(op, r.Name, ntstatus.ServiceMarkedForDelete)
	}
	var record *scmpb.ServiceRecord
	if err == nil {
		record = &scmpb.ServiceRecord{Config: shown(e), SecurityDescriptor: e.record.SecurityDescriptor, Password: e.record.Password}
		record.Config.DeletePending = true
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := c.save(record); err != nil {
		return nil, ntstatus.Wrap(op, r.Name, err)
	}
	return c.answer(op, r.Name, func(now time.Time, e *entry) error {
		err := c.machine.Delete(now, e.service.Key)
		c.publish(&scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_DELETE_PENDING, Status: c.status(e)})
		return err
	})
}

func (s *server) EnumDependents(_ context.Context, r *scmpb.EnumDependentsRequest) (*scmpb.ListServicesResponse, error) {
	const op = "scm.EnumDependents"
	if r.State < scmpb.ServiceStateFilter_SERVICE_ACTIVE || r.State > scmpb.ServiceStateFilter_SERVICE_STATE_ALL {
		return nil, ntstatus.New(op, r.Name, ntstatus.InvalidParameter)
	}
	out := &scmpb.ListServicesResponse{}
	_, err := s.c.answer(op, r.Name, func(_ time.Time, e *entry) error {
		for _, d := range s.c.machine.Dependents(e.service) {
			if matches(r.State, d.Run.State) {
				out.Services = append(out.Services, s.c.status(s.c.entries[d]))
			}
		}
		return nil
	})
	return out, err
}

func (s *server) QueryServiceSecurity(_ context.Context, r *scmpb.ServiceRequest) (out *scmpb.ServiceSecurity, err error) {
	_, err = s.c.answer(statusOp("QueryServiceSecurity"), r.Name, func(_ time.Time, e *entry) error {
		out = &scmpb.ServiceSecurity{Name: e.service.Config.Name, SecurityDescriptor: e.descriptor.String()}
		return nil
	})
	return out, err
}

// SetServiceSecurity replaces the DACL. Another owner needs WRITE_OWNER.
func (s *server) SetServiceSecurity(ctx context.Context, r *scmpb.ServiceSecurity) (*scmpb.ServiceSecurity, error) {
	const op = "scm.SetServiceSecurity"
	c := s.c
	c.admin.Lock()
	defer c.admin.Unlock()
	c.mu.Lock()
	e, err := c.find(op, r.Name)
	var old *security.Descriptor
	var record *scmpb.ServiceRecord
	if err == nil {
		old, record = e.descriptor, e.record
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, err := parseDescriptor(op, r.Name, r.SecurityDescriptor, old)
	if err != nil {
		return nil, err
	}
	if (d.Owner != old.Owner || d.Group != old.Group) && !allowed(ctx, old, security.WriteOwner) {
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.AccessDenied, "another owner or group needs WRITE_OWNER")
	}
	changed := &scmpb.ServiceRecord{Config: record.Config, SecurityDescriptor: d.String(), Password: record.Password}
	if err := c.save(changed); err != nil {
		return nil, ntstatus.Wrap(op, r.Name, err)
	}
	_, err = c.answer(op, r.Name, func(_ time.Time, e *entry) error { e.record, e.descriptor = changed, d; return nil })
	return &scmpb.ServiceSecurity{Name: r.Name, SecurityDescriptor: changed.SecurityDescriptor}, err
}

// ReadServiceLog waits for a log that does not exist yet only if it follows.
func (s *server) ReadServiceLog(r *scmpb.ReadServiceLogRequest, stream grpc.ServerStreamingServer[scmpb.LogChunk]) error {
	const op = "scm.ReadServiceLog"
	c, ctx := s.c, stream.Context()
	tail := -1
	if r.Tail != nil {
		tail = int(min(*r.Tail, 1<<30))
	}
	for {
		c.mu.Lock()
		e, err := c.find(op, r.Name)
		var log *serviceLog
		var changed chan struct{}
		if err == nil {
			log, changed = e.log, e.changed
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if log == nil && !r.Follow { // what a service wrote in an earlier life of the machine is still there
			if log, err = c.openLogOf(e); err != nil {
				return err
			}
			defer log.close()
		}
		if log != nil {
			return log.read(ctx, tail, r.Follow, func(data []byte) error { return stream.Send(&scmpb.LogChunk{Data: data}) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *server) ListServices(_ context.Context, r *scmpb.ListServicesRequest) (*scmpb.ListServicesResponse, error) {
	if r.State < scmpb.ServiceStateFilter_SERVICE_ACTIVE || r.State > scmpb.ServiceStateFilter_SERVICE_STATE_ALL {
		return nil, ntstatus.Errorf(statusOp("ListServices"), "", ntstatus.InvalidParameter, "state: say SERVICE_ACTIVE, SERVICE_INACTIVE or SERVICE_STATE_ALL")
	}
	out := &scmpb.ListServicesResponse{}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, svc := range s.c.machine.All() {
		if matches(r.State, svc.Run.State) {
			out.Services = append(out.Services, s.c.status(s.c.entries[svc]))
		}
	}
	return out, nil
}

func (s *server) WatchServices(r *scmpb.WatchServicesRequest, stream grpc.ServerStreamingServer[scmpb.ServiceEvent]) error {
	const op = "scm.WatchServices"
	c := s.c
	w := c.watch(r.Name)
	defer c.unwatch(w)
	var snapshot []*scmpb.ServiceEvent
	c.mu.Lock()
	for _, svc := range c.machine.All() {
		if w.name == "" || w.name == svc.Key {
			snapshot = append(snapshot, &scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_STATUS, Status: c.status(c.entries[svc])})
		}
	}
	c.mu.Unlock()
	for _, e := range append(snapshot, &scmpb.ServiceEvent{Kind: scmpb.ServiceEvent_SNAPSHOT_END}) {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	for {
		select {
		case e, ok := <-w.events:
			if !ok {
				return ntstatus.Errorf(op, r.Name, ntstatus.MessageLost, "more than %d events were not read", watchBuffer)
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *server) GetServiceKeyName(_ context.Context, r *scmpb.ServiceNameRequest) (*scmpb.ServiceNameRequest, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, svc := range s.c.machine.All() {
		if Fold(svc.Config.DisplayName) == Fold(r.Name) {
			return &scmpb.ServiceNameRequest{Name: svc.Config.Name}, nil
		}
	}
	return nil, ntstatus.New(statusOp("GetServiceKeyName"), clip(r.Name), ntstatus.ServiceDoesNotExist)
}

func (s *server) GetServiceDisplayName(_ context.Context, r *scmpb.ServiceNameRequest) (*scmpb.ServiceNameRequest, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	e, err := s.c.find(statusOp("GetServiceDisplayName"), r.Name)
	if err != nil {
		return nil, err
	}
	return &scmpb.ServiceNameRequest{Name: e.service.Config.DisplayName}, nil
}

// LockServiceDatabase holds the lock until the stream ends: a client that dies can't keep it.
func (s *server) LockServiceDatabase(_ *scmpb.LockServiceDatabaseRequest, stream grpc.ServerStreamingServer[scmpb.LockStatus]) error {
	const op = "scm.LockServiceDatabase"
	c, ctx := s.c, stream.Context()
	caller, ok := rpc.Caller(ctx)
	if !ok {
		return ntstatus.New(op, "", ntstatus.AccessDenied)
	}
	holder := &lockHolder{owner: caller.Token.User.SID.String(), connection: caller.Connection, since: time.Now(), released: make(chan struct{})}
	c.mu.Lock()
	taken := c.lock != nil
	if !taken {
		c.lock = holder
		c.machine.Lock(true)
	}
	c.mu.Unlock()
	if taken {
		return ntstatus.New(op, "", ntstatus.ServiceDatabaseLocked)
	}
	defer c.unlock(func(h *lockHolder) bool { return h == holder })
	if err := stream.Send(&scmpb.LockStatus{Locked: true, Owner: holder.owner}); err != nil {
		return err
	}
	select {
	case <-holder.released:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unlock releases the database lock if it is the one that is meant.
func (c *controller) unlock(meant func(*lockHolder) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock == nil || !meant(c.lock) {
		return false
	}
	close(c.lock.released)
	c.lock = nil
	c.machine.Lock(false)
	return true
}

func (s *server) UnlockServiceDatabase(ctx context.Context, _ *scmpb.LockServiceDatabaseRequest) (*scmpb.LockStatus, error) {
	caller, ok := rpc.Caller(ctx)
	if !ok || !s.c.unlock(func(h *lockHolder) bool { return h.connection == caller.Connection }) {
		return nil, ntstatus.New(statusOp("UnlockServiceDatabase"), "", mgr.InvalidServiceLock)
	}
	return &scmpb.LockStatus{}, nil
}

func (s *server) QueryServiceLockStatus(context.Context, *scmpb.LockServiceDatabaseRequest) (*scmpb.LockStatus, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.lock == nil {
		return &scmpb.LockStatus{}, nil
	}
	return &scmpb.LockStatus{Locked: true, Owner: s.c.lock.owner, Seconds: uint32(time.Since(s.c.lock.since).Seconds())}, nil
}
