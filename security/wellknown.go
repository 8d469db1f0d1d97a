package security

import (
	"crypto/sha1"
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// The identifier authorities (MS-DTYP 2.4.1). Unix is Samba's, which has no entry there.
const (
	authorityNull      = 0
	authorityWorld     = 1
	authorityLocal     = 2
	authorityCreator   = 3
	authorityNT        = 5
	authorityPackage   = 15
	authorityLabel     = 16
	authorityAssertion = 18
	authorityTrust     = 19
	authorityUnix      = 22
)

// Well-known SIDs (MS-DTYP 2.4.2.4), as functions so that nobody can change them.

// Nobody is S-1-0-0, the null SID: a group with no members.
func Nobody() SID { return makeSID(authorityNull, 0) }

// Everyone is S-1-1-0.
func Everyone() SID { return makeSID(authorityWorld, 0) }

// Local is S-1-2-0: who is logged on at this machine.
func Local() SID { return makeSID(authorityLocal, 0) }

// ConsoleLogon is S-1-2-1: who is logged on at the physical console.
func ConsoleLogon() SID { return makeSID(authorityLocal, 1) }

// CreatorOwner is S-1-3-0: in an inheritable entry, whoever makes the object.
func CreatorOwner() SID { return makeSID(authorityCreator, 0) }

// CreatorGroup is S-1-3-1: in an inheritable entry, the primary group of whoever makes the object.
func CreatorGroup() SID { return makeSID(authorityCreator, 1) }

// OwnerRights is S-1-3-4: in a DACL, what the present owner may, in place of the implicit READ_CONTROL and WRITE_DAC.
func OwnerRights() SID { return makeSID(authorityCreator, 4) }

// isOwnerRights and isPrincipalSelf are asked of every entry of every check: they look and don't build.
func (s *SID) isOwnerRights() bool {
	return s.count == 1 && s.sub[0] == 4 && s.authorityLo == authorityCreator && s.authorityHi == 0
}

func (s *SID) isPrincipalSelf() bool {
	return s.count == 1 && s.sub[0] == 10 && s.authorityLo == authorityNT && s.authorityHi == 0
}

// Network is S-1-5-2: a network logon.
func Network() SID { return makeSID(authorityNT, 2) }

// Batch is S-1-5-3: a batch logon.
func Batch() SID { return makeSID(authorityNT, 3) }

// Interactive is S-1-5-4: an interactive logon.
func Interactive() SID { return makeSID(authorityNT, 4) }

// Service is S-1-5-6: a service logon.
func Service() SID { return makeSID(authorityNT, 6) }

// Anonymous is S-1-5-7.
func Anonymous() SID { return makeSID(authorityNT, 7) }

// PrincipalSelf is S-1-5-10: in a DACL, the principal that the object stands for (CheckRequest.Self).
func PrincipalSelf() SID { return makeSID(authorityNT, 10) }

// AuthenticatedUsers is S-1-5-11.
func AuthenticatedUsers() SID { return makeSID(authorityNT, 11) }

// RestrictedCode is S-1-5-12.
func RestrictedCode() SID { return makeSID(authorityNT, 12) }

// LocalSystem is S-1-5-18.
func LocalSystem() SID { return makeSID(authorityNT, 18) }

// LocalService is S-1-5-19.
func LocalService() SID { return makeSID(authorityNT, 19) }

// NetworkService is S-1-5-20.
func NetworkService() SID { return makeSID(authorityNT, 20) }

// WriteRestricted is S-1-5-33.
func WriteRestricted() SID { return makeSID(authorityNT, 33) }

// Builtin is S-1-5-32, the domain of the alias groups.
func Builtin() SID { return makeSID(authorityNT, 32) }

// Administrators is S-1-5-32-544.
func Administrators() SID { return makeSID(authorityNT, 32, 544) }

// Users is S-1-5-32-545.
func Users() SID { return makeSID(authorityNT, 32, 545) }

// Guests is S-1-5-32-546.
func Guests() SID { return makeSID(authorityNT, 32, 546) }

// BackupOperators is S-1-5-32-551.
func BackupOperators() SID { return makeSID(authorityNT, 32, 551) }

// AllAppPackages is S-1-15-2-1.
func AllAppPackages() SID { return makeSID(authorityPackage, 2, 1) }

// AllRestrictedAppPackages is S-1-15-2-2.
func AllRestrictedAppPackages() SID { return makeSID(authorityPackage, 2, 2) }

// TrustLabel is S-1-19-type-level: how far a process is trusted.
func TrustLabel(typ, level uint32) SID { return makeSID(authorityTrust, typ, level) }

func (s *SID) isTrust() bool { return s.count == 2 && s.Authority() == authorityTrust }

// LogonSID is S-1-5-5-high-low: the logon session luid, in the token of each of its processes.
func LogonSID(luid LUID) SID { return makeSID(authorityNT, 5, uint32(luid>>32), uint32(luid)) }

// ServiceSID is S-1-5-80-…: the service name, from the SHA-1 of its upper-case UTF-16LE form, so that a service has an identity
// before it has an account.
func ServiceSID(name string) SID {
	var text []byte
	for _, u := range utf16.Encode([]rune(strings.ToUpper(name))) {
		text = binary.LittleEndian.AppendUint16(text, u)
	}
	sum := sha1.Sum(text)
	sid := makeSID(authorityNT, 80)
	for i := 0; i < len(sum); i += 4 {
		sid = sid.WithRID(binary.LittleEndian.Uint32(sum[i:]))
	}
	return sid
}

// UnixUser is S-1-22-1-uid: a user as the kernel knows them.
func UnixUser(uid uint32) SID { return makeSID(authorityUnix, 1, uid) }

// UnixGroup is S-1-22-2-gid: a group as the kernel knows it.
func UnixGroup(gid uint32) SID { return makeSID(authorityUnix, 2, gid) }

// UnixUID is the uid of a UnixUser.
func (s SID) UnixUID() (uint32, bool) { return s.sub[1], s == UnixUser(s.sub[1]) }

// UnixGID is the gid of a UnixGroup.
func (s SID) UnixGID() (uint32, bool) { return s.sub[1], s == UnixGroup(s.sub[1]) }

// Integrity labels (MS-DTYP 2.4.2.4, S-1-16-…), lowest first.

// IntegrityUntrusted is S-1-16-0.
func IntegrityUntrusted() SID { return makeSID(authorityLabel, 0) }

// IntegrityLow is S-1-16-4096.
func IntegrityLow() SID { return makeSID(authorityLabel, 4096) }

// IntegrityMedium is S-1-16-8192, the label of an object without one.
func IntegrityMedium() SID { return makeSID(authorityLabel, 8192) }

// IntegrityMediumPlus is S-1-16-8448.
func IntegrityMediumPlus() SID { return makeSID(authorityLabel, 8448) }

// IntegrityHigh is S-1-16-12288.
func IntegrityHigh() SID { return makeSID(authorityLabel, 12288) }

// IntegritySystem is S-1-16-16384.
func IntegritySystem() SID { return makeSID(authorityLabel, 16384) }

// IntegrityLevel is the rank of an integrity label; false where s is none.
func (s SID) IntegrityLevel() (uint32, bool) {
	return s.sub[0], s.Authority() == authorityLabel && s.count == 1
}
