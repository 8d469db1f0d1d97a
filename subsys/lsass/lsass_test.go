package lsass_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/alpc/core"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/lsass"
	"sallyport/subsys/lsass/lsa"
)

const password = "correct horse"

// fixture is a core with lsass in it and an administrator connected to it.
type fixture struct {
	t      *testing.T
	core   *alpctest.Core
	dir    string
	log    *bytes.Buffer
	hosted *subsys.Hosted
	admin  *lsa.Client
}

func start(t *testing.T, options ...alpctest.Option) *fixture {
	f := &fixture{t: t, core: alpctest.Start(t, options...), dir: t.TempDir(), log: &bytes.Buffer{}}
	f.boot()
	f.admin = f.client(alpctest.Admin(500))
	_, err := f.admin.SetAccountPolicy(f.ctx(), lsa.Policy{
		MinPasswordLength: 4, LockoutThreshold: 3, LockoutWindow: time.Hour, LockoutDuration: time.Hour, HashTime: 1, HashMemoryKiB: 8, HashThreads: 1,
	})
	require.NoError(t, err)
	return f
}

func (f *fixture) ctx() context.Context { return alpctest.Context(f.t) }

func (f *fixture) boot() {
	var err error
	f.hosted, err = subsys.Host(f.ctx(), lsass.Server(), subsys.Env{
		System: f.core.Attach(f.t, nil), StateDir: f.dir, Logger: hclog.New(&hclog.LoggerOptions{Output: f.log, Level: hclog.Debug}),
	})
	require.NoError(f.t, err)
}

// stop ends lsass and waits until its port is gone, which the core learns in its own time.
func (f *fixture) stop() {
	require.NoError(f.t, f.hosted.Stop(f.ctx()))
	sys := f.core.Attach(f.t, nil)
	require.Eventually(f.t, func() bool {
		objects, err := sys.Objects(f.ctx(), lsa.PortName)
		return err != nil || len(objects) == 0
	}, 5*time.Second, time.Millisecond)
}

// dial connects to lsass over sys.
func (f *fixture) dial(sys *alpc.System) *lsa.Client {
	c, err := lsa.Dial(f.ctx(), sys)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	return c
}

func (f *fixture) client(token *security.Token) *lsa.Client { return f.dial(f.core.Attach(f.t, token)) }

func (f *fixture) user(name string) *lsapb.User {
	u, err := f.admin.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: name, Password: []byte(password), Home: "/home/" + name, Shell: "/bin/sh", FullName: "The " + name})
	require.NoError(f.t, err)
	return u
}

func (f *fixture) logon(c *lsa.Client, name, pw string) (*lsa.Logon, error) {
	return c.LogonUser(f.ctx(), lsa.LogonRequest{Name: name, Password: []byte(pw), Type: lsa.Interactive, Origin: "a test", Source: "test"})
}

// made lists the tokens that carry a logon SID: what logons have left in the core.
func (f *fixture) made() []*security.Token {
	all, err := f.core.Attach(f.t, nil).Tokens(f.ctx())
	require.NoError(f.t, err)
	var out []*security.Token
	for _, t := range all {
		if slices.ContainsFunc(t.Token.Groups, func(g security.Group) bool { return g.SID == security.LogonSID(t.Token.AuthenticationID) }) {
			out = append(out, t.Token)
		}
	}
	return out
}

