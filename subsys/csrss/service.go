package csrss

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/internal/pidfd"
	"sallyport/internal/pty"
	"sallyport/internal/scrollback"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/smss/sm"
)

const (
	maxSDDL      = 4 << 10
	maxDimension = 1000
	maxNoted     = 4 << 10 // bytes of a command line that lists show
	maxName      = 64
)

// service is the handlers of ClientServerRuntime. What a request names is found once, and the right is decided on what was found:
// the framework's check came before, and a name may have changed hands since.
type service struct {
	csrpb.UnimplementedClientServerRuntimeServer
	sys       *alpc.System
	keeper    *sm.Client
	session   uint32
	log       hclog.Logger
	consoles  *consoles
	processes *processes
	viewer    atomic.Uint64
	leaving   chan struct{} // closed when csrss stops: streams end once they have said what is left
}

// resolve is the framework's way to a console's descriptor. Who may do everything on the session learns that a name is not there.
func (s *service) resolve(_ context.Context, name string) (*security.Descriptor, error) {
	if c := s.consoles.find(name); c != nil {
		return c.security(), nil
	}
	return security.ParseSDDL(interfaceSDDL)
}

// open finds a console on which the caller has a right.
func (s *service) open(ctx context.Context, op, name string, right security.AccessMask) (*console, *alpc.Client, error) {
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, nil, err
	}
	c := s.consoles.find(name)
	if c == nil {
		return nil, nil, ntstatus.New(op, name, ntstatus.ObjectNameNotFound)
	}
	if d := c.check(caller.Token, right, false); !d.Allowed() {
		return nil, nil, s.denied(ctx, op, c, caller, right)
	}
	return c, caller, nil
}

// denied reports a refusal that the .proto could not state.
func (s *service) denied(ctx context.Context, op string, c *console, caller *alpc.Client, right security.AccessMask) error {
	d := c.check(caller.Token, right, true)
	denial := &ntstatus.Denial{Object: c.name, Right: rightNames().Describe(right)}
	id, err := s.sys.ReportDenial(ctx, alpc.Denial{
		Attachment: caller.Attachment, Op: op, Object: c.name, Right: denial.Right, Desired: right, Status: ntstatus.AccessDenied,
		Trace: d.Explain(), SecurityDescriptor: c.security().String(),
	})
	if err != nil {
		s.log.Warn("a denial could not be reported", "console", c.name, "error", err)
	}
	denial.Decision = id
	return &ntstatus.Error{Op: op, Object: c.name, Status: ntstatus.AccessDenied, Err: denial}
}

func callerOf(ctx context.Context, op string) (*alpc.Client, error) {
	caller, ok := rpc.Caller(ctx)
	if !ok || caller.Token == nil {
		return nil, ntstatus.Errorf(op, "", ntstatus.AccessDenied, "the caller is anonymous")
	}
	return caller, nil
}

// RegisterProcess: see csr.proto.
func (s *service) RegisterProcess(ctx context.Context, r *csrpb.RegisterProcessRequest) (*csrpb.RegisterProcessResponse, error) {
	const op = "csr.RegisterProcess"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	if len(r.Name) > maxName {
		return nil, ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "a name of %d bytes, at most %d are allowed", len(r.Name), maxName)
	}
	file, err := rpc.Handles(ctx).Take(r.Process)
	if err != nil {
		return nil, err
	}
	if file == nil {
		if file, err = openProcess(caller); err != nil {
			return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidCID, "the caller's process: %w", err)
		}
	}
	info, err := s.processes.add(ctx, file, record{Name: r.Name, User: caller.Token.User.SID, Registered: now()}, true)
	return &csrpb.RegisterProcessResponse{Process: info}, err
}

// openProcess returns a pidfd of the caller that outlives its connection: opened by number, proven by the one that the core gave.
func openProcess(caller *alpc.Client) (*os.File, error) {
	proven, err := pidfd.KeyOf(caller.PIDFD)
	if err != nil {
		return nil, err
	}
	file, err := pidfd.Open(caller.PID)
	if err != nil {
		return nil, err
	}
	if key, err := pidfd.KeyOf(file); err != nil || key != proven {
		file.Close()
		return nil, syscall.ESRCH
	}
	return file, nil
}

