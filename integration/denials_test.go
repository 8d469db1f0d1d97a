package integration_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/alpc/core"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/proto/tourpb"
	"sallyport/rpc"
	"sallyport/security"
)

// refusal is one way to be denied.
type refusal struct {
	name   string
	who    *alpc.System
	try    func(ctx context.Context) error
	status ntstatus.Status
	object string
	right  string // what Right begins with
	entry  string // what the administrator is shown among the reasons
	secret string // what the caller must not learn: it may not read the descriptor
	before alpc.Question
}

// TestEveryDenialSaysWhatWasMissingAndCanBeExplained makes more than a hundred denials of every kind. Each tells its caller
// status, object, right, decision and what to do; the decision's number shows an administrator the reason, its caller only
// what it may know; and asked beforehand, the answer is the same.
func TestEveryDenialSaysWhatWasMissingAndCanBeExplained(t *testing.T) {
	c, ctx := alpctest.Start(t), alpctest.Context(t)
	server, admin := c.Attach(t, nil), c.Attach(t, alpctest.Admin(500))
	user, other := c.Attach(t, alpctest.User(1001)), c.Attach(t, alpctest.User(1002))
	low := alpctest.User(1003)
	low.Integrity = security.IntegrityLow()
	lowly := c.Attach(t, low)
	// As the core makes it for a process that left its session: the uid's SID, and nothing else.
	detached := c.Attach(t, &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: security.UnixUser(4711)}, PrimaryGroup: security.UnixUser(4711),
		Integrity: security.IntegrityLow(), MandatoryPolicy: security.PolicyNoWriteUp, Source: security.TokenSource{Name: "detached"},
	})
	all := dialRefusals(t, ctx, server, user, lowly, detached)
	all = append(all, nameRefusals(t, ctx, server, other, detached)...)
	all = append(all, privilegeRefusals(user, other)...)
	all = append(all, tokenRefusals(ctx, t, server, user, detached)...)
	all = append(all, callRefusals(t, ctx, server, user, lowly)...)
	require.GreaterOrEqual(t, len(all), 100)
	decisions := map[uint64]bool{}
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			err := r.try(ctx)
			require.Equal(t, r.status, ntstatus.Of(err), "%v", err)
			require.ErrorIs(t, err, r.status)
			var denial *ntstatus.Denial
			require.ErrorAs(t, err, &denial)
			require.Equal(t, r.object, denial.Object)
			require.True(t, strings.HasPrefix(denial.Right, r.right), denial.Right)
			require.NotZero(t, denial.Decision)
			require.False(t, decisions[denial.Decision], "a number of its own")
			decisions[denial.Decision] = true
			require.Contains(t, err.Error(), fmt.Sprintf("sallyport explain %d", denial.Decision), "what to do to learn why")
			require.NotEmpty(t, ntstatus.Of(err).Hint(), "what to do about it")

			full, err := admin.Explain(ctx, denial.Decision)
			require.NoError(t, err)
			require.Equal(t, r.who.Token().User.SID.String(), full.User)
			require.Equal(t, r.status, full.Status)
			require.Equal(t, []string{denial.Object, denial.Right}, []string{full.Object, full.Right})
			require.Contains(t, strings.Join(full.Trace, "\n"), r.entry)
			require.NotEmpty(t, full.Hint)

			own, err := r.who.Explain(ctx, denial.Decision)
			require.NoError(t, err)
			require.Equal(t, denial.Right, own.Right)
			if r.secret != "" {
				require.Empty(t, own.SecurityDescriptor)
				require.NotContains(t, strings.Join(own.Trace, "\n"), r.secret)
				require.Contains(t, own.Hint, "READ_CONTROL")
			} else {
				require.Equal(t, full.Trace, own.Trace)
			}
			if r.before != (alpc.Question{}) {
				r.before.Token = r.who.Token()
				verdict, err := admin.Evaluate(ctx, r.before)
				require.NoError(t, err)
				require.Equal(t, r.status, verdict.Status)
				require.Equal(t, full.Trace, verdict.Trace)
				require.Equal(t, full.SecurityDescriptor, verdict.SecurityDescriptor)
			}
			for _, stranger := range []*alpc.System{user, other} {
				if stranger != r.who {
					_, err = stranger.Explain(ctx, denial.Decision)
					require.ErrorIs(t, err, ntstatus.AccessDenied, "a refusal is nobody else's business")
				}
			}
		})
	}
}