func TestLogonGivesTheCallerATokenAndLogOffEndsIt(t *testing.T) {
	f := start(t)
	u := f.user("alice")
	sys := f.core.Attach(t, alpctest.User(1))
	c := f.dial(sys)
	l, err := f.logon(c, "ALICE", password)
	require.NoError(t, err)
	require.Equal(t, u.Sid, l.User.String())
	require.True(t, strings.HasSuffix(l.UserName, `\alice`), l.UserName)
	require.Equal(t, lsa.Profile{Home: "/home/alice", Shell: "/bin/sh", FullName: "The alice", UnixUID: u.UnixUid, UnixGID: u.UnixGid}, l.Profile)
	if os.Getuid() != 0 {
		require.Equal(t, uint32(os.Getuid()), u.UnixUid)
	} else {
		require.Greater(t, u.UnixUid, uint32(1000), "a shell never runs as root by default")
	}

	token, err := sys.QueryToken(f.ctx(), l.Token)
	require.NoError(t, err)
	require.Equal(t, l.ID, token.AuthenticationID)
	require.Equal(t, "test", token.Source.Name)
	for _, sid := range []security.SID{security.Everyone(), security.Interactive(), security.AuthenticatedUsers(), security.Users(),
		security.LogonSID(l.ID), security.UnixUser(u.UnixUid), security.UnixGroup(u.UnixGid)} {
		require.True(t, token.HasSID(sid), sid)
	}
	_, err = f.core.Attach(t, alpctest.User(2)).QueryToken(f.ctx(), l.Token)
	require.Error(t, err, "the token went to the caller and to nobody else")

	sessions, err := c.LogonSessions(f.ctx())
	require.NoError(t, err)
	require.Len(t, sessions, 1)
	s := sessions[0]
	require.Equal(t, []any{uint64(l.ID), u.Sid, l.UserName, lsa.Interactive, "a test", "test", uint32(1)},
		[]any{s.LogonId, s.UserSid, s.User, s.LogonType, s.Origin, s.Source, s.Tokens})
	require.InDelta(t, time.Now().UnixNano(), s.LogonTimeUnixNano, float64(time.Minute))

	stranger := f.client(alpctest.User(2))
	seen, err := stranger.LogonSessions(f.ctx())
	require.NoError(t, err)
	require.Empty(t, seen, "others' sessions are not shown")
	require.ErrorIs(t, stranger.LogOff(f.ctx(), l.ID), ntstatus.AccessDenied)
	require.ErrorIs(t, stranger.LogOff(f.ctx(), 0x7fffffff), ntstatus.AccessDenied, "a session that isn't there is refused like a forbidden one")
	require.ErrorIs(t, f.admin.LogOff(f.ctx(), 0x7fffffff), ntstatus.NoSuchLogonSession)
	require.ErrorIs(t, f.admin.LogOff(f.ctx(), security.SystemLUID), ntstatus.NoSuchLogonSession, "the system's own is none of lsass's")

	require.NoError(t, c.LogOff(f.ctx(), l.ID), "who logged it on may end it")
	_, err = f.core.Attach(t, nil).CreateToken(f.ctx(), token)
	require.ErrorIs(t, err, ntstatus.NoSuchLogonSession, "the core has ended it")
	require.ErrorIs(t, f.admin.LogOff(f.ctx(), l.ID), ntstatus.NoSuchLogonSession)
	sessions, err = f.admin.LogonSessions(f.ctx())
	require.NoError(t, err)
	require.Empty(t, sessions)
}

func TestSessionGoesWithItsLastToken(t *testing.T) {
	f := start(t)
	f.user("alice")
	sys := f.core.Attach(t, alpctest.User(1))
	l, err := f.logon(f.dial(sys), "alice", password)
	require.NoError(t, err)
	twin, err := sys.DuplicateToken(f.ctx(), l.Token, alpc.TokenDuplicate{Type: security.TokenPrimary})
	require.NoError(t, err)
	tokens := func() uint32 {
		sessions, err := f.admin.LogonSessions(f.ctx())
		require.NoError(t, err)
		if len(sessions) == 0 {
			return 0
		}
		return sessions[0].Tokens
	}
	require.Equal(t, uint32(2), tokens())
	require.NoError(t, sys.CloseToken(f.ctx(), l.Token))
	require.Equal(t, uint32(1), tokens())
	require.NoError(t, sys.CloseToken(f.ctx(), twin.TokenID))
	require.Zero(t, tokens())

	_, err = f.logon(f.dial(sys), "alice", password)
	require.NoError(t, err)
	require.Equal(t, uint32(1), tokens())
	require.NoError(t, sys.Close())
	require.Eventually(t, func() bool { return tokens() == 0 }, 5*time.Second, time.Millisecond, "the caller died with it")
}

