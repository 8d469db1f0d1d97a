package cli_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"sallyport/cmd/sallyport/cli"
	"sallyport/ntstatus"
)

type base struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

type inner struct {
	ID   int    `json:"id"`
	User string `json:"user"`
}

type row struct {
	base
	Count   uint32     `json:"count"`
	Since   *time.Time `json:"since"`
	Nothing string     `json:"nothing"`
	Words   []string   `json:"words"`
	Inner   []inner    `json:"inner"`
}

func rows() []row {
	return []row{
		{base: base{`\A`, "yes: \x1b[31mred\x1b[0m <&>"}, Count: 1, Words: []string{"a", "b"}, Inner: []inner{{1, "x"}, {2, "y"}}},
		{base: base{`\B`, "no"}, Words: []string{"a sentence", "another"}},
	}
}

func TestEveryFormatHasTheSameData(t *testing.T) {
	out := map[string]string{}
	for _, format := range cli.Formats() {
		text, err := cli.Print(format, rows(), false)
		require.NoError(t, err)
		out[format] = text
	}
	var fromJSON, fromLines, fromYAML []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out["json"]), &fromJSON))
	for line := range strings.Lines(out["jsonl"]) {
		var one map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &one))
		fromLines = append(fromLines, one)
	}
	require.Equal(t, fromJSON, fromLines)
	require.NoError(t, yaml.Unmarshal([]byte(out["yaml"]), &fromYAML))
	again, err := json.Marshal(fromYAML)
	require.NoError(t, err)
	lines, err := json.Marshal(fromLines)
	require.NoError(t, err)
	require.JSONEq(t, string(lines), string(again))
	require.Equal(t, "\\A\n\\B\n", out["name"])
	require.Equal(t, `NAME  TEXT                   COUNT  WORDS               INNER
\A    yes: ?[31mred?[0m <&>  1      a,b                 1:x,2:y
\B    no                     0      a sentence,another  -
`, out["table"])
	require.NotContains(t, out["table"], "\x1b", "what others named does not steer the terminal")
}

func TestOneRowIsALinePerField(t *testing.T) {
	text, err := cli.Print("table", rows()[1], true)
	require.NoError(t, err)
	require.Equal(t, `name:    \B
text:    no
count:   0
since:   -
nothing: -
words:
  a sentence
  another
inner:   -
`, text)
	text, err = cli.Print("table", rows()[0], true)
	require.NoError(t, err)
	require.Contains(t, text, "inner:\n  ID  USER\n  1   x\n  2   y\n")
}

func TestAnEmptyListIsOneInEveryFormat(t *testing.T) {
	for format, want := range map[string]string{"json": "[]\n", "jsonl": "", "yaml": "[]\n", "name": ""} {
		text, err := cli.Print(format, []row{}, false)
		require.NoError(t, err)
		require.Equal(t, want, text, format)
	}
}

func TestAnErrorSaysItsCodeStatusSentenceAndHint(t *testing.T) {
	denied := &ntstatus.Error{Op: "scm.Stop", Object: "web", Status: ntstatus.AccessDenied, Err: &ntstatus.Denial{Object: "web", Right: "SERVICE_STOP", Decision: 7}}
	text, code := cli.WriteError("table", denied)
	require.Equal(t, 4, code)
	require.Regexp(t, `^sallyport: scm.Stop web: access denied: SERVICE_STOP is needed on web \(decision 7.*\) \[STATUS_ACCESS_DENIED\]\nhint: `, text)
	text, code = cli.WriteError("json", denied)
	require.Equal(t, 4, code)
	var report struct{ Error map[string]any }
	require.NoError(t, json.Unmarshal([]byte(text), &report))
	require.Equal(t, "SERVICE_STOP", report.Error["right"])
	require.EqualValues(t, 7, report.Error["decision"])
	require.EqualValues(t, 4, report.Error["code"])

	for want, status := range map[int]ntstatus.Status{
		1: ntstatus.InvalidParameter, 3: ntstatus.NoSuchUser, 5: ntstatus.AccountLockedOut, 6: ntstatus.IOTimeout, 7: ntstatus.PortDisconnected,
		8: ntstatus.ServiceAlreadyRunning, 9: ntstatus.QuotaExceeded,
	} {
		_, code := cli.WriteError("table", fmt.Errorf("wrapped: %w", ntstatus.New("op", "", status)))
		require.Equal(t, want, code, status.String())
	}
	_, code = cli.WriteError("table", os.ErrClosed)
	require.Equal(t, 1, code)
}
