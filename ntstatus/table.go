package ntstatus

import "syscall"

// gRPC codes by number, so that this package need not import grpc (google.golang.org/grpc/codes fixes them).
const (
	codeOK                 = 0
	codeCanceled           = 1
	codeUnknown            = 2
	codeInvalidArgument    = 3
	codeDeadlineExceeded   = 4
	codeNotFound           = 5
	codeAlreadyExists      = 6
	codePermissionDenied   = 7
	codeResourceExhausted  = 8
	codeFailedPrecondition = 9
	codeAborted            = 10
	codeOutOfRange         = 11
	codeUnimplemented      = 12
	codeInternal           = 13
	codeUnavailable        = 14
	codeDataLoss           = 15
	codeUnauthenticated    = 16
)

type entry struct {
	name string // MS-ERREF's symbol
	code uint32 // the nearest gRPC code
	text string // for a person
	hint string // what to do
}

// lookup is a switch and not a map so that the table is immutable and costs nothing at start.
func lookup(s Status) (entry, bool) {
	switch s {
	case Success:
		return entry{"STATUS_SUCCESS", codeOK, "success", ""}, true
	case Timeout:
		return entry{"STATUS_TIMEOUT", codeDeadlineExceeded, "the wait ended without the event", "raise the timeout, or see what the server is doing with \"sallyport status\""}, true
	case Pending:
		return entry{"STATUS_PENDING", codeOK, "the operation goes on", ""}, true
	case NotAllAssigned:
		return entry{"STATUS_NOT_ALL_ASSIGNED", codeOK, "the token does not hold all that was to be adjusted", ""}, true
	case SomeNotMapped:
		return entry{"STATUS_SOME_NOT_MAPPED", codeOK, "some of the names were not known", ""}, true
	case Unsuccessful:
		return entry{"STATUS_UNSUCCESSFUL", codeUnknown, "the operation failed", ""}, true
	case NotImplemented:
		return entry{"STATUS_NOT_IMPLEMENTED", codeUnimplemented, "the server does not offer this", ""}, true
	case InvalidInfoClass:
		return entry{"STATUS_INVALID_INFO_CLASS", codeInvalidArgument, "unknown information class", ""}, true
	case InvalidHandle:
		return entry{"STATUS_INVALID_HANDLE", codeInvalidArgument, "the handle is not valid here", ""}, true
	case InvalidCID:
		return entry{"STATUS_INVALID_CID", codeNotFound, "no such process", ""}, true
	case InvalidParameter:
		return entry{"STATUS_INVALID_PARAMETER", codeInvalidArgument, "a parameter is not valid", ""}, true
	case InvalidDeviceRequest:
		return entry{"STATUS_INVALID_DEVICE_REQUEST", codeFailedPrecondition, "the request does not fit the object", ""}, true
	case EndOfFile:
		return entry{"STATUS_END_OF_FILE", codeOutOfRange, "end of the data", ""}, true
	case NoMemory:
		return entry{"STATUS_NO_MEMORY", codeResourceExhausted, "out of memory", ""}, true
	case AccessDenied:
		return entry{"STATUS_ACCESS_DENIED", codePermissionDenied, "access denied", "ask an administrator for the right, or run as somebody who has it"}, true
	case BufferTooSmall:
		return entry{"STATUS_BUFFER_TOO_SMALL", codeOutOfRange, "the receiver's buffer is too small", ""}, true
	case ObjectTypeMismatch:
		return entry{"STATUS_OBJECT_TYPE_MISMATCH", codeInvalidArgument, "the object is of another type", ""}, true
	case InvalidPortAttributes:
		return entry{"STATUS_INVALID_PORT_ATTRIBUTES", codeInvalidArgument, "the port attributes are not valid", ""}, true
	case PortMessageTooLong:
		return entry{"STATUS_PORT_MESSAGE_TOO_LONG", codeResourceExhausted, "the message is longer than the port allows", "send less at a time, or raise the port's MaxMessageLength"}, true
	case ObjectNameInvalid:
		return entry{"STATUS_OBJECT_NAME_INVALID", codeInvalidArgument, "the object name is not well formed", ""}, true
	case ObjectNameNotFound:
		return entry{"STATUS_OBJECT_NAME_NOT_FOUND", codeNotFound, "no object of that name", "\"sallyport ports\" lists what there is"}, true
	case ObjectNameCollision:
		return entry{"STATUS_OBJECT_NAME_COLLISION", codeAlreadyExists, "the name is taken", ""}, true
	case PortDoNotDisturb:
		return entry{"STATUS_PORT_DO_NOT_DISTURB", codeUnavailable, "the port takes no connections now", "try again later"}, true
	case PortDisconnected:
		return entry{"STATUS_PORT_DISCONNECTED", codeUnavailable, "the other side has gone", "connect again; \"sallyport status\" says whether the server is back"}, true
	case ObjectPathInvalid:
		return entry{"STATUS_OBJECT_PATH_INVALID", codeInvalidArgument, "a part of the path is not a directory", ""}, true
	case ObjectPathNotFound:
		return entry{"STATUS_OBJECT_PATH_NOT_FOUND", codeNotFound, "a directory on the path does not exist", ""}, true
	case PortConnectionRefused:
		return entry{"STATUS_PORT_CONNECTION_REFUSED", codeUnavailable, "the server refused the connection", ""}, true
	case InvalidPortHandle:
		return entry{"STATUS_INVALID_PORT_HANDLE", codeInvalidArgument, "the object is not a connection port", ""}, true
	case QuotaExceeded:
		return entry{"STATUS_QUOTA_EXCEEDED", codeResourceExhausted, "a limit of this user is reached", "close what is not needed; \"sallyport status\" shows charges and limits"}, true
	case ProcessIsTerminating:
		return entry{"STATUS_PROCESS_IS_TERMINATING", codeFailedPrecondition, "the process is ending", ""}, true
	case InvalidOwner:
		return entry{"STATUS_INVALID_OWNER", codeInvalidArgument, "this SID may not be assigned as owner", ""}, true
	case InvalidPrimaryGroup:
		return entry{"STATUS_INVALID_PRIMARY_GROUP", codeInvalidArgument, "this SID may not be assigned as primary group", ""}, true
	case CantDisableMandatory:
		return entry{"STATUS_CANT_DISABLE_MANDATORY", codeInvalidArgument, "a mandatory group can't be disabled", ""}, true
	case NoImpersonationToken:
		return entry{"STATUS_NO_IMPERSONATION_TOKEN", codeInvalidArgument, "the token is not an impersonation token", ""}, true
	case NoSuchLogonSession:
		return entry{"STATUS_NO_SUCH_LOGON_SESSION", codeUnauthenticated, "the logon session has ended", "log on again"}, true
	case NoSuchPrivilege:
		return entry{"STATUS_NO_SUCH_PRIVILEGE", codeInvalidArgument, "unknown privilege", ""}, true
	case PrivilegeNotHeld:
		return entry{"STATUS_PRIVILEGE_NOT_HELD", codePermissionDenied, "a required privilege is not held", "run as somebody who holds it"}, true
	case InvalidAccountName:
		return entry{"STATUS_INVALID_ACCOUNT_NAME", codeInvalidArgument, "the account name is not well formed", ""}, true
	case UserExists:
		return entry{"STATUS_USER_EXISTS", codeAlreadyExists, "the user exists already", ""}, true
	case NoSuchUser:
		return entry{"STATUS_NO_SUCH_USER", codeNotFound, "no such user", "\"sallyport user list\" lists them"}, true
	case LastAdmin:
		return entry{"STATUS_LAST_ADMIN", codeFailedPrecondition, "the last administrator can't be removed", ""}, true
	case WrongPassword:
		return entry{"STATUS_WRONG_PASSWORD", codeUnauthenticated, "wrong password", ""}, true
	case PasswordRestriction:
		return entry{"STATUS_PASSWORD_RESTRICTION", codeInvalidArgument, "the password does not meet the policy", ""}, true
	case LogonFailure:
		return entry{"STATUS_LOGON_FAILURE", codeUnauthenticated, "the user name or the password is not right", ""}, true
	case AccountRestriction:
		return entry{"STATUS_ACCOUNT_RESTRICTION", codePermissionDenied, "a restriction of the account forbids it", ""}, true
	case PasswordExpired:
		return entry{"STATUS_PASSWORD_EXPIRED", codeUnauthenticated, "the password has expired", "change the password"}, true
	case AccountDisabled:
		return entry{"STATUS_ACCOUNT_DISABLED", codePermissionDenied, "the account is disabled", "an administrator can enable it: \"sallyport user enable NAME\""}, true
	case NoneMapped:
		return entry{"STATUS_NONE_MAPPED", codeNotFound, "none of the names is known", ""}, true
	case InvalidACL:
		return entry{"STATUS_INVALID_ACL", codeInvalidArgument, "the access control list is not valid", ""}, true
	case InvalidSID:
		return entry{"STATUS_INVALID_SID", codeInvalidArgument, "the SID is not valid", ""}, true
	case InvalidSecurityDescr:
		return entry{"STATUS_INVALID_SECURITY_DESCR", codeInvalidArgument, "the security descriptor is not valid", ""}, true
	case DiskFull:
		return entry{"STATUS_DISK_FULL", codeResourceExhausted, "the disk is full", ""}, true
	case InsufficientResources:
		return entry{"STATUS_INSUFFICIENT_RESOURCES", codeResourceExhausted, "not enough resources", ""}, true
	case BadImpersonationLevel:
		return entry{"STATUS_BAD_IMPERSONATION_LEVEL", codePermissionDenied, "the client did not allow that impersonation level", ""}, true
	case CantOpenAnonymous:
		return entry{"STATUS_CANT_OPEN_ANONYMOUS", codePermissionDenied, "an anonymous client's token can't be opened", ""}, true
	case BadTokenType:
		return entry{"STATUS_BAD_TOKEN_TYPE", codeInvalidArgument, "the token is not of a type that fits here", ""}, true
	case IOTimeout:
		return entry{"STATUS_IO_TIMEOUT", codeDeadlineExceeded, "the deadline passed", "raise the timeout, or see what the server is doing with \"sallyport status\""}, true
	case NotSupported:
		return entry{"STATUS_NOT_SUPPORTED", codeUnimplemented, "not supported", ""}, true
	case NoToken:
		return entry{"STATUS_NO_TOKEN", codeNotFound, "no such token", ""}, true
	case InternalError:
		return entry{"STATUS_INTERNAL_ERROR", codeInternal, "an internal error; this is a defect", ""}, true
	case GenericNotMapped:
		return entry{"STATUS_GENERIC_NOT_MAPPED", codeInvalidArgument, "a generic right was not mapped", ""}, true
	case InvalidDeviceState:
		return entry{"STATUS_INVALID_DEVICE_STATE", codeFailedPrecondition, "the object is not in a state for this", ""}, true
	case FileCorrupt:
		return entry{"STATUS_FILE_CORRUPT_ERROR", codeDataLoss, "the file is damaged", ""}, true
	case NotFound:
		return entry{"STATUS_NOT_FOUND", codeNotFound, "not found", ""}, true
	case Cancelled:
		return entry{"STATUS_CANCELLED", codeCanceled, "cancelled", ""}, true
	case AccountExpired:
		return entry{"STATUS_ACCOUNT_EXPIRED", codePermissionDenied, "the account has expired", ""}, true
	case NoSuchAlias:
		return entry{"STATUS_NO_SUCH_ALIAS", codeNotFound, "no such local group", ""}, true
	case MemberNotInAlias:
		return entry{"STATUS_MEMBER_NOT_IN_ALIAS", codeNotFound, "it is not a member of the group", ""}, true
	case MemberInAlias:
		return entry{"STATUS_MEMBER_IN_ALIAS", codeAlreadyExists, "it is a member of the group already", ""}, true
	case LogonTypeNotGranted:
		return entry{"STATUS_LOGON_TYPE_NOT_GRANTED", codePermissionDenied, "the account has no right to this kind of logon", ""}, true
	case ConnectionReset:
		return entry{"STATUS_CONNECTION_RESET", codeUnavailable, "the connection broke", ""}, true
	case ReplyMessageMismatch:
		return entry{"STATUS_REPLY_MESSAGE_MISMATCH", codeFailedPrecondition, "no request is waiting for that reply", ""}, true
	case PasswordMustChange:
		return entry{"STATUS_PASSWORD_MUST_CHANGE", codeUnauthenticated, "the password must be changed first", ""}, true
	case AccountLockedOut:
		return entry{"STATUS_ACCOUNT_LOCKED_OUT", codePermissionDenied, "the account is locked after failed logons", "wait, or \"sallyport user unlock NAME\""}, true
	case LPCReplyLost:
		return entry{"STATUS_LPC_REPLY_LOST", codeUnavailable, "the reply was lost", ""}, true
	case RequestAborted:
		return entry{"STATUS_REQUEST_ABORTED", codeAborted, "the request was aborted", "try again"}, true
	case ServerSIDMismatch:
		return entry{"STATUS_SERVER_SID_MISMATCH", codePermissionDenied, "the server is not who the client requires", "look who serves the port (\"sallyport ports\"), and require that one only if you trust it"}, true
	case CantEnableDenyOnly:
		return entry{"STATUS_CANT_ENABLE_DENY_ONLY", codeInvalidArgument, "a group that is for denying only can't be enabled", ""}, true
	case ShutdownInProgress:
		return entry{"STATUS_SHUTDOWN_IN_PROGRESS", codeUnavailable, "the system is shutting down", ""}, true
	case PortNotSet:
		return entry{"STATUS_PORT_NOT_SET", codeFailedPrecondition, "no port is set", ""}, true
	case StoppedOnSymlink:
		return entry{"STATUS_STOPPED_ON_SYMLINK", codeFailedPrecondition, "stopped at a symbolic link", ""}, true
	case TooManySessions:
		return entry{"STATUS_TOO_MANY_SESSIONS", codeResourceExhausted, "too many sessions", ""}, true
	case TooManyLinks:
		return entry{"STATUS_TOO_MANY_LINKS", codeFailedPrecondition, "too many symbolic links on the path", ""}, true
	case PortClosed:
		return entry{"STATUS_PORT_CLOSED", codeUnavailable, "the port is closed", ""}, true
	case MessageLost:
		return entry{"STATUS_MESSAGE_LOST", codeDataLoss, "a message was lost", ""}, true
	case InvalidMessage:
		return entry{"STATUS_INVALID_MESSAGE", codeInvalidArgument, "the message is not well formed", ""}, true
	case RequestCanceled:
		return entry{"STATUS_REQUEST_CANCELED", codeCanceled, "the request was cancelled", ""}, true
	case RecursiveDispatch:
		return entry{"STATUS_RECURSIVE_DISPATCH", codeAborted, "calls are nested too deeply", ""}, true
	case LPCReceiveBufferExpected:
		return entry{"STATUS_LPC_RECEIVE_BUFFER_EXPECTED", codeInvalidArgument, "a receive buffer is needed", ""}, true
	case LPCInvalidConnUsage:
		return entry{"STATUS_LPC_INVALID_CONNECTION_USAGE", codeFailedPrecondition, "the connection can't be used this way", ""}, true
	case LPCRequestsNotAllowed:
		return entry{"STATUS_LPC_REQUESTS_NOT_ALLOWED", codeFailedPrecondition, "the port takes no requests", ""}, true
	case ResourceInUse:
		return entry{"STATUS_RESOURCE_IN_USE", codeFailedPrecondition, "the resource is in use", ""}, true
	case RPCProtocolError:
		return entry{"RPC_NT_PROTOCOL_ERROR", codeInternal, "the peer broke the protocol", ""}, true
	case RPCProcnumOutOfRange:
		return entry{"RPC_NT_PROCNUM_OUT_OF_RANGE", codeUnimplemented, "the service has no such method", ""}, true
	case RPCUnknownIf:
		return entry{"RPC_NT_UNKNOWN_IF", codeUnimplemented, "the port does not offer this service", "\"sallyport port NAME\" lists what it offers"}, true
	case RPCServerTooBusy:
		return entry{"RPC_NT_SERVER_TOO_BUSY", codeResourceExhausted, "the server has too many calls in flight", "try again later"}, true
	case ServiceRequestTimeout:
		return entry{"ERROR_SERVICE_REQUEST_TIMEOUT", codeDeadlineExceeded, "the service did not answer in time", "see \"sallyport sc log NAME\""}, true
	case ServiceNoThread:
		return entry{"ERROR_SERVICE_NO_THREAD", codeInternal, "the service could not be given a process", ""}, true
	case ServiceDatabaseLocked:
		return entry{"ERROR_SERVICE_DATABASE_LOCKED", codeUnavailable, "the service database is locked", ""}, true
	case ServiceAlreadyRunning:
		return entry{"ERROR_SERVICE_ALREADY_RUNNING", codeFailedPrecondition, "the service is running already", ""}, true
	case InvalidServiceAccount:
		return entry{"ERROR_INVALID_SERVICE_ACCOUNT", codeInvalidArgument, "the service's account is not valid", ""}, true
	case ServiceDisabled:
		return entry{"ERROR_SERVICE_DISABLED", codeFailedPrecondition, "the service is disabled", "\"sallyport sc config NAME --start demand\" enables it"}, true
	case CircularDependency:
		return entry{"ERROR_CIRCULAR_DEPENDENCY", codeInvalidArgument, "services would depend on each other in a circle", ""}, true
	case ServiceDoesNotExist:
		return entry{"ERROR_SERVICE_DOES_NOT_EXIST", codeNotFound, "no such service", "\"sallyport sc list\" lists them"}, true
	case ServiceCannotAcceptControl:
		return entry{"ERROR_SERVICE_CANNOT_ACCEPT_CTRL", codeFailedPrecondition, "the service can't take that control now", ""}, true
	case ServiceNotActive:
		return entry{"ERROR_SERVICE_NOT_ACTIVE", codeFailedPrecondition, "the service is not running", "\"sallyport sc start NAME\" starts it"}, true
	case ServiceSpecificError:
		return entry{"ERROR_SERVICE_SPECIFIC_ERROR", codeUnknown, "the service ended with an error of its own", "see \"sallyport sc log NAME\""}, true
	case ProcessAborted:
		return entry{"ERROR_PROCESS_ABORTED", codeAborted, "the process ended unexpectedly", "see \"sallyport sc log NAME\""}, true
	case ServiceDependencyFail:
		return entry{"ERROR_SERVICE_DEPENDENCY_FAIL", codeFailedPrecondition, "a service that this one needs did not start", ""}, true
	case ServiceLogonFailed:
		return entry{"ERROR_SERVICE_LOGON_FAILED", codeUnauthenticated, "the service's account could not log on", ""}, true
	case ServiceStartHang:
		return entry{"ERROR_SERVICE_START_HANG", codeDeadlineExceeded, "the service hung while starting", "see \"sallyport sc log NAME\""}, true
	case ServiceMarkedForDelete:
		return entry{"ERROR_SERVICE_MARKED_FOR_DELETE", codeFailedPrecondition, "the service is marked for deletion", ""}, true
	case ServiceExists:
		return entry{"ERROR_SERVICE_EXISTS", codeAlreadyExists, "the service exists already", ""}, true
	case ServiceDependencyDeleted:
		return entry{"ERROR_SERVICE_DEPENDENCY_DELETED", codeFailedPrecondition, "a service that this one needs does not exist", ""}, true
	case ServiceNeverStarted:
		return entry{"ERROR_SERVICE_NEVER_STARTED", codeFailedPrecondition, "the service was never started", ""}, true
	case DuplicateServiceName:
		return entry{"ERROR_DUPLICATE_SERVICE_NAME", codeAlreadyExists, "the name or display name is taken", ""}, true
	case DependentServicesRunning:
		return entry{"ERROR_DEPENDENT_SERVICES_RUNNING", codeFailedPrecondition, "services that need this one are running", "stop them first, or stop with --dependents"}, true
	case InvalidServiceControl:
		return entry{"ERROR_INVALID_SERVICE_CONTROL", codeInvalidArgument, "the service does not take that control", ""}, true
	case SystemShutdownInProgress:
		return entry{"ERROR_SHUTDOWN_IN_PROGRESS", codeUnavailable, "the system is shutting down", ""}, true
	case InvalidName:
		return entry{"ERROR_INVALID_NAME", codeInvalidArgument, "the name is not well formed", ""}, true
	}
	return entry{code: codeUnknown}, false
}

