package security

import (
	"slices"

	"sallyport/ntstatus"
)

// GroupAttributes is the state of a group in a token.
type GroupAttributes uint32

// The states, NT's numbers.
const (
	GroupMandatory        GroupAttributes = 0x1
	GroupEnabledByDefault GroupAttributes = 0x2
	GroupEnabled          GroupAttributes = 0x4
	GroupOwner            GroupAttributes = 0x8 // may own objects
	GroupUseForDenyOnly   GroupAttributes = 0x10
	GroupIntegrity        GroupAttributes = 0x20
	GroupIntegrityEnabled GroupAttributes = 0x40
	GroupResource         GroupAttributes = 0x20000000
	GroupLogonID          GroupAttributes = 0xC0000000

	// GroupDefault is an ordinary membership: it counts, and can't be switched off.
	GroupDefault = GroupMandatory | GroupEnabledByDefault | GroupEnabled
)

// Group is a SID in a token and how it counts.
type Group struct {
	SID        SID
	Attributes GroupAttributes
}

// TokenType says whether a token is a process's own or stands for somebody else.
type TokenType uint8

// The types, NT's numbers.
const (
	TokenPrimary       TokenType = 1
	TokenImpersonation TokenType = 2
)

// ImpersonationLevel is how far a server may go in its client's name. Meaningful in impersonation tokens only.
type ImpersonationLevel uint8

// The levels, NT's numbers.
const (
	LevelAnonymous      ImpersonationLevel = 0
	LevelIdentification ImpersonationLevel = 1 // may ask who it is and what they may; may not act
	LevelImpersonation  ImpersonationLevel = 2
	LevelDelegation     ImpersonationLevel = 3
)

// String is the level in lower case.
func (l ImpersonationLevel) String() string {
	names := [...]string{"anonymous", "identification", "impersonation", "delegation"}
	if int(l) >= len(names) {
		return "unknown"
	}
	return names[l]
}

// MandatoryPolicy says how integrity binds a token (TOKEN_MANDATORY_POLICY).
type MandatoryPolicy uint32

// The policies, NT's numbers. Zero is off: labels are not looked at.
const (
	PolicyOff           MandatoryPolicy = 0
	PolicyNoWriteUp     MandatoryPolicy = 1
	PolicyNewProcessMin MandatoryPolicy = 2
	PolicyDefault                       = PolicyNoWriteUp | PolicyNewProcessMin
)

// MaxTokenSourceName is the length of a TokenSource's name in bytes.
const MaxTokenSourceName = 8

// TokenSource says who made a token.
type TokenSource struct {
	Name string // at most MaxTokenSourceName bytes
	ID   LUID
}

// Token is who a process or a client is (FEATURES 1.3.b). A value: the core owns the objects behind TokenID and never changes one
// in place, so a Token that has been shared is immutable. Its methods take a nil token for nobody.
type Token struct {
	TokenID          LUID // this token
	AuthenticationID LUID // its logon session
	ModifiedID       LUID // changes with every adjustment
	OriginID         LUID // the logon session that made the logon
	Type             TokenType
	Level            ImpersonationLevel
	User             Group // Attributes: 0 or GroupUseForDenyOnly
	Groups           []Group
	Privileges       []TokenPrivilege
	Restricted       []Group // not empty: a check must pass for these SIDs as well
	Owner            SID     // of new objects; zero: the user
	PrimaryGroup     SID
	DefaultDACL      *ACL // of new objects
	SessionID        uint32
	Integrity        SID // zero counts as untrusted
	MandatoryPolicy  MandatoryPolicy
	Source           TokenSource
	Expiration       int64 // unix nanoseconds, 0 never

	WriteRestricted bool    // Restricted counts for what writes only
	AppContainer    SID     // the package whose code runs under the token; zero: none
	Capabilities    []Group // of the package
	LowPrivilege    bool    // the package is not among AllAppPackages
	TrustLevel      SID     // process trust, S-1-19-type-level; zero: none

	Elevation ElevationType
	Linked    LUID // the other token of an elevated or limited logon; 0 none

	UserClaims, DeviceClaims, LocalClaims []Claim
	DeviceGroups                          []Group // of the device that the user is at
}

// ElevationType says whether a token is one of two that a logon has (TOKEN_ELEVATION_TYPE).
type ElevationType uint8

// The types, NT's numbers. The zero value stands for ElevationDefault too.
const (
	ElevationDefault ElevationType = 1 // the only token
	ElevationFull    ElevationType = 2 // the one with the administrator's powers
	ElevationLimited ElevationType = 3 // the one without; Linked is the full one
)

// Elevated reports whether the token has powers that the logon's other token has not (TokenElevation).
func (t *Token) Elevated() bool { return t != nil && t.Elevation == ElevationFull }

// Clone is a deep copy; nil stays nil.
func (t *Token) Clone() *Token {
	if t == nil {
		return nil
	}
	c := *t
	c.Groups, c.Privileges, c.Restricted = slices.Clone(t.Groups), slices.Clone(t.Privileges), slices.Clone(t.Restricted)
	c.DefaultDACL = t.DefaultDACL.Clone()
	c.Capabilities, c.DeviceGroups = slices.Clone(t.Capabilities), slices.Clone(t.DeviceGroups)
	c.UserClaims, c.DeviceClaims, c.LocalClaims = cloneClaims(t.UserClaims), cloneClaims(t.DeviceClaims), cloneClaims(t.LocalClaims)
	return &c
}

func cloneClaims(claims []Claim) []Claim {
	claims = slices.Clone(claims)
	for i := range claims {
		claims[i].Values = slices.Clone(claims[i].Values)
	}
	return claims
}