// ListProcesses: see csr.proto.
func (s *service) ListProcesses(context.Context, *csrpb.ListProcessesRequest) (*csrpb.ListProcessesResponse, error) {
	return &csrpb.ListProcessesResponse{Processes: s.processes.list()}, nil
}

// WatchExits: see csr.proto.
func (s *service) WatchExits(_ *csrpb.WatchExitsRequest, stream grpc.ServerStreamingServer[csrpb.ExitNotice]) error {
	exits, err := s.processes.watch()
	if err != nil {
		return err
	}
	defer s.processes.unwatch(exits)
	if err := stream.Send(&csrpb.ExitNotice{}); err != nil {
		return err
	}
	for {
		select {
		case <-s.leaving:
			return ntstatus.New("csr.WatchExits", "", ntstatus.PortDisconnected)
		case <-stream.Context().Done():
			return ntstatus.Wrap("csr.WatchExits", "", context.Cause(stream.Context()))
		case p, ok := <-exits:
			if !ok {
				return ntstatus.Errorf("csr.WatchExits", "", ntstatus.RPCServerTooBusy, "more than %d notices were waiting", maxExitNotices)
			}
			if err := stream.Send(&csrpb.ExitNotice{Process: p}); err != nil {
				return err
			}
		}
	}
}

// CreateConsole: see csr.proto.
func (s *service) CreateConsole(ctx context.Context, r *csrpb.CreateConsoleRequest) (*csrpb.CreateConsoleResponse, error) {
	const op = "csr.CreateConsole"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	size, err := sizeOf(op, r.Size)
	if err != nil {
		return nil, err
	}
	if size == (pty.Size{}) {
		size = pty.Size{Columns: 80, Rows: 24}
	}
	kept := int(r.ScrollbackBytes)
	if kept == 0 {
		kept = defaultKept
	}
	if kept < scrollback.MinSize || kept > scrollback.MaxSize {
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter,
			"scrollback of %d bytes: it may have %d to %d", kept, scrollback.MinSize, scrollback.MaxSize)
	}
	sd, err := descriptorOf(op, r.Name, r.Security, caller.Token, nil)
	if err != nil {
		return nil, err
	}
	if r.Command != nil && len(r.Command.Argv) == 0 {
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter, "a command needs at least its name")
	}
	owner := sd.Owner
	name, evicted, err := s.consoles.reserve(r.Name, owner, kept)
	for evicted != nil {
		s.consoles.remove(evicted)
		name, evicted, err = s.consoles.reserve(r.Name, owner, kept)
	}
	if err != nil {
		return nil, err
	}
	created := now()
	d := deposit{ID: fmt.Sprintf("%s%s/%d", consolePrefix, name, created), Owner: owner, Created: created, Kept: kept, Command: r.Command != nil}
	for room := maxNoted; r.Command != nil && len(d.Argv) < len(r.Command.Argv); {
		arg := r.Command.Argv[len(d.Argv)]
		if room -= len(arg) + 1; room < 0 {
			break
		}
		d.Argv = append(d.Argv, arg)
	}
	c, err := s.consoles.create(ctx, name, size, d, sd)
	if err != nil {
		s.consoles.put(name, nil)
		return nil, err
	}
	if r.Command != nil {
		if err := s.run(ctx, c, caller, r.Command); err != nil {
			s.consoles.remove(c)
			return nil, ntstatus.Wrap(op, name, err)
		}
	}
	return &csrpb.CreateConsoleResponse{Console: c.describe(true)}, nil
}

