package security

import (
	"encoding/binary"
	"fmt"

	"sallyport/ntstatus"
)

// The binary forms of MS-DTYP 2.4, little-endian: what Windows writes is read, and what is read is written as Windows writes it.
// Lengths and offsets are checked before they are used; nothing is allocated that the input has not the bytes for.

const (
	descriptorHeader = 20
	aclHeaderSize    = 8
	aceHeaderSize    = 4
	sidHeaderSize    = 8

	rmControlValid Control = 0x4000

	aclRevision   = 2
	aclRevisionDS = 4 // there are object entries

	// maxACLSize is what the 16-bit length in an ACL's header can say (MS-DTYP 2.4.5), in whole words.
	maxACLSize = 1<<16 - 4

	selfRelative Control = 0x8000
)

// FormatError is where a binary form stopped being what it should be. It is the cause (errors.As) of every error of an Unmarshal.
type FormatError struct {
	Pos  int    // byte offset
	Want string // what was expected there
}

// Error says where and what was expected.
func (e *FormatError) Error() string { return fmt.Sprintf("at byte %d: expected %s", e.Pos, e.Want) }

func badFormat(op string, status ntstatus.Status, pos int, want string) error {
	return &ntstatus.Error{Op: op, Status: status, Err: &FormatError{Pos: pos, Want: want}}
}

// binarySize is the length of MS-DTYP 2.4.2.2.
func (s *SID) binarySize() int { return sidHeaderSize + 4*int(s.count) }

// AppendBinary appends the form of MS-DTYP 2.4.2.2; a zero SID has none and fails with InvalidSID.
func (s SID) AppendBinary(b []byte) ([]byte, error) {
	if s.IsZero() {
		return b, ntstatus.New("security.SID.AppendBinary", "", ntstatus.InvalidSID)
	}
	return s.appendBinary(b), nil
}

// MarshalBinary is AppendBinary.
func (s SID) MarshalBinary() ([]byte, error) { return s.AppendBinary(nil) }

