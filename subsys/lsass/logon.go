package lsass

import (
	"context"
	"time"
	"unicode/utf8"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/principal"
)

const (
	maxOrigin      = 127 // NT's LogonProcessName
	maxLocalGroups = 64

	// coreTimeout bounds what lsass asks of the core after it has begun to make a logon session: undoing it must not depend on
	// the caller's patience.
	coreTimeout = 10 * time.Second
)

// LogonUser is NT's LsaLogonUser: (1) who asks, and for what; (2) who they say they are; (3) the password; (4) the session and
// its token; (5) the token to the caller.
func (s *service) LogonUser(ctx context.Context, req *lsapb.LogonUserRequest) (*lsapb.LogonUserResponse, error) {
	const op = "lsa.LogonUser"
	defer clear(req.Password)
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	logon, err := s.request(op, caller, req)
	if err != nil {
		return nil, err
	}
	response := &lsapb.LogonUserResponse{Profile: &lsapb.Profile{}}
	if e, ok := builtin(req); ok {
		err = s.serviceLogon(op, caller, e, logon, response)
	} else {
		err = s.passwordLogon(ctx, op, caller, req, logon, response)
	}
	if err != nil {
		return nil, err
	}
	token, err := s.begin(ctx, caller, *logon)
	if err != nil {
		return nil, ntstatus.Wrap(op, response.User, err)
	}
	if s.sessions.note(token.AuthenticationID, facts{time: time.Now().UnixNano(), origin: req.Origin, logonType: req.LogonType}) {
		s.sessions.list(ctx)
	}
	s.audit.logon(caller, response.User, req, token)
	response.Token, response.LogonId = uint64(token.TokenID), uint64(token.AuthenticationID)
	response.LogonSid, response.UserSid = security.LogonSID(token.AuthenticationID).String(), token.User.SID.String()
	response.Profile.UnixUid, response.Profile.UnixGid = logon.UID, logon.GID
	return response, nil
}

// callerOf is the caller with a token: at level Anonymous nobody can be told anything.
func callerOf(ctx context.Context, op string) (*alpc.Client, error) {
	caller, ok := rpc.Caller(ctx)
	if !ok || caller.Token == nil {
		return nil, ntstatus.New(op, "", ntstatus.AccessDenied)
	}
	return caller, nil
}

// request checks everything in a request that says nothing about who wants to log on.
func (s *service) request(op string, caller *alpc.Client, req *lsapb.LogonUserRequest) (*principal.Logon, error) {
	bad := func(format string, args ...any) (*principal.Logon, error) {
		return nil, ntstatus.Errorf(op, req.Name, ntstatus.InvalidParameter, format, args...)
	}
	if _, ok := principal.TypeSID(req.LogonType); !ok {
		return bad("logon type %d: want interactive (2), network (3), batch (4), service (5) or unlock (7)", req.LogonType)
	}
	if len(req.Origin) > maxOrigin || !utf8.ValidString(req.Origin) || len(req.Source) > security.MaxTokenSourceName {
		return bad("the origin has at most %d bytes, the source %d", maxOrigin, security.MaxTokenSourceName)
	}
	l := &principal.Logon{
		Type: req.LogonType, Origin: caller.Token.AuthenticationID, Session: caller.Token.SessionID, Source: security.TokenSource{Name: req.Source},
	}
	if l.Source.Name == "" {
		l.Source.Name = "lsass"
	}
	trusted := caller.Token.Has(security.SeTcb)
	if req.Session != nil && req.GetSession() != l.Session {
		if !trusted {
			return nil, ntstatus.Errorf(op, req.Name, ntstatus.PrivilegeNotHeld, "a logon into session %d from session %d needs %s", req.GetSession(), l.Session, security.SeTcb)
		}
		l.Session = req.GetSession()
	}
	if len(req.LocalGroups) > 0 && !trusted {
		return nil, ntstatus.Errorf(op, req.Name, ntstatus.PrivilegeNotHeld, "adding groups to a token needs %s", security.SeTcb)
	}
	if len(req.LocalGroups) > maxLocalGroups {
		return bad("%d local groups of at most %d", len(req.LocalGroups), maxLocalGroups)
	}
	for _, g := range req.LocalGroups {
		sid, err := security.ParseSID(g.Sid)
		if err != nil {
			return nil, ntstatus.Wrap(op, req.Name, err)
		}
		attributes := security.GroupAttributes(g.Attributes)
		if attributes == 0 {
			attributes = security.GroupDefault
		}
		if attributes&^(security.GroupDefault|security.GroupOwner|security.GroupUseForDenyOnly) != 0 {
			return bad("attributes %#x of local group %s", g.Attributes, sid)
		}
		l.LocalGroups = append(l.LocalGroups, security.Group{SID: sid, Attributes: attributes})
	}
	return l, nil
}

// builtin finds the identity without a password that a service logon names.
func builtin(req *lsapb.LogonUserRequest) (principal.Entry, bool) {
	if req.LogonType != lsapb.LogonType_LOGON_TYPE_SERVICE {
		return principal.Entry{}, false
	}
	domain, name := principal.Split(req.Name)
	if domain == "." {
		domain = principal.NTAuthority
	}
	e, ok := principal.ByName(domain, name)
	return e, ok && principal.IsService(e.SID)
}

