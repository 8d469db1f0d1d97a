package alpc_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/internal/pidfd"
	"sallyport/ntstatus"
	"sallyport/security"
)

func TestTokensAreMadeHeldGrantedAndGone(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client, other := c.Attach(t, nil), c.Attach(t, alpctest.User(1001)), c.Attach(t, alpctest.User(1002))

	_, err := client.CreateToken(ctx, alpctest.User(1))
	require.ErrorIs(t, err, ntstatus.PrivilegeNotHeld)
	var denial *ntstatus.Denial
	require.ErrorAs(t, err, &denial)
	require.Equal(t, "SeCreateTokenPrivilege", denial.Right)

	logon, err := authority.NewLogonSession(ctx)
	require.NoError(t, err)
	wanted := alpctest.User(1003)
	wanted.AuthenticationID, wanted.SessionID = logon, 7
	made, err := authority.CreateToken(ctx, wanted)
	require.NoError(t, err)
	require.NotZero(t, made.TokenID)
	require.Equal(t, logon, made.AuthenticationID)

	_, err = other.QueryToken(ctx, made.TokenID)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "who neither holds it nor is allowed by its descriptor")
	require.NoError(t, authority.GrantToken(ctx, made.TokenID, client.ID()))
	got, err := client.QueryToken(ctx, made.TokenID)
	require.NoError(t, err)
	require.Equal(t, made, got)
	_, err = client.DuplicateToken(ctx, made.TokenID, alpc.TokenDuplicate{Type: security.TokenImpersonation, Level: security.LevelIdentification})
	require.NoError(t, err)
	session := uint32(9)
	_, err = client.DuplicateToken(ctx, made.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary, Session: &session})
	require.ErrorIs(t, err, ntstatus.PrivilegeNotHeld, "another session takes SeTcb")

	require.NoError(t, authority.CloseToken(ctx, made.TokenID))
	require.ErrorIs(t, authority.CloseToken(ctx, made.TokenID), ntstatus.InvalidHandle)
	_, err = client.QueryToken(ctx, made.TokenID)
	require.NoError(t, err, "the client holds it still")
	client.Close()
	require.Eventually(t, func() bool {
		_, err := authority.QueryToken(ctx, made.TokenID)
		return ntstatus.Of(err) == ntstatus.NoToken
	}, 10*time.Second, time.Millisecond, "the last holder has gone")
}

func TestLinkedTokensAreAskedForFromEitherSide(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	full, err := authority.CreateToken(ctx, alpctest.Admin(1003))
	require.NoError(t, err)
	_, err = authority.LinkedToken(ctx, full.TokenID)
	require.ErrorIs(t, err, ntstatus.NoSuchLogonSession)
	twin := alpctest.User(1003)
	twin.Linked = full.TokenID
	limited, err := authority.CreateToken(ctx, twin)
	require.NoError(t, err)
	_, err = authority.CreateToken(ctx, twin)
	require.ErrorIs(t, err, ntstatus.InvalidDeviceState, "a token has one twin")

	back, err := authority.LinkedToken(ctx, full.TokenID)
	require.NoError(t, err)
	require.Equal(t, limited.TokenID, back.TokenID)
	require.NoError(t, authority.GrantToken(ctx, limited.TokenID, client.ID()))
	require.NoError(t, authority.CloseToken(ctx, full.TokenID), "the limited one keeps it")
	told, err := client.LinkedToken(ctx, limited.TokenID)
	require.NoError(t, err)
	require.True(t, told.IsAdmin())
	require.Equal(t, []any{security.TokenImpersonation, security.LevelIdentification}, []any{told.Type, told.Level}, "it tells, and does not act")
	require.NotEqual(t, full.TokenID, told.TokenID)
	_, err = client.DuplicateToken(ctx, told.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary})
	require.ErrorIs(t, err, ntstatus.BadImpersonationLevel)
}

