package smss

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/internal/fdkeep"
	"sallyport/internal/pidfd"
	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
	"sallyport/proto/smpb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

// Who may reach the port, and what they may do there. SM_KEEP is of use to servers only, whose tokens have Service; which
// server a caller is, smss proves itself.
const (
	portDescriptor    = "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;0x1;;;AU)"
	serviceDescriptor = "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;0x3;;;SU)(A;;0x1;;;AU)"
	usersCreate       = "(A;;0x4;;;BU)"
)

// pageHandles is how many files one answer carries.
const pageHandles = 48

// maxArguments bounds the bytes of a program's arguments and environment, below the kernel's own limit.
const maxArguments = 128 << 10

// service is proto/smpb.SessionManager.
type service struct {
	smpb.UnimplementedSessionManagerServer
	*manager
}

// serve opens the port; the returned function closes it.
func (m *manager) serve(ctx context.Context) (func(), error) {
	opening, cancel := context.WithTimeout(ctx, coreTimeout)
	defer cancel()
	l, err := m.o.System.Listen(opening, sm.PortName, alpc.PortAttributes{SecurityDescriptor: portDescriptor, HandleTypes: alpc.HandleAny})
	if err != nil {
		return nil, err
	}
	s := &service{manager: m}
	server := rpc.NewServer(rpc.ServerOptions{System: m.o.System, Logger: m.log.Named("rpc")})
	smpb.RegisterSessionManagerServer(server, s)
	sddl := serviceDescriptor
	if m.o.Config.UsersCreateSessions {
		sddl += usersCreate
	}
	server.Secure(smpb.SessionManager_ServiceDesc.ServiceName, rpc.Interface{SDDL: sddl, Resolve: s.resolve, Name: sm.PortName})
	server.OfferReflection(rpc.Interface{SDDL: serviceDescriptor, Name: sm.PortName})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(ctx, l); err != nil && ctx.Err() == nil && m.o.System.Err() == nil {
			m.log.Error("the port is no longer served", "error", err)
			m.post(shutdown{reason: "smss can't serve its port: " + err.Error(), code: 1})
		}
	}()
	return func() { server.Stop(); l.Close(); <-done }, nil
}

// resolve finds the descriptor of a session.
func (s *service) resolve(_ context.Context, name string) (*security.Descriptor, error) {
	id, err := strconv.ParseUint(name, 10, 32)
	s.mu.Lock()
	info := s.sessions[uint32(id)]
	s.mu.Unlock()
	if err != nil || info == nil || info.state == sessionEnded {
		return nil, ntstatus.New("sm.TerminateSession", "session "+name, ntstatus.NotFound)
	}
	return security.ParseSDDL(fmt.Sprintf("O:%sG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;0x9;;;%[1]s)", info.creator))
}

