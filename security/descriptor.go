package security

import "sallyport/ntstatus"

// Control is the descriptor's control word (MS-DTYP 2.4.6), NT's numbers.
type Control uint16

// The control bits. SELF_RELATIVE belongs to the binary form and is not kept; bits without a name here are.
const (
	OwnerDefaulted     Control = 0x0001
	GroupDefaulted     Control = 0x0002
	DACLPresent        Control = 0x0004
	DACLDefaulted      Control = 0x0008
	SACLPresent        Control = 0x0010
	SACLDefaulted      Control = 0x0020
	DACLAutoInheritReq Control = 0x0100
	SACLAutoInheritReq Control = 0x0200
	DACLAutoInherited  Control = 0x0400
	SACLAutoInherited  Control = 0x0800
	DACLProtected      Control = 0x1000
	SACLProtected      Control = 0x2000
)

// Descriptor is a security descriptor (MS-DTYP 2.4.6): whose an object is and who may do what with it. A zero Owner or Group is
// absent. The DACL has three empty forms that mean different things:
//
//	absent  DACL nil, DACLPresent clear   everything is granted
//	NULL    DACL nil, DACLPresent set     everything is granted, on purpose (SDDL: D:NO_ACCESS_CONTROL)
//	empty   DACL without entries          nothing is granted but what owner and privileges give
//
// A DACL or SACL that is not nil is present whether Control says so or not: forgetting the bit must not open the object.
// Immutable once shared.
type Descriptor struct {
	Control      Control
	Owner, Group SID
	DACL, SACL   *ACL
	RMControl    uint8 // the resource manager's own bits (MS-DTYP 2.4.6, Sbz1): kept, without meaning here
}

// HasDACL reports whether a DACL is present, be it NULL, empty or neither.
func (d *Descriptor) HasDACL() bool { return d.DACL != nil || d.Control&DACLPresent != 0 }

// HasSACL is HasDACL for the SACL.
func (d *Descriptor) HasSACL() bool { return d.SACL != nil || d.Control&SACLPresent != 0 }

// Clone is a deep copy; nil stays nil.
func (d *Descriptor) Clone() *Descriptor {
	if d == nil {
		return nil
	}
	c := *d
	c.DACL, c.SACL = d.DACL.Clone(), d.SACL.Clone()
	return &c
}

// Equal reports whether both say the same, control bits included.
func (d *Descriptor) Equal(o *Descriptor) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.control() == o.control() && d.Owner == o.Owner && d.Group == o.Group && d.DACL.Equal(o.DACL) && d.SACL.Equal(o.SACL)
}

// control is Control with the present bits as they are in truth.
func (d *Descriptor) control() Control {
	c := d.Control
	if d.DACL != nil {
		c |= DACLPresent
	}
	if d.SACL != nil {
		c |= SACLPresent
	}
	return c
}

// MandatoryLabel is the integrity label of the object and what it forbids to whom is below it: that of the first label entry that
// is not inherit-only, else Medium and NoWriteUp (MS-DTYP 2.5.3.3). The entry's index in the SACL is -1 where there is none.
func (d *Descriptor) MandatoryLabel() (label SID, policy AccessMask, entry int) {
	if d.SACL != nil {
		for i := range d.SACL.ACEs {
			if a := &d.SACL.ACEs[i]; a.Type == MandatoryLabel && a.Flags&InheritOnly == 0 {
				return a.SID, a.Mask, i
			}
		}
	}
	return IntegrityMedium(), NoWriteUp, -1
}

// SetControl sets the bits of mask to those of bits (SetSecurityDescriptorControl). Only the bits about inheritance may be changed, and the
// two that are reserved for callers; else it fails with InvalidParameter and changes nothing.
func (d *Descriptor) SetControl(mask, bits Control) error {
	const changeable = DACLAutoInheritReq | SACLAutoInheritReq | DACLAutoInherited | SACLAutoInherited | DACLProtected | SACLProtected | 0x40 | 0x80
	if (mask|bits)&^changeable != 0 {
		return ntstatus.Errorf("security.SetControl", "", ntstatus.InvalidParameter, "bits %#x", uint16((mask|bits)&^changeable))
	}
	d.Control = d.Control&^mask | bits&mask
	return nil
}
