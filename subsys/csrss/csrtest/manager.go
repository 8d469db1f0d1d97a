// Package csrtest is a session manager for tests of the servers that need one: it keeps descriptors and starts programs as smss
// does, inside the test, for one owner. It assigns no tokens and believes its callers.
package csrtest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"sort"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/internal/pidfd"
	"sallyport/internal/pty"
	"sallyport/ntstatus"
	"sallyport/proto/smpb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

// Manager is a session manager that lives as long as its test.
type Manager struct {
	smpb.UnimplementedSessionManagerServer
	creator string

	mu      sync.Mutex
	last    uint64
	stored  map[string]stored
	running map[uint64]*program
	changed chan struct{} // closed and replaced with each exit
	ready   chan struct{} // closed by the first Ready
}

type stored struct {
	files []*os.File
	data  []byte
}

type program struct {
	smpb.Process
	pidfd *os.File
	group int
}

// Start serves \SmApiPort on an attachment that is LocalSystem's. creator (a SID; may be empty) is whoever made the sessions that
// there are. At the test's end it kills what it started.
func Start(t testing.TB, system *alpc.System, creator string) *Manager {
	t.Helper()
	m := &Manager{creator: creator, stored: map[string]stored{}, running: map[uint64]*program{}, changed: make(chan struct{}), ready: make(chan struct{})}
	server := rpc.NewServer(rpc.ServerOptions{System: system})
	smpb.RegisterSessionManagerServer(server, m)
	const everybody = "O:SYG:SYD:(A;;0x1f001f;;;WD)"
	server.Secure("sallyport.sm.SessionManager", rpc.Interface{SDDL: everybody, Resolve: func(context.Context, string) (*security.Descriptor, error) {
		return security.ParseSDDL(everybody)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	listener, err := system.Listen(ctx, sm.PortName, alpc.PortAttributes{
		SecurityDescriptor: "O:SYG:SYD:(A;;0x1f0001;;;WD)", HandleTypes: alpc.HandleAny})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-served)
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, p := range m.running {
			if p.Exit == nil {
				syscall.Kill(-p.group, syscall.SIGKILL)
			}
			p.pidfd.Close()
		}
		for _, s := range m.stored {
			closeFiles(s.files)
		}
	})
	return m
}

// ReadySaid is closed when a server has said that it serves.
func (m *Manager) ReadySaid() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

// Rearm makes ReadySaid wait for the next server.
func (m *Manager) Rearm() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = make(chan struct{})
}

// StoredNames are the names in the store, sorted.
func (m *Manager) StoredNames() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.stored {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Programs is how many were started and are not acknowledged.
func (m *Manager) Programs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.running)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (m *Manager) Ready(context.Context, *smpb.ReadyRequest) (*smpb.ReadyResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.ready:
	default:
		close(m.ready)
	}
	return &smpb.ReadyResponse{}, nil
}

func (m *Manager) ListSessions(context.Context, *smpb.ListSessionsRequest) (*smpb.ListSessionsResponse, error) {
	return &smpb.ListSessionsResponse{Sessions: []*smpb.Session{{Session: 0, Creator: m.creator}, {Session: 1, Creator: m.creator}}}, nil
}

