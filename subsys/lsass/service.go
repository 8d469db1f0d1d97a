package lsass

import (
	"context"
	"errors"
	"math"
	"time"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/kdf"
	"sallyport/subsys/lsass/internal/principal"
	"sallyport/subsys/lsass/internal/sam"
)

// service is the implementation of LocalSecurityAuthority. Its methods run after package rpc has checked the right that the
// .proto declares; they may run beside each other.
type service struct {
	lsapb.UnimplementedLocalSecurityAuthorityServer
	system   *alpc.System
	accounts *sam.DB
	sessions sessions
	audit    audit
}

// What people may do with objects: SY and BA everything; a user reads, and changes the password of, their own account; a logon
// session may be ended from within and by who made it.
const (
	userSelf         security.AccessMask = 0x2015f // read, list groups, write preferences, change password
	aliasAll         security.AccessMask = 0xf0007
	sessionTerminate security.AccessMask = 0x1
	userAll          security.AccessMask = 0xf01ff
)

// resolve finds the descriptor of what a request names: a logon session by its SID, an alias, or a user. What is not there is
// guarded as if it were, so that administrators learn that it isn't and nobody else does.
func (s *service) resolve(ctx context.Context, object string) (*security.Descriptor, error) {
	if sid, err := security.ParseSID(object); err == nil {
		if _, ok := principal.LogonID(sid); ok {
			return s.sessionDescriptor(ctx, object)
		}
	}
	if _, ok := alias(object); ok {
		return descriptor(aliasAll), nil
	}
	a, err := s.accounts.Account(s.local(object))
	if err != nil {
		if errors.Is(err, ntstatus.NoSuchUser) {
			return descriptor(userAll), nil
		}
		return nil, err
	}
	domain, _ := s.accounts.Domain()
	return descriptor(userAll, security.Allow(domain.WithRID(a.RID), userSelf)), nil
}

func (s *service) sessionDescriptor(ctx context.Context, logonSID string) (*security.Descriptor, error) {
	l, ok, err := s.sessions.find(ctx, logonSID)
	if err != nil {
		return nil, err
	}
	if !ok {
		return descriptor(sessionTerminate), nil
	}
	d := descriptor(sessionTerminate, security.Allow(security.LogonSID(l.id), sessionTerminate))
	if caller, ok := rpc.Caller(ctx); ok && caller.Token != nil && caller.Token.AuthenticationID == l.by {
		d.DACL.ACEs = append(d.DACL.ACEs, security.Allow(caller.Token.User.SID, sessionTerminate))
	}
	return d, nil
}

// descriptor gives the system and administrators all, and others what more says.
func descriptor(all security.AccessMask, more ...security.ACE) *security.Descriptor {
	entries := append([]security.ACE{security.Allow(security.LocalSystem(), all), security.Allow(security.Administrators(), all)}, more...)
	return &security.Descriptor{
		Control: security.DACLPresent, Owner: security.LocalSystem(), Group: security.LocalSystem(), DACL: security.NewACL(entries...),
	}
}

// alias finds a built-in alias by name, with its domain or without.
func alias(name string) (uint32, bool) {
	e, ok := principal.ByName(principal.Split(name))
	if !ok {
		return 0, false
	}
	return sam.AliasRID(e.SID)
}

// CreateUser makes an account.
func (s *service) CreateUser(ctx context.Context, req *lsapb.CreateUserRequest) (*lsapb.User, error) {
	const op = "lsa.CreateUser"
	defer clear(req.Password)
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	a, err := s.accounts.Create(ctx, line(caller), sam.Account{
		Name: s.local(req.Name), FullName: req.FullName, Home: req.Home, Shell: req.Shell, UID: req.UnixUid, GID: req.UnixGid,
		Disabled: req.Disabled, MustChange: req.MustChangePassword,
	}, req.Password)
	return s.changed(ctx, "4720", "account created", op, a, err)
}

// DeleteUser removes an account.
func (s *service) DeleteUser(ctx context.Context, req *lsapb.UserRequest) (*lsapb.DeleteUserResponse, error) {
	a, err := s.accounts.Delete(s.local(req.Name))
	if _, err = s.changed(ctx, "4726", "account deleted", "lsa.DeleteUser", a, err); err != nil {
		return nil, err
	}
	return &lsapb.DeleteUserResponse{}, nil
}

