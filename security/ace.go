package security

// ACEType is the kind of an entry (MS-DTYP 2.4.4.1). Numbers are NT's. The types that are not listed here are refused by the
// parser and by AccessCheck: an entry that is not understood may be the one that denies.
type ACEType uint8

// The types of entry that this package understands.
const (
	AccessAllowed  ACEType = 0x00
	AccessDenied   ACEType = 0x01
	SystemAudit    ACEType = 0x02
	SystemAlarm    ACEType = 0x03 // reserved by MS-DTYP: kept, never acted on
	MandatoryLabel ACEType = 0x11
)

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
)

// What the mask of a MandatoryLabel says (MS-DTYP 2.4.4.13): what a token below the label may not do.
const (
	NoWriteUp   AccessMask = 0x1
	NoReadUp    AccessMask = 0x2
	NoExecuteUp AccessMask = 0x4
)

// ACE is one entry of an ACL: SID may, or may not, do what Mask says. Comparable.
type ACE struct {
	Type  ACEType
	Flags ACEFlags
	Mask  AccessMask
	SID   SID
}

// Allow is the entry that grants mask to sid.
func Allow(sid SID, mask AccessMask) ACE { return ACE{Type: AccessAllowed, Mask: mask, SID: sid} }

// Deny is the entry that denies mask to sid.
func Deny(sid SID, mask AccessMask) ACE { return ACE{Type: AccessDenied, Mask: mask, SID: sid} }

// size is the entry's length in the binary form: header, mask and SID.
func (a *ACE) size() int { return 8 + 8 + 4*a.SID.Len() }
