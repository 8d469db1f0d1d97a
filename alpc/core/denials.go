package core

import (
	"strconv"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// denialLog keeps the last refusals, of the core and of the servers that report theirs.
type denialLog struct {
	last uint64
	rows []*corepb.Denial // rows[i].Decision rises by one
}

// add numbers and keeps d.
func (l *denialLog) add(d *corepb.Denial) {
	l.last++
	d.Decision = l.last
	if len(l.rows) == maxDenials {
		copy(l.rows, l.rows[maxDenials/4:])
		l.rows = l.rows[:maxDenials-maxDenials/4]
	}
	l.rows = append(l.rows, d)
}

func (l *denialLog) get(decision uint64) *corepb.Denial {
	if len(l.rows) == 0 || decision < l.rows[0].Decision || decision > l.last {
		return nil
	}
	return l.rows[decision-l.rows[0].Decision]
}

// check decides whether a may have the rights; a refusal goes to the log with the decision's own trace.
func (m *Machine) check(a *attachment, op, object string, sd *security.Descriptor, mapping security.GenericMapping, desired security.AccessMask, names security.RightNames) *corepb.Failure {
	if f := m.expired(a); f != nil {
		f.Op, f.Object = op, object
		return f
	}
	request := security.CheckRequest{Descriptor: sd, Token: a.token.value, Desired: desired, Mapping: mapping}
	if d := security.AccessCheck(request); d.Status == ntstatus.Success {
		return nil
	}
	request.Rights, request.Trace = names, true
	d := security.AccessCheck(request)
	return m.denied(a, &corepb.Denial{
		Op: op, Object: object, Right: names.Describe(desired), Desired: uint32(desired), Status: uint32(d.Status),
		Trace: d.Explain(), SecurityDescriptor: sd.String(),
	})
}

// expired refuses tokens whose logon session has ended or whose time is over.
func (m *Machine) expired(a *attachment) *corepb.Failure {
	if t := a.token.value; m.isExpired(a) {
		return m.denied(a, &corepb.Denial{
			Right: "a logon session that lasts", Status: uint32(ntstatus.NoSuchLogonSession),
			Trace: []string{"logon session " + t.AuthenticationID.String() + " of " + t.User.SID.String() + " has ended: its tokens open nothing any more"},
		})
	}
	return nil
}

func (m *Machine) isExpired(a *attachment) bool {
	t := a.token.value
	return m.ended[t.AuthenticationID] || (t.Expiration != 0 && t.Expiration <= m.now.UnixNano())
}

// denied completes and logs a refusal by the core, and is its wire form.
func (m *Machine) denied(a *attachment, d *corepb.Denial) *corepb.Failure {
	m.logDenial(a, d)
	return &corepb.Failure{Status: d.Status, Op: d.Op, Object: d.Object, Right: d.Right, Decision: d.Decision}
}

func (m *Machine) logDenial(who *attachment, d *corepb.Denial) {
	d.TimeNs, d.Attachment, d.Pid, d.User = m.now.UnixNano(), who.id, who.pid, who.token.value.User.SID.String()
	d.Hint = ntstatus.Status(d.Status).Hint()
	m.denials.add(d)
	m.emit(Audit{d})
}

// reportDenial logs what a server refused to one of its clients. Only who serves the client may say so.
func (m *Machine) reportDenial(a *attachment, d *corepb.Denial, reply *corepb.Reply) *corepb.Failure {
	const op = "core.ReportDenial"
	who := m.attachments[d.GetAttachment()]
	if who == nil || !who.live {
		return fail(op, d.GetObject(), ntstatus.InvalidCID, "attachment %d is gone", d.GetAttachment())
	}
	serves := who == a
	for _, c := range who.connections {
		serves = serves || (c.server == a && c.client == who)
	}
	if !serves {
		return fail(op, d.GetObject(), ntstatus.InvalidParameter, "attachment %d is not a client of the caller", d.GetAttachment())
	}
	if len(d.Trace) > 64 || len(d.SecurityDescriptor) > maxDescriptor || len(d.Object) > maxName || len(d.Op) > maxName || len(d.Right) > maxName || traceBytes(d.Trace) > 8<<10 {
		return fail(op, "", ntstatus.InvalidParameter, "the denial is too long")
	}
	logged := &corepb.Denial{
		Op: d.Op, Object: d.Object, Right: d.Right, Desired: d.Desired, Status: d.Status, Trace: d.Trace,
		SecurityDescriptor: d.SecurityDescriptor, Reporter: a.id,
	}
	m.logDenial(who, logged)
	reply.Body = &corepb.Reply_Decision{Decision: &corepb.Decision{Decision: logged.Decision, Status: d.Status}}
	return nil
}

func traceBytes(trace []string) (n int) {
	for _, t := range trace {
		n += len(t)
	}
	return n
}

// explain shows one logged refusal: to the one who was refused, to administrators, and to readers of the descriptor. The
// entry that decided is shown to the latter two only.
func (m *Machine) explain(a *attachment, decision uint64, reply *corepb.Reply) *corepb.Failure {
	const op = "core.Explain"
	object := "decision " + strconv.FormatUint(decision, 10)
	d := m.denials.get(decision)
	if d == nil {
		return fail(op, object, ntstatus.NotFound, "the core keeps the last %d refusals; this one is not among them", maxDenials)
	}
	d = m.visible(a, d)
	if d == nil {
		return fail(op, object, ntstatus.AccessDenied, "it was another user's; an administrator can see it")
	}
	reply.Body = &corepb.Reply_Denial{Denial: d}
	return nil
}

// visible is as much of d as a may see; nil is nothing.
func (m *Machine) visible(a *attachment, d *corepb.Denial) *corepb.Denial {
	if m.isExpired(a) {
		return nil
	}
	if a.admin() || a.token.value.Has(security.SeSecurity) {
		return d
	}
	if d.User != a.token.value.User.SID.String() {
		return nil
	}
	// A server's refusal without a descriptor is of an object that is not there, which must look like one that is forbidden.
	if d.SecurityDescriptor == "" && d.Reporter == 0 || d.SecurityDescriptor != "" && m.readable(a, d.SecurityDescriptor) {
		return d
	}
	return &corepb.Denial{
		Decision: d.Decision, TimeNs: d.TimeNs, Attachment: d.Attachment, Pid: d.Pid, User: d.User, Op: d.Op, Object: d.Object,
		Right: d.Right, Desired: d.Desired, Status: d.Status, Reporter: d.Reporter,
		Hint: "which entry decided is shown to administrators and to those who may read the descriptor (READ_CONTROL)",
	}
}

func (m *Machine) readable(a *attachment, sddl string) bool {
	sd, err := security.ParseSDDL(sddl)
	if err != nil {
		return false
	}
	return security.AccessCheck(security.CheckRequest{Descriptor: sd, Token: a.token.value, Desired: security.ReadControl, Mapping: kindPort.mapping()}).Status == ntstatus.Success
}

// evaluate answers beforehand: the decision that a connect, or another access, would meet.
func (m *Machine) evaluate(a *attachment, r *corepb.Evaluate, reply *corepb.Reply) *corepb.Failure {
	const op = "core.Evaluate"
	subject := a.token.value
	switch {
	case r.GetToken() != nil:
		t, err := control.TokenFromWire(r.GetToken())
		if err != nil {
			return fail(op, r.GetName(), ntstatus.InvalidParameter, "%v", err)
		}
		subject = t
	case r.GetTokenId() != 0:
		t, f := m.openToken(a, op, security.LUID(r.GetTokenId()), TokenQuery)
		if f != nil {
			return f
		}
		subject = t.value
	}
	request := security.CheckRequest{Token: subject, Desired: security.AccessMask(r.GetDesired()), Mapping: kindPort.mapping(), Rights: kindPort.rights()}
	if r.GetSecurityDescriptor() != "" {
		sd, err := control.ParseDescriptor(r.GetSecurityDescriptor())
		if err != nil {
			return fail(op, r.GetName(), ntstatus.InvalidSecurityDescr, "%v", err)
		}
		if sd.Owner.IsZero() {
			sd.Owner = security.LocalSystem()
		}
		if sd.Group.IsZero() {
			sd.Group = sd.Owner
		}
		request.Descriptor = sd
	} else {
		o, _, f := m.lookup(a, op, r.GetName(), false)
		if f != nil {
			return f
		}
		if f := m.checkObject(a, op, o, security.ReadControl); f != nil && !a.admin() {
			return f
		}
		request.Descriptor, request.Mapping, request.Rights = o.sd, o.kind.mapping(), o.kind.rights()
		if request.Desired == 0 {
			request.Desired = [kinds]security.AccessMask{DirectoryTraverse, SymbolicLinkQuery, PortConnect}[o.kind]
		}
	}
	if request.Desired == 0 {
		request.Desired = security.MaximumAllowed
	}
	request.Desired = request.Mapping.Map(request.Desired)
	request.Trace = true
	d := security.AccessCheck(request)
	reply.Body = &corepb.Reply_Decision{Decision: &corepb.Decision{
		Status: uint32(d.Status), Granted: uint32(d.Granted), Trace: d.Explain(), SecurityDescriptor: request.Descriptor.String(),
	}}
	return nil
}
