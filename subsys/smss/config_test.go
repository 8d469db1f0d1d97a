package smss_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/smss"
)

// load writes a configuration and reads it back.
func load(t *testing.T, text string, builtin ...string) (*smss.Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sallyport.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	c, err := smss.Load(path, builtin...)
	return c, path, err
}

func TestBuiltInConfigurationBootsTheSet(t *testing.T) {
	c, err := smss.Load(filepath.Join(t.TempDir(), "not-there.toml"))
	require.NoError(t, err)
	for _, name := range []string{"lsass", "scm", "csrss"} {
		require.Contains(t, c.Servers, name)
		require.True(t, c.Servers[name].Critical, name)
		require.Equal(t, security.LocalSystem(), c.Servers[name].User.SID)
		require.Equal(t, uint16(5), c.Servers[name].Restarts)
	}
	require.Contains(t, c.Servers["lsass"].Ports, `\LsaAuthenticationPort`)
	require.Contains(t, c.Servers["scm"].Ports, `\RPC Control\ntsvcs`)
	require.Contains(t, c.Servers["csrss"].Ports, `\Windows\ApiPort`)
	require.Contains(t, c.SessionServers["csrss"].Ports, `\Sessions\{session}\Windows\ApiPort`)
	require.Contains(t, c.SessionServers, "winlogon")
	require.Contains(t, c.Servers["lsass"].Privileges, smss.Privilege(security.SeCreateToken))
	require.NotContains(t, c.Servers["csrss"].Privileges, smss.Privilege(security.SeCreateToken))
}

func TestFileChangesSingleKeys(t *testing.T) {
	c, path, err := load(t, `
uid_base = 0
[server.lsass]
restarts = 1000
[server.hello]
command = ["/usr/bin/hello", "-v"]
start = "demand"
[server.hello.port.'\RPC Control\hello']
descriptor = "D:(A;;0x1;;;AU)"
`)
	require.NoError(t, err)
	require.Zero(t, c.UIDBase)
	require.Equal(t, uint16(1000), c.Servers["lsass"].Restarts)
	require.Equal(t, 10, c.Servers["lsass"].Order, "what the file does not say stays")
	require.True(t, c.Servers["lsass"].Critical)
	require.Contains(t, c.Servers["lsass"].Ports, `\LsaAuthenticationPort`)
	hello := c.Servers["hello"]
	require.Equal(t, security.LocalService(), hello.User.SID)
	require.False(t, hello.Critical)
	require.Equal(t, smss.Duration(30*time.Second), hello.ReadyTimeout)

	drop := filepath.Join(filepath.Dir(path), "sallyport.d")
	require.NoError(t, os.Mkdir(drop, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(drop, "20.toml"), []byte("[server.lsass]\nrestarts = 7\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(drop, "10.toml"), []byte("[server.lsass]\nrestarts = 6\nwithin = \"9s\"\n"), 0o600))
	c, err = smss.Load(path)
	require.NoError(t, err)
	require.Equal(t, uint16(7), c.Servers["lsass"].Restarts)
	require.Equal(t, smss.Duration(9*time.Second), c.Servers["lsass"].Within)
	require.Contains(t, c.Servers, "hello")
}

