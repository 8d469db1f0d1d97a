package core_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"sallyport/alpc/core"
	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// world drives a machine the way the shell does, and keeps the shell's promises: it owns descriptors and delivers frames.
type world struct {
	t        require.TestingT
	m        *core.Machine
	now      time.Time
	lastID   uint64
	lastFD   core.FD
	open     map[core.FD]bool // given to the machine and not given back
	inbox    map[uint64][]*corepb.FromCore
	dropped  map[uint64]bool
	slabs    map[uint64]bool
	words    map[uint64]uint64         // pages of generations, by port and line
	requests map[uint64]map[uint64]int // replies by attachment and request
	failing  bool                      // channels can't be made
}

func newWorld(t require.TestingT, s core.Setup) *world {
	return &world{
		t: t, m: core.NewMachine(s), now: time.Unix(1e9, 0), open: map[core.FD]bool{}, inbox: map[uint64][]*corepb.FromCore{},
		dropped: map[uint64]bool{}, slabs: map[uint64]bool{}, words: map[uint64]uint64{}, requests: map[uint64]map[uint64]int{},
	}
}

func (w *world) fd() core.FD { w.lastFD++; w.open[w.lastFD] = true; return w.lastFD }

func (w *world) step(e core.Event) {
	for _, effect := range w.m.Step(w.now, e) {
		switch e := effect.(type) {
		case core.Send:
			w.deliver(e)
		case core.MakeChannel:
			if w.failing {
				w.step(core.GrantFailed{Connection: e.Connection, Status: ntstatus.InsufficientResources})
				return // what follows in this batch is delivered by the nested step in this model's order
			}
			w.deliver(e.ToServer)
			w.deliver(e.ToClient)
		case core.MakeSection:
			w.deliver(e.ToServer)
			w.deliver(e.ToClient)
		case core.MakeSlab:
			w.slabs[e.Port] = true
			w.deliver(e.Reply)
		case core.Raise:
			require.True(w.t, w.slabs[e.Port], "the page is there")
			require.Greater(w.t, e.To, w.words[e.Port<<16|uint64(e.Line)], "a word only rises")
			w.words[e.Port<<16|uint64(e.Line)] = e.To
		case core.DropSlab:
			require.True(w.t, w.slabs[e.Port], "a slab is dropped once")
			delete(w.slabs, e.Port)
		case core.Drop:
			w.dropped[e.ID] = true
		case core.Watch:
			w.close(e.FD)
		case core.CloseFD:
			w.close(e.FD)
		}
	}
}

func (w *world) close(fd core.FD) {
	require.True(w.t, w.open[fd], "descriptor %d is closed once, and was given", fd)
	delete(w.open, fd)
}

func (w *world) deliver(s core.Send) {
	for _, fd := range s.FDs {
		require.True(w.t, w.open[fd], "descriptor %d is open when it is sent", fd)
	}
	_, err := proto.Marshal(s.Frame)
	require.NoError(w.t, err)
	w.inbox[s.To] = append(w.inbox[s.To], s.Frame)
	if r := s.Frame.GetReply(); r != nil {
		if w.requests[s.To] == nil {
			w.requests[s.To] = map[uint64]int{}
		}
		w.requests[s.To][r.GetId()]++
		require.Equal(w.t, 1, w.requests[s.To][r.GetId()], "request %d of %d is answered once", r.GetId(), s.To)
	}
}

func key(n uint64) core.ProcessKey { return core.ProcessKey{Inode: n} }

var hello = &corepb.ToCore{Id: 1, Request: &corepb.ToCore_Hello{Hello: &corepb.Hello{Version: 1}}}

func (w *world) stated(t *security.Token) uint64 {
	w.lastID++
	w.step(core.Stated{ID: w.lastID, PID: 1, UID: 1000, PIDFD: w.fd(), Token: t, Hello: hello})
	return w.lastID
}