func (m *Manager) ExecPgm(ctx context.Context, r *smpb.ExecPgmRequest) (*smpb.ExecPgmResponse, error) {
	hs := rpc.Handles(ctx)
	terminal, err := hs.Take(r.Terminal)
	if err != nil {
		return nil, err
	}
	defer terminal.Close()
	if !pty.IsTerminal(terminal) {
		return nil, ntstatus.New("sm.ExecPgm", r.Name, ntstatus.ObjectTypeMismatch)
	}
	cmd := &exec.Cmd{Path: r.Path, Args: r.Argv, Env: r.Env, Dir: r.Directory, Stdin: terminal, Stdout: terminal, Stderr: terminal,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true}}
	if path, err := exec.LookPath(r.Path); err == nil {
		cmd.Path = path
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.running {
		if p.Name == r.Name {
			return nil, ntstatus.New("sm.ExecPgm", r.Name, ntstatus.ObjectNameCollision)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, ntstatus.Wrap("sm.ExecPgm", r.Name, err)
	}
	process, err := pidfd.Open(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	m.last++
	p := &program{pidfd: process, group: cmd.Process.Pid}
	p.Process.Process, p.Name, p.Pid, p.Session, p.Token, p.StartedUnixNs = m.last, r.Name, uint32(cmd.Process.Pid), r.Session, r.Token, time.Now().UnixNano()
	m.running[p.Process.Process] = p
	go func() {
		cmd.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		p.Exit = &smpb.ProcessExit{Process: p.Process.Process, Name: p.Name, Pid: p.Pid, ExitCode: int32(cmd.ProcessState.ExitCode())}
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			p.Exit.ExitCode, p.Exit.Signal = 0, uint32(ws.Signal())
		}
		close(m.changed)
		m.changed = make(chan struct{})
	}()
	return &smpb.ExecPgmResponse{Process: m.last, Pid: p.Pid, Pidfd: hs.Add(process)}, nil
}

func (m *Manager) SignalProcess(_ context.Context, r *smpb.SignalProcessRequest) (*smpb.SignalProcessResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.running[r.Process]
	if p == nil || p.Exit != nil && !r.Group {
		return nil, ntstatus.New("sm.SignalProcess", "", ntstatus.InvalidCID)
	}
	target := int(p.Pid)
	if r.Group {
		target = -p.group
	}
	syscall.Kill(target, syscall.Signal(r.Signal))
	return &smpb.SignalProcessResponse{}, nil
}

func (m *Manager) WaitProcess(r *smpb.WaitProcessRequest, stream grpc.ServerStreamingServer[smpb.ProcessExit]) error {
	sent := map[uint64]bool{}
	for {
		m.mu.Lock()
		changed := m.changed
		var exits []*smpb.ProcessExit
		for id, p := range m.running {
			if p.Exit != nil && !sent[id] && (r.Process == 0 || r.Process == id) {
				exits = append(exits, p.Exit)
				sent[id] = true
			}
		}
		m.mu.Unlock()
		for _, e := range exits {
			if err := stream.Send(e); err != nil {
				return err
			}
			if r.Process != 0 {
				return nil
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (m *Manager) AcknowledgeExit(_ context.Context, r *smpb.AcknowledgeExitRequest) (*smpb.AcknowledgeExitResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.running[r.Process]; p != nil && p.Exit != nil {
		p.pidfd.Close()
		delete(m.running, r.Process)
	}
	return &smpb.AcknowledgeExitResponse{}, nil
}

func (m *Manager) ListProcesses(ctx context.Context, _ *smpb.ListProcessesRequest) (*smpb.ListProcessesResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	resp := &smpb.ListProcessesResponse{}
	for _, p := range m.running {
		e := &smpb.Process{Process: p.Process.Process, Name: p.Name, Pid: p.Pid, Session: p.Session, Token: p.Token, StartedUnixNs: p.StartedUnixNs, Exit: p.Exit}
		if p.Exit == nil {
			e.Pidfd = rpc.Handles(ctx).Add(p.pidfd)
		}
		resp.Processes = append(resp.Processes, e)
	}
	slices.SortFunc(resp.Processes, func(a, b *smpb.Process) int { return int(a.Process) - int(b.Process) })
	return resp, nil
}

func (m *Manager) StoreHandles(ctx context.Context, r *smpb.StoreHandlesRequest) (*smpb.StoreHandlesResponse, error) {
	s := stored{data: r.Data}
	for _, h := range r.Handles {
		f, err := rpc.Handles(ctx).Take(h)
		if err != nil {
			closeFiles(s.files)
			return nil, err
		}
		s.files = append(s.files, f)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	closeFiles(m.stored[r.Name].files)
	m.stored[r.Name] = s
	return &smpb.StoreHandlesResponse{}, nil
}

func (m *Manager) FetchHandles(ctx context.Context, r *smpb.FetchHandlesRequest) (*smpb.FetchHandlesResponse, error) {
	names := m.StoredNames()
	m.mu.Lock()
	defer m.mu.Unlock()
	resp := &smpb.FetchHandlesResponse{}
	for _, name := range names {
		if r.Name != "" && name != r.Name || name <= r.After {
			continue
		}
		e := &smpb.StoredHandles{Name: name, Data: m.stored[name].data}
		for _, f := range m.stored[name].files {
			e.Handles = append(e.Handles, rpc.Handles(ctx).Add(f))
		}
		if resp.Entries = append(resp.Entries, e); len(resp.Entries) == 4 && r.Name == "" {
			resp.Next = name
			break
		}
	}
	return resp, nil
}

func (m *Manager) RemoveHandles(_ context.Context, r *smpb.RemoveHandlesRequest) (*smpb.RemoveHandlesResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	closeFiles(m.stored[r.Name].files)
	delete(m.stored, r.Name)
	return &smpb.RemoveHandlesResponse{}, nil
}
