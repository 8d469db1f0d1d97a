// Package ntstatus has the outcomes that every other package speaks: NT's status numbers, one error type that carries
// them, and the tables that translate to and from errno and gRPC codes.
//
// It imports the standard library only and trusts nobody: a number from a peer is a Status whether it is known or not.
// Numbers and names are those of MS-ERREF 2.3; the list is append-only.
package ntstatus

import "fmt"

// Status is an NTSTATUS: severity in the two highest bits, then facility and code. It is an error value itself, so that
// errors.Is(err, ntstatus.AccessDenied) reads naturally. The zero value, Success, must not be returned as an error.
type Status uint32

// What MS-ERREF fixes.
const (
	Success                  Status = 0x00000000
	Timeout                  Status = 0x00000102
	Pending                  Status = 0x00000103
	NotAllAssigned           Status = 0x00000106
	SomeNotMapped            Status = 0x00000107
	Unsuccessful             Status = 0xC0000001
	NotImplemented           Status = 0xC0000002
	InvalidInfoClass         Status = 0xC0000003
	InvalidHandle            Status = 0xC0000008
	InvalidCID               Status = 0xC000000B
	InvalidParameter         Status = 0xC000000D
	InvalidDeviceRequest     Status = 0xC0000010
	EndOfFile                Status = 0xC0000011
	NoMemory                 Status = 0xC0000017
	AccessDenied             Status = 0xC0000022
	BufferTooSmall           Status = 0xC0000023
	ObjectTypeMismatch       Status = 0xC0000024
	InvalidPortAttributes    Status = 0xC000002E
	PortMessageTooLong       Status = 0xC000002F
	ObjectNameInvalid        Status = 0xC0000033
	ObjectNameNotFound       Status = 0xC0000034
	ObjectNameCollision      Status = 0xC0000035
	PortDoNotDisturb         Status = 0xC0000036
	PortDisconnected         Status = 0xC0000037
	ObjectPathInvalid        Status = 0xC0000039
	ObjectPathNotFound       Status = 0xC000003A
	PortConnectionRefused    Status = 0xC0000041
	InvalidPortHandle        Status = 0xC0000042
	QuotaExceeded            Status = 0xC0000044
	ProcessIsTerminating     Status = 0xC000010A
	InvalidOwner             Status = 0xC000005A
	InvalidPrimaryGroup      Status = 0xC000005B
	CantDisableMandatory     Status = 0xC000005D
	NoImpersonationToken     Status = 0xC000005C
	NoSuchLogonSession       Status = 0xC000005F
	NoSuchPrivilege          Status = 0xC0000060
	PrivilegeNotHeld         Status = 0xC0000061
	InvalidAccountName       Status = 0xC0000062
	UserExists               Status = 0xC0000063
	NoSuchUser               Status = 0xC0000064
	LastAdmin                Status = 0xC0000069
	WrongPassword            Status = 0xC000006A
	PasswordRestriction      Status = 0xC000006C
	LogonFailure             Status = 0xC000006D
	AccountRestriction       Status = 0xC000006E
	PasswordExpired          Status = 0xC0000071
	AccountDisabled          Status = 0xC0000072
	NoneMapped               Status = 0xC0000073
	InvalidACL               Status = 0xC0000077
	InvalidSID               Status = 0xC0000078
	InvalidSecurityDescr     Status = 0xC0000079
	DiskFull                 Status = 0xC000007F
	InsufficientResources    Status = 0xC000009A
	BadImpersonationLevel    Status = 0xC00000A5
	CantOpenAnonymous        Status = 0xC00000A6
	BadTokenType             Status = 0xC00000A8
	IOTimeout                Status = 0xC00000B5
	NotSupported             Status = 0xC00000BB
	NoToken                  Status = 0xC000007C
	InternalError            Status = 0xC00000E5
	GenericNotMapped         Status = 0xC00000E6
	InvalidDeviceState       Status = 0xC0000184
	FileCorrupt              Status = 0xC0000102
	NotFound                 Status = 0xC0000225
	Cancelled                Status = 0xC0000120
	AccountExpired           Status = 0xC0000193
	NoSuchAlias              Status = 0xC0000151
	MemberNotInAlias         Status = 0xC0000152
	MemberInAlias            Status = 0xC0000153
	LogonTypeNotGranted      Status = 0xC000015B
	ConnectionReset          Status = 0xC000020D
	ReplyMessageMismatch     Status = 0xC000021F
	PasswordMustChange       Status = 0xC0000224
	AccountLockedOut         Status = 0xC0000234
	RequestAborted           Status = 0xC0000240
	LPCReplyLost             Status = 0xC0000253
	ServerSIDMismatch        Status = 0xC00002A0
	CantEnableDenyOnly       Status = 0xC00002B3
	ShutdownInProgress       Status = 0xC00002FE
	PortNotSet               Status = 0xC0000353
	StoppedOnSymlink         Status = 0x8000002D
	TooManySessions          Status = 0xC00000CE
	TooManyLinks             Status = 0xC0000265
	PortClosed               Status = 0xC0000700
	MessageLost              Status = 0xC0000701
	InvalidMessage           Status = 0xC0000702
	RequestCanceled          Status = 0xC0000703
	RecursiveDispatch        Status = 0xC0000704
	LPCReceiveBufferExpected Status = 0xC0000705
	LPCInvalidConnUsage      Status = 0xC0000706
	LPCRequestsNotAllowed    Status = 0xC0000707
	ResourceInUse            Status = 0xC0000708
	RPCProtocolError         Status = 0xC002001D
	RPCProcnumOutOfRange     Status = 0xC002002E
	RPCUnknownIf             Status = 0xC0020012
	RPCServerTooBusy         Status = 0xC0020016
)

