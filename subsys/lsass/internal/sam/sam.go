// Package sam is the account database: NT's Security Accounts Manager, over internal/store, with the lockout in it.
//
// It trusts its caller, lsass, to have checked who asks, and nobody with a password: an attempt for a name that doesn't exist
// costs the same hash and the same write as one that does, and an outcome is decided in the transaction that records it, so
// that guesses in parallel are counted as they would be one after the other. What it acknowledges is on disk.
//
// Locks: the store's and the queue's own; nothing hashes inside a transaction.
package sam

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"sallyport/internal/store"
	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/kdf"
	"sallyport/subsys/lsass/internal/principal"
)

// maxPasswordLength bounds what is hashed, in bytes.
const maxPasswordLength = 1024

// firstRID is that of the first account; those below are NT's own. From firstServiceID on services are numbered, which have no
// RID, so that they get Unix ids by the same rule.
const (
	firstRID       = 1000
	firstServiceID = 1 << 28
)

// IDs is the rule by which accounts get Unix ids: Base+RID where there is a Base, otherwise one uid and gid for all, because
// an unprivileged instance can't change them.
type IDs struct{ Base, UID, GID uint32 }

// Of is the uid and gid of an account or built-in identity by its RID.
func (i IDs) Of(rid uint32) (uid, gid uint32) {
	if i.Base == 0 {
		return i.UID, i.GID
	}
	return i.Base + rid, i.Base + rid
}

// Options say where and how.
type Options struct {
	Path   string
	Domain string // the account domain's name: the machine's
	IDs    IDs
	Queue  *kdf.Queue
}

// DB is the open database. It is safe for concurrent use.
type DB struct {
	o      Options
	store  *store.DB
	domain security.SID
}

// machine is what the account domain is: made once, with the file.
type machine struct {
	SID    security.SID
	Policy Policy
}

// The tables, and the keys of their single records.
func accounts() store.Bucket[Account] {
	return store.NewBucket("accounts", store.JSON[Account](1),
		store.Index[Account]{Name: "name", Key: func(a Account) string { return principal.Fold(a.Name) }})
}

func domains() store.Bucket[machine] { return store.NewBucket("domain", store.JSON[machine](1)) }

// service is an identity NT SERVICE\Name, from its first logon on. Its SID is a digest, so the name is kept for listings.
type service struct {
	ID   uint32
	Name string
}

func services() store.Bucket[service] { return store.NewBucket("services", store.JSON[service](1)) }

// misses counts attempts for names that don't exist. The number is of little use, the write is: see Authenticate.
func misses() store.Bucket[uint64] { return store.NewBucket("misses", store.JSON[uint64](1)) }

const theDomain, theMisses = "account domain", "unknown names"

// key orders accounts by RID.
func key(rid uint32) string { return fmt.Sprintf("%08x", rid) }