// QueryUser describes an account.
func (s *service) QueryUser(_ context.Context, req *lsapb.UserRequest) (*lsapb.User, error) {
	a, err := s.accounts.Account(s.local(req.Name))
	if err != nil {
		return nil, ntstatus.Wrap("lsa.QueryUser", req.Name, err)
	}
	return s.user(a)
}

// listPage is how many accounts one reply has at most.
const listPage = 200

// ListUsers shows administrators and the account itself everything, others who there is.
func (s *service) ListUsers(ctx context.Context, req *lsapb.ListUsersRequest) (*lsapb.ListUsersResponse, error) {
	const op = "lsa.ListUsers"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	limit := listPage
	if req.Limit > 0 && req.Limit < listPage {
		limit = int(req.Limit)
	}
	list, more, err := s.accounts.List(req.AfterRid, limit)
	if err != nil {
		return nil, ntstatus.Wrap(op, "", err)
	}
	response := &lsapb.ListUsersResponse{}
	for _, a := range list {
		u, err := s.user(a)
		if err != nil {
			return nil, ntstatus.Wrap(op, a.Name, err)
		}
		if !caller.Token.IsAdmin() && caller.Token.User.SID.String() != u.Sid {
			u = &lsapb.User{Name: u.Name, Sid: u.Sid, Rid: u.Rid, FullName: u.FullName}
		}
		response.Users = append(response.Users, u)
	}
	if more {
		response.NextAfterRid = list[len(list)-1].RID
	}
	return response, nil
}

