package sam_test

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/kdf"
	"sallyport/subsys/lsass/internal/sam"
)

const password, interactive = "correct horse", int32(2)

// policy is what an administrator would set who values speed above all.
func policy() sam.Policy {
	return sam.Policy{
		MinPasswordLength: 4, LockoutThreshold: 3, LockoutWindow: 10 * time.Minute, LockoutDuration: 30 * time.Minute,
		Hash: kdf.Params{Time: 1, MemoryKiB: 8, Threads: 1},
	}
}

func open(t testing.TB, path string, ids sam.IDs) *sam.DB {
	d, err := sam.Open(sam.Options{Path: path, Domain: "HOST", IDs: ids, Queue: kdf.NewQueue(1024, 64)})
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func fresh(t testing.TB) *sam.DB {
	d := open(t, filepath.Join(t.TempDir(), "sam"), sam.IDs{UID: 1000, GID: 1000})
	require.NoError(t, d.SetPolicy(policy()))
	return d
}

func create(t testing.TB, d *sam.DB, name string) sam.Account {
	a, err := d.Create(t.Context(), "test", sam.Account{Name: name}, []byte(password))
	require.NoError(t, err)
	return a
}

func attempt(t testing.TB, d *sam.DB, name, pw string) ntstatus.Status {
	_, err := d.Authenticate(t.Context(), "test", name, []byte(pw), interactive)
	return ntstatus.Of(err)
}

func TestLockoutTakesEvenTheRightPasswordAndEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fresh(t)
		create(t, d, "alice")
		steps := []struct {
			after    time.Duration
			password string
			want     ntstatus.Status
			count    uint32
		}{
			{0, "wrong", ntstatus.WrongPassword, 1},
			{time.Minute, password, ntstatus.Success, 0},
			{0, "wrong", ntstatus.WrongPassword, 1},
			{9 * time.Minute, "wrong", ntstatus.WrongPassword, 2},
			{10 * time.Minute, "wrong", ntstatus.WrongPassword, 1}, // the window has passed
			{time.Minute, "wrong", ntstatus.WrongPassword, 2},
			{time.Minute, "wrong", ntstatus.WrongPassword, 3}, // this one locks
			{0, password, ntstatus.AccountLockedOut, 3},
			{time.Minute, "wrong", ntstatus.AccountLockedOut, 3},
			{29*time.Minute - 1, password, ntstatus.AccountLockedOut, 3},
			{1, "wrong", ntstatus.WrongPassword, 1}, // the lock is over, the count begins again
			{0, password, ntstatus.Success, 0},
		}
		for i, s := range steps {
			time.Sleep(s.after)
			require.Equal(t, s.want, attempt(t, d, "ALICE", s.password), "step %d", i)
			a, err := d.Account("alice")
			require.NoError(t, err)
			require.Equal(t, s.count, a.BadCount, "step %d", i)
		}
	})
}

func TestLockoutOutlivesTheProcessAndAClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "sam")
		d := open(t, path, sam.IDs{UID: 1})
		require.NoError(t, d.SetPolicy(policy()))
		create(t, d, "alice")
		for range 3 {
			require.Equal(t, ntstatus.WrongPassword, attempt(t, d, "alice", "wrong"))
		}
		// The lock as a clock ten years ahead would have written it.
		_, err := d.Update("alice", func(a *sam.Account) error {
			a.LockedAt += int64(10 * 365 * 24 * time.Hour)
			return nil
		})
		require.NoError(t, err)
		require.NoError(t, d.Close())
		d = open(t, path, sam.IDs{UID: 1})
		require.Equal(t, ntstatus.AccountLockedOut, attempt(t, d, "alice", password))
		time.Sleep(policy().LockoutDuration)
		require.Equal(t, ntstatus.Success, attempt(t, d, "alice", password))
	})
}

