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
// CantOpenAnonymous, QuotaExceeded.
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

// Adjustment is what AdjustPrivileges and AdjustGroups have done. Where something changed, Token has a new ModifiedID, the
// attachments whose own token it is know (System.Token), and so do the servers that follow it.
type Adjustment struct {
	Token      *security.Token
	Privileges []security.TokenPrivilege // that changed, as they were
	Groups     []security.Group          // likewise
	// NotAllAssigned: the token does not hold all that was to be adjusted. It is a success: what it holds was adjusted.
	NotAllAssigned bool
}

// LinkedToken is the other token of a logon that made two, a limited and a full one (TokenLinkedToken): with SeTcb the token itself, else
// a copy at Identification, which the caller then holds. Two tokens are linked by making the second with Token.Linked naming the
// first, which lives as long as it. It needs TOKEN_QUERY. Statuses: NoToken, AccessDenied, NoSuchLogonSession (it has none).
func (s *System) LinkedToken(ctx context.Context, id security.LUID) (*security.Token, error) {
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_QueryLinkedToken{QueryLinkedToken: &corepb.TokenRef{TokenId: uint64(id)}}})
}

// FilterToken makes a token that can do less (NtFilterToken), which the caller then holds with the rights that it has on the first.
// It needs TOKEN_DUPLICATE and no privilege. Statuses: NoToken, AccessDenied, InvalidParameter, QuotaExceeded.
func (s *System) FilterToken(ctx context.Context, id security.LUID, o security.FilterOptions) (*security.Token, error) {
	w := &corepb.FilterToken{TokenId: uint64(id)}
	for flag, set := range map[uint32]bool{1: o.DisableMaxPrivilege, 4: o.Limited, 8: o.WriteRestricted} {
		if set {
			w.Flags |= flag
		}
	}
	for _, sid := range o.Disable {
		w.DenyOnly = append(w.DenyOnly, sid.String())
	}
	for _, sid := range o.Restrict {
		w.Restrict = append(w.Restrict, sid.String())
	}
	for _, p := range o.Delete {
		w.DeletePrivileges = append(w.DeletePrivileges, uint32(p))
	}
	return s.token(ctx, &corepb.ToCore{Request: &corepb.ToCore_FilterToken{FilterToken: w}})
}

// AdjustPrivileges switches privileges of a token on (PrivilegeEnabled) and off (0) or removes them for good (PrivilegeRemoved;
// NtAdjustPrivilegesToken). It needs TOKEN_ADJUST_PRIVILEGES and TOKEN_QUERY, which everybody has on its own token.
func (s *System) AdjustPrivileges(ctx context.Context, id security.LUID, changes ...security.TokenPrivilege) (Adjustment, error) {
	w := &corepb.AdjustPrivileges{TokenId: uint64(id)}
	for _, p := range changes {
		w.Privileges = append(w.Privileges, &corepb.Privilege{Privilege: uint32(p.Privilege), Attributes: uint32(p.Attributes)})
	}
	return s.adjust(ctx, &corepb.ToCore{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: w}})
}

// DisablePrivileges switches off all privileges of a token; they can be switched on again.
func (s *System) DisablePrivileges(ctx context.Context, id security.LUID) (Adjustment, error) {
	return s.adjust(ctx, &corepb.ToCore{Request: &corepb.ToCore_AdjustPrivileges{AdjustPrivileges: &corepb.AdjustPrivileges{TokenId: uint64(id), DisableAll: true}}})
}

// AdjustGroups switches groups of a token on (GroupEnabled) and off (NtAdjustGroupsToken). It needs TOKEN_ADJUST_GROUPS and
// TOKEN_QUERY. Statuses: CantDisableMandatory, CantEnableDenyOnly; then nothing is changed.
func (s *System) AdjustGroups(ctx context.Context, id security.LUID, changes ...security.Group) (Adjustment, error) {
	w := &corepb.AdjustGroups{TokenId: uint64(id)}
	for _, g := range changes {
		w.Groups = append(w.Groups, &corepb.Group{Sid: g.SID.String(), Attributes: uint32(g.Attributes)})
	}
	return s.adjust(ctx, &corepb.ToCore{Request: &corepb.ToCore_AdjustGroups{AdjustGroups: w}})
}

// ResetGroups makes each group of a token as it is by default.
func (s *System) ResetGroups(ctx context.Context, id security.LUID) (Adjustment, error) {
	return s.adjust(ctx, &corepb.ToCore{Request: &corepb.ToCore_AdjustGroups{AdjustGroups: &corepb.AdjustGroups{TokenId: uint64(id), Reset_: true}}})
}

func (s *System) adjust(ctx context.Context, request *corepb.ToCore) (Adjustment, error) {
	r, err := s.ask(ctx, request)
	if err != nil {
		return Adjustment{}, err
	}
	w := r.GetAdjusted()
	out := Adjustment{NotAllAssigned: w.GetNotAllAssigned()}
	for _, p := range w.GetPrivileges() {
		out.Privileges = append(out.Privileges, security.TokenPrivilege{Privilege: security.Privilege(p.GetPrivilege()), Attributes: security.PrivilegeAttributes(p.GetAttributes())})
	}
	for _, g := range w.GetGroups() {
		sid, err := security.ParseSID(g.GetSid())
		if err != nil {
			return Adjustment{}, err
		}
		out.Groups = append(out.Groups, security.Group{SID: sid, Attributes: security.GroupAttributes(g.GetAttributes())})
	}
	out.Token, err = control.TokenFromWire(w.GetToken())
	return out, err
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
