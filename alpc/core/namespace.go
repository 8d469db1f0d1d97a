package core

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unicode"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// kind is the type of an object.
type kind uint8

const (
	kindDirectory kind = iota
	kindSymbolicLink
	kindPort
	kinds
)

func (k kind) String() string { return [kinds]string{"Directory", "SymbolicLink", "Port"}[k] }

func (k kind) mapping() security.GenericMapping {
	const required = security.StandardRights
	return [kinds]security.GenericMapping{
		{Read: security.ReadControl | DirectoryQuery | DirectoryTraverse, Write: security.ReadControl | DirectoryCreateObject | DirectoryCreateSubdirectory,
			Execute: security.ReadControl | DirectoryQuery | DirectoryTraverse, All: required | 0xF},
		{Read: security.ReadControl | SymbolicLinkQuery, Write: security.ReadControl, Execute: security.ReadControl | SymbolicLinkQuery, All: required | 1},
		{Read: security.ReadControl | PortConnect, Write: security.Delete | PortConnect, Execute: 0, All: PortAllRight},
	}[k]
}

func (k kind) rights() security.RightNames {
	return [kinds]security.RightNames{
		{{Name: "DIRECTORY_QUERY", Mask: DirectoryQuery}, {Name: "DIRECTORY_TRAVERSE", Mask: DirectoryTraverse},
			{Name: "DIRECTORY_CREATE_OBJECT", Mask: DirectoryCreateObject}, {Name: "DIRECTORY_CREATE_SUBDIRECTORY", Mask: DirectoryCreateSubdirectory}},
		{{Name: "SYMBOLIC_LINK_QUERY", Mask: SymbolicLinkQuery}},
		{{Name: "PORT_CONNECT", Mask: PortConnect}},
	}[k]
}

// object is a directory, a symbolic link or a connection port.
type object struct {
	kind     kind
	name     string // full, as it was created
	parent   *object
	sd       *security.Descriptor
	sddl     string
	creator  *attachment        // charged for it; nil for the root
	children map[string]*object // directory: by folded component
	target   string             // symbolic link
	port     *port
}

// rootDescriptor: administrators own the root, everybody looks and passes.
func rootDescriptor() *security.Descriptor {
	return &security.Descriptor{Owner: security.LocalSystem(), Group: security.LocalSystem(), DACL: security.NewACL(
		security.Allow(security.LocalSystem(), security.GenericAll), security.Allow(security.Administrators(), security.GenericAll),
		security.Allow(security.Everyone(), security.GenericRead|security.GenericExecute))}
}

