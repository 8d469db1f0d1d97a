package ntstatus_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
)

func TestEveryStatusHasANameASentenceAndItsOwnNumber(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "table.go", nil, 0)
	require.NoError(t, err)
	inTable := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok && f.Name.Name != "lookup" {
			return false
		}
		if c, ok := n.(*ast.CaseClause); ok {
			for _, e := range c.List {
				inTable[e.(*ast.Ident).Name] = true
			}
		}
		return true
	})
	file, err = parser.ParseFile(token.NewFileSet(), "status.go", nil, 0)
	require.NoError(t, err)
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].IsExported() {
			declared++
			require.True(t, inTable[v.Names[0].Name], "%s is not in the table", v.Names[0].Name)
		}
		return true
	})
	require.Equal(t, len(inTable), declared)
	require.Greater(t, declared, 100)
}

func TestStatusesAreNamedByTheirFacility(t *testing.T) {
	for s, want := range map[ntstatus.Status]string{
		ntstatus.Success:               "STATUS_SUCCESS",
		ntstatus.AccessDenied:          "STATUS_ACCESS_DENIED",
		ntstatus.PortConnectionRefused: "STATUS_PORT_CONNECTION_REFUSED",
		ntstatus.ShutdownInProgress:    "STATUS_SHUTDOWN_IN_PROGRESS",
		ntstatus.NoImpersonationToken:  "STATUS_NO_IMPERSONATION_TOKEN",
		ntstatus.RPCUnknownIf:          "RPC_NT_UNKNOWN_IF",
		ntstatus.ServiceExists:         "ERROR_SERVICE_EXISTS",
		0xC0070000 | 1060:              "ERROR_SERVICE_DOES_NOT_EXIST",
		0xDEADBEEF:                     "0xDEADBEEF",
	} {
		require.Equal(t, want, s.String())
	}
	require.Equal(t, "status 0xDEADBEEF", ntstatus.Status(0xDEADBEEF).Error())
	require.Empty(t, ntstatus.Status(0xDEADBEEF).Hint())
	require.NotEmpty(t, ntstatus.AccessDenied.Hint())
	for _, s := range known() {
		prefix := map[uint32]string{0: "STATUS_", 2: "RPC_NT_", 7: "ERROR_"}[uint32(s)>>16&0xfff]
		require.True(t, prefix != "" && strings.HasPrefix(s.String(), prefix), s.String())
		require.NotContains(t, s.Error(), "0x")
		require.Equal(t, strings.ToLower(s.Error()[:1]), s.Error()[:1])
	}
}

func TestNoTwoStatusesShareAName(t *testing.T) {
	seen := map[string]ntstatus.Status{}
	for _, s := range known() {
		other, twice := seen[s.String()]
		require.False(t, twice, "%#x and %#x are both %s", uint32(s), uint32(other), s)
		seen[s.String()] = s
	}
}

func TestSeverityTellsSuccess(t *testing.T) {
	require.True(t, ntstatus.Success.IsSuccess())
	require.True(t, ntstatus.SomeNotMapped.IsSuccess())
	require.False(t, ntstatus.StoppedOnSymlink.IsSuccess(), "a warning is no success")
	require.False(t, ntstatus.AccessDenied.IsSuccess())
}

func TestGRPCCodesTranslateBothWays(t *testing.T) {
	for code := range uint32(17) {
		require.Equal(t, code, ntstatus.FromGRPCCode(code).GRPCCode(), "code %d as %s", code, ntstatus.FromGRPCCode(code))
	}
	require.Equal(t, ntstatus.Unsuccessful, ntstatus.FromGRPCCode(99))
	require.Equal(t, uint32(2), ntstatus.Status(0xDEADBEEF).GRPCCode(), "an unknown failure is UNKNOWN")
	require.Zero(t, ntstatus.Status(0x40000999).GRPCCode(), "an unknown success is OK")
	for _, s := range known() {
		require.LessOrEqual(t, s.GRPCCode(), uint32(16))
		if !s.IsSuccess() {
			require.NotZero(t, s.GRPCCode(), "%s must not arrive as OK", s)
		}
	}
}

func TestErrnoBecomesAStatus(t *testing.T) {
	for errno, want := range map[syscall.Errno]ntstatus.Status{
		0:                    ntstatus.Success,
		syscall.EPERM:        ntstatus.AccessDenied,
		syscall.EACCES:       ntstatus.AccessDenied,
		syscall.ENOENT:       ntstatus.ObjectNameNotFound,
		syscall.ENOTDIR:      ntstatus.ObjectPathNotFound,
		syscall.ENAMETOOLONG: ntstatus.ObjectNameInvalid,
		syscall.ELOOP:        ntstatus.TooManyLinks,
		syscall.EBUSY:        ntstatus.ResourceInUse,
		syscall.ESRCH:        ntstatus.InvalidCID,
		syscall.ENOMEM:       ntstatus.NoMemory,
		syscall.EEXIST:       ntstatus.ObjectNameCollision,
		syscall.EINVAL:       ntstatus.InvalidParameter,
		syscall.EBADF:        ntstatus.InvalidHandle,
		syscall.EMFILE:       ntstatus.InsufficientResources,
		syscall.ENOSPC:       ntstatus.DiskFull,
		syscall.EMSGSIZE:     ntstatus.PortMessageTooLong,
		syscall.EPIPE:        ntstatus.PortDisconnected,
		syscall.ECONNREFUSED: ntstatus.PortConnectionRefused,
		syscall.ETIMEDOUT:    ntstatus.IOTimeout,
		syscall.ECANCELED:    ntstatus.Cancelled,
		syscall.ENOSYS:       ntstatus.NotSupported,
		syscall.EXDEV:        ntstatus.Unsuccessful,
	} {
		require.Equal(t, want, ntstatus.FromErrno(errno), "%v", errno)
	}
}

// known finds the statuses that have a name, in the ranges where the list has numbers.
func known() []ntstatus.Status {
	var found []ntstatus.Status
	for _, facility := range []ntstatus.Status{0x00000000, 0x80000000, 0xC0000000, 0xC0020000, 0xC0070000} {
		for code := range ntstatus.Status(0x1000) {
			if s := facility | code; !strings.HasPrefix(s.String(), "0x") {
				found = append(found, s)
			}
		}
	}
	return found
}
