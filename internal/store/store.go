// Package store keeps a server's durable records: typed buckets in one bbolt file. What Update has acknowledged is on
// disk (fsynced, and the directory entry of a new file too) and survives kill -9.
//
// The file belongs to the server and holds secrets, so it is 0600. Its bytes are trusted to be the server's own, but not to be
// whole: every record carries a checksum, the whole file is walked when it is opened, and a fault or a panic of the database
// under a damaged page becomes ntstatus.FileCorrupt. A damaged file is never written to and never replaced: a person decides.
//
// Locks: one writer at a time, readers beside it (bbolt's own). A transaction must not be begun inside another on the same
// goroutine: it deadlocks when the file grows.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"sallyport/ntstatus"
)

// defaultTimeout is how long Open waits for another process to let go of the file: longer than a killed server takes to die.
const defaultTimeout = 5 * time.Second

// schemaBucket holds the one record that says whose file this is. Its name can't be taken by a Bucket.
const schemaBucket, schemaKey = "\x00schema", "schema"

// Options says what the caller expects to find.
type Options struct {
	Application string        // who owns the file, such as "lsass"; another owner's file is refused
	Schema      uint32        // version of the application's buckets and records; another version is refused
	Timeout     time.Duration // wait for the file's lock; 0 is 5 s
}

type schemaRecord struct {
	Application string
	Schema      uint32
}

// DB is one open file. It is safe for concurrent use.
type DB struct {
	path   string
	bolt   *bbolt.DB
	file   *os.File                       // bolt's file: closing it gives up the lock where bolt itself can't any more
	failed atomic.Pointer[ntstatus.Error] // set once: the first damage or failed sync; nothing is served after it
}

// Open opens the file at path, or creates it whole (written, synced, then linked to its name). The directory must exist.
// It returns ResourceInUse while another process has it open, FileCorrupt for a damaged or emptied file, and
// InvalidParameter for one of another application or schema.
func Open(path string, o Options) (*DB, error) {
	const op = "store.Open"
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path, o); err == nil {
			info, err = os.Lstat(path)
		}
	}
	db := &DB{path: path}
	switch {
	case err != nil:
		return nil, ntstatus.Wrap(op, path, err)
	case !info.Mode().IsRegular():
		return nil, ntstatus.Errorf(op, path, ntstatus.ObjectTypeMismatch, "not a regular file")
	case info.Size() == 0:
		return nil, db.damaged(op, errors.New("the file is empty"))
	case info.Mode().Perm()&0o077 != 0:
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, ntstatus.Wrap(op, path, err)
		}
	}
	if err := guard(func() error { return db.open(o.Timeout) }); err != nil {
		db.abandon() // bbolt closes on an error, but not under a panic
		return nil, db.openError(op, err)
	}
	if err := db.verify(op, o); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func (db *DB) open(timeout time.Duration) (err error) {
	db.bolt, err = bbolt.Open(db.path, 0o600, &bbolt.Options{
		Timeout:      timeout,
		FreelistType: bbolt.FreelistMapType,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(path, flag&^os.O_CREATE, mode)
			db.file = f
			return f, err
		},
	})
	return err
}

// create makes a complete database under another name and links it to path, so that an empty or half-made file at path is
// always damage and never a creation that was cut short. Losing the race to another creator is success.
func create(path string, o Options) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	f.Close()
	defer os.Remove(f.Name())
	db := &DB{path: f.Name()}
	if err := db.open(o.Timeout); err != nil {
		return err
	}
	err = db.bolt.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte(schemaBucket))
		if err != nil {
			return err
		}
		data, err := json.Marshal(schemaRecord{o.Application, o.Schema})
		if err != nil {
			return err
		}
		return b.Put([]byte(schemaKey), seal(schemaBucket, schemaKey, 1, data))
	})
	if err = errors.Join(err, db.bolt.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// openError tells a lock that is held from a file system that fails from a file that is damaged.
func (db *DB) openError(op string, err error) error {
	var pathError *fs.PathError
	var errno syscall.Errno
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return ntstatus.Errorf(op, db.path, ntstatus.ResourceInUse, "another process has it open; stop that one first")
	case errors.As(err, &pathError), errors.As(err, &errno):
		return ntstatus.Wrap(op, db.path, err)
	}
	return db.damaged(op, err)
}

