package security

import (
	"encoding/binary"
	"encoding/hex"

	"sallyport/ntstatus"
)

// GUID names a type of object, a property or an extended right (MS-DTYP 2.3.4), in the byte order of its text. Comparable.
type GUID [16]byte

// guidSize is the length of a GUID's text, 8-4-4-4-12 hexadecimal digits.
const guidSize = 36

// ParseGUID reads bf967aba-0de6-11d0-a285-00aa003049e2, in either case and without braces; it fails with InvalidParameter.
func ParseGUID(s string) (GUID, error) {
	if g, ok := parseGUID(s); ok {
		return g, nil
	}
	return GUID{}, ntstatus.Errorf("security.ParseGUID", "", ntstatus.InvalidParameter, "%.40q is not a GUID", s)
}

func parseGUID(s string) (g GUID, ok bool) {
	if len(s) != guidSize || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, false
	}
	_, err := hex.Decode(g[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:]))
	return g, err == nil
}

// String is the text in lower case.
func (g GUID) String() string { return string(g.append(nil)) }

func (g GUID) append(b []byte) []byte {
	for i, part := range [][]byte{g[:4], g[4:6], g[6:8], g[8:10], g[10:]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return b
}

// appendBinary is MS-DTYP 2.3.4.2: the first three parts are little-endian numbers.
func (g GUID) appendBinary(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, binary.BigEndian.Uint32(g[0:]))
	b = binary.LittleEndian.AppendUint16(b, binary.BigEndian.Uint16(g[4:]))
	b = binary.LittleEndian.AppendUint16(b, binary.BigEndian.Uint16(g[6:]))
	return append(b, g[8:]...)
}

func guidOf(b []byte) (g GUID) {
	binary.BigEndian.PutUint32(g[0:], binary.LittleEndian.Uint32(b[0:]))
	binary.BigEndian.PutUint16(g[4:], binary.LittleEndian.Uint16(b[4:]))
	binary.BigEndian.PutUint16(g[6:], binary.LittleEndian.Uint16(b[6:]))
	copy(g[8:], b[8:16])
	return g
}
