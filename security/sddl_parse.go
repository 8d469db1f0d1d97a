package security

import (
	"fmt"
	"strings"

	"sallyport/ntstatus"
)

// maxSDDL bounds the text: two full ACLs of 64 KiB, generously written.
const maxSDDL = 1 << 19

// ParseSDDL reads a descriptor in the language of MS-DTYP 2.5.1: O:sid G:sid D:flags(ace)… S:flags(ace)…, parts in any
// order, each at most once, all optional. Words are taken in either case, blanks around parts and fields as Windows does.
// Entries are (type;flags;rights;object;inherited object;sid), with a condition or an attribute behind the SID where the type has one.
// Failures are InvalidACL, InvalidSID or InvalidSecurityDescr; all have a SyntaxError with the byte.
func ParseSDDL(s string) (*Descriptor, error) { return ParseSDDLIn(s, SID{}) }

// ParseSDDLIn is ParseSDDL with the domain that relative aliases ("DA") belong to.
func ParseSDDLIn(s string, domain SID) (*Descriptor, error) {
	p := parser{text: s, domain: domain}
	d := p.descriptor()
	if p.err != nil {
		return nil, p.wrap("security.ParseSDDL")
	}
	return d, nil
}

func (p *parser) descriptor() *Descriptor {
	if len(p.text) > maxSDDL {
		p.failAt(maxSDDL, ntstatus.InvalidSecurityDescr, fmt.Sprintf("at most %d bytes", maxSDDL))
		return nil
	}
	d := &Descriptor{}
	seen := ""
	for p.space(); p.err == nil && p.pos < len(p.text); p.space() {
		part := p.peek()
		if !strings.Contains("OGDS", string(part)) || strings.Contains(seen, string(part)) {
			p.fail(ntstatus.InvalidSecurityDescr, "a part that is not there yet (O:, G:, D: or S:)")
			break
		}
		seen += string(part)
		p.pos++
		p.expect(':', ntstatus.InvalidSecurityDescr, ": after the letter of the part")
		p.space()
		switch part {
		case 'O':
			d.Owner = p.sid()
		case 'G':
			d.Group = p.sid()
		case 'D':
			var c Control
			d.DACL, c = p.acl(false)
			d.Control |= c
		case 'S':
			var c Control
			d.SACL, c = p.acl(true)
			d.Control |= c
		}
	}
	return d
}

// acl takes flags and entries.
func (p *parser) acl(sacl bool) (*ACL, Control) {
	control := DACLPresent
	if sacl {
		control = SACLPresent
	}
	null := false
	for p.space(); isLetter(p.peek()); p.space() {
		rest := p.text[p.pos:]
		// A letter with a colon behind it opens the next part: the D of "S:D:P" is no flag.
		if len(rest) > 1 && rest[1] == ':' {
			break
		}
		word, c := p.controlWord(rest, sacl)
		null = null || word == nullACL
		control |= c
		p.pos += len(word)
	}
	if null {
		return nil, control
	}
	list, size := &ACL{}, aclHeaderSize
	for p.peek() == '(' {
		start := p.pos
		a := p.ace(sacl)
		if size += a.size(); size > maxACLSize {
			p.failAt(start, ntstatus.InvalidACL, "the end of the list: it is full at 64 KiB")
		}
		if p.err != nil {
			return nil, 0
		}
		list.ACEs = append(list.ACEs, a)
		p.space()
	}
	return list, control
}

func (p *parser) controlWord(rest string, sacl bool) (string, Control) {
	if hasWord(rest, nullACL) {
		return nullACL, 0
	}
	for _, w := range controlWords {
		if hasWord(rest, w.word) {
			if sacl {
				return w.word, w.sacl
			}
			return w.word, w.dacl
		}
	}
	p.fail(ntstatus.InvalidACL, "a flag of the list (P, AR, AI, NO_ACCESS_CONTROL) or an entry")
	return "", 0
}

