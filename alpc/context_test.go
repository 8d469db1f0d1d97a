package alpc_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/security"
)

// said is what a server saw of one request.
type said struct {
	sender *alpc.Client
	data   string
}

// scribe listens, answers every request and hands on who sent it.
func scribe(t *testing.T, server *alpc.System, name string) chan said {
	l, err := server.Listen(alpctest.Context(t), name, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	heard := make(chan said, 4096)
	go func() {
		for {
			r, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			p, err := r.Accept(context.Background(), nil)
			if err != nil {
				continue
			}
			go func() {
				for {
					m, err := p.Receive(context.Background())
					if err != nil {
						return
					}
					heard <- said{m.Sender, string(m.Data)}
					if m.Type == alpc.TypeRequest {
						p.Reply(context.Background(), m, &alpc.Message{})
					}
				}
			}()
		}
	}()
	return heard
}

// impersonator is an administrator who holds SeImpersonate and may let objects be owned by Administrators.
func impersonator() *security.Token {
	t := alpctest.Admin(500)
	t.Privileges = append(t.Privileges, security.TokenPrivilege{Privilege: security.SeImpersonate, Attributes: security.PrivilegeEnabled})
	for i := range t.Groups {
		if t.Groups[i].SID == security.Administrators() {
			t.Groups[i].Attributes |= security.GroupOwner
		}
	}
	return t
}

// hold makes a token and lets a client hold it with some rights.
func hold(t *testing.T, authority, client *alpc.System, token *security.Token) *security.Token {
	ctx := alpctest.Context(t)
	made, err := authority.CreateToken(ctx, token)
	require.NoError(t, err)
	require.NoError(t, authority.GrantToken(ctx, made.TokenID, client.ID()))
	return made
}

func TestMessageIsSentUnderASecurityContext(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run(gear.String(), func(t *testing.T) {
			c, ctx := alpctest.Start(t), alpctest.Context(t)
			authority, client := c.Attach(t, nil), c.Attach(t, impersonator())
			heard := scribe(t, authority, `\RPC Control\who`)
			p, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{Gear: gear, Level: alpc.ImpersonationLevel})
			require.NoError(t, err)
			other := hold(t, authority, client, alpctest.User(1001))
			sc, err := p.CreateSecurityContext(ctx, other.TokenID, alpc.QualityOfService{Level: alpc.ImpersonationLevel})
			require.NoError(t, err)
			require.Equal(t, security.LevelImpersonation, sc.Level)
			for range 3 {
				_, err = p.Call(ctx, &alpc.Message{ContextID: sc.ID, Data: []byte("as the other")})
				require.NoError(t, err)
				got := <-heard
				require.Equal(t, other.User.SID, got.sender.Token.User.SID)
				require.Equal(t, other.TokenID, got.sender.Token.TokenID)
				require.Equal(t, security.LevelImpersonation, got.sender.Level)
				require.Equal(t, sc.ID, got.sender.Context)
				require.Equal(t, client.ID(), got.sender.Attachment, "the process is who it was")
				require.NoError(t, p.Send(ctx, &alpc.Message{}))
				require.Equal(t, alpctest.Admin(500).User.SID, (<-heard).sender.Token.User.SID, "context 0 is the connection's own")
			}
			require.NoError(t, p.DeleteSecurityContext(ctx, sc.ID))
			require.ErrorIs(t, p.DeleteSecurityContext(ctx, sc.ID), ntstatus.InvalidHandle)
			_, err = p.Call(ctx, &alpc.Message{ContextID: sc.ID})
			require.ErrorIs(t, err, ntstatus.InvalidHandle, "a request under it is refused")
			require.NoError(t, p.Send(ctx, &alpc.Message{ContextID: sc.ID, Data: []byte("dropped")}))
			_, err = p.Call(ctx, &alpc.Message{Data: []byte("alive")})
			require.NoError(t, err, "the connection lives")
			require.Equal(t, "alive", (<-heard).data)
			_, err = p.Call(ctx, &alpc.Message{ContextID: sc.ID + 1})
			require.Error(t, err, "an id that the core never made ends the connection")
			<-p.Done()
		})
	}
}

