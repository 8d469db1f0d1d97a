package security

import "sallyport/ntstatus"

// CheckMode says which of NT's entry points is meant; they differ in the tokens that they take.
type CheckMode uint8

// The modes.
const (
	CheckSubject CheckMode = iota // the token of a process, or an impersonation token of at least Identification
	CheckQuery                    // NtAccessCheck: an impersonation token of at least Identification
	CheckOpen                     // SeAccessCheck, to act as the subject: impersonation tokens of at least Impersonation
)

// CheckRequest is a question: may this token have these rights on what has this descriptor?
type CheckRequest struct {
	Descriptor *Descriptor // nil denies; must have an owner and a group
	Token      *Token
	Desired    AccessMask     // mapped already: no generic bits; MaximumAllowed asks for all there is
	Mapping    GenericMapping // of the object's type; also says what reading, writing and executing is to a label
	Mode       CheckMode
	Self       SID        // stands in for PrincipalSelf in entries; zero where the object is no principal
	Rights     RightNames // names for Explain
	Trace      bool       // keep every step for Explain; the only thing here that allocates
}

// AccessCheck is the access check algorithm of MS-DTYP 2.5.3.2: the mandatory label, then privileges, owner, and the entries of
// the DACL in stored order. It does not allocate unless a trace is asked for, and takes time linear in entries times groups.
//
// Statuses: GenericNotMapped, NoToken, BadTokenType, NoImpersonationToken, BadImpersonationLevel and InvalidSecurityDescr where
// the question can't be answered, in this order of precedence; InvalidACL at an entry that is not understood; PrivilegeNotHeld
// where AccessSystemSecurity is asked without SeSecurity; AccessDenied; Success.
func AccessCheck(req CheckRequest) Decision {
	c := check{req: req, wanted: req.Desired &^ MaximumAllowed, maximum: req.Desired&MaximumAllowed != 0}
	c.interest = c.wanted
	if c.maximum {
		c.interest |= ^(GenericRights | MaximumAllowed | AccessSystemSecurity)
	}
	if c.admissible() && c.label() && c.privileges() {
		c.owner()
		c.dacl()
	}
	c.decision.Status, c.decision.request = c.status, c.req
	if c.status == ntstatus.Success {
		c.decision.Granted, c.decision.Missing = c.granted, 0
	}
	return c.decision
}

// check is one run of AccessCheck.
type check struct {
	req      CheckRequest // a copy: a pointer would make the caller's escape
	wanted   AccessMask   // must all be granted
	interest AccessMask   // may be granted: wanted, or with MaximumAllowed anything
	maximum  bool
	granted  AccessMask
	owns     bool // the token speaks for the owner
	ownsDeny bool // …or would, but for being deny-only
	status   ntstatus.Status
	decision Decision
}

// step notes what a rule did; what granted last decides, unless the check is stopped.
func (c *check) step(s Step) {
	if s.Effect == Granted {
		c.decision.Deciding = s
	}
	if c.req.Trace {
		c.decision.Steps = append(c.decision.Steps, s)
	}
}

// stop is step for the rule that ends the check.
func (c *check) stop(status ntstatus.Status, missing AccessMask, s Step) bool {
	c.status, c.decision.Missing = status, missing
	c.step(s)
	c.decision.Deciding = s
	return false
}

// grant adds what is of interest and not yet granted, and returns just that.
func (c *check) grant(bits AccessMask) AccessMask {
	fresh := bits & c.interest &^ c.granted
	c.granted |= fresh
	return fresh
}

