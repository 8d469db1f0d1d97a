package rpc

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
	"sallyport/security"
)

// Right is a right of an interface's or an object's type.
type Right struct {
	Name string
	Mask security.AccessMask
}

// EveryMethod is the key in Interface.Rights for the methods that have none of their own.
const EveryMethod = "*"

// Interface is how a registered service is guarded: NT's interface descriptor of RpcServerRegisterIf3, and the
// descriptors of the objects that its requests name.
type Interface struct {
	// Descriptor guards the methods whose right is needed on the interface itself. SDDL is the same as text, for one
	// that is written in the program. Both need an owner and a group.
	Descriptor *security.Descriptor
	SDDL       string

	// Resolve finds the descriptor of the object that a request names. It gets the call's context (Caller says who
	// asks) and runs before the handler. An error that stands for "no such object" refuses the call exactly as a descriptor
	// that does not grant the right: a caller can't learn by asking which names exist. A server whose managers shall learn
	// it returns for an unknown name what guards the collection. Any other error is the call's outcome. A name stands
	// as the request has it; an integer field in decimal.
	Resolve func(ctx context.Context, object string) (*security.Descriptor, error)

	// Rights gives the methods of a service whose .proto does not declare any their rights on the interface, by method
	// name or EveryMethod. What a .proto declares can't be overridden.
	Rights map[string]Right

	// Mapping is what generic rights mean for Rights; a .proto's own mapping goes first.
	Mapping security.GenericMapping

	// Name stands for the interface in denials; empty is the service's full name.
	Name string
}

// service is a registered service after the first Serve: never written again.
type service struct {
	name    string
	impl    any
	guard   Interface
	mapping security.GenericMapping
	names   security.RightNames
}

// method is one way into the server.
type method struct {
	service *service
	full    string
	index   int // among all methods of the server
	unary   *grpc.MethodDesc
	stream  *grpc.StreamDesc
	right   Right
	object  []protoreflect.FieldDescriptor // the path to the field that names the object; nil: the interface
	input   protoreflect.MessageType       // with object and stream: what the first message is
}

// secure works out the right of every method of a service, or says which have none.
func secure(desc *grpc.ServiceDesc, impl any, guard Interface, secured bool) (*service, []*method, []string) {
	s := &service{name: desc.ServiceName, impl: impl, guard: guard, mapping: guard.Mapping}
	var faults []string
	fault := func(method, format string, args ...any) {
		name := desc.ServiceName
		if method != "" {
			name += "/" + method
		}
		faults = append(faults, name+": "+fmt.Sprintf(format, args...))
	}
	if s.guard.Name == "" {
		s.guard.Name = s.name
	}
	if s.guard.Descriptor == nil && s.guard.SDDL != "" {
		sd, err := security.ParseSDDL(s.guard.SDDL)
		if err != nil {
			fault("", "%v", err)
		}
		s.guard.Descriptor = sd
	}

	var declared protoreflect.ServiceDescriptor
	if d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(desc.ServiceName)); err == nil {
		declared, _ = d.(protoreflect.ServiceDescriptor)
	}
	rights := map[string]security.AccessMask{
		"DELETE": security.Delete, "READ_CONTROL": security.ReadControl, "WRITE_DAC": security.WriteDAC,
		"WRITE_OWNER": security.WriteOwner, "SYNCHRONIZE": security.Synchronize,
	}
	if declared != nil && proto.HasExtension(declared.Options(), ntpb.E_Interface) {
		iface := proto.GetExtension(declared.Options(), ntpb.E_Interface).(*ntpb.Interface)
		for _, r := range iface.Rights {
			rights[r.Name] = security.AccessMask(r.Mask)
			s.names = append(s.names, security.RightName{Name: r.Name, Mask: security.AccessMask(r.Mask)})
		}
		s.mapping = security.GenericMapping{
			Read: security.AccessMask(iface.GenericRead), Write: security.AccessMask(iface.GenericWrite),
			Execute: security.AccessMask(iface.GenericExecute), All: security.AccessMask(iface.GenericAll),
		}
	}

	var methods []*method
	add := func(name string, m *method) {
		m.service, m.full = s, "/"+desc.ServiceName+"/"+name
		methods = append(methods, m)
		var md protoreflect.MethodDescriptor
		if declared != nil {
			md = declared.Methods().ByName(protoreflect.Name(name))
		}
		if md != nil && proto.HasExtension(md.Options(), ntpb.E_Access) {
			access := proto.GetExtension(md.Options(), ntpb.E_Access).(*ntpb.Access)
			m.right = Right{Name: access.Right, Mask: rights[access.Right]}
			if m.right.Mask == 0 {
				fault(name, "its right %q is not one that the service declares", access.Right)
			}
			if access.Object != "" {
				path, err := fieldPath(md.Input(), access.Object)
				if err != nil {
					fault(name, "%v", err)
				}
				m.object = path
				if m.input, err = protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName()); err != nil {
					fault(name, "%v", err)
				}
				if s.guard.Resolve == nil {
					fault(name, "%s is needed on an object, and there is no Resolve", access.Right)
				}
			}
		} else {
			r, ok := guard.Rights[name]
			if !ok {
				r, ok = guard.Rights[EveryMethod]
			}
			if !ok || r.Mask == 0 {
				fault(name, "no right is declared, neither in its .proto nor by Secure")
				return
			}
			m.right = r
			s.names = append(s.names, security.RightName{Name: r.Name, Mask: r.Mask})
		}
		if m.object == nil && s.guard.Descriptor == nil {
			fault(name, "%s is needed on the interface, and Secure gave it no descriptor", m.right.Name)
		}
	}
	for i := range desc.Methods {
		add(desc.Methods[i].MethodName, &method{unary: &desc.Methods[i]})
	}
	for i := range desc.Streams {
		add(desc.Streams[i].StreamName, &method{stream: &desc.Streams[i]})
	}
	if !secured {
		return s, nil, []string{desc.ServiceName + ": registered, and not secured (Server.Secure)"}
	}
	return s, methods, faults
}

