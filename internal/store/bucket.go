package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"sallyport/ntstatus"
)

// Tx is a transaction: a consistent view of every bucket. It is for the goroutine that was given it and only until the
// function returns.
type Tx struct {
	db   *DB
	bolt *bbolt.Tx
	err  error // ends all use of it: the first damage met, which fails the transaction even if the function dropped it, or its end
}

// Codec turns values into bytes and back. Version is written with every record; Decode is given the version that it finds
// there, so that it can read what older programs wrote. Decode owns data.
type Codec[T any] struct {
	Version uint8
	Encode  func(T) ([]byte, error)
	Decode  func(version uint8, data []byte) (T, error)
}

// JSON is the codec of plain structs. It reads records of its own version only.
func JSON[T any](version uint8) Codec[T] {
	return Codec[T]{
		Version: version,
		Encode:  func(v T) ([]byte, error) { return json.Marshal(v) },
		Decode: func(found uint8, data []byte) (v T, err error) {
			if found != version {
				return v, fmt.Errorf("record version %d, this program reads %d", found, version)
			}
			return v, json.Unmarshal(data, &v)
		},
	}
}

// Index is a second, unique key of a bucket's records: Key derives it from the value, and an empty one is not indexed.
type Index[T any] struct {
	Name string
	Key  func(T) string
}

// Bucket is a named table of T in byte order of its keys. It is a description, without state: make it once, beside T, and use it
// with any transaction. A bucket that was never written to is empty.
type Bucket[T any] struct {
	name    string
	codec   Codec[T]
	indexes []Index[T]
}

// NewBucket describes a bucket. Names of buckets and of a bucket's indexes are part of the file's schema.
func NewBucket[T any](name string, codec Codec[T], indexes ...Index[T]) Bucket[T] {
	return Bucket[T]{name, codec, indexes}
}

func (b Bucket[T]) index(i Index[T]) string { return b.name + "\x00" + i.Name }

// Get returns the record at key; ok is false where there is none.
func (b Bucket[T]) Get(tx *Tx, key string) (value T, ok bool, err error) {
	const op = "store.Get"
	version, data, ok, err := tx.get(op, b.name, key)
	if !ok || err != nil {
		return value, false, err
	}
	if value, err = b.codec.Decode(version, data); err != nil {
		return value, false, ntstatus.Errorf(op, b.name+"/"+key, ntstatus.FileCorrupt, "%w", err)
	}
	return value, true, nil
}

// Find returns the record whose key in the named index is key, and its own key.
func (b Bucket[T]) Find(tx *Tx, index, key string) (primary string, value T, ok bool, err error) {
	_, data, ok, err := tx.get("store.Find", b.index(Index[T]{Name: index}), key)
	if !ok || err != nil {
		return "", value, false, err
	}
	value, ok, err = b.Get(tx, string(data))
	return string(data), value, ok, err
}

// Put writes the record at key, in place of the one that was there. It returns ObjectNameCollision, and changes nothing, when
// another record has the same key in an index.
func (b Bucket[T]) Put(tx *Tx, key string, value T) error {
	const op = "store.Put"
	data, err := b.codec.Encode(value)
	if err != nil {
		return ntstatus.Errorf(op, b.name+"/"+key, ntstatus.InvalidParameter, "%w", err)
	}
	for _, i := range b.indexes {
		_, holder, ok, err := tx.get(op, b.index(i), i.Key(value))
		if err != nil {
			return err
		}
		if ok && string(holder) != key {
			return ntstatus.Errorf(op, b.name+"/"+key, ntstatus.ObjectNameCollision, "%s %q belongs to %q", i.Name, i.Key(value), holder)
		}
	}
	if err := b.unindex(tx, key); err != nil {
		return err
	}
	for _, i := range b.indexes {
		if k := i.Key(value); k != "" {
			if err := tx.put(op, b.index(i), k, 0, []byte(key)); err != nil {
				return err
			}
		}
	}
	return tx.put(op, b.name, key, b.codec.Version, data)
}

