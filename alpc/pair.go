package alpc

import (
	"context"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/channel"
	"sallyport/internal/memfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

// PairOptions describe one of the two ends that Pair makes. The zero value takes no handles and knows no peer.
type PairOptions struct {
	Peer             *Client // what this end says of its peer; nil: this process, without a token
	MaxMessageLength int     // bytes; 0: MaxMessageLength
	MaxPending       int     // un-replied requests that this end takes; 0: DefaultMaxPending
	HandleTypes      HandleType
	ConnectData      []byte // what this end got with the connection
	Logger           hclog.Logger
}

// Pair returns two connected ports in this process: a real channel, and no core. Both ends can shift; a is the client's.
// Messages are at most as long as both ends take.
func Pair(a, b PairOptions) (*Port, *Port, error) {
	fds, err := unixsock.PairFDs()
	if err != nil {
		return nil, nil, ntstatus.Wrap("alpc.Pair", "", err)
	}
	// Neither port exists before both do, and none shifts before Pair has returned.
	var ports [2]*Port
	share := sync.OnceValue(func() error { return shareSection(ports[0], ports[1]) })
	section := func(context.Context) (*os.File, error) { return nil, share() }
	longest := MaxMessageLength
	for _, o := range []PairOptions{a, b} {
		if o.MaxMessageLength > 0 {
			longest = min(longest, o.MaxMessageLength)
		}
	}
	for side, o := range []PairOptions{a, b} {
		if o.Peer == nil {
			o.Peer = &Client{PID: os.Getpid()}
		}
		ports[side], err = newPort(portOptions{
			fd: fds[side], side: side, client: o.Peer, maxMessage: longest, maxPending: o.MaxPending,
			handleTypes: o.HandleTypes, connectData: o.ConnectData, logger: o.Logger, requestSection: section,
		})
		if err != nil {
			if side == 0 {
				unixsock.CloseFDs(fds[1:])
			} else {
				ports[0].Close()
			}
			return nil, nil, err
		}
	}
	return ports[0], ports[1], nil
}

// shareSection makes a section and hands it to both ends, as the core does.
func shareSection(a, b *Port) error {
	f, err := channel.CreateSection(1)
	if err != nil {
		return ntstatus.Wrap("alpc.Shift", "", err)
	}
	second, err := memfd.Dup(f)
	if err != nil {
		f.Close()
		return ntstatus.Wrap("alpc.Shift", "", err)
	}
	if err := a.attachSection(f); err != nil {
		second.Close()
		return err
	}
	return b.attachSection(second)
}