// owner proves which server the caller is: the token that smss made for that process alone, in that very process. Where the
// servers are parts of the program that embeds the core, the host's word and the server's SID stand for both.
func (s *service) owner(ctx context.Context, op string) (*instance, error) {
	c, ok := rpc.Caller(ctx)
	if !ok || c.Token == nil {
		return nil, s.refuse(ctx, op, sm.PortName, ntstatus.AccessDenied, "being a server that smss started", "the caller is anonymous")
	}
	var key pidfd.Key
	if c.PIDFD != nil {
		key, _ = pidfd.KeyOf(c.PIDFD)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.instances {
		if in.proc != nil && in.token == c.Token.TokenID && in.key == key {
			return in, nil
		}
		if in.hosted && c.Source == alpc.SourceAsserted && c.Token.HasSID(sm.ServerSID(in.name)) {
			return in, nil
		}
	}
	return nil, s.refuse(ctx, op, sm.PortName, ntstatus.AccessDenied, "being a server that smss started",
		fmt.Sprintf("none of the servers that smss runs has process %d and its token %#x", c.PID, uint64(c.Token.TokenID)))
}

// refuse reports a refusal of smss's own to the core's log, so that the caller gets its number, and returns it as an error.
func (s *service) refuse(ctx context.Context, op, object string, status ntstatus.Status, right, why string) error {
	d := alpc.Denial{Op: op, Object: object, Right: right, Status: status, Trace: []string{why}}
	if c, ok := rpc.Caller(ctx); ok {
		d.Attachment = c.Attachment
	}
	// Without the core's log the refusal stands; only its number is missing.
	decision, err := s.o.System.ReportDenial(ctx, d)
	if err != nil {
		s.log.Warn("a refusal could not be logged with the core", "op", op, "error", err)
	}
	return &ntstatus.Error{Op: op, Object: object, Status: status, Err: &ntstatus.Denial{Object: object, Right: right, Decision: decision}}
}

func (s *service) ExecPgm(ctx context.Context, r *smpb.ExecPgmRequest) (_ *smpb.ExecPgmResponse, err error) {
	const op = "sm.ExecPgm"
	in, err := s.owner(ctx, op)
	if err != nil {
		return nil, err
	}
	if in.session != 0 && r.Session != in.session {
		return nil, s.refuse(ctx, op, fmt.Sprintf("session %d", r.Session), ntstatus.AccessDenied, "being a server of that session or of session 0",
			fmt.Sprintf("%s is a server of session %d", in.name, in.session))
	}
	if err := s.sessionRuns(op, r.Session); err != nil {
		return nil, err
	}
	p, pipe, closing, err := s.program(ctx, r)
	defer closing()
	if err != nil {
		return nil, err
	}
	token, made, err := s.childToken(ctx, in, r)
	if err != nil {
		return nil, err
	}
	if made {
		defer s.o.System.CloseToken(context.WithoutCancel(ctx), token.TokenID)
	}
	if p.User, err = s.childUser(op, r.Name, token); err != nil {
		return nil, s.refuse(ctx, op, r.Name, ntstatus.AccessDenied, "a unix user in the new process's token", err.Error())
	}
	id, err := s.keep.reserve(in.name, r.Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.keep.unreserve(in.name, id)
		}
	}()
	if r.LogPipe != "" {
		// Before the fork, so that a process whose log can't be kept does not run.
		if err := s.keep.store(in.name, r.LogPipe, []*os.File{pipe}, nil); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				s.keep.remove(in.name, r.LogPipe)
			}
		}()
	}
	if p.User != nil && p.Terminal >= 0 {
		// As login does: what runs at the terminal may open it by its name, and nobody else.
		if err = p.Files[p.Terminal].Chown(int(p.User.UID), -1); err != nil {
			return nil, ntstatus.Wrap(op, r.Path, err)
		}
	}
	proc, err := s.keep.fork(p)
	if err != nil {
		return nil, ntstatus.Wrap(op, r.Path, err)
	}
	// A half-started process is worth nothing, so this step does not end with its caller.
	assigning, cancel := context.WithTimeout(context.WithoutCancel(ctx), coreTimeout)
	defer cancel()
	if err = s.o.System.AssignToken(assigning, proc.PIDFD(), token.TokenID); err != nil && !pidfd.Alive(proc.PIDFD()) {
		err = nil // it has ended already: there is nobody to act without a token, and its exit is to be told
	}
	if err == nil {
		err = s.keep.started(in.name, id, proc, r.Session, token.TokenID)
	}
	if err != nil {
		s.keep.discard(proc)
		return nil, err
	}
	s.log.Info("a program was started", "owner", in.name, "name", r.Name, "pid", proc.PID(), "session", r.Session)

	hs := rpc.Handles(ctx)
	out := &smpb.ExecPgmResponse{Process: id, Pid: uint32(proc.PID())}
	// The descriptor is open in any case: the process's number is its own until the owner has had this answer.
	if f, err := pidfd.Open(proc.PID()); err == nil {
		out.Pidfd = hs.Give(f)
	}
	if pipe != nil {
		kept, _, err := s.keep.fetch(in.name, r.LogPipe, "", maxEntryHandles)
		if err == nil {
			out.Log = hs.Give(kept[0].files[0])
		}
	}
	return out, nil
}

// sessionRuns refuses what would be started in a session that is not there or ends.
func (s *service) sessionRuns(op string, session uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch info := s.sessions[session]; {
	case info == nil:
		return ntstatus.Errorf(op, fmt.Sprintf("session %d", session), ntstatus.InvalidParameter, "there is no such session")
	case info.state >= sessionEnding:
		return ntstatus.Errorf(op, fmt.Sprintf("session %d", session), ntstatus.ShutdownInProgress, "the session ends: %s", info.reason)
	}
	return nil
}