func TestDuplicateNeverRaisesTheLevel(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	system := c.Attach(t, nil)
	low := alpctest.User(1)
	low.Type, low.Level = security.TokenImpersonation, security.LevelIdentification
	made, err := system.CreateToken(ctx, low)
	require.NoError(t, err)
	for level, want := range map[security.ImpersonationLevel]ntstatus.Status{
		security.LevelAnonymous: ntstatus.Success, security.LevelIdentification: ntstatus.Success,
		security.LevelImpersonation: ntstatus.BadImpersonationLevel, security.LevelDelegation: ntstatus.BadImpersonationLevel,
	} {
		_, err := system.DuplicateToken(ctx, made.TokenID, alpc.TokenDuplicate{Type: security.TokenImpersonation, Level: level})
		require.Equal(t, want, ntstatus.Of(err), level)
	}
}

func TestEndedLogonSessionOpensNothing(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority := c.Attach(t, nil)
	_, err := authority.Listen(ctx, `\RPC Control\door`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	logon, err := authority.NewLogonSession(ctx)
	require.NoError(t, err)
	token := alpctest.User(1001)
	token.AuthenticationID = logon
	user := c.Attach(t, token)
	_, err = user.Dial(ctx, `\RPC Control\door`, alpc.DialOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, user.EndLogonSession(ctx, logon), ntstatus.PrivilegeNotHeld)
	require.NoError(t, authority.EndLogonSession(ctx, logon))
	_, err = user.Dial(ctx, `\RPC Control\door`, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.NoSuchLogonSession)
	_, err = authority.CreateToken(ctx, token)
	require.ErrorIs(t, err, ntstatus.NoSuchLogonSession, "it can't be revived")
	require.ErrorIs(t, authority.EndLogonSession(ctx, 0x3e7), ntstatus.InvalidParameter, "the system's own")
}

func TestServerIsWhoTheClientRequires(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, alpctest.Admin(500)), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\who`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	_, err = client.Dial(ctx, l.Name(), alpc.DialOptions{RequiredServer: security.LocalSystem()})
	require.ErrorIs(t, err, ntstatus.ServerSIDMismatch)
	for _, sid := range []security.SID{alpctest.Admin(500).User.SID, security.Administrators()} {
		p, err := client.Dial(ctx, l.Name(), alpc.DialOptions{RequiredServer: sid})
		require.NoError(t, err)
		require.Equal(t, alpctest.Admin(500).User.SID, p.Peer().Token.User.SID)
	}
}

func TestLevelBoundsWhatTheServerLearns(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\level`, alpc.PortAttributes{SecurityDescriptor: everybody})
	require.NoError(t, err)
	for level, want := range map[alpc.DialLevel]security.ImpersonationLevel{
		alpc.DefaultLevel: security.LevelIdentification, alpc.AnonymousLevel: security.LevelAnonymous,
		alpc.ImpersonationLevel: security.LevelImpersonation, alpc.DelegationLevel: security.LevelDelegation,
	} {
		go client.Dial(ctx, l.Name(), alpc.DialOptions{Level: level})
		r, err := l.Accept(ctx)
		require.NoError(t, err)
		require.Equal(t, want, r.Client().Level)
		if want == security.LevelAnonymous {
			require.Equal(t, security.Anonymous(), r.Client().Token.User.SID)
		} else {
			require.Equal(t, alpctest.User(1001).User.SID, r.Client().Token.User.SID)
		}
		require.NoError(t, r.Refuse(ctx, ntstatus.AccountRestriction, nil))
	}
}

