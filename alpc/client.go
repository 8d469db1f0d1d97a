package alpc

import (
	"fmt"
	"os"

	"sallyport/security"
)

// IdentitySource says how the core knows who an attachment is.
type IdentitySource uint8

// What we chose. Append-only.
const (
	SourceKernel    IdentitySource = 1 // built from the credentials that the kernel gave
	SourceAssigned  IdentitySource = 2 // assigned to the process by its creator
	SourceInherited IdentitySource = 3 // of the nearest attached ancestor
	SourceAsserted  IdentitySource = 4 // stated by the program that embeds the core
	SourceDetached  IdentitySource = 5 // left its session: the uid's SID only
)

// String names the source as policies and listings do.
func (s IdentitySource) String() string {
	switch s {
	case SourceKernel:
		return "kernel"
	case SourceAssigned:
		return "assigned"
	case SourceInherited:
		return "inherited"
	case SourceAsserted:
		return "asserted"
	case SourceDetached:
		return "detached"
	}
	return "unknown"
}

// Client is who is on the other side of a connection, as the core proved it when the connection was made, or when it told of a
// change: NT's client id, race-free. A value doesn't change: a change makes another. The Port owns PIDFD and closes it when the
// connection ends.
type Client struct {
	Attachment uint64                      // the core's number of the peer's attachment
	Connection uint64                      // the core's number of this connection
	PID        int                         // for showing only: PIDFD is the proof
	PIDFD      *os.File                    // the peer's process; nil where the core's host stated the identity
	Token      *security.Token             // a snapshot; nil where the level is Anonymous
	Level      security.ImpersonationLevel // what the server may do with Token
	Source     IdentitySource
	Evidence   string // what proved it, in words
	SessionID  uint32
	Context    uint32 // the security context that Token is of; 0: the connection's own
}

// name is how errors and logs call the peer.
func (c *Client) name() string {
	switch {
	case c == nil:
		return ""
	case c.Token != nil:
		return fmt.Sprintf("%s (process %d)", c.Token.User.SID, c.PID)
	}
	return fmt.Sprintf("process %d", c.PID)
}
