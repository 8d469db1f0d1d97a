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
// Entries are (type;flags;rights;;;sid) of the types A, D, AU, AL and ML; others fail with NotSupported. Other failures are
// InvalidACL, InvalidSID or InvalidSecurityDescr; all have a SyntaxError with the byte.
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

// ace takes (type;flags;rights;object;inherited object;sid).
func (p *parser) ace(sacl bool) ACE {
	const separator = "; and the next field of the entry"
	p.expect('(', ntstatus.InvalidACL, "(")
	a := ACE{Type: p.aceType(sacl)}
	p.expect(';', ntstatus.InvalidACL, separator)
	a.Flags = p.aceFlags()
	p.expect(';', ntstatus.InvalidACL, separator)
	a.Mask = p.rights(a.Type)
	p.expect(';', ntstatus.InvalidACL, separator)
	p.space()
	p.expect(';', ntstatus.InvalidACL, "; as an entry of this type has no object type")
	p.space()
	p.expect(';', ntstatus.InvalidACL, "; as an entry of this type has no inherited object type")
	p.space()
	start := p.pos
	a.SID = p.sid()
	if _, label := a.SID.IntegrityLevel(); a.Type == MandatoryLabel && !label {
		p.failAt(start, ntstatus.InvalidACL, "an integrity label (S-1-16-…)")
	}
	p.space()
	p.expect(')', ntstatus.InvalidACL, ") after the SID of the entry")
	return a
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
		if inSACL := w.typ != AccessAllowed && w.typ != AccessDenied; inSACL != sacl {
			p.failAt(start, ntstatus.InvalidACL, "a type of entry that belongs to this list (D: has A and D, S: has AU, AL and ML)")
		}
		return w.typ
	}
	for _, later := range laterTypeWords {
		if later == word {
			p.failAt(start, ntstatus.NotSupported, "an entry of type A, D, AU, AL or ML: this type is not supported")
		}
	}
	p.failAt(start, ntstatus.InvalidACL, "a type of entry (A, D, AU, AL or ML)")
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
			p.failAt(start, ntstatus.InvalidACL, "a flag of the entry (OI, CI, NP, IO, ID, CR, SA, FA)")
		}
		flags |= flag
	}
	return flags
}

// rights takes a number or a run of words; blanks stand around it, not inside.
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
