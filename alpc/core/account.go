package core

import (
	"fmt"
	"maps"
	"slices"

	"sallyport/ntstatus"
	"sallyport/proto/corepb"
)

// resource is something that a client can pin. Numbers are internal; names are shown.
type resource uint8

const (
	attachmentsCharge resource = iota
	portsCharge
	objectsCharge
	halfOpenCharge
	connectionsCharge
	socketBytesCharge
	sectionBytesCharge
	tokensCharge
	pendingCallsCharge
	resources
)

func (r resource) String() string {
	return [resources]string{"attachments", "ports", "objects", "half-open connects", "connections", "socket bytes",
		"section bytes", "tokens", "pending calls"}[r]
}

func (l Limits) of(r resource) uint64 {
	return [resources]uint64{l.Attachments, l.Ports, l.Objects, l.HalfOpen, l.Connections, l.SocketBytes, l.SectionBytes,
		l.Tokens, l.PendingCalls}[r]
}

// usage counts what is pinned, by resource.
type usage [resources]uint64

// account is what one uid has pinned, all its attachments together.
type account struct{ used usage }

// item is one thing to charge.
type item struct {
	resource resource
	amount   uint64
}

// charge books the items on a's uid and on a itself, all or none. Three bounds hold: a uid has at most its limit; a
// quarter of the limit is for those who hold SeTcb, so that servers live on beside clients of the same uid; and one
// attachment without SeTcb has at most half of what the uid's other attachments leave (of attachments: one process, of what
// the uid's other processes leave).
func (m *Machine) charge(a *attachment, op, object string, items ...item) *corepb.Failure {
	acc := m.accounts[a.uid]
	if acc == nil {
		acc = &account{}
		m.accounts[a.uid] = acc
	}
	for _, it := range items {
		limit, used, own := m.setup.Limits.of(it.resource), acc.used[it.resource], a.used[it.resource]
		whose, bound, have := fmt.Sprintf("uid %d", a.uid), limit, used
		if !a.trusted() {
			bound = limit - limit/4
			share := "this attachment"
			if it.resource == attachmentsCharge {
				share, own = "this process", m.attachmentsOf(a)
			}
			if others := used - own; used+it.amount <= bound && others < bound && own+it.amount > (bound-others+1)/2 {
				whose, bound, have = share+" (half of what its user has left)", (bound-others+1)/2, own
			}
		}
		if it.amount > bound || have > bound-it.amount {
			return fail(op, object, ntstatus.QuotaExceeded, "%s of %s: %d in use, %d more asked, the limit is %d", it.resource, whose, have, it.amount, bound)
		}
	}
	for _, it := range items {
		acc.used[it.resource] += it.amount
		a.used[it.resource] += it.amount
	}
	return nil
}

// attachmentsOf counts the charged attachments of a's process; none where the host states identities, as it is one process.
func (m *Machine) attachmentsOf(a *attachment) (n uint64) {
	for _, b := range m.attachments {
		if b.key == a.key && a.key != (ProcessKey{}) {
			n += b.used[attachmentsCharge]
		}
	}
	return n
}

// uncharge gives back what charge booked. An account without charges is forgotten.
func (m *Machine) uncharge(a *attachment, items ...item) {
	acc := m.accounts[a.uid]
	for _, it := range items {
		acc.used[it.resource] -= it.amount
		a.used[it.resource] -= it.amount
	}
	if acc.used == (usage{}) {
		delete(m.accounts, a.uid)
	}
}

func (m *Machine) queryCharges(a *attachment, r *corepb.QueryCharges, reply *corepb.Reply) *corepb.Failure {
	out := &corepb.Charges{}
	for _, uid := range slices.Sorted(maps.Keys(m.accounts)) {
		if uid != a.uid && !(r.GetAll() && a.admin()) {
			continue
		}
		row := &corepb.Account{Uid: uid}
		for r := range resources {
			row.Charges = append(row.Charges, &corepb.Charge{Resource: r.String(), Used: m.accounts[uid].used[r], Limit: m.setup.Limits.of(r)})
		}
		out.Accounts = append(out.Accounts, row)
		if len(out.Accounts) == 64 {
			break
		}
	}
	reply.Body = &corepb.Reply_Charges{Charges: out}
	return nil
}
