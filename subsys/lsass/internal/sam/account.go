package sam

import (
	"math"
	"slices"
	"time"

	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/kdf"
)

// Account is one user as it is stored. Times are unix nanoseconds by the wall clock, 0 for never: they must outlive the process.
type Account struct {
	RID         uint32
	Name        string // as it was given; compared without case
	FullName    string
	Home, Shell string
	UID, GID    *uint32  // as an administrator chose them; nil: the instance's own rule (IDs)
	Aliases     []uint32 // RIDs in BUILTIN, sorted
	Password    string   // PHC string

	Disabled     bool
	MustChange   bool
	Expires      int64
	SystemAccess uint32 // logon rights of its own, SECURITY_ACCESS_*

	Created     int64
	PasswordSet int64
	LastLogon   int64
	LogonCount  uint64
	BadCount    uint32 // wrong passwords in a row; back to 0 only by a right one or an administrator
	LastBad     int64
	LockedAt    int64
}

// Member reports whether the account is in a built-in alias.
func (a *Account) Member(alias uint32) bool { return slices.Contains(a.Aliases, alias) }

// Policy is the rules for passwords and lockout.
type Policy struct {
	MinPasswordLength uint32 // bytes
	LockoutThreshold  uint32 // 0: no lockout
	LockoutWindow     time.Duration
	LockoutDuration   time.Duration // 0: until an administrator unlocks
	Hash              kdf.Params
}

// defaultPolicy: lockout as Windows 11 has it, Argon2id as OWASP's first recommendation and one pass more.
func defaultPolicy() Policy {
	return Policy{
		MinPasswordLength: 8, LockoutThreshold: 10, LockoutWindow: 10 * time.Minute, LockoutDuration: 10 * time.Minute,
		Hash: kdf.Params{Time: 2, MemoryKiB: 46 << 10, Threads: 1},
	}
}

// check refuses a policy that contradicts itself, or whose hashes would not fit into memory KiB.
func (p Policy) check(memory uint32) error {
	bad := func(format string, args ...any) error {
		return ntstatus.Errorf("sam.SetPolicy", "account policy", ntstatus.InvalidParameter, format, args...)
	}
	switch {
	case p.MinPasswordLength < 1 || p.MinPasswordLength > 128:
		return bad("a minimum length of %d: want 1 to 128 bytes", p.MinPasswordLength)
	case p.LockoutThreshold > 999:
		return bad("a threshold of %d: want at most 999", p.LockoutThreshold)
	case p.LockoutWindow < 0 || p.LockoutDuration < 0 || p.LockoutThreshold > 0 && p.LockoutWindow == 0:
		return bad("a lockout needs a window, and no time is negative")
	case p.LockoutDuration != 0 && p.LockoutDuration < p.LockoutWindow:
		return bad("a lockout of %s is shorter than its window of %s", p.LockoutDuration, p.LockoutWindow)
	case p.Hash.MemoryKiB > memory:
		return bad("one hash of %d KiB: the authority grants itself %d KiB", p.Hash.MemoryKiB, memory)
	}
	return p.Hash.Check()
}

// LockedUntil is when the account's lockout ends by itself, math.MaxInt64 for not at all; 0 while it isn't locked. A clock that
// was set back can make a lockout longer by no more than its own duration: see try.
func (a *Account) LockedUntil(p Policy, now int64) int64 {
	switch {
	case a.LockedAt == 0:
		return 0
	case p.LockoutDuration == 0:
		return math.MaxInt64
	}
	until := min(a.LockedAt, now) + int64(p.LockoutDuration)
	if until <= now {
		return 0
	}
	return until
}

// try is the lockout's whole state machine: what one attempt with a right or wrong password does to the account, and its
// outcome. The account is open or locked, which LockedUntil derives from the record:
//
//	         right                         wrong
//	open     Success, count 0              WrongPassword, count+1 (from 1 when the window has passed); locked at the threshold
//	locked   AccountLockedOut, unchanged   AccountLockedOut, unchanged
//
// except that a lock which lies in the future, because the clock was set back, begins anew. Success is not yet permission to log on: see restriction.
func (a *Account) try(p Policy, now int64, right bool) ntstatus.Status {
	if a.LockedUntil(p, now) != 0 {
		a.LockedAt = min(a.LockedAt, now)
		return ntstatus.AccountLockedOut
	}
	if right {
		a.BadCount, a.LastBad, a.LockedAt = 0, 0, 0
		return ntstatus.Success
	}
	if a.LockedAt != 0 || now-a.LastBad >= int64(p.LockoutWindow) {
		a.BadCount = 0
	}
	a.BadCount, a.LastBad, a.LockedAt = a.BadCount+1, now, 0
	if p.LockoutThreshold != 0 && a.BadCount >= p.LockoutThreshold {
		a.LockedAt = now
	}
	return ntstatus.WrongPassword
}

// restriction is why an account whose password was right still may not log on, in NT's order.
func (a *Account) restriction(now int64) ntstatus.Status {
	switch {
	case a.Disabled:
		return ntstatus.AccountDisabled
	case a.Expires != 0 && now >= a.Expires:
		return ntstatus.AccountExpired
	case a.MustChange:
		return ntstatus.PasswordMustChange
	}
	return ntstatus.Success
}

// System access bits (MS-LSAD 2.2.1.2).
const (
	accessInteractive = 0x1
	accessNetwork     = 0x2
	accessBatch       = 0x4
	accessDenyShift   = 6 // a deny bit lies this much above the bit that it denies, for these three
	accessService     = 0x10
	accessDenyService = 0x200
	accessBits        = 0x7 | accessService | 0x7<<accessDenyShift | accessDenyService
)

// MayLogOn reports whether the account has the logon right for one of the types 2 to 7: its own and those that its aliases give,
// as in NT's default policy; a denial wins.
func (a *Account) MayLogOn(logonType int32) bool {
	granted := a.SystemAccess
	if a.Member(AliasUsers) {
		granted |= accessInteractive | accessNetwork
	}
	if a.Member(AliasAdministrators) {
		granted |= accessInteractive | accessNetwork | accessBatch
	}
	allow, deny := uint32(0), uint32(0)
	switch logonType {
	case 2, 7:
		allow = accessInteractive
	case 3:
		allow = accessNetwork
	case 4:
		allow = accessBatch
	case 5:
		allow, deny = accessService, accessDenyService
	}
	if deny == 0 {
		deny = allow << accessDenyShift
	}
	return granted&allow != 0 && granted&deny == 0
}

// Built-in aliases that an account can be a member of: their RIDs in BUILTIN.
const (
	AliasAdministrators = 544
	AliasUsers          = 545
)

// AliasRID is the RID of a built-in alias that has members.
func AliasRID(sid security.SID) (uint32, bool) {
	switch sid {
	case security.Administrators():
		return AliasAdministrators, true
	case security.Users():
		return AliasUsers, true
	}
	return 0, false
}