func (s *SID) appendBinary(b []byte) []byte {
	b = append(b, s.revision, s.count)
	b = binary.BigEndian.AppendUint16(b, s.authorityHi)
	b = binary.BigEndian.AppendUint32(b, s.authorityLo)
	for _, v := range s.sub[:s.count] {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// UnmarshalBinary reads the form of MS-DTYP 2.4.2.2, which must be all of b; it fails with InvalidSID.
func (s *SID) UnmarshalBinary(b []byte) error {
	v, ok := sidOf(b)
	if !ok || v.binarySize() != len(b) {
		return badFormat("security.SID.UnmarshalBinary", ntstatus.InvalidSID, 0, "a SID and nothing else")
	}
	*s = v
	return nil
}

// sidOf reads the SID that b begins with.
func sidOf[T string | []byte](b T) (SID, bool) {
	if len(b) < sidHeaderSize || b[0] != 1 || b[1] > MaxSubAuthorities || len(b) < sidHeaderSize+4*int(b[1]) {
		return SID{}, false
	}
	s := SID{revision: 1, count: b[1], authorityHi: uint16(b[2])<<8 | uint16(b[3])}
	for _, c := range []byte(b[4:8]) {
		s.authorityLo = s.authorityLo<<8 | uint32(c)
	}
	for i := range s.sub[:s.count] {
		s.sub[i] = le32(b[sidHeaderSize+4*i:])
	}
	return s, true
}

func le32[T string | []byte](b T) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func le64[T string | []byte](b T) uint64 { return uint64(le32(b)) | uint64(le32(b[4:]))<<32 }

// size is the entry's length in the binary form: header, mask, object types, SID and data, in whole words.
func (a *ACE) size() int {
	if !a.Type.is(known) {
		return aceHeaderSize + words(len(a.Data))
	}
	n := aceHeaderSize + 4 + a.SID.binarySize() + words(len(a.Data))
	if a.Type.is(object) {
		n += 4
		if a.ObjectFlags&ObjectTypePresent != 0 {
			n += 16
		}
		if a.ObjectFlags&InheritedObjectTypePresent != 0 {
			n += 16
		}
	}
	return n
}

func words(n int) int { return (n + 3) &^ 3 }

func (a *ACE) appendBinary(b []byte) []byte {
	size := a.size()
	end := len(b) + size
	b = append(b, byte(a.Type), byte(a.Flags))
	b = binary.LittleEndian.AppendUint16(b, uint16(size))
	if a.Type.is(known) {
		b = binary.LittleEndian.AppendUint32(b, uint32(a.Mask))
		if a.Type.is(object) {
			b = binary.LittleEndian.AppendUint32(b, uint32(a.ObjectFlags))
			if a.ObjectFlags&ObjectTypePresent != 0 {
				b = a.ObjectType.appendBinary(b)
			}
			if a.ObjectFlags&InheritedObjectTypePresent != 0 {
				b = a.InheritedObjectType.appendBinary(b)
			}
		}
		b = a.SID.appendBinary(b)
	}
	b = append(b, a.Data...)
	for len(b) < end {
		b = append(b, 0)
	}
	return b
}

// aceOf reads the entry that is all of b; what it wants and did not find is the text, empty on success.
func aceOf(b []byte) (a ACE, want string) {
	a.Type, a.Flags = ACEType(b[0]), ACEFlags(b[1])
	rest := b[aceHeaderSize:]
	if a.Type.is(known) {
		const mask = "the mask of an entry"
		if len(rest) < 4 {
			return a, mask
		}
		a.Mask, rest = AccessMask(le32(rest)), rest[4:]
		if a.Type.is(object) {
			if len(rest) < 4 {
				return a, "the flags of an object entry"
			}
			a.ObjectFlags, rest = ObjectFlags(le32(rest)), rest[4:]
			for _, g := range []struct {
				flag ObjectFlags
				to   *GUID
			}{{ObjectTypePresent, &a.ObjectType}, {InheritedObjectTypePresent, &a.InheritedObjectType}} {
				if a.ObjectFlags&g.flag == 0 {
					continue
				}
				if len(rest) < 16 {
					return a, "a GUID of an object entry"
				}
				*g.to, rest = guidOf(rest), rest[16:]
			}
		}
		var ok bool
		if a.SID, ok = sidOf(rest); !ok {
			return a, "the SID of an entry"
		}
		rest = rest[a.SID.binarySize():]
	}
	a.Data = string(rest)
	return a, ""
}

// size is the length of the binary form.
func (l *ACL) size() int {
	n := aclHeaderSize
	for i := range l.ACEs {
		n += l.ACEs[i].size()
	}
	return n
}

// revision is the least that the entries need, or the greater one that the list was read with (MS-DTYP 2.4.5).
func (l *ACL) revision() uint8 {
	revision := max(l.Revision, aclRevision)
	for i := range l.ACEs {
		if l.ACEs[i].Type.is(object) {
			revision = max(revision, aclRevisionDS)
		}
	}
	return revision
}

func (l *ACL) appendBinary(b []byte) []byte {
	b = append(b, l.revision(), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(l.size()))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(l.ACEs)))
	b = append(b, 0, 0)
	for i := range l.ACEs {
		b = l.ACEs[i].appendBinary(b)
	}
	return b
}

// check refuses what the binary form can't hold.
func (l *ACL) check(op string) error {
	if l == nil {
		return nil
	}
	for i := range l.ACEs {
		if a := &l.ACEs[i]; a.Type.is(known) && a.SID.IsZero() {
			return ntstatus.Errorf(op, "", ntstatus.InvalidACL, "entry %d has no SID", i)
		}
	}
	if n := l.size(); n > maxACLSize {
		return ntstatus.Errorf(op, "", ntstatus.InvalidACL, "the list takes %d bytes, at most %d fit", n, maxACLSize)
	}
	return nil
}

// aclOf reads the list that begins at offset.
func aclOf(op string, b []byte, offset int) (*ACL, error) {
	bad := func(pos int, want string) error { return badFormat(op, ntstatus.InvalidACL, pos, want) }
	if len(b)-offset < aclHeaderSize {
		return nil, bad(offset, "the header of a list")
	}
	head := b[offset : offset+aclHeaderSize]
	size, count := int(binary.LittleEndian.Uint16(head[2:])), int(binary.LittleEndian.Uint16(head[4:]))
	switch {
	case head[0] < aclRevision || head[0] > aclRevisionDS:
		return nil, bad(offset, "a list of revision 2, 3 or 4")
	case size < aclHeaderSize || size > len(b)-offset:
		return nil, bad(offset+2, "the length of a list that fits")
	case count > (size-aclHeaderSize)/aceHeaderSize:
		return nil, bad(offset+4, "no more entries than the list has room for")
	}
	l := &ACL{Revision: head[0]}
	if count > 0 {
		l.ACEs = make([]ACE, 0, min(count, (size-aclHeaderSize)/(aceHeaderSize+4+sidHeaderSize)+1))
	}
	pos, end := offset+aclHeaderSize, offset+size
	for range count {
		if end-pos < aceHeaderSize {
			return nil, bad(pos, "one more entry")
		}
		n := int(binary.LittleEndian.Uint16(b[pos+2:]))
		if n < aceHeaderSize || n > end-pos || n%4 != 0 {
			return nil, bad(pos+2, "the length of an entry that fits")
		}
		a, want := aceOf(b[pos : pos+n])
		if want != "" {
			return nil, bad(pos, want)
		}
		l.ACEs = append(l.ACEs, a)
		pos += n
	}
	if revision := l.Revision; (&ACL{ACEs: l.ACEs}).revision() == revision {
		l.Revision = 0
	}
	return l, nil
}

