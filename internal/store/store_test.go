package store_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/internal/store"
	"sallyport/ntstatus"
)

type record struct {
	Name  string
	Value int
}

func records() store.Bucket[record] {
	return store.NewBucket("records", store.JSON[record](1), store.Index[record]{Name: "name", Key: func(r record) string { return r.Name }})
}

func options() store.Options {
	return store.Options{Application: "test", Schema: 1, Timeout: time.Second}
}

func open(t testing.TB, path string) *store.DB {
	db, err := store.Open(path, options())
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// writerEnv makes this test binary the writer of TestNoAcknowledgedRecordIsLostToKill.
const writerEnv = "SALLYPORT_TEST_STORE_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		fmt.Fprintln(os.Stderr, write(path))
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// write puts records 1, 2, 3… after those that are there, and says each once it is acknowledged.
func write(path string) error {
	db, err := store.Open(path, options())
	if err != nil {
		return err
	}
	for {
		var n uint64
		err := db.Update(func(tx *store.Tx) (err error) {
			if n, err = records().NextSequence(tx); err != nil {
				return err
			}
			return records().Put(tx, fmt.Sprintf("%08d", n), record{Name: strconv.FormatUint(n, 10), Value: int(n)})
		})
		if err != nil {
			return err
		}
		if _, err := fmt.Println(n); err != nil {
			return err
		}
	}
}

func TestNoAcknowledgedRecordIsLostToKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	self, err := os.Executable()
	require.NoError(t, err)
	acknowledged, kills := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); kills++ {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), writerEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines, more := bufio.NewReader(out), 1+rand.IntN(30)
		for i := 0; i < more; i++ {
			line, err := lines.ReadString('\n')
			require.NoError(t, err)
			acknowledged, err = strconv.Atoi(strings.TrimSpace(line))
			require.NoError(t, err)
		}
		require.NoError(t, cmd.Process.Kill())
		rest, err := io.ReadAll(lines) // what it had acknowledged when it died
		require.NoError(t, err)
		if i := bytes.LastIndexByte(rest, '\n'); i > 0 {
			acknowledged, err = strconv.Atoi(string(rest[bytes.LastIndexByte(rest[:i], '\n')+1 : i]))
			require.NoError(t, err)
		}
		require.Error(t, cmd.Wait())
	}
	db := open(t, path)
	n := 0
	require.NoError(t, db.View(func(tx *store.Tx) error {
		return records().Each(tx, "", func(key string, r record) error {
			n++
			require.Equal(t, record{strconv.Itoa(n), n}, r, key)
			return nil
		})
	}))
	require.GreaterOrEqual(t, n, acknowledged)
	require.LessOrEqual(t, n, acknowledged+kills, "at most one commit of each run was not reported")
	t.Logf("%d records acknowledged over %d kills", acknowledged, kills)
}

// TestBucketFollowsAMap runs random transactions, some of which fail, against a map.
func TestBucketFollowsAMap(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, strconv.Itoa(runs))
		db, err := store.Open(path, options())
		require.NoError(t, err)
		defer func() { db.Close() }()
		model, abort := map[string]record{}, errors.New("abort")
		key := rapid.SampledFrom([]string{"a", "b", "c", "aa", "\x00", "\xff", "A"})
		name := rapid.SampledFrom([]string{"", "x", "y", "z"})
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				got := map[string]record{}
				var keys []string
				require.NoError(t, db.View(func(tx *store.Tx) error {
					for k, r := range model {
						if r.Name == "" {
							continue
						}
						primary, found, ok, err := records().Find(tx, "name", r.Name)
						if err != nil || !ok || primary != k || found != r {
							return fmt.Errorf("Find %q: %q %v %v %v", r.Name, primary, found, ok, err)
						}
					}
					return records().Each(tx, "", func(k string, r record) error {
						got[k] = r
						keys = append(keys, k)
						return nil
					})
				}))
				require.Equal(t, model, got)
				require.True(t, slices.IsSorted(keys))
			},
			"transaction": func(t *rapid.T) {
				next, fail := maps.Clone(model), rapid.Bool().Draw(t, "fail")
				err := db.Update(func(tx *store.Tx) error {
					for range rapid.IntRange(1, 4).Draw(t, "operations") {
						k := key.Draw(t, "key")
						if rapid.Bool().Draw(t, "delete") {
							if err := records().Delete(tx, k); err != nil {
								return err
							}
							delete(next, k)
							continue
						}
						r := record{name.Draw(t, "name"), rapid.Int().Draw(t, "value")}
						taken := false
						for other, o := range next {
							taken = taken || other != k && r.Name != "" && o.Name == r.Name
						}
						err := records().Put(tx, k, r)
						switch {
						case taken && !errors.Is(err, ntstatus.ObjectNameCollision):
							return fmt.Errorf("Put %q %v: %v, want a collision", k, r, err)
						case !taken && err != nil:
							return err
						case !taken:
							next[k] = r
						}
						if got, ok, err := records().Get(tx, k); err != nil || got != next[k] || !ok && !taken {
							return fmt.Errorf("Get %q in the transaction: %v %v %v", k, got, ok, err)
						}
					}
					if fail {
						return abort
					}
					return nil
				})
				if fail {
					require.ErrorIs(t, err, abort)
				} else {
					require.NoError(t, err)
					model = next
				}
			},
			"reopen": func(t *rapid.T) {
				require.NoError(t, db.Close())
				db, err = store.Open(path, options())
				require.NoError(t, err)
			},
		})
	})
}

