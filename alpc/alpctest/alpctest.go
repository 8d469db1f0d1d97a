// Package alpctest starts a core inside a test, in milliseconds and unprivileged, and takes everything down again. Attached
// parts are real attachments over real sockets; what differs from a machine's own core is that the test states who they are.
//
// It is open to users' own servers: Conformance, the hostile peer and the leak check take any pair of ports.
package alpctest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/core"
	"sallyport/security"
)

// Core is a core that lives as long as a test.
type Core struct {
	*core.Core
	t testing.TB
}

// Option changes the core that Start makes.
type Option func(*core.Options)

// WithLimits sets the limits of a uid.
func WithLimits(l core.Limits) Option { return func(o *core.Options) { o.Limits = l } }

// WithLogger sends the core's log somewhere; the default is silence.
func WithLogger(l hclog.Logger) Option { return func(o *core.Options) { o.Logger = l } }

// AsProcess makes the test program itself the core's process: its children wait to be assigned tokens.
func AsProcess() Option { return func(o *core.Options) { o.Process = true } }

// Start starts a core with the standard directories and a socket in a directory of the test's own.
func Start(t testing.TB, options ...Option) *Core {
	t.Helper()
	dir, err := os.MkdirTemp("", "alpctest")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) // tests attach as other users too
	o := core.Options{Path: filepath.Join(dir, "core.sock")}
	for _, option := range options {
		option(&o)
	}
	started, err := core.Start(o)
	require.NoError(t, err)
	c := &Core{Core: started, t: t}
	t.Cleanup(func() { started.Close() })
	system := c.Attach(t, core.SystemToken())
	for name, sddl := range Directories() {
		require.NoError(t, system.CreateDirectory(Context(t), name, sddl))
	}
	return c
}

// Directories are NT's standard directories with the descriptors that the session manager gives them.
func Directories() map[string]string {
	const everybodyLooks = "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;GRGX;;;WD)"
	return map[string]string{
		`\RPC Control`: "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;GRGX;;;AU)(A;;0x4;;;AU)(A;;GRGX;;;WD)",
		`\Windows`:     everybodyLooks, `\Sessions`: everybodyLooks, `\BaseNamedObjects`: everybodyLooks,
	}
}

// Attach attaches a part of the test under a token; nil is LocalSystem. It is detached when the test ends.
func (c *Core) Attach(t testing.TB, token *security.Token) *alpc.System {
	t.Helper()
	if token == nil {
		token = core.SystemToken()
	}
	control, err := c.Core.Attach(token, t.Name())
	require.NoError(t, err)
	system, err := alpc.Attach(Context(t), alpc.Options{Control: control})
	require.NoError(t, err)
	t.Cleanup(func() { system.Close() })
	return system
}

// User makes the token of an ordinary user: SID S-1-5-21-1-2-3-rid, member of Users, medium integrity.
func User(rid uint32, more ...security.SID) *security.Token {
	domain, err := security.NewSID(5, 21, 1, 2, 3)
	if err != nil {
		panic(err) // four constants make a SID
	}
	user := domain.WithRID(rid)
	t := &security.Token{
		Type: security.TokenPrimary, User: security.Group{SID: user}, Owner: user, PrimaryGroup: security.Users(),
		Integrity: security.IntegrityMedium(), MandatoryPolicy: security.PolicyDefault, Source: security.TokenSource{Name: "test"},
		Privileges: []security.TokenPrivilege{{Privilege: security.SeChangeNotify, Attributes: security.PrivilegeEnabled | security.PrivilegeEnabledByDefault}},
	}
	for _, sid := range append([]security.SID{security.Everyone(), security.AuthenticatedUsers(), security.Users()}, more...) {
		t.Groups = append(t.Groups, security.Group{SID: sid, Attributes: security.GroupDefault})
	}
	return t
}

// Admin makes the token of an administrator.
func Admin(rid uint32) *security.Token {
	t := User(rid, security.Administrators())
	t.Integrity = security.IntegrityHigh()
	return t
}

// Context is a context that ends well before the test's own deadline would.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
