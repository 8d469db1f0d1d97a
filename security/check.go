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
	Previously AccessMask // granted before, and not asked for again
	Backup     bool       // the object is opened to back it up: SeBackup reads past everything
	Restore    bool       // …to restore it: SeRestore writes past everything
	// ObjectTypes is the object and its parts, each before its own parts (MS-DTYP 2.5.3.2, object tree); empty: the object as a whole.
	ObjectTypes []ObjectType
	// Policies are the rules of a central access policy, by the SID of ScopedPolicyID entries. A policy that it does not know, or nil,
	// leaves the object to its owner, to administrators and to the system.
	Policies func(policy SID) (rules []PolicyRule, ok bool)
	Rights   RightNames // names for Explain
	Trace    bool       // keep every step for Explain; without it, object types and conditions nothing here allocates
}

// ObjectType is a node of an object tree. The first one, and only it, is at level 0; a level is at most one more than the one before.
type ObjectType struct {
	Level int // at most 4
	Type  GUID
}

// PolicyRule is one rule of a central access policy (MS-GPCAP 2.2.2): what its descriptor's DACL does not grant is not granted.
type PolicyRule struct {
	AppliesTo  Condition // over resource attributes; empty: always
	Descriptor *Descriptor
}

// AccessCheck is the access check algorithm of MS-DTYP 2.5.3.2: the mandatory label, then privileges, owner, and the entries of
// the DACL in stored order, then central policies, and at last what is to be audited. It takes time linear in entries times
// groups, and in the bytes of conditions.
//
// Statuses: GenericNotMapped, NoToken, BadTokenType, NoImpersonationToken, BadImpersonationLevel, InvalidParameter (the object types)
// and InvalidSecurityDescr where the question can't be answered, in this order of precedence; InvalidACL at an entry that is not
// understood; PrivilegeNotHeld where AccessSystemSecurity is asked without SeSecurity; AccessDenied; Success.
func AccessCheck(req CheckRequest) Decision {
	c := check{req: req, wanted: req.Desired &^ MaximumAllowed, maximum: req.Desired&MaximumAllowed != 0}
	c.interest = c.wanted
	if c.maximum {
		c.interest |= ^(GenericRights | MaximumAllowed | AccessSystemSecurity)
	}
	if c.admissible() {
		c.before()
		if c.label() && c.trust() && c.filters() && c.privileges() && c.dacl() && c.policies() {
			c.whole()
		}
		c.audit()
	}
	c.decision.Status, c.decision.request = c.status, c.req
	if c.status == ntstatus.Success {
		c.decision.Granted, c.decision.Missing = c.granted, 0
	}
	c.parts()
	return c.decision
}

// check is one run of AccessCheck.
type check struct {
	req      CheckRequest // a copy: a pointer would make the caller's escape
	wanted   AccessMask   // must all be granted
	interest AccessMask   // may be granted: wanted, or with MaximumAllowed anything
	maximum  bool
	granted  AccessMask
	nodes    []node // with object types; the first one's is granted
	owns     bool   // the token speaks for the owner
	ownsDeny bool   // …or does so as far as being denied goes
	resource []Claim
	claimed  bool // resource has been read
	walked   bool // the entries have decided, for each part
	status   ntstatus.Status
	decision Decision
}

// node is what is known of a part of the object.
type node struct{ granted, denied AccessMask }

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

// grant adds what is of interest and not yet granted, to the whole object, and returns just that.
func (c *check) grant(bits AccessMask) AccessMask {
	fresh := bits & c.interest &^ c.granted
	c.granted |= fresh
	for i := range c.nodes {
		c.nodes[i].granted |= fresh
	}
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
	case !c.parseTree():
		return c.stop(ntstatus.InvalidParameter, c.wanted, Step{Rule: RuleObjectTypes, Effect: Refused})
	case d == nil:
		return c.stop(ntstatus.AccessDenied, c.wanted, Step{Rule: RuleDescriptor, Effect: Refused})
	case d.Owner.IsZero() || d.Group.IsZero():
		return c.stop(ntstatus.InvalidSecurityDescr, c.wanted, Step{Rule: RuleDescriptor, Effect: Refused})
	}
	return true
}

