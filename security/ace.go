package security

// ACEType is the kind of an entry (MS-DTYP 2.4.4.1). Numbers are NT's. An entry of a type that is not listed here is kept as it is
// in the binary form and makes AccessCheck fail: an entry that is not understood may be the one that denies.
type ACEType uint8

// The types of entry.
const (
	AccessAllowed               ACEType = 0x00
	AccessDenied                ACEType = 0x01
	SystemAudit                 ACEType = 0x02
	SystemAlarm                 ACEType = 0x03 // reserved by MS-DTYP: kept, never acted on
	AccessAllowedCompound       ACEType = 0x04 // reserved by MS-DTYP: kept as bytes, not understood
	AccessAllowedObject         ACEType = 0x05
	AccessDeniedObject          ACEType = 0x06
	SystemAuditObject           ACEType = 0x07
	SystemAlarmObject           ACEType = 0x08
	AccessAllowedCallback       ACEType = 0x09
	AccessDeniedCallback        ACEType = 0x0a
	AccessAllowedCallbackObject ACEType = 0x0b
	AccessDeniedCallbackObject  ACEType = 0x0c
	SystemAuditCallback         ACEType = 0x0d
	SystemAlarmCallback         ACEType = 0x0e
	SystemAuditCallbackObject   ACEType = 0x0f
	SystemAlarmCallbackObject   ACEType = 0x10
	MandatoryLabel              ACEType = 0x11
	ResourceAttribute           ACEType = 0x12
	ScopedPolicyID              ACEType = 0x13
	ProcessTrustLabel           ACEType = 0x14
	AccessFilter                ACEType = 0x15
)

// traits is what the type of an entry says about its form and its use.
type traits uint8

const (
	known     traits = 1 << iota // mask and SID are where MS-DTYP 2.4.4.2 has them
	object                       // has object flags and GUIDs (MS-DTYP 2.4.4.3)
	condition                    // the data may be a condition (MS-DTYP 2.4.4.17)
	allows
	denies
	audits
	system // belongs into a SACL
)

// aceTraits is never written.
var aceTraits = [...]traits{
	AccessAllowed:               known | allows,
	AccessDenied:                known | denies,
	SystemAudit:                 known | system | audits,
	SystemAlarm:                 known | system,
	AccessAllowedCompound:       0,
	AccessAllowedObject:         known | object | allows,
	AccessDeniedObject:          known | object | denies,
	SystemAuditObject:           known | object | system | audits,
	SystemAlarmObject:           known | object | system,
	AccessAllowedCallback:       known | condition | allows,
	AccessDeniedCallback:        known | condition | denies,
	AccessAllowedCallbackObject: known | condition | object | allows,
	AccessDeniedCallbackObject:  known | condition | object | denies,
	SystemAuditCallback:         known | condition | system | audits,
	SystemAlarmCallback:         known | condition | system,
	SystemAuditCallbackObject:   known | condition | object | system | audits,
	SystemAlarmCallbackObject:   known | condition | object | system,
	MandatoryLabel:              known | system,
	ResourceAttribute:           known | system,
	ScopedPolicyID:              known | system,
	ProcessTrustLabel:           known | system,
	AccessFilter:                known | condition | system,
}

func (t ACEType) traits() traits {
	if int(t) < len(aceTraits) {
		return aceTraits[t]
	}
	return 0
}

func (t ACEType) is(all traits) bool { return t.traits()&all == all }

// ACEFlags say how an entry is inherited and when it audits (MS-DTYP 2.4.4.1).
type ACEFlags uint8

// The flags, NT's numbers.
const (
	ObjectInherit      ACEFlags = 0x01
	ContainerInherit   ACEFlags = 0x02
	NoPropagateInherit ACEFlags = 0x04
	InheritOnly        ACEFlags = 0x08
	InheritedACE       ACEFlags = 0x10
	CriticalACE        ACEFlags = 0x20
	SuccessfulAccess   ACEFlags = 0x40
	FailedAccess       ACEFlags = 0x80

	inheritance = ObjectInherit | ContainerInherit | NoPropagateInherit | InheritOnly
)

// What the mask of a MandatoryLabel says (MS-DTYP 2.4.4.13): what a token below the label may not do.
const (
	NoWriteUp   AccessMask = 0x1
	NoReadUp    AccessMask = 0x2
	NoExecuteUp AccessMask = 0x4
)

// ObjectFlags say which GUIDs an object entry has (MS-DTYP 2.4.4.3).
type ObjectFlags uint32

// The flags, NT's numbers.
const (
	ObjectTypePresent          ObjectFlags = 0x1
	InheritedObjectTypePresent ObjectFlags = 0x2
)

// ACE is one entry of an ACL: SID may, or may not, do what Mask says. Comparable.
type ACE struct {
	Type  ACEType
	Flags ACEFlags
	Mask  AccessMask
	SID   SID

	// Of object entries: what part or property of the object the entry is about, and which type of child inherits it.
	ObjectFlags                     ObjectFlags
	ObjectType, InheritedObjectType GUID

	// Data is what follows the SID in the binary form, a multiple of four bytes: the Condition of a callback entry or an access
	// filter, the Claim of a resource attribute. Of an entry of unknown type it is all but the header, and Mask and SID are zero.
	Data string
}

// Allow is the entry that grants mask to sid.
func Allow(sid SID, mask AccessMask) ACE { return ACE{Type: AccessAllowed, Mask: mask, SID: sid} }

// Deny is the entry that denies mask to sid.
func Deny(sid SID, mask AccessMask) ACE { return ACE{Type: AccessDenied, Mask: mask, SID: sid} }

// about is the object type that the entry is limited to; false where it is about the whole object.
func (a *ACE) about() (GUID, bool) {
	return a.ObjectType, a.Type.is(object) && a.ObjectFlags&ObjectTypePresent != 0
}
