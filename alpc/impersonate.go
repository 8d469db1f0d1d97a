package alpc

import (
	"sallyport/internal/impersonate"
	"sallyport/ntstatus"
	"sallyport/security"
)

// noGroup is the kernel's overflow gid: the group of a client whose token has none.
const noGroup = 65534

// Impersonate runs fn as the client in the kernel's eyes: on a thread of its own whose file-system uid, gid and groups are
// those of the client's token (its enabled S-1-22-1-uid and S-1-22-2-gid SIDs) and which has no capability, so that what fn
// opens is checked by the kernel as if the client did. It returns fn's error; goroutines that fn starts are the server itself.
//
// Statuses before fn runs: BadImpersonationLevel where the client granted less than Impersonation; NoneMapped where its token
// stands for no uid, or only for one that is deny-only or outside its restricting SIDs; PrivilegeNotHeld where this process may not
// (it takes CAP_SETUID and CAP_SETGID, as root has).
func (c *Client) Impersonate(fn func() error) error {
	const op = "alpc.Impersonate"
	if c.Token == nil || c.Level < security.LevelImpersonation {
		return ntstatus.Errorf(op, c.name(), ntstatus.BadImpersonationLevel, "the client granted %s", c.Level)
	}
	id, ok := unixIdentity(c.Token)
	if !ok {
		return ntstatus.Errorf(op, c.name(), ntstatus.NoneMapped, "its token stands for no uid")
	}
	return impersonate.Run(id, fn)
}

// unixIdentity is what of a token the kernel understands. A restriction can't be told to it, so only SIDs that pass count.
func unixIdentity(t *security.Token) (id impersonate.Identity, ok bool) {
	id.GID = noGroup
	primary := false
	for _, g := range append([]security.Group{t.User, {SID: t.PrimaryGroup}}, t.Groups...) {
		if !t.HasSID(g.SID) {
			continue
		}
		if uid, is := g.SID.UnixUID(); is && !ok {
			id.UID, ok = uid, true
		}
		if gid, is := g.SID.UnixGID(); is {
			if !primary {
				id.GID, primary = gid, true
			}
			id.Groups = append(id.Groups, gid)
		}
	}
	id.Capabilities = id.UID == 0 && t.IsAdmin()
	return id, ok
}
