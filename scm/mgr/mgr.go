// Package mgr is the client of the service controller (scm) for programs that control services: sc, installers, tests.
//
// The controller decides about every call by the caller's token; a handle's granted mask is checked here only so that a program
// gets the same answer from a handle as on NT. What the controller sends is trusted. Manager, Service and Lock hold no lock
// and are safe for concurrent use; closing one ends its calls' right to succeed, not the calls.
package mgr

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
	"sallyport/security"
)

// PortName is where the controller listens.
const PortName = `\RPC Control\ntsvcs`

// Rights on the manager (MS-SCMR 3.1.4).
const (
	ManagerConnect         security.AccessMask = 0x01
	ManagerCreateService   security.AccessMask = 0x02
	ManagerEnumerate       security.AccessMask = 0x04
	ManagerLock            security.AccessMask = 0x08
	ManagerQueryLockStatus security.AccessMask = 0x10
	ManagerModifyBoot      security.AccessMask = 0x20
	ManagerAllAccess       security.AccessMask = 0xF003F
)

// Rights on a service (MS-SCMR 3.1.4).
const (
	QueryConfig         security.AccessMask = 0x001
	ChangeConfig        security.AccessMask = 0x002
	QueryStatus         security.AccessMask = 0x004
	EnumerateDependents security.AccessMask = 0x008
	Start               security.AccessMask = 0x010
	Stop                security.AccessMask = 0x020
	PauseContinue       security.AccessMask = 0x040
	Interrogate         security.AccessMask = 0x080
	UserDefinedControl  security.AccessMask = 0x100
	ReadLog             security.AccessMask = 0x200 // ours
	AllAccess           security.AccessMask = 0xF03FF
)

// ServiceMapping says what the generic rights mean for a service; ManagerMapping for the manager.
func ServiceMapping() security.GenericMapping {
	return security.GenericMapping{
		Read:    security.ReadControl | QueryConfig | QueryStatus | Interrogate | EnumerateDependents,
		Write:   security.ReadControl | ChangeConfig,
		Execute: security.ReadControl | Start | Stop | PauseContinue | UserDefinedControl,
		All:     AllAccess,
	}
}

// ManagerMapping is the manager's; see ServiceMapping.
func ManagerMapping() security.GenericMapping {
	return security.GenericMapping{Read: 0x20014, Write: 0x20022, Execute: 0x20009, All: ManagerAllAccess}
}

// closeTimeout bounds the wait for the answer to a close: the handle ends without it, too.
const closeTimeout = 5 * time.Second

// Controls that a client may send (winsvc.h). 128 to 255 are the service's own.
const (
	ControlStop        uint32 = 1
	ControlPause       uint32 = 2
	ControlContinue    uint32 = 3
	ControlInterrogate uint32 = 4
	ControlParamChange uint32 = 6
	ControlUserFirst   uint32 = 128
	ControlUserLast    uint32 = 255
)

// InvalidServiceLock is ERROR_INVALID_SERVICE_LOCK.
const InvalidServiceLock ntstatus.Status = 0xC0070000 | 1071

// Manager is a connection to the controller (NT: OpenSCManager).
type Manager struct {
	conn  io.Closer
	stub  scmpb.ServiceControlManagerClient
	hold  *hold
	limit security.AccessMask // what this handle is good for
}

// Connect connects to the controller of sys's instance. The caller closes the Manager.
func Connect(ctx context.Context, sys *alpc.System) (*Manager, error) {
	conn, err := rpc.Dial(ctx, sys, PortName)
	if err != nil {
		return nil, ntstatus.Wrap("mgr.Connect", PortName, err)
	}
	return &Manager{conn: conn, stub: scmpb.NewServiceControlManagerClient(conn), hold: &hold{}, limit: ManagerAllAccess}, nil
}

// Limit returns a handle on the same connection that is good for these rights only, as NT's OpenSCManager takes them; generic rights
// are allowed. The controller grants no more than the caller has, whatever is said here.
func (m *Manager) Limit(rights security.AccessMask) *Manager {
	return &Manager{conn: m.conn, stub: m.stub, hold: m.hold, limit: m.limit & ManagerMapping().Map(rights)}
}

