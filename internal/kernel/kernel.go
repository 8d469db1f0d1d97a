// Package kernel says which Linux this is. It trusts uname(2).
package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Floor is the oldest kernel that gives what the core's proofs of identity need (SO_PEERPIDFD).
const FloorMajor, FloorMinor = 6, 5

// Version is the running kernel's, and its whole release string.
func Version() (major, minor int, release string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0, "", fmt.Errorf("uname: %w", err)
	}
	release = unix.ByteSliceToString(u.Release[:])
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return 0, 0, release, fmt.Errorf("uname: %q has no version", release)
	}
	return major, minor, release, nil
}

// AtLeast reports whether the running kernel is major.minor or newer; one that does not say is not.
func AtLeast(wantMajor, wantMinor int) bool {
	major, minor, _, err := Version()
	return err == nil && (major > wantMajor || major == wantMajor && minor >= wantMinor)
}