// ask sends a request and returns the reply, if there is one by now.
func (w *world) ask(id uint64, request uint64, m *corepb.ToCore, fds ...core.FD) *corepb.Reply {
	m.Id = request
	keys, uids := make([]core.ProcessKey, len(fds)), make([]uint32, len(fds))
	for i, fd := range fds {
		keys[i], uids[i] = key(uint64(fd)), 1000
	}
	w.step(core.Requested{ID: id, Message: m, FDs: fds, Keys: keys, UIDs: uids})
	return w.replyTo(id, request)
}

func (w *world) replyTo(id, request uint64) *corepb.Reply {
	for _, f := range w.inbox[id] {
		if r := f.GetReply(); r.GetId() == request && r != nil {
			return r
		}
	}
	return nil
}

func system() *security.Token { return core.SystemToken() }

func user(rid uint32) *security.Token {
	t := core.UserToken(100000+rid, 100000+rid)
	return t
}

func listen(name string, auto bool) *corepb.ToCore {
	return &corepb.ToCore{Request: &corepb.ToCore_Listen{Listen: &corepb.Listen{Name: name, Attributes: &corepb.PortAttributes{
		SecurityDescriptor: "D:(A;;GA;;;SY)(A;;0x1;;;WD)", AutoAccept: auto, MaxConnections: 4,
	}}}}
}

func declare(name string) *corepb.ToCore {
	return &corepb.ToCore{Request: &corepb.ToCore_Declare{Declare: &corepb.Declare{Name: name, Server: "S-1-5-18", Attributes: &corepb.PortAttributes{
		SecurityDescriptor: "D:(A;;GA;;;SY)(A;;0x1;;;WD)",
	}}}}
}

func connect(name string) *corepb.ToCore {
	return &corepb.ToCore{Request: &corepb.ToCore_Connect{Connect: &corepb.Connect{Name: name, Level: 1}}}
}

func accept(c uint64) *corepb.ToCore {
	return &corepb.ToCore{Request: &corepb.ToCore_Accept{Accept: &corepb.Accept{Connection: c}}}
}

func refuse(c uint64) *corepb.ToCore {
	return &corepb.ToCore{Request: &corepb.ToCore_Refuse{Refuse: &corepb.Refuse{Connection: c, Data: []byte("no")}}}
}

// lastConnect is the newest connect request that a server was told of.
func (w *world) lastConnect(server uint64) uint64 {
	for _, f := range slices.Backward(w.inbox[server]) {
		if r := f.GetNotice().GetConnectRequest(); r != nil {
			return r.GetConnection()
		}
	}
	return 0
}

