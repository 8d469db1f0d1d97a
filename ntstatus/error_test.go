package ntstatus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
)

func TestErrorSaysWhatHappenedToWhat(t *testing.T) {
	denied := ntstatus.New("core.Connect", `\SmApiPort`, ntstatus.AccessDenied)
	for want, err := range map[string]error{
		`core.Connect \SmApiPort: access denied`:                                 denied,
		`core.Connect: access denied`:                                            ntstatus.New("core.Connect", "", ntstatus.AccessDenied),
		`sm.Boot lsass: core.Connect \SmApiPort: access denied`:                  ntstatus.Wrap("sm.Boot", "lsass", denied),
		`sm.Boot: no such token: core.Connect \SmApiPort: access denied`:         &ntstatus.Error{Op: "sm.Boot", Status: ntstatus.NoToken, Err: denied},
		`sm.Boot: no such token: access denied`:                                  &ntstatus.Error{Op: "sm.Boot", Status: ntstatus.NoToken, Err: ntstatus.AccessDenied},
		`sm.Boot: access denied`:                                                 ntstatus.Wrap("sm.Boot", "", ntstatus.AccessDenied),
		`sm.Load a.toml: a parameter is not valid: line 3: unknown key "sevrer"`: ntstatus.Errorf("sm.Load", "a.toml", ntstatus.InvalidParameter, "line %d: unknown key %q", 3, "sevrer"),
	} {
		require.EqualError(t, err, want)
	}
	require.NoError(t, ntstatus.Wrap("sm.Boot", "lsass", nil))
}

func TestErrorIsItsStatusAndItsCauses(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("outer: %w", ntstatus.Wrap("b", "", &ntstatus.Error{Op: "a", Status: ntstatus.DiskFull, Err: cause}))
	require.ErrorIs(t, err, ntstatus.DiskFull)
	require.ErrorIs(t, err, cause)
	require.NotErrorIs(t, err, ntstatus.AccessDenied)
	require.Equal(t, ntstatus.DiskFull, ntstatus.Of(err))
	var inner *ntstatus.Error
	require.ErrorAs(t, err, &inner)
	require.Equal(t, "b", inner.Op)
}

func TestDenialTellsTheRightAndHowToLearnWhy(t *testing.T) {
	err := error(&ntstatus.Error{Op: "core.Connect", Object: `\P`, Status: ntstatus.AccessDenied,
		Err: &ntstatus.Denial{Object: `\P`, Right: "PORT_CONNECT (0x1)", Decision: 7}})
	require.EqualError(t, err, `core.Connect \P: access denied: PORT_CONNECT (0x1) is needed on \P (decision 7: run "sallyport explain 7" to see which entry decided)`)
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	denial.Decision = 0
	require.EqualError(t, err, `core.Connect \P: access denied: PORT_CONNECT (0x1) is needed on \P`)
}

func TestEveryErrorHasAStatus(t *testing.T) {
	_, notExist := os.Open(filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		err  error
		want ntstatus.Status
	}{
		{nil, ntstatus.Success},
		{ntstatus.NoSuchUser, ntstatus.NoSuchUser},
		{fmt.Errorf("x: %w", ntstatus.NoSuchUser), ntstatus.NoSuchUser},
		{ntstatus.New("x", "", ntstatus.NoSuchUser), ntstatus.NoSuchUser},
		{&ntstatus.Error{Status: ntstatus.NoToken, Err: ntstatus.NoSuchUser}, ntstatus.NoToken},
		{context.DeadlineExceeded, ntstatus.IOTimeout},
		{os.ErrDeadlineExceeded, ntstatus.IOTimeout},
		{context.Canceled, ntstatus.RequestCanceled},
		{notExist, ntstatus.ObjectNameNotFound},
		{os.ErrNotExist, ntstatus.ObjectNameNotFound},
		{os.ErrPermission, ntstatus.AccessDenied},
		{&os.SyscallError{Syscall: "x", Err: syscall.EMFILE}, ntstatus.InsufficientResources},
		{io.EOF, ntstatus.Unsuccessful},
		// What claims to be no failure is one all the same: it came as an error.
		{ntstatus.Success, ntstatus.Unsuccessful},
		{ntstatus.New("x", "", ntstatus.Success), ntstatus.Unsuccessful},
		{syscall.Errno(0), ntstatus.Unsuccessful},
	} {
		require.Equal(t, c.want, ntstatus.Of(c.err), "%v", c.err)
	}
}
