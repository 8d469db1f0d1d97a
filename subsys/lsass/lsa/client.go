// Package lsa is the client of the authentication authority (lsass): logging on and off, accounts, lookups.
//
// The authority is trusted with passwords and decides who somebody is; it believes nothing in a request about its caller, whom
// the port proves. Passwords are byte slices so that a caller can wipe its own; the client keeps none. A Client holds no lock
// and is safe for concurrent use.
package lsa

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/rpc"
	"sallyport/security"
)

// PortName is where lsass listens.
const PortName = `\LsaAuthenticationPort`

// LogonType is SECURITY_LOGON_TYPE.
type LogonType = lsapb.LogonType

// The logon types that there are.
const (
	Interactive = lsapb.LogonType_LOGON_TYPE_INTERACTIVE
	Network     = lsapb.LogonType_LOGON_TYPE_NETWORK
	Batch       = lsapb.LogonType_LOGON_TYPE_BATCH
	Service     = lsapb.LogonType_LOGON_TYPE_SERVICE
	Unlock      = lsapb.LogonType_LOGON_TYPE_UNLOCK
)

// System access bits of an account (MS-LSAD 2.2.1.2): which logon types it has beyond those of its aliases, and which it is
// denied whatever they give.
const (
	AccessInteractive     = 0x1
	AccessNetwork         = 0x2
	AccessBatch           = 0x4
	AccessService         = 0x10
	AccessDenyInteractive = 0x40
	AccessDenyNetwork     = 0x80
	AccessDenyBatch       = 0x100
	AccessDenyService     = 0x200
)

// Client speaks to lsass over one connection.
type Client struct {
	conn io.Closer
	stub lsapb.LocalSecurityAuthorityClient
}

// Dial connects to lsass.
func Dial(ctx context.Context, sys *alpc.System) (*Client, error) {
	conn, err := rpc.Dial(ctx, sys, PortName)
	if err != nil {
		return nil, ntstatus.Wrap("lsa.Dial", PortName, err)
	}
	return &Client{conn: conn, stub: lsapb.NewLocalSecurityAuthorityClient(conn)}, nil
}

// NewClient speaks over a connection that the caller has, such as a gRPC one through a bridge; the caller closes it.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{conn: io.NopCloser(nil), stub: lsapb.NewLocalSecurityAuthorityClient(conn)}
}

// Close ends the connection. Tokens and logon sessions made over it stay.
func (c *Client) Close() error { return c.conn.Close() }

// LogonRequest says who wants to log on, and how. See LogonUserRequest in proto/lsapb for the rules of each field.
type LogonRequest struct {
	Name        string // "alice", "DOMAIN\alice"; for a service also "LocalSystem", "LocalService", "NetworkService", "NT SERVICE\name"
	Password    []byte // stays the caller's
	Type        LogonType
	Session     *uint32 // nil: the caller's own
	Origin      string
	Source      string
	LocalGroups []security.Group
}

// Logon is what a successful logon made.
type Logon struct {
	Token    security.LUID // TokenId; this process's attachment holds it
	ID       security.LUID // AuthenticationId: what LogOff takes
	User     security.SID
	UserName string // "DOMAIN\alice"
	Profile  Profile
}

// Profile is what a shell of the account wants to know.
type Profile struct {
	Home, Shell, FullName string
	UnixUID, UnixGID      uint32
}