// Guesses at random times against a model of what the policy says, in words of its own.
func TestLockoutFollowsTheModel(t *testing.T) {
	for _, p := range []sam.Policy{
		policy(),
		{MinPasswordLength: 1, LockoutThreshold: 1, LockoutWindow: time.Minute, LockoutDuration: time.Minute, Hash: policy().Hash},
		{MinPasswordLength: 1, LockoutThreshold: 4, LockoutWindow: time.Hour, LockoutDuration: 0, Hash: policy().Hash},
		{MinPasswordLength: 1, LockoutThreshold: 0, Hash: policy().Hash},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := fresh(t)
			require.NoError(t, d.SetPolicy(p))
			create(t, d, "alice")
			random := rand.New(rand.NewPCG(1, uint64(p.LockoutThreshold)))
			var bad []time.Time // wrong passwords that still count
			var locked time.Time
			for i := range 250 {
				time.Sleep(time.Duration(random.Int64N(int64(p.LockoutWindow)*3/2 + 1)))
				now, right := time.Now(), random.IntN(5) == 0
				if !locked.IsZero() && p.LockoutDuration != 0 && now.Sub(locked) >= p.LockoutDuration {
					locked, bad = time.Time{}, nil
				}
				if random.IntN(20) == 0 {
					_, err := d.Unlock("alice")
					require.NoError(t, err)
					locked, bad = time.Time{}, nil
				}
				want := ntstatus.WrongPassword
				switch {
				case !locked.IsZero():
					want = ntstatus.AccountLockedOut
				case right:
					want, bad = ntstatus.Success, nil
				default:
					if len(bad) > 0 && now.Sub(bad[len(bad)-1]) >= p.LockoutWindow {
						bad = nil
					}
					if bad = append(bad, now); p.LockoutThreshold > 0 && len(bad) >= int(p.LockoutThreshold) {
						locked = now
					}
				}
				require.Equal(t, want, attempt(t, d, "alice", map[bool]string{true: password, false: "wrong"}[right]), "threshold %d, step %d", p.LockoutThreshold, i)
			}
		})
	}
}

func TestGuessesInParallelCountAsInARow(t *testing.T) {
	d := fresh(t)
	create(t, d, "alice")
	outcomes := make(chan ntstatus.Status, 40)
	var all sync.WaitGroup
	for i := range cap(outcomes) {
		all.Go(func() {
			guess := "wrong"
			if i == cap(outcomes)-1 {
				guess = "wronger"
			}
			_, err := d.Authenticate(context.Background(), string(rune('a'+i)), "alice", []byte(guess), interactive)
			outcomes <- ntstatus.Of(err)
		})
	}
	all.Wait()
	close(outcomes)
	counts := map[ntstatus.Status]int{}
	for s := range outcomes {
		counts[s]++
	}
	require.Equal(t, map[ntstatus.Status]int{ntstatus.WrongPassword: 3, ntstatus.AccountLockedOut: 37}, counts)
}

func TestRestrictionsAreToldOnlyToWhoKnowsThePassword(t *testing.T) {
	d := fresh(t)
	create(t, d, "bob")
	for _, c := range []struct {
		name   string
		change func(*sam.Account)
		want   ntstatus.Status
	}{
		{"disabled", func(a *sam.Account) { a.Disabled = true }, ntstatus.AccountDisabled},
		{"expired", func(a *sam.Account) { a.Expires = 1 }, ntstatus.AccountExpired},
		{"must change", func(a *sam.Account) { a.MustChange = true }, ntstatus.PasswordMustChange},
		{"denied", func(a *sam.Account) { a.SystemAccess = 0x40 }, ntstatus.LogonTypeNotGranted},
		{"no alias", func(a *sam.Account) { a.Aliases = nil }, ntstatus.LogonTypeNotGranted},
		{"denied though granted", func(a *sam.Account) { a.SystemAccess = 0x41 }, ntstatus.LogonTypeNotGranted},
		{"granted itself", func(a *sam.Account) { a.Aliases, a.SystemAccess = nil, 1 }, ntstatus.Success},
	} {
		clean, err := d.Account("bob")
		require.NoError(t, err)
		_, err = d.Update("bob", func(a *sam.Account) error { c.change(a); return nil })
		require.NoError(t, err)
		require.Equal(t, ntstatus.WrongPassword, attempt(t, d, "bob", "wrong"), c.name)
		require.Equal(t, c.want, attempt(t, d, "bob", password), c.name)
		_, err = d.Update("bob", func(a *sam.Account) error { *a = clean; return nil })
		require.NoError(t, err)
	}
}

