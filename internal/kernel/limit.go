package kernel

import "golang.org/x/sys/unix"

// OpenFiles is how many descriptors this process may have (RLIMIT_NOFILE, hard: the Go runtime raises the soft limit to it).
func OpenFiles() uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return l.Max
}