// run starts a console's command at smss under the caller's token, or the one that the caller may assign.
func (s *service) run(ctx context.Context, c *console, caller *alpc.Client, cmd *csrpb.Command) error {
	const op = "csr.CreateConsole"
	if caller.Context != 0 && caller.Level < security.LevelImpersonation {
		return ntstatus.Errorf(op, c.name, ntstatus.BadImpersonationLevel, "the caller speaks under a token that it may be known by, and not act")
	}
	token := caller.Token.TokenID
	if cmd.Token != 0 && security.LUID(cmd.Token) != token {
		if !caller.Token.Has(security.SeAssignPrimaryToken) {
			return ntstatus.Errorf(op, c.name, ntstatus.PrivilegeNotHeld, "to run under another token takes %s", security.SeAssignPrimaryToken)
		}
		token = security.LUID(cmd.Token)
	}
	own, err := s.sys.DuplicateToken(ctx, token, alpc.TokenDuplicate{Type: security.TokenPrimary})
	if err != nil {
		return err
	}
	defer s.sys.CloseToken(context.WithoutCancel(ctx), own.TokenID)
	terminal, err := c.openTerminal()
	if err != nil {
		return err
	}
	defer terminal.Close()
	env := cmd.Env
	if !hasVariable(env, "TERM") {
		env = append(env, "TERM=xterm-256color")
	}
	p, err := s.keeper.ExecPgm(ctx, sm.Program{Name: c.deposit.ID, Path: cmd.Argv[0], Args: cmd.Argv, Env: env, Dir: cmd.Cwd,
		Token: own.TokenID, Session: s.session, Terminal: terminal})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.process, c.pid = p.ID, p.PID
	closed := c.state == stateClosed
	c.mu.Unlock()
	if closed {
		p.PIDFD.Close()
		s.consoles.kill(p.ID, c.name)
		return ntstatus.Errorf(op, c.name, ntstatus.Cancelled, "it was closed while its command started")
	}
	if _, err := s.processes.add(ctx, p.PIDFD, record{Name: c.name, User: caller.Token.User.SID, Registered: now()}, false); err != nil {
		s.log.Warn("a console's command is not in the process table", "console", c.name, "error", err)
	}
	return nil
}

func hasVariable(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

// AttachConsole: see csr.proto. The goroutine of the call sends; another receives, and types without queueing: a console whose
// programs don't read holds its viewer's next message back, by the stream's own flow control.
func (s *service) AttachConsole(stream grpc.BidiStreamingServer[csrpb.AttachConsoleRequest, csrpb.AttachConsoleResponse]) error {
	const op = "csr.AttachConsole"
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	attach := first.GetAttach()
	if attach == nil {
		return ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "the first message must be attach")
	}
	size, err := sizeOf(op, attach.Size)
	if err != nil {
		return err
	}
	right := rightRead
	if !attach.ReadOnly {
		right |= rightWrite
	}
	c, caller, err := s.open(stream.Context(), op, attach.Name, right)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	v := &viewer{id: s.viewer.Add(1), token: caller.Token, pid: caller.PID, writing: !attach.ReadOnly, cancel: cancel}
	if err := c.attach(v); err != nil {
		cancel()
		return err
	}
	if v.writing && size != (pty.Size{}) {
		if err := c.resize(size); err != nil {
			s.log.Warn("a viewer's size was not set", "console", c.name, "error", err)
		}
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(ctx, c, v, stream) }()
	defer func() {
		cancel()
		c.leave(v)
	}()
	return s.send(c, v, attach, stream, received)
}