func TestLogonRightsByType(t *testing.T) {
	for _, c := range []struct {
		aliases []uint32
		access  uint32
		types   []int32
	}{
		{nil, 0, nil},
		{[]uint32{sam.AliasUsers}, 0, []int32{2, 3, 7}},
		{[]uint32{sam.AliasAdministrators}, 0, []int32{2, 3, 4, 7}},
		{[]uint32{sam.AliasUsers}, 0x14, []int32{2, 3, 4, 5, 7}},
		{[]uint32{sam.AliasUsers}, 0x80 | 0x10, []int32{2, 5, 7}},
		{[]uint32{sam.AliasAdministrators}, 0x100 | 0x210, []int32{2, 3, 7}},
	} {
		a := sam.Account{Aliases: c.aliases, SystemAccess: c.access}
		var got []int32
		for logonType := range int32(14) {
			if a.MayLogOn(logonType) {
				got = append(got, logonType)
			}
		}
		require.Equal(t, c.types, got, "%v %#x", c.aliases, c.access)
	}
}

func TestUnknownNamesCostAHashAndAreNotTold(t *testing.T) {
	d := fresh(t)
	require.Equal(t, ntstatus.NoSuchUser, attempt(t, d, "nobody", password))
	require.Equal(t, ntstatus.NoSuchUser, attempt(t, d, "", password))
	require.Equal(t, ntstatus.NoSuchUser, attempt(t, d, strings.Repeat("x", 100000), password))
	require.Equal(t, ntstatus.InvalidParameter, attempt(t, d, "nobody", "a\x00b"), "refused before any account is looked at")
	require.Equal(t, ntstatus.InvalidParameter, attempt(t, d, "nobody", strings.Repeat("x", 1025)))

	// The hash of an unknown name waits in the queue like any other: with the queue full it is refused as one.
	q := kdf.NewQueue(1024, 1)
	d2, err := sam.Open(sam.Options{Path: filepath.Join(t.TempDir(), "sam"), Domain: "HOST", IDs: sam.IDs{UID: 1}, Queue: q})
	require.NoError(t, err)
	defer d2.Close()
	hold, err := q.Acquire(t.Context(), "x", 1024)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = d2.Authenticate(ctx, "x", "nobody", []byte("guess"), interactive)
	require.ErrorIs(t, err, ntstatus.IOTimeout)
	hold()
	require.Equal(t, ntstatus.NoSuchUser, attempt(t, d2, "nobody", "guess"))
}

func TestNamesAreCaselessAndBounded(t *testing.T) {
	d := fresh(t)
	create(t, d, "Zoë")
	a, err := d.Account("ZOË")
	require.NoError(t, err)
	require.Equal(t, "Zoë", a.Name)
	_, err = d.Create(t.Context(), "test", sam.Account{Name: "zOË"}, []byte(password))
	require.ErrorIs(t, err, ntstatus.UserExists)
	for _, bad := range []string{
		"", " ", "a ", " a", "a.", strings.Repeat("a", 21), `a\b`, "a/b", "a@b", "a:b", "a\x00b", "a\nb", "a\xffb", "a*", `"`, "tab\t",
		"S-1-5-18", "SYSTEM", "localservice", "Local Service", "administrators", "Users", "Everyone", "BUILTIN", "host", "NT AUTHORITY",
	} {
		_, err := d.Create(t.Context(), "test", sam.Account{Name: bad}, []byte(password))
		require.ErrorIs(t, err, ntstatus.InvalidAccountName, "%q", bad)
	}
	create(t, d, strings.Repeat("ä", 20))
}

