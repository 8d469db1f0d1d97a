package rpc

import (
	"encoding/binary"

	"sallyport/ntstatus"
)

// The wire of a call (docs/protocol.md, "Calls"). What a port carries between two ends of this package begins with one
// of three headers, little-endian, every reserved byte zero:
//
//	request   0 kind  1 flags  2 method length u16  4 call u32  8 size u32  12 metadata length u32  16 method, metadata, body
//	reply     0 kind  1 flags  2 0 u16  4 header length u32  8 trailer length u32  12 status length u32  16 count u64
//	          24 header, trailer, status, body
//	datagram  0 kind  1 flags  2 0 u16  4 call u32  8 size u32  12 0 u32  16 body
//
// The call's deadline and trace id are in the port's own header. A call number is the client's, and is one of a kind
// among the calls that it has open.
const (
	requestHeaderLen  = 16
	replyHeaderLen    = 24
	datagramHeaderLen = 16

	maxMethodLen   = 1024
	maxMetadataLen = 16 << 10 // of one block: request, header or trailer
	maxStatusLen   = 16 << 10
)

type kind uint8

const (
	kindCall  kind = 1 // REQUEST: a unary call; size is what went before as parts
	kindOpen  kind = 2 // REQUEST: a stream; size is the window for the server's messages; the body is the first message, with flagMsg
	kindFetch kind = 3 // REQUEST: the next piece of a reply that did not fit; answered by a reply whose body it is
	kindReply kind = 4 // REPLY: the outcome; count is how many datagrams the server sent before, or the size of a message that is to be fetched

	kindPart   kind = 5  // DATAGRAM to the server: a piece of a unary request that does not fit, before its REQUEST
	kindDrop   kind = 6  // DATAGRAM to the server: the client gave up a unary call: forget its parts, or what waits to be fetched
	kindData   kind = 7  // DATAGRAM: a piece of a message of a stream
	kindCredit kind = 8  // DATAGRAM: size more units may be sent
	kindHeader kind = 9  // DATAGRAM to the client: header metadata of a stream
	kindLeave  kind = 10 // DATAGRAM to the server: the client gave up a stream, and waits for kindGone
	kindGone   kind = 11 // DATAGRAM to the client: nothing more of the stream that it left comes
)

const (
	flagMore  = 0x01 // data: another piece of the same message follows
	flagEnd   = 0x02 // data, open: the client sends no more after this one
	flagMsg   = 0x04 // data, open: it carries a piece of a message (which may be empty)
	flagFetch = 0x08 // reply: the body is the first piece of one of which the rest is to be fetched
)

type requestFrame struct {
	kind     kind
	flags    uint8
	call     uint32
	size     uint32
	method   []byte
	metadata []byte
	body     []byte
}

type replyFrame struct {
	flags   uint8
	header  []byte
	trailer []byte
	status  []byte // google.rpc.Status; empty is OK
	count   uint64
	body    []byte
}

type datagramFrame struct {
	kind  kind
	flags uint8
	call  uint32
	size  uint32
	body  []byte
}

func invalidFrame(what string) error {
	return ntstatus.Errorf("rpc.frame", "", ntstatus.RPCProtocolError, "%s", what)
}

// appendRequest appends a request's header, method and metadata; the body follows by the caller's hand.
func appendRequest(b []byte, k kind, flags uint8, call, size uint32, method string, metadata []byte) []byte {
	b = append(b, byte(k), flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(method)))
	b = binary.LittleEndian.AppendUint32(b, call)
	b = binary.LittleEndian.AppendUint32(b, size)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(metadata)))
	b = append(b, method...)
	return append(b, metadata...)
}

// parseRequest reads a REQUEST from a peer that may have written anything. The slices alias b.
func parseRequest(b []byte) (f requestFrame, err error) {
	if len(b) < requestHeaderLen {
		return f, invalidFrame("request shorter than its header")
	}
	f.kind = kind(b[0])
	if f.kind != kindCall && f.kind != kindOpen && f.kind != kindFetch {
		return f, invalidFrame("unknown kind of request")
	}
	methodLen, metadataLen := uint64(binary.LittleEndian.Uint16(b[2:])), uint64(binary.LittleEndian.Uint32(b[12:]))
	f.flags, f.call, f.size = b[1], binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
	rest := b[requestHeaderLen:]
	switch {
	case f.kind == kindOpen && f.flags&^(flagEnd|flagMsg) != 0, f.kind != kindOpen && f.flags != 0:
		return f, invalidFrame("reserved bits set in a request")
	case methodLen > maxMethodLen || metadataLen > maxMetadataLen || methodLen+metadataLen > uint64(len(rest)):
		return f, invalidFrame("lengths in a request exceed it or its limits")
	case f.kind == kindFetch && (methodLen != 0 || metadataLen != 0 || f.size != 0 || len(rest) != 0):
		return f, invalidFrame("fetch with a content")
	case f.kind == kindOpen && f.flags&flagMsg == 0 && uint64(len(rest)) != methodLen+metadataLen:
		return f, invalidFrame("open with a body that is no message")
	case f.kind == kindOpen && (f.size < minWindow || f.size > maxWindow):
		return f, invalidFrame("window out of range")
	}
	f.method, rest = rest[:methodLen:methodLen], rest[methodLen:]
	f.metadata, f.body = rest[:metadataLen:metadataLen], rest[metadataLen:]
	return f, nil
}