func TestSequencesGoOnAfterDeletes(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	for want := range uint64(3) {
		require.NoError(t, db.Update(func(tx *store.Tx) error {
			n, err := records().NextSequence(tx)
			require.NoError(t, err)
			require.Equal(t, want+1, n)
			require.NoError(t, records().Put(tx, "k", record{}))
			return records().Delete(tx, "k")
		}))
	}
}

func TestFilesAreTheOwnersOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	require.NoError(t, open(t, path).Close())
	require.NoError(t, os.Chmod(path, 0o644))
	open(t, path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing is left of the creation")
}

func TestOpenWaitsForTheOtherProcessAndThenSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	first := open(t, path)
	o := options()
	o.Timeout = 60 * time.Millisecond
	_, err := store.Open(path, o)
	require.ErrorIs(t, err, ntstatus.ResourceInUse)
	opened := make(chan error, 1)
	go func() {
		second, err := store.Open(path, options())
		if err == nil {
			err = second.Close()
		}
		opened <- err
	}()
	require.NoError(t, first.Close())
	require.NoError(t, <-opened)
	require.ErrorIs(t, first.View(func(*store.Tx) error { return nil }), ntstatus.InvalidHandle)
}

func TestOpenRefusesOthersFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	require.NoError(t, open(t, path).Close())
	for _, o := range []store.Options{{Application: "scm", Schema: 1}, {Application: "test", Schema: 2}} {
		_, err := store.Open(path, o)
		require.ErrorIs(t, err, ntstatus.InvalidParameter)
		require.ErrorContains(t, err, `"test", schema 1`)
	}
	_, err := store.Open(dir, options())
	require.ErrorIs(t, err, ntstatus.ObjectTypeMismatch)
	require.NoError(t, os.Symlink(path, filepath.Join(dir, "link")))
	_, err = store.Open(filepath.Join(dir, "link"), options())
	require.ErrorIs(t, err, ntstatus.ObjectTypeMismatch)
	_, err = store.Open(filepath.Join(dir, "no", "db"), options())
	require.ErrorIs(t, err, ntstatus.ObjectNameNotFound)
	open(t, path)
}