func TestRIDsAreNeverReusedAndAcknowledgedChangesStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sam")
	d := open(t, path, sam.IDs{Base: 500000})
	require.NoError(t, d.SetPolicy(policy()))
	first, second := create(t, d, "one"), create(t, d, "two")
	require.Equal(t, []uint32{1000, 1001}, []uint32{first.RID, second.RID})
	gone, err := d.Delete("TWO")
	require.NoError(t, err)
	require.Equal(t, second, gone)
	_, err = d.Delete("two")
	require.ErrorIs(t, err, ntstatus.NoSuchUser)
	require.Equal(t, uint32(1002), create(t, d, "two").RID)
	sid, _ := d.Domain()
	require.NoError(t, d.Close())

	d = open(t, path, sam.IDs{Base: 500000})
	again, name := d.Domain()
	require.Equal(t, sid, again)
	require.Equal(t, "HOST", name)
	require.True(t, strings.HasPrefix(sid.String(), "S-1-5-21-"), sid.String())
	p, err := d.Policy()
	require.NoError(t, err)
	require.Equal(t, policy(), p)
	require.Equal(t, uint32(1003), create(t, d, "three").RID)
	a, ok, err := d.BySID(sid.WithRID(1002))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "two", a.Name)
	_, ok, err = d.BySID(sid.WithRID(1001))
	require.NoError(t, err)
	require.False(t, ok)
	_, ok, err = d.BySID(security.LocalSystem())
	require.NoError(t, err)
	require.False(t, ok)

	list, more, err := d.List(0, 2)
	require.NoError(t, err)
	require.True(t, more)
	require.Equal(t, []string{"one", "two"}, []string{list[0].Name, list[1].Name})
	list, more, err = d.List(list[1].RID, 2)
	require.NoError(t, err)
	require.False(t, more)
	require.Len(t, list, 1)
}

