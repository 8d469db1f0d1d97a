package security

import (
	"fmt"

	"sallyport/ntstatus"
)

// Rule is a rule of the access check, in the order in which they are applied.
type Rule uint8

// The rules.
const (
	RuleRequest           Rule = iota // the question itself
	RuleToken                         // there is a token, of the type and level that the mode needs
	RuleObjectTypes                   // the object types are a tree
	RuleDescriptor                    // there is a descriptor, with owner and group
	RulePreviously                    // what was granted before
	RuleBackup                        // SeBackup reads
	RuleRestore                       // SeRestore writes
	RuleLabel                         // mandatory integrity
	RuleTrust                         // the process trust label
	RuleFilter                        // an access filter
	RuleSecurityPrivilege             // SeSecurity gives ACCESS_SYSTEM_SECURITY
	RuleTakeOwnership                 // SeTakeOwnership gives WRITE_OWNER
	RuleOwner                         // the owner has READ_CONTROL and WRITE_DAC
	RuleNoDACL                        // an absent or NULL DACL grants everything
	RuleEntry                         // an entry of the DACL
	RulePolicy                        // a central access policy
	RuleEnd                           // what no entry granted is denied
)

// Effect is what a rule did.
type Effect uint8

// The effects.
const (
	Granted          Effect = iota
	Denied                  //
	Refused                 // the question can't be answered: Decision.Status says why
	InheritOnlyEntry        // skipped: the entry is for children only
	OtherSubject            // skipped: the entry's SID is not in the token
	DenyOnlySubject         // skipped: the token has the entry's SID for denying only
	OtherPart               // skipped: the entry is about a part of the object that is not asked for
	ConditionFails          // skipped: the entry's condition does not hold
	NothingNew              // skipped: what the entry says is decided already or was not asked
)

// Step is one step of a decision.
type Step struct {
	Rule       Rule
	Effect     Effect
	Entry      int        // RuleEntry: index in the DACL; RuleLabel to RulePolicy: in the SACL, -1 for the label that an object has by default
	Node       int        // RuleEntry: index in CheckRequest.ObjectTypes
	Bits       AccessMask // what was granted or denied
	Restricted bool       // for the restricting SIDs of the token
	Package    bool       // for the SIDs of the token's package
}

// PartDecision is the answer for one part of the object (AccessCheckByTypeResultList). Granted is 0 unless Status is Success.
type PartDecision struct {
	Granted AccessMask
	Status  ntstatus.Status
}

// PrivilegeSet is a set of privileges.
type PrivilegeSet uint64

// Has reports whether p is in the set.
func (s PrivilegeSet) Has(p Privilege) bool { return s>>p&1 != 0 }

// Decision is the answer of AccessCheck. Granted is 0 unless Status is Success: a denial never says what would have been allowed.
type Decision struct {
	Granted  AccessMask
	Status   ntstatus.Status
	Missing  AccessMask // on a denial, what was not granted
	Deciding Step       // the step that settled it
	Steps    []Step     // all of them, where CheckRequest.Trace asked for it

	Parts      []PartDecision // one for each of CheckRequest.ObjectTypes; the decision itself is about the whole
	Used       PrivilegeSet   // what granted something that was asked
	Audit      bool           // the SACL wants the outcome to be told
	AuditEntry int            // …by this entry

	request CheckRequest
}

// Allowed reports whether everything that was asked is granted.
func (d Decision) Allowed() bool { return d.Status == ntstatus.Success }

// String is the outcome and what decided it, in one sentence.
func (d Decision) String() string {
	if d.Allowed() {
		return fmt.Sprintf("granted %s: %s", d.name(d.Granted), d.describe(d.Deciding))
	}
	return fmt.Sprintf("%s, %s missing: %s", d.Status.Error(), d.name(d.Missing), d.describe(d.Deciding))
}

// Explain tells the decision step by step, a sentence each, the outcome last. Without CheckRequest.Trace it is the outcome alone.
func (d Decision) Explain() []string {
	lines := make([]string, 0, len(d.Steps)+1)
	for _, s := range d.Steps {
		lines = append(lines, d.describe(s))
	}
	return append(lines, d.String())
}

func (d Decision) name(m AccessMask) string { return d.request.Rights.Describe(m) }

