package rpc

import (
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"sallyport/alpc"
	"sallyport/ntstatus"
)

// buffer is memory for a message that is being sent; it is free again when the send has returned.
type buffer struct{ b []byte }

// The memory of messages that fit in a frame, and of those that don't: kept apart, so that a short message doesn't take what
// the next long one needs. Both are caches without observable state.
var (
	buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 2048)} }}
	large   = sync.Pool{New: func() any { return &buffer{} }}
)

func getBuffer() *buffer {
	buf := buffers.Get().(*buffer)
	buf.b = buf.b[:0]
	return buf
}

// grow makes room for n more bytes.
func (buf *buffer) grow(n int) {
	need := len(buf.b) + n
	switch {
	case need <= cap(buf.b):
	case need <= alpc.MaxMessageLength:
		buf.b = slices.Grow(buf.b, n)
	default:
		other := large.Get().(*buffer)
		if cap(other.b) < need || cap(other.b) > 4*need { // what is kept is counted by its length
			other.b = make([]byte, 0, need+need/8)
		}
		other.b = append(other.b[:0], buf.b...)
		buf.b, other.b = other.b, buf.b
		other.free()
	}
}

func (buf *buffer) free() {
	switch {
	case cap(buf.b) <= 2*alpc.MaxMessageLength:
		buffers.Put(buf)
	case cap(buf.b) <= 2*defaultMaxMessage: // what one giant message needed is not kept
		large.Put(buf)
	}
}

// marshal appends a message of either protobuf API.
func (buf *buffer) marshal(m any) error {
	pm, err := message(m)
	if err != nil {
		return err
	}
	buf.grow(proto.Size(pm))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf.b, pm)
	if err != nil {
		return ntstatus.Errorf("rpc.marshal", string(pm.ProtoReflect().Descriptor().FullName()), ntstatus.InternalError, "%v", err)
	}
	buf.b = out
	return nil
}

func unmarshal(b []byte, m any) error {
	pm, err := message(m)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, pm); err != nil {
		return ntstatus.Errorf("rpc.unmarshal", string(pm.ProtoReflect().Descriptor().FullName()), ntstatus.RPCProtocolError, "%v", err)
	}
	return nil
}

func message(m any) (proto.Message, error) {
	switch m := m.(type) {
	case proto.Message:
		return m, nil
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m), nil
	}
	return nil, ntstatus.Errorf("rpc.marshal", "", ntstatus.InternalError, "%T is not a protobuf message", m)
}

func tooLong(size, limit int) error {
	return ntstatus.Errorf("rpc.message", "", ntstatus.PortMessageTooLong, "message of %d bytes, the limit is %d", size, limit)
}
