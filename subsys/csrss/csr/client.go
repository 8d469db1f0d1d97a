// Package csr is the client of a session's client/server runtime (csrss), typed over proto/csrpb: the session's processes
// and its consoles.
//
// A client trusts csrss with what it types and with what it is shown. csrss in turn proves who its caller is and checks each
// console's descriptor. A Client holds no lock and is safe for concurrent use. Files that a method returns belong to
// the caller, files given to a method stay the caller's.
package csr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/proto/ntpb"
	"sallyport/rpc"
)

// MaxInput is the most bytes that one message carries to or from a console.
const MaxInput = 32 << 10

// PortName is where the csrss of a session listens (NT: \Windows\ApiPort, \Sessions\<n>\Windows\ApiPort).
func PortName(session uint32) string {
	if session == 0 {
		return `\Windows\ApiPort`
	}
	return fmt.Sprintf(`\Sessions\%d\Windows\ApiPort`, session)
}

// Client speaks to one csrss over one connection.
type Client struct {
	conn io.Closer
	stub csrpb.ClientServerRuntimeClient
}

// Dial connects to the csrss of a session; while that is being started it waits, as long as ctx lets it.
func Dial(ctx context.Context, sys *alpc.System, session uint32) (*Client, error) {
	conn, err := rpc.Dial(ctx, sys, PortName(session), rpc.DialOptions{Port: alpc.DialOptions{HandleTypes: alpc.HandleTerminal}})
	if err != nil {
		return nil, ntstatus.Wrap("csr.Dial", PortName(session), err)
	}
	return &Client{conn: conn, stub: csrpb.NewClientServerRuntimeClient(conn)}, nil
}

// Close ends the connection and with it the attachments made over it. Consoles stay.
func (c *Client) Close() error { return c.conn.Close() }

