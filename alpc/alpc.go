// Package alpc is what programs link: an attachment to a core (System), named connection ports (Listener), connections
// (Port) and their messages. It follows NT's local procedure calls: NtAlpcConnectPort, NtAlpcSendWaitReceivePort and
// relatives, in Go's terms.
//
// The two ends of a Port distrust each other. What arrives is copied to private memory, bounded and checked before
// anybody sees it; a peer that breaks the protocol, stops reading or dies ruins its own connection and nothing more. Who
// the peer is was proven by the core, which both ends trust, and never by what the peer says.
//
// Lock order: Port.mu is a leaf: no call into package channel, no send on a channel and no callback happens under it.
package alpc

import "sallyport/security"

// Rights of a connection port (winternl names; PORT_CONNECT and PORT_ALL_ACCESS of ntlpcapi.h).
const (
	PortConnect   security.AccessMask = 0x1
	PortAllAccess security.AccessMask = 0x1F0001
)

// PortMapping is what the generic rights mean on a connection port.
func PortMapping() security.GenericMapping {
	const readControl, delete security.AccessMask = 0x20000, 0x10000
	return security.GenericMapping{
		Read:  readControl | PortConnect,
		Write: delete | PortConnect,
		All:   PortAllAccess,
	}
}