// TestHandshakeMatrix drives every state of a connect into every event and states what both sides see.
func TestHandshakeMatrix(t *testing.T) {
	const name = `\port`
	type outcome struct {
		client ntstatus.Status // of the connect; Pending: no answer yet
		event  ntstatus.Status // of the event's own request, where it is one
		open   bool            // a connection is there
	}
	const waits = ntstatus.Pending
	states := []string{"waiting", "requested", "granted", "open"}
	events := []string{"server came", "server accepts", "server refuses", "deadline", "client cancels", "client dies", "server dies", "client closes"}
	want := map[string]map[string]outcome{
		"waiting": {
			"server came": {client: waits}, "server accepts": {waits, ntstatus.InvalidCID, false}, "server refuses": {waits, ntstatus.InvalidCID, false},
			"deadline": {client: ntstatus.IOTimeout}, "client cancels": {client: ntstatus.RequestCanceled}, "client dies": {client: waits},
			"server dies": {client: waits}, "client closes": {client: waits},
		},
		"requested": {
			"server came": {waits, ntstatus.ObjectNameCollision, false}, "server accepts": {open: true}, "server refuses": {client: ntstatus.PortConnectionRefused},
			"deadline": {client: ntstatus.IOTimeout}, "client cancels": {client: ntstatus.RequestCanceled}, "client dies": {client: waits},
			"server dies": {client: waits}, "client closes": {client: ntstatus.RequestCanceled},
		},
		"granted": {
			"server came": {0, ntstatus.ObjectNameCollision, true}, "server accepts": {open: true}, "server refuses": {0, ntstatus.InvalidDeviceState, true},
			"deadline": {open: true}, "client cancels": {0, ntstatus.InvalidCID, true}, "client dies": {}, "server dies": {}, "client closes": {},
		},
		"open": {
			"server came": {0, ntstatus.ObjectNameCollision, true}, "server accepts": {0, ntstatus.InvalidDeviceState, true}, "server refuses": {0, ntstatus.InvalidDeviceState, true},
			"deadline": {open: true}, "client cancels": {0, ntstatus.InvalidCID, true}, "client dies": {}, "server dies": {}, "client closes": {},
		},
	}
	for _, state := range states {
		require.Len(t, want[state], len(events), "every cell of %s is filled", state)
		for _, event := range events {
			t.Run(state+"/"+event, func(t *testing.T) {
				w := newWorld(t, core.Setup{})
				smss, server, client := w.stated(system()), w.stated(system()), w.stated(user(1))
				require.Nil(t, w.ask(smss, 2, declare(name)).Failure)
				if state != "waiting" {
					require.Nil(t, w.ask(server, 2, listen(name, state == "granted")).Failure)
				}
				w.ask(client, 10, connect(name))
				c := w.lastConnect(server)
				if state == "waiting" {
					c = 1 << 40
				}
				if state == "open" {
					require.Nil(t, w.ask(server, 3, accept(c)).Failure)
				}
				var r *corepb.Reply
				switch event {
				case "server came":
					r = w.ask(w.stated(system()), 2, listen(name, false))
				case "server accepts":
					r = w.ask(server, 20, accept(c))
				case "server refuses":
					r = w.ask(server, 20, refuse(c))
				case "deadline":
					w.now = w.now.Add(time.Hour)
					w.step(core.Tick{})
				case "client cancels":
					r = w.ask(client, 20, &corepb.ToCore{Request: &corepb.ToCore_CancelConnect{CancelConnect: &corepb.CancelConnect{Request: 10}}})
				case "client dies":
					w.step(core.Detached{ID: client})
				case "server dies":
					w.step(core.Detached{ID: server})
				case "client closes":
					r = w.ask(client, 20, &corepb.ToCore{Request: &corepb.ToCore_CloseConnection{CloseConnection: &corepb.CloseConnection{Connection: c}}})
				}
				expect := want[state][event]
				require.Equal(t, expect.event, ntstatus.Status(r.GetFailure().GetStatus()), "the event's own status")
				answer := waits
				if got := w.replyTo(client, 10); got != nil {
					answer = ntstatus.Status(got.GetFailure().GetStatus())
				}
				require.Equal(t, expect.client, answer, "the connect's status")
				page := w.ask(smss, 30, &corepb.ToCore{Request: &corepb.ToCore_List{List: &corepb.List{Kind: corepb.Kind_CONNECTIONS}}}).GetPage()
				require.Equal(t, expect.open, len(page.GetConnections()) == 1, "a connection is open")
			})
		}
	}
}

