package cli

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
)

// maxFiles bounds what a server may send as its description.
const maxFiles = 1000

// description is what a server says of itself by stock reflection: its services and all the files that they need.
type description struct {
	files    *protoregistry.Files
	services []protoreflect.ServiceDescriptor // by name, without reflection itself
}

// describe asks the server behind conn what it serves.
func describe(ctx context.Context, conn grpc.ClientConnInterface) (*description, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, err
	}
	ask := func(r *reflection.ServerReflectionRequest) (*reflection.ServerReflectionResponse, error) {
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		answer, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if e := answer.GetErrorResponse(); e != nil {
			return nil, ntstatus.Errorf("call.describe", "", ntstatus.RPCUnknownIf, "%s", e.ErrorMessage)
		}
		return answer, nil
	}
	list, err := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{ListServices: "*"}})
	if err != nil {
		return nil, err
	}
	set, seen := &descriptorpb.FileDescriptorSet{}, map[string]bool{}
	var names []string
	for _, s := range list.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
		answer, err := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: s.Name}})
		if err != nil {
			return nil, err
		}
		for _, raw := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := &descriptorpb.FileDescriptorProto{}
			if err := proto.Unmarshal(raw, file); err != nil {
				return nil, ntstatus.Errorf("call.describe", s.Name, ntstatus.RPCProtocolError, "%w", err)
			}
			if len(seen) >= maxFiles {
				return nil, ntstatus.Errorf("call.describe", s.Name, ntstatus.RPCProtocolError, "more than %d files", maxFiles)
			}
			if !seen[file.GetName()] {
				seen[file.GetName()] = true
				set.File = append(set.File, file)
			}
		}
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, ntstatus.Errorf("call.describe", "", ntstatus.RPCProtocolError, "%w", err)
	}
	d := &description{files: files}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, "grpc.reflection.") {
			continue
		}
		found, err := files.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			return nil, ntstatus.Errorf("call.describe", name, ntstatus.RPCUnknownIf, "%w", err)
		}
		if s, ok := found.(protoreflect.ServiceDescriptor); ok {
			d.services = append(d.services, s)
		}
	}
	return d, nil
}

// methodRow is one method as people read it: what it is called, and who may call it.
type methodRow struct {
	Method   string `json:"method"` // Service/Method
	Right    string `json:"right"`
	Object   string `json:"object"` // the request's field that names the object; empty: the interface
	Kind     string `json:"kind"`
	Request  string `json:"request"`
	Response string `json:"response"`
}

func (d *description) methods() []methodRow {
	var rows []methodRow
	for _, s := range d.services {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			row := methodRow{Method: string(s.FullName()) + "/" + string(m.Name()), Kind: kindOf(m),
				Request: string(m.Input().Name()), Response: string(m.Output().Name())}
			if access, ok := proto.GetExtension(m.Options(), ntpb.E_Access).(*ntpb.Access); ok && access != nil {
				row.Right, row.Object = access.Right, access.Object
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func kindOf(m protoreflect.MethodDescriptor) string {
	switch {
	case m.IsStreamingClient() && m.IsStreamingServer():
		return "both stream"
	case m.IsStreamingClient():
		return "client streams"
	case m.IsStreamingServer():
		return "server streams"
	}
	return "unary"
}

// find returns the method that name means: Service/Method, Service.Method, or Method alone where only one service has it.
// Letter case does not matter if there is no other.
func (d *description) find(name string) (protoreflect.MethodDescriptor, error) {
	name = strings.TrimPrefix(name, "/")
	var found []protoreflect.MethodDescriptor
	for _, s := range d.services {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			for _, spelling := range []string{string(m.Name()), string(s.Name()) + "/" + string(m.Name()), string(s.Name()) + "." + string(m.Name()),
				string(s.FullName()) + "/" + string(m.Name()), string(m.FullName())} {
				if strings.EqualFold(spelling, name) {
					found = append(found, m)
					break
				}
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, hinted(ntstatus.New("call", name, ntstatus.RPCProcnumOutOfRange), "\"sallyport call PORT\" lists the methods")
	}
	var all []string
	for _, m := range found {
		all = append(all, string(m.FullName()))
	}
	return nil, usage("%s could be any of %s", name, strings.Join(all, ", "))
}
