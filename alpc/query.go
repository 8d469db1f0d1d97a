package alpc

import (
	"context"
	"time"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// ObjectInfo is one object of the namespace.
type ObjectInfo struct {
	Name               string         `json:"name"`
	Type               string         `json:"type"` // Directory, SymbolicLink, Port
	Target             string         `json:"target,omitempty"`
	SecurityDescriptor string         `json:"security_descriptor,omitempty"` // empty without READ_CONTROL
	Server             uint64         `json:"server,omitempty"`              // attachment; 0: nobody serves it yet
	ServerPID          int            `json:"server_pid,omitempty"`
	ServerUser         string         `json:"server_user,omitempty"`
	Connections        int            `json:"connections"`
	Waiting            int            `json:"waiting"` // connects that no server has answered
	Attributes         PortAttributes `json:"-"`
}

// ConnectionInfo is one open connection with its server's live counters.
type ConnectionInfo struct {
	ID         uint64    `json:"id"`
	Port       string    `json:"port"`
	Client     uint64    `json:"client"`
	ClientPID  int       `json:"client_pid"`
	ClientUser string    `json:"client_user"`
	Server     uint64    `json:"server"`
	ServerPID  int       `json:"server_pid"`
	Shared     bool      `json:"shared"` // it has a section
	Since      time.Time `json:"since"`
	Counters   Counters  `json:"counters"`
}

// AttachmentInfo is one attached process.
type AttachmentInfo struct {
	ID          uint64          `json:"id"`
	PID         int             `json:"pid"`
	UID         uint32          `json:"uid"`
	User        string          `json:"user"`
	Session     uint32          `json:"session"`
	Source      string          `json:"source"`
	Evidence    string          `json:"evidence"`
	Program     string          `json:"program"` // the process's own word
	Since       time.Time       `json:"since"`
	Connections int             `json:"connections"`
	Ports       int             `json:"ports"`
	Token       *security.Token `json:"-"`
}

// Charge is what one uid has of one resource.
type Charge struct {
	UID      uint32 `json:"uid"`
	Resource string `json:"resource"`
	Used     uint64 `json:"used"`
	Limit    uint64 `json:"limit"`
}

// Denial is one refusal in the core's log, or a server's report of one.
type Denial struct {
	Decision           uint64              `json:"decision"`
	Time               time.Time           `json:"time"`
	Attachment         uint64              `json:"attachment"` // who was refused
	PID                int                 `json:"pid"`
	User               string              `json:"user"`
	Op                 string              `json:"op"`
	Object             string              `json:"object"`
	Right              string              `json:"right"`
	Desired            security.AccessMask `json:"desired"`
	Status             ntstatus.Status     `json:"status"`
	Trace              []string            `json:"trace,omitempty"` // which entry decided, for those who may know
	SecurityDescriptor string              `json:"security_descriptor,omitempty"`
	Reporter           uint64              `json:"reporter,omitempty"` // attachment; 0: the core
	Hint               string              `json:"hint,omitempty"`
}

// Verdict is the answer to a question asked beforehand.
type Verdict struct {
	Status             ntstatus.Status     `json:"status"`
	Granted            security.AccessMask `json:"granted"`
	Trace              []string            `json:"trace"`
	SecurityDescriptor string              `json:"security_descriptor"`
}

// Question asks whether a subject would get rights on an object.
type Question struct {
	Name               string              // the object; or
	SecurityDescriptor string              // a descriptor in SDDL
	Desired            security.AccessMask // 0: what it takes to use the object: PORT_CONNECT for a port
	TokenID            security.LUID       // the subject; 0: the caller, or
	Token              *security.Token     // a token made up for the question
}

// Objects lists the namespace at and below prefix (empty: all), as far as the caller may look.
func (s *System) Objects(ctx context.Context, prefix string) (out []ObjectInfo, err error) {
	err = s.pages(ctx, &corepb.List{Kind: corepb.Kind_OBJECTS, Prefix: prefix}, func(p *corepb.Page) {
		for _, o := range p.GetObjects() {
			out = append(out, ObjectInfo{
				Name: o.GetName(), Type: o.GetType(), Target: o.GetTarget(), SecurityDescriptor: o.GetSecurityDescriptor(), Server: o.GetServer(),
				ServerPID: int(o.GetServerPid()), ServerUser: o.GetServerUser(), Connections: int(o.GetConnections()), Waiting: int(o.GetWaiting()),
				Attributes: PortAttributes{
					MaxMessageLength: int(o.GetAttributes().GetMaxMessageLength()), HandleTypes: HandleType(o.GetAttributes().GetHandleTypes()),
					MaxPending: int(o.GetAttributes().GetMaxPending()), MaxConnections: int(o.GetAttributes().GetMaxConnections()), AutoAccept: o.GetAttributes().GetAutoAccept(),
				},
			})
		}
	})
	return out, err
}

// Connections lists open connections: all for administrators, else the caller's own.
func (s *System) Connections(ctx context.Context) (out []ConnectionInfo, err error) {
	err = s.pages(ctx, &corepb.List{Kind: corepb.Kind_CONNECTIONS}, func(p *corepb.Page) {
		for _, c := range p.GetConnections() {
			out = append(out, ConnectionInfo{
				ID: c.GetId(), Port: c.GetPort(), Client: c.GetClient(), ClientPID: int(c.GetClientPid()), ClientUser: c.GetClientUser(),
				Server: c.GetServer(), ServerPID: int(c.GetServerPid()), Shared: c.GetSection(), Since: time.Unix(0, c.GetSinceNs()),
				Counters: Counters{MessagesIn: c.GetMessagesIn(), MessagesOut: c.GetMessagesOut(), BytesIn: c.GetBytesIn(), BytesOut: c.GetBytesOut(), Pending: c.GetPending()},
			})
		}
	})
	return out, err
}

// Attachments lists attached processes: all for administrators, else the caller's own user's.
func (s *System) Attachments(ctx context.Context) (out []AttachmentInfo, err error) {
	err = s.pages(ctx, &corepb.List{Kind: corepb.Kind_ATTACHMENTS}, func(p *corepb.Page) {
		for _, a := range p.GetAttachments() {
			i := a.GetIdentity()
			token, _ := control.TokenFromWire(i.GetToken())
			out = append(out, AttachmentInfo{
				ID: i.GetAttachment(), PID: int(i.GetPid()), UID: a.GetUid(), User: i.GetToken().GetUser().GetSid(), Session: i.GetToken().GetSessionId(),
				Source: IdentitySource(i.GetSource()).String(), Evidence: i.GetEvidence(), Program: a.GetProgram(), Since: time.Unix(0, a.GetSinceNs()),
				Connections: int(a.GetConnections()), Ports: int(a.GetPorts()), Token: token,
			})
		}
	})
	return out, err
}

// Tokens lists the core's token objects (administrators and SeTcb).
func (s *System) Tokens(ctx context.Context) (out []TokenInfo, err error) {
	var bad error
	err = s.pages(ctx, &corepb.List{Kind: corepb.Kind_TOKENS}, func(p *corepb.Page) {
		for _, t := range p.GetTokens() {
			token, err := control.TokenFromWire(t.GetToken())
			if err != nil {
				bad = err
				continue
			}
			out = append(out, TokenInfo{Token: token, References: int(t.GetReferences()), Ended: t.GetEnded()})
		}
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// Denials lists the core's log of refusals after a decision (0: all that it still has).
func (s *System) Denials(ctx context.Context, after uint64) (out []Denial, err error) {
	err = s.pages(ctx, &corepb.List{Kind: corepb.Kind_DENIALS, After: decimal(after)}, func(p *corepb.Page) {
		for _, d := range p.GetDenials() {
			out = append(out, denialFromWire(d))
		}
	})
	return out, err
}

// pages asks for a list page by page.
func (s *System) pages(ctx context.Context, list *corepb.List, take func(*corepb.Page)) error {
	for {
		r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_List{List: list}})
		if err != nil {
			return err
		}
		take(r.GetPage())
		if list.After = r.GetPage().GetNext(); list.After == "" {
			return nil
		}
	}
}

// Charges lists what is pinned and the limits: of the caller's uid, or of all (administrators).
func (s *System) Charges(ctx context.Context) (out []Charge, err error) {
	r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_QueryCharges{QueryCharges: &corepb.QueryCharges{All: true}}})
	for _, a := range r.GetCharges().GetAccounts() {
		for _, c := range a.GetCharges() {
			out = append(out, Charge{UID: a.GetUid(), Resource: c.GetResource(), Used: c.GetUsed(), Limit: c.GetLimit()})
		}
	}
	return out, err
}