// TestChargesFollowRandomEvents runs random sequences over several attachments. Whatever happens, every request is answered
// at most once, every descriptor is given back exactly once, and when everybody has gone nothing is charged and nothing is left.
func TestChargesFollowRandomEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := core.Limits{Attachments: 64, Ports: 4, Objects: 8, HalfOpen: 6, Connections: 6, SocketBytes: 1 << 40, SectionBytes: 1 << 20, Tokens: 8, PendingCalls: 1 << 20}
		w := newWorld(t, core.Setup{Limits: limits, SectionBytes: 1 << 16, Self: key(1 << 50), Owner: 7})
		live, request := []uint64{w.stated(system())}, uint64(100)
		names := []string{`\a`, `\b`, `\dir`, `\dir\c`, `\link`}
		var known []uint64 // connections and tokens seen
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			w.failing = rapid.IntRange(0, 9).Draw(t, "failing") == 0
			request++
			who := rapid.SampledFrom(live).Draw(t, "who")
			name := rapid.SampledFrom(names).Draw(t, "name")
			number := uint64(rapid.IntRange(0, 40).Draw(t, "number"))
			if len(known) > 0 && rapid.Bool().Draw(t, "known") {
				number = rapid.SampledFrom(known).Draw(t, "which")
			}
			send := func(m *corepb.ToCore, fds ...core.FD) {
				if r := w.ask(who, request, m, fds...); r != nil {
					known = append(known, r.GetToken().GetTokenId(), r.GetConnect().GetConnection())
				}
			}
			switch rapid.IntRange(0, 27).Draw(t, "event") {
			case 0:
				live = append(live, w.stated([]*security.Token{system(), user(1), user(2)}[rapid.IntRange(0, 2).Draw(t, "token")]))
			case 1, 2:
				if len(live) > 1 {
					w.step(core.Detached{ID: who})
					live = slices.DeleteFunc(live, func(id uint64) bool { return id == who })
				}
			case 3, 4:
				send(listen(name, rapid.Bool().Draw(t, "auto")))
			case 5:
				send(declare(name))
			case 6, 7, 8:
				c := connect(name)
				c.GetConnect().Dynamic = rapid.Bool().Draw(t, "dynamic")
				c.GetConnect().Section = rapid.Bool().Draw(t, "section")
				send(c)
			case 9, 10:
				send(accept(w.lastConnect(who)))
			case 11:
				send(refuse(w.lastConnect(who)))
			case 12:
				send(&corepb.ToCore{Request: &corepb.ToCore_CloseConnection{CloseConnection: &corepb.CloseConnection{Connection: number}}})
			case 13:
				send(&corepb.ToCore{Request: &corepb.ToCore_OfferSection{OfferSection: &corepb.OfferSection{Connection: number}}})
			case 14:
				send(&corepb.ToCore{Request: &corepb.ToCore_CreateDirectory{CreateDirectory: &corepb.CreateDirectory{Name: name, SecurityDescriptor: "D:(A;;GA;;;WD)"}}})
			case 15:
				send(&corepb.ToCore{Request: &corepb.ToCore_Remove{Remove: &corepb.Remove{Name: name}}})
			case 16:
				made := user(3)
				if rapid.Bool().Draw(t, "linked") {
					made.Linked = security.LUID(number)
				}
				send(&corepb.ToCore{Request: &corepb.ToCore_CreateToken{CreateToken: &corepb.CreateToken{Token: control.TokenToWire(made)}}})
				request++
				send(&corepb.ToCore{Request: &corepb.ToCore_QueryLinkedToken{QueryLinkedToken: &corepb.TokenRef{TokenId: number}}})
			case 17:
				send(&corepb.ToCore{Request: &corepb.ToCore_GrantToken{GrantToken: &corepb.GrantToken{TokenId: number, Attachment: rapid.SampledFrom(live).Draw(t, "to")}}})
			case 18:
				w.now = w.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
				w.step(core.Tick{})
			case 20:
				send(&corepb.ToCore{Request: &corepb.ToCore_OpenToken{OpenToken: &corepb.OpenToken{TokenId: number, DesiredAccess: 0x8}}})
			case 21:
				owner := "S-1-5-18"
				send(&corepb.ToCore{Request: &corepb.ToCore_SetToken{SetToken: &corepb.SetToken{TokenId: number, PrimaryGroup: &owner}}})
			case 22:
				if c := connectionOf(w, who, rapid.Uint().Draw(t, "of")); c != 0 {
					send(&corepb.ToCore{Request: &corepb.ToCore_CreateSecurityContext{CreateSecurityContext: &corepb.CreateSecurityContext{Connection: c, TokenId: number, Level: 2, Dynamic: rapid.Bool().Draw(t, "dynamic")}}})
				}
			case 23:
				send(&corepb.ToCore{Request: &corepb.ToCore_DeleteSecurityContext{DeleteSecurityContext: &corepb.DeleteSecurityContext{Connection: number, Context: uint32(rapid.IntRange(0, 3).Draw(t, "context"))}}})
			case 25:
				send(&corepb.ToCore{Request: &corepb.ToCore_FilterToken{FilterToken: &corepb.FilterToken{TokenId: number, Flags: 1, Restrict: []string{"S-1-1-0"}}}})
			case 26:
				send(&corepb.ToCore{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: &corepb.AdjustPrivileges{TokenId: number, DisableAll: rapid.Bool().Draw(t, "all"), Privileges: []*corepb.Privilege{{Privilege: 23, Attributes: 2}}}}})
			case 27:
				send(&corepb.ToCore{Request: &corepb.ToCore_AdjustGroups{AdjustGroups: &corepb.AdjustGroups{TokenId: number, Groups: []*corepb.Group{{Sid: "S-1-5-4"}}}}})
			case 24:
				send(&corepb.ToCore{Request: &corepb.ToCore_CloseToken{CloseToken: &corepb.TokenRef{TokenId: number}}})
			case 19: // a process comes over the socket, perhaps as a child of another, and may be assigned a token
				w.lastID++
				k := key(uint64(rapid.IntRange(1000, 1005).Draw(t, "process")))
				w.step(core.Attaching{ID: w.lastID, PID: 5, UID: uint32(rapid.IntRange(6, 8).Draw(t, "uid")), Process: k, PIDFD: w.fd(), Hello: hello,
					Chain: []core.Ancestor{{Process: key(uint64(rapid.IntRange(1000, 1005).Draw(t, "parent"))), UID: 7}, {Process: key(1 << 50), UID: 7}}, Proven: rapid.Bool().Draw(t, "proven")})
				live = append(live, w.lastID)
			}
			live = slices.DeleteFunc(live, func(id uint64) bool { return w.dropped[id] })
			if len(live) == 0 {
				live = append(live, w.stated(system()))
			}
		}
		w.failing = false
		for _, id := range live {
			w.step(core.Detached{ID: id})
		}
		for n := range uint64(6) {
			w.step(core.ProcessExited{Process: key(1000 + n)})
		}
		w.now = w.now.Add(time.Hour)
		w.step(core.Tick{})
		require.Empty(t, w.open, "every descriptor is given back")
		require.Empty(t, w.slabs)
		last := w.stated(system())
		charges := w.ask(last, 2, &corepb.ToCore{Request: &corepb.ToCore_QueryCharges{QueryCharges: &corepb.QueryCharges{All: true}}}).GetCharges()
		require.Len(t, charges.GetAccounts(), 1)
		for _, c := range charges.GetAccounts()[0].GetCharges() {
			if c.GetResource() == "attachments" {
				require.EqualValues(t, 1, c.GetUsed())
			} else {
				require.Zero(t, c.GetUsed(), c.GetResource())
			}
		}
		objects := w.ask(last, 3, &corepb.ToCore{Request: &corepb.ToCore_List{List: &corepb.List{Kind: corepb.Kind_OBJECTS}}}).GetPage().GetObjects()
		require.Len(t, objects, 1, "only the root is left: %v", objects)
		tokens := w.ask(last, 4, &corepb.ToCore{Request: &corepb.ToCore_List{List: &corepb.List{Kind: corepb.Kind_TOKENS}}}).GetPage().GetTokens()
		require.Len(t, tokens, 1, "only the asker's own token is left")
	})
}