// ace takes (type;flags;rights;object;inherited object;sid) with, behind one more semicolon, a condition or an attribute.
func (p *parser) ace(sacl bool) ACE {
	const separator = "; and the next field of the entry"
	p.expect('(', ntstatus.InvalidACL, "(")
	a := ACE{Type: p.aceType(sacl)}
	p.expect(';', ntstatus.InvalidACL, separator)
	a.Flags = p.aceFlags()
	p.expect(';', ntstatus.InvalidACL, separator)
	a.Mask = p.rights(a.Type)
	p.expect(';', ntstatus.InvalidACL, separator)
	if g, ok := p.objectType(a.Type, "; as an entry of this type has no object type"); ok {
		a.ObjectType, a.ObjectFlags = g, ObjectTypePresent
	}
	if g, ok := p.objectType(a.Type, "; as an entry of this type has no inherited object type"); ok {
		a.InheritedObjectType, a.ObjectFlags = g, a.ObjectFlags|InheritedObjectTypePresent
	}
	p.space()
	start := p.pos
	a.SID = p.sid()
	if _, label := a.SID.IntegrityLevel(); a.Type == MandatoryLabel && !label {
		p.failAt(start, ntstatus.InvalidACL, "an integrity label (S-1-16-…)")
	}
	p.space()
	switch {
	case a.Type == ResourceAttribute:
		p.expect(';', ntstatus.InvalidACL, "; and the attribute")
		p.space()
		if c := p.claim(); p.err == nil {
			a.Data = c.marshal()
		}
	case a.Type.is(condition):
		p.expect(';', ntstatus.InvalidACL, "; and the condition")
		p.space()
		a.Data = string(p.condition())
	}
	p.space()
	p.expect(')', ntstatus.InvalidACL, ") at the end of the entry")
	return a
}

// objectType takes a GUID, or none, and the semicolon behind it. Blanks stand in the place of a GUID, not beside one.
func (p *parser) objectType(t ACEType, want string) (g GUID, ok bool) {
	if t.is(object) && isDigit(p.peek(), 16) {
		if g, ok = parseGUID(p.text[p.pos:min(p.pos+guidSize, len(p.text))]); ok {
			p.pos += guidSize
		}
		want = "a GUID (8-4-4-4-12 hexadecimal digits) or ;"
	} else {
		p.space()
	}
	p.expect(';', ntstatus.InvalidACL, want)
	return g, ok
}

func (p *parser) aceType(sacl bool) ACEType {
	p.space()
	start := p.pos
	for isLetter(p.peek()) {
		p.pos++
	}
	word := strings.ToUpper(p.text[start:p.pos])
	p.space()
	for _, w := range typeWords {
		if w.word != word {
			continue
		}
		if w.typ.is(system) != sacl {
			p.failAt(start, ntstatus.InvalidACL, "a type of entry that belongs to this list (A, D, OA, OD, XA, XD and ZA to D:, the others to S:)")
		}
		return w.typ
	}
	p.failAt(start, ntstatus.InvalidACL, "a type of entry (A, D, OA, OD, XA, XD, ZA; AU, AL, OU, OL, XU, ML, RA, SP, TL, FL)")
	return 0
}

func (p *parser) aceFlags() ACEFlags {
	var flags ACEFlags
	for p.space(); isLetter(p.peek()); p.space() {
		start := p.pos
		word, _ := p.pair()
		flag := ACEFlags(0)
		for _, w := range flagWords {
			if w.word == word {
				flag = w.flag
			}
		}
		if flag == 0 {
			p.failAt(start, ntstatus.InvalidACL, "a flag of the entry (OI, CI, NP, IO, ID, CR, SA, FA, TP)")
		}
		flags |= flag
	}
	return flags
}

// rights takes a number, a run of words, or a number and words behind it; blanks stand around it, not inside.
func (p *parser) rights(typ ACEType) AccessMask {
	const want = "access rights (two-letter words or a number of 32 bits)"
	var mask AccessMask
	p.space()
	if isDigit(p.peek(), 10) {
		mask = AccessMask(p.number(1<<32-1, true, ntstatus.InvalidACL, want))
	}
	for isLetter(p.peek()) {
		start := p.pos
		word, _ := p.pair()
		bits := rightBits(typ, word)
		if bits == 0 {
			p.failAt(start, ntstatus.InvalidACL, want)
		}
		mask |= bits
	}
	p.space()
	return mask
}

// rightBits is what a word means; 0 where it is none.
func rightBits(typ ACEType, word string) AccessMask {
	tables := [][]rightWord{bitWords[:], wholeWords[:]}
	if typ == MandatoryLabel {
		tables = append(tables, labelWords[:])
	}
	for _, table := range tables {
		for _, w := range table {
			if w.word == word {
				return w.mask
			}
		}
	}
	return 0
}

// hasWord reports whether s begins with word, in either case.
func hasWord(s, word string) bool {
	return len(s) >= len(word) && strings.EqualFold(s[:len(word)], word)
}
