package rpc_test

import (
	"bytes"
	"testing"

	"sallyport/rpc"
)

// FuzzFrames gives every parser what a peer may have written: nothing panics, and what is accepted means exactly one thing.
func FuzzFrames(f *testing.F) {
	f.Add(rpc.RawRequest(1, 0, 7, 0, "/a.B/C", []byte("body")))
	f.Add(rpc.RawRequest(2, 6, 7, 1<<20, "/a.B/C", []byte("body")))
	f.Add(rpc.RawRequest(3, 0, 7, 0, "", nil))
	for kind := uint8(5); kind <= 11; kind++ {
		f.Add(rpc.RawDatagram(kind, 0, 7, 0, nil))
	}
	f.Add(rpc.RawDatagram(7, 5, 7, 0, []byte("piece")))
	f.Add(append([]byte{4, 8, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0}, "h12stbody"...))
	f.Add([]byte{1, 'k', 1, 'v', 5, 'k', '-', 'b', 'i', 'n', 2, 0, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, parse := range map[string]func([]byte) ([]byte, error){
			"request": rpc.ReparseRequest, "reply": rpc.ReparseReply, "datagram": rpc.ReparseDatagram,
		} {
			if again, err := parse(b); err == nil && !bytes.Equal(again, b) {
				t.Errorf("%s %x was read as %x", name, b, again)
			}
		}
		if same, err := rpc.ReparseMetadata(b); err == nil && !same {
			t.Errorf("metadata %x does not read the same again", b)
		}
	})
}
