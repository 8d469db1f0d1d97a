// Package sm is the client of the session manager (smss), typed over proto/smpb: what a server asks of the process that
// forks and keeps for it, and what a person's program asks about servers and sessions.
//
// smss is trusted with everything that passes here; it in turn proves who its caller is and believes no name in a request.
// A Client holds no lock and is safe for concurrent use. Files that a method returns belong to the caller, files given to
// a method stay the caller's.
package sm

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
	"sallyport/proto/smpb"
	"sallyport/rpc"
	"sallyport/security"
)

// PortName is where smss listens (NT: \SmApiPort).
const PortName = `\SmApiPort`

// ServerSID is in the token of the server that smss started under that name ("lsass", "csrss@3"), and in no other. The backslash
// keeps it apart from the SIDs of services, whose names can't have one.
func ServerSID(name string) security.SID { return security.ServiceSID(`smss\` + name) }

// Client speaks to smss over one connection.
type Client struct {
	conn io.Closer
	stub smpb.SessionManagerClient
}

// Dial connects to smss, which is LocalSystem: the connect fails if anybody else has the port's name.
func Dial(ctx context.Context, sys *alpc.System) (*Client, error) {
	conn, err := rpc.Dial(ctx, sys, PortName, rpc.DialOptions{Port: alpc.DialOptions{RequiredServer: security.LocalSystem(), HandleTypes: alpc.HandleAny}})
	if err != nil {
		return nil, ntstatus.Wrap("sm.Dial", PortName, err)
	}
	return &Client{conn: conn, stub: smpb.NewSessionManagerClient(conn)}, nil
}

// Close ends the connection. What smss keeps for the caller stays kept.
func (c *Client) Close() error { return c.conn.Close() }

// Program is what ExecPgm starts; see ExecPgmRequest for each field.
type Program struct {
	Name     string   // the owner's name for the process; unique among those not acknowledged
	Path     string   // absolute, or looked up in Env's PATH
	Args     []string // argv with argv[0]; nil means Path alone
	Env      []string // the whole environment
	Dir      string
	Token    security.LUID // TokenId that the caller holds; 0: the caller's own, reduced
	Session  uint32
	Stdin    *os.File // nil: /dev/null, or Terminal
	Stdout   *os.File // nil: the log pipe, Terminal, or /dev/null
	Stderr   *os.File
	Extra    []*os.File // descriptors 3, 4, …
	LogPipe  string     // name under which the read end of a new log pipe is stored; empty: no pipe
	Terminal *os.File   // controlling terminal
	// NoNewPrivileges: nothing that the process runs gains rights by exec.
	NoNewPrivileges bool
	Limits          Limits
}

// Limits are resource limits of a process; 0 leaves smss's own.
type Limits struct {
	OpenFiles, Processes, MemoryBytes, CoreBytes, CPUSeconds uint64
}

// Process is one that smss started for the caller.
type Process struct {
	ID      uint64 // never reused while this smss lives
	Name    string
	PID     int
	Session uint32
	Token   security.LUID
	Started time.Time
	PIDFD   *os.File // nil once it has ended
	Log     *os.File // from ExecPgm with LogPipe only
	Exit    *Exit    // nil while it runs
}

// Exit says how a process ended.
type Exit struct {
	Process    uint64
	Name       string
	PID        int
	Code       int            // when it ended by itself
	Signal     syscall.Signal // when a signal ended it, else 0
	CoreDumped bool
	Ended      time.Time
}

// ExecPgm starts a program (NT: SmExecPgm). The process does nothing under a wrong token: what it asks of the core waits
// until smss has assigned it. Statuses: OBJECT_NAME_COLLISION, OBJECT_NAME_NOT_FOUND (no such executable), NO_TOKEN,
// QUOTA_EXCEEDED, SYSTEM_SHUTDOWN.
func (c *Client) ExecPgm(ctx context.Context, p Program) (*Process, error) {
	hs := rpc.NewHandleSet()
	req := &smpb.ExecPgmRequest{
		Name: p.Name, Path: p.Path, Argv: p.Args, Env: p.Env, Directory: p.Dir, Token: uint64(p.Token), Session: p.Session,
		Stdin: hs.Add(p.Stdin), Stdout: hs.Add(p.Stdout), Stderr: hs.Add(p.Stderr), LogPipe: p.LogPipe, Terminal: hs.Add(p.Terminal), NoNewPrivileges: p.NoNewPrivileges,
		Limits: &smpb.Limits{OpenFiles: p.Limits.OpenFiles, Processes: p.Limits.Processes, MemoryBytes: p.Limits.MemoryBytes,
			CoreBytes: p.Limits.CoreBytes, CpuSeconds: p.Limits.CPUSeconds},
	}
	for _, f := range p.Extra {
		req.Extra = append(req.Extra, hs.Add(f))
	}
	defer hs.Close()
	resp, err := c.stub.ExecPgm(ctx, req, hs.Option())
	if err != nil {
		return nil, err
	}
	out := &Process{ID: resp.Process, Name: p.Name, PID: int(resp.Pid), Session: p.Session, Token: p.Token, Started: time.Now()}
	out.PIDFD, err = take(hs, resp.Pidfd)
	if err == nil && p.LogPipe != "" {
		out.Log, err = take(hs, resp.Log)
	}
	if err != nil {
		closeAll(out.PIDFD)
		return nil, ntstatus.Wrap("sm.ExecPgm", p.Name, err)
	}
	return out, nil
}

// Signal signals a process of the caller's, or its whole group. A process that has ended is INVALID_CID, unless group is set: then
// what is left of its group gets the signal, as long as its exit is not acknowledged.
func (c *Client) Signal(ctx context.Context, process uint64, signal syscall.Signal, group bool) error {
	_, err := c.stub.SignalProcess(ctx, &smpb.SignalProcessRequest{Process: process, Signal: uint32(signal), Group: group})
	return err
}

// Wait waits until a process has ended. It may be asked again, also by a successor of the caller, until the exit is
// acknowledged.
func (c *Client) Wait(ctx context.Context, process uint64) (Exit, error) {
	var exit Exit
	err := c.exits(ctx, process, func(e Exit) error { exit = e; return nil })
	if err == nil && exit.Process == 0 {
		err = ntstatus.New("sm.Wait", strconv.FormatUint(process, 10), ntstatus.PortDisconnected)
	}
	return exit, err
}

// Exits calls f for each exit of the caller's processes that is not acknowledged, then for each as it happens, until ctx ends,
// smss goes or f fails. An exit that f did not Acknowledge is sent again by the next Exits.
func (c *Client) Exits(ctx context.Context, f func(Exit) error) error { return c.exits(ctx, 0, f) }

func (c *Client) exits(ctx context.Context, process uint64, f func(Exit) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.stub.WaitProcess(ctx, &smpb.WaitProcessRequest{Process: process})
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(*exitOf(e)); err != nil {
			return err
		}
	}
}

// Acknowledge says that the caller has recorded an exit; smss forgets the process and frees its name.
func (c *Client) Acknowledge(ctx context.Context, process uint64) error {
	_, err := c.stub.AcknowledgeExit(ctx, &smpb.AcknowledgeExitRequest{Process: process})
	return err
}

// List lists the caller's processes, running or ended and not acknowledged: what a restarted owner adopts.
func (c *Client) List(ctx context.Context) ([]Process, error) {
	var out []Process
	for after := uint64(0); ; {
		more, err := c.list(ctx, after, &out)
		if err != nil {
			for _, p := range out {
				closeAll(p.PIDFD)
			}
			return nil, err
		}
		if !more {
			return out, nil
		}
		after = out[len(out)-1].ID
	}
}

// list appends one page.
func (c *Client) list(ctx context.Context, after uint64, out *[]Process) (more bool, err error) {
	hs := rpc.NewHandleSet()
	defer hs.Close()
	resp, err := c.stub.ListProcesses(ctx, &smpb.ListProcessesRequest{After: after}, hs.Option())
	if err != nil {
		return false, err
	}
	for _, p := range resp.Processes {
		e := Process{ID: p.Process, Name: p.Name, PID: int(p.Pid), Session: p.Session, Token: security.LUID(p.Token), Started: time.Unix(0, p.StartedUnixNs)}
		if p.Exit != nil {
			e.Exit = exitOf(p.Exit)
		} else if e.PIDFD, err = take(hs, p.Pidfd); err != nil {
			return false, ntstatus.Wrap("sm.List", p.Name, err)
		}
		*out = append(*out, e)
	}
	return resp.More && len(resp.Processes) > 0, nil
}

// Stored is one entry of the descriptor store.
type Stored struct {
	Name  string
	Files []*os.File
	Data  []byte
}

// Store keeps duplicates of files, and up to 16 KiB of the caller's own data, under a name; a name that is taken is replaced.
// QUOTA_EXCEEDED when the caller's share is used up.
func (c *Client) Store(ctx context.Context, name string, data []byte, files ...*os.File) error {
	hs := rpc.NewHandleSet()
	req := &smpb.StoreHandlesRequest{Name: name, Data: data}
	for _, f := range files {
		req.Handles = append(req.Handles, hs.Add(f))
	}
	_, err := c.stub.StoreHandles(ctx, req, hs.Option())
	return err
}

// Fetch gives duplicates of what was stored under a name; NOT_FOUND if nothing was.
func (c *Client) Fetch(ctx context.Context, name string) (Stored, error) {
	all, _, err := c.fetch(ctx, name, "")
	if err != nil {
		return Stored{}, err
	}
	if len(all) != 1 {
		return Stored{}, ntstatus.New("sm.Fetch", name, ntstatus.NotFound)
	}
	return all[0], nil
}

// FetchAll gives duplicates of everything that the caller or its predecessor stored, in the order of the names.
func (c *Client) FetchAll(ctx context.Context) ([]Stored, error) {
	var out []Stored
	for after := ""; ; {
		some, next, err := c.fetch(ctx, "", after)
		out = append(out, some...)
		if err != nil {
			for _, s := range out {
				closeAll(s.Files...)
			}
			return nil, err
		}
		if after = next; after == "" {
			return out, nil
		}
	}
}

func (c *Client) fetch(ctx context.Context, name, after string) ([]Stored, string, error) {
	hs := rpc.NewHandleSet()
	defer hs.Close()
	resp, err := c.stub.FetchHandles(ctx, &smpb.FetchHandlesRequest{Name: name, After: after}, hs.Option())
	if err != nil {
		return nil, "", err
	}
	var out []Stored
	for _, e := range resp.Entries {
		s := Stored{Name: e.Name, Data: e.Data}
		for _, h := range e.Handles {
			f, err := take(hs, h)
			if err != nil {
				closeAll(s.Files...)
				return out, "", ntstatus.Wrap("sm.Fetch", e.Name, err)
			}
			s.Files = append(s.Files, f)
		}
		out = append(out, s)
	}
	return out, resp.Next, nil
}

// Remove closes and forgets what is stored under a name; a name that is not there is no error.
func (c *Client) Remove(ctx context.Context, name string) error {
	_, err := c.stub.RemoveHandles(ctx, &smpb.RemoveHandlesRequest{Name: name})
	return err
}

// Ready tells smss that the calling server serves. status is a sentence for people.
func (c *Client) Ready(ctx context.Context, status string) error {
	_, err := c.stub.Ready(ctx, &smpb.ReadyRequest{Status: status})
	return err
}

// CreateSession makes an interactive session and returns its number when its csrss and winlogon are ready. terminal (may be
// nil) becomes winlogon's standard files, of type term.
func (c *Client) CreateSession(ctx context.Context, terminal *os.File, term string) (uint32, error) {
	hs := rpc.NewHandleSet()
	req := &smpb.CreateSessionRequest{Term: term, Terminal: hs.Add(terminal)}
	resp, err := c.stub.CreateSession(ctx, req, hs.Option())
	return resp.GetSession(), err
}

// TerminateSession ends an interactive session and all of its processes, and returns when they are gone.
func (c *Client) TerminateSession(ctx context.Context, session uint32) error {
	_, err := c.stub.TerminateSession(ctx, &smpb.TerminateSessionRequest{Session: session})
	return err
}

// Sessions lists the sessions, session 0 first.
func (c *Client) Sessions(ctx context.Context) ([]*smpb.Session, error) {
	resp, err := c.stub.ListSessions(ctx, &smpb.ListSessionsRequest{})
	return resp.GetSessions(), err
}

// Servers lists the servers of all sessions in the order in which they were started.
func (c *Client) Servers(ctx context.Context) ([]*smpb.Server, error) {
	resp, err := c.stub.ListServers(ctx, &smpb.ListServersRequest{})
	return resp.GetServers(), err
}

// Watch calls f with the state of every server and session, then with each change, until ctx ends, smss goes or f fails.
func (c *Client) Watch(ctx context.Context, f func(*smpb.StateChange) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.stub.WatchState(ctx, &smpb.WatchStateRequest{})
	if err != nil {
		return err
	}
	for {
		change, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(change); err != nil {
			return err
		}
	}
}

// Shutdown begins the orderly stop of everything. grace bounds it; 0 leaves each server its own stop time.
func (c *Client) Shutdown(ctx context.Context, reason string, grace time.Duration) error {
	_, err := c.stub.Shutdown(ctx, &smpb.ShutdownRequest{Reason: reason, GraceMs: uint32(grace / time.Millisecond)})
	return err
}

func exitOf(e *smpb.ProcessExit) *Exit {
	return &Exit{Process: e.Process, Name: e.Name, PID: int(e.Pid), Code: int(e.ExitCode), Signal: syscall.Signal(e.Signal),
		CoreDumped: e.CoreDumped, Ended: time.Unix(0, e.EndedUnixNs)}
}

// take has one name for "the message says that there is a file" in every method: an absent handle is a broken promise of smss's.
func take(hs *rpc.HandleSet, h *ntpb.Handle) (*os.File, error) {
	f, err := hs.Take(h)
	if f == nil && err == nil {
		err = ntstatus.RPCProtocolError
	}
	return f, err
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