// parseTree checks the object types and makes a node of each.
func (c *check) parseTree() bool {
	const deepest = 4
	list := c.req.ObjectTypes
	if len(list) == 0 {
		return true
	}
	seen := make(map[GUID]bool, len(list))
	for i := range list {
		level, below := list[i].Level, 0
		if i > 0 {
			below = list[i-1].Level + 1
		}
		if seen[list[i].Type] || level > below || level > deepest || level < 0 || level == 0 && i > 0 {
			return false
		}
		seen[list[i].Type] = true
	}
	c.nodes = make([]node, len(list))
	return true
}

// before grants what does not depend on the object: what was granted previously, and what backup and restore are for (MS-FSA
// 2.1.5.1.2.1).
func (c *check) before() {
	if fresh := c.grant(c.req.Previously); fresh != 0 {
		c.step(Step{Rule: RulePreviously, Effect: Granted, Bits: fresh})
	}
	if c.req.Backup && c.req.Token.Has(SeBackup) {
		c.use(RuleBackup, SeBackup, c.req.Mapping.Read|ReadControl|AccessSystemSecurity)
	}
	if c.req.Restore && c.req.Token.Has(SeRestore) {
		c.use(RuleRestore, SeRestore, c.req.Mapping.Write|Delete|WriteDAC|WriteOwner|AccessSystemSecurity)
	}
}

// use grants by a privilege.
func (c *check) use(rule Rule, p Privilege, bits AccessMask) {
	if fresh := c.grant(bits); fresh != 0 {
		c.decision.Used |= 1 << p
		c.step(Step{Rule: rule, Effect: Granted, Bits: fresh})
	}
}

// limit keeps only what is left of what is not granted yet: false where something wanted is not.
func (c *check) limit(rule Rule, entry int, left AccessMask) bool {
	left |= c.granted
	if missing := c.wanted &^ left; missing != 0 {
		return c.stop(ntstatus.AccessDenied, missing, Step{Rule: rule, Effect: Denied, Entry: entry, Bits: missing})
	}
	if c.interest&^left != 0 {
		c.interest &= left
		c.step(Step{Rule: rule, Effect: Denied, Entry: entry, Bits: ^left & (StandardRights | SpecificRights | Synchronize)})
	}
	return true
}

