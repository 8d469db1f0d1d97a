package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/pty"
)

// person sits at a terminal: they see what a command shows, and type.
type person struct {
	t      *testing.T
	master *os.File
	peer   *os.File
	seen   bytes.Buffer
}

func sitDown(t *testing.T) *person {
	master, err := pty.Open(pty.Size{Columns: 100, Rows: 30})
	require.NoError(t, err)
	peer, err := pty.Peer(master)
	require.NoError(t, err)
	t.Cleanup(func() {
		master.Close()
		peer.Close()
	})
	return &person{t: t, master: master, peer: peer}
}

// start starts the program at the terminal, which is its controlling one.
func (p *person) start(args ...string) *exec.Cmd {
	cmd := exec.Command("sallyport", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.peer, p.peer, p.peer
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(p.t, cmd.Start())
	p.t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	return cmd
}

// sees reads until text was shown, and forgets everything up to there.
func (p *person) sees(text string) {
	p.t.Helper()
	require.NoError(p.t, p.master.SetReadDeadline(time.Now().Add(untilTime)))
	part := make([]byte, 4096)
	for !strings.Contains(p.seen.String(), text) {
		n, err := p.master.Read(part)
		require.NoError(p.t, err, "waiting for %q, seen so far: %q", text, p.seen.String())
		p.seen.Write(part[:n])
	}
	_, rest, _ := strings.Cut(p.seen.String(), text)
	p.seen.Reset()
	p.seen.WriteString(rest)
}

func (p *person) types(text string) {
	p.t.Helper()
	_, err := p.master.WriteString(text)
	require.NoError(p.t, err)
}

// run runs a command that needs no terminal.
func run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command("sallyport", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return string(out)
}

// A person logs on at a terminal, leaves with Ctrl-], comes back to the same shell, and logs off.
func TestLogonAtATerminal(t *testing.T) {
	t.Setenv("SALLYPORT_RUNTIME_DIR", filepath.Join(instanceDirectory(t), "run"))
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	run(t, "", "up")
	t.Cleanup(func() { _ = exec.Command("sallyport", "down").Run() })

	p := sitDown(t)
	add := p.start("user", "add", "alice", "--shell", "/bin/sh")
	for _, prompt := range []string{"password for alice: ", "once more: "} {
		p.sees(prompt)
		p.types("correct horse\n")
	}
	p.sees("name:")
	require.NoError(t, add.Wait())
	require.NotContains(t, p.seen.String(), "correct horse")

	before, err := pty.GetModes(p.peer)
	require.NoError(t, err)
	logon := p.start("logon")
	p.sees("login: ")
	p.types("alice\r")
	p.sees("assword: ")
	p.types("wrong\r")
	p.sees("wrong")
	p.sees("login: ")
	p.types("alice\r")
	p.sees("assword: ")
	p.types("correct horse\r")
	p.types("mark=here; echo I see $((40+2))\r")
	p.sees("I see 42")
	p.types("stty size\r")
	p.sees("30 100")
	p.types("\x1d")
	require.NoError(t, logon.Wait())
	after, err := pty.GetModes(p.peer)
	require.NoError(t, err)
	require.Equal(t, before, after, "the terminal is as it was")

	require.Contains(t, run(t, "", "session", "list"), `\alice`)
	back := p.start("console", "attach", "--session", "1", "winlogon")
	p.sees("I see 42")
	p.types("echo still $mark\r")
	p.sees("still here")
	p.types("exit\r")
	require.NoError(t, back.Wait())
	run(t, "", "down")
}

// instanceDirectory is a temporary directory that servers with uids of their own can get into.
func instanceDirectory(t *testing.T) string {
	t.Helper()
	work := t.TempDir()
	for dir := work; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	return work
}