// win32Facility marks a Win32 error carried in a status, as HRESULT_FROM_WIN32 does in its domain: the service
// controller's errors are documented as Win32 numbers and have no NTSTATUS of their own.
const win32Facility Status = 0xC0070000

// Win32 errors of the service controller (MS-ERREF 2.2), as statuses.
const (
	ServiceRequestTimeout      = win32Facility | 1053
	ServiceNoThread            = win32Facility | 1054
	ServiceDatabaseLocked      = win32Facility | 1055
	ServiceAlreadyRunning      = win32Facility | 1056
	InvalidServiceAccount      = win32Facility | 1057
	ServiceDisabled            = win32Facility | 1058
	CircularDependency         = win32Facility | 1059
	ServiceDoesNotExist        = win32Facility | 1060
	ServiceCannotAcceptControl = win32Facility | 1061
	ServiceNotActive           = win32Facility | 1062
	ServiceSpecificError       = win32Facility | 1066
	ProcessAborted             = win32Facility | 1067
	ServiceDependencyFail      = win32Facility | 1068
	ServiceLogonFailed         = win32Facility | 1069
	ServiceStartHang           = win32Facility | 1070
	ServiceMarkedForDelete     = win32Facility | 1072
	ServiceExists              = win32Facility | 1073
	ServiceDependencyDeleted   = win32Facility | 1075
	ServiceNeverStarted        = win32Facility | 1077
	DuplicateServiceName       = win32Facility | 1078
	DependentServicesRunning   = win32Facility | 1051
	InvalidServiceControl      = win32Facility | 1052
	SystemShutdownInProgress   = win32Facility | 1115
	InvalidName                = win32Facility | 123
)

// IsSuccess reports whether s is a success or information code (NT_SUCCESS).
func (s Status) IsSuccess() bool { return s < 0x80000000 }

// Error is the sentence for a person: what happened, in words.
func (s Status) Error() string {
	if e, ok := lookup(s); ok {
		return e.text
	}
	return fmt.Sprintf("status 0x%08X", uint32(s))
}

// String is the symbolic name as MS-ERREF spells it, or the number where the name is not known here.
func (s Status) String() string {
	if e, ok := lookup(s); ok {
		return e.name
	}
	return fmt.Sprintf("0x%08X", uint32(s))
}

// Hint says what the person who got s can do about it; empty where there is nothing better to say than the sentence.
func (s Status) Hint() string {
	e, _ := lookup(s)
	return e.hint
}