// dialRefusals are connects that a descriptor, a label or the client itself refuses.
func dialRefusals(t *testing.T, ctx context.Context, server, user, lowly, detached *alpc.System) (all []refusal) {
	t.Helper()
	sid := user.Token().User.SID.String()
	ports := []struct {
		sddl, entry string
		readable    bool
	}{
		{"D:", "no entry", false},
		{"D:(A;;0x1;;;BA)", "no entry", false},
		{"D:(D;;0x1;;;BU)(A;;0x1;;;WD)", "(D;;CC;;;BU)", false},
		{"D:(D;;0x1;;;" + sid + ")(A;;0x1;;;WD)", sid, false},
		{"D:(D;;GA;;;AU)(A;;0x1;;;WD)", "AU)", false},
		{"D:(A;;0x20000;;;WD)", "no entry", true},
		{"D:(A;;0x20000;;;AU)(D;;0x1;;;BU)(A;;0x1;;;WD)", "BU)", true},
		{"D:(A;;0x10000;;;WD)(A;;0x40000;;;AU)", "no entry", false},
		{"D:(D;;0x1;;;WD)(A;;0x1;;;BU)", "WD)", false},
		{"D:(A;IO;0x1;;;WD)", "no entry", false},
	}
	for i, p := range ports {
		name := fmt.Sprintf(`\BaseNamedObjects\port%d`, i)
		_, err := server.Listen(ctx, name, alpc.PortAttributes{SecurityDescriptor: p.sddl, AutoAccept: true})
		require.NoError(t, err)
		for _, o := range []alpc.DialOptions{{}, {Gear: alpc.GearShared}, {Level: alpc.AnonymousLevel}} {
			r := refusal{
				name: fmt.Sprintf("dial %s %+v", p.sddl, o), who: user, status: ntstatus.AccessDenied, object: name, right: "PORT_CONNECT",
				entry: p.entry, before: alpc.Question{Name: name}, try: dials(user, name, o),
			}
			if !p.readable {
				r.secret = p.entry
			}
			all = append(all, r)
		}
	}
	const labelled, anybody = `\BaseNamedObjects\labelled`, `\BaseNamedObjects\anybody`
	for name, sddl := range map[string]string{labelled: "D:(A;;0x1;;;WD)S:(ML;;NRNWNX;;;HI)", anybody: "D:(A;;0x1;;;AU)"} {
		_, err := server.Listen(ctx, name, alpc.PortAttributes{SecurityDescriptor: sddl, AutoAccept: true})
		require.NoError(t, err)
	}
	for _, who := range []*alpc.System{user, lowly} {
		all = append(all, refusal{
			name: "dial above one's integrity " + who.Token().Integrity.String(), who: who, status: ntstatus.AccessDenied, object: labelled, right: "PORT_CONNECT",
			entry: "integrity", secret: "integrity", before: alpc.Question{Name: labelled}, try: dials(who, labelled, alpc.DialOptions{}),
		})
	}
	for name, required := range map[string]security.SID{"user": user.Token().User.SID, "service": security.ServiceSID("other"), "nobody": security.Anonymous()} {
		all = append(all, refusal{
			name: "require another server: " + name, who: user, status: ntstatus.ServerSIDMismatch, object: anybody, right: "a server that has " + required.String(),
			entry: required.String(), try: dials(user, anybody, alpc.DialOptions{RequiredServer: required}),
		})
	}
	for _, name := range []string{anybody, labelled} {
		all = append(all, refusal{
			name: "dial detached " + name, who: detached, status: ntstatus.AccessDenied, object: `\`, right: "DIRECTORY_TRAVERSE",
			entry: "no entry", secret: "no entry", before: alpc.Question{Name: `\`, Desired: core.DirectoryTraverse}, try: dials(detached, name, alpc.DialOptions{}),
		})
	}
	return all
}

func dials(who *alpc.System, name string, o alpc.DialOptions) func(context.Context) error {
	return func(ctx context.Context) error {
		p, err := who.Dial(ctx, name, o)
		if err == nil {
			p.Close()
		}
		return err
	}
}

// nameRefusals are attempts to take or remove a name that is another's.
func nameRefusals(t *testing.T, ctx context.Context, server, user, detached *alpc.System) (all []refusal) {
	t.Helper()
	const declared, held = `\RPC Control\declared`, `\BaseNamedObjects\held`
	require.NoError(t, server.Declare(ctx, declared, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)"}, security.ServiceSID("the one")))
	require.NoError(t, server.CreateDirectory(ctx, held, "D:(A;;0x1;;;AU)"))
	everybody := alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;WD)"}
	for _, dir := range []string{`\`, `\Windows`, `\Sessions`, `\BaseNamedObjects`, held} {
		name := strings.TrimSuffix(dir, `\`) + `\squatter`
		all = append(all, refusal{
			name: "listen at " + name, who: user, status: ntstatus.AccessDenied, object: dir, right: "DIRECTORY_CREATE_OBJECT", entry: "no entry",
			before: alpc.Question{Name: dir, Desired: core.DirectoryCreateObject},
			try:    func(ctx context.Context) error { _, err := user.Listen(ctx, name, everybody); return err },
		}, refusal{
			name: "declare " + name, who: user, status: ntstatus.AccessDenied, object: dir, right: "DIRECTORY_CREATE_OBJECT", entry: "no entry",
			before: alpc.Question{Name: dir, Desired: core.DirectoryCreateObject},
			try:    func(ctx context.Context) error { return user.Declare(ctx, name, everybody, user.Token().User.SID) },
		}, refusal{
			name: "make directory " + name, who: user, status: ntstatus.AccessDenied, object: dir, right: "DIRECTORY_CREATE_SUBDIRECTORY", entry: "no entry",
			before: alpc.Question{Name: dir, Desired: core.DirectoryCreateSubdirectory},
			try:    func(ctx context.Context) error { return user.CreateDirectory(ctx, name, everybody.SecurityDescriptor) },
		})
		if dir != `\` {
			all = append(all, refusal{
				name: "remove " + dir, who: user, status: ntstatus.AccessDenied, object: dir, right: "DELETE", entry: "no entry",
				before: alpc.Question{Name: dir, Desired: security.Delete},
				try:    func(ctx context.Context) error { return user.Remove(ctx, dir) },
			})
		}
	}
	for i := range all {
		if all[i].object == held {
			all[i].secret = "no entry"
		}
	}
	all = append(all, refusal{
		name: "squat a declared port", who: user, status: ntstatus.AccessDenied, object: declared, right: "to be its server", entry: security.ServiceSID("the one").String(),
		secret: security.ServiceSID("the one").String(),
		try:    func(ctx context.Context) error { _, err := user.Listen(ctx, declared, everybody); return err },
	}, refusal{
		name: "listen detached", who: detached, status: ntstatus.AccessDenied, object: `\`, right: "DIRECTORY_TRAVERSE", entry: "no entry", secret: "no entry",
		before: alpc.Question{Name: `\`, Desired: core.DirectoryTraverse},
		try:    func(ctx context.Context) error { _, err := detached.Listen(ctx, declared, everybody); return err },
	})
	return all
}

// privilegeRefusals need what only servers of the set hold.
func privilegeRefusals(user, other *alpc.System) (all []refusal) {
	stdin := os.Stdin
	for privilege, tries := range map[security.Privilege]map[string]func(context.Context) error{
		security.SeCreateToken: {"create a token": func(ctx context.Context) error { _, err := user.CreateToken(ctx, alpctest.Admin(1)); return err }},
		security.SeCreateSymbolicLink: {"make a link": func(ctx context.Context) error {
			return user.CreateSymbolicLink(ctx, `\link`, `\Windows`, "D:(A;;GA;;;WD)")
		}},
		security.SeAssignPrimaryToken: {
			"register as a spawner": user.RegisterSpawner,
			"assign a token":        func(ctx context.Context) error { return user.AssignToken(ctx, stdin, user.Token().TokenID) },
			"disown a process":      func(ctx context.Context) error { return user.Disown(ctx, stdin) },
		},
		security.SeTcb: {
			"make a logon session": func(ctx context.Context) error { _, err := user.NewLogonSession(ctx); return err },
			"end a logon session":  func(ctx context.Context) error { return user.EndLogonSession(ctx, 999) },
			"give a token away":    func(ctx context.Context) error { return user.GrantToken(ctx, user.Token().TokenID, other.ID()) },
			"list all tokens":      func(ctx context.Context) error { _, err := user.Tokens(ctx); return err },
			"change the session of a token": func(ctx context.Context) error {
				session := uint32(7)
				_, err := user.DuplicateToken(ctx, user.Token().TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary, Session: &session})
				return err
			},
		},
	} {
		for name, try := range tries {
			all = append(all, refusal{
				name: "unprivileged: " + name, who: user, status: ntstatus.PrivilegeNotHeld, object: "the caller's token", right: privilege.String(),
				entry: privilege.String(), try: try,
			})
		}
	}
	return all
}

// tokenRefusals are attempts on tokens of others.
func tokenRefusals(ctx context.Context, t *testing.T, server, user, detached *alpc.System) (all []refusal) {
	t.Helper()
	made, err := server.CreateToken(ctx, alpctest.Admin(600))
	require.NoError(t, err)
	for _, who := range []*alpc.System{user, detached} {
		for _, target := range []*security.Token{server.Token(), made} {
			object := fmt.Sprintf("token %#x", uint64(target.TokenID))
			all = append(all, refusal{
				name: fmt.Sprintf("%s queries %s", who.Token().User.SID, object), who: who, status: ntstatus.AccessDenied, object: object, right: "TOKEN_QUERY",
				entry: "no entry", secret: "no entry",
				try: func(ctx context.Context) error { _, err := who.QueryToken(ctx, target.TokenID); return err },
			}, refusal{
				name: fmt.Sprintf("%s duplicates %s", who.Token().User.SID, object), who: who, status: ntstatus.AccessDenied, object: object, right: "TOKEN_DUPLICATE",
				entry: "integrity", secret: "missing",
				try: func(ctx context.Context) error {
					_, err := who.DuplicateToken(ctx, target.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary})
					return err
				},
			})
		}
	}
	return all
}

// callRefusals are calls of methods whose right the caller has not: on the interface, on an object, and on one that is not there.
func callRefusals(t *testing.T, ctx context.Context, system, user, lowly *alpc.System) (all []refusal) {
	t.Helper()
	const port, tour, manager = `\BaseNamedObjects\services`, "sallyport.tour.Tour", "sallyport.scm.ServiceControlManager"
	s := rpc.NewServer(rpc.ServerOptions{System: system})
	tourpb.RegisterTourServer(s, echo{})
	s.Secure(tour, rpc.Interface{SDDL: "O:SYG:SYD:(D;;0x2;;;BU)(A;;0x3;;;AU)"})
	scmpb.RegisterServiceControlManagerServer(s, scmpb.UnimplementedServiceControlManagerServer{})
	objects := map[string]string{
		"forbidden": "O:SYG:SYD:(A;;GA;;;BA)", "readable": "O:SYG:SYD:(A;;0x20000;;;AU)(A;;GA;;;BA)",
		"high": "O:SYG:SYD:(A;;0xF03FF;;;AU)S:(ML;;NRNWNX;;;HI)",
	}
	s.Secure(manager, rpc.Interface{SDDL: "O:SYG:SYD:(A;;GA;;;BA)", Resolve: func(_ context.Context, name string) (*security.Descriptor, error) {
		if sddl, ok := objects[name]; ok {
			return security.ParseSDDL(sddl)
		}
		return nil, ntstatus.New("resolve", name, ntstatus.ServiceDoesNotExist)
	}})
	l, err := system.Listen(ctx, port, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)", AutoAccept: true})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
	for _, who := range []*alpc.System{user, lowly} {
		conn, err := rpc.Dial(ctx, who, port)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		call := scmpb.NewServiceControlManagerClient(conn)
		above := map[string]bool{"TOUR_RESET": true, "SC_MANAGER_CREATE_SERVICE": true, "SERVICE_STOP": true, "SERVICE_READ_LOG": true}
		add := func(name, object, right, entry string, readable bool, try func(context.Context) error) {
			if who == lowly && above[right] && object != "not-there" {
				entry = "integrity" // these write, and the default label is above it
			}
			r := refusal{name: fmt.Sprintf("%s: %s on %s", who.Token().User.SID, name, object), who: who, status: ntstatus.AccessDenied, object: object, right: right, entry: entry, try: try}
			if !readable {
				r.secret = entry
			}
			all = append(all, r)
		}
		add("Reset", tour, "TOUR_RESET", "BU)", false, func(ctx context.Context) error {
			_, err := tourpb.NewTourClient(conn).Reset(ctx, &tourpb.ResetRequest{})
			return err
		})
		add("CreateService", manager, "SC_MANAGER_CREATE_SERVICE", "no entry", false, func(ctx context.Context) error {
			_, err := call.CreateService(ctx, &scmpb.CreateServiceRequest{})
			return err
		})
		add("ListServices", manager, "SC_MANAGER_ENUMERATE_SERVICE", "no entry", false, func(ctx context.Context) error {
			_, err := call.ListServices(ctx, &scmpb.ListServicesRequest{})
			return err
		})
		add("WatchServices", manager, "SC_MANAGER_ENUMERATE_SERVICE", "no entry", false, func(ctx context.Context) error {
			stream, err := call.WatchServices(ctx, &scmpb.WatchServicesRequest{})
			return ended(stream, err)
		})
		for object, entry := range map[string]string{"forbidden": "no entry", "readable": "no entry", "high": "integrity", "not-there": "no such object"} {
			readable := object == "readable"
			add("StartService", object, "SERVICE_START", entry, readable, func(ctx context.Context) error {
				_, err := call.StartService(ctx, &scmpb.StartServiceRequest{Name: object})
				return err
			})
			add("StopService", object, "SERVICE_STOP", entry, readable, func(ctx context.Context) error {
				_, err := call.StopService(ctx, &scmpb.StopServiceRequest{Name: object})
				return err
			})
			add("QueryServiceConfig", object, "SERVICE_QUERY_CONFIG", entry, readable, func(ctx context.Context) error {
				_, err := call.QueryServiceConfig(ctx, &scmpb.ServiceRequest{Name: object})
				return err
			})
			add("ReadServiceLog", object, "SERVICE_READ_LOG", entry, readable, func(ctx context.Context) error {
				stream, err := call.ReadServiceLog(ctx, &scmpb.ReadServiceLogRequest{Name: object})
				return ended(stream, err)
			})
		}
	}
	return all
}

// ended is how a stream of a refused call ends.
func ended[T any](stream grpc.ServerStreamingClient[T], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}
