package alpc

import (
	"os"
	"time"

	"sallyport/internal/channel"
	"sallyport/internal/fdtype"
)

// What NT fixes: the LPC_* message types of ntlpcapi.h. Append-only.
const (
	TypeRequest           MessageType = 1  // needs a reply
	TypeReply             MessageType = 2  // answers a request; Port.Call returns it
	TypeDatagram          MessageType = 3  // nobody answers
	TypeLostReply         MessageType = 4  // the peer of a nested call vanished
	TypePortClosed        MessageType = 5  // the client closed its port
	TypeClientDied        MessageType = 6  // the client's process ended
	TypeConnectionRequest MessageType = 10 // made by the core
	TypeCanceled          MessageType = 12 // the caller of the request with this ID gave up; nobody answers
)

// What NT fixes: the object types of DupObjectTypes. The rest, from 0x1000 on, is ours.
const (
	HandleFile      = HandleType(fdtype.File)      // a regular file or a device that is no terminal
	HandleThread    = HandleType(fdtype.Thread)    // a pidfd of a thread
	HandleSemaphore = HandleType(fdtype.Semaphore) // an eventfd made with EFD_SEMAPHORE
	HandleEvent     = HandleType(fdtype.Event)     // an eventfd
	HandleProcess   = HandleType(fdtype.Process)   // a pidfd
	HandleSection   = HandleType(fdtype.Section)   // a memfd
	HandleToken     = HandleType(fdtype.Token)     // a token of the core
	HandleSocket    = HandleType(fdtype.Socket)
	HandlePipe      = HandleType(fdtype.Pipe)
	HandleTerminal  = HandleType(fdtype.Terminal)
	HandleDirectory = HandleType(fdtype.Directory)
	HandleAny       = HandleType(fdtype.Any)
)

// MaxMessageLength is the most bytes of Data that any port takes: a frame is 64 KiB with its header and handle table.
const MaxMessageLength = channel.MaxPayload

// MaxHandles is the most handles that one message carries.
const MaxHandles = channel.MaxHandles

// MessageType says what a message is: an LPC_* number.
type MessageType uint16

// String returns NT's name without the prefix.
func (t MessageType) String() string { return channel.Type(t).String() }

// HandleType is a set of kinds of handle: NT's DupObjectTypes.
type HandleType uint32

// Handle is a file in a message. A sent handle stays the sender's; a received one is the receiver's to close.
type Handle struct {
	Type HandleType // one bit; 0 in a message to send: found out from the file
	File *os.File
}

// Message is one message, sent or received. A received one, its Data included, is private memory of the receiver and
// shares nothing with the peer.
type Message struct {
	memory *channel.Memory // of a received message's Data, if that is long

	Type       MessageType
	ID         uint32 // names a request until its reply; made by the sender's Port
	CallbackID uint32 // NT's CallbackId: comes back in the reply
	Data       []byte
	Handles    []Handle
	Deadline   time.Time // of the caller, on this machine's monotonic clock; zero is none
	TraceID    [16]byte  // travels unchanged
	ContextID  uint32    // the security context the message is sent under; 0 is the connection's
	// Sender is who speaks, set by Receive: the peer, or whom it may speak as under ContextID (NT's TOKEN attribute is its
	// Token's TokenID, AuthenticationID and ModifiedID). The same value as long as nothing changed; nobody changes it.
	Sender *Client
}

// Free lets another message have the memory of a received one's Data, which nobody may use any more, in part or whole. It
// needn't be called: then the collector takes it. Who sends much of some KiB and more saves it most of its work.
func (m *Message) Free() {
	m.memory.Free()
	m.memory, m.Data = nil, nil
}

// CloseHandles closes every handle of a received message that nobody took.
func (m *Message) CloseHandles() {
	for _, h := range m.Handles {
		h.File.Close()
	}
	m.Handles = nil
}