// LogonUser makes a logon session (NT: LsaLogonUser). Statuses: LOGON_FAILURE (unknown name or wrong password: nobody is told
// which), ACCOUNT_LOCKED_OUT, ACCOUNT_DISABLED, ACCOUNT_EXPIRED, PASSWORD_MUST_CHANGE, LOGON_TYPE_NOT_GRANTED,
// PRIVILEGE_NOT_HELD (a built-in identity, another session, local groups), RPC_S_SERVER_TOO_BUSY.
func (c *Client) LogonUser(ctx context.Context, r LogonRequest) (*Logon, error) {
	req := &lsapb.LogonUserRequest{Name: r.Name, Password: r.Password, LogonType: r.Type, Session: r.Session, Origin: r.Origin, Source: r.Source}
	for _, g := range r.LocalGroups {
		req.LocalGroups = append(req.LocalGroups, &lsapb.LocalGroup{Sid: g.SID.String(), Attributes: uint32(g.Attributes)})
	}
	resp, err := c.stub.LogonUser(ctx, req)
	if err != nil {
		return nil, err
	}
	user, err := security.ParseSID(resp.UserSid)
	if err != nil {
		return nil, ntstatus.Wrap("lsa.LogonUser", r.Name, err)
	}
	p := resp.GetProfile()
	return &Logon{
		Token: security.LUID(resp.Token), ID: security.LUID(resp.LogonId), User: user, UserName: resp.User,
		Profile: Profile{Home: p.GetHome(), Shell: p.GetShell(), FullName: p.GetFullName(), UnixUID: p.GetUnixUid(), UnixGID: p.GetUnixGid()},
	}, nil
}

// LogOff ends a logon session and all its tokens. The session's own processes, whoever logged it on, administrators and the
// system may.
func (c *Client) LogOff(ctx context.Context, id security.LUID) error {
	_, err := c.stub.LogOff(ctx, &lsapb.LogOffRequest{LogonSid: security.LogonSID(id).String()})
	return err
}

// LogonSessions lists the caller's sessions, or all for an administrator.
func (c *Client) LogonSessions(ctx context.Context) ([]*lsapb.LogonSession, error) {
	resp, err := c.stub.ListLogonSessions(ctx, &lsapb.ListLogonSessionsRequest{})
	return resp.GetSessions(), err
}

// CreateUser makes an account. Statuses: USER_EXISTS, INVALID_ACCOUNT_NAME, PASSWORD_RESTRICTION.
func (c *Client) CreateUser(ctx context.Context, r *lsapb.CreateUserRequest) (*lsapb.User, error) {
	return c.stub.CreateUser(ctx, r)
}

// DeleteUser removes an account.
func (c *Client) DeleteUser(ctx context.Context, name string) error {
	_, err := c.stub.DeleteUser(ctx, &lsapb.UserRequest{Name: name})
	return err
}

// QueryUser describes an account.
func (c *Client) QueryUser(ctx context.Context, name string) (*lsapb.User, error) {
	return c.stub.QueryUser(ctx, &lsapb.UserRequest{Name: name})
}

// Users lists all accounts in order of RID.
func (c *Client) Users(ctx context.Context) ([]*lsapb.User, error) {
	var users []*lsapb.User
	req := &lsapb.ListUsersRequest{}
	for {
		resp, err := c.stub.ListUsers(ctx, req)
		if err != nil {
			return nil, err
		}
		users = append(users, resp.Users...)
		if req.AfterRid = resp.NextAfterRid; req.AfterRid == 0 {
			return users, nil
		}
	}
}

// SetUserInfo sets the fields that are present.
func (c *Client) SetUserInfo(ctx context.Context, r *lsapb.SetUserInfoRequest) (*lsapb.User, error) {
	return c.stub.SetUserInfo(ctx, r)
}

// EnableUser lets an account log on again.
func (c *Client) EnableUser(ctx context.Context, name string) (*lsapb.User, error) {
	return c.stub.EnableUser(ctx, &lsapb.UserRequest{Name: name})
}

// DisableUser keeps an account from logging on; its logon sessions go on.
func (c *Client) DisableUser(ctx context.Context, name string) (*lsapb.User, error) {
	return c.stub.DisableUser(ctx, &lsapb.UserRequest{Name: name})
}

// UnlockUser ends a lockout.
func (c *Client) UnlockUser(ctx context.Context, name string) (*lsapb.User, error) {
	return c.stub.UnlockUser(ctx, &lsapb.UserRequest{Name: name})
}

// SetPassword gives an account a new password; mustChange makes the next logon ask for another.
func (c *Client) SetPassword(ctx context.Context, name string, password []byte, mustChange bool) error {
	_, err := c.stub.SetPassword(ctx, &lsapb.SetPasswordRequest{Name: name, Password: password, MustChangePassword: mustChange})
	return err
}

