package principal

import (
	"slices"

	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
)

// Logon is what a token is assembled from.
type Logon struct {
	User        security.SID
	Primary     security.SID   // primary group
	Aliases     []security.SID // built-in aliases that the user is a member of
	Type        lsapb.LogonType
	ID          security.LUID // the logon session
	Origin      security.LUID // the logon session that asked for it
	Session     uint32
	UID, GID    uint32
	LocalGroups []security.Group // given by a trusted caller
	Source      security.TokenSource
	Expires     int64 // unix nanoseconds; 0 never
}

// IsService reports whether sid is an identity that runs services and has no password: LocalSystem, LocalService,
// NetworkService, or a service's own SID.
func IsService(sid security.SID) bool {
	return sid == security.LocalSystem() || sid == security.LocalService() || sid == security.NetworkService() || isVirtual(sid)
}

// isVirtual reports whether sid is a service's own: S-1-5-80 and the five parts of a digest.
func isVirtual(sid security.SID) bool {
	return sid.Len() == 6 && sid.Authority() == 5 && sid.Sub(0) == 80
}

// TypeSID is the group that says how its member logged on.
func TypeSID(t lsapb.LogonType) (security.SID, bool) {
	switch t {
	case lsapb.LogonType_LOGON_TYPE_INTERACTIVE, lsapb.LogonType_LOGON_TYPE_UNLOCK:
		return security.Interactive(), true
	case lsapb.LogonType_LOGON_TYPE_NETWORK:
		return security.Network(), true
	case lsapb.LogonType_LOGON_TYPE_BATCH:
		return security.Batch(), true
	case lsapb.LogonType_LOGON_TYPE_SERVICE:
		return security.Service(), true
	}
	return security.SID{}, false
}

// TypeOf reads the logon type back from a token; unspecified where no group of it tells.
func TypeOf(t *security.Token) lsapb.LogonType {
	for _, typ := range []lsapb.LogonType{lsapb.LogonType_LOGON_TYPE_INTERACTIVE, lsapb.LogonType_LOGON_TYPE_NETWORK,
		lsapb.LogonType_LOGON_TYPE_BATCH, lsapb.LogonType_LOGON_TYPE_SERVICE} {
		if sid, _ := TypeSID(typ); slices.ContainsFunc(t.Groups, func(g security.Group) bool { return g.SID == sid }) {
			return typ
		}
	}
	return lsapb.LogonType_LOGON_TYPE_UNSPECIFIED
}

// Token assembles the token of a logon, as NT's LSA does: primary group, Everyone, aliases, how it logged on, Authenticated
// Users, the logon session, the Unix identity, then the caller's own groups. Privileges are the union of what those SIDs
// are given; most are held disabled, as in NT. A network logon gets an impersonation token, the others a primary one.
func Token(l Logon) (*security.Token, error) {
	typeSID, ok := TypeSID(l.Type)
	if !ok {
		return nil, ntstatus.Errorf("lsa.Token", l.User.String(), ntstatus.InvalidParameter, "logon type %d", l.Type)
	}
	t := &security.Token{
		AuthenticationID: l.ID, OriginID: l.Origin, Type: security.TokenPrimary, User: security.Group{SID: l.User},
		Owner: l.User, PrimaryGroup: l.Primary, SessionID: l.Session, MandatoryPolicy: security.PolicyDefault, Source: l.Source, Expiration: l.Expires,
	}
	if l.Type == lsapb.LogonType_LOGON_TYPE_NETWORK {
		t.Type, t.Level = security.TokenImpersonation, security.LevelImpersonation
	}
	add := func(sid security.SID, attributes security.GroupAttributes) {
		if sid != l.User && !slices.ContainsFunc(t.Groups, func(g security.Group) bool { return g.SID == sid }) {
			t.Groups = append(t.Groups, security.Group{SID: sid, Attributes: attributes})
		}
	}
	admin := l.User == security.LocalSystem() || slices.Contains(l.Aliases, security.Administrators())
	add(l.Primary, security.GroupDefault)
	add(security.Everyone(), security.GroupDefault)
	if admin {
		add(security.Administrators(), security.GroupDefault|security.GroupOwner)
		t.Owner = security.Administrators()
	}
	for _, alias := range l.Aliases {
		add(alias, security.GroupDefault)
	}
	add(typeSID, security.GroupDefault)
	add(security.AuthenticatedUsers(), security.GroupDefault)
	add(security.LogonSID(l.ID), security.GroupDefault|security.GroupLogonID)
	add(security.UnixUser(l.UID), security.GroupDefault)
	add(security.UnixGroup(l.GID), security.GroupDefault)
	for _, g := range l.LocalGroups {
		add(g.SID, g.Attributes)
	}
	switch {
	case l.User == security.LocalSystem(), l.User == security.LocalService(), l.User == security.NetworkService():
		t.Integrity = security.IntegritySystem()
	case admin, isVirtual(l.User):
		t.Integrity = security.IntegrityHigh()
	default:
		t.Integrity = security.IntegrityMedium()
	}
	t.Privileges = privileges(l.User, admin)
	t.DefaultDACL = security.NewACL(security.Allow(t.Owner, security.GenericAll), security.Allow(security.LocalSystem(), security.GenericAll))
	return t, nil
}

