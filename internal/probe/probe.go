// Package probe asks the running kernel what it gives, by trying it: a version number says little about a vendor's kernel or
// a container's filter. Nothing it tries leaves a trace. It trusts the kernel and nobody else.
package probe

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sallyport/internal/kernel"
	"sallyport/internal/memfd"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
)

// State says how much a finding matters.
type State string

// What a finding can be.
const (
	OK       State = "ok"
	Degraded State = "degraded" // everything works; something is weaker or slower
	Broken   State = "broken"   // the set does not run
)

// Finding is one thing that was tried.
type Finding struct {
	Name  string
	State State
	Found string // what was seen
	Do    string // what to do about it; empty where there is nothing to do
}

// Findings tries everything, in the order of its importance.
func Findings() []Finding {
	return []Finding{version(), pidfds(), peer(), sections(), passRights(), syscallFilter(), landlock(), cgroups(), userNamespaces(), openFiles(), mapCount()}
}

func version() Finding {
	f := Finding{Name: "kernel version", State: OK}
	_, _, release, err := kernel.Version()
	if err != nil {
		return broken(f, err, "")
	}
	f.Found = release
	if !kernel.AtLeast(kernel.FloorMajor, kernel.FloorMinor) {
		f.State = Broken
		f.Do = fmt.Sprintf("the core needs Linux %d.%d or newer, for the pidfd of a socket's peer", kernel.FloorMajor, kernel.FloorMinor)
	}
	return f
}

func broken(f Finding, err error, do string) Finding {
	f.State, f.Found, f.Do = Broken, err.Error(), do
	return f
}

func degraded(f Finding, found, do string) Finding {
	f.State, f.Found, f.Do = Degraded, found, do
	return f
}

func pidfds() Finding {
	f := Finding{Name: "pidfd", State: OK, Found: "a process can be named without its number"}
	self, err := pidfd.Self()
	if err != nil {
		return broken(f, err, "a container's system call filter may forbid pidfd_open: allow it")
	}
	defer self.Close()
	if !pidfd.Alive(self) {
		return broken(f, errors.New("this process's own pidfd says that it has ended"), "")
	}
	return f
}

func peer() Finding {
	f := Finding{Name: "identity of a socket's peer", State: OK, Found: "SO_PEERPIDFD, SO_PEERCRED, SO_PEERGROUPS"}
	a, b, err := unixsock.Pair()
	if err != nil {
		return broken(f, err, "")
	}
	defer a.Close()
	defer b.Close()
	p, err := a.PeerPIDFD()
	if err != nil {
		return broken(f, err, "the core can't prove who attaches without it")
	}
	p.Close()
	if _, err := a.PeerCred(); err != nil {
		return broken(f, err, "")
	}
	if _, err := a.PeerGroups(); err != nil {
		return broken(f, err, "")
	}
	return f
}

func sections() Finding {
	f := Finding{Name: "sealed memory files", State: OK, Found: "memfd with SHRINK, GROW and SEAL"}
	file, err := memfd.Create("sallyport-doctor", os.Getpagesize())
	if err != nil {
		return broken(f, err, "the shared gear needs memfd_create")
	}
	defer file.Close()
	if err := memfd.Verify(file, os.Getpagesize()); err != nil {
		return broken(f, err, "")
	}
	return f
}

func passRights() Finding {
	f := Finding{Name: "refusing descriptors", State: OK, Found: "SO_PASSRIGHTS"}
	a, b, err := unixsock.Pair()
	if err != nil {
		return broken(f, err, "")
	}
	defer a.Close()
	defer b.Close()
	if err := a.SetPassRights(false); err != nil {
		return degraded(f, err.Error(), "nothing: a port that takes no handles closes the ones it gets instead of having the kernel refuse them (Linux 6.16 does)")
	}
	return f
}

func syscallFilter() Finding {
	f := Finding{Name: "seccomp", State: OK, Found: "system call filters"}
	// Asking whether an action is known sets nothing.
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		return degraded(f, err.Error(), "servers and confined programs run without a system call filter: use a kernel with CONFIG_SECCOMP_FILTER")
	} else if mode != 0 {
		f.Found = "system call filters; this process runs under one already"
	}
	return f
}

func landlock() Finding {
	f := Finding{Name: "landlock", State: OK}
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return degraded(f, errno.Error(), "confined programs keep access to files: enable landlock (boot with lsm=landlock,...)")
	}
	f.Found = fmt.Sprintf("ABI %d", abi)
	return f
}

func cgroups() Finding {
	f := Finding{Name: "cgroup v2", State: OK}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return degraded(f, "/sys/fs/cgroup is not a cgroup v2 hierarchy", "nothing: processes are found by session and process group, and no memory or processor limits can be set")
	}
	f.Found = "mounted"
	if unix.Access("/sys/fs/cgroup/cgroup.procs", unix.W_OK) != nil {
		return degraded(f, "mounted, not delegated to this user", "nothing: processes are found by session and process group")
	}
	return f
}

func userNamespaces() Finding {
	f := Finding{Name: "user namespaces", State: OK}
	limit, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return degraded(f, err.Error(), "nothing: the set does not need them")
	}
	f.Found = "at most " + strings.TrimSpace(string(limit))
	if f.Found == "at most 0" {
		return degraded(f, "switched off", "nothing: the set does not need them; some of its tests are left out")
	}
	return f
}

// minOpenFiles is what a core with some hundreds of connections needs.
const minOpenFiles = 4096

func openFiles() Finding {
	f := Finding{Name: "open files", State: OK}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return broken(f, err, "")
	}
	f.Found = fmt.Sprintf("%d, at most %d", limit.Cur, limit.Max)
	if limit.Max < minOpenFiles {
		return degraded(f, f.Found, fmt.Sprintf("raise the hard limit to %d (ulimit -Hn, LimitNOFILE=): connections are refused beyond it", minOpenFiles))
	}
	return f
}

func mapCount() Finding {
	f := Finding{Name: "memory map count", State: OK}
	raw, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err != nil {
		return degraded(f, err.Error(), "")
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	f.Found = strings.TrimSpace(string(raw))
	if err == nil && n < 65530 {
		return degraded(f, f.Found, "raise vm.max_map_count to 65530: each connection in the shared gear is a mapping")
	}
	return f
}