// receive takes what a viewer sends, until it detaches (nil) or breaks off.
func (s *service) receive(ctx context.Context, c *console, v *viewer, stream grpc.BidiStreamingServer[csrpb.AttachConsoleRequest, csrpb.AttachConsoleResponse]) error {
	const op = "csr.AttachConsole"
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) { // it types no more, and may go on watching
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if _, ok := m.Message.(*csrpb.AttachConsoleRequest_Detach); ok {
			c.detach(v.id)
			return nil
		}
		if !v.writing {
			return ntstatus.Errorf(op, c.name, ntstatus.AccessDenied, "this viewer attached read-only")
		}
		switch m := m.Message.(type) {
		case *csrpb.AttachConsoleRequest_Input:
			if len(m.Input) > csr.MaxInput {
				return ntstatus.Errorf(op, c.name, ntstatus.InvalidParameter, "input of %d bytes, at most %d are allowed", len(m.Input), csr.MaxInput)
			}
			err = c.input(ctx, m.Input)
			if ntstatus.Of(err) == ntstatus.ObjectNameNotFound {
				err = nil // the console has ended; the sender says so
			}
		case *csrpb.AttachConsoleRequest_Resize:
			var size pty.Size
			if size, err = sizeOf(op, m.Resize); err == nil && size != (pty.Size{}) {
				err = c.resize(size)
			}
		default:
			err = ntstatus.Errorf(op, c.name, ntstatus.InvalidParameter, "neither input, nor a size, nor detach")
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// send shows a viewer the console's output until the end of the attachment. A viewer's backlog is the ring and nothing else: one
// that is slower than the console loses the oldest output, and is told.
func (s *service) send(c *console, v *viewer, attach *csrpb.Attach, stream grpc.BidiStreamingServer[csrpb.AttachConsoleRequest, csrpb.AttachConsoleResponse], received <-chan error) error {
	described := c.describe(c.check(v.token, security.ReadControl, false).Allowed())
	position := attach.From
	if position > described.End { // of another console that had the name
		position = 0
	}
	if attach.NoReplay {
		position = described.End
	}
	if err := stream.Send(&csrpb.AttachConsoleResponse{Message: &csrpb.AttachConsoleResponse_Attached{
		Attached: &csrpb.Attached{Viewer: v.id, Console: described}}}); err != nil {
		return err
	}
	told := pty.Size{Columns: uint16(described.Size.Columns), Rows: uint16(described.Size.Rows)}
	fresh := position == 0 // asks for all that is kept: nothing is lost to it
	buffer := make([]byte, csr.MaxInput)
	for {
		more := c.ring.Changed()
		w := c.view(v)
		if w.ended != nil && w.ended.Reason != csrpb.Ended_COMMAND_ENDED {
			return stream.Send(&csrpb.AttachConsoleResponse{Message: &csrpb.AttachConsoleResponse_Ended{Ended: w.ended}})
		}
		var m csrpb.AttachConsoleResponse
		n, at := c.ring.ReadAt(buffer, position)
		switch {
		case w.size != told:
			told = w.size
			m.Message = &csrpb.AttachConsoleResponse_Resized{Resized: &csrpb.Size{Columns: uint32(told.Columns), Rows: uint32(told.Rows)}}
		case at > position && !fresh:
			m.Message = &csrpb.AttachConsoleResponse_Lost{Lost: &csrpb.Lost{Bytes: at - position, Position: at}}
			position = at
		case n > 0:
			m.Message = &csrpb.AttachConsoleResponse_Output{Output: &csrpb.Output{Position: at, Data: buffer[:n]}}
			position, fresh = at+uint64(n), false
		case w.ended != nil:
			return stream.Send(&csrpb.AttachConsoleResponse{Message: &csrpb.AttachConsoleResponse_Ended{Ended: w.ended}})
		default:
			fresh = false
			select {
			case <-more:
			case <-w.changed:
			case err := <-received:
				if received = nil; err != nil {
					return err
				}
			case <-s.leaving:
				return ntstatus.New("csr.AttachConsole", c.name, ntstatus.PortDisconnected) // as if it were gone already
			case <-stream.Context().Done():
				return ntstatus.Wrap("csr.AttachConsole", c.name, context.Cause(stream.Context()))
			}
			continue
		}
		if err := stream.Send(&m); err != nil {
			return err
		}
	}
}

// DetachConsole: see csr.proto.
func (s *service) DetachConsole(ctx context.Context, r *csrpb.DetachConsoleRequest) (*csrpb.DetachConsoleResponse, error) {
	c, _, err := s.open(ctx, "csr.DetachConsole", r.Name, rightWrite)
	if err != nil {
		return nil, err
	}
	n := c.detach(r.Viewer)
	if n == 0 && r.Viewer != 0 {
		return nil, ntstatus.Errorf("csr.DetachConsole", r.Name, ntstatus.NotFound, "it has no viewer %d", r.Viewer)
	}
	return &csrpb.DetachConsoleResponse{Detached: uint32(n)}, nil
}

// WriteConsole: see csr.proto.
func (s *service) WriteConsole(ctx context.Context, r *csrpb.WriteConsoleRequest) (*csrpb.WriteConsoleResponse, error) {
	const op = "csr.WriteConsole"
	c, _, err := s.open(ctx, op, r.Name, rightWrite)
	if err != nil {
		return nil, err
	}
	if len(r.Data) > csr.MaxInput {
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter, "input of %d bytes, at most %d are allowed", len(r.Data), csr.MaxInput)
	}
	return &csrpb.WriteConsoleResponse{}, c.input(ctx, r.Data)
}

// ResizeConsole: see csr.proto.
func (s *service) ResizeConsole(ctx context.Context, r *csrpb.ResizeConsoleRequest) (*csrpb.ResizeConsoleResponse, error) {
	const op = "csr.ResizeConsole"
	c, _, err := s.open(ctx, op, r.Name, rightWrite)
	if err != nil {
		return nil, err
	}
	size, err := sizeOf(op, r.Size)
	if err == nil && size == (pty.Size{}) {
		err = ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter, "the size is missing")
	}
	if err != nil {
		return nil, err
	}
	return &csrpb.ResizeConsoleResponse{}, c.resize(size)
}