// need is how a handle answers before the controller is asked.
func (m *Manager) need(op string, right security.AccessMask) error {
	switch {
	case m == nil || m.stub == nil:
		return ntstatus.New(op, "", ntstatus.InvalidHandle)
	case m.limit&right != right:
		return ntstatus.Errorf(op, "", ntstatus.AccessDenied, "the handle is not good for right 0x%x", uint32(right))
	}
	return nil
}

// Close ends the connection and with it every handle and lock that came from it.
func (m *Manager) Close() error { return m.conn.Close() }

// CreateOptions are what a new service's record doesn't keep.
type CreateOptions struct {
	Password   []byte              // of the account, where it needs one
	Descriptor string              // SDDL; empty: the default
	Access     security.AccessMask // of the returned handle, as in OpenService; 0 is a handle that can only be closed
}

// CreateService adds a service and opens it (NT: CreateService). Statuses: INVALID_NAME, SERVICE_EXISTS,
// DUPLICATE_SERVICE_NAME (of a display name), INVALID_PARAMETER, CIRCULAR_DEPENDENCY, INVALID_SERVICE_ACCOUNT,
// SERVICE_MARKED_FOR_DELETE.
func (m *Manager) CreateService(ctx context.Context, config *scmpb.ServiceConfig, o CreateOptions) (*Service, error) {
	if err := m.need("mgr.CreateService", ManagerCreateService); err != nil {
		return nil, err
	}
	created, err := m.stub.CreateService(ctx, &scmpb.CreateServiceRequest{Config: config, Password: o.Password, SecurityDescriptor: o.Descriptor})
	if err != nil {
		return nil, err
	}
	return m.OpenService(ctx, created.Name, o.Access)
}

// OpenService opens a service for desired rights (NT: OpenService); generic rights and security.MaximumAllowed are allowed.
// While the handle is open the service's record doesn't vanish. The caller closes it.
func (m *Manager) OpenService(ctx context.Context, name string, desired security.AccessMask) (*Service, error) {
	if err := m.need("mgr.OpenService", 0); err != nil {
		return nil, err
	}
	for again := true; ; again = false {
		if err := m.hold.ensure(ctx, m.stub); err != nil {
			return nil, err
		}
		opened, err := m.stub.OpenService(ctx, &scmpb.OpenServiceRequest{Name: name, DesiredAccess: uint32(desired)})
		if again && errors.Is(err, ntstatus.InvalidDeviceState) {
			m.hold.drop(m.hold.number()) // the controller was restarted, and this side had not noticed
			continue
		}
		if err != nil {
			return nil, err
		}
		return &Service{m: m, name: opened.Name, id: opened.Handle, granted: security.AccessMask(opened.GrantedAccess)}, nil
	}
}

// hold is the stream that keeps a connection's handles, opened with the first of them. It is replaced when it ends, as it does
// with a controller that is restarted.
type hold struct {
	turn    sync.Mutex // held while a stream is opened
	mu      sync.Mutex // guards what follows; a leaf
	release context.CancelFunc
	streams int // how many there were
}

func (h *hold) number() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams
}

func (h *hold) ensure(ctx context.Context, stub scmpb.ServiceControlManagerClient) error {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.mu.Lock()
	held := h.release != nil
	h.mu.Unlock()
	if held {
		return nil
	}
	life, release := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, release)
	defer stop()
	stream, err := stub.HoldHandles(life, &scmpb.HoldHandlesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		release()
		return err
	}
	h.mu.Lock()
	h.release = release
	h.streams++
	number := h.streams
	h.mu.Unlock()
	go func() {
		_, _ = stream.Recv() // nothing more comes but the end
		h.drop(number)
	}()
	return nil
}

// drop ends the stream of that number, if it is still the one.
func (h *hold) drop(number int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.release != nil && h.streams == number {
		h.release()
		h.release = nil
	}
}