func TestRestartedAuthorityFindsTheSessionsThatAreThere(t *testing.T) {
	f := start(t)
	u := f.user("alice")
	c := f.client(alpctest.User(1))
	first, err := f.logon(c, "alice", password)
	require.NoError(t, err)
	second, err := c.LogonUser(f.ctx(), lsa.LogonRequest{Name: "alice", Password: []byte(password), Type: lsa.Network})
	require.NoError(t, err)
	third, err := f.logon(c, "alice", password)
	require.NoError(t, err)
	require.NoError(t, c.LogOff(f.ctx(), third.ID))
	require.Len(t, f.made(), 3, "its maker still holds the token of the one that was logged off")
	f.stop()
	f.boot()

	sessions, err := f.admin.LogonSessions(f.ctx())
	require.NoError(t, err, "a client's connection comes back by itself")
	require.Len(t, sessions, 2)
	for i, want := range []struct {
		id     security.LUID
		typ    lsa.LogonType
		source string
	}{{first.ID, lsa.Interactive, "test"}, {second.ID, lsa.Network, "lsass"}} {
		s := sessions[i]
		require.Equal(t, []any{uint64(want.id), want.typ, want.source, u.Sid, int64(0)}, []any{s.LogonId, s.LogonType, s.Source, s.UserSid, s.LogonTimeUnixNano})
	}
	require.NoError(t, c.LogOff(f.ctx(), first.ID), "its maker still may end it")
	_, err = f.logon(c, "alice", password)
	require.NoError(t, err, "the account is still there")
}

func TestFailedLogonsLookAlikeAndLeaveNothing(t *testing.T) {
	f := start(t)
	f.user("alice")
	c := f.client(alpctest.User(1))
	_, wrong := f.logon(c, "alice", "wrong")
	_, unknown := f.logon(c, "malice", password)
	_, elsewhere := f.logon(c, `ELSEWHERE\alice`, password)
	_, builtin := f.logon(c, "SYSTEM", "")
	for name, err := range map[string]error{"alice": wrong, "malice": unknown, `ELSEWHERE\alice`: elsewhere, "SYSTEM": builtin} {
		require.ErrorIs(t, err, ntstatus.LogonFailure)
		require.Equal(t, strings.ReplaceAll(wrong.Error(), "alice", "*"), strings.ReplaceAll(err.Error(), name, "*"))
	}
	for range 2 {
		_, err := f.logon(c, "alice", "wrong")
		require.ErrorIs(t, err, ntstatus.LogonFailure)
	}
	_, err := f.logon(c, "alice", password)
	require.ErrorIs(t, err, ntstatus.AccountLockedOut)
	u, err := f.admin.QueryUser(f.ctx(), "alice")
	require.NoError(t, err)
	require.True(t, u.Locked)
	require.Equal(t, uint32(3), u.BadPasswordCount)
	f.stop()
	f.boot()
	_, err = f.logon(c, "alice", password)
	require.ErrorIs(t, err, ntstatus.AccountLockedOut, "a lockout outlives lsass")
	require.Empty(t, f.made())

	_, err = f.admin.UnlockUser(f.ctx(), "alice")
	require.NoError(t, err)
	_, err = f.logon(c, "alice", password)
	require.NoError(t, err)
	_, err = f.admin.DisableUser(f.ctx(), "alice")
	require.NoError(t, err)
	_, err = f.logon(c, "alice", password)
	require.ErrorIs(t, err, ntstatus.AccountDisabled)
	_, err = f.logon(c, "alice", "wrong")
	require.ErrorIs(t, err, ntstatus.LogonFailure, "only who knows the password learns that")
	_, err = f.admin.EnableUser(f.ctx(), "alice")
	require.NoError(t, err)
	_, err = c.LogonUser(f.ctx(), lsa.LogonRequest{Name: "alice", Password: []byte(password), Type: lsa.Batch})
	require.ErrorIs(t, err, ntstatus.LogonTypeNotGranted)
	require.Len(t, f.made(), 1)

	for _, r := range []lsa.LogonRequest{
		{Name: "alice", Type: 0}, {Name: "alice", Type: 9}, {Name: "alice", Type: lsa.Interactive, Origin: strings.Repeat("x", 128)},
		{Name: "alice", Type: lsa.Interactive, Source: "nine byte"}, {Name: "alice", Type: lsa.Interactive, Password: []byte("a\x00")},
	} {
		_, err := c.LogonUser(f.ctx(), r)
		require.ErrorIs(t, err, ntstatus.InvalidParameter, "%+v", r)
	}
}

