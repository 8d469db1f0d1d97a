package rpc

import (
	"context"
	"os"
	"sync"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
)

// maxHandles bounds the files of one call that nobody has taken yet, so that a peer can't fill our table.
const maxHandles = 64

// HandleSet is the files of one call. An ntpb.Handle in a message is an index into it: the number of a descriptor never
// crosses the wire. Files to send are added before the message that names them is sent; files that came are taken by
// their Handle, once each, and what is not taken is closed: on the server when the call ends, on the client by Close. The kinds of
// file that a port lets through are its PortAttributes.HandleTypes, checked below this package. Safe for concurrent use.
type HandleSet struct {
	mu       sync.Mutex
	out      []alpc.Handle // not sent yet
	given    []*os.File    // ours to close once sent
	sent     uint32        // how many were sent: the next index is sent+len(out)+1
	in       map[uint32]alpc.Handle
	received uint32
	closed   bool
}

// NewHandleSet returns an empty set for one call from this side.
func NewHandleSet() *HandleSet { return &HandleSet{} }

// Option makes the set travel with a call: stub.Method(ctx, req, hs.Option()).
func (hs *HandleSet) Option() grpc.CallOption { return handleOption{set: hs} }

type handleOption struct {
	grpc.EmptyCallOption
	set *HandleSet
}

// Handles returns the set of the call that a handler serves; outside one, an empty set.
func Handles(ctx context.Context) *HandleSet {
	if c, ok := ctx.Value(callKey{}).(*serverCall); ok {
		return c.handleSet()
	}
	return NewHandleSet()
}

// Add puts f among the files to send and returns what stands for it in a message; nil gives nil. f stays the caller's, and must
// stay open until the call has ended (in a handler: until its reply is sent; where that can't be said, Give it).
func (hs *HandleSet) Add(f *os.File) *ntpb.Handle { return hs.add(f, false) }

// Give is Add, and the set closes f once it is sent, or when the call ends.
func (hs *HandleSet) Give(f *os.File) *ntpb.Handle { return hs.add(f, true) }

func (hs *HandleSet) add(f *os.File, give bool) *ntpb.Handle {
	if f == nil {
		return nil
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		if give {
			_ = f.Close()
		}
		return nil
	}
	hs.out = append(hs.out, alpc.Handle{File: f})
	if give {
		hs.given = append(hs.given, f)
	}
	return &ntpb.Handle{Index: hs.sent + uint32(len(hs.out))}
}

// Take gives the file that h stands for to the caller, who closes it. No handle (nil, or index 0) is nil without an error;
// one that did not come, or was taken, is INVALID_HANDLE.
func (hs *HandleSet) Take(h *ntpb.Handle) (*os.File, error) {
	if h.GetIndex() == 0 {
		return nil, nil
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	got, ok := hs.in[h.GetIndex()]
	if !ok {
		return nil, ntstatus.Errorf("rpc.Take", "", ntstatus.InvalidHandle, "no file of index %d came with the call", h.GetIndex())
	}
	delete(hs.in, h.GetIndex())
	return got.File, nil
}

// Close closes the files that came and were not taken, and those that were given.
func (hs *HandleSet) Close() error {
	if hs == nil {
		return nil
	}
	hs.mu.Lock()
	in, given := hs.in, hs.given
	hs.in, hs.given, hs.out, hs.closed = nil, nil, nil, true
	hs.mu.Unlock()
	for _, h := range in {
		_ = h.File.Close()
	}
	closeFiles(given)
	return nil
}

// outgoing returns what the next message carries, and what the sender closes once it has left.
func (hs *HandleSet) outgoing() (out []alpc.Handle, given []*os.File) {
	if hs == nil {
		return nil, nil
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	out, given = hs.out, hs.given
	hs.out, hs.given, hs.sent = nil, nil, hs.sent+uint32(len(out))
	return out, given
}

// incoming takes over what a message brought.
func (hs *HandleSet) incoming(handles []alpc.Handle) error {
	if len(handles) == 0 {
		return nil
	}
	if hs != nil {
		hs.mu.Lock()
		defer hs.mu.Unlock()
		if hs.closed {
			closeHandles(handles)
			return nil
		}
		if len(hs.in)+len(handles) <= maxHandles {
			if hs.in == nil {
				hs.in = make(map[uint32]alpc.Handle, len(handles))
			}
			for _, h := range handles {
				hs.received++
				hs.in[hs.received] = h
			}
			return nil
		}
	}
	closeHandles(handles)
	if hs == nil {
		return nil // a caller that passed no set wants none
	}
	return ntstatus.Errorf("rpc.receive", "", ntstatus.InsufficientResources, "more than %d files of one call not taken", maxHandles)
}

func closeHandles(handles []alpc.Handle) {
	for _, h := range handles {
		_ = h.File.Close()
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
