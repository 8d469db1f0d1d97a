package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the test binary be the program wherever it is started as "sallyport": by scripts, and by the program itself, which
// starts the core and every server under that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sallyport": main})
}

// scripts are where the commands are typed.
const scripts = "../../integration/testdata/script"

// untilTime is how long "until" waits for its condition.
const untilTime = 20 * time.Second

func TestCommandsAsTheyAreTyped(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 scripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Condition: func(condition string) (bool, error) {
			switch condition {
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, errors.New("unknown condition")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "until": until},
	})
}

// setUp gives a script an instance of its own, and ends it with the script.
func setUp(env *testscript.Env) error {
	// Run as root, the set's servers have uids of their own and must get at the core's socket.
	for dir := env.WorkDir; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	runtime := filepath.Join(env.WorkDir, "run")
	env.Setenv("SALLYPORT_RUNTIME_DIR", runtime)
	env.Setenv("GORACE", "atexit_sleep_ms=0")
	env.Defer(func() {
		down := exec.Command(os.Args[0], "--runtime", runtime, "down", "--grace", "5s")
		down.Args[0] = "sallyport"
		_ = down.Run() // most scripts have stopped it themselves
	})
	return nil
}

// exits runs a command and wants an exit code: "exits 3 sallyport status".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var ended *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d instead of %d", got, want)
	}
}

// until runs a command again and again until its output matches, for what the system does by itself: "until 'RE' COMMAND".
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND [ARGUMENT...]")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), untilTime)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			ts.Fatalf("%q never matched; last: %v", args[0], err)
		}
	}
}