func TestACallerThatCantHoldTheTokenLeavesNothing(t *testing.T) {
	limits := core.DefaultLimits()
	limits.Tokens = 8
	f := start(t, alpctest.WithLimits(limits))
	f.user("alice")
	sys := f.core.Attach(t, alpctest.User(1))
	c := f.dial(sys)
	var held []security.LUID
	for {
		l, err := f.logon(c, "alice", password)
		if err != nil {
			require.ErrorIs(t, err, ntstatus.QuotaExceeded)
			break
		}
		require.Less(t, len(held), 8, "a caller pays for the tokens that it holds")
		held = append(held, l.Token)
	}
	require.NotEmpty(t, held)
	require.Len(t, f.made(), len(held), "the one that failed is gone")
	for _, id := range held {
		require.NoError(t, sys.CloseToken(f.ctx(), id))
	}
	require.Empty(t, f.made(), "lsass keeps no hold of its own")
}

func TestOnlyTheTrustedLogOnAsServicesElsewhereOrWithMoreGroups(t *testing.T) {
	f := start(t)
	f.user("alice")
	other, web := uint32(7), security.ServiceSID("web")
	for _, r := range []lsa.LogonRequest{
		{Name: "LocalService", Type: lsa.Service},
		{Name: "LocalSystem", Type: lsa.Service},
		{Name: `NT SERVICE\web`, Type: lsa.Service},
		{Name: "alice", Password: []byte(password), Type: lsa.Interactive, Session: &other},
		{Name: "alice", Password: []byte(password), Type: lsa.Interactive, LocalGroups: []security.Group{{SID: web}}},
	} {
		_, err := f.admin.LogonUser(f.ctx(), r)
		require.ErrorIs(t, err, ntstatus.PrivilegeNotHeld, "%+v", r)
	}
	require.Empty(t, f.made())

	sys := f.core.Attach(t, nil)
	system := f.dial(sys)
	for _, c := range []struct {
		name string
		sid  security.SID
	}{
		{"LocalSystem", security.LocalSystem()}, {`NT AUTHORITY\LocalService`, security.LocalService()},
		{"network service", security.NetworkService()}, {`NT SERVICE\web`, web},
	} {
		l, err := system.LogonUser(f.ctx(), lsa.LogonRequest{Name: c.name, Type: lsa.Service, Source: "scm", Session: &other, LocalGroups: []security.Group{{SID: web}}})
		require.NoError(t, err, c.name)
		require.Equal(t, c.sid, l.User)
		token, err := sys.QueryToken(f.ctx(), l.Token)
		require.NoError(t, err)
		require.Equal(t, other, token.SessionID)
		require.True(t, token.HasSID(web))
		require.True(t, token.HasSID(security.Service()))
		require.True(t, token.HasSID(security.UnixUser(l.Profile.UnixUID)))
		if os.Getuid() == 0 {
			require.Equal(t, c.sid == security.LocalSystem(), l.Profile.UnixUID == 0, "only LocalSystem runs as root")
		}
	}
	items, _, err := system.LookupSIDs(f.ctx(), web, security.ServiceSID("mail"))
	require.NoError(t, err)
	require.Equal(t, []string{"NT SERVICE", "web", ""}, []string{items[0].Domain, items[0].Name, items[1].Name}, "a service has a name once it has logged on")
	_, err = system.LogonUser(f.ctx(), lsa.LogonRequest{Name: "LocalService", Type: lsa.Interactive})
	require.ErrorIs(t, err, ntstatus.LogonFailure, "a built-in identity is for services")
	_, err = system.LogonUser(f.ctx(), lsa.LogonRequest{Name: "alice", Password: []byte(password), Type: lsa.Service})
	require.ErrorIs(t, err, ntstatus.LogonTypeNotGranted)
	access := uint32(lsa.AccessService)
	_, err = f.admin.SetUserInfo(f.ctx(), &lsapb.SetUserInfoRequest{Name: "alice", SystemAccess: &access})
	require.NoError(t, err)
	_, err = system.LogonUser(f.ctx(), lsa.LogonRequest{Name: "alice", Password: []byte(password), Type: lsa.Service})
	require.NoError(t, err)
}

