package rpc

import "bytes"

// The parsers of what a peer writes, for fuzzing. Each returns what it read, written again.

// ReparseRequest is for a REQUEST.
func ReparseRequest(b []byte) ([]byte, error) {
	f, err := parseRequest(b)
	if err != nil {
		return nil, err
	}
	return append(appendRequest(nil, f.kind, f.flags, f.call, f.size, string(f.method), f.metadata), f.body...), nil
}

// ReparseReply is for a REPLY.
func ReparseReply(b []byte) ([]byte, error) {
	f, err := parseReply(b)
	if err != nil {
		return nil, err
	}
	return append(appendReply(nil, f), f.body...), nil
}

// ReparseDatagram is for a DATAGRAM.
func ReparseDatagram(b []byte) ([]byte, error) {
	f, err := parseDatagram(b)
	if err != nil {
		return nil, err
	}
	return append(appendDatagram(nil, f.kind, f.flags, f.call, f.size), f.body...), nil
}

// ReparseMetadata reports whether a block that was accepted can be sent again and reads the same.
func ReparseMetadata(b []byte) (same bool, err error) {
	md, err := parseMetadata(b)
	if err != nil {
		return false, err
	}
	again, err := appendMetadata(nil, md)
	if err != nil {
		return len(b) > maxMetadataLen, nil // an encoding longer than needed may only shrink
	}
	back, err := parseMetadata(again)
	if err != nil || len(back) != len(md) {
		return false, nil
	}
	for key, values := range md {
		for i := range values {
			if !bytes.Equal([]byte(back[key][i]), []byte(values[i])) {
				return false, nil
			}
		}
	}
	return true, nil
}

// Raw frames for tests that play a peer.
func RawRequest(kind, flags uint8, call, size uint32, method string, body []byte) []byte {
	return append(appendRequest(nil, kindOf(kind), flags, call, size, method, nil), body...)
}

func RawDatagram(kind, flags uint8, call, size uint32, body []byte) []byte {
	return append(appendDatagram(nil, kindOf(kind), flags, call, size), body...)
}

func kindOf(k uint8) kind { return kind(k) }

// RawStatus reads the code and the count of a reply.
func RawStatus(b []byte) (code int32, count uint64, err error) {
	f, err := parseReply(b)
	if err != nil || len(f.status) == 0 {
		return 0, f.count, err
	}
	st, err := parseStatus(f.status)
	if err != nil {
		return 0, 0, err
	}
	return st.Proto().Code, f.count, nil
}

// Buffered is how many bytes of its clients' large messages a server keeps.
func (s *Server) Buffered() int64 { return s.buffered.Load() }

// Streams is how many streams a client's connection knows of, those that it left included, and whether somebody receives.
func (c *Conn) Streams() (n int, reading bool) {
	p := c.current.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.streams) + len(p.left), p.reading
}