// splitName cuts a name into components. Both separators are taken; the name must be absolute.
func splitName(name string) ([]string, string) {
	if len(name) > maxName {
		return nil, "longer than 1024 bytes"
	}
	name = strings.ReplaceAll(name, "/", `\`)
	if !strings.HasPrefix(name, `\`) {
		return nil, `it must begin with \`
	}
	if name == `\` {
		return nil, ""
	}
	parts := strings.Split(name[1:], `\`)
	for _, p := range parts {
		switch {
		case p == "":
			return nil, "it has an empty component"
		case p == "." || p == "..":
			return nil, "it has a component of dots, which mean nothing here"
		case len(p) > maxComponent:
			return nil, "a component is longer than 255 bytes"
		case !validComponent(p):
			return nil, "it has a control character, a space at an end, or bytes that are not UTF-8"
		}
	}
	return parts, ""
}

func validComponent(p string) bool {
	for _, r := range p {
		if r == unicode.ReplacementChar || unicode.IsControl(r) {
			return false
		}
	}
	return strings.TrimSpace(p) == p
}

// fold is how names are compared: NT's case-insensitivity by simple upper case.
func fold(component string) string { return strings.Map(unicode.ToUpper, component) }

// lookup walks to an object: each directory on the way needs DIRECTORY_TRAVERSE, unless the caller holds SeChangeNotify.
// With parent set it stops at the last component, which need not exist, and returns its directory and the component.
func (m *Machine) lookup(a *attachment, op, name string, parent bool) (o *object, last string, f *corepb.Failure) {
	parts, wrong := splitName(name)
	if wrong != "" {
		return nil, "", fail(op, name, ntstatus.ObjectNameInvalid, "%s", wrong)
	}
	if parent && len(parts) == 0 {
		return nil, "", fail(op, name, ntstatus.ObjectNameInvalid, "the root can't be created or removed")
	}
	o = m.root
	for links := 0; len(parts) > 0; {
		if o.kind != kindDirectory {
			return nil, "", fail(op, name, ntstatus.ObjectPathInvalid, "%s is a %s", o.name, o.kind)
		}
		if !a.token.value.Has(security.SeChangeNotify) || m.isExpired(a) {
			if f := m.checkObject(a, op, o, DirectoryTraverse); f != nil {
				return nil, "", f
			}
		}
		if parent && len(parts) == 1 {
			return o, parts[0], nil
		}
		child := o.children[fold(parts[0])]
		if child == nil {
			status := ntstatus.ObjectNameNotFound
			if len(parts) > 1 {
				status = ntstatus.ObjectPathNotFound
			}
			return nil, "", fail(op, name, status, "%s has no %q", o.name, parts[0])
		}
		parts = parts[1:]
		if child.kind == kindSymbolicLink && (len(parts) > 0 || op != "core.Remove") {
			if links++; links > maxLinks {
				return nil, "", fail(op, name, ntstatus.TooManyLinks, "more than %d symbolic links", maxLinks)
			}
			target, _ := splitName(child.target)
			parts = append(target, parts...)
			o = m.root
			continue
		}
		o = child
	}
	return o, "", nil
}

// insert makes an object below a directory, if the caller has the right to.
func (m *Machine) insert(a *attachment, op, name, sddl string, k kind, right security.AccessMask) (*object, *corepb.Failure) {
	dir, last, f := m.lookup(a, op, name, true)
	if f != nil {
		return nil, f
	}
	if sddl == "" {
		return nil, fail(op, name, ntstatus.InvalidSecurityDescr, "an object without a security descriptor is refused; say who may do what in SDDL")
	}
	sd, err := control.ParseDescriptor(sddl)
	if err != nil {
		return nil, fail(op, name, ntstatus.InvalidSecurityDescr, "%v", err)
	}
	if sd.Owner.IsZero() {
		sd.Owner = a.token.value.DefaultOwner()
	}
	if sd.Group.IsZero() {
		sd.Group = a.token.value.PrimaryGroup
		if sd.Group.IsZero() {
			sd.Group = sd.Owner
		}
	}
	if t := a.token.value; !t.MayOwn(sd.Owner) && !t.Has(security.SeRestore) && !t.HasSID(security.LocalSystem()) {
		return nil, fail(op, name, ntstatus.InvalidOwner, "%s may not be made the owner by %s, who is not it and does not hold SeRestorePrivilege", sd.Owner, t.User.SID)
	}
	if f := m.checkObject(a, op, dir, right); f != nil {
		return nil, f
	}
	if dir.children[fold(last)] != nil {
		return nil, fail(op, name, ntstatus.ObjectNameCollision, "%s exists already", dir.children[fold(last)].name)
	}
	if f := m.charge(a, op, name, item{objectsCharge, 1}); f != nil {
		return nil, f
	}
	o := &object{kind: k, name: strings.TrimSuffix(dir.name, `\`) + `\` + last, parent: dir, sd: sd, sddl: sd.String(), creator: a}
	a.objects[o] = true
	dir.children[fold(last)] = o
	return o, nil
}

// unlink takes an object out of its directory; a directory whose creator has gone goes with its last entry.
func (m *Machine) unlink(o *object) {
	delete(o.parent.children, fold(o.name[strings.LastIndexByte(o.name, '\\')+1:]))
	if p := o.parent; p.creator == nil && p.parent != nil && len(p.children) == 0 {
		defer m.unlink(p)
	}
	if o.creator != nil {
		m.uncharge(o.creator, item{objectsCharge, 1})
		delete(o.creator.objects, o)
		o.creator = nil
	}
}

// orphan lets go of what a created: ports end unless somebody serves them, the rest ends unless something is in it.
func (m *Machine) orphan(a *attachment) {
	for _, o := range a.sortedObjects() {
		if o.creator != a {
			continue // went with one before it
		}
		if o.kind == kindPort && o.port.declarer == a {
			m.undeclare(o)
		}
		if o.creator == a {
			m.uncharge(a, item{objectsCharge, 1})
			o.creator = nil
			if o.kind != kindPort && len(o.children) == 0 {
				m.unlink(o)
			}
		}
	}
}

func (a *attachment) sortedObjects() []*object {
	out := slices.Collect(maps.Keys(a.objects))
	slices.SortFunc(out, func(x, y *object) int { return cmp.Compare(y.name, x.name) }) // what is in a directory before it
	return out
}

func (m *Machine) createDirectory(a *attachment, r *corepb.CreateDirectory) *corepb.Failure {
	o, f := m.insert(a, "core.CreateDirectory", r.GetName(), r.GetSecurityDescriptor(), kindDirectory, DirectoryCreateSubdirectory)
	if f == nil {
		o.children = map[string]*object{}
	}
	return f
}

func (m *Machine) createSymbolicLink(a *attachment, r *corepb.CreateSymbolicLink) *corepb.Failure {
	const op = "core.CreateSymbolicLink"
	if _, wrong := splitName(r.GetTarget()); wrong != "" {
		return fail(op, r.GetTarget(), ntstatus.ObjectNameInvalid, "the target: %s", wrong)
	}
	// Links redirect others: whoever makes one must be trusted with the directory beyond creating objects in it.
	if !a.admin() {
		return m.needPrivilege(a, op, security.SeCreateSymbolicLink)
	}
	o, f := m.insert(a, op, r.GetName(), r.GetSecurityDescriptor(), kindSymbolicLink, DirectoryCreateObject)
	if f == nil {
		o.target = strings.ReplaceAll(r.GetTarget(), "/", `\`)
	}
	return f
}

// remove takes an object's name away: an empty directory, a symbolic link, a declared port that nobody serves, or for its
// declarer a declared port with all its connections.
func (m *Machine) remove(a *attachment, name string) *corepb.Failure {
	const op = "core.Remove"
	if _, wrong := splitName(name); wrong != "" || strings.Trim(name, `\/`) == "" {
		return fail(op, name, ntstatus.ObjectNameInvalid, "the root can't be removed%s", wrong)
	}
	o, _, f := m.lookup(a, op, name, false)
	if f != nil {
		return f
	}
	if f := m.checkObject(a, op, o, security.Delete); f != nil {
		return f
	}
	switch {
	case len(o.children) > 0:
		return fail(op, name, ntstatus.ResourceInUse, "the directory is not empty")
	case o.kind == kindPort && o.port.server != nil && o.port.declarer == a:
		o.port.declarer = nil // who reserved the name takes it back, from a server that may be dying
		m.releasePort(o)
	case o.kind == kindPort && o.port.server != nil:
		return fail(op, name, ntstatus.ResourceInUse, "attachment %d serves the port", o.port.server.id)
	case o.kind == kindPort:
		m.undeclare(o)
	default:
		m.unlink(o)
	}
	return nil
}

// checkObject is the access check on an object; a refusal is logged.
func (m *Machine) checkObject(a *attachment, op string, o *object, desired security.AccessMask) *corepb.Failure {
	return m.check(a, op, o.name, o.sd, o.kind.mapping(), desired, o.kind.rights())
}
