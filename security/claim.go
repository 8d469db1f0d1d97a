package security

import (
	"encoding/binary"
	"strconv"
	"strings"
	"unicode/utf16"

	"sallyport/ntstatus"
)

// ClaimType is the type of a claim's values (MS-DTYP 2.4.10.1), NT's numbers.
type ClaimType uint16

// The types.
const (
	ClaimInt64   ClaimType = 0x01
	ClaimUint64  ClaimType = 0x02
	ClaimString  ClaimType = 0x03
	ClaimSID     ClaimType = 0x05
	ClaimBoolean ClaimType = 0x06
	ClaimOctets  ClaimType = 0x10
)

// ClaimFlags say how a claim counts (MS-DTYP 2.4.10.1), NT's numbers.
type ClaimFlags uint32

// The flags.
const (
	ClaimNonInheritable    ClaimFlags = 0x01
	ClaimCaseSensitive     ClaimFlags = 0x02
	ClaimUseForDenyOnly    ClaimFlags = 0x04
	ClaimDisabledByDefault ClaimFlags = 0x08
	ClaimDisabled          ClaimFlags = 0x10
	ClaimMandatory         ClaimFlags = 0x20
)

// Claim is a named list of values of one type that is known of a user, a device or an object (CLAIM_SECURITY_ATTRIBUTE, MS-DTYP 2.4.10.1). A
// claim without values is no claim: conditions take it for unknown.
type Claim struct {
	Name   string
	Type   ClaimType
	Flags  ClaimFlags
	Values []ClaimValue
}

// ClaimValue is one value; which field counts is said by the claim's type.
type ClaimValue struct {
	Number uint64 // int64 in two's complement, uint64, boolean as 0 or 1
	Text   string // string in UTF-8, or octets
	SID    SID
}

// IntClaim is a claim of signed numbers.
func IntClaim(name string, values ...int64) Claim {
	c := Claim{Name: name, Type: ClaimInt64}
	for _, v := range values {
		c.Values = append(c.Values, ClaimValue{Number: uint64(v)})
	}
	return c
}

// StringClaim is a claim of texts.
func StringClaim(name string, values ...string) Claim {
	c := Claim{Name: name, Type: ClaimString}
	for _, v := range values {
		c.Values = append(c.Values, ClaimValue{Text: v})
	}
	return c
}

// SIDClaim is a claim of SIDs.
func SIDClaim(name string, values ...SID) Claim {
	c := Claim{Name: name, Type: ClaimSID}
	for _, v := range values {
		c.Values = append(c.Values, ClaimValue{SID: v})
	}
	return c
}

// claimHeader is the length of CLAIM_SECURITY_ATTRIBUTE_RELATIVE_V1 without its values' offsets (MS-DTYP 2.4.10.1).
const claimHeader = 16

// marshal is the relative form: header, offsets of the values, name, values.
func (c *Claim) marshal() string {
	b := make([]byte, claimHeader+4*len(c.Values))
	binary.LittleEndian.PutUint32(b[0:], uint32(len(b)))
	binary.LittleEndian.PutUint16(b[4:], uint16(c.Type))
	binary.LittleEndian.PutUint32(b[8:], uint32(c.Flags))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(c.Values)))
	b = appendWide(b, c.Name)
	for i := range c.Values {
		v := &c.Values[i]
		binary.LittleEndian.PutUint32(b[claimHeader+4*i:], uint32(len(b)))
		switch c.Type {
		case ClaimString:
			b = appendWide(b, v.Text)
		case ClaimSID:
			b = v.SID.appendBinary(binary.LittleEndian.AppendUint32(b, uint32(v.SID.binarySize())))
		case ClaimOctets:
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(v.Text))), v.Text...)
		default:
			b = binary.LittleEndian.AppendUint64(b, v.Number)
		}
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return string(b)
}

// appendWide appends UTF-16 with the zero at its end. Lone surrogates travel as the three bytes of WTF-8.
func appendWide(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		if u, ok := surrogateAt(s[i:]); ok {
			b = binary.LittleEndian.AppendUint16(b, u)
			i += 3
			continue
		}
		n := 1
		for i+n < len(s) && s[i+n]&0xc0 == 0x80 {
			n++
		}
		for _, u := range utf16.Encode([]rune(s[i : i+n])) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		i += n
	}
	return append(b, 0, 0)
}