func TestRightsOnAccounts(t *testing.T) {
	f := start(t)
	alice := f.user("alice")
	f.user("bob")
	sid, err := security.ParseSID(alice.Sid)
	require.NoError(t, err)
	token := alpctest.User(1)
	token.User.SID, token.Owner = sid, sid
	c := f.client(token)

	u, err := c.QueryUser(f.ctx(), "alice")
	require.NoError(t, err)
	require.Equal(t, []string{"Users"}, u.Aliases)
	require.NoError(t, c.ChangePassword(f.ctx(), "Alice", []byte(password), []byte("my own secret")))
	require.ErrorIs(t, c.ChangePassword(f.ctx(), "alice", []byte(password), []byte("again")), ntstatus.WrongPassword)
	for what, err := range map[string]error{
		"query another":        second(c.QueryUser(f.ctx(), "bob")),
		"query nobody":         second(c.QueryUser(f.ctx(), "nobody")),
		"change another's":     c.ChangePassword(f.ctx(), "bob", []byte(password), []byte("gotcha!")),
		"set own password":     c.SetPassword(f.ctx(), "alice", []byte("without the old"), false),
		"delete oneself":       c.DeleteUser(f.ctx(), "alice"),
		"create":               second(c.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: "eve", Password: []byte(password)})),
		"enable":               second(c.EnableUser(f.ctx(), "alice")),
		"unlock":               second(c.UnlockUser(f.ctx(), "alice")),
		"become administrator": second(c.AddMember(f.ctx(), "Administrators", "alice")),
		"set info":             second(c.SetUserInfo(f.ctx(), &lsapb.SetUserInfoRequest{Name: "alice"})),
		"set policy":           second(c.SetAccountPolicy(f.ctx(), lsa.Policy{})),
	} {
		require.ErrorIs(t, err, ntstatus.AccessDenied, what)
	}
	_, err = f.admin.QueryUser(f.ctx(), "nobody")
	require.ErrorIs(t, err, ntstatus.NoSuchUser, "an administrator is told")

	users, err := c.Users(f.ctx())
	require.NoError(t, err)
	require.Len(t, users, 2)
	require.NotEmpty(t, users[0].Aliases, "of oneself everything")
	require.Equal(t, &lsapb.User{Name: "bob", Rid: 1001, Sid: users[1].Sid, FullName: "The bob"}, users[1], "of others who they are")
}

func second[T any](_ T, err error) error { return err }

func TestAdministratorsManageAccounts(t *testing.T) {
	f := start(t)
	f.user("alice")
	_, err := f.admin.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: "Alice", Password: []byte(password)})
	require.ErrorIs(t, err, ntstatus.UserExists)
	_, err = f.admin.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: "bob", Password: []byte("abc")})
	require.ErrorIs(t, err, ntstatus.PasswordRestriction)
	_, err = f.admin.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: `a\b`, Password: []byte(password)})
	require.ErrorIs(t, err, ntstatus.InvalidAccountName)

	u, err := f.admin.AddMember(f.ctx(), `BUILTIN\administrators`, "alice")
	require.NoError(t, err)
	require.Equal(t, []string{"Administrators", "Users"}, u.Aliases)
	sys := f.core.Attach(t, alpctest.User(1))
	l, err := f.logon(f.dial(sys), "alice", password)
	require.NoError(t, err)
	token, err := sys.QueryToken(f.ctx(), l.Token)
	require.NoError(t, err)
	require.True(t, token.IsAdmin())
	_, err = f.admin.RemoveMember(f.ctx(), "Administrators", "alice")
	require.NoError(t, err)
	require.Error(t, second(f.admin.AddMember(f.ctx(), "Nobodies", "alice")))

	name, expires := "Alice Liddell", time.Now().Add(-time.Hour).UnixNano()
	u, err = f.admin.SetUserInfo(f.ctx(), &lsapb.SetUserInfoRequest{Name: "alice", FullName: &name, ExpiresUnixNano: &expires})
	require.NoError(t, err)
	require.Equal(t, []any{name, "/home/alice", expires}, []any{u.FullName, u.Home, u.ExpiresUnixNano})
	_, err = f.logon(f.admin, "alice", password)
	require.ErrorIs(t, err, ntstatus.AccountExpired)
	expires = 0
	_, err = f.admin.SetUserInfo(f.ctx(), &lsapb.SetUserInfoRequest{Name: "alice", ExpiresUnixNano: &expires})
	require.NoError(t, err)
	require.NoError(t, f.admin.SetPassword(f.ctx(), "alice", []byte("for one logon"), true))
	_, err = f.logon(f.admin, "alice", "for one logon")
	require.ErrorIs(t, err, ntstatus.PasswordMustChange)
	require.NoError(t, f.admin.ChangePassword(f.ctx(), "alice", []byte("for one logon"), []byte("my own secret")))
	l, err = f.logon(f.admin, "alice", "my own secret")
	require.NoError(t, err)
	require.NoError(t, f.admin.DeleteUser(f.ctx(), "alice"))
	sessions, err := f.admin.LogonSessions(f.ctx())
	require.NoError(t, err)
	require.Equal(t, l.User.String(), sessions[len(sessions)-1].User, "a deleted account is shown by its SID")
	for i := range 205 { // more than one page
		_, err := f.admin.CreateUser(f.ctx(), &lsapb.CreateUserRequest{Name: fmt.Sprintf("user%d", i), Password: []byte(password)})
		require.NoError(t, err)
	}
	users, err := f.admin.Users(f.ctx())
	require.NoError(t, err)
	require.Len(t, users, 205)
}

