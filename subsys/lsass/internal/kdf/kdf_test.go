package kdf_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/subsys/lsass/internal/kdf"
)

var cheap = kdf.Params{Time: 1, MemoryKiB: 64, Threads: 1}

func TestHashVerifiesItsPasswordAndNoOther(t *testing.T) {
	phc, err := kdf.Hash([]byte("correct horse"), cheap)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(phc, "$argon2id$v=19$m=64,t=1,p=1$"), phc)
	again, err := kdf.Hash([]byte("correct horse"), cheap)
	require.NoError(t, err)
	require.NotEqual(t, phc, again, "the salt is random")
	for password, want := range map[string]bool{"correct horse": true, "correct horsf": false, "": false, "correct horse\x00": false} {
		ok, err := kdf.Verify([]byte(password), phc)
		require.NoError(t, err)
		require.Equal(t, want, ok, "%q", password)
	}
	p, err := kdf.ParamsOf(phc)
	require.NoError(t, err)
	require.Equal(t, cheap, p)
}

// stored is a record as this package's first version wrote it: accounts of that time must stay able to log on.
const stored = "$argon2id$v=19$m=64,t=2,p=2$c2FsbHlwb3J0LXRlc3RzIQ$rqHqWwWdjM6GjpxXup5V+ng9awSLdX6UB31vCWThWMQ"

func TestVerifyReadsWhatOlderVersionsWrote(t *testing.T) {
	ok, err := kdf.Verify([]byte("two doors"), stored)
	require.NoError(t, err)
	require.True(t, ok)
}

func TestKnownAnswers(t *testing.T) {
	dir := os.Getenv("SALLYPORT_CASES")
	if dir == "" {
		t.Skip("SALLYPORT_CASES is not set: no third-party cases to run")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "kdf_vectors.json"))
	require.NoError(t, err)
	var file struct {
		Argon2 []struct{ ID, Type, Password, PHC string }
	}
	require.NoError(t, json.Unmarshal(raw, &file))
	passed, total := 0, 0
	for _, c := range file.Argon2 {
		if c.Type != "argon2id" {
			continue // not a kind of hash that this package makes or takes
		}
		total++
		if ok, err := kdf.Verify([]byte(c.Password), c.PHC); ok && err == nil {
			passed++
		} else {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
	t.Logf("argon2id: %d of %d", passed, total)
	require.NotZero(t, total)
}

func TestVerifyRefusesDamagedRecords(t *testing.T) {
	for _, bad := range []string{
		"", "$", "plain", strings.Replace(stored, "argon2id", "argon2i", 1), strings.Replace(stored, "v=19", "v=16", 1),
		strings.Replace(stored, "m=64", "m=4294967295", 1), strings.Replace(stored, "m=64", "m=7", 1), strings.Replace(stored, "t=2", "t=0", 1),
		strings.Replace(stored, "t=2", "t=99999", 1), strings.Replace(stored, "p=2", "p=0", 1), strings.Replace(stored, "p=2", "p=-1", 1),
		strings.Replace(stored, "c2FsbHlwb3J0", "!!", 1), strings.Replace(stored, "$c2FsbHlwb3J0LXRlc3RzIQ$", "$c2$", 1), stored[:len(stored)-30], stored + "$",
	} {
		ok, err := kdf.Verify([]byte("password"), bad)
		require.False(t, ok, bad)
		require.ErrorIs(t, err, ntstatus.FileCorrupt, bad)
	}
}

func FuzzParamsOf(f *testing.F) {
	f.Add(stored)
	f.Add("$argon2id$v=19$m=8,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, phc string) {
		if p, err := kdf.ParamsOf(phc); err == nil && p.Check() != nil {
			t.Fatalf("%q has %+v", phc, p)
		}
	})
}

// holder acquires a place in a goroutine and tells when it has it.
type holder struct {
	who     string
	release func()
	err     error
}

func acquire(ctx context.Context, q *kdf.Queue, who string, memory uint32, got chan<- holder) {
	go func() {
		release, err := q.Acquire(ctx, who, memory)
		got <- holder{who, release, err}
	}()
	synctest.Wait()
}

func TestQueueTakesTurnsBetweenCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, got := kdf.NewQueue(100, 64), make(chan holder, 64)
		acquire(t.Context(), q, "flood", 100, got)
		first := <-got
		for range 20 {
			acquire(t.Context(), q, "flood", 100, got)
		}
		acquire(t.Context(), q, "winlogon", 100, got)
		require.Empty(t, got, "the memory is spent")
		first.release()
		second := <-got
		second.release()
		require.ElementsMatch(t, []string{"flood", "winlogon"}, []string{second.who, (<-got).who}, "one of each line, not the flood first")
	})
}

func TestQueueGrantsInOrderAndNeverMoreThanItsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, got := kdf.NewQueue(100, 64), make(chan holder, 8)
		acquire(t.Context(), q, "a", 60, got)
		acquire(t.Context(), q, "b", 50, got)
		acquire(t.Context(), q, "c", 10, got)
		a := <-got
		require.Equal(t, "a", a.who)
		require.Empty(t, got, "c would fit, but b is first")
		a.release()
		synctest.Wait()
		require.Len(t, got, 2)
		(<-got).release()
		(<-got).release()
		_, err := q.Acquire(t.Context(), "d", 101)
		require.ErrorIs(t, err, ntstatus.InsufficientResources)
	})
}

func TestQueueRefusesWhenItIsLongAndForgetsWhoLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, got := kdf.NewQueue(1, 8), make(chan holder, 16)
		hold, err := q.Acquire(t.Context(), "x", 1)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		for range 4 {
			acquire(ctx, q, "flood", 1, got)
		}
		_, err = q.Acquire(t.Context(), "flood", 1)
		require.ErrorIs(t, err, ntstatus.RPCServerTooBusy, "half of the places is one line's share")
		acquire(t.Context(), q, "alice", 1, got)
		require.Empty(t, got)
		cancel()
		for range 4 {
			require.ErrorIs(t, (<-got).err, ntstatus.RequestCanceled)
		}
		hold()
		alice := <-got
		require.NoError(t, alice.err)
		alice.release()
		again, err := q.Acquire(t.Context(), "flood", 1)
		require.NoError(t, err, "nothing is left of those who gave up")
		again()
	})
}