// surrogateAt reads a lone surrogate at the beginning of s.
func surrogateAt(s string) (uint16, bool) {
	if len(s) < 3 || s[0] != 0xed || s[1] < 0xa0 || s[1] > 0xbf || s[2]&0xc0 != 0x80 {
		return 0, false
	}
	return 0xd000 | uint16(s[1]&0x3f)<<6 | uint16(s[2]&0x3f), true
}

// narrow reads UTF-16, see appendWide.
func narrow(wide string) string {
	units := make([]uint16, len(wide)/2)
	for i := range units {
		units[i] = uint16(wide[2*i]) | uint16(wide[2*i+1])<<8
	}
	var b []byte
	for i := 0; i < len(units); i++ {
		u := rune(units[i])
		if utf16.IsSurrogate(u) {
			if i+1 < len(units) {
				if r := utf16.DecodeRune(u, rune(units[i+1])); r != 0xfffd {
					b = append(b, string(r)...)
					i++
					continue
				}
			}
			b = append(b, 0xed, 0x80|byte(u>>6)&0x3f, 0x80|byte(u)&0x3f)
			continue
		}
		b = append(b, string(u)...)
	}
	return string(b)
}

// wideAt reads UTF-16 up to its zero; false where there is none.
func wideAt(s string) (string, bool) {
	for i := 0; i+1 < len(s); i += 2 {
		if s[i] == 0 && s[i+1] == 0 {
			return s[:i], true
		}
	}
	return "", false
}

// claimOf reads the relative form. What it allocates is in proportion to data: values may not overlap beyond its length.
func claimOf(data string) (c Claim, ok bool) {
	if len(data) < claimHeader {
		return Claim{}, false
	}
	c.Type, c.Flags = ClaimType(uint16(data[4])|uint16(data[5])<<8), ClaimFlags(le32(data[8:]))
	count := le32(data[12:])
	if uint64(count) > uint64(len(data)-claimHeader)/4 {
		return Claim{}, false
	}
	budget := len(data)
	at := func(field int) (string, bool) {
		o := le32(data[field:])
		if uint64(o) > uint64(len(data)) {
			return "", false
		}
		return data[o:], true
	}
	text := func(s string, ok bool) (string, bool) {
		wide, whole := wideAt(s[:min(len(s), budget)])
		budget -= len(wide) + 2
		return narrow(wide), ok && whole
	}
	if c.Name, ok = text(at(0)); !ok {
		return Claim{}, false
	}
	for i := range int(count) {
		s, ok := at(claimHeader + 4*i)
		var v ClaimValue
		switch c.Type {
		case ClaimInt64, ClaimUint64, ClaimBoolean:
			if ok = ok && len(s) >= 8; ok {
				v.Number = le64(s)
			}
		case ClaimString:
			v.Text, ok = text(s, ok)
		case ClaimSID, ClaimOctets:
			if ok = ok && len(s) >= 4 && uint64(le32(s)) <= uint64(len(s)-4); !ok {
				break
			}
			octets := s[4 : 4+int(le32(s))]
			budget -= len(octets)
			ok = budget >= 0
			if c.Type == ClaimOctets {
				v.Text = octets
			} else if v.SID, _ = sidOf(octets); v.SID.IsZero() || v.SID.binarySize() != len(octets) {
				ok = false
			}
		default:
			ok = false
		}
		if !ok {
			return Claim{}, false
		}
		c.Values = append(c.Values, v)
	}
	return c, true
}

// Attribute is the claim that a resource attribute entry makes about the object (MS-DTYP 2.4.4.15); false where the entry is of
// another type or its data are damaged.
func (a *ACE) Attribute() (Claim, bool) {
	if a.Type != ResourceAttribute {
		return Claim{}, false
	}
	return claimOf(a.Data)
}

// NewResourceAttribute is the entry for a SACL that makes claim about the object. It fails with InvalidParameter where the claim's
// type is none of the listed ones.
func NewResourceAttribute(claim Claim) (ACE, error) {
	if claimWord(claim.Type) == "" {
		return ACE{}, ntstatus.Errorf("security.NewResourceAttribute", claim.Name, ntstatus.InvalidParameter, "claim type %d", claim.Type)
	}
	return ACE{Type: ResourceAttribute, SID: Everyone(), Data: claim.marshal()}, nil
}

// claimWords are the types of values in SDDL (MS-DTYP 2.5.1.1, resource-attribute-ace).
var claimWords = [...]struct {
	word string
	typ  ClaimType
}{
	{"TI", ClaimInt64}, {"TU", ClaimUint64}, {"TS", ClaimString}, {"TD", ClaimSID}, {"TB", ClaimBoolean}, {"TX", ClaimOctets},
}