// AppendBinary appends the self-relative form of MS-DTYP 2.4.6, the parts in the order in which Windows writes them: SACL, DACL,
// owner, group. It fails with InvalidACL where a list is longer than 64 KiB or an entry has no SID.
func (d *Descriptor) AppendBinary(b []byte) ([]byte, error) {
	const op = "security.Descriptor.AppendBinary"
	if d == nil {
		return b, ntstatus.New(op, "", ntstatus.InvalidSecurityDescr)
	}
	for _, l := range []*ACL{d.SACL, d.DACL} {
		if err := l.check(op); err != nil {
			return b, err
		}
	}
	start := len(b)
	b = append(b, 1, d.RMControl)
	b = binary.LittleEndian.AppendUint16(b, uint16(d.control()|selfRelative))
	b = append(b, make([]byte, descriptorHeader-4)...)
	place := func(field int) { binary.LittleEndian.PutUint32(b[start+field:], uint32(len(b)-start)) }
	if d.SACL != nil {
		place(12)
		b = d.SACL.appendBinary(b)
	}
	if d.DACL != nil {
		place(16)
		b = d.DACL.appendBinary(b)
	}
	if !d.Owner.IsZero() {
		place(4)
		b = d.Owner.appendBinary(b)
	}
	if !d.Group.IsZero() {
		place(8)
		b = d.Group.appendBinary(b)
	}
	return b, nil
}

// MarshalBinary is AppendBinary.
func (d *Descriptor) MarshalBinary() ([]byte, error) { return d.AppendBinary(nil) }

// UnmarshalBinary reads the self-relative form of MS-DTYP 2.4.6, its parts in any order. Failures are InvalidSecurityDescr, InvalidSID
// and InvalidACL, all with a FormatError, and leave d as it was.
func (d *Descriptor) UnmarshalBinary(b []byte) error {
	const op = "security.Descriptor.UnmarshalBinary"
	bad := func(pos int, want string) error { return badFormat(op, ntstatus.InvalidSecurityDescr, pos, want) }
	if len(b) < descriptorHeader {
		return bad(len(b), "the header of a descriptor")
	}
	if b[0] != 1 {
		return bad(0, "revision 1")
	}
	v := Descriptor{RMControl: b[1], Control: Control(binary.LittleEndian.Uint16(b[2:]))}
	if v.Control&selfRelative == 0 {
		return bad(2, "a self-relative descriptor")
	}
	v.Control &^= selfRelative
	offset := func(field int) (int, error) {
		o := binary.LittleEndian.Uint32(b[field:])
		if o != 0 && (o < descriptorHeader || uint64(o) >= uint64(len(b))) {
			return 0, bad(field, "an offset inside the descriptor")
		}
		return int(o), nil
	}
	for _, part := range []struct {
		field int
		to    *SID
	}{{4, &v.Owner}, {8, &v.Group}} {
		o, err := offset(part.field)
		if err != nil {
			return err
		}
		if o == 0 {
			continue
		}
		var ok bool
		if *part.to, ok = sidOf(b[o:]); !ok {
			return badFormat(op, ntstatus.InvalidSID, o, "a SID")
		}
	}
	for _, list := range []struct {
		field   int
		present Control
		to      **ACL
	}{{12, SACLPresent, &v.SACL}, {16, DACLPresent, &v.DACL}} {
		o, err := offset(list.field)
		if err != nil {
			return err
		}
		if o == 0 || v.Control&list.present == 0 {
			continue
		}
		if *list.to, err = aclOf(op, b, o); err != nil {
			return err
		}
	}
	*d = v
	return nil
}
