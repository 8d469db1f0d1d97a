package security

import "strconv"

// String is the descriptor in SDDL as Windows writes it: O: G: D: S:, aliases for well-known SIDs, rights as words where words
// cover them. ParseSDDL gives back an equal descriptor, apart from control bits that SDDL has no word for.
func (d *Descriptor) String() string { return d.Format(SID{}) }

// Format is String with the domain whose accounts are written as relative aliases.
func (d *Descriptor) Format(domain SID) string {
	if d == nil {
		return ""
	}
	var b []byte
	if !d.Owner.IsZero() {
		b = appendSID(append(b, "O:"...), d.Owner, domain)
	}
	if !d.Group.IsZero() {
		b = appendSID(append(b, "G:"...), d.Group, domain)
	}
	if d.HasDACL() {
		b = append(b, "D:"...)
		for _, w := range controlWords {
			if d.Control&w.dacl != 0 {
				b = append(b, w.word...)
			}
		}
		b = appendACL(b, d.DACL, domain)
	}
	if d.HasSACL() {
		b = append(b, "S:"...)
		for _, w := range controlWords {
			if d.Control&w.sacl != 0 {
				b = append(b, w.word...)
			}
		}
		b = appendACL(b, d.SACL, domain)
	}
	return string(b)
}

// MarshalText is String.
func (d *Descriptor) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseSDDL.
func (d *Descriptor) UnmarshalText(text []byte) error {
	v, err := ParseSDDL(string(text))
	if err == nil {
		*d = *v
	}
	return err
}

func appendACL(b []byte, l *ACL, domain SID) []byte {
	if l == nil {
		return append(b, nullACL...)
	}
	for i := range l.ACEs {
		b = l.ACEs[i].append(b, domain)
	}
	return b
}

// String is the entry in SDDL: (A;;GA;;;SY). An entry that SDDL has no words for is written with its type as a number, which no
// parser takes.
func (a ACE) String() string { return string(a.append(nil, SID{})) }

func (a *ACE) append(b []byte, domain SID) []byte {
	start := len(b)
	b = appendType(append(b, '('), a.Type)
	b = append(b, ';')
	for _, w := range flagWords {
		if a.Flags&w.flag != 0 && (w.flag != SuccessfulAccess || w.word == a.successWord()) {
			b = append(b, w.word...)
		}
	}
	b = append(b, ';')
	b = appendRights(b, a.Type, a.Mask)
	b = append(b, ';')
	if a.Type.is(object) && a.ObjectFlags&ObjectTypePresent != 0 {
		b = a.ObjectType.append(b)
	}
	b = append(b, ';')
	if a.Type.is(object) && a.ObjectFlags&InheritedObjectTypePresent != 0 {
		b = a.InheritedObjectType.append(b)
	}
	b = appendSID(append(b, ';'), a.SID, domain)
	b, ok := a.appendData(b, domain)
	if !ok {
		b = appendNumber(append(b[:start], '('), a.Type)
		b = appendOctets(append(b, ";;;;;;#"...), a.Data)
	}
	return append(b, ')')
}

// successWord is what the bit of SA means to the entry.
func (a *ACE) successWord() string {
	if a.Type == AccessFilter {
		return "TP"
	}
	return "SA"
}

// appendData writes the condition or the attribute; false where the data are neither.
func (a *ACE) appendData(b []byte, domain SID) ([]byte, bool) {
	switch {
	case a.Type == ResourceAttribute:
		c, ok := claimOf(a.Data)
		return c.append(append(b, ';'), domain), ok
	case a.Type.is(condition):
		return Condition(a.Data).append(append(b, ';'), domain)
	}
	return b, true
}

func appendType(b []byte, t ACEType) []byte {
	for _, w := range typeWords {
		if w.typ == t {
			return append(b, w.word...)
		}
	}
	return appendNumber(b, t)
}

func appendNumber(b []byte, t ACEType) []byte {
	return strconv.AppendUint(append(b, "0x"...), uint64(t), 16)
}

func appendRights(b []byte, t ACEType, m AccessMask) []byte {
	words := bitWords[:]
	if t == MandatoryLabel {
		words = labelWords[:]
	} else {
		for _, w := range wholeWords {
			if w.mask == m {
				return append(b, w.word...)
			}
		}
	}
	start, rest := len(b), m
	for _, w := range words {
		if m&w.mask != 0 {
			b = append(b, w.word...)
			rest &^= w.mask
		}
	}
	if rest != 0 {
		b = strconv.AppendUint(append(b[:start], "0x"...), uint64(m), 16)
	}
	return b
}
