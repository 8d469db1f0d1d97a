package security

import (
	"fmt"
	"strings"
)

// AccessMask is a set of rights (MS-DTYP 2.4.3): 16 bits of the object's type, then the standard ones.
type AccessMask uint32

// The rights that every type of object has, and those that stand for others.
const (
	SpecificRights       AccessMask = 0x0000ffff // what the type of object defines
	Delete               AccessMask = 0x00010000
	ReadControl          AccessMask = 0x00020000 // read owner, group and DACL
	WriteDAC             AccessMask = 0x00040000
	WriteOwner           AccessMask = 0x00080000
	Synchronize          AccessMask = 0x00100000
	StandardRights       AccessMask = Delete | ReadControl | WriteDAC | WriteOwner
	AccessSystemSecurity AccessMask = 0x01000000 // read and write the SACL: only by SeSecurityPrivilege
	MaximumAllowed       AccessMask = 0x02000000 // in a request: everything that is granted
	GenericAll           AccessMask = 0x10000000
	GenericExecute       AccessMask = 0x20000000
	GenericWrite         AccessMask = 0x40000000
	GenericRead          AccessMask = 0x80000000
	GenericRights        AccessMask = GenericAll | GenericExecute | GenericWrite | GenericRead
)

// GenericMapping says what the generic rights mean for one type of object (MS-DTYP 2.4.3, FEATURES 1.3.c). Its masks
// hold no generic bits themselves.
type GenericMapping struct{ Read, Write, Execute, All AccessMask }

// Map replaces the generic bits of m by what they mean; the other bits stay.
func (g GenericMapping) Map(m AccessMask) AccessMask {
	mapped := m &^ GenericRights
	if m&GenericRead != 0 {
		mapped |= g.Read
	}
	if m&GenericWrite != 0 {
		mapped |= g.Write
	}
	if m&GenericExecute != 0 {
		mapped |= g.Execute
	}
	if m&GenericAll != 0 {
		mapped |= g.All
	}
	return mapped
}

// RightName is one right of a type of object by its documented name. Mask may have several bits.
type RightName struct {
	Name string
	Mask AccessMask
}

// RightNames is what a type of object calls its rights. In Describe the first entry that fits wins, so that composed rights
// (PORT_ALL_ACCESS) stand before the single bits. The standard rights need not be listed.
type RightNames []RightName

// standardNames is never written.
var standardNames = RightNames{
	{"DELETE", Delete}, {"READ_CONTROL", ReadControl}, {"WRITE_DAC", WriteDAC}, {"WRITE_OWNER", WriteOwner},
	{"SYNCHRONIZE", Synchronize}, {"ACCESS_SYSTEM_SECURITY", AccessSystemSecurity}, {"MAXIMUM_ALLOWED", MaximumAllowed},
	{"GENERIC_ALL", GenericAll}, {"GENERIC_EXECUTE", GenericExecute}, {"GENERIC_WRITE", GenericWrite}, {"GENERIC_READ", GenericRead},
}

// Describe names m for a person: "PORT_CONNECT (0x1)", "READ_CONTROL|WRITE_DAC (0x60000)". Bits without a name are
// in the number alone; "nothing" is the empty mask.
func (r RightNames) Describe(m AccessMask) string {
	if m == 0 {
		return "nothing"
	}
	var names []string
	rest := m
	for _, table := range []RightNames{r, standardNames} {
		for _, n := range table {
			if n.Mask != 0 && rest&n.Mask == n.Mask {
				names = append(names, n.Name)
				rest &^= n.Mask
			}
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("%#x", uint32(m))
	}
	return fmt.Sprintf("%s (%#x)", strings.Join(names, "|"), uint32(m))
}

// String is Describe with the standard names only.
func (m AccessMask) String() string { return RightNames(nil).Describe(m) }