func TestSecurityContextIsOfOneConnection(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client, thief := c.Attach(t, nil), c.Attach(t, alpctest.User(1001)), c.Attach(t, alpctest.User(1002))
	scribe(t, authority, `\RPC Control\who`)
	first, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{})
	require.NoError(t, err)
	second, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{})
	require.NoError(t, err)
	sc, err := first.CreateSecurityContext(ctx, client.Token().TokenID, alpc.QualityOfService{})
	require.NoError(t, err)
	_, err = second.Call(ctx, &alpc.Message{ContextID: sc.ID})
	require.Error(t, err, "the other connection of the same client knows it not")
	_, err = first.Call(ctx, &alpc.Message{ContextID: sc.ID})
	require.NoError(t, err)

	stolen, err := thief.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{})
	require.NoError(t, err)
	_, err = stolen.CreateSecurityContext(ctx, client.Token().TokenID, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.AccessDenied, "a token that it neither holds nor may open")
	_, err = stolen.CreateSecurityContext(ctx, 1<<40, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.NoToken)
	for range 64 {
		_, err = stolen.CreateSecurityContext(ctx, thief.Token().TokenID, alpc.QualityOfService{})
		require.NoError(t, err)
	}
	_, err = stolen.CreateSecurityContext(ctx, thief.Token().TokenID, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.QuotaExceeded)

	a, b, err := alpc.Pair(alpc.PairOptions{}, alpc.PairOptions{})
	require.NoError(t, err)
	defer b.Close()
	_, err = a.CreateSecurityContext(ctx, 1, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.NotSupported)
	require.NoError(t, a.Send(ctx, &alpc.Message{ContextID: 1}))
	<-b.Done()
	require.ErrorIs(t, b.Err(), ntstatus.InvalidMessage)
}

// TestLevelOfAContextIsWhatTheClientMayTake pins FEATURES 1.3.b.7: without SeImpersonate, the same user or the same origin,
// the level drops to Identification, silently.
func TestLevelOfAContextIsWhatTheClientMayTake(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority := c.Attach(t, nil)
	scribe(t, authority, `\RPC Control\who`)
	plain, low, restricted, origin, low1 := alpctest.User(1001), alpctest.User(1001), alpctest.User(1001), alpctest.User(1001), alpctest.User(1002)
	low.Integrity = security.IntegrityLow()
	restricted.Restricted = []security.Group{{SID: security.Everyone()}, {SID: restricted.User.SID}}
	delegated := alpctest.User(1001)
	delegated.Type, delegated.Level = security.TokenImpersonation, security.LevelDelegation
	low1.Type, low1.Level = security.TokenImpersonation, security.LevelIdentification
	session, err := authority.NewLogonSession(ctx)
	require.NoError(t, err)
	origin.AuthenticationID = session
	made := alpctest.User(1002)
	made.OriginID = session
	const identification, impersonation, delegation = security.LevelIdentification, security.LevelImpersonation, security.LevelDelegation
	for name, row := range map[string]struct {
		caller, token *security.Token
		asked         alpc.DialLevel
		want          security.ImpersonationLevel
	}{
		"same user":                        {plain, alpctest.User(1001), alpc.DelegationLevel, impersonation},
		"same user, of delegation":         {plain, delegated, alpc.DelegationLevel, delegation},
		"the default":                      {plain, alpctest.User(1001), alpc.DefaultLevel, identification},
		"anonymous":                        {plain, alpctest.User(1001), alpc.AnonymousLevel, security.LevelAnonymous},
		"another user":                     {plain, alpctest.User(1002), alpc.DelegationLevel, identification},
		"SeImpersonate":                    {impersonator(), alpctest.User(1002), alpc.DelegationLevel, impersonation},
		"same origin":                      {origin, made, alpc.ImpersonationLevel, impersonation},
		"another origin":                   {plain, made, alpc.ImpersonationLevel, identification},
		"same user, but lower":             {low, alpctest.User(1001), alpc.ImpersonationLevel, identification},
		"same user, but restricted":        {restricted, alpctest.User(1001), alpc.ImpersonationLevel, identification},
		"restricted as the caller is":      {restricted, restricted, alpc.ImpersonationLevel, impersonation},
		"a token of Identification itself": {impersonator(), low1, alpc.DelegationLevel, identification},
	} {
		t.Run(name, func(t *testing.T) {
			client := c.Attach(t, row.caller)
			p, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{})
			require.NoError(t, err)
			token := hold(t, authority, client, row.token)
			sc, err := p.CreateSecurityContext(ctx, token.TokenID, alpc.QualityOfService{Level: row.asked})
			require.NoError(t, err)
			require.Equal(t, row.want, sc.Level)
		})
	}
}

