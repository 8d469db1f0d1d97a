package rpc

import (
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"sallyport/ntstatus"
)

// buffer is memory for a message that is being sent; it is free again when the send has returned.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 2048)} }}

func getBuffer() *buffer {
	buf := buffers.Get().(*buffer)
	buf.b = buf.b[:0]
	return buf
}

func (buf *buffer) free() {
	if cap(buf.b) <= 2*defaultMaxMessage { // what one giant message needed is not kept
		buffers.Put(buf)
	}
}

// marshal appends a message of either protobuf API.
func (buf *buffer) marshal(m any) error {
	pm, err := message(m)
	if err != nil {
		return err
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(buf.b, pm)
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