// program reads what to start from the request. closing closes what was opened for it; pipe is the read end of the log.
func (s *service) program(ctx context.Context, r *smpb.ExecPgmRequest) (p spawn.Program, pipe *os.File, closing func(), err error) {
	const op = "sm.ExecPgm"
	var opened []*os.File
	closing = func() {
		for _, f := range opened {
			f.Close()
		}
	}
	size := 0
	for _, text := range append(append([]string{r.Path, r.Directory}, r.Argv...), r.Env...) {
		if size += len(text) + 1; size > maxArguments || strings.ContainsRune(text, 0) {
			return p, nil, closing, ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter, "arguments and environment must be free of NUL and have %d bytes together at most", maxArguments)
		}
	}
	hs := rpc.Handles(ctx)
	take := func(h *ntpb.Handle) *os.File {
		f, terr := hs.Take(h)
		if terr != nil && err == nil {
			err = terr
		}
		if f != nil {
			opened = append(opened, f)
		}
		return f
	}
	std := [3]*os.File{take(r.Stdin), take(r.Stdout), take(r.Stderr)}
	terminal := take(r.Terminal)
	var extra []*os.File
	for _, h := range r.Extra {
		extra = append(extra, take(h))
	}
	if err != nil {
		return p, nil, closing, err
	}
	p.Terminal = -1
	if r.LogPipe != "" {
		var w *os.File
		if pipe, w, err = os.Pipe(); err != nil {
			return p, nil, closing, ntstatus.Wrap(op, r.Name, err)
		}
		opened = append(opened, pipe, w)
		for i := 1; i < 3; i++ {
			if std[i] == nil {
				std[i] = w
			}
		}
	}
	if terminal != nil {
		for i := range std {
			if std[i] == nil {
				std[i] = terminal
			}
			if std[i] == terminal && p.Terminal < 0 {
				p.Terminal = i
			}
		}
		if p.Terminal < 0 {
			return p, nil, closing, ntstatus.Errorf(op, r.Name, ntstatus.InvalidParameter, "a controlling terminal must be one of the standard files: leave one of them out")
		}
	}
	p.Files, p.NoNewPrivileges = append(std[:], extra...), r.NoNewPrivileges
	p.Args, p.Dir = r.Argv, r.Directory
	if len(p.Args) == 0 {
		p.Args = []string{r.Path}
	}
	p.Env = slices.Clone(r.Env)
	for name, v := range map[string]string{"SALLYPORT_CORE": s.o.Core, "SALLYPORT_SESSION": strconv.FormatUint(uint64(r.Session), 10)} {
		if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			p.Env = append(p.Env, name+"="+v)
		}
	}
	if l := r.Limits; l != nil {
		p.Limits = spawn.Limits{OpenFiles: l.OpenFiles, Processes: l.Processes, MemoryBytes: l.MemoryBytes, CoreBytes: l.CoreBytes, CPUSeconds: l.CpuSeconds}
	}
	p.Path, err = lookPath(r.Path, p.Env)
	return p, pipe, closing, err
}

// lookPath finds an executable as a shell would, in the PATH that the program itself gets.
func lookPath(path string, env []string) (string, error) {
	const op = "sm.ExecPgm"
	switch {
	case filepath.IsAbs(path):
		return path, nil
	case path == "" || strings.ContainsRune(path, '/'):
		return "", ntstatus.Errorf(op, path, ntstatus.InvalidParameter, "give an absolute path, or a plain name that is in PATH")
	}
	dirs := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
		}
	}
	for _, dir := range filepath.SplitList(dirs) {
		full := filepath.Join(dir, path)
		if info, err := os.Stat(full); err == nil && filepath.IsAbs(full) && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", ntstatus.Errorf(op, path, ntstatus.ObjectNameNotFound, "no executable of that name in PATH (%s)", dirs)
}

// childToken finds or makes the token of a new process. Somebody else's takes SeAssignPrimaryToken, as CreateProcessAsUser does.
func (s *service) childToken(ctx context.Context, in *instance, r *smpb.ExecPgmRequest) (t *security.Token, made bool, err error) {
	const op = "sm.ExecPgm"
	c, _ := rpc.Caller(ctx)
	if r.Token == 0 {
		t, err = s.o.System.CreateToken(ctx, reduced(c.Token, in.name, r.Session))
		return t, err == nil, err
	}
	if !c.Token.Has(security.SeAssignPrimaryToken) {
		return nil, false, s.refuse(ctx, op, r.Name, ntstatus.PrivilegeNotHeld, security.SeAssignPrimaryToken.String(),
			fmt.Sprintf("the token of %s does not hold it: its programs run under its own token, reduced", in.name))
	}
	t, err = s.o.System.QueryToken(ctx, security.LUID(r.Token))
	if err == nil && t.Type != security.TokenPrimary {
		err = ntstatus.Errorf(op, r.Name, ntstatus.BadImpersonationLevel, "token %#x is not a primary token", r.Token)
	}
	return t, false, err
}