// Open opens or makes the database. A new one gets a random domain SID, S-1-5-21-…, for good.
func Open(o Options) (*DB, error) {
	s, err := store.Open(o.Path, store.Options{Application: "lsass", Schema: 1})
	if err != nil {
		return nil, err
	}
	d := &DB{o: o, store: s}
	err = s.Update(func(tx *store.Tx) error {
		m, ok, err := domains().Get(tx, theDomain)
		if err == nil && !ok {
			var random [12]byte
			rand.Read(random[:])
			part := binary.LittleEndian.Uint32
			m.SID, err = security.NewSID(5, 21, part(random[:]), part(random[4:]), part(random[8:]))
			m.Policy = defaultPolicy()
			m.Policy.Hash.MemoryKiB = min(m.Policy.Hash.MemoryKiB, o.Queue.Memory())
			err = errors.Join(err, domains().Put(tx, theDomain, m))
		}
		d.domain = m.SID
		return err
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return d, nil
}

// Close closes the file.
func (d *DB) Close() error { return d.store.Close() }

// Domain is the account domain's SID and name.
func (d *DB) Domain() (security.SID, string) { return d.domain, d.o.Domain }

// UnixIDs are the uid and gid that the account's processes run under.
func (d *DB) UnixIDs(a Account) (uid, gid uint32) {
	uid, gid = d.o.IDs.Of(a.RID)
	if a.UID != nil {
		uid = *a.UID
	}
	if a.GID != nil {
		gid = *a.GID
	}
	return uid, gid
}

// IDs is the instance's rule.
func (d *DB) IDs() IDs { return d.o.IDs }

// Policy returns the policy in force.
func (d *DB) Policy() (p Policy, err error) {
	err = d.store.View(func(tx *store.Tx) error { p, err = d.policy(tx); return err })
	return p, err
}

func (d *DB) policy(tx *store.Tx) (Policy, error) {
	m, _, err := domains().Get(tx, theDomain)
	return m.Policy, err
}

// SetPolicy replaces the policy.
func (d *DB) SetPolicy(p Policy) error {
	if err := p.check(d.o.Queue.Memory()); err != nil {
		return err
	}
	return d.store.Update(func(tx *store.Tx) error {
		m, _, err := domains().Get(tx, theDomain)
		m.Policy = p
		return errors.Join(err, domains().Put(tx, theDomain, m))
	})
}

// find is NO_SUCH_USER where there is no account of that name.
func find(tx *store.Tx, op, name string) (Account, error) {
	_, a, ok, err := accounts().Find(tx, "name", principal.Fold(name))
	if err == nil && !ok {
		err = ntstatus.New(op, name, ntstatus.NoSuchUser)
	}
	return a, err
}

// Account finds an account by name.
func (d *DB) Account(name string) (a Account, err error) {
	err = d.store.View(func(tx *store.Tx) error { a, err = find(tx, "sam.Account", name); return err })
	return a, err
}

// BySID finds an account by its SID.
func (d *DB) BySID(sid security.SID) (a Account, ok bool, err error) {
	if sid.Domain() != d.domain {
		return a, false, nil
	}
	err = d.store.View(func(tx *store.Tx) error { a, ok, err = accounts().Get(tx, key(sid.RID())); return err })
	return a, ok, err
}

// List returns at most limit accounts with a RID above after, and whether there are more.
func (d *DB) List(after uint32, limit int) (list []Account, more bool, err error) {
	full := errors.New("full")
	err = d.store.View(func(tx *store.Tx) error {
		return accounts().Each(tx, key(after), func(_ string, a Account) error {
			if a.RID == after {
				return nil
			}
			if len(list) == limit {
				more = true
				return full
			}
			list = append(list, a)
			return nil
		})
	})
	if err == full {
		err = nil
	}
	return list, more, err
}

// Create makes an account, a member of Users. Of the template it takes everything that an administrator may choose.
func (d *DB) Create(ctx context.Context, who string, template Account, password []byte) (Account, error) {
	const op = "sam.Create"
	if err := principal.CheckName(d.o.Domain, template.Name); err != nil {
		return Account{}, err
	}
	if err := d.checkIDs(template); err != nil {
		return Account{}, err
	}
	if _, err := d.Account(template.Name); err == nil { // before the hash; the index decides below
		return Account{}, ntstatus.New(op, template.Name, ntstatus.UserExists)
	}
	phc, err := d.hash(ctx, op, who, template.Name, password)
	if err != nil {
		return Account{}, err
	}
	now := time.Now().UnixNano()
	a := Account{
		Name: template.Name, FullName: template.FullName, Home: template.Home, Shell: template.Shell, UID: template.UID, GID: template.GID,
		Aliases: []uint32{AliasUsers}, Password: phc, Disabled: template.Disabled, MustChange: template.MustChange, Created: now, PasswordSet: now,
	}
	err = d.store.Update(func(tx *store.Tx) error {
		n, err := accounts().NextSequence(tx)
		if err != nil {
			return err
		}
		if n > firstServiceID-firstRID {
			return ntstatus.Errorf(op, a.Name, ntstatus.InsufficientResources, "all RIDs are used")
		}
		a.RID = firstRID + uint32(n) - 1
		err = accounts().Put(tx, key(a.RID), a)
		if errors.Is(err, ntstatus.ObjectNameCollision) {
			err = ntstatus.New(op, a.Name, ntstatus.UserExists)
		}
		return err
	})
	if err != nil {
		return Account{}, err
	}
	return a, nil
}

// checkIDs refuses ids that an instance which can't change uids could not give.
func (d *DB) checkIDs(a Account) error {
	uid, gid := d.UnixIDs(a)
	if d.o.IDs.Base == 0 && (uid != d.o.IDs.UID || gid != d.o.IDs.GID) {
		return ntstatus.Errorf("sam.Update", a.Name, ntstatus.InvalidParameter,
			"this instance runs everything as uid %d, gid %d; only one that runs as root can map accounts to others", d.o.IDs.UID, d.o.IDs.GID)
	}
	if uid == math.MaxUint32 || gid == math.MaxUint32 {
		return ntstatus.Errorf("sam.Update", a.Name, ntstatus.InvalidParameter, "the kernel gives the id %d to nobody", uint32(math.MaxUint32))
	}
	return nil
}

// ServiceID is the number of a service's own identity, the same for ever: what a RID is to an account.
func (d *DB) ServiceID(name string) (uint32, error) {
	sid := security.ServiceSID(name).String()
	var known service
	err := d.store.View(func(tx *store.Tx) (err error) { known, _, err = services().Get(tx, sid); return err })
	if known.ID != 0 || err != nil {
		return known.ID, err
	}
	err = d.store.Update(func(tx *store.Tx) error {
		var ok bool
		var err error
		if known, ok, err = services().Get(tx, sid); ok || err != nil {
			return err
		}
		n, err := services().NextSequence(tx)
		if err != nil {
			return err
		}
		known = service{ID: firstServiceID + uint32(n) - 1, Name: name}
		return services().Put(tx, sid, known)
	})
	return known.ID, err
}

// ServiceName is the name of a service that has logged on once.
func (d *DB) ServiceName(sid security.SID) (name string, ok bool, err error) {
	err = d.store.View(func(tx *store.Tx) error {
		var known service
		known, ok, err = services().Get(tx, sid.String())
		name = known.Name
		return err
	})
	return name, ok, err
}

// Delete removes an account and returns what it was.
func (d *DB) Delete(name string) (a Account, err error) {
	err = d.store.Update(func(tx *store.Tx) error {
		if a, err = find(tx, "sam.Delete", name); err != nil {
			return err
		}
		return accounts().Delete(tx, key(a.RID))
	})
	return a, err
}

// Update changes an account in one transaction; change must not touch its RID, name, or password.
func (d *DB) Update(name string, change func(*Account) error) (a Account, err error) {
	err = d.store.Update(func(tx *store.Tx) error {
		if a, err = find(tx, "sam.Update", name); err != nil {
			return err
		}
		if err := change(&a); err != nil {
			return err
		}
		if err := d.checkIDs(a); err != nil {
			return err
		}
		if a.SystemAccess&^accessBits != 0 {
			return ntstatus.Errorf("sam.Update", a.Name, ntstatus.InvalidParameter, "system access %#x: known bits are %#x", a.SystemAccess, accessBits)
		}
		return accounts().Put(tx, key(a.RID), a)
	})
	return a, err
}

// Unlock ends a lockout and forgets wrong passwords.
func (d *DB) Unlock(name string) (Account, error) {
	return d.Update(name, func(a *Account) error { a.BadCount, a.LastBad, a.LockedAt = 0, 0, 0; return nil })
}

// AddMember returns MEMBER_IN_ALIAS where the account is one already.
func (d *DB) AddMember(alias uint32, name string) (Account, error) {
	return d.Update(name, func(a *Account) error {
		if a.Member(alias) {
			return ntstatus.Errorf("sam.AddMember", a.Name, ntstatus.MemberInAlias, "it is a member already")
		}
		a.Aliases = append(a.Aliases, alias)
		slices.SortFunc(a.Aliases, cmp.Compare[uint32])
		return nil
	})
}

// RemoveMember returns MEMBER_NOT_IN_ALIAS where the account is none.
func (d *DB) RemoveMember(alias uint32, name string) (Account, error) {
	return d.Update(name, func(a *Account) error {
		i := slices.Index(a.Aliases, alias)
		if i < 0 {
			return ntstatus.Errorf("sam.RemoveMember", a.Name, ntstatus.MemberNotInAlias, "it is not a member")
		}
		a.Aliases = slices.Delete(a.Aliases, i, i+1)
		return nil
	})
}
