// Package principal knows who there is beside the accounts: NT's well-known identities by name and SID, the rules for names,
// and what a token of each kind of identity holds.
//
// Everything here is a pure function of its arguments: no clock, no storage, no caller to distrust.
package principal

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
)

// Names of the domains that every machine has.
const (
	NTAuthority    = "NT AUTHORITY"
	Builtin        = "BUILTIN"
	NTService      = "NT SERVICE"
	mandatoryLabel = "Mandatory Label"
	unixUser       = "Unix User"
	unixGroup      = "Unix Group"
)

// Entry is a name and what it stands for.
type Entry struct {
	SID    security.SID
	Domain string // empty: the name stands alone
	Name   string // empty: the domain itself
	Use    lsapb.NameUse
}

// String is the name as people write it: DOMAIN\name.
func (e Entry) String() string {
	if e.Domain == "" || e.Name == "" {
		return e.Domain + e.Name
	}
	return e.Domain + `\` + e.Name
}

// wellKnown lists the identities that NT fixes (MS-DTYP 2.4.2.4), with the names that it gives them.
func wellKnown() []Entry {
	const group, alias, label = lsapb.NameUse_NAME_USE_WELL_KNOWN_GROUP, lsapb.NameUse_NAME_USE_ALIAS, lsapb.NameUse_NAME_USE_LABEL
	return []Entry{
		{security.Nobody(), "", "NULL SID", group},
		{security.Everyone(), "", "Everyone", group},
		{security.Local(), "", "LOCAL", group},
		{security.ConsoleLogon(), "", "CONSOLE LOGON", group},
		{security.CreatorOwner(), "", "CREATOR OWNER", group},
		{security.CreatorGroup(), "", "CREATOR GROUP", group},
		{security.OwnerRights(), "", "OWNER RIGHTS", group},
		{security.Network(), NTAuthority, "NETWORK", group},
		{security.Batch(), NTAuthority, "BATCH", group},
		{security.Interactive(), NTAuthority, "INTERACTIVE", group},
		{security.Service(), NTAuthority, "SERVICE", group},
		{security.Anonymous(), NTAuthority, "ANONYMOUS LOGON", group},
		{security.PrincipalSelf(), NTAuthority, "SELF", group},
		{security.AuthenticatedUsers(), NTAuthority, "Authenticated Users", group},
		{security.RestrictedCode(), NTAuthority, "RESTRICTED", group},
		{security.LocalSystem(), NTAuthority, "SYSTEM", group},
		{security.LocalService(), NTAuthority, "LOCAL SERVICE", group},
		{security.NetworkService(), NTAuthority, "NETWORK SERVICE", group},
		{security.WriteRestricted(), NTAuthority, "WRITE RESTRICTED", group},
		{security.Builtin(), Builtin, "", lsapb.NameUse_NAME_USE_DOMAIN},
		{security.Administrators(), Builtin, "Administrators", alias},
		{security.Users(), Builtin, "Users", alias},
		{security.Guests(), Builtin, "Guests", alias},
		{security.BackupOperators(), Builtin, "Backup Operators", alias},
		{security.IntegrityUntrusted(), mandatoryLabel, "Untrusted Mandatory Level", label},
		{security.IntegrityLow(), mandatoryLabel, "Low Mandatory Level", label},
		{security.IntegrityMedium(), mandatoryLabel, "Medium Mandatory Level", label},
		{security.IntegrityMediumPlus(), mandatoryLabel, "Medium Plus Mandatory Level", label},
		{security.IntegrityHigh(), mandatoryLabel, "High Mandatory Level", label},
		{security.IntegritySystem(), mandatoryLabel, "System Mandatory Level", label},
	}
}

// ByName finds a well-known identity. domain may be empty; a service (NT SERVICE\name) and a Unix id are found under
// their domain only. Beside NT's names with a space there are those without, as services are configured with.
func ByName(domain, name string) (Entry, bool) {
	switch {
	case Equal(domain, NTService):
		if !serviceName(name) {
			return Entry{}, false
		}
		return Entry{security.ServiceSID(name), NTService, name, lsapb.NameUse_NAME_USE_WELL_KNOWN_GROUP}, true
	case Equal(domain, unixUser), Equal(domain, unixGroup):
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return Entry{}, false
		}
		if Equal(domain, unixUser) {
			return unixEntry(security.UnixUser(uint32(id)))
		}
		return unixEntry(security.UnixGroup(uint32(id)))
	}
	if domain == "" || Equal(domain, NTAuthority) {
		switch Fold(name) {
		case "localsystem":
			name = "SYSTEM"
		case "localservice":
			name = "LOCAL SERVICE"
		case "networkservice":
			name = "NETWORK SERVICE"
		}
	}
	for _, e := range wellKnown() {
		if e.Name == "" && Equal(domain+name, e.Domain) && (domain == "" || name == "") {
			return e, true
		}
		if e.Name != "" && Equal(e.Name, name) && (domain == "" || Equal(domain, e.Domain)) {
			return e, true
		}
	}
	return Entry{}, false
}

// BySID is the way back. It can't find services: their SID is a digest of the name.
func BySID(sid security.SID) (Entry, bool) {
	for _, e := range wellKnown() {
		if e.SID == sid {
			return e, true
		}
	}
	if _, ok := LogonID(sid); ok {
		return Entry{sid, NTAuthority, fmt.Sprintf("LogonSessionId_%d_%d", sid.Sub(1), sid.Sub(2)), lsapb.NameUse_NAME_USE_LOGON_SESSION}, true
	}
	return unixEntry(sid)
}

func unixEntry(sid security.SID) (Entry, bool) {
	if uid, ok := sid.UnixUID(); ok {
		return Entry{sid, unixUser, strconv.FormatUint(uint64(uid), 10), lsapb.NameUse_NAME_USE_USER}, true
	}
	if gid, ok := sid.UnixGID(); ok {
		return Entry{sid, unixGroup, strconv.FormatUint(uint64(gid), 10), lsapb.NameUse_NAME_USE_GROUP}, true
	}
	return Entry{}, false
}

// LogonID is the logon session that a logon SID names.
func LogonID(sid security.SID) (security.LUID, bool) {
	if sid.Len() != 3 {
		return 0, false
	}
	id := security.LUID(sid.Sub(1))<<32 | security.LUID(sid.Sub(2))
	return id, sid == security.LogonSID(id)
}

// Split takes DOMAIN\name apart; a name without a backslash has no domain.
func Split(name string) (domain, account string) {
	if domain, account, ok := strings.Cut(name, `\`); ok {
		return domain, account
	}
	return "", name
}

// Fold is the form in which names are compared: case is ignored as NT's upcase table does, a rune at a time.
func Fold(name string) string {
	return strings.Map(func(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }, name)
}

// Equal reports whether two names are the same name.
func Equal(a, b string) bool { return Fold(a) == Fold(b) }

// maxNameLength is SAM's, in characters.
const maxNameLength = 20

// CheckName returns INVALID_ACCOUNT_NAME for a name that no account of domain may have (MS-SAMR 3.1.1.6: 1 to 20
// characters, none that separates things elsewhere, no control characters), and for one that stands for somebody else.
func CheckName(domain, name string) error {
	bad := func(why string) error {
		return ntstatus.Errorf("lsa.CheckName", name, ntstatus.InvalidAccountName, "%s", why)
	}
	n := utf8.RuneCountInString(name)
	switch {
	case !utf8.ValidString(name):
		return bad("it is not UTF-8")
	case n == 0 || n > maxNameLength:
		return bad("a name has 1 to " + strconv.Itoa(maxNameLength) + " characters")
	case strings.ContainsFunc(name, func(r rune) bool { return strings.ContainsRune(`"/\[]:;|=,+*?<>@`, r) || !unicode.IsPrint(r) }):
		return bad(`it has a character that a name can't have: "/\[]:;|=,+*?<>@ or one that can't be printed`)
	case strings.TrimSpace(name) != name, strings.HasSuffix(name, "."):
		return bad("a name doesn't begin or end with a space, nor end with a dot")
	}
	if _, err := security.ParseSID(name); err == nil {
		return bad("it is a SID")
	}
	if _, ok := ByName("", name); ok || Equal(name, domain) || Equal(name, NTAuthority) || Equal(name, NTService) {
		return bad("it stands for somebody else")
	}
	return nil
}

// serviceName reports whether name may be a service's: NT allows up to 256 characters without slashes.
func serviceName(name string) bool {
	return name != "" && utf8.ValidString(name) && utf8.RuneCountInString(name) <= 256 && !strings.ContainsAny(name, `/\`)
}
