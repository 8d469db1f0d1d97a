package security

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"sallyport/ntstatus"
)

// MaxSubAuthorities is the longest SID that MS-DTYP 2.4.2 allows.
const MaxSubAuthorities = 15

const maxAuthority = 1<<48 - 1

// SID is a security identifier (MS-DTYP 2.4.2): who somebody is. It is comparable and fit to be a map key; the zero value is no
// SID at all, equal to no other.
type SID struct {
	// No padding anywhere, so that == and hashing are a single pass over 68 bytes.
	revision    uint8
	count       uint8
	authorityHi uint16
	authorityLo uint32
	sub         [MaxSubAuthorities]uint32
}

// NewSID builds S-1-authority-sub…; it fails with InvalidSID where the authority needs more than 48 bits or there are more
// than MaxSubAuthorities.
func NewSID(authority uint64, sub ...uint32) (SID, error) {
	if authority > maxAuthority || len(sub) > MaxSubAuthorities {
		return SID{}, ntstatus.Errorf("security.NewSID", "", ntstatus.InvalidSID,
			"authority %d with %d sub-authorities: at most %d and %d", authority, len(sub), uint64(maxAuthority), MaxSubAuthorities)
	}
	return makeSID(authority, sub...), nil
}

func makeSID(authority uint64, sub ...uint32) SID {
	s := SID{revision: 1, count: uint8(len(sub)), authorityHi: uint16(authority >> 32), authorityLo: uint32(authority)}
	copy(s.sub[:], sub)
	return s
}

// IsZero reports whether s is the zero value: no SID.
func (s SID) IsZero() bool { return s.revision == 0 }

// same is s == o, looking first at where SIDs differ: a check compares many, of which few are the same.
func (s *SID) same(o *SID) bool {
	last := uint8(0)
	if s.count > 0 {
		last = s.count - 1
	}
	return s.count == o.count && s.authorityLo == o.authorityLo && s.sub[last] == o.sub[last] && *s == *o
}

// Authority is the identifier authority, 48 bits.
func (s SID) Authority() uint64 { return uint64(s.authorityHi)<<32 | uint64(s.authorityLo) }

// Len is the number of sub-authorities.
func (s SID) Len() int { return int(s.count) }

// Sub is the i-th sub-authority; it panics, as an index does, where i is not below Len.
func (s SID) Sub(i int) uint32 { return s.sub[:s.count][i] }

// RID is the last sub-authority, 0 where there is none.
func (s SID) RID() uint32 {
	if s.count == 0 {
		return 0
	}
	return s.sub[s.count-1]
}

// Domain is s without its RID: the domain of an account. It is the zero SID where s has no sub-authority.
func (s SID) Domain() SID {
	if s.count == 0 {
		return SID{}
	}
	s.count--
	s.sub[s.count] = 0
	return s
}

// WithRID is the account rid of the domain s; the zero SID where s is zero or full.
func (s SID) WithRID(rid uint32) SID {
	if s.IsZero() || s.count == MaxSubAuthorities {
		return SID{}
	}
	s.sub[s.count] = rid
	s.count++
	return s
}

// HasPrefix reports whether s begins with all of prefix: S-1-5-80-… has the prefix S-1-5-80.
func (s SID) HasPrefix(prefix SID) bool {
	return !s.IsZero() && !prefix.IsZero() && s.Authority() == prefix.Authority() && s.count >= prefix.count &&
		slices.Equal(s.sub[:prefix.count], prefix.sub[:prefix.count])
}

// Compare orders SIDs by authority, then by sub-authorities, a prefix before what it begins; the zero SID is first.
func (s SID) Compare(o SID) int {
	return cmp.Or(cmp.Compare(s.revision, o.revision), cmp.Compare(s.Authority(), o.Authority()),
		slices.Compare(s.sub[:s.count], o.sub[:o.count]))
}

// String is the text of MS-DTYP 2.4.2.1: an authority of 2^32 and more in hexadecimal, everything else in decimal. The
// zero SID is the empty string.
func (s SID) String() string { return string(s.append(nil)) }

func (s SID) append(b []byte) []byte {
	if s.IsZero() {
		return b
	}
	b = append(b, "S-1-"...)
	if a := s.Authority(); a > 1<<32-1 {
		b = append(b, "0x"...)
		b = append(b, strings.ToUpper(strconv.FormatUint(a, 16))...)
	} else {
		b = strconv.AppendUint(b, a, 10)
	}
	for _, v := range s.sub[:s.count] {
		b = append(b, '-')
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	return b
}

// MarshalText is String.
func (s SID) MarshalText() ([]byte, error) { return s.append(nil), nil }

// UnmarshalText is ParseSID; the empty text is the zero SID.
func (s *SID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = SID{}
		return nil
	}
	v, err := ParseSID(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// ParseSID reads S-1-… or a two-letter alias of SDDL ("BA", "SY"), in either case. An alias that is relative to a domain ("DA")
// needs ParseSIDIn. Failures are InvalidSID with a SyntaxError.
func ParseSID(s string) (SID, error) { return ParseSIDIn(s, SID{}) }

// ParseSIDIn is ParseSID with the domain that relative aliases belong to.
func ParseSIDIn(s string, domain SID) (SID, error) {
	p := parser{text: s, domain: domain}
	sid := p.sid()
	if p.err == nil && p.pos < len(s) {
		p.fail(ntstatus.InvalidSID, "the end of the SID")
	}
	if p.err != nil {
		return SID{}, p.wrap("security.ParseSID")
	}
	return sid, nil
}
