package probe_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/probe"
)

func TestThisKernelRunsTheSet(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range probe.Findings() {
		require.NotEqual(t, probe.Broken, f.State, "%s: %s", f.Name, f.Found)
		require.NotEmpty(t, f.Found, f.Name)
		require.False(t, seen[f.Name], "%s is there twice", f.Name)
		seen[f.Name] = true
		if f.State == probe.Degraded {
			require.NotEmpty(t, f.Do, "%s is degraded and says no way out", f.Name)
		}
	}
}
