package security

import "slices"

// ACL is a list of entries in the order in which they are evaluated; the order is the administrator's, nothing here sorts it.
// A nil *ACL and an ACL without entries differ: see Descriptor.
type ACL struct {
	ACEs []ACE

	// Revision is kept where a list was read with another one than its entries need (MS-DTYP 2.4.5); else 0. It means nothing.
	Revision uint8
}

// NewACL is a list of these entries.
func NewACL(entries ...ACE) *ACL { return &ACL{ACEs: entries} }

// Clone is a deep copy; nil stays nil.
func (l *ACL) Clone() *ACL {
	if l == nil {
		return nil
	}
	return &ACL{ACEs: slices.Clone(l.ACEs), Revision: l.Revision}
}

// Equal reports whether both are nil or hold the same entries in the same order.
func (l *ACL) Equal(o *ACL) bool {
	if l == nil || o == nil {
		return l == o
	}
	return slices.Equal(l.ACEs, o.ACEs)
}