// ReportDenial puts a server's own refusal into the core's log and returns the decision's number. d.Attachment is who was
// refused: a client of the caller.
func (s *System) ReportDenial(ctx context.Context, d Denial) (uint64, error) {
	r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_ReportDenial{ReportDenial: &corepb.Denial{
		Attachment: d.Attachment, Op: d.Op, Object: d.Object, Right: d.Right, Desired: uint32(d.Desired), Status: uint32(d.Status),
		Trace: d.Trace, SecurityDescriptor: d.SecurityDescriptor,
	}}})
	return r.GetDecision().GetDecision(), err
}

// Explain shows one logged refusal. The entry that decided is shown to administrators and to readers of the descriptor.
func (s *System) Explain(ctx context.Context, decision uint64) (Denial, error) {
	r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Explain{Explain: &corepb.Explain{Decision: decision}}})
	if err != nil {
		return Denial{}, err
	}
	return denialFromWire(r.GetDenial()), nil
}

// Evaluate answers a question beforehand, by the same check that would decide.
func (s *System) Evaluate(ctx context.Context, q Question) (Verdict, error) {
	w := &corepb.Evaluate{Name: q.Name, SecurityDescriptor: q.SecurityDescriptor, Desired: uint32(q.Desired), TokenId: uint64(q.TokenID)}
	if q.Token != nil {
		w.Token = control.TokenToWire(q.Token)
	}
	r, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Evaluate{Evaluate: w}})
	d := r.GetDecision()
	return Verdict{
		Status: ntstatus.Status(d.GetStatus()), Granted: security.AccessMask(d.GetGranted()), Trace: d.GetTrace(), SecurityDescriptor: d.GetSecurityDescriptor(),
	}, err
}

func denialFromWire(d *corepb.Denial) Denial {
	return Denial{
		Decision: d.GetDecision(), Time: time.Unix(0, d.GetTimeNs()), Attachment: d.GetAttachment(), PID: int(d.GetPid()), User: d.GetUser(),
		Op: d.GetOp(), Object: d.GetObject(), Right: d.GetRight(), Desired: security.AccessMask(d.GetDesired()), Status: ntstatus.Status(d.GetStatus()),
		Trace: d.GetTrace(), SecurityDescriptor: d.GetSecurityDescriptor(), Reporter: d.GetReporter(), Hint: d.GetHint(),
	}
}
