package channel

import (
	"encoding/binary"

	"sallyport/ntstatus"
)

// The frame, as docs/protocol.md has it. Numbers are append-only.
const (
	HeaderLen  = 64    // bytes of the fixed header
	MaxFrame   = 65536 // bytes of a frame: header, handle table and payload, in both gears
	MaxHandles = 64    // handles of one frame
	MaxPayload = MaxFrame - HeaderLen - 4*MaxHandles

	frameVersion = 1
)

// Type says what a frame is: NT's LPC_* numbers, and from 0x100 on the channel's own.
type Type uint16

const (
	Request    Type = 1
	Reply      Type = 2
	Datagram   Type = 3
	LostReply  Type = 4
	PortClosed Type = 5 // the sender ends the connection; Status says why
	ClientDied Type = 6
	Canceled   Type = 12

	shiftUp   Type = 0x100 // on the socket: what follows is in the ring
	shiftDown Type = 0x101 // in the ring: what follows is on the socket
	onSocket  Type = 0x102 // in the ring: the frame with this sequence number is on the socket, for its handles
)

// String returns NT's name without the prefix.
func (t Type) String() string {
	switch t {
	case Request:
		return "REQUEST"
	case Reply:
		return "REPLY"
	case Datagram:
		return "DATAGRAM"
	case LostReply:
		return "LOST_REPLY"
	case PortClosed:
		return "PORT_CLOSED"
	case ClientDied:
		return "CLIENT_DIED"
	case 10:
		return "CONNECTION_REQUEST"
	case Canceled:
		return "CANCELED"
	case shiftUp:
		return "SHIFT"
	case shiftDown:
		return "DOWN"
	case onSocket:
		return "ON_SOCKET"
	}
	return "UNKNOWN"
}

// flagAnswer marks a shift that only answers the peer's and is not answered itself.
const flagAnswer uint16 = 1

// Header is a frame's fixed part. Length, Sequence and Handles belong to the channel: a sender's values are ignored.
type Header struct {
	Length     uint32 // of the whole frame in bytes
	Type       Type
	Flags      uint16
	ID         uint32 // message id
	CallbackID uint32
	ContextID  uint32
	Sequence   uint32 // counts the frames of one direction, in both gears together
	Deadline   int64  // CLOCK_MONOTONIC in ns; 0 is none
	TraceID    [16]byte
	Status     ntstatus.Status // of a reply that has no message, and of PortClosed
	Handles    uint8
}

func (h *Header) encode(b *[HeaderLen]byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], h.Length)
	le.PutUint16(b[4:], uint16(h.Type))
	le.PutUint16(b[6:], h.Flags)
	le.PutUint32(b[8:], h.ID)
	le.PutUint32(b[12:], h.CallbackID)
	le.PutUint32(b[16:], h.ContextID)
	le.PutUint32(b[20:], h.Sequence)
	le.PutUint64(b[24:], uint64(h.Deadline))
	copy(b[32:48], h.TraceID[:])
	le.PutUint32(b[48:], uint32(h.Status))
	b[52], b[53] = frameVersion, h.Handles
	clear(b[54:])
}

// decode reads and checks a private copy of a header. It knows nothing of order: sequence and gear are the reader's.
func (h *Header) decode(b *[HeaderLen]byte) error {
	le := binary.LittleEndian
	h.Length = le.Uint32(b[0:])
	h.Type = Type(le.Uint16(b[4:]))
	h.Flags = le.Uint16(b[6:])
	h.ID = le.Uint32(b[8:])
	h.CallbackID = le.Uint32(b[12:])
	h.ContextID = le.Uint32(b[16:])
	h.Sequence = le.Uint32(b[20:])
	h.Deadline = int64(le.Uint64(b[24:]))
	copy(h.TraceID[:], b[32:48])
	h.Status = ntstatus.Status(le.Uint32(b[48:]))
	h.Handles = b[53]
	if b[52] != frameVersion {
		return violation("frame of version %d", b[52])
	}
	for _, v := range b[54:] {
		if v != 0 {
			return violation("reserved bytes in use")
		}
	}
	if h.Length > MaxFrame || h.Length < HeaderLen+4*uint32(h.Handles) || h.Handles > MaxHandles {
		return violation("frame of %d bytes with %d handles", h.Length, h.Handles)
	}
	if h.Deadline < 0 {
		return violation("deadline before the machine was up")
	}
	switch h.Type {
	case Request, Reply, Datagram, LostReply, PortClosed, ClientDied, Canceled:
		if h.Flags != 0 {
			return violation("flags %#x on %s", h.Flags, h.Type)
		}
	case shiftUp, shiftDown, onSocket:
		if h.Flags&^flagAnswer != 0 || h.Length != HeaderLen || h.Handles != 0 {
			return violation("malformed %s", h.Type)
		}
	default:
		return violation("frame of type %d", h.Type)
	}
	return nil
}

// violation is what a peer that breaks the protocol ends its connection with.
func violation(format string, args ...any) error {
	return ntstatus.Errorf("channel.Receive", "", ntstatus.InvalidMessage, format, args...)
}
