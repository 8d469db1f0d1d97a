package ntstatus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// Error is an outcome with its place: which operation, on which object. It crosses the wire whole (package rpc), so the
// far side sees the same fields. Err, if any, is the cause: *Error, *Denial and Status cross as data, any other as its text.
type Error struct {
	Op     string // the operation in dotted form: "lsa.LogonUser", "core.Connect"
	Object string // the object's name as its owner spells it: a port, a user, a service; may be empty
	Status Status
	Err    error
}

// New returns an *Error as an error.
func New(op, object string, status Status) error {
	return &Error{Op: op, Object: object, Status: status}
}

// Wrap returns an *Error whose status is found in err (Of) and whose cause is err; nil stays nil.
func Wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Object: object, Status: Of(err), Err: err}
}

// Errorf returns an *Error whose cause is a formatted sentence.
func Errorf(op, object string, status Status, format string, args ...any) error {
	return &Error{Op: op, Object: object, Status: status, Err: fmt.Errorf(format, args...)}
}

// Error says what happened to what.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Object != "" {
		fmt.Fprintf(&b, " %s", e.Object)
	}
	b.WriteString(": ")
	switch cause := e.Err.(type) {
	case nil:
		b.WriteString(e.Status.Error())
	case Status:
		if cause != e.Status {
			b.WriteString(e.Status.Error() + ": ")
		}
		b.WriteString(cause.Error())
	case *Error:
		// The inner error names its own status; repeating it would only make the sentence longer.
		if cause.Status != e.Status {
			b.WriteString(e.Status.Error() + ": ")
		}
		b.WriteString(cause.Error())
	default:
		fmt.Fprintf(&b, "%s: %v", e.Status.Error(), cause)
	}
	return b.String()
}

// Is makes errors.Is(err, ntstatus.X) hold for every Error with status X.
func (e *Error) Is(target error) bool {
	s, ok := target.(Status)
	return ok && s == e.Status
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Denial is the cause of an access-denied Error: what was asked of what, and the number under which the core keeps
// the decision ("sallyport explain <decision>").
type Denial struct {
	Object   string // the object whose descriptor decided
	Right    string // the right that was asked, by name where it has one
	Decision uint64 // id in the core's log of denials; 0 where none could be had
}

// Error says which right was missing and how to learn why.
func (d *Denial) Error() string {
	s := fmt.Sprintf("%s is needed on %s", d.Right, d.Object)
	if d.Decision != 0 {
		s += fmt.Sprintf(" (decision %d: run \"sallyport explain %d\" to see which entry decided)", d.Decision, d.Decision)
	}
	return s
}

// Of returns the status that err carries: its own, that of an *Error in its chain, or what errno, context and file errors
// stand for. Nil is Success; an unknown error is Unsuccessful, as is one that claims Success: a peer may have made it.
func Of(err error) Status {
	if err == nil {
		return Success
	}
	if s := of(err); s != Success {
		return s
	}
	return Unsuccessful
}

func of(err error) Status {
	var s Status
	var e *Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &e):
		return e.Status
	case errors.As(err, &s):
		return s
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return IOTimeout
	case errors.Is(err, context.Canceled):
		return RequestCanceled
	case errors.As(err, &errno):
		return FromErrno(errno)
	case errors.Is(err, fs.ErrNotExist):
		return ObjectNameNotFound
	case errors.Is(err, fs.ErrPermission):
		return AccessDenied
	}
	return Unsuccessful
}