func TestRefusalCarriesStatusAndData(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\no`, alpc.PortAttributes{SecurityDescriptor: everybody})
	require.NoError(t, err)
	failed := make(chan error, 1)
	go func() { _, err := client.Dial(ctx, l.Name(), alpc.DialOptions{}); failed <- err }()
	r, err := l.Accept(ctx)
	require.NoError(t, err)
	require.NoError(t, r.Refuse(ctx, ntstatus.Success, []byte("come back tomorrow")))
	require.ErrorIs(t, r.Refuse(ctx, ntstatus.Success, nil), ntstatus.InvalidDeviceState)
	_, err = r.Accept(ctx, nil)
	require.ErrorIs(t, err, ntstatus.InvalidDeviceState)
	err = <-failed
	require.ErrorIs(t, err, ntstatus.PortConnectionRefused)
	var refusal *alpc.Refusal
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, "come back tomorrow", string(refusal.Data))
}

// TestAbandonedDialLeavesNothing: whichever is quicker, the client's patience or the server's accept, no connection stays.
func TestAbandonedDialLeavesNothing(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\slow`, alpc.PortAttributes{SecurityDescriptor: everybody})
	require.NoError(t, err)
	for i := range 40 {
		dialCtx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			p, err := client.Dial(dialCtx, l.Name(), alpc.DialOptions{})
			if err == nil {
				p.Close()
			}
			done <- err
		}()
		r, err := l.Accept(ctx)
		require.NoError(t, err)
		if i%2 == 0 {
			cancel()
			r.Accept(ctx, nil)
		} else {
			go cancel()
			r.Accept(ctx, nil)
		}
		<-done
		cancel()
	}
	require.Eventually(t, func() bool {
		conns, err := server.Connections(ctx)
		return err == nil && len(conns) == 0
	}, 10*time.Second, time.Millisecond)
}

