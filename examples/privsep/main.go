// Command privsep says what kind of pictures files are, and trusts no file: it splits itself in two. The privileged half
// opens the files that its user named, and nothing else. The confined half reads them, which is where a hostile file would strike:
// it has no files, no network and no other programs, and asks the privileged half by a port.
//
//	go run ./examples/privsep picture.png other.gif
//
// The two halves are one program. The first embeds a core, starts the second and gives it a token of its own; so the port knows
// who asks, and the .proto says what may be asked.
package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // the formats that are known; reading them is the dangerous part
	_ "image/jpeg"
	_ "image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"sallyport/alpc"
	"sallyport/alpc/core"
	"sallyport/examples/privsep/privseppb"
	"sallyport/ntstatus"
	"sallyport/rpc"
	"sallyport/security"
)

const (
	port = `\Opener`
	// coreVariable says to the second half where the core is, and that it is the second half.
	coreVariable = "PRIVSEP_CORE"
)

// reader is who the confined half is: a SID that nobody else has.
func reader() security.SID { return security.ServiceSID("privsep-reader") }

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	half := privileged
	if os.Getenv(coreVariable) != "" {
		half = confined
	}
	if err := half(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "privsep:", err)
		os.Exit(1)
	}
}

// privileged opens the named files for the other half, until that ends.
func privileged(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return errors.New("usage: privsep FILE, and more of them")
	}
	dir, err := os.MkdirTemp("", "privsep-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Process: this program's children wait for the token that it gives them.
	c, err := core.Start(core.Options{Path: filepath.Join(dir, "core"), Process: true})
	if err != nil {
		return err
	}
	defer c.Close()
	control, err := c.Attach(core.SystemToken(), "privileged half")
	if err != nil {
		return err
	}
	sys, err := alpc.Attach(ctx, alpc.Options{Control: control})
	if err != nil {
		return err
	}
	defer sys.Close()
	serving, err := serve(ctx, sys, names)
	if err != nil {
		return err
	}
	defer serving()

	child := exec.Command("/proc/self/exe", names...)
	child.Env = append(os.Environ(), coreVariable+"="+c.Path())
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return err
	}
	process, err := handleOf(child.Process.Pid)
	if err != nil {
		return errors.Join(err, child.Process.Kill(), child.Wait())
	}
	defer process.Close()
	token, err := sys.CreateToken(ctx, &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: reader()}, Owner: reader(), PrimaryGroup: reader(),
		Groups:    []security.Group{{SID: security.Everyone(), Attributes: security.GroupDefault}},
		Integrity: security.IntegrityLow(), Source: security.TokenSource{Name: "privsep"},
		Privileges: []security.TokenPrivilege{{Privilege: security.SeChangeNotify, Attributes: security.PrivilegeEnabled}},
	})
	if err == nil {
		err = sys.AssignToken(ctx, process, token.TokenID)
	}
	if err != nil {
		_ = child.Process.Kill() // it has nothing to do without a token
	}
	if ended := child.Wait(); err == nil {
		err = ended
	}
	return err
}

// handleOf is a pidfd of a child, which can't have been recycled while nobody has waited for it. It is one of its own: the core
// makes its pidfds ones that don't block, and exec.Cmd waits on the one that it has.
func handleOf(pid int) (*os.File, error) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	defer p.Release()
	var fd int
	if herr := p.WithHandle(func(handle uintptr) { fd, err = syscall.Dup(int(handle)) }); herr != nil || err != nil {
		return nil, errors.Join(herr, err)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "child"), nil
}

// serve offers the files to the other half; the returned function ends that.
func serve(ctx context.Context, sys *alpc.System, names []string) (func(), error) {
	// Integrity: the port is for a process of low integrity, so its label must not be higher.
	only := "D:(A;;0x1;;;" + reader().String() + ")S:(ML;;NW;;;LW)"
	l, err := sys.Listen(ctx, port, alpc.PortAttributes{SecurityDescriptor: "O:SYG:SY" + only, AutoAccept: true})
	if err != nil {
		return nil, err
	}
	descriptor, err := security.ParseSDDL("O:SYG:SY" + only)
	if err != nil {
		return nil, err
	}
	s := rpc.NewServer(rpc.ServerOptions{System: sys})
	privseppb.RegisterOpenerServer(s, opener{})
	s.Secure("privsep.Opener", rpc.Interface{Descriptor: descriptor, Resolve: func(_ context.Context, name string) (*security.Descriptor, error) {
		if !slices.Contains(names, name) {
			return nil, ntstatus.New("privsep.Open", name, ntstatus.ObjectNameNotFound)
		}
		return descriptor, nil
	}})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ctx, l) // it ends with ctx; what went wrong before, the other half sees
	}()
	return func() { cancel(); <-done }, nil
}

type opener struct {
	privseppb.UnimplementedOpenerServer
}

// Open is only called for a name that its caller has FILE_READ on.
func (opener) Open(ctx context.Context, r *privseppb.OpenRequest) (*privseppb.OpenReply, error) {
	f, err := os.Open(r.Name)
	if err != nil {
		return nil, ntstatus.Wrap("privsep.Open", r.Name, err)
	}
	return &privseppb.OpenReply{File: rpc.Handles(ctx).Give(f)}, nil
}

// confined reads the files. Before it touches the first byte it gives everything away but its connection.
func confined(ctx context.Context, names []string) error {
	sys, err := alpc.Attach(ctx, alpc.Options{Path: os.Getenv(coreVariable)})
	if err != nil {
		return err
	}
	defer sys.Close()
	conn, err := rpc.Dial(ctx, sys, port, rpc.DialOptions{Port: alpc.DialOptions{HandleTypes: alpc.HandleFile}})
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, left := range confine() {
		fmt.Fprintln(os.Stderr, "privsep: not confined by", left)
	}
	if err := escape(); err != nil {
		fmt.Fprintln(os.Stderr, "privsep: this kernel does not confine:", err)
	}
	client := privseppb.NewOpenerClient(conn)
	failed := 0
	// The last name is one that nobody gave: the port refuses it, whatever this half has become.
	for _, name := range append(names, "/etc/shadow") {
		what, err := look(ctx, client, name)
		if err != nil {
			what = err.Error()
			if slices.Contains(names, name) {
				failed++
			}
		}
		fmt.Printf("%s: %s\n", name, what)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d files were no pictures", failed, len(names))
	}
	return nil
}

// look says what picture a file is.
func look(ctx context.Context, client privseppb.OpenerClient, name string) (string, error) {
	files := rpc.NewHandleSet()
	defer files.Close()
	reply, err := client.Open(ctx, &privseppb.OpenRequest{Name: name}, files.Option())
	if err != nil {
		return "", err
	}
	f, err := files.Take(reply.File)
	if err != nil {
		return "", err
	}
	defer f.Close()
	config, format, err := image.DecodeConfig(f)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %d x %d", format, config.Width, config.Height), nil
}