func TestDynamicTrackingFollowsTheSendersToken(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, impersonator())
	heard := scribe(t, server, `\RPC Control\who`)
	dial := func(o alpc.DialOptions) *alpc.Port {
		p, err := client.Dial(ctx, `\RPC Control\who`, o)
		require.NoError(t, err)
		return p
	}
	static, dynamic, effective := dial(alpc.DialOptions{}), dial(alpc.DialOptions{Dynamic: true}), dial(alpc.DialOptions{Dynamic: true, EffectiveOnly: true})
	sender := func(p *alpc.Port, id uint32) *security.Token {
		_, err := p.Call(ctx, &alpc.Message{ContextID: id})
		require.NoError(t, err)
		return (<-heard).sender.Token
	}
	fixed, err := static.CreateSecurityContext(ctx, client.Token().TokenID, alpc.QualityOfService{})
	require.NoError(t, err)
	following, err := static.CreateSecurityContext(ctx, client.Token().TokenID, alpc.QualityOfService{Dynamic: true})
	require.NoError(t, err)

	before := client.Token()
	owner := security.Administrators()
	if before.Owner == owner {
		owner = before.User.SID
	}
	after, err := client.SetToken(ctx, before.TokenID, alpc.TokenChange{Owner: &owner})
	require.NoError(t, err)
	require.NotEqual(t, before.ModifiedID, after.ModifiedID)
	require.Equal(t, before.TokenID, after.TokenID)
	require.Equal(t, after, client.Token(), "the attachment knows before the answer comes")
	require.NotEqual(t, owner, before.Owner, "a snapshot stays what it is")
	for range 2 {
		require.Equal(t, before.ModifiedID, sender(static, 0).ModifiedID)
		require.Equal(t, before.ModifiedID, sender(static, fixed.ID).ModifiedID)
		require.Equal(t, after.ModifiedID, sender(static, following.ID).ModifiedID)
		require.Equal(t, after.ModifiedID, sender(dynamic, 0).ModifiedID)
		require.Equal(t, after.ModifiedID, sender(effective, 0).ModifiedID)
		require.Equal(t, owner, sender(dynamic, 0).Owner)
	}
}

// TestAcknowledgedChangeIsNeverOverlooked: whoever got the answer to its adjustment and then sends is seen adjusted, however
// quick it is and whichever gear it uses.
func TestAcknowledgedChangeIsNeverOverlooked(t *testing.T) {
	for _, gear := range []alpc.Gear{alpc.GearSocket, alpc.GearShared} {
		t.Run(gear.String(), func(t *testing.T) {
			c, ctx := alpctest.Start(t), alpctest.Context(t)
			server, client := c.Attach(t, nil), c.Attach(t, impersonator())
			heard := scribe(t, server, `\RPC Control\who`)
			p, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{Dynamic: true, Gear: gear})
			require.NoError(t, err)
			owners := []security.SID{security.Administrators(), client.Token().User.SID}
			for i := range 300 {
				changed, err := client.SetToken(ctx, client.Token().TokenID, alpc.TokenChange{Owner: &owners[i%2]})
				require.NoError(t, err)
				require.NoError(t, p.Send(ctx, &alpc.Message{}))
				require.Equal(t, changed.ModifiedID, (<-heard).sender.Token.ModifiedID, "round %d", i)
			}
		})
	}
}