// Gone reports whether err says that csrss died or was replaced, so that dialing again may help.
func Gone(err error) bool {
	return slices.Contains([]ntstatus.Status{
		ntstatus.PortDisconnected, ntstatus.PortClosed, ntstatus.LPCReplyLost, ntstatus.MessageLost, ntstatus.PortNotSet,
	}, ntstatus.Of(err)) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Register enters a process, given by its pidfd, into the session's table under a name; nil is the caller itself.
// INVALID_CID if it has ended already.
func (c *Client) Register(ctx context.Context, process *os.File, name string) (*csrpb.Process, error) {
	hs := rpc.NewHandleSet()
	defer hs.Close()
	resp, err := c.stub.RegisterProcess(ctx, &csrpb.RegisterProcessRequest{Process: hs.Add(process), Name: name}, hs.Option())
	return resp.GetProcess(), err
}

// Processes lists the session's live processes in the order of their registration.
func (c *Client) Processes(ctx context.Context) ([]*csrpb.Process, error) {
	resp, err := c.stub.ListProcesses(ctx, &csrpb.ListProcessesRequest{})
	return resp.GetProcesses(), err
}

// Exits calls f with nil once the watch stands, then with each process that ends, until ctx ends, csrss goes or f fails.
func (c *Client) Exits(ctx context.Context, f func(*csrpb.Process) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.stub.WatchExits(ctx, &csrpb.WatchExitsRequest{})
	if err != nil {
		return err
	}
	for {
		notice, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(notice.Process); err != nil {
			return err
		}
	}
}

// Create makes a console. Statuses: OBJECT_NAME_COLLISION, OBJECT_NAME_INVALID, QUOTA_EXCEEDED, and those of the session
// manager's ExecPgm where it has a command.
func (c *Client) Create(ctx context.Context, req *csrpb.CreateConsoleRequest) (*csrpb.Console, error) {
	resp, err := c.stub.CreateConsole(ctx, req)
	return resp.GetConsole(), err
}

// Consoles lists the consoles that the caller may query, by name.
func (c *Client) Consoles(ctx context.Context) ([]*csrpb.Console, error) {
	resp, err := c.stub.ListConsoles(ctx, &csrpb.ListConsolesRequest{})
	return resp.GetConsoles(), err
}

// Console queries one.
func (c *Client) Console(ctx context.Context, name string) (*csrpb.Console, error) {
	resp, err := c.stub.QueryConsole(ctx, &csrpb.QueryConsoleRequest{Name: name})
	return resp.GetConsole(), err
}

// Scrollback reads kept output from a position on, at most limit bytes (0: MaxInput). at is from, or the oldest kept position;
// data is empty at the end of the output.
func (c *Client) Scrollback(ctx context.Context, name string, from uint64, limit int) (data []byte, at uint64, err error) {
	resp, err := c.stub.ReadScrollback(ctx, &csrpb.ReadScrollbackRequest{Name: name, From: from, MaxBytes: uint32(limit)})
	return resp.GetData(), resp.GetPosition(), err
}

// Write types data into the console.
func (c *Client) Write(ctx context.Context, name string, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), MaxInput)
		if _, err := c.stub.WriteConsole(ctx, &csrpb.WriteConsoleRequest{Name: name, Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// Resize sets the console's size.
func (c *Client) Resize(ctx context.Context, name string, columns, rows int) error {
	_, err := c.stub.ResizeConsole(ctx, &csrpb.ResizeConsoleRequest{Name: name, Size: size(columns, rows)})
	return err
}

// DetachViewer ends the attachment of one viewer, or of all where viewer is 0, and returns how many that were.
func (c *Client) DetachViewer(ctx context.Context, name string, viewer uint64) (int, error) {
	resp, err := c.stub.DetachConsole(ctx, &csrpb.DetachConsoleRequest{Name: name, Viewer: viewer})
	return int(resp.GetDetached()), err
}

// OpenTerminal returns the console's terminal itself: a new, blocking open file description of its slave side.
func (c *Client) OpenTerminal(ctx context.Context, name string) (*os.File, error) {
	hs := rpc.NewHandleSet()
	defer hs.Close()
	resp, err := c.stub.OpenConsoleTerminal(ctx, &csrpb.OpenConsoleTerminalRequest{Name: name}, hs.Option())
	if err != nil {
		return nil, err
	}
	return takeHandle(hs, resp.Terminal)
}

// SetSecurity replaces the console's descriptor (SDDL).
func (c *Client) SetSecurity(ctx context.Context, name, sddl string) error {
	_, err := c.stub.SetConsoleSecurity(ctx, &csrpb.SetConsoleSecurityRequest{Name: name, Security: sddl})
	return err
}

// CloseConsole hangs the console's terminal up and forgets its output.
func (c *Client) CloseConsole(ctx context.Context, name string) error {
	_, err := c.stub.CloseConsole(ctx, &csrpb.CloseConsoleRequest{Name: name})
	return err
}

// Attach makes the caller a viewer of a console, until ctx ends, Detach, or the console's end.
func (c *Client) Attach(ctx context.Context, req *csrpb.Attach) (*Attachment, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.stub.AttachConsole(ctx)
	if err == nil {
		err = stream.Send(&csrpb.AttachConsoleRequest{Message: &csrpb.AttachConsoleRequest_Attach{Attach: req}})
	}
	var first *csrpb.AttachConsoleResponse
	if err == nil || errors.Is(err, io.EOF) { // io.EOF of Send: the reason comes with Recv
		first, err = stream.Recv()
	}
	if err == nil && first.GetAttached() == nil {
		err = ntstatus.Errorf("csr.Attach", req.Name, ntstatus.RPCProtocolError, "the first answer is not that it is attached")
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &Attachment{ID: first.GetAttached().Viewer, Console: first.GetAttached().Console, stream: stream, cancel: cancel}, nil
}

// Attachment is one viewer of a console. Recv belongs to one goroutine at a time; the other methods are safe for
// concurrent use.
type Attachment struct {
	ID      uint64
	Console *csrpb.Console // as it was when it was attached

	stream grpc.BidiStreamingClient[csrpb.AttachConsoleRequest, csrpb.AttachConsoleResponse]
	cancel context.CancelFunc
	send   sync.Mutex
}

// Recv returns what comes next: output, a gap in it, a new size, or the end; after the end, io.EOF.
func (a *Attachment) Recv() (*csrpb.AttachConsoleResponse, error) { return a.stream.Recv() }

// Write types p into the console; it waits while the console's programs don't read.
func (a *Attachment) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+MaxInput)]
		if err := a.request(&csrpb.AttachConsoleRequest{Message: &csrpb.AttachConsoleRequest_Input{Input: part}}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Resize makes the viewer's size the console's.
func (a *Attachment) Resize(columns, rows int) error {
	return a.request(&csrpb.AttachConsoleRequest{Message: &csrpb.AttachConsoleRequest_Resize{Resize: size(columns, rows)}})
}

// Detach asks to be detached; Recv then returns what is left, and the end.
func (a *Attachment) Detach() error {
	return a.request(&csrpb.AttachConsoleRequest{Message: &csrpb.AttachConsoleRequest_Detach{Detach: &csrpb.Detach{}}})
}

// Close ends the attachment at once.
func (a *Attachment) Close() error {
	a.cancel()
	return nil
}

func (a *Attachment) request(m *csrpb.AttachConsoleRequest) error {
	a.send.Lock()
	defer a.send.Unlock()
	return a.stream.Send(m)
}

func size(columns, rows int) *csrpb.Size {
	return &csrpb.Size{Columns: uint32(columns), Rows: uint32(rows)}
}

func takeHandle(hs *rpc.HandleSet, h *ntpb.Handle) (*os.File, error) {
	f, err := hs.Take(h)
	if err == nil && f == nil {
		err = ntstatus.RPCProtocolError
	}
	return f, ntstatus.Wrap("csr.OpenTerminal", "", err)
}