// connectionOf is one of the connections that an attachment was granted as a client.
func connectionOf(w *world, id uint64, n uint) uint64 {
	var all []uint64
	for _, f := range w.inbox[id] {
		if c := f.GetReply().GetConnect().GetConnection(); c != 0 {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return 0
	}
	return all[n%uint(len(all))]
}

// TestServerIsToldBeforeTheClientIsAnswered pins the order that makes a narrowing safe: notice, word, answer.
func TestServerIsToldBeforeTheClientIsAnswered(t *testing.T) {
	w := newWorld(t, core.Setup{})
	server, client := w.stated(system()), w.stated(user(1))
	require.Nil(t, w.ask(server, 2, listen(`\port`, true)).Failure)
	c := connect(`\port`)
	c.GetConnect().Dynamic = true
	connection := w.ask(client, 2, c).GetConnect().GetConnection()
	own := w.inbox[client][0].GetReply().GetHello().GetIdentity().GetToken().GetTokenId()
	group := "S-1-1-0"
	for request, m := range map[uint64]*corepb.ToCore{
		10: {Request: &corepb.ToCore_CreateSecurityContext{CreateSecurityContext: &corepb.CreateSecurityContext{Connection: connection, TokenId: own, Level: 2}}},
		11: {Request: &corepb.ToCore_SetToken{SetToken: &corepb.SetToken{TokenId: own, PrimaryGroup: &group}}},
	} {
		m.Id = request
		var order []string
		for _, effect := range w.m.Step(w.now, core.Requested{ID: client, Message: m}) {
			switch e := effect.(type) {
			case core.Send:
				switch {
				case e.Frame.GetNotice().GetSenderChanged() != nil:
					require.Equal(t, server, e.To)
					order = append(order, "notice")
				case e.Frame.GetReply() != nil:
					require.Nil(t, e.Frame.GetReply().GetFailure())
					order = append(order, "answer")
				}
			case core.Raise:
				order = append(order, "word")
			}
		}
		require.Equal(t, []string{"notice", "word", "answer"}, order)
	}
}

func TestOneAttachmentGetsHalfOfWhatIsLeftAndServersHaveAReserve(t *testing.T) {
	limits := core.DefaultLimits()
	limits.Connections = 16
	w := newWorld(t, core.Setup{Limits: limits})
	server := w.stated(system())
	l := listen(`\port`, true)
	l.GetListen().Attributes.MaxConnections = 100
	require.Nil(t, w.ask(server, 2, l).Failure)
	open := func(id uint64) (n int) {
		for r := uint64(100); ; r++ {
			reply := w.ask(id, r, connect(`\port`))
			if f := reply.GetFailure(); f != nil {
				require.Equal(t, ntstatus.QuotaExceeded, ntstatus.Status(f.GetStatus()))
				require.Contains(t, f.GetText(), "connections")
				return n
			}
			w.ask(server, 1000+r+id*1000, accept(reply.GetConnect().GetConnection()))
			n++
		}
	}
	hog, second := w.stated(user(1)), w.stated(user(1)) // the same uid as the server's in this world
	require.Equal(t, 6, open(hog), "half of the twelve that are not reserved")
	require.Equal(t, 3, open(second), "half of what the first left")
	require.Equal(t, 7, open(w.stated(system())), "a server has the reserve and is not halved")
}

func TestNamesAreCheckedAndFolded(t *testing.T) {
	w := newWorld(t, core.Setup{})
	s := w.stated(system())
	for i, bad := range []string{"", "x", `\a\`, `\\a`, `\..\a`, `\a` + string(rune(0)), `\ a`, `\` + fmt.Sprintf("%0300d", 1), `\` + fmt.Sprintf("%01100d", 1)} {
		f := w.ask(s, uint64(100+i), listen(bad, false)).GetFailure()
		require.Equal(t, ntstatus.ObjectNameInvalid, ntstatus.Status(f.GetStatus()), "%q", bad)
	}
	require.Nil(t, w.ask(s, 2, listen(`\Straße`, false)).Failure)
	require.Equal(t, ntstatus.ObjectNameCollision, ntstatus.Status(w.ask(s, 3, listen("/STRAßE", false)).GetFailure().GetStatus()))
}

func FuzzRequests(f *testing.F) {
	owner := "S-1-1-0"
	for i, m := range []*corepb.ToCore{
		listen(`\a`, true), declare(`\b`), connect(`\a`), accept(1), refuse(2), hello,
		{Request: &corepb.ToCore_OpenToken{OpenToken: &corepb.OpenToken{TokenId: 0x1003, DesiredAccess: 0x2000000}}},
		{Request: &corepb.ToCore_FilterToken{FilterToken: &corepb.FilterToken{TokenId: 0x1003, Flags: 5, Restrict: []string{owner}, DenyOnly: []string{owner}}}},
		{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: &corepb.AdjustPrivileges{TokenId: 0x1003, Privileges: []*corepb.Privilege{{Privilege: 23}}}}},
		{Request: &corepb.ToCore_AdjustGroups{AdjustGroups: &corepb.AdjustGroups{TokenId: 0x1003, Groups: []*corepb.Group{{Sid: owner}}}}},
		{Request: &corepb.ToCore_SetToken{SetToken: &corepb.SetToken{TokenId: 0x1003, Owner: &owner, PrimaryGroup: &owner}}},
		{Request: &corepb.ToCore_CreateSecurityContext{CreateSecurityContext: &corepb.CreateSecurityContext{Connection: 2, TokenId: 0x1003, Level: 2, Dynamic: true}}},
		{Request: &corepb.ToCore_DeleteSecurityContext{DeleteSecurityContext: &corepb.DeleteSecurityContext{Connection: 2, Context: 1}}},
	} {
		m.Id = uint64(i)
		b, err := proto.Marshal(m)
		require.NoError(f, err)
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		w := newWorld(t, core.Setup{SectionBytes: 1 << 16})
		server, client := w.stated(system()), w.stated(user(1))
		w.ask(server, 1<<62, listen(`\a`, false))
		for i, raw := range [][]byte{first, second, first} {
			m := &corepb.ToCore{}
			if len(raw) > control.MaxFrame || proto.Unmarshal(raw, m) != nil {
				return
			}
			m.Id = 1<<61 + uint64(i)
			w.step(core.Requested{ID: client, Message: m})
			m = proto.Clone(m).(*corepb.ToCore)
			w.step(core.Requested{ID: server, Message: m})
		}
		w.step(core.Detached{ID: client})
		w.step(core.Detached{ID: server})
		require.Empty(t, w.open)
		require.Empty(t, w.slabs)
	})
}

// TestEachProcessHasATokenOfItsOwn: what a child inherits, and what a second process is assigned, is a copy; attachments of one
// process share theirs.
func TestEachProcessHasATokenOfItsOwn(t *testing.T) {
	w := newWorld(t, core.Setup{Owner: 7})
	attach := func(process, parent uint64) (id uint64, token *corepb.Token) {
		w.lastID++
		e := core.Attaching{ID: w.lastID, PID: int32(process), UID: 1000, Process: key(process), PIDFD: w.fd(), Hello: hello, Proven: true}
		if parent != 0 {
			e.Chain = []core.Ancestor{{Process: key(parent), UID: 1000}}
		}
		w.step(e)
		return e.ID, w.replyTo(e.ID, 1).GetHello().GetIdentity().GetToken()
	}
	parent, first := attach(100, 0)
	twin, second := attach(100, 0)
	child, inherited := attach(101, 100)
	require.Equal(t, first.TokenId, second.TokenId)
	require.NotEqual(t, first.TokenId, inherited.TokenId)
	require.Equal(t, first.AuthenticationId, inherited.AuthenticationId)
	off := w.ask(child, 2, &corepb.ToCore{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: &corepb.AdjustPrivileges{TokenId: inherited.TokenId, DisableAll: true}}})
	require.Nil(t, off.GetFailure())
	told := func(id uint64) (n int) {
		for _, f := range w.inbox[id] {
			if f.GetNotice().GetTokenChanged() != nil {
				n++
			}
		}
		return n
	}
	require.Equal(t, 1, told(child))
	require.Zero(t, told(parent), "the parent's token is another")
	off = w.ask(twin, 2, &corepb.ToCore{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: &corepb.AdjustPrivileges{TokenId: first.TokenId, DisableAll: true}}})
	require.Nil(t, off.GetFailure())
	require.Equal(t, []int{1, 1, 1}, []int{told(parent), told(twin), told(child)}, "of one process, all attachments know")

	spawner := w.stated(system())
	assign := func(request uint64, token uint64) (uint64, *corepb.Token) {
		fd := w.fd()
		require.Nil(t, w.ask(spawner, request, &corepb.ToCore{Request: &corepb.ToCore_AssignToken{AssignToken: &corepb.AssignToken{TokenId: token}}}, fd).GetFailure())
		return attach(uint64(fd), 0)
	}
	made := w.ask(spawner, 2, &corepb.ToCore{Request: &corepb.ToCore_CreateToken{CreateToken: &corepb.CreateToken{Token: control.TokenToWire(user(3))}}}).GetToken()
	_, one := assign(3, made.TokenId)
	_, two := assign(4, made.TokenId)
	require.Equal(t, made.TokenId, one.TokenId, "the first gets it")
	require.NotEqual(t, made.TokenId, two.TokenId)
	require.Equal(t, one.User.Sid, two.User.Sid)
}
