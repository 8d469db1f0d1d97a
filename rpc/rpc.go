// Package rpc carries gRPC services over ports: what the stock protoc-gen-go-grpc generates runs unchanged on both sides,
// unary and all three kinds of streams. It is to Sallyport what Microsoft RPC over ncalrpc is to NT.
//
// The two ends distrust each other. Every header is checked before it is believed, everything a peer can make this side keep
// is bounded (open calls, unread pieces of streams, messages in assembly, files not taken, metadata), and a peer that breaks the
// protocol loses its connection, nothing more. A server knows its caller from the port (Caller), never from a message, and
// checks the right that the .proto declares for a method before the method's code runs. The wire is in docs/protocol.md, "Calls".
//
// Lock order: serverConn.mu and clientPort.mu are taken before the locks of a stream (inbox, outbox, callContext), which
// are leaves. No message is sent and no handler runs under any of them.
package rpc