// TestServerThatDecidesLateStillLearns: the token changed between the connect and the accept.
func TestServerThatDecidesLateStillLearns(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, impersonator())
	l, err := server.Listen(ctx, `\RPC Control\late`, alpc.PortAttributes{SecurityDescriptor: everybody})
	require.NoError(t, err)
	dialed := make(chan *alpc.Port, 1)
	go func() {
		p, _ := client.Dial(ctx, `\RPC Control\late`, alpc.DialOptions{Dynamic: true})
		dialed <- p
	}()
	r, err := l.Accept(ctx)
	require.NoError(t, err)
	owner := client.Token().User.SID
	changed, err := client.SetToken(ctx, client.Token().TokenID, alpc.TokenChange{Owner: &owner})
	require.NoError(t, err)
	require.NotEqual(t, changed.ModifiedID, r.Client().Token.ModifiedID)
	end, err := r.Accept(ctx, nil)
	require.NoError(t, err)
	p := <-dialed
	require.NotNil(t, p)
	require.NoError(t, p.Send(ctx, &alpc.Message{}))
	m, err := end.Receive(ctx)
	require.NoError(t, err)
	require.Equal(t, changed.ModifiedID, m.Sender.Token.ModifiedID)
}

func TestEndedLogonSessionSpeaksForNobody(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	authority, client := c.Attach(t, nil), c.Attach(t, impersonator())
	heard := scribe(t, authority, `\RPC Control\who`)
	p, err := client.Dial(ctx, `\RPC Control\who`, alpc.DialOptions{})
	require.NoError(t, err)
	user := alpctest.User(1001)
	user.AuthenticationID, err = authority.NewLogonSession(ctx)
	require.NoError(t, err)
	token := hold(t, authority, client, user)
	sc, err := p.CreateSecurityContext(ctx, token.TokenID, alpc.QualityOfService{Level: alpc.ImpersonationLevel})
	require.NoError(t, err)
	require.NoError(t, authority.EndLogonSession(ctx, user.AuthenticationID))
	_, err = p.Call(ctx, &alpc.Message{ContextID: sc.ID})
	require.NoError(t, err)
	got := (<-heard).sender
	require.Equal(t, security.Anonymous(), got.Token.User.SID, "fixed or not, it is worth nothing any more")
	require.Equal(t, security.LevelAnonymous, got.Level)
	_, err = p.CreateSecurityContext(ctx, token.TokenID, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.NoSuchLogonSession)
}

func TestServerRevokesAContext(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, client := c.Attach(t, nil), c.Attach(t, alpctest.User(1001))
	l, err := server.Listen(ctx, `\RPC Control\mine`, alpc.PortAttributes{SecurityDescriptor: everybody, AutoAccept: true})
	require.NoError(t, err)
	p, err := client.Dial(ctx, l.Name(), alpc.DialOptions{})
	require.NoError(t, err)
	r, err := l.Accept(ctx)
	require.NoError(t, err)
	end, err := r.Accept(ctx, nil)
	require.NoError(t, err)
	sc, err := p.CreateSecurityContext(ctx, client.Token().TokenID, alpc.QualityOfService{})
	require.NoError(t, err)
	_, err = end.CreateSecurityContext(ctx, server.Token().TokenID, alpc.QualityOfService{})
	require.ErrorIs(t, err, ntstatus.InvalidPortHandle, "only the client's end has contexts")
	require.NoError(t, end.DeleteSecurityContext(ctx, sc.ID))
	var serving atomic.Bool
	go func() { end.Receive(context.Background()); serving.Store(true) }()
	_, err = p.Call(ctx, &alpc.Message{ContextID: sc.ID})
	require.ErrorIs(t, err, ntstatus.InvalidHandle)
	require.False(t, serving.Load(), "the server's Receive never saw it")
	require.NoError(t, p.Close())
	require.Eventually(t, serving.Load, 10*time.Second, time.Millisecond)
}
