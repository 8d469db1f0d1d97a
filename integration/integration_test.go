// Package integration_test tries the whole system: real processes, real clients, and peers that mean harm. The test program is
// every process of its tests: "as MODE" makes it a client or an attacker, anything else that is no test flag makes it sallyport
// itself. Nothing is built, and nothing here trusts what a server says of its own health: processes, descriptors, goroutines
// and the core's books are counted from outside.
package integration_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/cmd/sallyport/cli"
	"sallyport/scm"
	"sallyport/subsys"
	"sallyport/subsys/csrss"
	"sallyport/subsys/lsass"
	"sallyport/subsys/winlogon"
)

// nobody is the user that clients and attackers run as where the tests run as root, whom no core can bound.
const nobody = 65534

// modes are what the test program can be, by "as NAME ARGUMENT...".
func modes() map[string]func(args []string) error {
	return map[string]func([]string) error{"attack": attackMode, "victim": victimMode}
}

func TestMain(m *testing.M) {
	switch args := os.Args; {
	case len(args) < 2 || strings.HasPrefix(args[1], "-test."):
		if os.Getenv("GORACE") == "" {
			os.Setenv("GORACE", "atexit_sleep_ms=0") // under the race detector each process would take a second to end
		}
		os.Exit(m.Run())
	case args[1] == "as":
		if err := modes()[args[2]](args[3:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", args[2], err)
			os.Exit(1)
		}
	default:
		os.Exit(cli.Main(args, []subsys.Server{lsass.Server(), scm.Server(), csrss.Server(), winlogon.Server()}))
	}
}

// part is a process of a test, in a mode: it says something in lines and ends when its standard input does.
type part struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

// start starts the test program in a mode, as nobody if the tests run as root.
func start(t *testing.T, mode ...string) *part {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"as"}, mode...)...)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &part{cmd: cmd, stdin: stdin, lines: bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return p
}

// awaitLine reads what the process says next.
func (p *part) awaitLine(t *testing.T) string {
	t.Helper()
	require.True(t, p.lines.Scan(), "%v ended", p.cmd.Args)
	return p.lines.Text()
}

// end asks the process to end, and returns its last line.
func (p *part) end(t *testing.T) (last string) {
	t.Helper()
	p.stdin.Close()
	for p.lines.Scan() {
		last = p.lines.Text()
	}
	require.NoError(t, p.cmd.Wait(), "%v: %s", p.cmd.Args, last)
	return last
}

func (p *part) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// untilStdinEnds is a context that ends with the standard input: whoever started this process wants it to end.
func untilStdinEnds() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// eventually waits for a condition, which says what is still missing.
func eventually(t *testing.T, within time.Duration, condition func() error) {
	t.Helper()
	look, over := time.NewTicker(10*time.Millisecond), time.After(within)
	defer look.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-look.C:
		case <-over:
			require.NoError(t, err, "still not after %s", within)
		}
	}
}

// descriptors counts what a process has open, by kind: sockets, pidfds, memfds and the rest.
func descriptors(pid int) (map[string]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	open, err := os.ReadDir(dir)
	kinds := map[string]int{}
	for _, f := range open {
		target, err := os.Readlink(filepath.Join(dir, f.Name()))
		if err != nil {
			continue // the one that reads the directory
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(target, "/"), ":")
		if strings.HasPrefix(target, "/") && kind != "memfd" {
			kind = "file"
		}
		kinds[kind]++
	}
	return kinds, err
}

// footprint is what this process holds that an attack must not make it hold for good.
type footprint struct {
	descriptors map[string]int
	goroutines  int
	charges     map[string]uint64
}

func (f footprint) exceeds(base footprint) error {
	for kind, n := range f.descriptors {
		if n > base.descriptors[kind] {
			return fmt.Errorf("%d descriptors of kind %s, %d before: %v", n, kind, base.descriptors[kind], f.descriptors)
		}
	}
	if f.goroutines > base.goroutines {
		stacks := make([]byte, 1<<20)
		return fmt.Errorf("%d goroutines, %d before:\n%s", f.goroutines, base.goroutines, stacks[:runtime.Stack(stacks, true)])
	}
	if !maps.Equal(f.charges, base.charges) {
		return fmt.Errorf("charges are %v and were %v", f.charges, base.charges)
	}
	return nil
}

// measure reads the footprint of this process and the books of the core that sys belongs to.
func measure(ctx context.Context, sys *alpc.System) (footprint, error) {
	f := footprint{charges: map[string]uint64{}, goroutines: runtime.NumGoroutine()}
	charges, err := sys.Charges(ctx)
	for _, c := range charges {
		if c.Used > 0 {
			f.charges[fmt.Sprintf("%s of uid %d", c.Resource, c.UID)] = c.Used
		}
	}
	fds, err2 := descriptors(os.Getpid())
	f.descriptors = fds
	return f, errors.Join(err, err2)
}
