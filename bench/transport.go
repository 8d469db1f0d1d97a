package main

import (
	"context"
	"fmt"

	"sallyport/alpc"
)

// transport is one way to call another process.
type transport struct {
	name  string
	core  bool                                            // address is a core's socket, else a path of its own
	max   int                                             // longest message in bytes; 0: any
	alone bool                                            // one caller and one connection are all it can do
	serve func(address string, ready func()) error        // returns only on failure
	dial  func(context.Context, *target) (*client, error) // one connection
}

// target is what a client process connects to.
type target struct {
	address string
	system  *alpc.System
}

// client is one connection. caller makes what one goroutine calls in a loop: an echo of so many bytes.
type client struct {
	caller func(size int) func(context.Context) error
	close  func() error
}

// baseline is what ratios are to.
const baseline = "grpc-go"

func transports() []*transport {
	return []*transport{
		{name: "sallyport alpc, shared gear", core: true, max: alpc.MaxMessageLength, serve: serveAlpc, dial: dialAlpc(alpc.GearShared)},
		{name: "sallyport alpc, socket gear", core: true, max: alpc.MaxMessageLength, serve: serveAlpc, dial: dialAlpc(alpc.GearSocket)},
		{name: "sallyport rpc, shared gear", core: true, serve: serveRPC, dial: dialRPC(alpc.GearShared)},
		{name: "sallyport rpc, socket gear", core: true, serve: serveRPC, dial: dialRPC(alpc.GearSocket)},
		{name: "floor: spin on shared memory", alone: true, max: floorMax, serve: serveSpin, dial: dialSpin},
		{name: "floor: futex", alone: true, max: floorMax, serve: serveFutex, dial: dialFutex},
		{name: "raw seqpacket", max: rawMax, serve: serveRaw("unixpacket"), dial: dialRaw("unixpacket")},
		{name: "raw stream", serve: serveRaw("unix"), dial: dialRaw("unix")},
		{name: "raw stream, multiplexed", serve: serveRaw("unix"), dial: dialMultiplexed},
		{name: "net/rpc", serve: serveNetRPC, dial: dialNetRPC},
		{name: "ttrpc", serve: serveTTRPC, dial: dialTTRPC},
		{name: "drpc", serve: serveDRPC, dial: dialDRPC},
		{name: baseline, serve: serveGRPC, dial: dialGRPC},
		{name: "connect-go, h2c", serve: serveConnect, dial: dialConnect},
	}
}

func transportOf(name string) (*transport, error) {
	for _, t := range transports() {
		if t.name == name {
			return t, nil
		}
	}
	return nil, fmt.Errorf("no transport %q", name)
}

func whole(got, want int) error {
	if got != want {
		return fmt.Errorf("%d bytes came back of %d", got, want)
	}
	return nil
}