// Has reports whether the token holds p and has it enabled (SeSinglePrivilegeCheck).
func (t *Token) Has(p Privilege) bool {
	if t == nil {
		return false
	}
	for i := range t.Privileges {
		if tp := &t.Privileges[i]; tp.Privilege == p {
			return tp.Attributes&(PrivilegeEnabled|PrivilegeRemoved) == PrivilegeEnabled
		}
	}
	return false
}

// HasSID reports whether the token speaks for sid as far as being allowed goes (CheckTokenMembership): user or enabled group, not
// deny-only, and in a restricted token one of its restricting SIDs as well.
func (t *Token) HasSID(sid SID) bool {
	return t != nil && !sid.IsZero() && t.match(&sid, false) && (len(t.Restricted) == 0 || t.WriteRestricted || t.matchRestricted(&sid))
}

// match is MS-DTYP 2.5.3.1.1, SidInToken: for an entry that denies, the deny-only SIDs match too.
func (t *Token) match(sid *SID, deny bool) bool {
	if t.User.SID.same(sid) {
		return deny || t.User.Attributes&GroupUseForDenyOnly == 0
	}
	return matchGroups(t.Groups, sid, deny)
}

func matchGroups(groups []Group, sid *SID, deny bool) bool {
	for i := range groups {
		g := &groups[i]
		if !g.SID.same(sid) {
			continue
		}
		if g.Attributes&GroupUseForDenyOnly != 0 {
			return deny
		}
		if g.Attributes&GroupEnabled != 0 {
			return true
		}
	}
	return false
}

// matchRestricted is match for the restricting SIDs, whose attributes do not count.
func (t *Token) matchRestricted(sid *SID) bool {
	for i := range t.Restricted {
		if t.Restricted[i].SID.same(sid) {
			return true
		}
	}
	return false
}

// matchPackage is match for the SIDs of the package that runs under the token: its own, its capabilities, and those of all packages.
func (t *Token) matchPackage(sid *SID) bool {
	return *sid == t.AppContainer || matchGroups(t.Capabilities, sid, false) || !t.LowPrivilege && *sid == AllAppPackages() ||
		*sid == AllRestrictedAppPackages()
}

// trusts reports whether the token's trust label is at least label, in type and in level.
func (t *Token) trusts(label *SID) bool {
	own := &t.TrustLevel
	return own.isTrust() && label.isTrust() && own.sub[0] >= label.sub[0] && own.sub[1] >= label.sub[1]
}

// IsAdmin reports whether the token is an administrator's or the system's (SeTokenIsAdmin).
func (t *Token) IsAdmin() bool { return t.HasSID(Administrators()) || t.HasSID(LocalSystem()) }

// IntegrityLevel is the rank of the token's label; without a valid one it is the lowest.
func (t *Token) IntegrityLevel() uint32 {
	level, ok := t.Integrity.IntegrityLevel()
	if !ok {
		return 0
	}
	return level
}

// DefaultOwner is the owner of what the token makes.
func (t *Token) DefaultOwner() SID {
	if t.Owner.IsZero() {
		return t.User.SID
	}
	return t.Owner
}

// MayOwn reports whether the token may make sid the owner of an object without SeRestore: its user, or a group of its own that has
// GroupOwner and is not deny-only.
func (t *Token) MayOwn(sid SID) bool {
	if t == nil || sid.IsZero() {
		return false
	}
	if sid == t.User.SID {
		return t.User.Attributes&GroupUseForDenyOnly == 0
	}
	return slices.ContainsFunc(t.Groups, func(g Group) bool {
		return g.SID == sid && g.Attributes&GroupOwner != 0 && g.Attributes&GroupUseForDenyOnly == 0
	})
}

// Expired reports whether the token's time is over at now, unix nanoseconds.
func (t *Token) Expired(now int64) bool { return t.Expiration != 0 && now >= t.Expiration }

// DuplicateOptions say what a duplicate is for.
type DuplicateOptions struct {
	Type          TokenType
	Level         ImpersonationLevel // of an impersonation token
	EffectiveOnly bool               // leave out what is disabled
}

// Duplicate is NtDuplicateToken: a new token of the same logon session, with TokenID zero for the core to fill. It fails with
// BadImpersonationLevel where the level would rise above that of the token, or a primary token would come from one below
// Impersonation; with InvalidParameter on an unknown type or level.
func (t *Token) Duplicate(o DuplicateOptions) (*Token, error) {
	const op = "security.Duplicate"
	if o.Type != TokenPrimary && o.Type != TokenImpersonation || o.Level > LevelDelegation {
		return nil, ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "type %d, level %d", o.Type, o.Level)
	}
	if t.Type == TokenImpersonation {
		needed := o.Level
		if o.Type == TokenPrimary {
			needed = LevelImpersonation
		}
		if needed > t.Level {
			return nil, ntstatus.Errorf(op, "", ntstatus.BadImpersonationLevel, "the token's level is %s, %s is needed", t.Level, needed)
		}
	}
	c := t.Clone()
	c.TokenID, c.Type, c.Level = 0, o.Type, o.Level
	if o.Type == TokenPrimary {
		c.Level = LevelAnonymous
	}
	if o.EffectiveOnly {
		c.dropDisabled()
	}
	return c, nil
}

// dropDisabled leaves what counts: a group that is deny-only counts.
func (t *Token) dropDisabled() {
	t.Groups = slices.DeleteFunc(t.Groups, func(g Group) bool {
		return g.Attributes&(GroupEnabled|GroupUseForDenyOnly|GroupIntegrityEnabled) == 0
	})
	t.Privileges = slices.DeleteFunc(t.Privileges, func(p TokenPrivilege) bool { return p.Attributes&PrivilegeEnabled == 0 })
}
