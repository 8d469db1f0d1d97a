package sam

import (
	"bytes"
	"context"
	"time"

	"sallyport/internal/store"
	"sallyport/ntstatus"
	"sallyport/subsys/lsass/internal/kdf"
)

// hash makes the record of a new password, after the policy's rules. Passwords are bytes: two ways of composing an accented
// letter are two passwords.
func (d *DB) hash(ctx context.Context, op, who, name string, password []byte) (string, error) {
	p, err := d.Policy()
	if err != nil {
		return "", err
	}
	switch {
	case len(password) < int(p.MinPasswordLength):
		return "", ntstatus.Errorf(op, name, ntstatus.PasswordRestriction, "the password needs at least %d bytes", p.MinPasswordLength)
	case !wellFormed(password):
		return "", ntstatus.Errorf(op, name, ntstatus.PasswordRestriction, "a password has at most %d bytes and no zero byte", maxPasswordLength)
	}
	release, err := d.o.Queue.Acquire(ctx, who, p.Hash.MemoryKiB)
	if err != nil {
		return "", err
	}
	defer release()
	return kdf.Hash(password, p.Hash)
}

func wellFormed(password []byte) bool {
	return len(password) <= maxPasswordLength && bytes.IndexByte(password, 0) < 0
}

// SetPassword gives an account a new password and ends a lockout: who was guessing guessed the old one.
func (d *DB) SetPassword(ctx context.Context, who, name string, password []byte, mustChange bool) (Account, error) {
	const op = "sam.SetPassword"
	phc, err := d.hash(ctx, op, who, name, password)
	if err != nil {
		return Account{}, err
	}
	return d.Update(name, func(a *Account) error {
		a.Password, a.PasswordSet, a.MustChange = phc, time.Now().UnixNano(), mustChange
		a.BadCount, a.LastBad, a.LockedAt = 0, 0, 0
		return nil
	})
}

// ChangePassword is SetPassword for who knows the old one. A wrong old one counts as a failed logon does.
func (d *DB) ChangePassword(ctx context.Context, who, name string, old, new []byte) (Account, error) {
	const op = "sam.ChangePassword"
	if bytes.Equal(old, new) {
		return Account{}, ntstatus.Errorf(op, name, ntstatus.PasswordRestriction, "the new password is the old one")
	}
	a, err := d.verify(ctx, op, who, name, old, func(a *Account, now int64) ntstatus.Status {
		if s := a.restriction(now); s != ntstatus.PasswordMustChange {
			return s
		}
		return ntstatus.Success
	})
	if err != nil {
		return a, err
	}
	phc, err := d.hash(ctx, op, who, name, new)
	if err != nil {
		return a, err
	}
	return d.Update(name, func(now *Account) error {
		if now.RID != a.RID || now.Password != a.Password {
			return ntstatus.Errorf(op, name, ntstatus.WrongPassword, "somebody else changed it meanwhile")
		}
		now.Password, now.PasswordSet, now.MustChange = phc, time.Now().UnixNano(), false
		return nil
	})
}

// Authenticate verifies a password for a logon of the given type and records the outcome durably before it returns. who is the
// line in which the caller waits for its turn to hash. Statuses, to be merged before a client sees them: NO_SUCH_USER and
// WRONG_PASSWORD; as they are: ACCOUNT_LOCKED_OUT, and only with the right password ACCOUNT_DISABLED, ACCOUNT_EXPIRED,
// PASSWORD_MUST_CHANGE and LOGON_TYPE_NOT_GRANTED.
func (d *DB) Authenticate(ctx context.Context, who, name string, password []byte, logonType int32) (Account, error) {
	return d.verify(ctx, "sam.Authenticate", who, name, password, func(a *Account, now int64) ntstatus.Status {
		if s := a.restriction(now); s != ntstatus.Success {
			return s
		}
		if !a.MayLogOn(logonType) {
			return ntstatus.LogonTypeNotGranted
		}
		a.LastLogon = now
		a.LogonCount++
		return ntstatus.Success
	})
}

// verify is one attempt: look up, hash, decide and record. The account comes back with the error too, where there is one. permit runs in the deciding transaction once the password was
// right; what it did to the account is kept only when it returns Success.
func (d *DB) verify(ctx context.Context, op, who, name string, password []byte, permit func(*Account, int64) ntstatus.Status) (Account, error) {
	if !wellFormed(password) { // says nothing about any account
		return Account{}, ntstatus.Errorf(op, name, ntstatus.InvalidParameter, "a password has at most %d bytes and no zero byte", maxPasswordLength)
	}
	var before Account
	var known bool
	var p Policy
	err := d.store.View(func(tx *store.Tx) (err error) {
		if p, err = d.policy(tx); err != nil {
			return err
		}
		before, err = find(tx, op, name)
		if known = err == nil; ntstatus.Of(err) == ntstatus.NoSuchUser {
			err = nil
		}
		return err
	})
	if err != nil {
		return Account{}, err
	}
	phc := before.Password
	if !known {
		phc = kdf.Decoy(p.Hash)
	}
	// Where the outcome is certain the hash is spared. Not so while the clock is behind the lock: try has to record that.
	if now := time.Now().UnixNano(); known && before.LockedAt <= now && before.LockedUntil(p, now) != 0 {
		return before, ntstatus.New(op, name, ntstatus.AccountLockedOut)
	}
	params, err := kdf.ParamsOf(phc)
	if err != nil {
		return Account{}, err
	}
	release, err := d.o.Queue.Acquire(ctx, who, params.MemoryKiB)
	if err != nil {
		return Account{}, err
	}
	right, err := kdf.Verify(password, phc)
	release()
	if err != nil {
		return Account{}, err
	}

	var a Account
	status := ntstatus.NoSuchUser
	err = d.store.Update(func(tx *store.Tx) (err error) {
		if !known {
			n, _, err := misses().Get(tx, theMisses)
			if err != nil {
				return err
			}
			return misses().Put(tx, theMisses, n+1)
		}
		var ok bool
		if a, ok, err = accounts().Get(tx, key(before.RID)); err != nil || !ok {
			return err
		}
		now := time.Now().UnixNano()
		status = a.try(p, now, right && a.Password == before.Password)
		kept := a
		if status == ntstatus.Success {
			if status = permit(&a, now); status == ntstatus.Success {
				kept = a
			}
		}
		return accounts().Put(tx, key(a.RID), kept)
	})
	if err == nil && status != ntstatus.Success {
		err = ntstatus.New(op, name, status)
	}
	return a, err
}