// Services lists the services in the given states, sorted by name (NT: EnumServicesStatusEx, whose order of checks it keeps:
// the state before the handle).
func (m *Manager) Services(ctx context.Context, state scmpb.ServiceStateFilter) ([]*scmpb.ServiceStatus, error) {
	if state < scmpb.ServiceStateFilter_SERVICE_ACTIVE || state > scmpb.ServiceStateFilter_SERVICE_STATE_ALL {
		return nil, ntstatus.New("mgr.Services", "", ntstatus.InvalidParameter)
	}
	if err := m.need("mgr.Services", ManagerEnumerate); err != nil {
		return nil, err
	}
	resp, err := m.stub.ListServices(ctx, &scmpb.ListServicesRequest{State: state})
	return resp.GetServices(), err
}

// Watch calls f with the present status of the named service (of all for ""), with a SNAPSHOT_END, then with every change, until
// ctx ends, the controller goes or f fails; f's error is returned as it is. MESSAGE_LOST: f was too slow.
func (m *Manager) Watch(ctx context.Context, name string, f func(*scmpb.ServiceEvent) error) error {
	if err := m.need("mgr.Watch", ManagerEnumerate); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := m.stub.WatchServices(ctx, &scmpb.WatchServicesRequest{Name: name})
	if err != nil {
		return err
	}
	return each(stream, f)
}

// KeyName finds the name of the service with the display name; DisplayName the reverse. SERVICE_DOES_NOT_EXIST.
func (m *Manager) KeyName(ctx context.Context, display string) (string, error) {
	if err := m.need("mgr.KeyName", 0); err != nil {
		return "", err
	}
	resp, err := m.stub.GetServiceKeyName(ctx, &scmpb.ServiceNameRequest{Name: display})
	return resp.GetName(), err
}

// DisplayName finds the display name of a service.
func (m *Manager) DisplayName(ctx context.Context, name string) (string, error) {
	if err := m.need("mgr.DisplayName", 0); err != nil {
		return "", err
	}
	resp, err := m.stub.GetServiceDisplayName(ctx, &scmpb.ServiceNameRequest{Name: name})
	return resp.GetName(), err
}

// Lock is the database lock: while it is held no service starts (NT: LockServiceDatabase).
type Lock struct {
	m       *Manager
	release context.CancelFunc
	closed  atomic.Bool
}

// LockDatabase takes the lock; SERVICE_DATABASE_LOCKED while somebody has it.
func (m *Manager) LockDatabase(ctx context.Context) (*Lock, error) {
	if err := m.need("mgr.LockDatabase", ManagerLock); err != nil {
		return nil, err
	}
	hold, release := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, release)
	defer stop()
	stream, err := m.stub.LockServiceDatabase(hold, &scmpb.LockServiceDatabaseRequest{})
	if err == nil {
		if _, err = stream.Recv(); err == nil {
			return &Lock{m: m, release: release}, nil
		}
	}
	release()
	return nil, err
}

// Unlock releases the lock, and returns when it is free; InvalidServiceLock if it was released before, or is nil.
func (l *Lock) Unlock() error {
	if l == nil || l.closed.Swap(true) {
		return ntstatus.New("mgr.Unlock", "", InvalidServiceLock)
	}
	defer l.release()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_, err := l.m.stub.UnlockServiceDatabase(ctx, &scmpb.LockServiceDatabaseRequest{})
	return gone(err)
}

// LockStatus says whether the database is locked, by whom and how long (NT: QueryServiceLockStatus).
func (m *Manager) LockStatus(ctx context.Context) (*scmpb.LockStatus, error) {
	if err := m.need("mgr.LockStatus", ManagerQueryLockStatus); err != nil {
		return nil, err
	}
	return m.stub.QueryServiceLockStatus(ctx, &scmpb.LockServiceDatabaseRequest{})
}

// Service is an open service.
type Service struct {
	m       *Manager
	name    string
	id      uint64
	granted security.AccessMask
	closed  atomic.Bool
}

// Name is the service's name as it was created.
func (s *Service) Name() string { return s.name }

// Granted is what the handle was opened for.
func (s *Service) Granted() security.AccessMask { return s.granted }

