package security

import "sallyport/ntstatus"

// NewObject says what an object is made of that is to get a descriptor (MS-DTYP 2.5.3.4, CreateSecurityDescriptor).
type NewObject struct {
	Parent    *Descriptor // of the container that the object is made in; nil: none
	Explicit  *Descriptor // what the creator says; nil: nothing
	Token     *Token      // the creator's
	Container bool        // the object can have children itself
	Type      GUID        // of the object: an entry that names another type of child is not for it; zero: inherits from all
	Mapping   GenericMapping

	// AutoInherit is SEF_DACL_AUTO_INHERIT and SEF_SACL_AUTO_INHERIT: what comes from the parent is added to what the creator says, and
	// marked, so that Reinherit finds it again. Without it the parent's entries count only where the creator says nothing.
	AutoInherit bool
	// OwnerFromParent and GroupFromParent are the defaults SEF_DEFAULT_OWNER_FROM_PARENT and SEF_DEFAULT_GROUP_FROM_PARENT.
	OwnerFromParent, GroupFromParent bool
	// Trusted leaves out what the creator needs privileges for: another's owner SID, a SACL, a label above the creator's.
	Trusted bool
}

// NewDescriptor is the descriptor of a new object (MS-DTYP 2.5.3.4, SeAssignSecurityEx). It shares nothing with what it is made of.
//
// Statuses: NoToken; InvalidOwner (no owner, or one that needs SeRestore) and InvalidPrimaryGroup; PrivilegeNotHeld (a SACL without
// SeSecurity, a label above the creator's without SeRelabel); InvalidACL where the result does not fit 64 KiB.
func NewDescriptor(n NewObject) (*Descriptor, error) {
	const op = "security.NewDescriptor"
	if n.Token == nil {
		return nil, ntstatus.New(op, "", ntstatus.NoToken)
	}
	if n.Explicit == nil {
		n.Explicit = &Descriptor{}
	}
	if n.Parent == nil {
		n.Parent = &Descriptor{}
	}
	d := &Descriptor{Owner: n.Explicit.Owner, Group: n.Explicit.Group, RMControl: n.Explicit.RMControl}
	d.Control = n.Explicit.Control & rmControlValid
	if d.Owner.IsZero() {
		if d.Owner = n.Token.DefaultOwner(); n.OwnerFromParent {
			d.Owner = n.Parent.Owner
		}
	} else if !n.Trusted && !n.Token.MayOwn(d.Owner) && !n.Token.Has(SeRestore) {
		return nil, ntstatus.New(op, d.Owner.String(), ntstatus.InvalidOwner)
	}
	if d.Owner.IsZero() {
		return nil, ntstatus.New(op, "", ntstatus.InvalidOwner)
	}
	if d.Group.IsZero() {
		if d.Group = n.Token.PrimaryGroup; n.GroupFromParent {
			d.Group = n.Parent.Group
		}
	}
	if d.Group.IsZero() {
		return nil, ntstatus.New(op, "", ntstatus.InvalidPrimaryGroup)
	}
	if err := n.maySetSACL(op); err != nil {
		return nil, err
	}
	n.list(d, daclParts, n.Token.DefaultDACL)
	n.list(d, saclParts, nil)
	for _, l := range []*ACL{d.DACL, d.SACL} {
		if err := l.check(op); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// maySetSACL checks the creator's SACL: audit entries need SeSecurity, a label above the creator's SeRelabel.
func (n *NewObject) maySetSACL(op string) error {
	if n.Trusted || n.Explicit.SACL == nil {
		return nil
	}
	for i := range n.Explicit.SACL.ACEs {
		a := &n.Explicit.SACL.ACEs[i]
		if a.Type != MandatoryLabel {
			if !n.Token.Has(SeSecurity) {
				return ntstatus.New(op, SeSecurity.String(), ntstatus.PrivilegeNotHeld)
			}
		} else if level, _ := a.SID.IntegrityLevel(); level > n.Token.IntegrityLevel() && !n.Token.Has(SeRelabel) {
			return ntstatus.New(op, SeRelabel.String(), ntstatus.PrivilegeNotHeld)
		}
	}
	return nil
}

// listParts is one of the two lists of a descriptor, with its control bits.
type listParts struct {
	of                                                func(d *Descriptor) **ACL
	present, defaulted, request, inherited, protected Control
}

// Never written.
var (
	daclParts = listParts{func(d *Descriptor) **ACL { return &d.DACL }, DACLPresent, DACLDefaulted, DACLAutoInheritReq, DACLAutoInherited, DACLProtected}
	saclParts = listParts{func(d *Descriptor) **ACL { return &d.SACL }, SACLPresent, SACLDefaulted, SACLAutoInheritReq, SACLAutoInherited, SACLProtected}
)

// list makes one list of d (MS-DTYP 2.5.3.4.2, ComputeACL).
func (n *NewObject) list(d *Descriptor, p listParts, byDefault *ACL) {
	said, parent := *p.of(n.Explicit), *p.of(n.Parent)
	isSaid := said != nil || n.Explicit.Control&p.present != 0
	protected := isSaid && n.Explicit.Control&p.protected != 0
	var inherited []ACE
	if parent != nil && !protected {
		inherited = n.inherit(d, parent, n.AutoInherit)
	}
	result := p.of(d)
	switch {
	case isSaid && said == nil: // NULL stays NULL
		d.Control |= p.present
	case isSaid && n.AutoInherit && n.Explicit.Control&p.defaulted == 0:
		*result = &ACL{ACEs: append(n.explicit(said, false), inherited...)}
	case isSaid && (len(inherited) == 0 || n.Explicit.Control&p.defaulted == 0):
		*result = &ACL{ACEs: n.explicit(said, false)}
	case len(inherited) > 0:
		*result = &ACL{ACEs: inherited}
	case byDefault != nil:
		*result = &ACL{ACEs: n.explicit(byDefault, true)}
		d.replaceCreator(*result)
	default:
		return
	}
	d.Control |= p.present
	if protected {
		d.Control |= p.protected
	}
	if n.AutoInherit {
		d.Control |= p.inherited
	}
}

// replaceCreator puts owner and group in the place of CreatorOwner and CreatorGroup.
func (d *Descriptor) replaceCreator(l *ACL) {
	for i := range l.ACEs {
		if a := &l.ACEs[i]; a.Flags&InheritOnly == 0 {
			a.SID = d.creator(a.SID)
		}
	}
}

func (d *Descriptor) creator(s SID) SID {
	switch s {
	case CreatorOwner():
		return d.Owner
	case CreatorGroup():
		return d.Group
	}
	return s
}

// explicit is what is said for the object itself (MS-DTYP 2.5.3.4.5, PreProcessACLFromCreator): entries that somebody inherited are not
// said; generic rights become what they mean, except for children.
func (n *NewObject) explicit(l *ACL, all bool) []ACE {
	entries := make([]ACE, 0, len(l.ACEs))
	for _, a := range l.ACEs {
		if n.AutoInherit && !all && a.Flags&InheritedACE != 0 {
			continue
		}
		if a.Flags&InheritOnly == 0 {
			a.Mask = n.effective(&a)
		}
		a.Flags &^= InheritedACE
		entries = append(entries, a)
	}
	return entries
}

// effective is the mask of an entry for the object itself: mapped, without bits that its type does not have. Masks of labels and their like
// are no rights.
func (n *NewObject) effective(a *ACE) AccessMask {
	if a.Type.traits()&(allows|denies|audits) == 0 {
		return a.Mask
	}
	mask := n.Mapping.Map(a.Mask)
	if n.Mapping.All != 0 {
		mask &= n.Mapping.All | AccessSystemSecurity
	}
	return mask
}

// inherit is what an object gets of its container's list (MS-DTYP 2.5.3.4.3, ComputeInheritedACLFromParent, and 2.5.3.4.4).
func (n *NewObject) inherit(d *Descriptor, parent *ACL, mark bool) []ACE {
	var result []ACE
	for _, a := range parent.ACEs {
		forThis := a.Flags & ObjectInherit
		if n.Container {
			forThis = a.Flags & ContainerInherit
		}
		if typ, limited := a.InheritedObjectType, a.Type.is(object) && a.ObjectFlags&InheritedObjectTypePresent != 0; limited && n.Type != (GUID{}) && typ != n.Type {
			forThis = 0 // for another type of child; below a container there may be some
		}
		passed := a.Flags & (ObjectInherit | ContainerInherit)
		if !n.Container || a.Flags&NoPropagateInherit != 0 {
			passed = 0
		}
		own, children := a, a
		own.SID, own.Mask = d.creator(a.SID), n.effective(&a)
		children.Flags = a.Flags&^(inheritance|InheritedACE) | passed | InheritOnly
		own.Flags = a.Flags &^ (inheritance | InheritedACE)
		if mark {
			own.Flags |= InheritedACE
			children.Flags |= InheritedACE
		}
		switch {
		case forThis == 0 && passed == 0:
		case forThis == 0:
			result = append(result, children)
		case passed == 0:
			result = append(result, own)
		case own.SID == a.SID && own.Mask == a.Mask: // one entry does for both
			children.Flags &^= InheritOnly
			result = append(result, children)
		default:
			result = append(result, own, children)
		}
	}
	return result
}

// Reinherit is the descriptor of an object whose container's descriptor has changed to that of n.Parent: n.Explicit, the object's own,
// with what it inherited before replaced by what it inherits now (MS-DTYP 2.5.3.4.6; SetPrivateObjectSecurityEx with
// SEF_DACL_AUTO_INHERIT). Lists that are protected, NULL or absent stay as they are. Doing it twice changes nothing more.
func Reinherit(n NewObject) *Descriptor {
	d := n.Explicit.Clone()
	if d == nil {
		return nil
	}
	for _, p := range []listParts{daclParts, saclParts} {
		l := p.of(d)
		if *l == nil || d.Control&p.protected != 0 {
			continue
		}
		entries := make([]ACE, 0, len((*l).ACEs))
		for _, a := range (*l).ACEs {
			if a.Flags&InheritedACE == 0 {
				entries = append(entries, a)
			}
		}
		if n.Parent != nil && *p.of(n.Parent) != nil {
			entries = append(entries, n.inherit(d, *p.of(n.Parent), true)...)
		}
		(*l).ACEs = entries
		d.Control = d.Control&^p.request | p.inherited
	}
	return d
}
