package alpc

import (
	"context"
	"os"
)

// NewTestPort makes an end from descriptors, as System does with those that the core hands out. section, if any, is
// attached at the first shift or, on side 1, at once.
func NewTestPort(fd, side, peerPID, maxPending int, takes HandleType, section *os.File) (*Port, error) {
	p, err := newPort(portOptions{
		fd: fd, side: side, peerPID: peerPID, maxPending: maxPending, handleTypes: takes,
		requestSection: func(context.Context) (*os.File, error) { return section, nil },
	})
	if err == nil && side == 1 && section != nil {
		// A hostile peer may have ended it already.
		if err := p.attachSection(section); err != nil && p.Err() == nil {
			return p, err
		}
	}
	return p, err
}
