package rpc

import (
	"encoding/binary"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A block of metadata is pairs to its end: key length (uvarint), key, value length (uvarint), value. Values are bytes:
// "-bin" keys need no encoding here.

// appendMetadata appends md as a block. What gRPC keeps for itself ("grpc-…", ":…", content-type, …) is left out, as its own transport
// does; a key or value that gRPC does not allow, or a block above the limit, is a gRPC status.
func appendMetadata(b []byte, md metadata.MD) ([]byte, error) {
	start := len(b)
	for key, values := range md {
		if reservedKey(key) {
			continue
		}
		if !validKey(key) {
			return b, status.Errorf(codes.Internal, "header key %q contains illegal characters not in [0-9a-z-_.]", key)
		}
		for _, value := range values {
			if !strings.HasSuffix(key, "-bin") && !printable(value) {
				return b, status.Errorf(codes.Internal, "header key %q contains value with non-printable ASCII characters", key)
			}
			b = binary.AppendUvarint(b, uint64(len(key)))
			b = append(b, key...)
			b = binary.AppendUvarint(b, uint64(len(value)))
			b = append(b, value...)
			if len(b)-start > maxMetadataLen {
				return b, status.Error(codes.ResourceExhausted, fmt.Sprintf("metadata of more than %d bytes", maxMetadataLen))
			}
		}
	}
	return b, nil
}

// parseMetadata reads a block from a peer that may have written anything; its length has been checked. Reserved keys from
// the wire are dropped: nobody can set on a port what gRPC itself would not send.
func parseMetadata(b []byte) (metadata.MD, error) {
	md := metadata.MD{}
	for len(b) > 0 {
		key, rest, ok := cutString(b)
		if !ok || !validKey(key) {
			return nil, invalidFrame("metadata key")
		}
		value, rest, ok := cutString(rest)
		if !ok || (!strings.HasSuffix(key, "-bin") && !printable(value)) {
			return nil, invalidFrame("metadata value")
		}
		b = rest
		if !reservedKey(key) {
			md[key] = append(md[key], value)
		}
	}
	return md, nil
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, width := binary.Uvarint(b)
	if width <= 0 || n > uint64(len(b)-width) {
		return "", nil, false
	}
	b = b[width:]
	return string(b[:n]), b[n:], true
}

func reservedKey(key string) bool {
	switch key {
	case "content-type", "user-agent", "te", "connection", "host":
		return true
	}
	return strings.HasPrefix(key, ":") || strings.HasPrefix(key, "grpc-")
}

func validKey(key string) bool {
	if key == "" {
		return false
	}
	for i := range len(key) {
		c := key[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

func printable(value string) bool {
	for i := range len(value) {
		if value[i] < 0x20 || value[i] > 0x7E {
			return false
		}
	}
	return true
}
