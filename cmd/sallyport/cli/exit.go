package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"sallyport/ntstatus"
)

// Exit codes. They are part of the interface: append-only, documented in docs/operations.md and "sallyport help exit-codes".
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotRunning  = 3
	exitDenied      = 4
	exitLogon       = 5
	exitTimeout     = 6
	exitUnavailable = 7
	exitConflict    = 8
	exitQuota       = 9
)

const exitCodesHelp = `Every verb ends with one of these:

  0  done; the state that was asked for is true
  1  failed for another reason than those below
  2  usage: the command line is not right
  3  not running, or no such thing
  4  access denied
  5  authentication failed
  6  timed out
  7  the server is unavailable
  8  conflict: it exists already, or is in that state already
  9  a quota or limit is reached

"logon" and "console attach" pass on how the console's program ended: its code, or 128 + n for signal n.
With -o json an error is one JSON object on standard error: {"error":{"code","status","message","hint",...}}.`

// failure is an error with more to say than a status: its own hint, or its own exit code.
type failure struct {
	err  error
	hint string
	code int // 0: what the status says
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// hinted gives err a hint that is better than its status's.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &failure{err: err, hint: fmt.Sprintf(format, args...)}
}

// usage is an error in the command line.
func usage(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), hint: "see --help", code: exitUsage}
}

// exitCode is the code of an error: its own where it has one, else its status's group.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var f *failure
	if errors.As(err, &f) && f.code != 0 {
		return f.code
	}
	switch ntstatus.Of(err) {
	case ntstatus.ObjectNameNotFound, ntstatus.ObjectPathNotFound, ntstatus.NotFound, ntstatus.NoSuchUser, ntstatus.NoneMapped,
		ntstatus.ServiceDoesNotExist, ntstatus.InvalidCID, ntstatus.NoSuchLogonSession:
		return exitNotRunning
	case ntstatus.AccessDenied, ntstatus.PrivilegeNotHeld, ntstatus.InvalidOwner, ntstatus.ServerSIDMismatch:
		return exitDenied
	case ntstatus.LogonFailure, ntstatus.WrongPassword, ntstatus.PasswordExpired, ntstatus.PasswordMustChange, ntstatus.AccountDisabled,
		ntstatus.AccountLockedOut, ntstatus.AccountExpired, ntstatus.AccountRestriction, ntstatus.LogonTypeNotGranted, ntstatus.ServiceLogonFailed:
		return exitLogon
	case ntstatus.Timeout, ntstatus.IOTimeout, ntstatus.ServiceRequestTimeout, ntstatus.ServiceStartHang:
		return exitTimeout
	case ntstatus.PortDisconnected, ntstatus.PortDoNotDisturb, ntstatus.PortConnectionRefused, ntstatus.PortClosed, ntstatus.LPCReplyLost,
		ntstatus.ConnectionReset, ntstatus.RPCServerTooBusy, ntstatus.ShutdownInProgress, ntstatus.SystemShutdownInProgress:
		return exitUnavailable
	case ntstatus.ObjectNameCollision, ntstatus.UserExists, ntstatus.ServiceExists, ntstatus.DuplicateServiceName, ntstatus.ServiceAlreadyRunning,
		ntstatus.ServiceNotActive, ntstatus.ServiceMarkedForDelete, ntstatus.DependentServicesRunning, ntstatus.ResourceInUse, ntstatus.LastAdmin:
		return exitConflict
	case ntstatus.QuotaExceeded, ntstatus.InsufficientResources, ntstatus.NoMemory, ntstatus.DiskFull, ntstatus.TooManySessions, ntstatus.TooManyLinks:
		return exitQuota
	}
	return exitFailure
}

// errorReport is the JSON form of an error.
type errorReport struct {
	Code     int    `json:"code"`             // the exit code
	Status   string `json:"status,omitempty"` // the NT status's symbol
	Value    uint32 `json:"value,omitempty"`  // and number
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
	Op       string `json:"op,omitempty"`
	Object   string `json:"object,omitempty"`
	Right    string `json:"right,omitempty"`
	Decision uint64 `json:"decision,omitempty"`
}

func report(err error) errorReport {
	r := errorReport{Code: exitCode(err), Message: err.Error()}
	var f *failure
	if errors.As(err, &f) {
		r.Hint = f.hint
	}
	if s := ntstatus.Of(err); s != ntstatus.Unsuccessful {
		r.Status, r.Value = s.String(), uint32(s)
		if r.Hint == "" {
			r.Hint = s.Hint()
		}
	}
	var e *ntstatus.Error
	if errors.As(err, &e) {
		r.Op, r.Object = e.Op, e.Object
	}
	var d *ntstatus.Denial
	if errors.As(err, &d) {
		r.Object, r.Right, r.Decision = d.Object, d.Right, d.Decision
	}
	return r
}

// writeError says what went wrong and what to do, for a person or, with a JSON output format, for a program.
func writeError(w io.Writer, output string, err error) {
	r := report(err)
	if output == "json" || output == "jsonl" {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		_ = e.Encode(map[string]errorReport{"error": r}) // nowhere left to report to
		return
	}
	fmt.Fprintf(w, "sallyport: %s", printable(r.Message))
	if r.Status != "" {
		fmt.Fprintf(w, " [%s]", r.Status)
	}
	fmt.Fprintln(w)
	if r.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", printable(r.Hint))
	}
}