// serviceLogon is for callers that the system trusts to be anybody: the service controller.
func (s *service) serviceLogon(op string, caller *alpc.Client, who principal.Entry, l *principal.Logon, response *lsapb.LogonUserResponse) error {
	if !caller.Token.Has(security.SeTcb) {
		return ntstatus.Errorf(op, who.String(), ntstatus.PrivilegeNotHeld, "a logon without a password needs %s", security.SeTcb)
	}
	l.User, l.Primary, response.User = who.SID, who.SID, who.String()
	ids := s.accounts.IDs()
	switch who.SID {
	case security.LocalSystem():
		if ids.Base == 0 {
			l.UID, l.GID = ids.Of(0)
		} // else it is root
	case security.LocalService(), security.NetworkService():
		l.UID, l.GID = ids.Of(who.SID.RID())
	default:
		id, err := s.accounts.ServiceID(who.Name)
		if err != nil {
			return err
		}
		l.UID, l.GID = ids.Of(id)
	}
	return nil
}

func (s *service) passwordLogon(ctx context.Context, op string, caller *alpc.Client, req *lsapb.LogonUserRequest, l *principal.Logon, response *lsapb.LogonUserResponse) error {
	a, err := s.accounts.Authenticate(ctx, line(caller), s.local(req.Name), req.Password, int32(req.LogonType))
	if err != nil {
		s.audit.failure("4625", "logon failed", caller, a, err, "type", req.LogonType, "origin", req.Origin)
		switch status := ntstatus.Of(err); status {
		case ntstatus.NoSuchUser, ntstatus.WrongPassword:
			return ntstatus.New(op, req.Name, ntstatus.LogonFailure)
		case ntstatus.AccountLockedOut, ntstatus.AccountDisabled, ntstatus.AccountExpired, ntstatus.PasswordMustChange, ntstatus.LogonTypeNotGranted:
			return ntstatus.New(op, req.Name, status)
		}
		return ntstatus.Wrap(op, req.Name, err)
	}
	domain, domainName := s.accounts.Domain()
	l.User, l.Primary, l.Expires = domain.WithRID(a.RID), domain.WithRID(ridNone), a.Expires
	for _, rid := range a.Aliases {
		l.Aliases = append(l.Aliases, security.Builtin().WithRID(rid))
	}
	l.UID, l.GID = s.accounts.UnixIDs(a)
	response.User = domainName + `\` + a.Name
	response.Profile = &lsapb.Profile{Home: a.Home, Shell: a.Shell, FullName: a.FullName}
	return nil
}

// line is the line in which a caller waits for its turn to hash: everybody's own, however many attachments they have.
func line(caller *alpc.Client) string { return caller.Token.User.SID.String() }

// begin makes the logon session and its token, and gives the token to the caller. It leaves nothing behind when it fails, or
// when the caller is gone by then.
func (s *service) begin(ctx context.Context, caller *alpc.Client, l principal.Logon) (*security.Token, error) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), coreTimeout)
	defer cancel()
	var err error
	if l.ID, err = s.system.NewLogonSession(work); err != nil {
		return nil, err
	}
	token, err := s.hand(work, caller, l)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if ended := s.system.EndLogonSession(work, l.ID); ended != nil {
			s.audit.log.Error("a failed logon may have left its session", "logon_id", l.ID, "error", ended)
		}
		return nil, err
	}
	return token, nil
}

func (s *service) hand(ctx context.Context, caller *alpc.Client, l principal.Logon) (*security.Token, error) {
	assembled, err := principal.Token(l)
	if err != nil {
		return nil, err
	}
	token, err := s.system.CreateToken(ctx, assembled)
	if err != nil {
		return nil, err
	}
	err = s.system.GrantToken(ctx, token.TokenID, caller.Attachment)
	// The caller's is the only hold from here on: the session ends with what the caller does with it.
	if closed := s.system.CloseToken(ctx, token.TokenID); err == nil {
		err = closed
	}
	return token, err
}

// LogOff ends a session that this authority made.
func (s *service) LogOff(ctx context.Context, req *lsapb.LogOffRequest) (*lsapb.LogOffResponse, error) {
	const op = "lsa.LogOff"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	session, ok, err := s.sessions.find(ctx, req.LogonSid)
	if err != nil {
		return nil, ntstatus.Wrap(op, req.LogonSid, err)
	}
	if !ok {
		return nil, ntstatus.New(op, req.LogonSid, ntstatus.NoSuchLogonSession)
	}
	if err := s.system.EndLogonSession(ctx, session.id); err != nil {
		return nil, ntstatus.Wrap(op, req.LogonSid, err)
	}
	s.audit.record("4634", "logged off", caller, "user", s.nameOf(session.user), "logon_id", session.id)
	return &lsapb.LogOffResponse{}, nil
}

// ListLogonSessions shows administrators all, others their own.
func (s *service) ListLogonSessions(ctx context.Context, _ *lsapb.ListLogonSessionsRequest) (*lsapb.ListLogonSessionsResponse, error) {
	const op = "lsa.ListLogonSessions"
	caller, err := callerOf(ctx, op)
	if err != nil {
		return nil, err
	}
	found, err := s.sessions.list(ctx)
	if err != nil {
		return nil, ntstatus.Wrap(op, "", err)
	}
	response := &lsapb.ListLogonSessionsResponse{}
	for _, l := range found {
		if !caller.Token.IsAdmin() && caller.Token.User.SID != l.user && caller.Token.AuthenticationID != l.by {
			continue
		}
		response.Sessions = append(response.Sessions, &lsapb.LogonSession{
			LogonId: uint64(l.id), LogonSid: security.LogonSID(l.id).String(), UserSid: l.user.String(), User: s.nameOf(l.user),
			LogonType: l.logonType, Session: l.session, LogonTimeUnixNano: l.time, Origin: l.origin, Source: l.source, Tokens: l.tokens,
		})
	}
	return response, nil
}

// local is the part of a name that is looked for among the accounts; for a name of another domain something that no account is
// called, so that it takes the way of an unknown one.
func (s *service) local(name string) string {
	domain, account := principal.Split(name)
	if _, own := s.accounts.Domain(); domain == "" || domain == "." || principal.Equal(domain, own) {
		return account
	}
	return name
}