// ListConsoles: see csr.proto.
func (s *service) ListConsoles(ctx context.Context, _ *csrpb.ListConsolesRequest) (*csrpb.ListConsolesResponse, error) {
	caller, err := callerOf(ctx, "csr.ListConsoles")
	if err != nil {
		return nil, err
	}
	resp := &csrpb.ListConsolesResponse{}
	for _, c := range s.consoles.list() {
		if c.check(caller.Token, rightQuery, false).Allowed() {
			resp.Consoles = append(resp.Consoles, c.describe(c.check(caller.Token, security.ReadControl, false).Allowed()))
		}
	}
	return resp, nil
}

// QueryConsole: see csr.proto.
func (s *service) QueryConsole(ctx context.Context, r *csrpb.QueryConsoleRequest) (*csrpb.QueryConsoleResponse, error) {
	c, caller, err := s.open(ctx, "csr.QueryConsole", r.Name, rightQuery)
	if err != nil {
		return nil, err
	}
	return &csrpb.QueryConsoleResponse{Console: c.describe(c.check(caller.Token, security.ReadControl, false).Allowed())}, nil
}

// ReadScrollback: see csr.proto.
func (s *service) ReadScrollback(ctx context.Context, r *csrpb.ReadScrollbackRequest) (*csrpb.ReadScrollbackResponse, error) {
	c, _, err := s.open(ctx, "csr.ReadScrollback", r.Name, rightRead)
	if err != nil {
		return nil, err
	}
	limit := int(r.MaxBytes)
	if limit <= 0 || limit > csr.MaxInput {
		limit = csr.MaxInput
	}
	p := make([]byte, limit)
	n, at := c.ring.ReadAt(p, r.From)
	_, end := c.ring.Bounds()
	return &csrpb.ReadScrollbackResponse{Position: at, Data: p[:n], End: end}, nil
}

// OpenConsoleTerminal: see csr.proto.
func (s *service) OpenConsoleTerminal(ctx context.Context, r *csrpb.OpenConsoleTerminalRequest) (*csrpb.OpenConsoleTerminalResponse, error) {
	c, _, err := s.open(ctx, "csr.OpenConsoleTerminal", r.Name, rightTerminal)
	if err != nil {
		return nil, err
	}
	f, err := c.openTerminal()
	if err != nil {
		return nil, err
	}
	return &csrpb.OpenConsoleTerminalResponse{Terminal: rpc.Handles(ctx).Give(f)}, nil
}

