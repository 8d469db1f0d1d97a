// Package impersonate runs a function as another user in the kernel's eyes, on one thread: what it opens, makes or removes is
// checked against that user's file-system ids and groups, and against no capability of the process.
//
// It trusts its caller, who must know whom it may stand for, and nothing of what the function opens. File-system ids are used, and
// not all ids, on purpose: a thread whose real uid is the client's could be killed by the client's processes, and with
// it the server. The kernel makes a process undumpable whose thread did this, and it stays so.
package impersonate

import (
	"errors"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"sallyport/ntstatus"
)

// Identity is whom the kernel is to see.
type Identity struct {
	UID, GID uint32
	Groups   []uint32
	// Capabilities keeps those of the process; only for one that stands for root.
	Capabilities bool
}

// Run runs fn on a thread of its own as id, waits for it, and returns its error. Goroutines that fn starts are not id, and
// neither is what fn hands to others. PRIVILEGE_NOT_HELD where the process has not CAP_SETUID and CAP_SETGID; any failure to
// become id is an error before fn runs. A thread that can't be put back as it was is thrown away. A panic of fn is the caller's.
func Run(id Identity, fn func() error) error {
	if id.UID == math.MaxUint32 || id.GID == math.MaxUint32 || slices.Contains(id.Groups, math.MaxUint32) {
		return ntstatus.Errorf("impersonate.Run", "", ntstatus.InvalidParameter, "-1 is no id")
	}
	done := make(chan outcome, 1)
	go offMain(func() { done <- onThread(id, fn) }, done)
	r := <-done
	if r.panicked {
		panic(r.value)
	}
	return r.err
}

type outcome struct {
	err      error
	panicked bool
	value    any
}

// offMain runs work on a locked thread that is not the main one: the main thread carries the process's parent-death signal,
// which a change of ids takes away. The thread is unlocked by work, or dies with its goroutine.
func offMain(work func(), done chan<- outcome) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		defer func() { // fn ended its goroutine: nothing was sent
			select {
			case done <- outcome{err: ntstatus.Errorf("impersonate.Run", "", ntstatus.InternalError, "the function did not return")}:
			default:
			}
		}()
		work()
		return
	}
	defer runtime.UnlockOSThread()
	over := make(chan struct{})
	go func() { defer close(over); offMain(work, done) }()
	<-over // while this goroutine keeps the main thread
}

// onThread becomes id, runs fn and goes back. The caller has locked the thread; it is unlocked only when all is as it was.
func onThread(id Identity, fn func() error) (r outcome) {
	before, err := current()
	if err != nil {
		runtime.UnlockOSThread()
		return outcome{err: ntstatus.Wrap("impersonate.Run", "", err)}
	}
	if !before.has(unix.CAP_SETUID) || !before.has(unix.CAP_SETGID) {
		runtime.UnlockOSThread()
		return outcome{err: ntstatus.Errorf("impersonate.Run", "", ntstatus.PrivilegeNotHeld, "the process has not both CAP_SETUID and CAP_SETGID")}
	}
	defer func() {
		if before.restore() == nil {
			runtime.UnlockOSThread()
		}
	}()
	if err := become(id, before); err != nil {
		return outcome{err: ntstatus.Wrap("impersonate.Run", "", err)}
	}
	defer func() {
		if v := recover(); v != nil {
			r = outcome{panicked: true, value: v}
		}
	}()
	return outcome{err: fn()}
}

// state is what of a thread is changed.
type state struct {
	uid, gid int
	groups   []int
	caps     [2]unix.CapUserData
}

func current() (s state, err error) {
	if s.groups, err = unix.Getgroups(); err != nil {
		return s, err
	}
	s.uid, s.gid = fsids()
	h := capHeader()
	return s, unix.Capget(&h, &s.caps[0])
}

// fsids asks for the ids by setting none: -1 is refused, and the answer is what they are.
func fsids() (uid, gid int) {
	uid, _ = unix.SetfsuidRetUid(-1)
	gid, _ = unix.SetfsgidRetGid(-1)
	return uid, gid
}

func capHeader() unix.CapUserHeader {
	return unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func (s state) has(c int) bool { return s.caps[c/32].Effective&(1<<(c%32)) != 0 }

// become takes the groups first, while the thread still may, and the capabilities last.
func become(id Identity, before state) error {
	groups := make([]int, len(id.Groups))
	for i, g := range id.Groups {
		groups[i] = int(g)
	}
	if err := unix.Setgroups(groups); err != nil {
		return err
	}
	if err := setFSIDs(int(id.UID), int(id.GID)); err != nil {
		return err
	}
	caps := before.caps
	if !id.Capabilities {
		caps[0].Effective, caps[1].Effective = 0, 0
	}
	h := capHeader()
	return unix.Capset(&h, &caps[0])
}

// setFSIDs sets both and looks: the calls themselves report no failure.
func setFSIDs(uid, gid int) error {
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	if u, g := fsids(); u != uid || g != gid {
		return errors.New("the kernel did not take the file-system ids")
	}
	return nil
}

// restore puts the thread back as it was, and makes sure that it is.
func (s state) restore() error {
	h := capHeader()
	if err := unix.Capset(&h, &s.caps[0]); err != nil {
		return err
	}
	if err := setFSIDs(s.uid, s.gid); err != nil {
		return err
	}
	if err := unix.Setgroups(s.groups); err != nil {
		return err
	}
	// From uid 0 the kernel changes capabilities with the file-system uid, of its own accord.
	if err := unix.Capset(&h, &s.caps[0]); err != nil {
		return err
	}
	now, err := current()
	if err == nil && (now.uid != s.uid || now.gid != s.gid || now.caps != s.caps || !slices.Equal(now.groups, s.groups)) {
		err = errors.New("the thread is not what it was")
	}
	return err
}