// ChangePassword changes the password of an account whose old one the caller knows. Statuses: WRONG_PASSWORD,
// PASSWORD_RESTRICTION, ACCOUNT_LOCKED_OUT.
func (c *Client) ChangePassword(ctx context.Context, name string, old, new []byte) error {
	_, err := c.stub.ChangePassword(ctx, &lsapb.ChangePasswordRequest{Name: name, OldPassword: old, NewPassword: new})
	return err
}

// AddMember makes an account a member of "Administrators" or "Users", from its next logon on.
func (c *Client) AddMember(ctx context.Context, alias, member string) (*lsapb.User, error) {
	return c.stub.AddMember(ctx, &lsapb.MemberRequest{Alias: alias, Member: member})
}

// RemoveMember ends a membership, from the next logon on.
func (c *Client) RemoveMember(ctx context.Context, alias, member string) (*lsapb.User, error) {
	return c.stub.RemoveMember(ctx, &lsapb.MemberRequest{Alias: alias, Member: member})
}

// LookupNames maps names to SIDs, one item each in the same order. The status is Success, SomeNotMapped or NoneMapped; err is
// for a call that failed.
func (c *Client) LookupNames(ctx context.Context, names ...string) ([]*lsapb.Lookup, ntstatus.Status, error) {
	resp, err := c.stub.LookupNames(ctx, &lsapb.LookupNamesRequest{Names: names})
	return resp.GetItems(), ntstatus.Status(resp.GetStatus()), err
}

// LookupSIDs maps SIDs to names, as LookupNames.
func (c *Client) LookupSIDs(ctx context.Context, sids ...security.SID) ([]*lsapb.Lookup, ntstatus.Status, error) {
	req := &lsapb.LookupSIDsRequest{}
	for _, sid := range sids {
		req.Sids = append(req.Sids, sid.String())
	}
	resp, err := c.stub.LookupSIDs(ctx, req)
	return resp.GetItems(), ntstatus.Status(resp.GetStatus()), err
}

// Policy is the rules for passwords and lockout; see AccountPolicy in proto/lsapb.
type Policy struct {
	MinPasswordLength uint32
	LockoutThreshold  uint32
	LockoutWindow     time.Duration
	LockoutDuration   time.Duration
	HashTime          uint32
	HashMemoryKiB     uint32
	HashThreads       uint32
}

// AccountPolicy returns the policy in force.
func (c *Client) AccountPolicy(ctx context.Context) (Policy, error) {
	p, err := c.stub.QueryAccountPolicy(ctx, &lsapb.QueryAccountPolicyRequest{})
	return policyOf(p), err
}

// SetAccountPolicy replaces it. INVALID_PARAMETER: a lockout that is shorter than its window, or hashing that Argon2 has not or that
// needs more memory than the authority grants itself.
func (c *Client) SetAccountPolicy(ctx context.Context, p Policy) (Policy, error) {
	set, err := c.stub.SetAccountPolicy(ctx, &lsapb.AccountPolicy{
		MinPasswordLength: p.MinPasswordLength, LockoutThreshold: p.LockoutThreshold, LockoutWindowNano: int64(p.LockoutWindow),
		LockoutDurationNano: int64(p.LockoutDuration), HashTime: p.HashTime, HashMemoryKib: p.HashMemoryKiB, HashThreads: p.HashThreads,
	})
	return policyOf(set), err
}

func policyOf(p *lsapb.AccountPolicy) Policy {
	return Policy{
		MinPasswordLength: p.GetMinPasswordLength(), LockoutThreshold: p.GetLockoutThreshold(), LockoutWindow: time.Duration(p.GetLockoutWindowNano()),
		LockoutDuration: time.Duration(p.GetLockoutDurationNano()), HashTime: p.GetHashTime(), HashMemoryKiB: p.GetHashMemoryKib(), HashThreads: p.GetHashThreads(),
	}
}
