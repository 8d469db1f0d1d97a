// Package core is Sallyport's executive: the one process that everybody trusts. It owns the object namespace, tokens, the
// table of attached processes and the connection handshake, and nothing else. It stores nothing, looks nothing up, and never
// sees a message: a channel's two ends are handed to client and server, and the core keeps neither.
//
// Who distrusts whom: the core believes the kernel (peer pidfd, effective ids, groups) and nothing that an attached
// process says of itself. Attached processes trust the core, and each other not at all.
//
// The logic is Machine, a step function without goroutines, clock or system calls: Step(now, event) returns effects.
// The shell around it (serve.go, identify.go, effects.go) does the I/O. One goroutine runs the machine; each attachment
// has one that reads and one that writes, and no queue is unbounded, so the core never waits for anybody.
//
// Lock order: the machine's goroutine takes no lock that another holds while it waits. link.mu guards one attachment's
// outgoing queue and is a leaf; slabs.mu guards the table of counter slabs and is a leaf.
package core

import (
	"time"

	"sallyport/alpc"
	"sallyport/security"
)

// Specification constants: NT's numbers (object manager and port rights, FEATURES of MS-DTYP's kind).
const (
	PortConnect  security.AccessMask = 0x1
	PortAllRight security.AccessMask = 0x1F0001

	DirectoryQuery              security.AccessMask = 0x1
	DirectoryTraverse           security.AccessMask = 0x2
	DirectoryCreateObject       security.AccessMask = 0x4
	DirectoryCreateSubdirectory security.AccessMask = 0x8

	SymbolicLinkQuery security.AccessMask = 0x1

	TokenAssignPrimary    security.AccessMask = 0x1
	TokenDuplicate        security.AccessMask = 0x2
	TokenImpersonate      security.AccessMask = 0x4
	TokenQuery            security.AccessMask = 0x8
	TokenQuerySource      security.AccessMask = 0x10
	TokenAdjustPrivileges security.AccessMask = 0x20
	TokenAdjustGroups     security.AccessMask = 0x40
	TokenAdjustDefault    security.AccessMask = 0x80
	TokenAdjustSessionID  security.AccessMask = 0x100
)

// Implementation constants: what we chose.
const (
	Version = 1 // of the control protocol

	maxName          = 1024    // bytes of an object name
	maxComponent     = 255     // bytes of one component
	maxLinks         = 8       // symbolic links followed in one look-up
	maxDescriptor    = 8 << 10 // bytes of a descriptor's text in a reported denial
	maxConnectData   = 4 << 10
	maxRefuseData    = 1 << 10
	maxHalfOpen      = 256 // unanswered connects of one port
	maxDenials       = 4096
	maxMessageLength = alpc.MaxMessageLength
	maxPortPending   = 1024
	maxPortLines     = 8192     // connections of one port
	maxContexts      = 64       // security contexts of one connection
	maxTold          = 1024     // connections in one notice
	maxFiltered      = 128      // SIDs and privileges of one filter
	maxToken         = 40 << 10 // bytes of a token, marshalled: with a new default DACL and whom it concerns it still fits a frame

	defaultMessageLength = 32 << 10
	defaultPending       = 64
	defaultConnections   = 1024
	defaultConnect       = 30 * time.Second // connect deadline of a client that states none
	maxConnectTime       = 10 * time.Minute
	assignTime           = 5 * time.Second // how long an unassigned child of a spawner waits

	// socketBytes is what one connection may pin in the kernel's socket buffers, both ends.
	socketBytes = 2 * 2 * 212992
	lineBytes   = 64 + 8   // of a connection in its port's slab and page of generations
	pageBytes   = 40 << 10 // rows of one page of a list, marshalled
)

// Limits are the most that one uid may have of each resource. The zero value means DefaultLimits.
type Limits struct {
	Attachments  uint64
	Ports        uint64
	Objects      uint64
	HalfOpen     uint64
	Connections  uint64
	SocketBytes  uint64
	SectionBytes uint64
	Tokens       uint64
	PendingCalls uint64
}

// DefaultLimits suit a machine with some thousand clients.
func DefaultLimits() Limits {
	return Limits{
		Attachments: 2048, Ports: 512, Objects: 4096, HalfOpen: 512, Connections: 8192,
		SocketBytes: 8192 * socketBytes, SectionBytes: 1 << 30, Tokens: 4096, PendingCalls: 8192 * defaultPending,
	}
}
