// Package kdf turns passwords into what may be stored: Argon2id (RFC 9106) in PHC strings, and the queue that bounds how much
// memory hashing takes.
//
// Callers trust this package with passwords; it keeps none. Whoever asks for hashes is not trusted: a flood of them waits
// in its own line (Queue) and never takes the memory or the turn of the others.
package kdf

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"

	"sallyport/ntstatus"
)

// Params are Argon2id's costs. They are stored with every hash, so that changing them leaves old passwords valid.
type Params struct {
	Time      uint32 // passes
	MemoryKiB uint32
	Threads   uint8
}

// Limits of what Verify accepts from a file: beyond them a record is damage or sabotage.
const (
	maxTime, maxMemoryKiB, maxThreads = 64, 1 << 21, 64
	saltLength, keyLength             = 16, 32
)

// Check returns INVALID_PARAMETER for costs that Argon2 doesn't have or this package doesn't take.
func (p Params) Check() error {
	if p.Time < 1 || p.Time > maxTime || p.Threads < 1 || p.Threads > maxThreads ||
		p.MemoryKiB < 8*uint32(p.Threads) || p.MemoryKiB > maxMemoryKiB {
		return ntstatus.Errorf("kdf.Check", "argon2id", ntstatus.InvalidParameter,
			"%d passes over %d KiB in %d threads: want 1..%d passes, 1..%d threads, 8 KiB per thread to %d KiB",
			p.Time, p.MemoryKiB, p.Threads, maxTime, maxThreads, maxMemoryKiB)
	}
	return nil
}

// Hash derives a new PHC string with a random salt. It takes p.MemoryKiB of memory: hold a place in a Queue.
func Hash(password []byte, p Params) (string, error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	salt := make([]byte, saltLength)
	rand.Read(salt)
	return format(p, salt, argon2.IDKey(password, salt, p.Time, p.MemoryKiB, p.Threads, keyLength)), nil
}

// Verify reports whether password is the one that phc was derived from, in time that does not depend on how they differ.
func Verify(password []byte, phc string) (bool, error) {
	p, salt, key, err := parse(phc)
	if err != nil {
		return false, err
	}
	got := argon2.IDKey(password, salt, p.Time, p.MemoryKiB, p.Threads, uint32(len(key)))
	defer clear(got)
	return subtle.ConstantTimeCompare(got, key) == 1, nil
}

// ParamsOf returns the costs in a PHC string.
func ParamsOf(phc string) (Params, error) {
	p, _, _, err := parse(phc)
	return p, err
}

func format(p Params, salt, key []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.MemoryKiB, p.Time, p.Threads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

func parse(phc string) (p Params, salt, key []byte, err error) {
	bad := func(what string) (Params, []byte, []byte, error) {
		return Params{}, nil, nil, ntstatus.Errorf("kdf.Verify", "password record", ntstatus.FileCorrupt, "%s", what)
	}
	fields := strings.Split(phc, "$")
	if len(fields) != 6 || fields[0] != "" || fields[1] != "argon2id" {
		return bad("not an argon2id string")
	}
	var version int
	if n, err := fmt.Sscanf(fields[2]+" "+fields[3], "v=%d m=%d,t=%d,p=%d", &version, &p.MemoryKiB, &p.Time, &p.Threads); n != 4 || err != nil {
		return bad("unreadable parameters")
	}
	if version != argon2.Version || p.Check() != nil {
		return bad("parameters out of range")
	}
	b64 := base64.RawStdEncoding.Strict()
	if salt, err = b64.DecodeString(fields[4]); err != nil || len(salt) < 8 || len(salt) > 64 {
		return bad("unreadable salt")
	}
	if key, err = b64.DecodeString(fields[5]); err != nil || len(key) < 16 || len(key) > 128 {
		return bad("unreadable hash")
	}
	return p, salt, key, nil
}

// Decoy is a PHC string that no password fits, whose verification costs what p says: what is verified for a name that nobody
// has, so that the time tells nothing.
func Decoy(p Params) string {
	salt, key := make([]byte, saltLength), make([]byte, keyLength)
	rand.Read(salt)
	rand.Read(key)
	return format(p, salt, key)
}
