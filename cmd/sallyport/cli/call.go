package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/rpc"
)

func callCommand(a *app) *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use:   "call PORT [METHOD [JSON...]]",
		Short: "call any method of any port, with JSON in and out",
		Long: `Call asks the server behind PORT what it serves (stock gRPC reflection), and calls METHOD with a request given as JSON:
an argument per message, or "-" for messages on standard input. Replies are JSON, a line each where the method streams.
Without METHOD it lists the methods, and for each the right that a caller needs and on which object.`,
		Example: `  sallyport call '\SmApiPort'
  sallyport call '\SmApiPort' ListServers
  sallyport call '\RPC Control\ntsvcs' QueryServiceStatus '{"name":"web"}'
  sallyport call '\SmApiPort' WatchState
  sallyport call '\RPC Control\ntsvcs' CreateService --template`,
		Args: cobra.MinimumNArgs(1),
	}
	c.Flags().BoolVar(&show, "template", false, "print the method's request with every field, instead of calling")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.attached(cmd.Context(), func(sys *alpc.System) error {
			within, cancel := a.bounded(cmd.Context())
			defer cancel()
			conn, err := rpc.Dial(within, sys, args[0])
			if err != nil {
				return err
			}
			defer conn.Close()
			d, err := describe(within, conn)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.printList(d.methods())
			}
			m, err := d.find(args[1])
			if err != nil {
				return err
			}
			if show {
				return a.writeMessage(d, template(m.Input(), 0), true)
			}
			ctx := within
			if m.IsStreamingServer() && !cmd.Flags().Changed("timeout") {
				// A watch lasts until its user has seen enough.
				ctx = cmd.Context()
			}
			return a.invoke(ctx, conn, d, m, args[2:])
		})
	}
	c.ValidArgsFunction = a.complete(func(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
		switch len(args) {
		case 0:
			return portNames(ctx, sys)
		case 1:
			conn, err := rpc.Dial(ctx, sys, args[0])
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			d, err := describe(ctx, conn)
			if err != nil {
				return nil, err
			}
			var names []string
			for _, m := range d.methods() {
				_, name, _ := strings.Cut(m.Method, "/")
				names = append(names, name)
			}
			return names, nil
		}
		return nil, nil
	})
	return c
}

// maxTemplate is how deep a template shows messages within messages: they may contain themselves.
const maxTemplate = 4

// template is an empty message whose messages are there, too, so that all of its fields can be seen.
func template(d protoreflect.MessageDescriptor, depth int) *dynamicpb.Message {
	m := dynamicpb.NewMessage(d)
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch choice := f.ContainingOneof(); {
		case choice != nil && !choice.IsSynthetic(), f.IsMap():
		case f.Message() == nil && choice != nil:
			m.Set(f, f.Default())
		case f.Message() != nil && depth < maxTemplate:
			inner := protoreflect.ValueOfMessage(template(f.Message(), depth+1))
			if f.IsList() {
				m.Mutable(f).List().Append(inner)
			} else {
				m.Set(f, inner)
			}
		}
	}
	return m
}

// invoke calls m with the requests that texts are, and prints what comes back.
func (a *app) invoke(ctx context.Context, conn grpc.ClientConnInterface, d *description, m protoreflect.MethodDescriptor, texts []string) error {
	next, err := a.requests(d, m, texts)
	if err != nil {
		return err
	}
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		in, err := next()
		if errors.Is(err, io.EOF) {
			return usage("no request on standard input")
		}
		if err != nil {
			return err
		}
		out := dynamicpb.NewMessage(m.Output())
		if err := conn.Invoke(ctx, path, in, out); err != nil {
			return err
		}
		return a.writeMessage(d, out, true)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: string(m.Name()), ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer()}, path)
	if err != nil {
		return err
	}
	// A conversation sends and reads at once; what goes wrong with sending is told by the end of reading, except for what
	// the user typed.
	typed := make(chan error, 1)
	go func() {
		for {
			in, err := next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				cancel()
				typed <- err
				return
			}
			if stream.SendMsg(in) != nil || !m.IsStreamingClient() {
				break
			}
		}
		_ = stream.CloseSend() // a broken stream says so in RecvMsg
		typed <- nil
	}()
	for {
		out := dynamicpb.NewMessage(m.Output())
		switch err := stream.RecvMsg(out); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			select {
			case mistake := <-typed:
				if mistake != nil {
					return mistake
				}
			default:
			}
			return err
		}
		if err := a.writeMessage(d, out, false); err != nil {
			return err
		}
		if !m.IsStreamingServer() {
			return nil
		}
	}
}

// requests returns a function that gives one request message after another, and io.EOF at the end. No text at all is one
// empty message.
func (a *app) requests(d *description, m protoreflect.MethodDescriptor, texts []string) (func() (*dynamicpb.Message, error), error) {
	if !m.IsStreamingClient() && len(texts) > 1 {
		return nil, usage("%s takes one message", m.Name())
	}
	parse := func(raw []byte) (*dynamicpb.Message, error) {
		in := dynamicpb.NewMessage(m.Input())
		if err := (protojson.UnmarshalOptions{Resolver: dynamicpb.NewTypes(d.files)}).Unmarshal(raw, in); err != nil {
			return nil, &failure{err: fmt.Errorf("%s is not a %s: %w", raw, m.Input().Name(), err), hint: "--template shows its fields", code: exitUsage}
		}
		return in, nil
	}
	if len(texts) == 1 && texts[0] == "-" {
		decoder := json.NewDecoder(bufio.NewReader(a.stdin))
		return func() (*dynamicpb.Message, error) {
			var raw json.RawMessage
			if err := decoder.Decode(&raw); err != nil {
				if errors.Is(err, io.EOF) {
					return nil, err
				}
				return nil, usage("standard input is not JSON: %v", err)
			}
			return parse(raw)
		}, nil
	}
	if len(texts) == 0 {
		texts = []string{"{}"}
	}
	// What is wrong with the last message should not be found after the first was sent.
	var messages []*dynamicpb.Message
	for _, t := range texts {
		in, err := parse([]byte(t))
		if err != nil {
			return nil, err
		}
		messages = append(messages, in)
	}
	return func() (*dynamicpb.Message, error) {
		if len(messages) == 0 {
			return nil, io.EOF
		}
		in := messages[0]
		messages = messages[1:]
		return in, nil
	}, nil
}

// writeMessage prints a message as JSON with the .proto's field names: spread out where it is the only one and the format
// is not jsonl. A table is no form for a message, so its format is JSON too.
func (a *app) writeMessage(d *description, m *dynamicpb.Message, only bool) error {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true, Resolver: dynamicpb.NewTypes(d.files)}.Marshal(m)
	if err != nil {
		return ntstatus.Errorf("call", string(m.Descriptor().FullName()), ntstatus.RPCProtocolError, "%w", err)
	}
	if a.output == "yaml" {
		if !only {
			fmt.Fprintln(a.stdout, "---")
		}
		return a.writeYAML(json.RawMessage(raw))
	}
	var b bytes.Buffer
	if only && a.output != "jsonl" {
		err = json.Indent(&b, raw, "", "  ")
	} else {
		// protojson puts spaces in at random, so that nobody relies on its bytes.
		err = json.Compact(&b, raw)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, b.String())
	return err
}
