package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/examples/hello/hellopb"
	"sallyport/rpc"
	"sallyport/subsys/smss"
)

const top = "../.."

// blocks returns the fenced blocks of a language in a document.
func blocks(t *testing.T, document, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, document))
	require.NoError(t, err)
	var all []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	require.NotEmpty(t, all)
	return all
}

// What is to be pasted from the README is what examples/hello has, and that is compiled and tested.
func TestReadmeFilesAreTheExamples(t *testing.T) {
	files := map[string]string{}
	paste := regexp.MustCompile(`(?ms)^cat > (\S+) <<'EOF'\n(.*?)^EOF$`)
	for _, block := range blocks(t, "README.md", "sh") {
		for _, m := range paste.FindAllStringSubmatch(block, -1) {
			files[m[1]] = m[2]
		}
	}
	require.Len(t, files, 3)
	for name, pasted := range files {
		text, err := os.ReadFile(filepath.Join(top, "examples", name))
		require.NoError(t, err)
		require.Equal(t, strings.ReplaceAll(string(text), "sallyport/examples/hello/", "sallyport/hello/"), pasted, name)
	}
}

// greeter stands in for the server that the README's reader has just written: this test builds nothing.
type greeter struct {
	hellopb.UnimplementedGreeterServer
}

func (greeter) Greet(_ context.Context, r *hellopb.GreetRequest) (*hellopb.GreetReply, error) {
	return &hellopb.GreetReply{Text: "Hello " + r.Name}, nil
}

// The README's commands work as they stand there, one after the other. What "go run" and "go test" do for the rest, .ci/run
// does for real.
func TestReadmeCommandsWork(t *testing.T) {
	t.Setenv("SALLYPORT_RUNTIME_DIR", filepath.Join(instanceDirectory(t), "run"))
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	t.Cleanup(func() { _ = exec.Command("sallyport", "down").Run() }) // if it failed half-way
	ran := 0
	for _, block := range blocks(t, "README.md", "sh") {
		if strings.Contains(block, "cat > ") {
			continue // TestReadmeFilesAreTheExamples
		}
		for line := range strings.Lines(block) {
			line = strings.TrimSpace(line)
			switch {
			case line == "go run ./cmd/sallyport tour": // tour.txtar
			case strings.HasPrefix(line, "go test "), strings.HasPrefix(line, "go -C bench "), line == "go run ./hello/client":
			case line == "go run ./hello &":
				serveGreeter(t)
			case strings.Contains(line, "go run ./cmd/sallyport "):
				out, err := exec.Command("sh", "-c", strings.ReplaceAll(line, "go run ./cmd/sallyport ", "sallyport ")).CombinedOutput()
				require.NoError(t, err, "%s\n%s", line, out)
				ran++
				if strings.Contains(line, " Greet ") {
					require.Contains(t, string(out), "Hello you")
				}
			default:
				require.Fail(t, "nothing tests this line of the README", line)
			}
		}
	}
	require.Greater(t, ran, 10)
}

func serveGreeter(t *testing.T) {
	sys, err := alpc.Attach(t.Context(), alpc.Options{})
	require.NoError(t, err)
	l, err := sys.Listen(t.Context(), `\BaseNamedObjects\hello`, alpc.PortAttributes{SecurityDescriptor: "D:(A;;0x1;;;AU)", AutoAccept: true})
	require.NoError(t, err)
	s := rpc.NewServer(rpc.ServerOptions{System: sys})
	hellopb.RegisterGreeterServer(s, greeter{})
	s.Secure("hello.Greeter", rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;AU)"})
	s.OfferReflection(rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;AU)"})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(context.WithoutCancel(t.Context()), l) // it ends with its core
	}()
	t.Cleanup(func() {
		sys.Close()
		<-served
	})
}

// The configuration in the operator's page is one that smss reads.
func TestDocumentedConfigurationIsRead(t *testing.T) {
	for _, block := range blocks(t, "docs/operations.md", "toml") {
		file := filepath.Join(t.TempDir(), "sallyport.toml")
		require.NoError(t, os.WriteFile(file, []byte(block), 0o600))
		config, err := smss.Load(file)
		require.NoError(t, err)
		require.Contains(t, config.Servers, "hello")
	}
}
