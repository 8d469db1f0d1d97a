// Package control is what both ends of the core's control protocol share: the translation between values and their wire
// form. The wire is proto/corepb; what comes from it is hostile until it is read here.
package control

import (
	"fmt"

	"sallyport/proto/corepb"
	"sallyport/security"
)

const (
	MaxFrame = 64 << 10 // bytes of one datagram

	maxTokenEntries = 1024    // groups, privileges, SIDs and values of claims of a token from a peer
	maxDescriptor   = 8 << 10 // bytes of a descriptor's text
)

// TokenToWire is t as the control protocol carries it.
func TokenToWire(t *security.Token) *corepb.Token {
	w := &corepb.Token{
		TokenId: uint64(t.TokenID), AuthenticationId: uint64(t.AuthenticationID), ModifiedId: uint64(t.ModifiedID), OriginId: uint64(t.OriginID),
		Type: uint32(t.Type), Level: uint32(t.Level), User: groupToWire(t.User), Groups: groupsToWire(t.Groups), Restricted: groupsToWire(t.Restricted),
		Owner: sidText(t.Owner), PrimaryGroup: sidText(t.PrimaryGroup), SessionId: t.SessionID, Integrity: sidText(t.Integrity),
		MandatoryPolicy: uint32(t.MandatoryPolicy), SourceName: t.Source.Name, SourceId: uint64(t.Source.ID), Expiration: t.Expiration,
		WriteRestricted: t.WriteRestricted, AppContainer: sidText(t.AppContainer), Capabilities: groupsToWire(t.Capabilities), LowPrivilege: t.LowPrivilege,
		TrustLevel: sidText(t.TrustLevel), Elevation: uint32(t.Elevation), Linked: uint64(t.Linked), DeviceGroups: groupsToWire(t.DeviceGroups),
		UserClaims: claimsToWire(t.UserClaims), DeviceClaims: claimsToWire(t.DeviceClaims), LocalClaims: claimsToWire(t.LocalClaims),
	}
	for _, p := range t.Privileges {
		w.Privileges = append(w.Privileges, &corepb.Privilege{Privilege: uint32(p.Privilege), Attributes: uint32(p.Attributes)})
	}
	if t.DefaultDACL != nil {
		w.DefaultDacl = (&security.Descriptor{Control: security.DACLPresent, DACL: t.DefaultDACL}).String()
	}
	return w
}

// TokenFromWire reads a token that a peer sent: every SID well formed, lists bounded.
func TokenFromWire(w *corepb.Token) (*security.Token, error) {
	if w == nil {
		return nil, fmt.Errorf("the token is missing")
	}
	n := len(w.Groups) + len(w.Privileges) + len(w.Restricted) + len(w.Capabilities) + len(w.DeviceGroups)
	for _, claims := range [][]*corepb.Claim{w.UserClaims, w.DeviceClaims, w.LocalClaims} {
		for _, c := range claims {
			n += 1 + len(c.GetValues())
		}
	}
	if n > maxTokenEntries {
		return nil, fmt.Errorf("the token has %d entries, at most %d are allowed", n, maxTokenEntries)
	}
	r := wireReader{}
	t := &security.Token{
		TokenID: security.LUID(w.TokenId), AuthenticationID: security.LUID(w.AuthenticationId), ModifiedID: security.LUID(w.ModifiedId),
		OriginID: security.LUID(w.OriginId), Type: security.TokenType(w.Type), Level: security.ImpersonationLevel(w.Level),
		User: r.group(w.User), Groups: r.groups(w.Groups), Restricted: r.groups(w.Restricted), Owner: r.sid(w.Owner),
		PrimaryGroup: r.sid(w.PrimaryGroup), SessionID: w.SessionId, Integrity: r.sid(w.Integrity), MandatoryPolicy: security.MandatoryPolicy(w.MandatoryPolicy),
		Source: security.TokenSource{Name: w.SourceName, ID: security.LUID(w.SourceId)}, Expiration: w.Expiration,
		WriteRestricted: w.WriteRestricted, AppContainer: r.sid(w.AppContainer), Capabilities: r.groups(w.Capabilities), LowPrivilege: w.LowPrivilege,
		TrustLevel: r.sid(w.TrustLevel), Elevation: security.ElevationType(w.Elevation), Linked: security.LUID(w.Linked), DeviceGroups: r.groups(w.DeviceGroups),
		UserClaims: r.claims(w.UserClaims), DeviceClaims: r.claims(w.DeviceClaims), LocalClaims: r.claims(w.LocalClaims),
	}
	for _, p := range w.Privileges {
		t.Privileges = append(t.Privileges, security.TokenPrivilege{Privilege: security.Privilege(p.Privilege), Attributes: security.PrivilegeAttributes(p.Attributes)})
	}
	if w.DefaultDacl != "" && r.err == nil {
		d, err := ParseDescriptor(w.DefaultDacl)
		if err != nil {
			return nil, err
		}
		t.DefaultDACL = d.DACL
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case t.User.SID.IsZero():
		return nil, fmt.Errorf("the token has no user")
	case len(w.SourceName) > 8:
		return nil, fmt.Errorf("the token's source name has %d bytes, at most 8 are allowed", len(w.SourceName))
	case t.Type != security.TokenPrimary && t.Type != security.TokenImpersonation:
		return nil, fmt.Errorf("%d is not a token type", w.Type)
	case t.Level > security.LevelDelegation:
		return nil, fmt.Errorf("%d is not an impersonation level", w.Level)
	case w.Elevation > uint32(security.ElevationLimited):
		return nil, fmt.Errorf("%d is not an elevation type", w.Elevation)
	}
	return t, nil
}