// admissible checks the question itself.
func (c *check) admissible() bool {
	d, t := c.req.Descriptor, c.req.Token
	floor := LevelIdentification
	if c.req.Mode == CheckOpen {
		floor = LevelImpersonation
	}
	switch {
	case c.req.Desired&GenericRights != 0:
		return c.stop(ntstatus.GenericNotMapped, c.req.Desired&GenericRights, Step{Rule: RuleRequest, Effect: Refused})
	case t == nil:
		return c.stop(ntstatus.NoToken, c.wanted, Step{Rule: RuleToken, Effect: Refused})
	case t.Type != TokenPrimary && t.Type != TokenImpersonation:
		return c.stop(ntstatus.BadTokenType, c.wanted, Step{Rule: RuleToken, Effect: Refused})
	case c.req.Mode == CheckQuery && t.Type != TokenImpersonation:
		return c.stop(ntstatus.NoImpersonationToken, c.wanted, Step{Rule: RuleToken, Effect: Refused})
	case t.Type == TokenImpersonation && t.Level < floor:
		return c.stop(ntstatus.BadImpersonationLevel, c.wanted, Step{Rule: RuleToken, Effect: Refused})
	case d == nil:
		return c.stop(ntstatus.AccessDenied, c.wanted, Step{Rule: RuleDescriptor, Effect: Refused})
	case d.Owner.IsZero() || d.Group.IsZero():
		return c.stop(ntstatus.InvalidSecurityDescr, c.wanted, Step{Rule: RuleDescriptor, Effect: Refused})
	}
	return true
}

// label is the mandatory integrity check, MS-DTYP 2.5.3.3: a token below the object's label keeps only what the label leaves to
// those below, whatever the DACL says. What it leaves is named by the generic rights, so the mapping defines it.
func (c *check) label() bool {
	d, t := c.req.Descriptor, c.req.Token
	if d.SACL != nil {
		for i := range d.SACL.ACEs {
			if typ := d.SACL.ACEs[i].Type; typ != SystemAudit && typ != SystemAlarm && typ != MandatoryLabel {
				return c.stop(ntstatus.InvalidACL, c.wanted, Step{Rule: RuleLabel, Effect: Refused, Entry: i})
			}
		}
	}
	label, policy, entry := d.MandatoryLabel()
	rank, valid := label.IntegrityLevel()
	if !valid {
		return c.stop(ntstatus.InvalidACL, c.wanted, Step{Rule: RuleLabel, Effect: Refused, Entry: entry})
	}
	if t.MandatoryPolicy&PolicyNoWriteUp == 0 || policy&(NoReadUp|NoWriteUp|NoExecuteUp) == 0 || t.IntegrityLevel() >= rank {
		return true
	}
	var generic AccessMask
	if policy&NoReadUp == 0 {
		generic |= GenericRead
	}
	if policy&NoWriteUp == 0 {
		generic |= GenericWrite
	}
	if policy&NoExecuteUp == 0 {
		generic |= GenericExecute
	}
	left := c.req.Mapping.Map(generic) | AccessSystemSecurity
	if t.Has(SeRelabel) {
		left |= WriteOwner
	}
	if missing := c.wanted &^ left; missing != 0 {
		return c.stop(ntstatus.AccessDenied, missing, Step{Rule: RuleLabel, Effect: Denied, Entry: entry, Bits: missing})
	}
	if c.interest&^left != 0 {
		c.interest &= left
		c.step(Step{Rule: RuleLabel, Effect: Denied, Entry: entry, Bits: ^left & (StandardRights | SpecificRights | Synchronize)})
	}
	return true
}

// privileges grants what privileges give without asking the DACL.
func (c *check) privileges() bool {
	if c.wanted&AccessSystemSecurity != 0 {
		if !c.req.Token.Has(SeSecurity) {
			return c.stop(ntstatus.PrivilegeNotHeld, AccessSystemSecurity,
				Step{Rule: RuleSecurityPrivilege, Effect: Denied, Bits: AccessSystemSecurity})
		}
		c.step(Step{Rule: RuleSecurityPrivilege, Effect: Granted, Bits: c.grant(AccessSystemSecurity)})
	}
	if c.wanted&WriteOwner != 0 && c.req.Token.Has(SeTakeOwnership) {
		c.step(Step{Rule: RuleTakeOwnership, Effect: Granted, Bits: c.grant(WriteOwner)})
	}
	return true
}