// full makes a database with enough records for branch pages, and returns its bytes.
func full(t *testing.T, path string) []byte {
	db := open(t, path)
	for round := range 3 {
		require.NoError(t, db.Update(func(tx *store.Tx) error {
			for i := range 300 {
				if err := records().Put(tx, fmt.Sprintf("%08d", i), record{strconv.Itoa(i), round}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	require.NoError(t, db.Close())
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return raw
}

// readAll opens the file and reads everything; it must end in whole records or in an error, never in a panic.
func readAll(path string) error {
	db, err := store.Open(path, options())
	if err != nil {
		return err
	}
	defer db.Close()
	n := 0
	err = db.View(func(tx *store.Tx) error {
		return records().Each(tx, "", func(key string, r record) error {
			if want := fmt.Sprintf("%08s", r.Name); key != want {
				return fmt.Errorf("record %q at %q", want, key)
			}
			n++
			return nil
		})
	})
	if err == nil && n != 300 {
		err = fmt.Errorf("%d records of 300 were read as if that were all", n)
	}
	return err
}

func TestDamageIsReportedAndTheFileLeftAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	good := full(t, path)
	page := os.Getpagesize()
	for name, bad := range map[string][]byte{
		"empty":           {},
		"text":            []byte("not a database\n"),
		"one page":        good[:page],
		"two pages":       good[:2*page],
		"three pages":     good[:3*page],
		"zeros":           make([]byte, len(good)),
		"both metas gone": append(make([]byte, 2*page), good[2*page:]...),
		"all data gone":   append(slices.Clone(good[:2*page]), make([]byte, len(good)-2*page)...),
		"all data ones":   append(slices.Clone(good[:2*page]), bytes.Repeat([]byte{0xff}, len(good)-2*page)...),
	} {
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err := store.Open(path, options())
		require.ErrorIs(t, err, ntstatus.FileCorrupt, name)
		require.ErrorContains(t, err, path, name)
		require.ErrorContains(t, err, "put back a backup", name)
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(bad, after), "%s: the file was written to", name)
	}
	require.NoError(t, os.WriteFile(path, good, 0o600))
	require.NoError(t, readAll(path), "the lock of every failed Open was given up")
}

// Every record's bytes are under a checksum: a flipped bit in one is found, wherever it is.
func TestFlippedBitsNeverPanicNorPassAsData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	good := full(t, path)
	random := rand.New(rand.NewPCG(7, 7))
	found := 0
	for i := range 400 {
		bad := slices.Clone(good)
		for range 1 + i%3 {
			bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
		}
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		if err := readAll(path); err != nil {
			require.ErrorIs(t, err, ntstatus.FileCorrupt)
			found++
		}
	}
	t.Logf("%d of 400 files were found damaged; the bits of the others lie in free pages", found)
	require.Greater(t, found, 50)
}

func TestAFileCutShortUnderARunningServerIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	full(t, path)
	db := open(t, path)
	require.NoError(t, os.Truncate(path, int64(os.Getpagesize())))
	read := func(tx *store.Tx) error { return records().Each(tx, "", func(string, record) error { return nil }) }
	require.ErrorIs(t, db.View(read), ntstatus.FileCorrupt)
	require.ErrorIs(t, db.Update(func(tx *store.Tx) error { return records().Put(tx, "k", record{}) }), ntstatus.FileCorrupt, "nothing is written to it")
	require.NoError(t, db.Close())
}

func TestMisuseFailsTheCallOnly(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	var kept *store.Tx
	require.NoError(t, db.Update(func(tx *store.Tx) error {
		kept = tx
		require.ErrorIs(t, records().Put(tx, "", record{}), ntstatus.InvalidParameter)
		require.ErrorIs(t, records().Put(tx, strings.Repeat("k", 1<<16), record{}), ntstatus.InvalidParameter)
		return records().Put(tx, "k", record{Value: 1})
	}))
	_, _, err := records().Get(kept, "k")
	require.ErrorIs(t, err, ntstatus.InvalidHandle, "the transaction is over")
	require.NoError(t, db.View(func(tx *store.Tx) error {
		require.ErrorIs(t, records().Put(tx, "k", record{}), ntstatus.InvalidParameter, "a View doesn't write")
		r, ok, err := records().Get(tx, "k")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, 1, r.Value)
		return nil
	}))
	newer := store.NewBucket("records", store.JSON[record](2))
	require.NoError(t, db.View(func(tx *store.Tx) error {
		_, _, err := newer.Get(tx, "k")
		require.ErrorIs(t, err, ntstatus.FileCorrupt)
		return nil
	}))
	require.PanicsWithValue(t, "mine", func() {
		_ = db.Update(func(tx *store.Tx) error {
			_ = records().Put(tx, "lost", record{})
			panic("mine")
		})
	})
	require.NoError(t, db.Update(func(tx *store.Tx) error {
		_, ok, err := records().Get(tx, "lost")
		require.False(t, ok, "a panic of the caller's is its own, and undoes the transaction")
		return err
	}))
}
