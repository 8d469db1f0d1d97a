package kernel_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/kernel"
)

func TestThisKernelRunsTheSet(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range kernel.Findings() {
		require.NotEqual(t, kernel.Broken, f.State, "%s: %s", f.Name, f.Found)
		require.NotEmpty(t, f.Found, f.Name)
		require.False(t, seen[f.Name], "%s is there twice", f.Name)
		seen[f.Name] = true
		if f.State == kernel.Degraded {
			require.NotEmpty(t, f.Do, "%s is degraded and says no way out", f.Name)
		}
	}
}

func TestReleasesOfVendorsAreUnderstood(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.5.0": {6, 5}, "6.18.0-rc3+deb12": {6, 18}, "5.15.167.4-microsoft-standard-WSL2": {5, 15}, "6.1-custom": {6, 1}, "7.0": {7, 0},
	} {
		major, minor, err := kernel.ParseRelease(release)
		require.NoError(t, err, release)
		require.Equal(t, want, [2]int{major, minor}, release)
	}
	for _, release := range []string{"", "six.five", "6.", "6"} {
		_, _, err := kernel.ParseRelease(release)
		require.Error(t, err, release)
	}
}
