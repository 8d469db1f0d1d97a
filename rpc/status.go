package rpc

import (
	"errors"
	"strings"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
)

// maxCauses bounds how deep a chain of ntstatus errors crosses as data; what is below crosses as text.
const maxCauses = 8

// callError is what a caller gets: one error that answers as gRPC's and as ours. errors.Is and errors.As find the
// *ntstatus.Error and *ntstatus.Denial in its chain; status.FromError finds the gRPC status.
type callError struct {
	status *status.Status
	cause  error
	plain  bool // the far side knew only gRPC: read like gRPC's own error
}

func (e *callError) Error() string {
	if e.plain {
		return e.status.Err().Error()
	}
	return e.cause.Error()
}

func (e *callError) GRPCStatus() *status.Status { return e.status }
func (e *callError) Unwrap() error              { return e.cause }

// ToStatus returns the gRPC status of a handler's error, as it crosses the wire. An error with an *ntstatus.Error or a
// Status in its chain gets the nearest code, the error's sentence, and the whole of it as a detail (ntpb.Status); one that
// has a gRPC status keeps it; context errors are Canceled and DeadlineExceeded; anything else is Unknown, as in gRPC.
// A stock grpc.Server that hosts the same service object needs it in an interceptor; FromStatus is the way back.
func ToStatus(err error) *status.Status {
	if err == nil {
		return nil
	}
	if own, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		if st := own.GRPCStatus(); st != nil && st.Code() != codes.OK {
			return st
		}
		return status.New(codes.Unknown, err.Error())
	}
	var ours *ntstatus.Error
	var bare ntstatus.Status
	var wire *ntpb.Status
	switch {
	case errors.As(err, &ours):
		wire = toWire(ours, maxCauses)
	case errors.As(err, &bare):
		wire = &ntpb.Status{Status: uint32(bare)}
	default:
		if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
			return st
		}
		if st := status.FromContextError(err); st.Code() != codes.Unknown {
			return st
		}
		return status.New(codes.Unknown, err.Error())
	}
	code := codes.Code(ntstatus.Status(wire.Status).GRPCCode())
	if code == codes.OK { // a success or information status returned as an error is still an error to gRPC
		code = codes.Unknown
	}
	st := &spb.Status{Code: int32(code), Message: utf8(err.Error())}
	if detail, aerr := anypb.New(wire); aerr == nil {
		st.Details = append(st.Details, detail)
	}
	return status.FromProto(st)
}

// FromStatus returns the error that a caller sees for st, nil for OK: a gRPC status and, from its detail or else from
// its code, an *ntstatus.Error (with its *ntstatus.Denial). method fills the operation where st has no detail.
func FromStatus(method string, st *status.Status) error {
	if st.Code() == codes.OK {
		return nil
	}
	for _, detail := range st.Proto().GetDetails() {
		var wire ntpb.Status
		if !detail.MessageIs(&wire) || detail.UnmarshalTo(&wire) != nil {
			continue
		}
		if wire.Op == "" {
			return &callError{status: st, cause: ntstatus.Wrap(method, wire.Object, ntstatus.Status(wire.Status))}
		}
		return &callError{status: st, cause: fromWire(&wire, maxCauses)}
	}
	return &callError{status: st, plain: true, cause: &ntstatus.Error{
		Op: method, Status: ntstatus.FromGRPCCode(uint32(st.Code())), Err: errors.New(st.Message()),
	}}
}

// localError is the error for what happened on this side of the wire.
func localError(op, object string, err error) error {
	var done *callError
	if err == nil || errors.As(err, &done) {
		return err
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return FromStatus(op, status.Convert(err))
	}
	cause := ntstatus.Wrap(op, object, err)
	code := codes.Code(ntstatus.Of(cause).GRPCCode())
	return &callError{status: status.New(code, cause.Error()), cause: cause}
}

func toWire(e *ntstatus.Error, depth int) *ntpb.Status {
	w := &ntpb.Status{Op: utf8(e.Op), Object: utf8(e.Object), Status: uint32(e.Status)}
	switch cause := e.Err.(type) {
	case nil:
	case *ntstatus.Denial:
		w.Denial = &ntpb.Denial{Object: utf8(cause.Object), Right: utf8(cause.Right), Decision: cause.Decision}
	case ntstatus.Status:
		w.Cause = &ntpb.Status{Status: uint32(cause)}
	case *ntstatus.Error:
		if depth > 1 {
			w.Cause = toWire(cause, depth-1)
			break
		}
		w.Text = utf8(cause.Error())
	default:
		w.Text = utf8(cause.Error())
		var inner *ntstatus.Error
		if depth > 1 && errors.As(cause, &inner) && cause.Error() == inner.Error() {
			w.Text, w.Cause = "", toWire(inner, depth-1)
		}
	}
	return w
}

func fromWire(w *ntpb.Status, depth int) *ntstatus.Error {
	e := &ntstatus.Error{Op: w.Op, Object: w.Object, Status: ntstatus.Status(w.Status)}
	if e.Status == ntstatus.Success { // a peer's nonsense: it must not turn an error into a success
		e.Status = ntstatus.Unsuccessful
	}
	switch {
	case w.Denial != nil:
		e.Err = &ntstatus.Denial{Object: w.Denial.Object, Right: w.Denial.Right, Decision: w.Denial.Decision}
	case w.Cause != nil && w.Cause.Op == "" && w.Cause.Cause == nil:
		e.Err = ntstatus.Status(w.Cause.Status)
	case w.Cause != nil && depth > 1:
		e.Err = fromWire(w.Cause, depth-1)
	case w.Text != "":
		e.Err = errors.New(w.Text)
	}
	return e
}

// utf8 makes s fit for a protobuf string: names of files and services may be any bytes.
func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// appendStatus is st in at most room bytes; details that would not fit are left out rather than the outcome lost.
func appendStatus(b []byte, st *status.Status, room int) []byte {
	p := st.Proto()
	p.Message = utf8(p.Message)
	if room = min(room, maxStatusLen); proto.Size(p) > room {
		p.Details = nil
		p.Message = utf8(p.Message[:min(len(p.Message), room/4)])
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(b, p)
	if err != nil { // only a detail's type name can still be at fault
		out, _ = proto.MarshalOptions{}.MarshalAppend(b, &spb.Status{Code: p.Code, Message: p.Message})
	}
	return out
}

func parseStatus(b []byte) (*status.Status, error) {
	var p spb.Status
	if err := proto.Unmarshal(b, &p); err != nil {
		return nil, invalidFrame("status")
	}
	if p.Code == int32(codes.OK) {
		return nil, invalidFrame("status that says OK")
	}
	return status.FromProto(&p), nil
}