// Close lets go of the service, and returns when what was only kept for this handle is gone; INVALID_HANDLE if it was closed
// before. A controller that was restarted knows the handle no more, which is no error.
func (s *Service) Close() error {
	if s == nil || s.closed.Swap(true) {
		return ntstatus.New("mgr.Close", "", ntstatus.InvalidHandle)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_, err := s.m.stub.CloseServiceHandle(ctx, &scmpb.CloseServiceHandleRequest{Handle: s.id})
	if errors.Is(err, ntstatus.InvalidHandle) {
		return nil
	}
	return gone(err)
}

// gone drops the error of closing what ended with the connection.
func gone(err error) error {
	if ntstatus.Of(err).GRPCCode() == ntstatus.PortDisconnected.GRPCCode() {
		return nil
	}
	return err
}

// need is how a handle answers before the controller is asked.
func (s *Service) need(op string, right security.AccessMask) error {
	switch {
	case s == nil || s.closed.Load():
		return ntstatus.New(op, "", ntstatus.InvalidHandle)
	case s.granted&right != right:
		return ntstatus.Errorf(op, s.name, ntstatus.AccessDenied, "the handle was opened without right 0x%x", uint32(right))
	}
	return nil
}

// Start starts the service and what it depends on. With wait it returns when the service runs, or with the error that kept it
// from running; without, at START_PENDING. Statuses: SERVICE_ALREADY_RUNNING, SERVICE_DISABLED, SERVICE_DEPENDENCY_FAIL,
// SERVICE_DEPENDENCY_DELETED, CIRCULAR_DEPENDENCY, SERVICE_LOGON_FAILED, SERVICE_REQUEST_TIMEOUT, PROCESS_ABORTED,
// SERVICE_MARKED_FOR_DELETE, SERVICE_DATABASE_LOCKED, and those of the executable's path.
func (s *Service) Start(ctx context.Context, wait bool, args ...string) (*scmpb.ServiceStatus, error) {
	if err := s.need("mgr.Start", Start); err != nil {
		return nil, err
	}
	return s.m.stub.StartService(ctx, &scmpb.StartServiceRequest{Name: s.name, Arguments: args, Wait: wait})
}

// Stop stops the service, with dependents what depends on it first; with wait it returns when it has stopped. Statuses:
// SERVICE_NOT_ACTIVE, DEPENDENT_SERVICES_RUNNING, INVALID_SERVICE_CONTROL, SERVICE_CANNOT_ACCEPT_CTRL.
func (s *Service) Stop(ctx context.Context, dependents, wait bool) (*scmpb.ServiceStatus, error) {
	if err := s.need("mgr.Stop", Stop); err != nil {
		return nil, err
	}
	return s.m.stub.StopService(ctx, &scmpb.StopServiceRequest{Name: s.name, Dependents: dependents, Wait: wait})
}

// Control sends a control (NT: ControlService). Each needs its own right; a code that clients may not send is
// INVALID_PARAMETER.
func (s *Service) Control(ctx context.Context, control uint32) (*scmpb.ServiceStatus, error) {
	const op = "mgr.Control"
	var right security.AccessMask
	var call func() (*scmpb.ServiceStatus, error)
	switch req := (&scmpb.ControlRequest{Name: s.nameOrEmpty(), Control: control}); {
	case control == ControlStop:
		right, call = Stop, func() (*scmpb.ServiceStatus, error) { return s.Stop(ctx, false, false) }
	case control == ControlPause, control == ControlContinue, control == ControlParamChange:
		right, call = PauseContinue, func() (*scmpb.ServiceStatus, error) { return s.m.stub.PauseContinueService(ctx, req) }
	case control == ControlInterrogate:
		right, call = Interrogate, func() (*scmpb.ServiceStatus, error) {
			return s.m.stub.InterrogateService(ctx, &scmpb.ServiceRequest{Name: req.Name})
		}
	case control >= ControlUserFirst && control <= ControlUserLast:
		right, call = UserDefinedControl, func() (*scmpb.ServiceStatus, error) { return s.m.stub.UserControlService(ctx, req) }
	default:
		return nil, ntstatus.Errorf(op, s.nameOrEmpty(), ntstatus.InvalidParameter, "control %s is not for clients", strconv.Itoa(int(control)))
	}
	if err := s.need(op, right); err != nil {
		return nil, err
	}
	return call()
}

func (s *Service) nameOrEmpty() string {
	if s == nil {
		return ""
	}
	return s.name
}

// Query returns the service's status (NT: QueryServiceStatusEx).
func (s *Service) Query(ctx context.Context) (*scmpb.ServiceStatus, error) {
	if err := s.need("mgr.Query", QueryStatus); err != nil {
		return nil, err
	}
	return s.m.stub.QueryServiceStatus(ctx, s.request())
}

// Config returns the service's record (NT: QueryServiceConfig and QueryServiceConfig2 together).
func (s *Service) Config(ctx context.Context) (*scmpb.ServiceConfig, error) {
	if err := s.need("mgr.Config", QueryConfig); err != nil {
		return nil, err
	}
	return s.m.stub.QueryServiceConfig(ctx, s.request())
}

// Change sets the fields of change that are present; its name is the handle's. A failure action that restarts needs the right to
// start, too.
func (s *Service) Change(ctx context.Context, change *scmpb.ChangeServiceConfigRequest) (*scmpb.ServiceConfig, error) {
	if err := s.need("mgr.Change", ChangeConfig); err != nil {
		return nil, err
	}
	change.Name = s.name
	return s.m.stub.ChangeServiceConfig(ctx, change)
}

// Delete marks the service for deletion: its record vanishes when it is stopped and the last handle is closed.
func (s *Service) Delete(ctx context.Context) error {
	if err := s.need("mgr.Delete", security.Delete); err != nil {
		return err
	}
	_, err := s.m.stub.DeleteService(ctx, s.request())
	return err
}

// Dependents lists what depends on the service, directly or not, in the order in which it must be stopped.
func (s *Service) Dependents(ctx context.Context, state scmpb.ServiceStateFilter) ([]*scmpb.ServiceStatus, error) {
	if err := s.need("mgr.Dependents", EnumerateDependents); err != nil {
		return nil, err
	}
	resp, err := s.m.stub.EnumDependents(ctx, &scmpb.EnumDependentsRequest{Name: s.name, State: state})
	return resp.GetServices(), err
}

// Security returns the service's descriptor as SDDL; SetSecurity replaces it.
func (s *Service) Security(ctx context.Context) (string, error) {
	if err := s.need("mgr.Security", security.ReadControl); err != nil {
		return "", err
	}
	resp, err := s.m.stub.QueryServiceSecurity(ctx, s.request())
	return resp.GetSecurityDescriptor(), err
}

// SetSecurity replaces the service's DACL, and its owner and group where sddl names them.
func (s *Service) SetSecurity(ctx context.Context, sddl string) error {
	if err := s.need("mgr.SetSecurity", security.WriteDAC); err != nil {
		return err
	}
	_, err := s.m.stub.SetServiceSecurity(ctx, &scmpb.ServiceSecurity{Name: s.name, SecurityDescriptor: sddl})
	return err
}

// LogOptions say which part of a log is wanted.
type LogOptions struct {
	Follow bool
	Tail   int // the last so many lines; negative: all that is kept
}

// Log writes what the service wrote to its standard output and error to w. With Follow it goes on until ctx ends, which is
// no error, w fails or the controller goes.
func (s *Service) Log(ctx context.Context, w io.Writer, o LogOptions) error {
	if err := s.need("mgr.Log", ReadLog); err != nil {
		return err
	}
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &scmpb.ReadServiceLogRequest{Name: s.name, Follow: o.Follow}
	if o.Tail >= 0 {
		tail := uint32(o.Tail)
		req.Tail = &tail
	}
	stream, err := s.m.stub.ReadServiceLog(call, req)
	if err != nil {
		return err
	}
	err = each(stream, func(chunk *scmpb.LogChunk) error {
		_, err := w.Write(chunk.Data)
		return err
	})
	if o.Follow && ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Service) request() *scmpb.ServiceRequest { return &scmpb.ServiceRequest{Name: s.name} }

// each hands every message of a stream to f; the stream's end is no error.
func each[T any](stream grpc.ServerStreamingClient[T], f func(*T) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(message); err != nil {
			return err
		}
	}
}
