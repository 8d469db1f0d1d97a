package smss

import (
	"os"

	"sallyport/internal/spawn"
	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/smss/sm"
)

// Well-known logon sessions of the system's own accounts (NT's LUIDs).
const (
	systemLogon         security.LUID = 0x3e7
	localServiceLogon   security.LUID = 0x3e5
	networkServiceLogon security.LUID = 0x3e4
)

// ServerToken is the token under which a program that embeds the core attaches a server of session 0 that it runs itself.
func ServerToken(name string, c *Config) (*security.Token, error) {
	server := c.Servers[name]
	if server == nil || server.Disabled {
		return nil, ntstatus.Errorf("smss.ServerToken", name, ntstatus.NotFound, "the configuration has no such server")
	}
	return serverToken(name, server, 0, uint32(os.Geteuid())), nil
}

// serverToken is what a server gets: its user, its own SID, which proves to the core that a declared port is its, and no more
// privileges than it is configured for.
func serverToken(name string, c *ServerConfig, session, uid uint32) *security.Token {
	t := &security.Token{
		AuthenticationID: systemLogon, Type: security.TokenPrimary, User: security.Group{SID: c.User.SID}, PrimaryGroup: c.User.SID,
		SessionID: session, Integrity: security.IntegritySystem(), MandatoryPolicy: security.PolicyDefault, Source: security.TokenSource{Name: "smss"},
	}
	add := func(attributes security.GroupAttributes, sids ...security.SID) {
		for _, sid := range sids {
			t.Groups = append(t.Groups, security.Group{SID: sid, Attributes: attributes})
		}
	}
	switch c.User.SID {
	case security.LocalSystem():
		add(security.GroupDefault|security.GroupOwner, security.Administrators())
	case security.NetworkService():
		t.AuthenticationID = networkServiceLogon
	default:
		t.AuthenticationID = localServiceLogon
	}
	add(security.GroupDefault|security.GroupOwner, sm.ServerSID(name))
	add(security.GroupDefault, security.Everyone(), security.AuthenticatedUsers(), security.Service(), security.Local(),
		security.UnixUser(uid), security.UnixGroup(uid))
	for _, p := range c.Privileges {
		t.Privileges = append(t.Privileges, security.TokenPrivilege{
			Privilege: security.Privilege(p), Attributes: security.PrivilegeEnabledByDefault | security.PrivilegeEnabled})
	}
	return t
}

// reduced is what a server's child gets when the server names no token: the server's own without the server's SID and
// without privileges.
func reduced(t *security.Token, server string, session uint32) *security.Token {
	r := t.Clone()
	r.Type, r.Level, r.SessionID = security.TokenPrimary, 0, session
	r.Privileges = nil
	for _, p := range t.Privileges {
		if p.Privilege == security.SeChangeNotify {
			r.Privileges = append(r.Privileges, p)
		}
	}
	r.Groups = nil
	for _, g := range t.Groups {
		if g.SID != sm.ServerSID(server) {
			r.Groups = append(r.Groups, g)
		}
	}
	return r
}

// unixUser is the kernel's identity for a token: its S-1-22-1-uid, its S-1-22-2-gid SIDs, the primary group first.
func unixUser(t *security.Token) (*spawn.User, bool) {
	u := &spawn.User{}
	found, hasGID := false, false
	if uid, ok := t.User.SID.UnixUID(); ok && t.HasSID(t.User.SID) {
		u.UID, found = uid, true
	}
	if gid, ok := t.PrimaryGroup.UnixGID(); ok && t.HasSID(t.PrimaryGroup) {
		u.GID, hasGID = gid, true
	}
	for _, g := range t.Groups {
		if !t.HasSID(g.SID) {
			continue
		}
		if uid, ok := g.SID.UnixUID(); ok && !found {
			u.UID, found = uid, true
		}
		if gid, ok := g.SID.UnixGID(); ok {
			if !hasGID {
				u.GID, hasGID = gid, true
			}
			u.Groups = append(u.Groups, gid)
		}
	}
	if !hasGID {
		u.GID = u.UID
	}
	return u, found
}

// childUser decides as whom a child runs. Only root can switch; without it a token of another uid can't be honoured by the
// kernel, and the child runs as this instance's user, as all of it does.
func (m *manager) childUser(op, name string, t *security.Token) (*spawn.User, error) {
	if !m.root {
		return nil, nil
	}
	u, ok := unixUser(t)
	if !ok {
		return nil, ntstatus.Errorf(op, name, ntstatus.AccessDenied, "the token of %s has no unix user (S-1-22-1-uid), and without one it would run as root", t.User.SID)
	}
	return u, nil
}