func groupToWire(g security.Group) *corepb.Group {
	return &corepb.Group{Sid: g.SID.String(), Attributes: uint32(g.Attributes)}
}

func groupsToWire(gs []security.Group) []*corepb.Group {
	out := make([]*corepb.Group, len(gs))
	for i, g := range gs {
		out[i] = groupToWire(g)
	}
	return out
}

func claimsToWire(claims []security.Claim) []*corepb.Claim {
	out := make([]*corepb.Claim, len(claims))
	for i, c := range claims {
		out[i] = &corepb.Claim{Name: c.Name, Type: uint32(c.Type), Flags: uint32(c.Flags)}
		for _, v := range c.Values {
			out[i].Values = append(out[i].Values, &corepb.ClaimValue{Number: v.Number, Text: []byte(v.Text), Sid: sidText(v.SID)})
		}
	}
	return out
}

func sidText(s security.SID) string {
	if s.IsZero() {
		return ""
	}
	return s.String()
}

// wireReader reads SIDs and keeps the first error.
type wireReader struct{ err error }

func (r *wireReader) sid(s string) security.SID {
	if s == "" || r.err != nil {
		return security.SID{}
	}
	sid, err := security.ParseSID(s)
	if err != nil {
		r.err = err
	}
	return sid
}

func (r *wireReader) group(g *corepb.Group) security.Group {
	return security.Group{SID: r.sid(g.GetSid()), Attributes: security.GroupAttributes(g.GetAttributes())}
}

func (r *wireReader) groups(gs []*corepb.Group) []security.Group {
	out := make([]security.Group, len(gs))
	for i, g := range gs {
		out[i] = r.group(g)
		if out[i].SID.IsZero() && r.err == nil {
			r.err = fmt.Errorf("group %d has no SID", i)
		}
	}
	return out
}

func (r *wireReader) claims(claims []*corepb.Claim) []security.Claim {
	out := make([]security.Claim, len(claims))
	for i, c := range claims {
		switch t := security.ClaimType(c.GetType()); t {
		case security.ClaimInt64, security.ClaimUint64, security.ClaimString, security.ClaimSID, security.ClaimBoolean, security.ClaimOctets:
			out[i] = security.Claim{Name: c.GetName(), Type: t, Flags: security.ClaimFlags(c.GetFlags())}
		}
		if (out[i].Type == 0 || uint32(out[i].Type) != c.GetType()) && r.err == nil {
			r.err = fmt.Errorf("claim %d is of the unknown type %d", i, c.GetType())
		}
		for _, v := range c.GetValues() {
			out[i].Values = append(out[i].Values, security.ClaimValue{Number: v.GetNumber(), Text: string(v.GetText()), SID: r.sid(v.GetSid())})
		}
	}
	return out
}

// ParseDescriptor reads SDDL from a peer.
func ParseDescriptor(sddl string) (*security.Descriptor, error) {
	if len(sddl) > maxDescriptor {
		return nil, fmt.Errorf("the security descriptor has %d bytes, at most %d are allowed", len(sddl), maxDescriptor)
	}
	return security.ParseSDDL(sddl)
}