// privileges are those of NT's default policy; the first list of each identity is enabled.
func privileges(user security.SID, admin bool) []security.TokenPrivilege {
	var on, off []security.Privilege
	switch {
	case user == security.LocalSystem():
		on = []security.Privilege{
			security.SeLockMemory, security.SeTcb, security.SeSystemProfile, security.SeProfileSingleProcess, security.SeIncreaseBasePriority,
			security.SeCreatePagefile, security.SeCreatePermanent, security.SeDebug, security.SeAudit, security.SeChangeNotify,
			security.SeImpersonate, security.SeCreateGlobal, security.SeIncreaseWorkingSet, security.SeTimeZone, security.SeCreateSymbolicLink,
		}
		off = []security.Privilege{
			security.SeAssignPrimaryToken, security.SeIncreaseQuota, security.SeSecurity, security.SeTakeOwnership, security.SeLoadDriver,
			security.SeSystemtime, security.SeBackup, security.SeRestore, security.SeShutdown, security.SeSystemEnvironment, security.SeUndock,
			security.SeManageVolume,
		}
	case IsService(user):
		on = []security.Privilege{security.SeChangeNotify, security.SeImpersonate, security.SeCreateGlobal}
		off = []security.Privilege{security.SeAssignPrimaryToken, security.SeIncreaseQuota, security.SeAudit, security.SeIncreaseWorkingSet, security.SeTimeZone}
	case admin:
		on = []security.Privilege{security.SeChangeNotify, security.SeImpersonate, security.SeCreateGlobal}
		off = []security.Privilege{
			security.SeIncreaseQuota, security.SeSecurity, security.SeTakeOwnership, security.SeLoadDriver, security.SeSystemProfile,
			security.SeSystemtime, security.SeProfileSingleProcess, security.SeIncreaseBasePriority, security.SeCreatePagefile, security.SeBackup,
			security.SeRestore, security.SeShutdown, security.SeDebug, security.SeSystemEnvironment, security.SeRemoteShutdown, security.SeUndock,
			security.SeManageVolume, security.SeIncreaseWorkingSet, security.SeTimeZone, security.SeCreateSymbolicLink,
		}
	default:
		on = []security.Privilege{security.SeChangeNotify}
		off = []security.Privilege{security.SeShutdown, security.SeUndock, security.SeIncreaseWorkingSet, security.SeTimeZone}
	}
	var out []security.TokenPrivilege
	for _, p := range on {
		out = append(out, security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabledByDefault | security.PrivilegeEnabled})
	}
	for _, p := range off {
		out = append(out, security.TokenPrivilege{Privilege: p})
	}
	slices.SortFunc(out, func(a, b security.TokenPrivilege) int { return int(a.Privilege) - int(b.Privilege) })
	return out
}