// owner grants the owner READ_CONTROL and WRITE_DAC, unless an OwnerRights entry of the DACL says what the owner may.
func (c *check) owner() {
	d, t := c.req.Descriptor, c.req.Token
	c.owns, c.ownsDeny = t.HasSID(d.Owner), t.match(&d.Owner, true)
	if !c.owns {
		return
	}
	if d.DACL != nil {
		for i := range d.DACL.ACEs {
			if a := &d.DACL.ACEs[i]; a.Flags&InheritOnly == 0 && a.SID.isOwnerRights() {
				return
			}
		}
	}
	if fresh := c.grant(ReadControl | WriteDAC); fresh != 0 {
		c.step(Step{Rule: RuleOwner, Effect: Granted, Bits: fresh})
	}
}

// dacl asks the entries for the rest: once for the token's own SIDs and, of a restricted token, once more for the restricting
// ones; what both grant is granted.
func (c *check) dacl() {
	if c.req.Descriptor.DACL == nil {
		fresh := c.grant(c.wanted)
		if c.maximum {
			fresh |= c.grant(c.req.Mapping.All)
		}
		if fresh != 0 {
			c.step(Step{Rule: RuleNoDACL, Effect: Granted, Bits: fresh})
		}
		return
	}
	before := c.granted
	if !c.walk(false) || len(c.req.Token.Restricted) == 0 {
		return
	}
	own := c.granted
	c.granted = before
	if c.walk(true) {
		c.granted &= own
		c.something(true)
	}
}

// something refuses to grant nothing to who asked for MaximumAllowed.
func (c *check) something(restricted bool) bool {
	if c.maximum && c.granted == 0 {
		return c.stop(ntstatus.AccessDenied, MaximumAllowed, Step{Rule: RuleEnd, Effect: Denied, Bits: MaximumAllowed, Restricted: restricted})
	}
	return true
}

// walk evaluates the entries in stored order. An entry that denies something wanted which no earlier entry granted ends it; an
// entry never takes back what an earlier one granted.
func (c *check) walk(restricted bool) bool {
	var denied AccessMask
	entries := c.req.Descriptor.DACL.ACEs
	for i := range entries {
		if !c.maximum && c.wanted&^c.granted == 0 {
			return true
		}
		a, s := &entries[i], Step{Rule: RuleEntry, Entry: i, Restricted: restricted}
		deny := a.Type == AccessDenied
		mask := c.req.Mapping.Map(a.Mask) & c.interest &^ (AccessSystemSecurity | c.granted | denied)
		switch {
		case a.Type != AccessAllowed && !deny:
			s.Effect = Refused
			return c.stop(ntstatus.InvalidACL, c.wanted&^c.granted, s)
		case a.Flags&InheritOnly != 0:
			s.Effect = InheritOnlyEntry
		case !c.applies(&a.SID, deny, restricted):
			s.Effect = OtherSubject
			if !deny && c.applies(&a.SID, true, restricted) {
				s.Effect = DenyOnlySubject
			}
		case mask == 0:
			s.Effect = NothingNew
		case deny:
			denied |= mask
			s.Effect, s.Bits = Denied, mask
			if mask&c.wanted != 0 {
				return c.stop(ntstatus.AccessDenied, c.wanted&^c.granted, s)
			}
		default:
			s.Effect, s.Bits = Granted, c.grant(mask)
		}
		c.step(s)
	}
	if missing := c.wanted &^ c.granted; missing != 0 {
		return c.stop(ntstatus.AccessDenied, missing, Step{Rule: RuleEnd, Effect: Denied, Bits: missing, Restricted: restricted})
	}
	return c.something(restricted)
}

// applies reports whether an entry for sid is about the token.
func (c *check) applies(sid *SID, deny, restricted bool) bool {
	switch {
	case sid.isOwnerRights():
		return c.owns || deny && c.ownsDeny
	case sid.isPrincipalSelf():
		sid = &c.req.Self
	}
	if sid.IsZero() {
		return false
	}
	if restricted {
		return c.req.Token.matchRestricted(sid)
	}
	return c.req.Token.match(sid, deny)
}
