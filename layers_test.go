// Package sallyport_test holds the rules of the house that no compiler checks: who may import whom, where unsafe and raw
// system calls may stand, and how every file looks. It parses the files itself: a test that asks "go list" is served from
// the test cache and would miss a new import.
package sallyport_test

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the import path of this module's top.
const module = "sallyport/"

// layers lists the rooms from the ground up. A folder belongs to the longest prefix that fits it; it may import its own
// layer and those below. Arrows inside a layer are narrowed by the rules further down.
var layers = []struct {
	prefix string
	layer  int
}{
	{"ntstatus", 0},
	{"proto", 1}, // generated: who may use it is a rule of its own
	{"security", 1},
	{"internal", 1},
	{"alpc", 2},
	{"rpc", 3},
	{"subsys", 4},
	{"scm", 4},
	{"cmd", 5},
	{"examples", 5},
	{"integration", 6},
	{"", 6},
}

// servers are the subsystem servers; clients are the packages through which anybody talks to them.
var (
	servers = []string{"subsys/smss", "subsys/lsass", "subsys/csrss", "subsys/winlogon", "scm"}
	clients = []string{"subsys/smss/sm", "subsys/lsass/lsa", "subsys/csrss/csr", "scm/mgr", "scm/svc"}
)

// source is one Go file of the main module.
type source struct {
	path    string // from the top, with slashes
	dir     string
	test    bool
	text    []byte
	file    *ast.File
	imports []string
}

func (s source) generated() bool { return strings.HasSuffix(s.path, ".pb.go") }

// sources parses every Go file of this module; nested modules (tools, bench) keep their own house.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	files := token.NewFileSet()
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return fs.SkipDir
			}
			if _, err := os.Stat(path.Join(name, "go.mod")); name != "." && err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(files, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), text: text, file: f}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		all = append(all, s)
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, all)
	return all
}

func under(dir, prefix string) bool {
	return prefix == "" || dir == prefix || strings.HasPrefix(dir, prefix+"/")
}

func layerOf(dir string) int {
	for _, l := range layers {
		if under(dir, l.prefix) {
			return l.layer
		}
	}
	return -1
}

// serverOf names the server that a folder belongs to; a client package belongs to none.
func serverOf(dir string) string {
	for _, c := range clients {
		if under(dir, c) {
			return ""
		}
	}
	for _, s := range servers {
		if under(dir, s) {
			return s
		}
	}
	return ""
}

func TestArrowsGoDownOnly(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.imports {
			dir, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if layerOf(dir) > layerOf(s.dir) {
				t.Errorf("%s (layer %d) imports %s (layer %d): arrows go down only", s.path, layerOf(s.dir), dir, layerOf(dir))
			}
			if s.test {
				continue
			}
			switch from, to := serverOf(s.dir), serverOf(dir); {
			case to != "" && from != to && layerOf(s.dir) == layerOf(dir):
				t.Errorf("%s imports the server %s: use its client package", s.path, to)
			case under(s.dir, "security") && dir != "ntstatus":
				t.Errorf("%s imports %s: security is pure values over ntstatus", s.path, dir)
			case s.dir == "alpc" && under(dir, "alpc/"):
				t.Errorf("%s imports %s: what programs link does not carry the core", s.path, dir)
			case under(dir, "proto") && !protobufAllowed(s):
				t.Errorf("%s imports %s: protobuf stops at rpc, apart from the core's control messages", s.path, dir)
			case dir == "alpc/alpctest" && layerOf(s.dir) < 5:
				t.Errorf("%s imports alpctest outside a test", s.path)
			}
		}
	}
}

func protobufAllowed(s source) bool {
	return layerOf(s.dir) >= 3 || under(s.dir, "alpc") || under(s.dir, "proto") || s.dir == "internal/control"
}

func TestForeignImportsKeepToTheirFloor(t *testing.T) {
	impure := map[string]bool{"os": true, "net": true, "syscall": true, "time": true, "log": true, "os/exec": true}
	for _, s := range sources(t) {
		for _, imp := range s.imports {
			switch {
			case strings.HasPrefix(imp, "google.golang.org/grpc") && layerOf(s.dir) < 3 && !under(s.dir, "proto"):
				t.Errorf("%s imports %s: gRPC stops at rpc", s.path, imp)
			case strings.HasPrefix(imp, "google.golang.org/protobuf") && !protobufAllowed(s):
				t.Errorf("%s imports %s: protobuf stops at rpc, apart from the core's control messages", s.path, imp)
			case imp == "unsafe" && !strings.HasSuffix(s.path, "_unsafe.go") && !s.generated():
				t.Errorf("%s imports unsafe: only *_unsafe.go may", s.path)
			case strings.HasPrefix(imp, "golang.org/x/sys/") && !under(s.dir, "internal"):
				t.Errorf("%s imports %s: system calls live under internal/", s.path, imp)
			case imp == "log" || imp == "log/slog":
				t.Errorf("%s imports %s: logs go to the hclog.Logger that was handed in", s.path, imp)
			case under(s.dir, "security") && !s.test && impure[imp]:
				t.Errorf("%s imports %s: security is pure values", s.path, imp)
			}
		}
	}
}

func TestNoHiddenStartAndNoAttic(t *testing.T) {
	attic := regexp.MustCompile(`(^|/)(utils?|common|helpers?|misc|shared)(/|$)|(^|/)(types|interfaces|utils?|helpers?)\.go$`)
	unfinished := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	rawCall := regexp.MustCompile(`\bsyscall\.(Raw)?Syscall6?\(`)
	for _, s := range sources(t) {
		if attic.MatchString(s.path) {
			t.Errorf("%s: name the idea, not the attic", s.path)
		}
		if s.generated() {
			continue
		}
		if m := unfinished.Find(s.text); m != nil {
			t.Errorf("%s says %s", s.path, m)
		}
		if rawCall.Match(s.text) && !under(s.dir, "internal") {
			t.Errorf("%s makes a raw system call: those live under internal/", s.path)
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function: wire values in main", s.path)
			}
		}
	}
}

func TestEveryFileIsFormattedAndEveryPackageSaysWhatItIs(t *testing.T) {
	said, packages := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		formatted, err := format.Source(s.text)
		require.NoError(t, err, s.path)
		if !bytes.Equal(formatted, s.text) {
			t.Errorf("%s is not formatted: run gofmt", s.path)
		}
		packages[s.dir] = true
		said[s.dir] = said[s.dir] || s.file.Doc != nil || s.generated()
	}
	for dir := range packages {
		if !said[dir] {
			t.Errorf("%s has no package comment", dir)
		}
	}
}