func TestConfigurationErrorsSayWhereAndWhatToDo(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"unknown key": {"[server.lsass]\nrestarts = 3\nrestats = 3\n",
			`:3:1: unknown key "server.lsass.restats": the keys here are args, backoff, backoff_max, command, critical, disabled, env, order, port, privileges, ready, ready_timeout, restart, restarts, start, stop_timeout, terminal, uid, user, within`},
		"unknown table":      {"[servers.lsass]\n", `:1:2: unknown key "servers.lsass": its table is not known either`},
		"not TOML":           {"[server.lsass\n", ":1:"},
		"key twice":          {"uid_base = 0\nuid_base = 0\n", ":2:1: "},
		"wrong type":         {"uid_base = \"root\"\n", ":1:12: "},
		"too many":           {"[server.lsass]\nrestarts = 70000\n", ":2:12: "},
		"negative":           {"[server.lsass]\nrestarts = -1\n", ":2:12: "},
		"no duration":        {"[server.lsass]\nwithin = \"soon\"\n", `:2:10: "soon" is not a duration: write "500ms", "10s" or "1m30s"`},
		"negative duration":  {"[server.lsass]\nwithin = \"-1s\"\n", `:2:10: "-1s" is not a duration`},
		"no time at all":     {"[server.lsass]\nwithin = \"0s\"\n", ":2:1: within must be more than nothing"},
		"restart":            {"[server.lsass]\nrestart = \"sometimes\"\n", `:2:11: "sometimes" is not known here: write "always" or "never" or "on-failure"`},
		"start":              {"[server.lsass]\nstart = \"later\"\n", `:2:9: "later" is not known here: write "boot" or "demand"`},
		"privilege":          {"[server.lsass]\nprivileges = [\"SeTcbPrivilege\",\n  \"SeFly\"]\n", `:3:3: "SeFly" is not a privilege: write its full name, as "SeTcbPrivilege"`},
		"user":               {"[server.lsass]\nuser = \"root\"\n", `:2:8: "root" is not a user: write LocalSystem, LocalService, NetworkService or a SID (S-1-…)`},
		"descriptor":         {"[server.lsass.port.'\\x']\ndescriptor = \"D:(A;;0x1;;;\"\n", `:2:14: "D:(A;;0x1;;;" is not a descriptor: `},
		"no DACL":            {"[server.lsass.port.'\\x']\ndescriptor = \"O:SY\"\n", `:2:14: "O:SY" has no DACL, so everybody could do everything`},
		"no descriptor":      {"\n[server.lsass.port.'\\x']\n", `:2:2: \x has no descriptor: add descriptor = "D:(A;;GA;;;SY)…"`},
		"port name":          {"[server.lsass.port.'x\\']\ndescriptor = \"D:(A;;0x1;;;AU)\"\n", `:1:2: "x\\" is not an object name`},
		"port taken":         {"[server.csrss.port.'\\LSAauthenticationPort']\ndescriptor = \"D:(A;;0x1;;;AU)\"\n", `port \L`},
		"port of a session":  {"[server.csrss.port.'\\Sessions\\{session}\\x']\ndescriptor = \"D:(A;;0x1;;;AU)\"\n", `belongs to session 0`},
		"port of no session": {"[session_server.csrss.port.'\\x']\ndescriptor = \"D:(A;;0x1;;;AU)\"\n", `:1:2: \x would be the same in every session`},
		"back-off":           {"[server.lsass]\nbackoff = \"1m\"\n", ":1:2: backoff_max 5s is less than backoff 1m0s"},
		"relative command":   {"[server.x]\ncommand = [\"bin/x\"]\n", `:2:1: command "bin/x" is not an absolute path`},
		"no such server":     {"[server.x]\norder = 1\n", `:1:2: the program has no server "x" (it has lsass, scm, csrss, winlogon): add command = ["/path/of/it"]`},
		"demand for nothing": {"[server.x]\ncommand = [\"/x\"]\nstart = \"demand\"\n", `:3:1: start = "demand" needs a port whose first client starts the server: add [server.x.port.'\…']`},
		"server name":        {"[server.\"a b\"]\ncommand = [\"/x\"]\n", `:1:2: "a b" can't name a server`},
		"uid":                {"uid_base = 3\n", ":1:1: uid_base 3 is in the range of the system's own accounts"},
	} {
		t.Run(name, func(t *testing.T) {
			_, path, err := load(t, test.text, "lsass", "scm", "csrss", "winlogon")
			require.ErrorIs(t, err, ntstatus.InvalidParameter)
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, err, path)
			var e *smss.ConfigError
			require.ErrorAs(t, err, &e)
		})
	}
}

func TestAllErrorsOfAFileAreReportedInItsOrder(t *testing.T) {
	_, path, err := load(t, "uid_base = 3\n[server.a]\ncommand = [\"x\"]\nwithin = \"0s\"\n")
	require.EqualError(t, err, "smss.Load "+path+": a parameter is not valid: the configuration has errors:\n"+
		path+":1:1: uid_base 3 is in the range of the system's own accounts: choose one from 1000 to 2147483648, or 0 to run all servers as root\n"+
		path+":3:1: command \"x\" is not an absolute path\n"+
		path+":4:1: within must be more than nothing")
}

func FuzzLoad(f *testing.F) {
	f.Add("[server.lsass]\nrestarts = 1\n")
	f.Add("[server.x.port.'\\a']\ndescriptor = \"D:(A;;GA;;;SY)\"\n")
	f.Add("[[server]]\n")
	f.Add("server = 3\n")
	f.Add("[server]\nlsass = {}\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "c.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		c, err := smss.Load(path)
		if err == nil {
			require.NotNil(t, c.Servers["lsass"])
		}
	})
}
