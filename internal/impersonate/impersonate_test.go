package impersonate_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sallyport/internal/impersonate"
	"sallyport/ntstatus"
)

const uid, gid, group = 54321, 54322, 54323

func client() impersonate.Identity {
	return impersonate.Identity{UID: uid, GID: gid, Groups: []uint32{group}}
}

// needRoot skips where the process may not become others.
func needRoot(t *testing.T) {
	err := impersonate.Run(client(), func() error { return nil })
	if ntstatus.Of(err) == ntstatus.PrivilegeNotHeld || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("becoming another user in the kernel's eyes takes CAP_SETUID and CAP_SETGID: %v", err)
	}
	require.NoError(t, err)
}

// files makes a directory that everybody can enter, with one file for each owner and mode.
func files(t *testing.T) string {
	dir, err := os.MkdirTemp("", "impersonate")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o777))
	for name, f := range map[string]struct {
		uid, gid int
		mode     fs.FileMode
	}{"own": {uid, 0, 0o600}, "gid": {0, gid, 0o640}, "group": {0, group, 0o640}, "root": {0, 0, 0o600}, "other": {1, 1, 0o600}} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(name), 0o600))
		require.NoError(t, os.Chown(path, f.uid, f.gid))
		require.NoError(t, os.Chmod(path, f.mode))
	}
	return dir
}

func TestFilesAreOpenedAsTheClient(t *testing.T) {
	needRoot(t)
	dir := files(t)
	for name, want := range map[string]error{"own": nil, "gid": nil, "group": nil, "root": fs.ErrPermission, "other": fs.ErrPermission} {
		err := impersonate.Run(client(), func() error { _, err := os.ReadFile(filepath.Join(dir, name)); return err })
		require.ErrorIs(t, err, want, name)
		_, err = os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err, "the server itself is who it was")
	}
	made := filepath.Join(dir, "made")
	require.NoError(t, impersonate.Run(client(), func() error { return os.WriteFile(made, nil, 0o600) }))
	info, err := os.Stat(made)
	require.NoError(t, err)
	require.EqualValues(t, uid, info.Sys().(*syscall.Stat_t).Uid)
	require.EqualValues(t, gid, info.Sys().(*syscall.Stat_t).Gid)
	err = impersonate.Run(client(), func() error { return os.Chown(made, 0, 0) })
	require.ErrorIs(t, err, fs.ErrPermission, "no capability is left")
}

// TestOthersStayWhoTheyAre: many at once, as different clients, beside goroutines that are the server.
func TestOthersStayWhoTheyAre(t *testing.T) {
	needRoot(t)
	dir := files(t)
	failures := make(chan error, 1000)
	var wg sync.WaitGroup
	for i := range 8 {
		id := client()
		allowed, forbidden := "own", "other"
		if i%2 == 1 {
			id = impersonate.Identity{UID: 1, GID: 1}
			allowed, forbidden = forbidden, allowed
		}
		wg.Go(func() {
			for range 50 {
				err := impersonate.Run(id, func() error {
					if _, err := os.ReadFile(filepath.Join(dir, allowed)); err != nil {
						return err
					}
					if _, err := os.ReadFile(filepath.Join(dir, forbidden)); !errors.Is(err, fs.ErrPermission) {
						return fmt.Errorf("%s as %d: %v", forbidden, id.UID, err)
					}
					return nil
				})
				if _, rootErr := os.ReadFile(filepath.Join(dir, "root")); err != nil || rootErr != nil {
					failures <- errors.Join(err, rootErr)
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	require.NoError(t, <-failures)
}

func TestThreadThatCantBePutBackIsThrownAway(t *testing.T) {
	needRoot(t)
	var tid int
	require.NoError(t, impersonate.Run(client(), func() error {
		tid = unix.Gettid()
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		return unix.Capset(&h, &none[0]) // for good
	}))
	require.Eventually(t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
		return errors.Is(err, fs.ErrNotExist)
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, impersonate.Run(client(), func() error { return nil }))
}

func TestWhatTheFunctionDoesIsTheCallers(t *testing.T) {
	needRoot(t)
	want := errors.New("its own")
	require.Equal(t, want, impersonate.Run(client(), func() error { return want }))
	require.PanicsWithValue(t, "its own", func() { impersonate.Run(client(), func() error { panic("its own") }) })
	require.ErrorIs(t, impersonate.Run(client(), func() error { runtime.Goexit(); return nil }), ntstatus.InternalError)
	require.NoError(t, impersonate.Run(client(), func() error {
		if unix.Gettid() == unix.Getpid() {
			return errors.New("the main thread")
		}
		return nil
	}))
}

func TestNoIDIsNobody(t *testing.T) {
	for _, id := range []impersonate.Identity{{UID: math.MaxUint32}, {GID: math.MaxUint32}, {Groups: []uint32{math.MaxUint32}}} {
		require.ErrorIs(t, impersonate.Run(id, func() error { panic("it must not run") }), ntstatus.InvalidParameter)
	}
}