func claimWord(t ClaimType) string {
	for _, w := range claimWords {
		if w.typ == t {
			return w.word
		}
	}
	return ""
}

// append writes ("name",TS,0x0,"value",…).
func (c *Claim) append(b []byte, domain SID) []byte {
	b = append(b, `("`...)
	b = appendQuoted(b, wideString(c.Name))
	b = append(append(b, `",`...), claimWord(c.Type)...)
	b = strconv.AppendUint(append(b, ",0x"...), uint64(c.Flags), 16)
	for i := range c.Values {
		v := &c.Values[i]
		b = append(b, ',')
		switch c.Type {
		case ClaimInt64:
			b = strconv.AppendInt(b, int64(v.Number), 10)
		case ClaimString:
			b = append(appendQuoted(append(b, '"'), wideString(v.Text)), '"')
		case ClaimSID:
			b = append(appendSID(append(b, "SID("...), v.SID, domain), ')')
		case ClaimOctets:
			b = appendOctets(b, v.Text)
		default:
			b = strconv.AppendUint(b, v.Number, 10)
		}
	}
	return append(b, ')')
}

func wideString(s string) string {
	b := appendWide(nil, s)
	return string(b[:len(b)-2])
}

// claim takes ("name",TS,flags,value,…).
func (p *parser) claim() Claim {
	const comma = ", and the next part of the attribute"
	next := func(want string) {
		p.space()
		p.expect(',', ntstatus.InvalidACL, want)
		p.space()
	}
	p.expect('(', ntstatus.InvalidACL, "( of a resource attribute")
	p.space()
	var c Claim
	if p.peek() != '"' {
		p.fail(ntstatus.InvalidACL, "the name of the attribute in quotes")
		return c
	}
	c.Name = p.text16()
	next(comma)
	start := p.pos
	word, _ := p.pair()
	for _, w := range claimWords {
		if w.word == word {
			c.Type = w.typ
		}
	}
	if c.Type == 0 {
		p.failAt(start, ntstatus.InvalidACL, "a type of value (TI, TU, TS, TD, TB or TX)")
	}
	next(comma)
	c.Flags = ClaimFlags(p.number(1<<32-1, true, ntstatus.InvalidACL, "flags of 32 bits"))
	for p.space(); p.err == nil && !p.accept(')'); p.space() {
		next(", or ) after the values")
		c.Values = append(c.Values, p.claimValue(c.Type))
		if len(c.Values) > maxACLSize/5 {
			p.fail(ntstatus.InvalidACL, "fewer values")
		}
	}
	return c
}

// text16 takes "text".
func (p *parser) text16() string {
	if p.peek() != '"' {
		p.fail(ntstatus.InvalidACL, `"text"`)
		return ""
	}
	start := p.pos
	wide := string(p.quoted(nil))
	for i := 0; i+1 < len(wide); i += 2 {
		if wide[i] == 0 && wide[i+1] == 0 {
			p.failAt(start, ntstatus.InvalidACL, "text without zeros")
		}
	}
	return narrow(wide)
}

func (p *parser) claimValue(t ClaimType) (v ClaimValue) {
	switch t {
	case ClaimString:
		v.Text = p.text16()
	case ClaimSID:
		if !hasWord(p.rest(), "SID") {
			v.SID = p.sid()
		} else {
			v.SID = p.wrappedSID()
		}
	case ClaimOctets:
		start := p.pos
		if v.Text = string(p.octets(nil)); p.pos == start {
			p.fail(ntstatus.InvalidACL, "octets in hexadecimal")
		}
	case ClaimBoolean:
		v.Number = p.number(1, true, ntstatus.InvalidACL, "0 or 1")
	case ClaimUint64:
		v.Number = p.number(1<<64-1, true, ntstatus.InvalidACL, "a number of 64 bits without a sign")
	case ClaimInt64:
		if p.accept('-') {
			v.Number = -p.number(1<<63, true, ntstatus.InvalidACL, "a number of 64 bits")
		} else {
			p.accept('+')
			v.Number = p.number(1<<63-1, true, ntstatus.InvalidACL, "a number of 64 bits")
		}
	}
	return v
}

// findClaim looks a name up, in either case, among claims that count: with deny, those for denying only as well.
func findClaim(claims []Claim, name string, deny bool) *Claim {
	for i := range claims {
		c := &claims[i]
		if strings.EqualFold(c.Name, name) && c.Flags&ClaimDisabled == 0 && (deny || c.Flags&ClaimUseForDenyOnly == 0) {
			return c
		}
	}
	return nil
}
