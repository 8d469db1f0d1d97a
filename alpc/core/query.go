package core

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"sallyport/internal/control"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// list answers one page of a list. Rows are sorted by key; a caller sees what it may.
func (m *Machine) list(a *attachment, r *corepb.List, reply *corepb.Reply) *corepb.Failure {
	if m.isExpired(a) {
		return m.expired(a)
	}
	page := &corepb.Page{}
	reply.Body = &corepb.Reply_Page{Page: page}
	switch r.GetKind() {
	case corepb.Kind_OBJECTS:
		return m.listObjects(a, r, page)
	case corepb.Kind_CONNECTIONS:
		return paged(r, page, m.connections, func(c *connection) proto.Message {
			if c.state != connOpen && c.state != connGranted || !(a.admin() || c.client == a || c.server == a) {
				return nil
			}
			row := m.connectionRow(c)
			page.Connections = append(page.Connections, row)
			return row
		})
	case corepb.Kind_ATTACHMENTS:
		return paged(r, page, m.attachments, func(b *attachment) proto.Message {
			if !b.live || !(a.admin() || b.uid == a.uid && b.token.value.User.SID == a.token.value.User.SID) {
				return nil
			}
			row := &corepb.Attachment{
				Identity: identity(b, security.LevelDelegation, false), Uid: b.uid, SinceNs: b.since, Connections: uint32(len(b.connections)),
				Ports: uint32(len(b.ports)), Program: b.program,
			}
			page.Attachments = append(page.Attachments, row)
			return row
		})
	case corepb.Kind_TOKENS:
		if !a.admin() {
			return m.needPrivilege(a, "core.List", security.SeTcb)
		}
		return paged(r, page, m.tokens, func(t *token) proto.Message {
			row := &corepb.TokenInfo{Token: control.TokenToWire(t.value), References: t.references, Ended: m.ended[t.value.AuthenticationID]}
			page.Tokens = append(page.Tokens, row)
			return row
		})
	case corepb.Kind_DENIALS:
		rows := map[uint64]*corepb.Denial{}
		for _, d := range m.denials.rows {
			rows[d.Decision] = d
		}
		return paged(r, page, rows, func(d *corepb.Denial) proto.Message {
			if d = m.visible(a, d); d == nil {
				return nil
			}
			page.Denials = append(page.Denials, d)
			return d
		})
	}
	return fail("core.List", "", ntstatus.InvalidInfoClass, "unknown kind %d", r.GetKind())
}

// paged walks rows by number, after r.After, until the page is full.
func paged[K ~uint64, V any](r *corepb.List, page *corepb.Page, rows map[K]V, add func(V) proto.Message) *corepb.Failure {
	after, err := strconv.ParseUint(r.GetAfter(), 10, 64)
	if err != nil && r.GetAfter() != "" {
		return fail("core.List", "", ntstatus.InvalidParameter, "after: %q is not a key of this list", r.GetAfter())
	}
	keys := make([]K, 0, len(rows))
	for k := range rows {
		if uint64(k) > after {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	size := 0
	for _, k := range keys {
		if row := add(rows[k]); row != nil {
			size += proto.Size(row) + 4
		}
		if size > pageBytes {
			page.Next = fmt.Sprint(uint64(k))
			return nil
		}
	}
	return nil
}

func (m *Machine) connectionRow(c *connection) *corepb.Connection {
	n := m.setup.Counters(c.portID, c.line)
	return &corepb.Connection{
		Id: c.id, Port: c.port.name, Client: c.client.id, ClientPid: c.client.pid, ClientUser: c.client.token.value.User.SID.String(),
		Server: c.server.id, ServerPid: c.server.pid, Section: c.sectioned, SinceNs: c.since,
		MessagesIn: n.MessagesIn, MessagesOut: n.MessagesOut, BytesIn: n.BytesIn, BytesOut: n.BytesOut, Pending: n.Pending,
	}
}

// listObjects walks the tree in order of names. A directory needs DIRECTORY_QUERY to be looked into; what may not be
// looked into is passed over, not logged: a list is no attempt.
func (m *Machine) listObjects(a *attachment, r *corepb.List, page *corepb.Page) *corepb.Failure {
	start := m.root
	if r.GetPrefix() != "" {
		o, _, f := m.lookup(a, "core.List", r.GetPrefix(), false)
		if f != nil {
			return f
		}
		start = o
	}
	size := 0
	var walk func(o *object) bool
	walk = func(o *object) bool {
		if r.GetAfter() == "" || key(o.name) > key(r.GetAfter()) {
			row := m.objectRow(a, o)
			page.Objects = append(page.Objects, row)
			if size += proto.Size(row) + 4; size > pageBytes {
				page.Next = o.name
				return false
			}
		}
		if o.kind != kindDirectory || !m.may(a, o, DirectoryQuery) {
			return true
		}
		for _, child := range byName(o.children) {
			if !walk(child) {
				return false
			}
		}
		return true
	}
	walk(start)
	return nil
}

// byName sorts so that a walk in depth meets full names in ascending order.
func byName(children map[string]*object) []*object {
	out := sorted(children)
	slices.SortFunc(out, func(x, y *object) int { return cmp.Compare(key(x.name), key(y.name)) })
	return out
}

// key makes a directory come before what is in it, and all of that before the next name.
func key(name string) string { return fold(strings.TrimSuffix(name, `\`)) + `\` }

func (m *Machine) may(a *attachment, o *object, desired security.AccessMask) bool {
	return security.AccessCheck(security.CheckRequest{Descriptor: o.sd, Token: a.token.value, Desired: desired, Mapping: o.kind.mapping()}).Status == ntstatus.Success
}

func (m *Machine) objectRow(a *attachment, o *object) *corepb.Object {
	row := &corepb.Object{Name: o.name, Type: o.kind.String(), Target: o.target}
	if m.may(a, o, security.ReadControl) {
		row.SecurityDescriptor = o.sd.String()
	}
	if p := o.port; p != nil {
		row.Attributes, row.Connections, row.Waiting = p.attributes, uint32(len(p.live)), uint32(len(p.waiting)+len(p.unanswered))
		if p.server != nil {
			row.Server, row.ServerPid, row.ServerUser = p.server.id, p.server.pid, p.server.token.value.User.SID.String()
		}
	}
	return row
}