func TestUnixIDsFollowTheInstance(t *testing.T) {
	system := open(t, filepath.Join(t.TempDir(), "sam"), sam.IDs{Base: 500000})
	require.NoError(t, system.SetPolicy(policy()))
	a := create(t, system, "alice")
	uid, gid := system.UnixIDs(a)
	require.Equal(t, [2]uint32{501000, 501000}, [2]uint32{uid, gid})
	zero := uint32(0)
	a, err := system.Update("alice", func(a *sam.Account) error { a.UID = &zero; return nil })
	require.NoError(t, err)
	uid, _ = system.UnixIDs(a)
	require.Zero(t, uid, "an administrator mapped it to root")
	nobody := uint32(math.MaxUint32)
	_, err = system.Update("alice", func(a *sam.Account) error { a.UID = &nobody; return nil })
	require.ErrorIs(t, err, ntstatus.InvalidParameter)

	first, err := system.ServiceID("web")
	require.NoError(t, err)
	second, err := system.ServiceID("db")
	require.NoError(t, err)
	again, err := system.ServiceID("WEB")
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.NotEqual(t, first, second)
	name, ok, err := system.ServiceName(security.ServiceSID("web"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "web", name)
	_, ok, err = system.ServiceName(security.ServiceSID("mail"))
	require.NoError(t, err)
	require.False(t, ok)

	user := fresh(t)
	uid, gid = user.UnixIDs(create(t, user, "alice"))
	require.Equal(t, [2]uint32{1000, 1000}, [2]uint32{uid, gid})
	_, err = user.Update("alice", func(a *sam.Account) error { a.UID = &zero; return nil })
	require.ErrorIs(t, err, ntstatus.InvalidParameter, "it could not run as root anyway")
}

func TestPasswordsAreChangedByTheirOwnersAndSetByAdministrators(t *testing.T) {
	d := fresh(t)
	create(t, d, "alice")
	change := func(old, new string) ntstatus.Status {
		_, err := d.ChangePassword(t.Context(), "test", "alice", []byte(old), []byte(new))
		return ntstatus.Of(err)
	}
	require.Equal(t, ntstatus.PasswordRestriction, change(password, "abc"), "too short")
	require.Equal(t, ntstatus.PasswordRestriction, change(password, "has\x00zero"))
	require.Equal(t, ntstatus.PasswordRestriction, change(password, password))
	require.Equal(t, ntstatus.WrongPassword, change("wrong", "new password"))
	require.Equal(t, ntstatus.Success, change(password, "new password"))
	require.Equal(t, ntstatus.WrongPassword, attempt(t, d, "alice", password))
	require.Equal(t, ntstatus.Success, attempt(t, d, "alice", "new password"))

	_, err := d.SetPassword(t.Context(), "test", "alice", []byte("by the admin"), true)
	require.NoError(t, err)
	require.Equal(t, ntstatus.PasswordMustChange, attempt(t, d, "alice", "by the admin"))
	require.Equal(t, ntstatus.Success, change("by the admin", "my own now"))
	require.Equal(t, ntstatus.Success, attempt(t, d, "alice", "my own now"))

	for range 3 {
		require.Equal(t, ntstatus.WrongPassword, change("wrong", "new password"), "a failed change counts")
	}
	require.Equal(t, ntstatus.AccountLockedOut, change("my own now", "new password"))
	require.Equal(t, ntstatus.AccountLockedOut, attempt(t, d, "alice", "my own now"))
	_, err = d.SetPassword(t.Context(), "test", "alice", []byte("fresh start"), false)
	require.NoError(t, err)
	require.Equal(t, ntstatus.Success, attempt(t, d, "alice", "fresh start"))
	_, err = d.SetPassword(t.Context(), "test", "nobody", []byte("fresh start"), false)
	require.ErrorIs(t, err, ntstatus.NoSuchUser)
}

func TestMembershipsAreOfOneKindEach(t *testing.T) {
	d := fresh(t)
	a := create(t, d, "alice")
	require.Equal(t, []uint32{sam.AliasUsers}, a.Aliases)
	_, err := d.RemoveMember(sam.AliasAdministrators, "alice")
	require.ErrorIs(t, err, ntstatus.MemberNotInAlias)
	a, err = d.AddMember(sam.AliasAdministrators, "alice")
	require.NoError(t, err)
	require.Equal(t, []uint32{sam.AliasAdministrators, sam.AliasUsers}, a.Aliases)
	_, err = d.AddMember(sam.AliasAdministrators, "alice")
	require.ErrorIs(t, err, ntstatus.MemberInAlias)
	a, err = d.RemoveMember(sam.AliasUsers, "alice")
	require.NoError(t, err)
	require.Equal(t, []uint32{sam.AliasAdministrators}, a.Aliases)
}

func TestPoliciesThatContradictThemselvesAreRefused(t *testing.T) {
	d := fresh(t)
	for name, change := range map[string]func(*sam.Policy){
		"shorter than its window": func(p *sam.Policy) { p.LockoutDuration = p.LockoutWindow - 1 },
		"no window":               func(p *sam.Policy) { p.LockoutWindow = 0 },
		"negative":                func(p *sam.Policy) { p.LockoutWindow = -1 },
		"empty passwords":         func(p *sam.Policy) { p.MinPasswordLength = 0 },
		"longer than any":         func(p *sam.Policy) { p.MinPasswordLength = 1000 },
		"endless threshold":       func(p *sam.Policy) { p.LockoutThreshold = 1000 },
		"no passes":               func(p *sam.Policy) { p.Hash.Time = 0 },
		"more than its memory":    func(p *sam.Policy) { p.Hash.MemoryKiB = 1025 },
	} {
		p := policy()
		change(&p)
		require.ErrorIs(t, d.SetPolicy(p), ntstatus.InvalidParameter, name)
	}
	p, err := d.Policy()
	require.NoError(t, err)
	require.Equal(t, policy(), p)

	create(t, d, "alice")
	p.Hash.Time = 2
	require.NoError(t, d.SetPolicy(p))
	require.Equal(t, ntstatus.Success, attempt(t, d, "alice", password), "a hash keeps its own costs")
}

func TestNoPasswordReachesTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sam")
	d := open(t, path, sam.IDs{UID: 1})
	require.NoError(t, d.SetPolicy(policy()))
	create(t, d, "alice")
	require.Equal(t, ntstatus.WrongPassword, attempt(t, d, "alice", "another secret"))
	require.Equal(t, ntstatus.NoSuchUser, attempt(t, d, "typed in the wrong box", "x"))
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(raw), "alice")
	for _, secret := range []string{password, "another secret", "typed in the wrong box"} {
		require.NotContains(t, string(raw), secret)
	}
}