// GRPCCode is the nearest gRPC status code, by number (google.golang.org/grpc/codes).
func (s Status) GRPCCode() uint32 {
	e, known := lookup(s)
	if !known && s.IsSuccess() {
		return codeOK
	}
	return e.code
}

// FromGRPCCode is the status for a gRPC code that came without one of ours.
func FromGRPCCode(code uint32) Status {
	switch code {
	case codeOK:
		return Success
	case codeCanceled:
		return RequestCanceled
	case codeInvalidArgument:
		return InvalidParameter
	case codeDeadlineExceeded:
		return IOTimeout
	case codeNotFound:
		return NotFound
	case codeAlreadyExists:
		return ObjectNameCollision
	case codePermissionDenied:
		return AccessDenied
	case codeResourceExhausted:
		return InsufficientResources
	case codeFailedPrecondition:
		return InvalidDeviceState
	case codeAborted:
		return RequestAborted
	case codeOutOfRange:
		return EndOfFile
	case codeUnimplemented:
		return NotImplemented
	case codeInternal:
		return InternalError
	case codeUnavailable:
		return PortDisconnected
	case codeDataLoss:
		return MessageLost
	case codeUnauthenticated:
		return LogonFailure
	}
	return Unsuccessful
}

// FromErrno is the status that an errno stands for.
func FromErrno(errno syscall.Errno) Status {
	switch errno {
	case 0:
		return Success
	case syscall.EPERM, syscall.EACCES:
		return AccessDenied
	case syscall.ENOENT:
		return ObjectNameNotFound
	case syscall.ESRCH:
		return InvalidCID
	case syscall.ENOMEM:
		return NoMemory
	case syscall.ENOTDIR:
		return ObjectPathNotFound
	case syscall.ENAMETOOLONG:
		return ObjectNameInvalid
	case syscall.ELOOP:
		return TooManyLinks
	case syscall.EBUSY, syscall.ETXTBSY:
		return ResourceInUse
	case syscall.EEXIST, syscall.EADDRINUSE:
		return ObjectNameCollision
	case syscall.EINVAL:
		return InvalidParameter
	case syscall.EBADF:
		return InvalidHandle
	case syscall.EMFILE, syscall.ENFILE, syscall.ETOOMANYREFS, syscall.ENOBUFS, syscall.EAGAIN:
		return InsufficientResources
	case syscall.ENOSPC, syscall.EDQUOT:
		return DiskFull
	case syscall.EMSGSIZE:
		return PortMessageTooLong
	case syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN, syscall.ESHUTDOWN:
		return PortDisconnected
	case syscall.ECONNREFUSED:
		return PortConnectionRefused
	case syscall.ETIMEDOUT:
		return IOTimeout
	case syscall.ECANCELED:
		return Cancelled
	case syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.ENOTTY:
		return NotSupported
	}
	return Unsuccessful
}