func (s *service) SignalProcess(ctx context.Context, r *smpb.SignalProcessRequest) (*smpb.SignalProcessResponse, error) {
	const op = "sm.SignalProcess"
	in, err := s.owner(ctx, op)
	if err != nil {
		return nil, err
	}
	p, err := s.keep.find(op, in.name, r.Process)
	if err != nil {
		return nil, err
	}
	if r.Signal == 0 || r.Signal > 64 {
		return nil, ntstatus.Errorf(op, p.name, ntstatus.InvalidParameter, "%d is not a signal", r.Signal)
	}
	err = p.proc.Signal(syscall.Signal(r.Signal), r.Group)
	if errors.Is(err, os.ErrProcessDone) {
		return nil, ntstatus.Errorf(op, p.name, ntstatus.InvalidCID, "process %d has ended", r.Process)
	}
	return &smpb.SignalProcessResponse{}, ntstatus.Wrap(op, p.name, err)
}

func (s *service) WaitProcess(r *smpb.WaitProcessRequest, stream grpc.ServerStreamingServer[smpb.ProcessExit]) error {
	const op = "sm.WaitProcess"
	ctx := stream.Context()
	in, err := s.owner(ctx, op)
	if err != nil {
		return err
	}
	if r.Process != 0 {
		p, err := s.keep.find(op, in.name, r.Process)
		if err != nil {
			return err
		}
		select {
		case <-p.gone:
			return stream.Send(exitMessage(p))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	sent := map[uint64]bool{}
	for {
		processes, changed := s.keep.list(in.name)
		unsent := map[uint64]bool{}
		for _, p := range processes {
			if !p.hasEnded() {
				continue
			}
			if !sent[p.id] {
				if err := stream.Send(exitMessage(p)); err != nil {
					return err
				}
			}
			unsent[p.id] = true
		}
		sent = unsent // what was acknowledged meanwhile need not be remembered
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func exitMessage(p *process) *smpb.ProcessExit {
	return &smpb.ProcessExit{Process: p.id, Name: p.name, Pid: uint32(p.proc.PID()), ExitCode: int32(p.exit.Code), Signal: uint32(p.exit.Signal),
		CoreDumped: p.exit.CoreDumped, EndedUnixNs: p.ended.UnixNano()}
}

func (s *service) AcknowledgeExit(ctx context.Context, r *smpb.AcknowledgeExitRequest) (*smpb.AcknowledgeExitResponse, error) {
	in, err := s.owner(ctx, "sm.AcknowledgeExit")
	if err != nil {
		return nil, err
	}
	return &smpb.AcknowledgeExitResponse{}, s.keep.acknowledge(in.name, r.Process)
}

func (s *service) ListProcesses(ctx context.Context, r *smpb.ListProcessesRequest) (*smpb.ListProcessesResponse, error) {
	in, err := s.owner(ctx, "sm.ListProcesses")
	if err != nil {
		return nil, err
	}
	processes, _ := s.keep.list(in.name)
	hs, out := rpc.Handles(ctx), &smpb.ListProcessesResponse{}
	for _, p := range processes {
		if p.id <= r.After {
			continue
		}
		if len(out.Processes) == pageHandles {
			out.More = true
			break
		}
		m := &smpb.Process{Process: p.id, Name: p.name, Pid: uint32(p.proc.PID()), Session: p.session, Token: uint64(p.token), StartedUnixNs: p.started.UnixNano()}
		f, err := p.pidfdOf()
		if err != nil {
			return nil, ntstatus.Wrap("sm.ListProcesses", p.name, err)
		}
		if f != nil {
			m.Pidfd = hs.Give(f)
		} else {
			<-p.gone // at this moment, if not before
			m.Exit = exitMessage(p)
		}
		out.Processes = append(out.Processes, m)
	}
	return out, nil
}

func (s *service) StoreHandles(ctx context.Context, r *smpb.StoreHandlesRequest) (*smpb.StoreHandlesResponse, error) {
	in, err := s.owner(ctx, "sm.StoreHandles")
	if err != nil {
		return nil, err
	}
	hs := rpc.Handles(ctx)
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, h := range r.Handles {
		f, err := hs.Take(h)
		if err == nil && f == nil {
			err = ntstatus.Errorf("sm.StoreHandles", r.Name, ntstatus.InvalidHandle, "the request names no file")
		}
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return &smpb.StoreHandlesResponse{}, s.keep.store(in.name, r.Name, files, r.Data)
}

func (s *service) FetchHandles(ctx context.Context, r *smpb.FetchHandlesRequest) (*smpb.FetchHandlesResponse, error) {
	in, err := s.owner(ctx, "sm.FetchHandles")
	if err != nil {
		return nil, err
	}
	entries, next, err := s.keep.fetch(in.name, r.Name, r.After, pageHandles)
	if err != nil {
		return nil, err
	}
	hs, out := rpc.Handles(ctx), &smpb.FetchHandlesResponse{Next: next}
	for _, e := range entries {
		m := &smpb.StoredHandles{Name: e.name, Data: e.data}
		for _, f := range e.files {
			m.Handles = append(m.Handles, hs.Give(f))
		}
		out.Entries = append(out.Entries, m)
	}
	return out, nil
}

func (s *service) RemoveHandles(ctx context.Context, r *smpb.RemoveHandlesRequest) (*smpb.RemoveHandlesResponse, error) {
	in, err := s.owner(ctx, "sm.RemoveHandles")
	if err != nil {
		return nil, err
	}
	s.keep.remove(in.name, r.Name)
	return &smpb.RemoveHandlesResponse{}, nil
}

func (s *service) Ready(ctx context.Context, r *smpb.ReadyRequest) (*smpb.ReadyResponse, error) {
	in, err := s.owner(ctx, "sm.Ready")
	if err != nil {
		return nil, err
	}
	s.post(saidReady{in.name, r.Status})
	return &smpb.ReadyResponse{}, nil
}

func (s *service) CreateSession(ctx context.Context, r *smpb.CreateSessionRequest) (*smpb.CreateSessionResponse, error) {
	const op = "sm.CreateSession"
	c, ok := rpc.Caller(ctx)
	if !ok || c.Token == nil {
		return nil, ntstatus.Errorf(op, "", ntstatus.AccessDenied, "the caller is anonymous")
	}
	if len(r.Term) > 64 || strings.ContainsAny(r.Term, "\x00=/") {
		return nil, ntstatus.Errorf(op, r.Term, ntstatus.InvalidParameter, "that is no type of a terminal")
	}
	info := &sessionInfo{creator: c.Token.User.SID, created: time.Now(), state: sessionStarting, term: r.Term, up: make(chan struct{}), over: make(chan struct{})}
	terminal, err := rpc.Handles(ctx).Take(r.Terminal)
	if err != nil {
		return nil, err
	}
	if terminal != nil {
		info.terminal, err = fdkeep.Keep(terminal)
		terminal.Close()
		if err != nil {
			return nil, ntstatus.Wrap(op, "terminal", err)
		}
	}
	if err := s.admit(op, info); err != nil {
		info.terminal.Close()
		return nil, err
	}
	s.addInstances(info.id, s.o.Config.SessionServers)
	making, cancel := context.WithTimeout(ctx, coreTimeout)
	defer cancel()
	if err := s.makeNames(making, info, s.o.Config.SessionDirectories); err != nil {
		s.removeNames(info)
		s.forgetSession(info)
		return nil, err
	}
	s.post(openSession{session: info.id, servers: s.specs(info.id)})
	select {
	case <-info.up:
		return &smpb.CreateSessionResponse{Session: info.id}, nil
	case <-info.over:
		s.mu.Lock()
		defer s.mu.Unlock()
		return nil, ntstatus.Errorf(op, fmt.Sprintf("session %d", info.id), ntstatus.Unsuccessful, "the session did not start: %s", info.reason)
	case <-ctx.Done():
		s.post(closeSession{info.id, "its creator did not wait for it"})
		return nil, ctx.Err()
	}
}

// admit gives a session its number, which is never used again.
func (s *service) admit(op string, info *sessionInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason != "" {
		return ntstatus.Errorf(op, "", ntstatus.ShutdownInProgress, "the system stops: %s", s.reason)
	}
	var open, own uint32
	for _, other := range s.sessions {
		if other.id == 0 || other.state == sessionEnded {
			continue
		}
		open++
		if other.creator == info.creator {
			own++
		}
	}
	switch {
	case own >= s.o.Config.MaxSessionsPerUser:
		return ntstatus.Errorf(op, "", ntstatus.TooManySessions, "%d sessions of %s are open, max_sessions_per_user allows no more", own, info.creator)
	case open >= s.o.Config.MaxSessions:
		return ntstatus.Errorf(op, "", ntstatus.TooManySessions, "%d sessions are open, max_sessions allows no more", open)
	}
	s.lastID++
	info.id = s.lastID
	s.sessions[info.id] = info
	return nil
}

// forgetSession undoes admit and addInstances.
func (s *service) forgetSession(info *sessionInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, info.id)
	for name, in := range s.instances {
		if in.session == info.id {
			delete(s.instances, name)
		}
	}
	info.terminal.Close()
}

func (s *service) TerminateSession(ctx context.Context, r *smpb.TerminateSessionRequest) (*smpb.TerminateSessionResponse, error) {
	const op = "sm.TerminateSession"
	s.mu.Lock()
	info := s.sessions[r.Session]
	s.mu.Unlock()
	switch {
	case r.Session == 0:
		return nil, ntstatus.Errorf(op, "session 0", ntstatus.InvalidParameter, "session 0 ends with the system: use Shutdown")
	case info == nil:
		return nil, ntstatus.New(op, fmt.Sprintf("session %d", r.Session), ntstatus.NotFound)
	}
	who := "somebody"
	if c, ok := rpc.Caller(ctx); ok && c.Token != nil {
		who = c.Token.User.SID.String()
	}
	s.post(closeSession{r.Session, "terminated by " + who})
	select {
	case <-info.over:
		return &smpb.TerminateSessionResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// sessionMessage describes a session; mu is held.
func sessionMessage(info *sessionInfo, processes uint32) *smpb.Session {
	return &smpb.Session{Session: info.id, State: smpb.SessionState(info.state), Creator: info.creator.String(),
		CreatedUnixNs: info.created.UnixNano(), Processes: processes, Reason: info.reason}
}

// count is how many processes run in a session; mu is held.
func (s *service) count(session uint32) (n uint32) {
	for _, in := range s.instances {
		if in.session == session && in.proc != nil {
			n++
		}
	}
	return n + s.keep.inSession(session)
}

func (s *service) ListSessions(context.Context, *smpb.ListSessionsRequest) (*smpb.ListSessionsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &smpb.ListSessionsResponse{}
	for _, info := range s.sessions {
		if info.state != sessionEnded {
			out.Sessions = append(out.Sessions, sessionMessage(info, s.count(info.id)))
		}
	}
	slices.SortFunc(out.Sessions, func(a, b *smpb.Session) int { return int(a.Session) - int(b.Session) })
	return out, nil
}

func (s *service) ListServers(ctx context.Context, _ *smpb.ListServersRequest) (*smpb.ListServersResponse, error) {
	sessions, _ := s.ListSessions(ctx, nil)
	out := &smpb.ListServersResponse{}
	for _, info := range sessions.Sessions {
		for _, in := range s.inSessionOrder(info.Session) {
			s.mu.Lock()
			out.Servers = append(out.Servers, in.view)
			s.mu.Unlock()
		}
	}
	return out, nil
}

func (s *service) WatchState(_ *smpb.WatchStateRequest, stream grpc.ServerStreamingServer[smpb.StateChange]) error {
	var last uint64
	first, told := true, false
	for {
		var changes []*smpb.StateChange
		s.mu.Lock()
		for _, info := range s.sessions {
			if info.seq > last || (first && info.state != sessionEnded) {
				changes = append(changes, &smpb.StateChange{Change: &smpb.StateChange_Session{Session: sessionMessage(info, s.count(info.id))}})
			}
		}
		for _, in := range s.instances {
			if in.seq > last || first {
				changes = append(changes, &smpb.StateChange{Change: &smpb.StateChange_Server{Server: in.view}})
			}
		}
		if s.reason != "" && !told {
			told = true
			changes = append(changes, &smpb.StateChange{Change: &smpb.StateChange_Stopping{Stopping: s.reason}})
		}
		last, first = s.sequence, false
		changed := s.changed
		s.mu.Unlock()
		for _, c := range changes {
			if err := stream.Send(c); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *service) Shutdown(ctx context.Context, r *smpb.ShutdownRequest) (*smpb.ShutdownResponse, error) {
	who := "somebody"
	if c, ok := rpc.Caller(ctx); ok && c.Token != nil {
		who = c.Token.User.SID.String()
	}
	reason := "asked for by " + who
	if r.Reason != "" {
		reason += ": " + r.Reason
	}
	grace := time.Duration(r.GraceMs) * time.Millisecond
	if most := time.Duration(s.o.Config.ShutdownGrace); grace == 0 || grace > most {
		grace = most
	}
	s.post(shutdown{reason: reason, grace: grace})
	return &smpb.ShutdownResponse{}, nil
}
