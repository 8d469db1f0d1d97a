package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"runtime"
	"runtime/debug"
)

// A record on disk is: checksum (4 bytes, little-endian CRC-32C of all that follows, of the bucket's name and of the key),
// version (1 byte, the codec's), payload. The names are in the sum so that a page that ended up in the wrong place is damage.
const recordHeader = 5

func seal(bucket, key string, version uint8, payload []byte) []byte {
	out := make([]byte, recordHeader, recordHeader+len(payload))
	out[4] = version
	out = append(out, payload...)
	binary.LittleEndian.PutUint32(out, checksum(bucket, key, out[4:]))
	return out
}

// unseal checks a record and returns a copy of its payload.
func unseal(bucket, key string, data []byte) (version uint8, payload []byte, err error) {
	if len(data) < recordHeader {
		return 0, nil, fmt.Errorf("bucket %q, key %q: the record has %d bytes of at least %d", bucket, key, len(data), recordHeader)
	}
	if want, got := binary.LittleEndian.Uint32(data), checksum(bucket, key, data[4:]); want != got {
		return 0, nil, fmt.Errorf("bucket %q, key %q: checksum %08x, want %08x", bucket, key, got, want)
	}
	return data[4], bytes.Clone(data[recordHeader:]), nil
}

func checksum(bucket, key string, data []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, []byte(bucket))
	sum = crc32.Update(sum, table, []byte{0})
	sum = crc32.Update(sum, table, []byte(key))
	sum = crc32.Update(sum, table, []byte{0})
	return crc32.Update(sum, table, data)
}

// damage marks an error as the file's own.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

// guard runs calls into bbolt, never the caller's code: a fault in its mapping (a file cut short) and its panics (pages that
// contradict each other) come back as damage.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			err = damage{fmt.Errorf("a page can't be read: %w", r)}
		default:
			err = damage{fmt.Errorf("the pages contradict each other: %v", r)}
		}
	}()
	return fn()
}