func TestReportedDenialIsKeptForTheRefused(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client, stranger := c.Attach(t, nil), c.Attach(t, alpctest.User(1001)), c.Attach(t, alpctest.User(1002))
	l, err := server.Listen(ctx, `\RPC Control\svc`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	d := alpc.Denial{Attachment: client.ID(), Op: "svc.Start", Object: "web", Right: "SERVICE_START (0x10)", Desired: 0x10, Status: ntstatus.AccessDenied, Trace: []string{"entry 3 says no"}}
	_, err = server.ReportDenial(ctx, d)
	require.ErrorIs(t, err, ntstatus.InvalidParameter, "no client of the reporter yet")
	_, err = client.Dial(ctx, l.Name(), alpc.DialOptions{})
	require.NoError(t, err)
	id, err := server.ReportDenial(ctx, d)
	require.NoError(t, err)
	got, err := client.Explain(ctx, id)
	require.NoError(t, err)
	require.Equal(t, "web", got.Object)
	require.Equal(t, server.ID(), got.Reporter)
	require.Equal(t, client.Token().User.SID.String(), got.User)
	require.NotEmpty(t, got.Hint)
	require.Empty(t, got.Trace, "a server's refusal without a descriptor tells the refused nothing more")
	_, err = stranger.Explain(ctx, id)
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	_, err = stranger.Explain(ctx, id+1000)
	require.ErrorIs(t, err, ntstatus.NotFound)
	all, err := server.Denials(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, id, all[len(all)-1].Decision)
}

func TestNamespaceObjects(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	system, user := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	const open = "D:(A;;GA;;;SY)(A;;GRGX;;;WD)"
	require.NoError(t, system.CreateDirectory(ctx, `\Lab`, open))
	require.ErrorIs(t, user.CreateDirectory(ctx, `\Lab\mine`, open), ntstatus.AccessDenied)
	require.ErrorIs(t, system.CreateDirectory(ctx, `\Lab`, open), ntstatus.ObjectNameCollision)
	require.ErrorIs(t, system.CreateDirectory(ctx, `\Nowhere\x`, open), ntstatus.ObjectPathNotFound)
	require.ErrorIs(t, system.CreateDirectory(ctx, `\Lab\x`, ""), ntstatus.InvalidSecurityDescr)
	require.ErrorIs(t, system.CreateDirectory(ctx, `\Lab\x`, "nonsense"), ntstatus.InvalidSecurityDescr)
	require.ErrorIs(t, user.CreateDirectory(ctx, `\Lab\x`, "O:SY"+open), ntstatus.InvalidOwner)
	l, err := system.Listen(ctx, `\Lab\port`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	require.NoError(t, system.CreateSymbolicLink(ctx, `\short`, `\Lab`, open))
	require.NoError(t, system.CreateSymbolicLink(ctx, `\loop`, `\loop`, open))
	require.ErrorIs(t, user.CreateSymbolicLink(ctx, `\mine`, `\Lab`, open), ntstatus.PrivilegeNotHeld)
	_, err = user.Dial(ctx, `\short\PORT`, alpc.DialOptions{})
	require.NoError(t, err, "over a link, and folded")
	_, err = user.Dial(ctx, `\loop`, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.TooManyLinks)
	_, err = user.Dial(ctx, `\Lab`, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.InvalidPortHandle)
	_, err = user.Dial(ctx, `\Lab\port\deeper`, alpc.DialOptions{})
	require.ErrorIs(t, err, ntstatus.ObjectPathInvalid)
	require.ErrorIs(t, system.Remove(ctx, `\Lab`), ntstatus.ResourceInUse)
	require.ErrorIs(t, system.Remove(ctx, `\Lab\port`), ntstatus.ResourceInUse)
	require.NoError(t, system.Remove(ctx, `\short`), "the link, not what it points at")
	require.NoError(t, l.Close())
	require.NoError(t, system.Remove(ctx, `\Lab`))
	require.ErrorIs(t, system.Remove(ctx, `\`), ntstatus.ObjectNameInvalid)
	names := func() (out []string) {
		objects, err := user.Objects(ctx, "")
		require.NoError(t, err)
		for _, o := range objects {
			out = append(out, o.Name)
		}
		return out
	}
	require.Equal(t, []string{`\`, `\BaseNamedObjects`, `\loop`, `\RPC Control`, `\Sessions`, `\Windows`}, names())
	for i := range 600 { // more than one page
		require.NoError(t, system.CreateDirectory(ctx, `\Windows\`+string(rune('a'+i%26))+string(rune('a'+i/26)), open))
	}
	require.Len(t, names(), 606)
}

func TestTokenIsUsedAsFarAsItWasOpened(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client, admin := c.Attach(t, nil), c.Attach(t, alpctest.User(1001)), c.Attach(t, alpctest.Admin(500))
	made, err := authority.CreateToken(ctx, alpctest.User(1001))
	require.NoError(t, err)
	duplicate := func(s *alpc.System) error {
		_, err := s.DuplicateToken(ctx, made.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary})
		return err
	}
	_, err = admin.OpenToken(ctx, made.TokenID, 0x8|0x2)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "an administrator may query it, no more")
	_, err = admin.OpenToken(ctx, made.TokenID, 0x8)
	require.NoError(t, err)
	_, err = admin.QueryToken(ctx, made.TokenID)
	require.NoError(t, err)
	require.ErrorIs(t, duplicate(admin), ntstatus.AccessDenied)
	_, err = client.OpenToken(ctx, made.TokenID, 0x8)
	require.NoError(t, err)
	require.ErrorIs(t, duplicate(client), ntstatus.AccessDenied, "its descriptor would let it, the handle does not")
	_, err = client.OpenToken(ctx, made.TokenID, 0x2)
	require.NoError(t, err)
	require.NoError(t, duplicate(client), "opened again, the rights add up")
	_, err = client.OpenToken(ctx, made.TokenID, 0x20)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "to adjust another token of its user takes more")
	_, err = client.OpenToken(ctx, made.TokenID, security.MaximumAllowed)
	require.NoError(t, err)
	_, err = c.Attach(t, alpctest.User(1002)).OpenToken(ctx, made.TokenID, security.MaximumAllowed)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "the most that it may have is nothing")
	_, err = client.OpenToken(ctx, 1<<40, 0x8)
	require.ErrorIs(t, err, ntstatus.NoToken)

	owner := made.User.SID
	_, err = client.SetToken(ctx, made.TokenID, alpc.TokenChange{Owner: &owner})
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	require.NoError(t, authority.GrantToken(ctx, made.TokenID, client.ID()))
	got, err := client.SetToken(ctx, made.TokenID, alpc.TokenChange{Owner: &owner})
	require.NoError(t, err, "granted whole")
	_, err = client.OpenToken(ctx, made.TokenID, security.MaximumAllowed)
	require.NoError(t, err, "what it holds beyond the descriptor is no hindrance")
	require.NotEqual(t, made.ModifiedID, got.ModifiedID)

	low := alpctest.User(1001)
	low.Integrity = security.IntegrityLow()
	_, err = c.Attach(t, low).OpenToken(ctx, made.TokenID, 0x2)
	require.ErrorIs(t, err, ntstatus.AccessDenied, "who gave rights up does not find them again in another token of its user")
}

func TestTokenIsSetWithTheRightRights(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	own, session := client.Token().TokenID, uint32(7)
	everyone, admins := security.Everyone(), security.Administrators()
	dacl, err := security.ParseSDDL("D:(A;;GA;;;SY)")
	require.NoError(t, err)
	for name, row := range map[string]struct {
		change alpc.TokenChange
		want   ntstatus.Status
	}{
		"nothing":                  {alpc.TokenChange{}, ntstatus.InvalidParameter},
		"a session":                {alpc.TokenChange{Session: &session}, ntstatus.PrivilegeNotHeld},
		"an owner it can't be":     {alpc.TokenChange{Owner: &admins}, ntstatus.InvalidOwner},
		"a group that may not":     {alpc.TokenChange{Owner: &everyone}, ntstatus.InvalidOwner},
		"a group it is not in":     {alpc.TokenChange{PrimaryGroup: &admins}, ntstatus.InvalidPrimaryGroup},
		"a primary group it has":   {alpc.TokenChange{PrimaryGroup: &everyone}, ntstatus.Success},
		"a default DACL":           {alpc.TokenChange{DefaultDACL: dacl}, ntstatus.Success},
		"no default DACL any more": {alpc.TokenChange{DefaultDACL: &security.Descriptor{}}, ntstatus.Success},
	} {
		t.Run(name, func(t *testing.T) {
			before := client.Token()
			after, err := client.SetToken(ctx, own, row.change)
			require.Equal(t, row.want, ntstatus.Of(err))
			require.Equal(t, row.want == ntstatus.Success, client.Token().ModifiedID != before.ModifiedID)
			if err == nil && row.change.DefaultDACL != nil {
				require.Equal(t, row.change.DefaultDACL.DACL != nil, after.DefaultDACL != nil)
			}
		})
	}
	made, err := authority.CreateToken(ctx, alpctest.User(1001))
	require.NoError(t, err)
	after, err := authority.SetToken(ctx, made.TokenID, alpc.TokenChange{Session: &session})
	require.NoError(t, err)
	require.Equal(t, session, after.SessionID)
}

func TestTokenOfAProcessIsOpenedByItsPIDFD(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	process, err := alpc.Attach(ctx, alpc.Options{Path: c.Path()})
	require.NoError(t, err)
	defer process.Close()
	self, err := pidfd.Self()
	require.NoError(t, err)
	defer self.Close()
	system := c.Attach(t, nil)
	got, err := system.OpenProcessToken(ctx, self, 0x8)
	require.NoError(t, err)
	require.Equal(t, process.Token(), got)
	require.NoError(t, system.CloseToken(ctx, got.TokenID), "it is held")
	_, err = c.Attach(t, alpctest.User(1001)).OpenProcessToken(ctx, self, 0x8)
	require.ErrorIs(t, err, ntstatus.AccessDenied)
	other, err := pidfd.Open(1)
	require.NoError(t, err)
	defer other.Close()
	_, err = system.OpenProcessToken(ctx, other, 0x8)
	require.ErrorIs(t, err, ntstatus.NoToken, "the core knows none of it")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = system.OpenProcessToken(ctx, r, 0x8)
	require.ErrorIs(t, err, ntstatus.NoToken, "no process")
}