// SetConsoleSecurity: see csr.proto.
func (s *service) SetConsoleSecurity(ctx context.Context, r *csrpb.SetConsoleSecurityRequest) (*csrpb.SetConsoleSecurityResponse, error) {
	const op = "csr.SetConsoleSecurity"
	c, caller, err := s.open(ctx, op, r.Name, security.WriteDAC)
	if err != nil {
		return nil, err
	}
	if r.Security == "" {
		return nil, ntstatus.Errorf(op, r.Name, ntstatus.InvalidSecurityDescr, "the descriptor is missing")
	}
	sd, err := descriptorOf(op, r.Name, r.Security, caller.Token, c.security())
	if err != nil {
		return nil, err
	}
	return &csrpb.SetConsoleSecurityResponse{}, s.consoles.setSecurity(ctx, c, sd)
}

// CloseConsole: see csr.proto.
func (s *service) CloseConsole(ctx context.Context, r *csrpb.CloseConsoleRequest) (*csrpb.CloseConsoleResponse, error) {
	c, _, err := s.open(ctx, "csr.CloseConsole", r.Name, security.Delete)
	if err != nil {
		return nil, err
	}
	s.consoles.remove(c)
	return &csrpb.CloseConsoleResponse{}, nil
}

// sizeOf reads a size; none is the zero value.
func sizeOf(op string, s *csrpb.Size) (pty.Size, error) {
	if s.GetColumns() == 0 && s.GetRows() == 0 {
		return pty.Size{}, nil
	}
	if s.Columns < 1 || s.Rows < 1 || s.Columns > maxDimension || s.Rows > maxDimension {
		return pty.Size{}, ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "a size of %d columns and %d rows: each may be 1 to %d", s.Columns, s.Rows, maxDimension)
	}
	return pty.Size{Columns: uint16(s.Columns), Rows: uint16(s.Rows)}, nil
}

// descriptorOf reads a console's descriptor from a request. What it leaves out comes from the one in force, or the caller's token.
func descriptorOf(op, name, sddl string, token *security.Token, current *security.Descriptor) (*security.Descriptor, error) {
	if len(sddl) > maxSDDL {
		return nil, ntstatus.Errorf(op, name, ntstatus.InvalidSecurityDescr, "a descriptor of %d bytes, at most %d are allowed", len(sddl), maxSDDL)
	}
	owner, group := token.DefaultOwner(), token.PrimaryGroup
	if group.IsZero() {
		group = owner
	}
	if current != nil {
		owner, group = current.Owner, current.Group
	}
	if sddl == "" {
		dacl := &security.ACL{}
		for _, sid := range []security.SID{owner, security.LogonSID(token.AuthenticationID), security.Administrators(), security.LocalSystem()} {
			if entry := security.Allow(sid, allRights); !slices.Contains(dacl.ACEs, entry) {
				dacl.ACEs = append(dacl.ACEs, entry)
			}
		}
		return &security.Descriptor{Owner: owner, Group: group, DACL: dacl}, nil
	}
	sd, err := security.ParseSDDL(sddl)
	if err != nil {
		return nil, ntstatus.Wrap(op, name, err)
	}
	switch {
	case sd.Owner.IsZero():
		sd.Owner = owner
	case sd.Owner != owner && !token.MayOwn(sd.Owner) && !token.Has(security.SeRestore):
		return nil, ntstatus.Errorf(op, name, ntstatus.InvalidOwner, "%s may not make %s an owner", token.User.SID, sd.Owner)
	}
	if sd.Group.IsZero() {
		sd.Group = group
	}
	if sd.HasSACL() && !token.Has(security.SeSecurity) {
		return nil, ntstatus.Errorf(op, name, ntstatus.PrivilegeNotHeld, "a SACL takes %s", security.SeSecurity)
	}
	return sd, nil
}