// SetUserInfo sets the fields that are present.
func (s *service) SetUserInfo(ctx context.Context, req *lsapb.SetUserInfoRequest) (*lsapb.User, error) {
	a, err := s.accounts.Update(s.local(req.Name), func(a *sam.Account) error {
		set(&a.FullName, req.FullName)
		set(&a.Home, req.Home)
		set(&a.Shell, req.Shell)
		set(&a.MustChange, req.MustChangePassword)
		set(&a.Expires, req.ExpiresUnixNano)
		set(&a.SystemAccess, req.SystemAccess)
		if req.UnixUid != nil {
			a.UID = req.UnixUid
		}
		if req.UnixGid != nil {
			a.GID = req.UnixGid
		}
		return nil
	})
	return s.changed(ctx, "4738", "account changed", "lsa.SetUserInfo", a, err)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// EnableUser lets an account log on.
func (s *service) EnableUser(ctx context.Context, req *lsapb.UserRequest) (*lsapb.User, error) {
	a, err := s.accounts.Update(s.local(req.Name), func(a *sam.Account) error { a.Disabled = false; return nil })
	return s.changed(ctx, "4722", "account enabled", "lsa.EnableUser", a, err)
}

// DisableUser keeps an account from logging on.
func (s *service) DisableUser(ctx context.Context, req *lsapb.UserRequest) (*lsapb.User, error) {
	a, err := s.accounts.Update(s.local(req.Name), func(a *sam.Account) error { a.Disabled = true; return nil })
	return s.changed(ctx, "4725", "account disabled", "lsa.DisableUser", a, err)
}

// UnlockUser ends a lockout.
func (s *service) UnlockUser(ctx context.Context, req *lsapb.UserRequest) (*lsapb.User, error) {
	a, err := s.accounts.Unlock(s.local(req.Name))
	return s.changed(ctx, "4767", "account unlocked", "lsa.UnlockUser", a, err)
}

// SetPassword is an administrator's reset.
func (s *service) SetPassword(ctx context.Context, req *lsapb.SetPasswordRequest) (*lsapb.SetPasswordResponse, error) {
	const op = "lsa.SetPassword"
	defer clear(req.Password)
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	a, err := s.accounts.SetPassword(ctx, line(caller), s.local(req.Name), req.Password, req.MustChangePassword)
	if _, err = s.changed(ctx, "4724", "password set", op, a, err); err != nil {
		return nil, err
	}
	return &lsapb.SetPasswordResponse{}, nil
}

// ChangePassword is a user's own change.
func (s *service) ChangePassword(ctx context.Context, req *lsapb.ChangePasswordRequest) (*lsapb.ChangePasswordResponse, error) {
	const op = "lsa.ChangePassword"
	defer clear(req.OldPassword)
	defer clear(req.NewPassword)
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	a, err := s.accounts.ChangePassword(ctx, line(caller), s.local(req.Name), req.OldPassword, req.NewPassword)
	if err != nil {
		s.audit.failure("4723", "password change failed", caller, a, err)
	}
	if _, err = s.changed(ctx, "4723", "password changed", op, a, err); err != nil {
		return nil, err
	}
	return &lsapb.ChangePasswordResponse{}, nil
}

// AddMember adds to a built-in alias.
func (s *service) AddMember(ctx context.Context, req *lsapb.MemberRequest) (*lsapb.User, error) {
	return s.member(ctx, "4732", "added to "+req.Alias, "lsa.AddMember", req, s.accounts.AddMember)
}

// RemoveMember takes out of a built-in alias.
func (s *service) RemoveMember(ctx context.Context, req *lsapb.MemberRequest) (*lsapb.User, error) {
	return s.member(ctx, "4733", "removed from "+req.Alias, "lsa.RemoveMember", req, s.accounts.RemoveMember)
}

func (s *service) member(ctx context.Context, event, what, op string, req *lsapb.MemberRequest, do func(uint32, string) (sam.Account, error)) (*lsapb.User, error) {
	rid, ok := alias(req.Alias)
	if !ok {
		return nil, ntstatus.Errorf(op, req.Alias, ntstatus.NoSuchAlias, "the aliases are Administrators and Users")
	}
	a, err := do(rid, s.local(req.Member))
	return s.changed(ctx, event, what, op, a, err)
}

// QueryAccountPolicy returns the policy in force.
func (s *service) QueryAccountPolicy(context.Context, *lsapb.QueryAccountPolicyRequest) (*lsapb.AccountPolicy, error) {
	p, err := s.accounts.Policy()
	if err != nil {
		return nil, ntstatus.Wrap("lsa.QueryAccountPolicy", "", err)
	}
	return &lsapb.AccountPolicy{
		MinPasswordLength: p.MinPasswordLength, LockoutThreshold: p.LockoutThreshold, LockoutWindowNano: int64(p.LockoutWindow),
		LockoutDurationNano: int64(p.LockoutDuration), HashTime: p.Hash.Time, HashMemoryKib: p.Hash.MemoryKiB, HashThreads: uint32(p.Hash.Threads),
	}, nil
}

// SetAccountPolicy replaces it.
func (s *service) SetAccountPolicy(ctx context.Context, req *lsapb.AccountPolicy) (*lsapb.AccountPolicy, error) {
	const op = "lsa.SetAccountPolicy"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	err = s.accounts.SetPolicy(sam.Policy{
		MinPasswordLength: req.MinPasswordLength, LockoutThreshold: req.LockoutThreshold,
		LockoutWindow: time.Duration(req.LockoutWindowNano), LockoutDuration: time.Duration(req.LockoutDurationNano),
		Hash: kdf.Params{Time: req.HashTime, MemoryKiB: req.HashMemoryKib, Threads: uint8(min(req.HashThreads, math.MaxUint8))},
	})
	if err != nil {
		return nil, ntstatus.Wrap(op, "", err)
	}
	s.audit.record("4739", "account policy changed", caller)
	return s.QueryAccountPolicy(ctx, nil)
}

// changed writes the audit line of an administrative change and describes the account after it.
func (s *service) changed(ctx context.Context, event, what, op string, a sam.Account, err error) (*lsapb.User, error) {
	if err != nil {
		return nil, ntstatus.Wrap(op, "", err)
	}
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	s.audit.record(event, what, caller, "user", a.Name, "rid", a.RID)
	return s.user(a)
}

// user is an account as clients see it.
func (s *service) user(a sam.Account) (*lsapb.User, error) {
	p, err := s.accounts.Policy()
	if err != nil {
		return nil, err
	}
	domain, _ := s.accounts.Domain()
	u := &lsapb.User{
		Name: a.Name, Sid: domain.WithRID(a.RID).String(), Rid: a.RID, FullName: a.FullName, Home: a.Home, Shell: a.Shell, Disabled: a.Disabled,
		BadPasswordCount: a.BadCount, LockoutUntilUnixNano: a.LockedUntil(p, time.Now().UnixNano()), PasswordSetUnixNano: a.PasswordSet,
		MustChangePassword: a.MustChange, ExpiresUnixNano: a.Expires, LastLogonUnixNano: a.LastLogon, LogonCount: a.LogonCount,
		SystemAccess: a.SystemAccess, CreatedUnixNano: a.Created,
	}
	u.Locked = u.LockoutUntilUnixNano != 0
	u.UnixUid, u.UnixGid = s.accounts.UnixIDs(a)
	for _, rid := range a.Aliases {
		if e, ok := principal.BySID(security.Builtin().WithRID(rid)); ok {
			u.Aliases = append(u.Aliases, e.Name)
		}
	}
	return u, nil
}
