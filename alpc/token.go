package alpc

import (
	"context"
	"os"

	"sallyport/internal/control"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// TokenInfo is a token and how many processes and attachments have it.
type TokenInfo struct {
	Token      *security.Token
	References int
	Ended      bool // its logon session was ended: it opens nothing
}

// TokenDuplicate says what a duplicate is to be (NtDuplicateToken, and as much of NtFilterToken as a launcher needs).
type TokenDuplicate struct {
	Type    security.TokenType
	Level   security.ImpersonationLevel
	Session *uint32 // another session id; needs SeTcb
	// Privileges that the duplicate keeps; nil keeps all.
	Privileges []security.Privilege
	// EffectiveOnly leaves out what is disabled.
	EffectiveOnly bool
	// Access is what the caller wants to do with the duplicate; 0: what it may do with the token.
	Access security.AccessMask
}

// TokenChange says what SetToken changes: what is not nil.
type TokenChange struct {
	Session      *uint32              // needs SeTcb and TOKEN_ADJUST_SESSIONID
	DefaultDACL  *security.Descriptor // whose DACL is for new objects; one without a DACL takes it away. TOKEN_ADJUST_DEFAULT
	Owner        *security.SID        // of new objects: the user, or a group that may own. TOKEN_ADJUST_DEFAULT
	PrimaryGroup *security.SID        // TOKEN_ADJUST_DEFAULT
}

// CreateToken makes a token object (NtCreateToken; needs SeCreateToken). The core fills in TokenID and ModifiedID. The
// attachment holds it until CloseToken. Statuses: PrivilegeNotHeld, InvalidParameter, NoSuchLogonSession, QuotaExceeded.
func (s *System) CreateToken(ctx context.Context, t *security.Token) (*security.Token, error) {
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_CreateToken{CreateToken: &corepb.CreateToken{Token: control.TokenToWire(t)}}})
}

// DuplicateToken makes a new token of one that the caller holds or may duplicate. Its level never rises.
func (s *System) DuplicateToken(ctx context.Context, id security.LUID, d TokenDuplicate) (*security.Token, error) {
	w := &corepb.DuplicateToken{TokenId: uint64(id), Type: uint32(d.Type), Level: uint32(d.Level), FilterPrivileges: d.Privileges != nil,
		EffectiveOnly: d.EffectiveOnly, DesiredAccess: uint32(d.Access)}
	if d.Session != nil {
		w.SetSession, w.SessionId = true, *d.Session
	}
	for _, p := range d.Privileges {
		w.KeepPrivileges = append(w.KeepPrivileges, uint32(p))
	}
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_DuplicateToken{DuplicateToken: w}})
}

// QueryToken reads a token that the caller holds or may query. Statuses: NoToken, AccessDenied.
func (s *System) QueryToken(ctx context.Context, id security.LUID) (*security.Token, error) {
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_QueryToken{QueryToken: &corepb.TokenRef{TokenId: uint64(id)}}})
}

func (s *System) token(ctx context.Context, request *corepb.ToCore) (*security.Token, error) {
	r, err := s.ask(ctx, request)
	if err != nil {
		return nil, err
	}
	return control.TokenFromWire(r.GetToken())
}

// CloseToken gives one reference of this attachment back.
func (s *System) CloseToken(ctx context.Context, id security.LUID) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_CloseToken{CloseToken: &corepb.TokenRef{TokenId: uint64(id)}}})
	return err
}

// GrantToken makes another attachment hold a token, charged to it (needs SeTcb): how an authority hands a token to the
// client that a port proved to be the caller (Client.Attachment), never to a process that a message named.
func (s *System) GrantToken(ctx context.Context, id security.LUID, to uint64) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_GrantToken{GrantToken: &corepb.GrantToken{TokenId: uint64(id), Attachment: to}}})
	return err
}

// OpenToken makes the caller hold a token that its descriptor grants the rights on (NtOpenProcessToken, by id), until
// CloseToken. What is then done with it is bounded by them; opened again, the rights add up. Statuses: NoToken, AccessDenied,
// QuotaExceeded.
func (s *System) OpenToken(ctx context.Context, id security.LUID, desired security.AccessMask) (*security.Token, error) {
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_OpenToken{OpenToken: &corepb.OpenToken{TokenId: uint64(id), DesiredAccess: uint32(desired)}}})
}

// OpenProcessToken is OpenToken for the token of the process behind a pidfd; NoToken where the core knows none.
func (s *System) OpenProcessToken(ctx context.Context, process *os.File, desired security.AccessMask) (*security.Token, error) {
	r, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_OpenToken{OpenToken: &corepb.OpenToken{DesiredAccess: uint32(desired)}}}, []*os.File{process}, &coreCall{})
	if err != nil {
		return nil, err
	}
	return control.TokenFromWire(r.GetToken())
}

// SetToken changes a token (NtSetInformationToken) and returns it as it is then, with a new ModifiedID. Statuses: NoToken,
// AccessDenied, PrivilegeNotHeld, InvalidOwner, InvalidPrimaryGroup, InvalidSecurityDescr, InvalidParameter where nothing is set.
func (s *System) SetToken(ctx context.Context, id security.LUID, c TokenChange) (*security.Token, error) {
	w := &corepb.SetToken{TokenId: uint64(id), SessionId: c.Session}
	text := func(sid *security.SID) *string {
		if sid == nil {
			return nil
		}
		t := sid.String()
		return &t
	}
	w.Owner, w.PrimaryGroup = text(c.Owner), text(c.PrimaryGroup)
	if c.DefaultDACL != nil {
		dacl := ""
		if c.DefaultDACL.DACL != nil {
			dacl = (&security.Descriptor{Control: security.DACLPresent, DACL: c.DefaultDACL.DACL}).String()
		}
		w.DefaultDacl = &dacl
	}
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_SetToken{SetToken: w}})
}

// NewLogonSession makes the LUID of a new logon session (needs SeTcb).
func (s *System) NewLogonSession(ctx context.Context) (security.LUID, error) {
	r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_NewLogonSession{NewLogonSession: &corepb.NewLogonSession{}}})
	return security.LUID(r.GetLuid().GetLuid()), err
}

// EndLogonSession makes every token of the session worthless, whoever has it (needs SeTcb).
func (s *System) EndLogonSession(ctx context.Context, authentication security.LUID) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_EndLogonSession{EndLogonSession: &corepb.EndLogonSession{AuthenticationId: uint64(authentication)}}})
	return err
}

// RegisterSpawner says that this process starts others in its own way: from now on its children wait, when they attach,
// until they are assigned a token or disowned (needs SeAssignPrimaryToken).
func (s *System) RegisterSpawner(ctx context.Context) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_RegisterSpawner{RegisterSpawner: &corepb.RegisterSpawner{}}})
	return err
}

// AssignToken gives the process behind a pidfd its primary token, once and before it acts (needs SeAssignPrimaryToken and
// TOKEN_ASSIGN_PRIMARY). Statuses: InvalidDeviceState where the process has an identity already.
func (s *System) AssignToken(ctx context.Context, process *os.File, id security.LUID) error {
	_, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_AssignToken{AssignToken: &corepb.AssignToken{TokenId: uint64(id)}}}, []*os.File{process}, &coreCall{})
	return err
}

// Disown says that a child's identity is none of this spawner's business: an orphan that it adopted, for one.
func (s *System) Disown(ctx context.Context, process *os.File) error {
	_, err := s.do(ctx, &corepb.ToCore{Request: &corepb.ToCore_Disown{Disown: &corepb.Disown{}}}, []*os.File{process}, &coreCall{})
	return err
}