// Delete removes the record at key; there need not be one.
func (b Bucket[T]) Delete(tx *Tx, key string) error {
	if err := b.unindex(tx, key); err != nil {
		return err
	}
	return tx.delete("store.Delete", b.name, key)
}

func (b Bucket[T]) unindex(tx *Tx, key string) error {
	if len(b.indexes) == 0 {
		return nil
	}
	old, ok, err := b.Get(tx, key)
	if !ok || err != nil {
		return err
	}
	for _, i := range b.indexes {
		if err := tx.delete("store.Delete", b.index(i), i.Key(old)); err != nil {
			return err
		}
	}
	return nil
}

// Each calls fn for every record from the key from on ("" is the first), in order of keys, until fn returns an error, which is
// then Each's. fn must not write to this bucket.
func (b Bucket[T]) Each(tx *Tx, from string, fn func(key string, value T) error) error {
	const op = "store.Each"
	var cursor *bbolt.Cursor
	for {
		var key string
		var data []byte
		var version uint8
		found := false
		err := tx.do(op, func() (err error) {
			var k, v []byte
			if cursor != nil {
				k, v = cursor.Next()
			} else if bucket := tx.bolt.Bucket([]byte(b.name)); bucket != nil {
				cursor = bucket.Cursor()
				k, v = cursor.Seek([]byte(from))
			}
			if k == nil {
				return nil
			}
			key, found = string(k), true
			if version, data, err = unseal(b.name, key, v); err != nil {
				return damage{err}
			}
			return nil
		})
		if err != nil || !found {
			return err
		}
		value, err := b.codec.Decode(version, data)
		if err != nil {
			return ntstatus.Errorf(op, b.name+"/"+key, ntstatus.FileCorrupt, "%w", err)
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
}

// NextSequence returns a number that this bucket has never returned to a transaction that was acknowledged: 1, 2, 3…
func (b Bucket[T]) NextSequence(tx *Tx) (n uint64, err error) {
	err = tx.do("store.NextSequence", func() error {
		bucket, err := tx.bolt.CreateBucketIfNotExists([]byte(b.name))
		if err == nil {
			n, err = bucket.NextSequence()
		}
		return err
	})
	return n, err
}

func (tx *Tx) get(op, bucket, key string) (version uint8, data []byte, ok bool, err error) {
	err = tx.do(op, func() error {
		b := tx.bolt.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		raw := b.Get([]byte(key))
		if ok = raw != nil; !ok {
			return nil
		}
		var err error
		if version, data, err = unseal(bucket, key, raw); err != nil {
			return damage{err}
		}
		return nil
	})
	return version, data, ok && err == nil, err
}

func (tx *Tx) put(op, bucket, key string, version uint8, data []byte) error {
	return tx.do(op, func() error {
		b, err := tx.bolt.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), seal(bucket, key, version, data))
	})
}

func (tx *Tx) delete(op, bucket, key string) error {
	return tx.do(op, func() error {
		if b := tx.bolt.Bucket([]byte(bucket)); b != nil && key != "" {
			return b.Delete([]byte(key))
		}
		return nil
	})
}

// do runs one step inside bbolt. Misuse (an empty or overlong key, writing in a View) is InvalidParameter and leaves the
// transaction usable.
func (tx *Tx) do(op string, fn func() error) error {
	if tx.err != nil {
		return tx.err
	}
	err := guard(fn)
	var d damage
	switch {
	case err == nil:
		return nil
	case errors.As(err, &d):
		tx.err = tx.db.fail(op, err)
		return tx.err
	case errors.Is(err, berrors.ErrTxNotWritable), errors.Is(err, berrors.ErrKeyRequired), errors.Is(err, berrors.ErrKeyTooLarge),
		errors.Is(err, berrors.ErrValueTooLarge), errors.Is(err, berrors.ErrBucketNameRequired):
		return ntstatus.Errorf(op, tx.db.path, ntstatus.InvalidParameter, "%w", err)
	}
	return ntstatus.Wrap(op, tx.db.path, err)
}
