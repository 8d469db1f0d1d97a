package security_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/security"
)

func TestGenericRightsAreMapped(t *testing.T) {
	require.Equal(t, mapping.Read, mapping.Map(security.GenericRead))
	require.Equal(t, mapping.Write, mapping.Map(security.GenericWrite))
	require.Equal(t, mapping.Execute, mapping.Map(security.GenericExecute))
	require.Equal(t, mapping.All, mapping.Map(security.GenericAll))
	require.Equal(t, mapping.Read|mapping.Execute|security.Delete, mapping.Map(security.GenericRead|security.GenericExecute|security.Delete))
	require.Equal(t, security.MaximumAllowed, mapping.Map(security.MaximumAllowed))
	require.Zero(t, security.GenericMapping{}.Map(security.GenericRights))
}

func TestMasksAreDescribedByName(t *testing.T) {
	port := security.RightNames{{Name: "PORT_ALL_ACCESS", Mask: 0x1f0003}, {Name: "PORT_CONNECT", Mask: 0x1}, {Name: "PORT_LISTEN", Mask: 0x2}}
	for want, mask := range map[string]security.AccessMask{
		"nothing":                             0,
		"PORT_CONNECT (0x1)":                  0x1,
		"PORT_CONNECT|PORT_LISTEN (0x3)":      0x3,
		"PORT_ALL_ACCESS (0x1f0003)":          0x1f0003,
		"PORT_CONNECT|READ_CONTROL (0x20001)": 0x20001,
		"PORT_LISTEN (0x82)":                  0x82,
		"0x80":                                0x80,
		"GENERIC_READ (0x80000000)":           security.GenericRead,
	} {
		require.Equal(t, want, port.Describe(mask))
	}
	require.Equal(t, "WRITE_DAC|WRITE_OWNER (0xc0000)", (security.WriteDAC | security.WriteOwner).String())
	require.Equal(t, "MAXIMUM_ALLOWED (0x2000000)", security.MaximumAllowed.String())
}