// label is the mandatory integrity check, MS-DTYP 2.5.3.3: a token below the object's label keeps only what the label leaves to
// those below, whatever the DACL says. What it leaves is named by the generic rights, so the mapping defines it.
func (c *check) label() bool {
	d, t := c.req.Descriptor, c.req.Token
	if d.SACL != nil {
		for i := range d.SACL.ACEs {
			if !d.SACL.ACEs[i].Type.is(known | system) {
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
	return c.limit(RuleLabel, entry, left)
}

// next is the index of the first entry of a type in the SACL, from i on, that is for this object; -1 where there is none.
func (c *check) next(typ ACEType, i int) int {
	if l := c.req.Descriptor.SACL; l != nil {
		for ; i < len(l.ACEs); i++ {
			if a := &l.ACEs[i]; a.Type == typ && a.Flags&InheritOnly == 0 {
				return i
			}
		}
	}
	return -1
}

// trust is the process trust label: a token whose own is not as high, in type and level, keeps the rights in the entry's mask.
func (c *check) trust() bool {
	for i := c.next(ProcessTrustLabel, 0); i >= 0; i = c.next(ProcessTrustLabel, i+1) {
		a := &c.req.Descriptor.SACL.ACEs[i]
		if !c.req.Token.trusts(&a.SID) && !c.limit(RuleTrust, i, c.req.Mapping.Map(a.Mask)) {
			return false
		}
	}
	return true
}

// filters are access filters: where an entry's condition is not true, those that it is for keep the rights in its mask.
func (c *check) filters() bool {
	for i := c.next(AccessFilter, 0); i >= 0; i = c.next(AccessFilter, i+1) {
		a := &c.req.Descriptor.SACL.ACEs[i]
		if c.applies(&a.SID, true, passOwn) && c.truth(a, false) != True && !c.limit(RuleFilter, i, c.req.Mapping.Map(a.Mask)) {
			return false
		}
	}
	return true
}

// truth is the value of an entry's condition.
func (c *check) truth(a *ACE, deny bool) Truth {
	return Condition(a.Data).Evaluate(c.req.Token, c.attributes(), deny)
}

// attributes are the claims about the object.
func (c *check) attributes() []Claim {
	if !c.claimed {
		c.claimed = true
		for i := c.next(ResourceAttribute, 0); i >= 0; i = c.next(ResourceAttribute, i+1) {
			if claim, ok := c.req.Descriptor.SACL.ACEs[i].Attribute(); ok {
				c.resource = append(c.resource, claim)
			}
		}
	}
	return c.resource
}

// privileges grants what privileges give without asking the DACL.
func (c *check) privileges() bool {
	if c.wanted&^c.granted&AccessSystemSecurity != 0 {
		if !c.req.Token.Has(SeSecurity) {
			return c.stop(ntstatus.PrivilegeNotHeld, AccessSystemSecurity,
				Step{Rule: RuleSecurityPrivilege, Effect: Denied, Bits: AccessSystemSecurity})
		}
		c.use(RuleSecurityPrivilege, SeSecurity, AccessSystemSecurity)
	}
	if c.wanted&WriteOwner != 0 && c.req.Token.Has(SeTakeOwnership) {
		c.use(RuleTakeOwnership, SeTakeOwnership, WriteOwner)
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

// pass is whose SIDs the entries are asked for.
type pass uint8

const (
	passOwn         pass = iota // the token's own
	passRestricting             // those that restrict it
	passPackage                 // those of the package that runs under it
)

// dacl asks the entries for the rest: once for the token's own SIDs and once more for each set of SIDs that narrows it; what all
// grant is granted.
func (c *check) dacl() bool {
	t, privileged := c.req.Token, c.granted
	c.owner()
	if c.req.Descriptor.DACL == nil {
		fresh := c.grant(c.wanted)
		if c.maximum {
			fresh |= c.grant(c.req.Mapping.All)
		}
		if fresh != 0 {
			c.step(Step{Rule: RuleNoDACL, Effect: Granted, Bits: fresh})
		}
		return true
	}
	owned := c.granted
	if !c.walk(passOwn, ^AccessMask(0)) {
		return false
	}
	if len(t.Restricted) > 0 {
		scope, start := ^AccessMask(0), owned
		if t.WriteRestricted {
			scope = c.req.Mapping.writes()
		}
		if !t.matchRestricted(&c.req.Descriptor.Owner) {
			start = privileged
		}
		if !c.narrow(passRestricting, scope, start) {
			return false
		}
	}
	// A package is no owner: what its user has as the owner it needs an entry for.
	return t.AppContainer.IsZero() || c.narrow(passPackage, ^AccessMask(0), privileged)
}

// writes is what only writing needs: what a write-restricted token is restricted in.
func (g GenericMapping) writes() AccessMask {
	return g.Write&^(g.Read|g.Execute) | Delete | WriteDAC | WriteOwner
}

// narrow walks once more, from what was granted without entries, and keeps of the bits in scope what this walk grants too.
func (c *check) narrow(p pass, scope, start AccessMask) bool {
	granted, nodes := c.granted, c.nodes
	c.granted = start
	c.nodes = make([]node, len(nodes))
	for i := range c.nodes {
		c.nodes[i].granted = start
	}
	if !c.walk(p, scope) {
		return false
	}
	c.granted = granted & (c.granted | ^scope)
	for i := range nodes {
		c.nodes[i].granted = nodes[i].granted & (c.nodes[i].granted | ^scope)
	}
	return c.enough(p, c.wanted&scope)
}

// enough ends a walk: what is wanted must be granted, and something to who asked for MaximumAllowed. With object types that is said
// of each part when all is done.
func (c *check) enough(p pass, wanted AccessMask) bool {
	missing := wanted &^ c.granted
	if c.maximum && c.granted == 0 {
		missing |= MaximumAllowed
	}
	if missing == 0 || len(c.nodes) > 0 && !c.walked {
		return true
	}
	return c.stop(ntstatus.AccessDenied, missing, c.at(p, Step{Rule: RuleEnd, Effect: Denied, Bits: missing}))
}

// whole asks once more, of the object as a whole, when everything has narrowed what is granted.
func (c *check) whole() bool {
	c.walked = true
	return c.enough(passOwn, c.wanted)
}

// at notes in a step whose SIDs were asked for.
func (c *check) at(p pass, s Step) Step {
	s.Restricted, s.Package = p == passRestricting, p == passPackage
	return s
}

// walk evaluates the entries in stored order. An entry that denies something wanted which no earlier entry granted ends it, unless
// it is about a part of the object and other parts are still asked for; an entry never takes back what an earlier one granted.
func (c *check) walk(p pass, scope AccessMask) bool {
	var denied AccessMask
	wanted := c.wanted & scope
	entries := c.req.Descriptor.DACL.ACEs
	for i := range entries {
		if !c.maximum && wanted&^c.granted == 0 {
			return true
		}
		a, s := &entries[i], c.at(p, Step{Rule: RuleEntry, Entry: i})
		deny := a.Type.is(denies)
		if !deny && !a.Type.is(allows) {
			s.Effect = Refused
			return c.stop(ntstatus.InvalidACL, wanted&^c.granted, s)
		}
		mask := c.req.Mapping.Map(a.Mask) & c.interest & scope &^ AccessSystemSecurity
		if len(c.nodes) == 0 {
			mask &^= c.granted | denied
		}
		part, found := c.part(a)
		switch {
		case a.Flags&InheritOnly != 0:
			s.Effect = InheritOnlyEntry
		case !c.applies(&a.SID, deny, p):
			s.Effect = OtherSubject
			if c.req.Trace && !deny && c.applies(&a.SID, true, p) {
				s.Effect = DenyOnlySubject
			}
		case !found:
			s.Effect = OtherPart
		case mask == 0:
			s.Effect = NothingNew
		case a.Type.is(condition) && !c.holds(a, deny):
			s.Effect = ConditionFails
		case len(c.nodes) > 0:
			s.Node, s.Effect, s.Bits = part, Granted, mask
			if deny {
				s.Effect = Denied
			}
			if !c.spread(part, mask, deny) {
				s.Effect, s.Bits = NothingNew, 0
			}
		case deny:
			denied |= mask
			s.Effect, s.Bits = Denied, mask
			if mask&wanted != 0 {
				return c.stop(ntstatus.AccessDenied, wanted&^c.granted, s)
			}
		default:
			s.Effect, s.Bits = Granted, c.grant(mask)
		}
		c.step(s)
	}
	if p != passOwn && wanted&^c.granted == 0 {
		return true // narrow says whether what is left is enough
	}
	return c.enough(p, wanted)
}

// holds is MS-DTYP 2.5.3.2 for callback entries: one that allows needs a condition that is true; one that denies does not, where it
// may be true.
func (c *check) holds(a *ACE, deny bool) bool {
	t := c.truth(a, deny)
	return t == True || deny && t == Unknown
}

// part is the node that an entry is about; false where it is about one that is not asked for. Without object types only entries
// about the whole object count.
func (c *check) part(a *ACE) (int, bool) {
	typ, limited := a.about()
	if !limited {
		return 0, true
	}
	for i := range c.req.ObjectTypes {
		if c.req.ObjectTypes[i].Type == typ {
			return i, true
		}
	}
	return 0, false
}

// spread grants or denies bits to a part, with all of its own parts. What all parts of something have been granted it has itself; what
// one has been denied it can't be granted any more. It reports whether anything changed.
func (c *check) spread(part int, bits AccessMask, deny bool) bool {
	list, changed := c.req.ObjectTypes, AccessMask(0)
	for i := part; i < len(list) && (i == part || list[i].Level > list[part].Level); i++ {
		n := &c.nodes[i]
		fresh := bits &^ (n.granted | n.denied)
		if changed |= fresh; deny {
			n.denied |= fresh
		} else {
			n.granted |= fresh
		}
	}
	for i := part - 1; i >= 0; i-- {
		if list[i].Level >= list[part].Level {
			continue
		}
		part = i
		n, all := &c.nodes[i], ^AccessMask(0)
		for j := i + 1; j < len(list) && list[j].Level > list[i].Level; j++ {
			if list[j].Level == list[i].Level+1 {
				all &= c.nodes[j].granted
			}
		}
		if deny {
			n.denied |= changed &^ n.granted
		} else {
			n.granted |= all &^ n.denied
		}
	}
	c.granted = c.nodes[0].granted
	return changed != 0
}

// applies reports whether an entry for sid is about the token.
func (c *check) applies(sid *SID, deny bool, p pass) bool {
	switch {
	case sid.isOwnerRights():
		switch {
		case deny:
			return c.ownsDeny
		case p == passOwn:
			return c.owns
		}
		return c.owns && p == passRestricting && c.req.Token.matchRestricted(&c.req.Descriptor.Owner)
	case sid.isPrincipalSelf():
		sid = &c.req.Self
	}
	if sid.IsZero() {
		return false
	}
	switch p {
	case passRestricting:
		return c.req.Token.matchRestricted(sid)
	case passPackage:
		return c.req.Token.matchPackage(sid)
	}
	return c.req.Token.match(sid, deny)
}

// policies are the central access policies that the SACL names (MS-DTYP 2.5.3.2, MS-GPCAP): each narrows what the DACL grants.
func (c *check) policies() bool {
	for i := c.next(ScopedPolicyID, 0); i >= 0; i = c.next(ScopedPolicyID, i+1) {
		for _, r := range c.rules(c.req.Descriptor.SACL.ACEs[i].SID) {
			if r.AppliesTo != "" && r.AppliesTo.Evaluate(c.req.Token, c.attributes(), true) == False {
				continue
			}
			left := c.byRule(r.Descriptor)
			if missing := c.wanted &^ left; missing != 0 && len(c.nodes) == 0 {
				return c.stop(ntstatus.AccessDenied, missing, Step{Rule: RulePolicy, Effect: Denied, Entry: i, Bits: missing})
			}
			if taken := c.granted &^ left; taken != 0 {
				c.granted &= left
				c.step(Step{Rule: RulePolicy, Effect: Denied, Entry: i, Bits: taken})
			}
			for n := range c.nodes {
				c.nodes[n].granted &= left
			}
		}
	}
	return true
}

// rules are those of a policy; of one that is not known, those that let the object be repaired.
func (c *check) rules(policy SID) []PolicyRule {
	if c.req.Policies != nil {
		if rules, ok := c.req.Policies(policy); ok {
			return rules
		}
	}
	recovery := NewACL(Allow(LocalSystem(), GenericAll), Allow(Administrators(), GenericAll), Allow(OwnerRights(), GenericAll))
	return []PolicyRule{{Descriptor: &Descriptor{DACL: recovery}}}
}

// byRule is what a rule's DACL leaves; what the token has by privilege it keeps. A rule without a DACL leaves nothing, and so does
// an entry in it that is not understood.
func (c *check) byRule(d *Descriptor) AccessMask {
	var denied AccessMask
	granted := AccessSystemSecurity
	if c.decision.Used&(1<<SeTakeOwnership) != 0 {
		granted |= WriteOwner
	}
	if d == nil || d.DACL == nil {
		return granted
	}
	for i := range d.DACL.ACEs {
		a := &d.DACL.ACEs[i]
		deny := a.Type.is(denies)
		_, limited := a.about()
		switch {
		case !deny && !a.Type.is(allows):
			return AccessSystemSecurity
		case a.Flags&InheritOnly != 0, limited && !deny, !c.applies(&a.SID, deny, passOwn), a.Type.is(condition) && !c.holds(a, deny):
		case deny:
			denied |= c.req.Mapping.Map(a.Mask) &^ granted
		default:
			granted |= c.req.Mapping.Map(a.Mask) &^ denied
		}
	}
	return granted
}

// audit finds the first entry of the SACL that wants the outcome to be told (MS-DTYP 2.4.4.10): one for a SID of the token, with a
// right in its mask that was granted or, on a failure, was asked for.
func (c *check) audit() {
	l := c.req.Descriptor.SACL
	if l == nil {
		return
	}
	flag, bits := SuccessfulAccess, c.granted
	if c.status != ntstatus.Success {
		flag, bits = FailedAccess, c.wanted
		if c.maximum {
			bits = ^GenericRights
		}
	}
	for i := range l.ACEs {
		a := &l.ACEs[i]
		if !a.Type.is(audits) || a.Flags&(flag|InheritOnly) != flag || c.req.Mapping.Map(a.Mask)&bits == 0 || !c.applies(&a.SID, true, passOwn) {
			continue
		}
		if _, found := c.part(a); found && (!a.Type.is(condition) || c.holds(a, true)) {
			c.decision.Audit, c.decision.AuditEntry = true, i
			return
		}
	}
}

// parts tells the outcome of each object type.
func (c *check) parts() {
	if len(c.nodes) == 0 {
		return
	}
	c.decision.Parts = make([]PartDecision, len(c.nodes))
	for i := range c.nodes {
		n, r := &c.nodes[i], &c.decision.Parts[i]
		switch {
		case !c.walked:
			r.Status = c.status
		case c.wanted&^n.granted != 0 || c.maximum && n.granted == 0:
			r.Status = ntstatus.AccessDenied
		default:
			r.Granted = n.granted & c.interest
		}
	}
}
