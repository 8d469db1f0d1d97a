package security

import (
	"strconv"

	"sallyport/ntstatus"
)

// Privilege is a power over the whole system, by the low part of NT's LUID.
type Privilege uint32

// The privileges (MS-LSAD 3.1.1.2.1), NT's numbers.
const (
	SeCreateToken                    Privilege = 2
	SeAssignPrimaryToken             Privilege = 3
	SeLockMemory                     Privilege = 4
	SeIncreaseQuota                  Privilege = 5
	SeMachineAccount                 Privilege = 6
	SeTcb                            Privilege = 7
	SeSecurity                       Privilege = 8
	SeTakeOwnership                  Privilege = 9
	SeLoadDriver                     Privilege = 10
	SeSystemProfile                  Privilege = 11
	SeSystemtime                     Privilege = 12
	SeProfileSingleProcess           Privilege = 13
	SeIncreaseBasePriority           Privilege = 14
	SeCreatePagefile                 Privilege = 15
	SeCreatePermanent                Privilege = 16
	SeBackup                         Privilege = 17
	SeRestore                        Privilege = 18
	SeShutdown                       Privilege = 19
	SeDebug                          Privilege = 20
	SeAudit                          Privilege = 21
	SeSystemEnvironment              Privilege = 22
	SeChangeNotify                   Privilege = 23
	SeRemoteShutdown                 Privilege = 24
	SeUndock                         Privilege = 25
	SeSyncAgent                      Privilege = 26
	SeEnableDelegation               Privilege = 27
	SeManageVolume                   Privilege = 28
	SeImpersonate                    Privilege = 29
	SeCreateGlobal                   Privilege = 30
	SeTrustedCredManAccess           Privilege = 31
	SeRelabel                        Privilege = 32
	SeIncreaseWorkingSet             Privilege = 33
	SeTimeZone                       Privilege = 34
	SeCreateSymbolicLink             Privilege = 35
	SeDelegateSessionUserImpersonate Privilege = 36
)

// FirstPrivilege and LastPrivilege bound the numbers that exist.
const (
	FirstPrivilege = SeCreateToken
	LastPrivilege  = SeDelegateSessionUserImpersonate
)

// privilegeNames is never written.
var privilegeNames = [LastPrivilege + 1]string{
	SeCreateToken:                    "SeCreateTokenPrivilege",
	SeAssignPrimaryToken:             "SeAssignPrimaryTokenPrivilege",
	SeLockMemory:                     "SeLockMemoryPrivilege",
	SeIncreaseQuota:                  "SeIncreaseQuotaPrivilege",
	SeMachineAccount:                 "SeMachineAccountPrivilege",
	SeTcb:                            "SeTcbPrivilege",
	SeSecurity:                       "SeSecurityPrivilege",
	SeTakeOwnership:                  "SeTakeOwnershipPrivilege",
	SeLoadDriver:                     "SeLoadDriverPrivilege",
	SeSystemProfile:                  "SeSystemProfilePrivilege",
	SeSystemtime:                     "SeSystemtimePrivilege",
	SeProfileSingleProcess:           "SeProfileSingleProcessPrivilege",
	SeIncreaseBasePriority:           "SeIncreaseBasePriorityPrivilege",
	SeCreatePagefile:                 "SeCreatePagefilePrivilege",
	SeCreatePermanent:                "SeCreatePermanentPrivilege",
	SeBackup:                         "SeBackupPrivilege",
	SeRestore:                        "SeRestorePrivilege",
	SeShutdown:                       "SeShutdownPrivilege",
	SeDebug:                          "SeDebugPrivilege",
	SeAudit:                          "SeAuditPrivilege",
	SeSystemEnvironment:              "SeSystemEnvironmentPrivilege",
	SeChangeNotify:                   "SeChangeNotifyPrivilege",
	SeRemoteShutdown:                 "SeRemoteShutdownPrivilege",
	SeUndock:                         "SeUndockPrivilege",
	SeSyncAgent:                      "SeSyncAgentPrivilege",
	SeEnableDelegation:               "SeEnableDelegationPrivilege",
	SeManageVolume:                   "SeManageVolumePrivilege",
	SeImpersonate:                    "SeImpersonatePrivilege",
	SeCreateGlobal:                   "SeCreateGlobalPrivilege",
	SeTrustedCredManAccess:           "SeTrustedCredManAccessPrivilege",
	SeRelabel:                        "SeRelabelPrivilege",
	SeIncreaseWorkingSet:             "SeIncreaseWorkingSetPrivilege",
	SeTimeZone:                       "SeTimeZonePrivilege",
	SeCreateSymbolicLink:             "SeCreateSymbolicLinkPrivilege",
	SeDelegateSessionUserImpersonate: "SeDelegateSessionUserImpersonatePrivilege",
}

// String is NT's name, "SeTcbPrivilege", or the number where there is none.
func (p Privilege) String() string {
	if p < FirstPrivilege || p > LastPrivilege {
		return strconv.FormatUint(uint64(p), 10)
	}
	return privilegeNames[p]
}

// ParsePrivilege finds a privilege by its exact name; it fails with NoSuchPrivilege.
func ParsePrivilege(name string) (Privilege, error) {
	for p := FirstPrivilege; p <= LastPrivilege; p++ {
		if privilegeNames[p] == name {
			return p, nil
		}
	}
	return 0, ntstatus.New("security.ParsePrivilege", name, ntstatus.NoSuchPrivilege)
}

// PrivilegeAttributes is the state of a privilege in a token.
type PrivilegeAttributes uint32

// The states, NT's numbers.
const (
	PrivilegeEnabledByDefault PrivilegeAttributes = 0x1
	PrivilegeEnabled          PrivilegeAttributes = 0x2
	PrivilegeRemoved          PrivilegeAttributes = 0x4
	PrivilegeUsedForAccess    PrivilegeAttributes = 0x80000000
)

// TokenPrivilege is a privilege that a token holds, enabled or not.
type TokenPrivilege struct {
	Privilege  Privilege
	Attributes PrivilegeAttributes
}