// appendReply appends a reply up to its body, which follows by the caller's hand.
func appendReply(b []byte, f replyFrame) []byte {
	b = append(b, byte(kindReply), f.flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.header)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.trailer)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.status)))
	b = binary.LittleEndian.AppendUint64(b, f.count)
	b = append(b, f.header...)
	b = append(b, f.trailer...)
	return append(b, f.status...)
}

// parseReply reads a REPLY from a peer that may have written anything. The slices alias b.
func parseReply(b []byte) (f replyFrame, err error) {
	if len(b) < replyHeaderLen {
		return f, invalidFrame("reply shorter than its header")
	}
	headerLen, trailerLen := uint64(binary.LittleEndian.Uint32(b[4:])), uint64(binary.LittleEndian.Uint32(b[8:]))
	statusLen := uint64(binary.LittleEndian.Uint32(b[12:]))
	f.flags, f.count = b[1], binary.LittleEndian.Uint64(b[16:])
	rest := b[replyHeaderLen:]
	switch {
	case kind(b[0]) != kindReply:
		return f, invalidFrame("not a reply")
	case b[1]&^flagFetch != 0 || b[2] != 0 || b[3] != 0:
		return f, invalidFrame("reserved bits set in a reply")
	case headerLen > maxMetadataLen || trailerLen > maxMetadataLen || statusLen > maxStatusLen,
		headerLen+trailerLen+statusLen > uint64(len(rest)):
		return f, invalidFrame("lengths in a reply exceed it or its limits")
	}
	f.header, rest = rest[:headerLen:headerLen], rest[headerLen:]
	f.trailer, rest = rest[:trailerLen:trailerLen], rest[trailerLen:]
	f.status, f.body = rest[:statusLen:statusLen], rest[statusLen:]
	return f, nil
}

// appendDatagram appends a datagram's header; the body follows by the caller's hand.
func appendDatagram(b []byte, k kind, flags uint8, call, size uint32) []byte {
	b = append(b, byte(k), flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, call)
	b = binary.LittleEndian.AppendUint32(b, size)
	return append(b, 0, 0, 0, 0)
}

// parseDatagram reads a DATAGRAM from a peer that may have written anything. The body aliases b.
func parseDatagram(b []byte) (f datagramFrame, err error) {
	if len(b) < datagramHeaderLen {
		return f, invalidFrame("datagram shorter than its header")
	}
	f = datagramFrame{
		kind: kind(b[0]), flags: b[1], call: binary.LittleEndian.Uint32(b[4:]), size: binary.LittleEndian.Uint32(b[8:]),
		body: b[datagramHeaderLen:],
	}
	var flags uint8
	var sized, filled bool
	switch f.kind {
	case kindPart:
		sized, filled = true, true
	case kindDrop, kindLeave, kindGone:
	case kindData:
		flags, filled = flagMore|flagEnd|flagMsg, true
	case kindCredit:
		sized = true
	case kindHeader:
		filled = true
	default:
		return f, invalidFrame("unknown kind of datagram")
	}
	switch {
	case f.flags&^flags != 0 || b[2] != 0 || b[3] != 0 || binary.LittleEndian.Uint32(b[12:]) != 0:
		return f, invalidFrame("reserved bits set in a datagram")
	case !sized && f.size != 0, !filled && len(f.body) != 0:
		return f, invalidFrame("datagram with what its kind does not have")
	case f.kind == kindData && f.flags&flagMsg == 0 && (len(f.body) != 0 || f.flags != flagEnd):
		return f, invalidFrame("data that is neither a message nor the end")
	case f.kind == kindData && f.flags&(flagMore|flagEnd) == flagMore|flagEnd:
		return f, invalidFrame("end inside a message")
	case f.kind == kindHeader && len(f.body) > maxMetadataLen:
		return f, invalidFrame("header metadata too long")
	}
	return f, nil
}
