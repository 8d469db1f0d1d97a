// Package instance says where an instance of the system lives: its runtime directory (the core's socket), its state, and
// its configuration.
//
// A client does not trust the path: it trusts a directory that only its own user or root could have made (Verify). What is
// found in somebody else's directory is not spoken to, so that a squatter in /tmp gains nothing. Values here are immutable
// and safe for concurrent use.
package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"sallyport/ntstatus"
)

// The environment that chooses an instance.
const (
	EnvRuntime = "SALLYPORT_RUNTIME_DIR"
	EnvState   = "SALLYPORT_STATE_DIR"
	EnvConfig  = "SALLYPORT_CONFIG"
	EnvCore    = "SALLYPORT_CORE" // the core's socket itself, as processes of an instance inherit it
)

// Where the system instance lives.
const (
	systemRuntime = "/run/sallyport"
	systemState   = "/var/lib/sallyport"
	systemConfig  = "/etc/sallyport/sallyport.toml"
)

// socketName is the core's socket within the runtime directory; lockName is locked by the process that serves it.
const (
	socketName = "core"
	lockName   = "lock"
)

// Instance is one place where a system runs or could run.
type Instance struct {
	Runtime string // holds the core's socket; gone after a reboot
	State   string // accounts, services; survives
	Config  string // smss's TOML; need not exist
	// Shared instances serve other users than their owner: their runtime directory is open to all, as access is the
	// core's to decide. The others are their owner's alone (mode 0700).
	Shared bool
}

// Options say which instance is meant. Empty fields fall to the environment, then to the default.
type Options struct {
	Runtime, State, Config string
	System, User           bool // at most one
}

// Locate finds the instance that o means: its own words, then the environment, then the system's instance for root and
// the user's own for everybody else.
func Locate(o Options) (Instance, error) {
	if o.System && o.User {
		return Instance{}, ntstatus.Errorf("instance.Locate", "", ntstatus.InvalidParameter, "system and user exclude each other")
	}
	root := os.Geteuid() == 0
	in := Instance{Runtime: o.Runtime, State: o.State, Config: o.Config, Shared: root}
	if in.Runtime == "" && !o.System && !o.User {
		in.Runtime = os.Getenv(EnvRuntime)
	}
	if in.State == "" {
		in.State = os.Getenv(EnvState)
	}
	if in.Config == "" {
		in.Config = os.Getenv(EnvConfig)
	}
	switch {
	case in.Runtime != "":
		// A directory of its own choice keeps everything together.
		if in.State == "" {
			in.State = filepath.Join(in.Runtime, "state")
		}
		if in.Config == "" {
			in.Config = filepath.Join(in.Runtime, "sallyport.toml")
		}
	case o.System || (root && !o.User):
		in.Runtime = systemRuntime
		in.State, in.Config = or(in.State, systemState), or(in.Config, systemConfig)
	default:
		in.Shared = false
		in.Runtime = userRuntime()
		home, err := os.UserHomeDir()
		if err != nil {
			home = in.Runtime
		}
		in.State = or(in.State, filepath.Join(or(os.Getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "sallyport"))
		in.Config = or(in.Config, filepath.Join(or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")), "sallyport", "sallyport.toml"))
	}
	for _, p := range []*string{&in.Runtime, &in.State, &in.Config} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return Instance{}, ntstatus.Wrap("instance.Locate", *p, err)
		}
		*p = abs
	}
	return in, nil
}

// userRuntime is where a user's own instance lives: $XDG_RUNTIME_DIR, or a directory in the temporary directory that
// carries the user's number and belongs to nobody else (Verify).
func userRuntime() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "sallyport")
	}
	return filepath.Join(os.TempDir(), "sallyport-"+strconv.Itoa(os.Geteuid()))
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Socket is the path of the core's socket.
func (in Instance) Socket() string { return filepath.Join(in.Runtime, socketName) }

// Prepare makes the instance's directories and verifies those that are there already.
func (in Instance) Prepare() error {
	runtime, state := fs.FileMode(0o700), fs.FileMode(0o700)
	if in.Shared {
		// Each server owns its own directory below state; the parent only lets them through.
		runtime, state = 0o755, 0o711
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{in.Runtime, runtime}, {in.State, state}} {
		if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
			return ntstatus.Wrap("instance.Prepare", d.path, err)
		}
		switch err := os.Mkdir(d.path, d.mode); {
		case err == nil:
			// The umask may have taken bits away that others need.
			if err := os.Chmod(d.path, d.mode); err != nil {
				return ntstatus.Wrap("instance.Prepare", d.path, err)
			}
		case !errors.Is(err, fs.ErrExist):
			return ntstatus.Wrap("instance.Prepare", d.path, err)
		}
		if err := verify(d.path); err != nil {
			return err
		}
	}
	return nil
}

// Verify refuses a runtime directory that somebody else than this user or root could have made or can write to.
// ObjectNameNotFound means that there is none, so nothing runs there.
func (in Instance) Verify() error { return verify(in.Runtime) }

func verify(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return ntstatus.Wrap("instance.Verify", dir, err)
	}
	if !info.IsDir() {
		return ntstatus.Errorf("instance.Verify", dir, ntstatus.ObjectPathInvalid, "not a directory")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || (int(st.Uid) != os.Geteuid() && st.Uid != 0) {
		return ntstatus.Errorf("instance.Verify", dir, ntstatus.InvalidOwner,
			"it belongs to another user; choose a directory of your own with --runtime or %s", EnvRuntime)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return ntstatus.Errorf("instance.Verify", dir, ntstatus.AccessDenied, "others may write to it (mode %04o)", info.Mode().Perm())
	}
	return nil
}

// Claim makes this process the only one that may serve the instance, and clears away the socket of one that was killed.
// ObjectNameCollision: another has it. The claim ends with release, or with the process.
func (in Instance) Claim() (release func(), err error) {
	// A file that others can't open, or anybody who may look into the directory could hold the claim.
	lock, err := os.OpenFile(filepath.Join(in.Runtime, lockName), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, ntstatus.Wrap("instance.Claim", in.Runtime, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ntstatus.Errorf("instance.Claim", in.Runtime, ntstatus.ObjectNameCollision, "an instance runs there already")
		}
		return nil, ntstatus.Wrap("instance.Claim", in.Runtime, err)
	}
	if err := os.Remove(in.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Close()
		return nil, ntstatus.Wrap("instance.Claim", in.Socket(), err)
	}
	return func() { lock.Close() }, nil
}
