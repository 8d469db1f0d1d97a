package winlogon_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/subsys/winlogon"
)

// TestEveryLogonEndsLoggedOffOrNeverLoggedOn walks every path of the table to its end.
func TestEveryLogonEndsLoggedOffOrNeverLoggedOn(t *testing.T) {
	type place struct {
		state winlogon.State
		open  bool // a logon session is open
	}
	seen := map[place]bool{}
	var walk func(place)
	walk = func(at place) {
		if seen[at] {
			return
		}
		seen[at] = true
		require.False(t, at.open && (at.state == winlogon.Over || at.state == winlogon.NoUser), "a logon session is left open")
		for e := range winlogon.Events {
			to := winlogon.Next(at.state, e)
			if to == winlogon.Impossible {
				continue
			}
			require.Less(t, to, winlogon.States, "the table holds states only")
			walk(place{to, at.open && at.state != winlogon.LoggedOff || to == winlogon.LoggedOn})
		}
	}
	walk(place{state: winlogon.NoUser})
	for s := range winlogon.States {
		require.True(t, seen[place{s, false}] || seen[place{s, true}], "state %d is never reached", s)
		if s != winlogon.Over {
			require.NotEqual(t, winlogon.Impossible, winlogon.Next(s, winlogon.Stopped), "state %d can't be stopped", s)
		}
	}
}

func TestEditor(t *testing.T) {
	for name, c := range map[string]struct {
		limit   int
		hidden  bool
		keys    string
		shown   string
		line    string
		spoiled bool
		verdict winlogon.Verdict
	}{
		"a name":                       {keys: "alice\r", shown: "alice\n", line: "alice", verdict: winlogon.Finished},
		"a password shows nothing":     {hidden: true, keys: "se\x7fcret\n", shown: "\n", line: "scret", verdict: winlogon.Finished},
		"an empty line":                {keys: "\r", shown: "\n", verdict: winlogon.Finished},
		"backspace takes a whole rune": {keys: "aé\x7f", shown: "aé\b \b", line: "a"},
		"backspace on nothing":         {keys: "\x7f\x08a", shown: "a", line: "a"},
		"Ctrl-U takes the line":        {keys: "abc\x15d", shown: "abc\b \b\b \b\b \bd", line: "d"},
		"Ctrl-W takes a word":          {keys: "one two  \x17", shown: "one two  " + strings.Repeat("\b \b", 5), line: "one "},
		"Ctrl-C begins again":          {keys: "ab\x03", shown: "ab\n", line: "ab", verdict: winlogon.Interrupted},
		"Ctrl-D on an empty line":      {keys: "\x04", shown: "\n", verdict: winlogon.Ended},
		"Ctrl-D in a line is nothing":  {keys: "a\x04b", shown: "ab", line: "ab"},
		"cursor keys are nothing":      {keys: "a\x1b[A\x1b[1;5Cb\x1bOPc", shown: "abc", line: "abc"},
		"a control key ends a sequence": {
			keys: "\x1b[1\rx", shown: "\n", verdict: winlogon.Finished},
		"other control keys are nothing": {keys: "a\x01\x00\x1fb", shown: "ab", line: "ab"},
		"a line that is too long":        {limit: 3, keys: "abcd\r", shown: "abc\a\n", line: "abc", spoiled: true, verdict: winlogon.Finished},
		"too long stays too long":        {limit: 3, keys: "abcd\x7f\r", shown: "abc\a\b \b\n", line: "ab", spoiled: true, verdict: winlogon.Finished},
		"Ctrl-U makes it good":           {limit: 2, hidden: true, keys: "abc\x15ok\r", shown: "\a\n", line: "ok", verdict: winlogon.Finished},
		"bytes that are no text":         {keys: "\xff\xfe\r", shown: "\xff\xfe\n", line: "\xff\xfe", verdict: winlogon.Finished},
	} {
		t.Run(name, func(t *testing.T) {
			limit := c.limit
			if limit == 0 {
				limit = 100
			}
			shown, line, spoiled, v := winlogon.Line(limit, !c.hidden, []byte(c.keys))
			require.Equal(t, c.shown, shown)
			require.Equal(t, c.line, line)
			require.Equal(t, c.spoiled, spoiled)
			require.Equal(t, c.verdict, v)
		})
	}
}

// FuzzEditor: whatever is typed, a line keeps to its limit, a hidden one shows nothing of itself, and a shown one is what is on the screen.
func FuzzEditor(f *testing.F) {
	for _, s := range []string{"alice\r", "a\x7f\x15\x17 b c\x17", "\x1b[1;5A\x1bO", "\xc3\xa9\x7f\xc3\x7f", "\x04", "\x03"} {
		f.Add([]byte(s), uint8(8))
	}
	f.Fuzz(func(t *testing.T, keys []byte, limit uint8) {
		shown, line, spoiled, v := winlogon.Line(int(limit), false, keys)
		require.LessOrEqual(t, len(line), int(limit))
		require.Empty(t, strings.Trim(shown, "\a\n"))
		again, same, spoiledAgain, verdict := winlogon.Line(int(limit), true, keys)
		require.Equal(t, []any{line, spoiled, v}, []any{same, spoiledAgain, verdict}, "echo changes nothing")
		if !utf8.Valid(keys) {
			return // half runes: what a terminal shows of them is its own business
		}
		screen := []rune{}
		for again = strings.NewReplacer("\a", "", "\n", "").Replace(again); again != ""; {
			if rest, ok := strings.CutPrefix(again, "\b \b"); ok {
				screen, again = screen[:len(screen)-1], rest
				continue
			}
			r, n := utf8.DecodeRuneInString(again)
			screen, again = append(screen, r), again[n:]
		}
		if utf8.ValidString(line) {
			require.Equal(t, line, string(screen))
		}
	})
}

func TestEveryRefusalIsExplainedInPlainWords(t *testing.T) {
	require.Equal(t, "The name or the password is wrong.", winlogon.Explain(ntstatus.New("lsa.LogonUser", "x", ntstatus.LogonFailure)))
	for _, s := range []ntstatus.Status{ntstatus.AccountDisabled, ntstatus.AccountLockedOut, ntstatus.AccountExpired, ntstatus.LogonTypeNotGranted} {
		require.Contains(t, winlogon.Explain(s), "dministrator")
	}
	require.Contains(t, winlogon.Explain(ntstatus.NoMemory), ntstatus.NoMemory.Error())
}