// describe says what one step did and why.
func (d Decision) describe(s Step) string {
	sd := d.request.Descriptor
	switch s.Rule {
	case RuleRequest:
		if s.Effect == Granted {
			return "nothing was asked"
		}
		return "a generic right was asked that was not mapped to rights of the object"
	case RuleToken:
		switch d.Status {
		case ntstatus.NoToken:
			return "there is no token to check"
		case ntstatus.BadTokenType:
			return "the token is neither a process's own nor a client's"
		case ntstatus.NoImpersonationToken:
			return "a client's token is needed, this one is a process's own"
		}
		return fmt.Sprintf("the client allows %s only", d.request.Token.Level)
	case RuleObjectTypes:
		return "the object types are no tree, or name a type twice"
	case RulePreviously:
		return "granted before: " + d.name(s.Bits)
	case RuleDescriptor:
		if sd == nil {
			return "the object has no security descriptor"
		}
		return "the security descriptor lacks an owner or a group"
	case RuleLabel:
		return d.describeLabel(s)
	case RuleTrust:
		return fmt.Sprintf("entry %d of the SACL %s denies %s: the token is not as trusted", s.Entry, sd.SACL.ACEs[s.Entry], d.name(s.Bits))
	case RuleFilter:
		return fmt.Sprintf("entry %d of the SACL %s denies %s: its condition is not true", s.Entry, sd.SACL.ACEs[s.Entry], d.name(s.Bits))
	case RulePolicy:
		return fmt.Sprintf("the policy of entry %d of the SACL %s denies %s", s.Entry, sd.SACL.ACEs[s.Entry], d.name(s.Bits))
	case RuleSecurityPrivilege, RuleTakeOwnership, RuleBackup, RuleRestore:
		privilege := map[Rule]Privilege{RuleSecurityPrivilege: SeSecurity, RuleTakeOwnership: SeTakeOwnership, RuleBackup: SeBackup,
			RuleRestore: SeRestore}[s.Rule]
		if s.Effect == Denied {
			return fmt.Sprintf("%s takes %s, which is not held or not enabled", d.name(s.Bits), privilege)
		}
		return fmt.Sprintf("%s grants %s", privilege, d.name(s.Bits))
	case RuleOwner:
		return fmt.Sprintf("the owner %s has %s", sd.Owner, d.name(s.Bits))
	case RuleNoDACL:
		return fmt.Sprintf("there is no DACL, which grants %s", d.name(s.Bits))
	case RuleEnd:
		return fmt.Sprintf("no entry%s grants %s", forWhom(s), d.name(s.Bits))
	}
	part := ""
	if s.Node > 0 {
		part = " of " + d.request.ObjectTypes[s.Node].Type.String()
	}
	return fmt.Sprintf("entry %d of the DACL %s%s %s%s", s.Entry, sd.DACL.ACEs[s.Entry], forWhom(s), d.effect(s), part)
}

func (d Decision) describeLabel(s Step) string {
	if s.Effect == Refused {
		return fmt.Sprintf("entry %d of the SACL %s is not understood", s.Entry, d.request.Descriptor.SACL.ACEs[s.Entry])
	}
	where := "the default label"
	if s.Entry >= 0 {
		where = fmt.Sprintf("entry %d of the SACL %s", s.Entry, d.request.Descriptor.SACL.ACEs[s.Entry])
	}
	label, _, _ := d.request.Descriptor.MandatoryLabel()
	integrity := d.request.Token.Integrity
	if integrity.IsZero() {
		integrity = IntegrityUntrusted()
	}
	return fmt.Sprintf("%s denies %s: the token's integrity %s is below %s", where, d.name(s.Bits),
		appendSID(nil, integrity, SID{}), appendSID(nil, label, SID{}))
}

func (d Decision) effect(s Step) string {
	switch s.Effect {
	case Granted:
		return "grants " + d.name(s.Bits)
	case Denied:
		return "denies " + d.name(s.Bits)
	case InheritOnlyEntry:
		return "is for children only"
	case OtherSubject:
		return "is for somebody else"
	case DenyOnlySubject:
		return "does not count: the token has its SID for denying only"
	case OtherPart:
		return "is about another part of the object"
	case ConditionFails:
		return "does not count: its condition does not hold"
	case NothingNew:
		return "changes nothing"
	}
	return "is not understood"
}

func forWhom(s Step) string {
	switch {
	case s.Restricted:
		return " (for the restricting SIDs)"
	case s.Package:
		return " (for the package)"
	}
	return ""
}