// fieldPath finds the field that an Access option names.
func fieldPath(m protoreflect.MessageDescriptor, dotted string) ([]protoreflect.FieldDescriptor, error) {
	var path []protoreflect.FieldDescriptor
	for name := range strings.SplitSeq(dotted, ".") {
		if m == nil {
			return nil, fmt.Errorf("%s: a field before %s is not a message", dotted, name)
		}
		f := m.Fields().ByName(protoreflect.Name(name))
		if f == nil || f.IsList() || f.IsMap() {
			return nil, fmt.Errorf("%s has no plain field %s to name the object", m.FullName(), name)
		}
		path, m = append(path, f), f.Message()
	}
	switch path[len(path)-1].Kind() {
	case protoreflect.StringKind, protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Int32Kind, protoreflect.Int64Kind:
		return path, nil
	}
	return nil, fmt.Errorf("%s: a %s can't name an object", dotted, path[len(path)-1].Kind())
}

// objectName reads the name of the object from a request; a message on the way that is not there is an empty name.
func (m *method) objectName(request protoreflect.Message) string {
	last := len(m.object) - 1
	for _, f := range m.object[:last] {
		request = request.Get(f).Message()
	}
	v := request.Get(m.object[last])
	switch m.object[last].Kind() {
	case protoreflect.StringKind:
		return v.String()
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return strconv.FormatUint(v.Uint(), 10)
	}
	return strconv.FormatInt(v.Int(), 10)
}

// grant remembers that a descriptor granted a method to a sender: a change of either is another value.
type grant struct {
	sd     *security.Descriptor
	sender *alpc.Client
}

// admit is the check of a method whose right is needed on the interface.
func (c *serverCall) admit(m *method) error {
	sd, last := m.service.guard.Descriptor, &c.conn.granted[m.index]
	if g := last.Load(); g != nil && g.sd == sd && g.sender == c.sender {
		return nil
	}
	if err := c.check(m, m.service.guard.Name, sd); err != nil {
		return err
	}
	last.Store(&grant{sd, c.sender})
	return nil
}

// admitObject is the check of a method whose right is needed on the object that the request names.
func (c *serverCall) admitObject(request proto.Message) error {
	m := c.method
	name := m.objectName(request.ProtoReflect())
	sd, err := m.service.guard.Resolve(c.ctx, name)
	if err != nil && ntstatus.Of(err).GRPCCode() != ntstatus.NotFound.GRPCCode() {
		return err
	}
	if err != nil {
		sd = nil
	}
	return c.check(m, name, sd)
}

// check decides; a nil descriptor is that of an object that isn't there.
func (c *serverCall) check(m *method, object string, sd *security.Descriptor) error {
	question := security.CheckRequest{
		Descriptor: sd, Token: c.sender.Token, Desired: m.right.Mask, Mapping: m.service.mapping,
	}
	report := alpc.Denial{
		Attachment: c.sender.Attachment, Op: m.full, Object: object, Right: m.right.Name, Desired: m.right.Mask, Status: ntstatus.AccessDenied,
	}
	if sd == nil {
		report.Trace = []string{"there is no such object"}
	} else {
		if security.AccessCheck(question).Allowed() {
			return nil
		}
		// A mask means different rights to different objects of one service: the one that was asked names itself first.
		question.Trace, question.Rights = true, append(security.RightNames{{Name: m.right.Name, Mask: m.right.Mask}}, m.service.names...)
		decision := security.AccessCheck(question)
		report.Status, report.Trace, report.SecurityDescriptor = decision.Status, decision.Explain(), sd.String()
	}
	denial := &ntstatus.Denial{Object: object, Right: m.right.Name}
	if c.conn.server.options.ReportDenial != nil {
		id, err := c.conn.server.options.ReportDenial(c.ctx, report)
		if err != nil {
			c.conn.server.log.Warn("a denial could not be reported", "method", m.full, "object", object, "error", err)
		}
		denial.Decision = id
	}
	return &ntstatus.Error{Op: m.full, Object: object, Status: ntstatus.AccessDenied, Err: denial}
}
