// Command protogen compiles every .proto below a directory into Go beside it, with nothing installed but Go:
// the parser is a library and the two generators are tools of this module.
//
// Use it as "go -C tools run ./protogen" from the top of the checkout. It rewrites a generated file only when its
// content changes, so a clean git status afterwards means that what is committed is fresh.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// generators are the plug-ins that are run over each file, in order, with their parameter.
var generators = []struct{ pkg, parameter string }{
	{"google.golang.org/protobuf/cmd/protoc-gen-go", "paths=source_relative"},
	{"google.golang.org/grpc/cmd/protoc-gen-go-grpc", "paths=source_relative"},
}

func main() {
	root := flag.String("root", "..", "top of the checkout: import paths in .proto files are relative to it")
	flag.Parse()
	if err := run(*root, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// run generates for the named files (relative to root), or for every .proto below root.
func run(root string, names []string) error {
	if len(names) == 0 {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".proto") {
				rel, rerr := filepath.Rel(root, path)
				names, err = append(names, filepath.ToSlash(rel)), rerr
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: names}
	seen := map[string]bool{}
	for _, f := range files {
		addWithImports(request, f, seen)
	}
	for _, g := range generators {
		request.Parameter = proto.String(g.parameter)
		if err := generate(root, g.pkg, request); err != nil {
			return fmt.Errorf("%s: %w", g.pkg, err)
		}
	}
	return nil
}

// addWithImports appends f after everything that it imports, which is the order the plug-ins expect.
func addWithImports(request *pluginpb.CodeGeneratorRequest, f protoreflect.FileDescriptor, seen map[string]bool) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		addWithImports(request, f.Imports().Get(i).FileDescriptor, seen)
	}
	request.ProtoFile = append(request.ProtoFile, plain(protodesc.ToFileDescriptorProto(f)))
}

// plain re-reads d so that options are in their registered or unknown form, whichever the plug-in understands.
func plain(d *descriptorpb.FileDescriptorProto) *descriptorpb.FileDescriptorProto {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return d
	}
	out := new(descriptorpb.FileDescriptorProto)
	if proto.Unmarshal(raw, out) != nil {
		return d
	}
	return out
}

// generate runs one plug-in and writes what it answers.
func generate(root, pkg string, request *pluginpb.CodeGeneratorRequest) error {
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "run", pkg)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	response := new(pluginpb.CodeGeneratorResponse)
	if err := proto.Unmarshal(out, response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		path := filepath.Join(root, f.GetName())
		if old, err := os.ReadFile(path); err == nil && string(old) == f.GetContent() {
			continue
		}
		if err := os.WriteFile(path, []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", f.GetName())
	}
	return nil
}