// verify reads every record and checks the pages' structure, so that damage is met at the start and not by a client's call.
func (db *DB) verify(op string, o Options) error {
	var found schemaRecord
	err := db.View(func(tx *Tx) error {
		err := tx.do(op, func() error {
			if err := walk(db.path, tx.bolt); err != nil {
				return damage{err}
			}
			return nil
		})
		if err != nil {
			return err
		}
		_, data, _, err := tx.get(op, schemaBucket, schemaKey)
		if err == nil && json.Unmarshal(data, &found) != nil {
			found = schemaRecord{} // intact, but nothing that this package has written
		}
		return err
	})
	if err == nil && found != (schemaRecord{o.Application, o.Schema}) {
		return ntstatus.Errorf(op, db.path, ntstatus.InvalidParameter, "it belongs to %q, schema %d; this program wants %q, schema %d",
			found.Application, found.Schema, o.Application, o.Schema)
	}
	return err
}

func walk(path string, tx *bbolt.Tx) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if tx.Size() > info.Size() {
		return fmt.Errorf("the file has %d of its %d bytes", info.Size(), tx.Size())
	}
	err = tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		last := ""
		return b.ForEach(func(k, v []byte) error {
			key := string(k)
			if key <= last {
				return fmt.Errorf("bucket %q is out of order at %q", name, key)
			}
			last = key
			_, _, err := unseal(string(name), key, v)
			return err
		})
	})
	if err != nil {
		return err
	}
	// The walk above has touched every page that Check is going to read, so its goroutine meets no fault.
	for fault := range tx.Check() {
		err = errors.Join(err, fault)
	}
	return err
}

// Close lets go of the file after the transactions that run have ended. A database found damaged may hold its own locks:
// of that one only the file is closed, at once.
func (db *DB) Close() error {
	const op = "store.Close"
	if db.failed.Load() != nil {
		return ntstatus.Wrap(op, db.path, db.abandon())
	}
	return ntstatus.Wrap(op, db.path, guard(db.bolt.Close))
}

// abandon gives up the lock and the file without bbolt. The mapping stays, and would keep the lock by itself.
func (db *DB) abandon() error {
	if db.file == nil {
		return nil
	}
	if err := unix.Flock(int(db.file.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	return db.file.Close()
}

// View runs fn over one consistent state.
func (db *DB) View(fn func(*Tx) error) error { return db.run("store.View", false, fn) }

// Update runs fn and makes all it did durable, or none of it when fn returns an error or panics. When Update returns nil the
// changes are on disk. A full disk fails the one Update only; after any other failed write or sync nobody knows what the disk
// holds, and every later call returns that error until the process restarts.
func (db *DB) Update(fn func(*Tx) error) error { return db.run("store.Update", true, fn) }

func (db *DB) run(op string, writable bool, fn func(*Tx) error) error {
	if e := db.failed.Load(); e != nil {
		return e
	}
	tx := &Tx{db: db}
	if err := guard(func() (err error) { tx.bolt, err = db.bolt.Begin(writable); return err }); err != nil {
		return db.fail(op, err)
	}
	ended := false
	defer func() {
		tx.err = ntstatus.Errorf(op, db.path, ntstatus.InvalidHandle, "the transaction has ended")
		if !ended {
			if err := guard(tx.bolt.Rollback); err != nil && !errors.Is(err, berrors.ErrTxClosed) {
				db.fail(op, err)
			}
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.err; err != nil || !writable {
		return err
	}
	if err := guard(tx.bolt.Commit); err != nil {
		return db.fail(op, err)
	}
	ended = true
	return nil
}

// fail turns what bbolt returned into an Error, and stops the database unless the next transaction is sure to be as good as
// if this one had not been.
func (db *DB) fail(op string, err error) error {
	var write *fs.PathError
	var d damage
	e := &ntstatus.Error{Op: op, Object: db.path, Status: ntstatus.Of(err), Err: err}
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		e.Status = ntstatus.InvalidHandle
		return e
	case errors.As(err, &write) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)):
		e.Status = ntstatus.DiskFull
		return e
	case errors.As(err, &d):
		e = db.damaged(op, err)
	}
	db.failed.CompareAndSwap(nil, e)
	return e
}

func (db *DB) damaged(op string, cause error) *ntstatus.Error {
	return &ntstatus.Error{Op: op, Object: db.path, Status: ntstatus.FileCorrupt, Err: fmt.Errorf(
		"%w; it was left as it is: keep a copy, then put back a backup, or move it away to begin with an empty one", cause)}
}