func TestLookups(t *testing.T) {
	f := start(t)
	u := f.user("alice")
	c := f.client(alpctest.User(1))
	sid, err := security.ParseSID(u.Sid)
	require.NoError(t, err)
	items, status, err := c.LookupNames(f.ctx(), "ALICE", "Users", "nobody", "", "BUILTIN", `BUILTIN\Users`, `ELSEWHERE\alice`)
	require.NoError(t, err)
	require.Equal(t, ntstatus.SomeNotMapped, status)
	domain := items[3].Domain
	uses := make([]string, len(items))
	for i, item := range items {
		uses[i] = strings.TrimPrefix(item.Use.String(), "NAME_USE_") + " " + item.Sid
	}
	require.Equal(t, []string{"USER " + u.Sid, "ALIAS S-1-5-32-545", "UNKNOWN ", "DOMAIN " + sid.Domain().String(), "DOMAIN S-1-5-32", "ALIAS S-1-5-32-545", "UNKNOWN "}, uses)
	items, status, err = c.LookupNames(f.ctx(), domain, domain+`\`, domain+`\alice`, `.\alice`, domain+`\none`)
	require.NoError(t, err)
	require.Equal(t, ntstatus.Success, status)
	require.Equal(t, sid.Domain().String(), items[0].Sid)
	require.Equal(t, items[0].String(), items[1].String())
	require.Equal(t, "alice", items[3].Name)
	require.Equal(t, sid.Domain().WithRID(513).String(), items[4].Sid)

	items, status, err = c.LookupSIDs(f.ctx(), sid, sid.Domain(), security.LocalService(), sid.Domain().WithRID(4242))
	require.NoError(t, err)
	require.Equal(t, ntstatus.SomeNotMapped, status)
	require.Equal(t, domain+`\alice`, items[0].Domain+`\`+items[0].Name)
	require.Equal(t, lsapb.NameUse_NAME_USE_DOMAIN, items[1].Use)
	require.Equal(t, "LOCAL SERVICE", items[2].Name)
	require.Equal(t, lsapb.NameUse_NAME_USE_UNKNOWN, items[3].Use)
	require.Equal(t, sid.Domain().WithRID(4242).String(), items[3].Sid)
	_, status, err = c.LookupNames(f.ctx(), "nobody")
	require.NoError(t, err)
	require.Equal(t, ntstatus.NoneMapped, status)
	_, _, err = c.LookupNames(f.ctx(), make([]string, 1001)...)
	require.ErrorIs(t, err, ntstatus.InvalidParameter)
}

func TestTheLogTellsWhatHappenedAndNoSecrets(t *testing.T) {
	f := start(t)
	f.user("alice")
	c := f.client(alpctest.User(1))
	_, err := f.logon(c, "alice", password)
	require.NoError(t, err)
	for range 3 {
		_, err = f.logon(c, "alice", "not the password")
		require.Error(t, err)
	}
	for range 100 {
		_, err = f.logon(c, "hunter2 typed as a name", "x")
		require.Error(t, err)
	}
	f.stop()
	log := f.log.String()
	for _, event := range []string{"event=4720", "event=4624", "event=4625", "event=4740", "event=4739"} {
		require.Contains(t, log, event)
	}
	for _, secret := range []string{password, "not the password", "hunter2"} {
		require.NotContains(t, log, secret)
	}
	require.Less(t, strings.Count(log, "event=4625"), 80, "a flood of failures is not a flood of lines")
}

func TestADamagedDatabaseStopsTheServerAndIsLeftAsItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "accounts.db")
	require.NoError(t, os.WriteFile(path, []byte("not a database"), 0o600))
	c := alpctest.Start(t)
	_, err := subsys.Host(alpctest.Context(t), lsass.Server(), subsys.Env{System: c.Attach(t, nil), StateDir: dir})
	require.ErrorIs(t, err, ntstatus.FileCorrupt)
	require.ErrorContains(t, err, path)
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "not a database", string(raw))
	_, err = subsys.Host(alpctest.Context(t), lsass.Server(), subsys.Env{System: c.Attach(t, nil)})
	require.ErrorIs(t, err, ntstatus.InvalidParameter, "without a directory it would write somewhere")
}

// The third-party rows that are about what lsass does here; their score is logged by group.
func TestConformance(t *testing.T) {
	dir := os.Getenv("SALLYPORT_CASES")
	if dir == "" {
		t.Skip("SALLYPORT_CASES is not set: no third-party cases to run")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "lsa_behaviour.json"))
	require.NoError(t, err)
	var file struct {
		Cases []struct {
			ID, Group     string
			Informational bool
			Steps         []struct {
				Call, Expect, Check string
				Args                map[string]any
			}
		}
	}
	require.NoError(t, json.Unmarshal(raw, &file))
	f := start(t)
	f.user("alice")
	_, own, err := f.domain()
	require.NoError(t, err)
	uses := map[string]lsapb.NameUse{"Domain": lsapb.NameUse_NAME_USE_DOMAIN, "WellKnownGroup": lsapb.NameUse_NAME_USE_WELL_KNOWN_GROUP, "Alias": lsapb.NameUse_NAME_USE_ALIAS}
	statuses := map[string]ntstatus.Status{
		"ok": ntstatus.Success, "STATUS_SUCCESS": ntstatus.Success, "ERROR_NONE_MAPPED": ntstatus.NoneMapped,
		"STATUS_MEMBER_NOT_IN_GROUP": 0xC0000152, "STATUS_MEMBER_IN_GROUP": 0xC0000153, // an alias here, with an alias's statuses
	}
	passed, total := map[string]int{}, map[string]int{}
	for _, c := range file.Cases {
		if c.Informational || c.Group == "secret" || c.Group == "enum" {
			continue // of the issues on policy and secrets
		}
		total[c.Group]++
		good := true
		for _, step := range c.Steps {
			var got ntstatus.Status
			var item *lsapb.Lookup
			switch step.Call {
			case "LookupNames", "LookupAccountName":
				name, _ := step.Args["name"].(string)
				if names, ok := step.Args["names"].([]any); ok {
					name, _ = names[0].(string) // null is the empty name
				}
				name = strings.ReplaceAll(name, "<computer name>", own)
				items, status, err := f.admin.LookupNames(f.ctx(), name)
				require.NoError(t, err, c.ID)
				item, got = items[0], status
			case "AddGroupMember":
				got = ntstatus.Of(second(f.admin.AddMember(f.ctx(), "Administrators", "alice")))
			case "DeleteGroupMember":
				got = ntstatus.Of(second(f.admin.RemoveMember(f.ctx(), "Administrators", "alice")))
			default:
				t.Fatalf("%s: no way to call %s", c.ID, step.Call)
			}
			want, known := statuses[step.Expect]
			good = good && known && got == want
			for word, use := range uses {
				if strings.Contains(step.Check, "use "+word) {
					good = good && item.Use == use
				}
			}
			if _, sid, ok := strings.Cut(step.Check, "sid "); ok {
				good = good && item.Sid == sid
			}
		}
		if good {
			passed[c.Group]++
		} else {
			t.Errorf("%s fails", c.ID)
		}
	}
	for group, n := range total {
		t.Logf("%s: %d of %d", group, passed[group], n)
	}
	require.NotEmpty(t, total)
}

// domain is the account domain, by the empty name.
func (f *fixture) domain() (sid, name string, err error) {
	items, _, err := f.admin.LookupNames(f.ctx(), "")
	if err != nil {
		return "", "", err
	}
	return items[0].Sid, items[0].Domain, nil
}
