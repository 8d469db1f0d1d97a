package core

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"sallyport/internal/kernel"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
)

const maxAncestors = 128

// peer is what the kernel says of the other end of a socket.
type peer struct {
	Attaching
	PID     int
	pidfile *os.File
}

// askKernel proves who is at the other end: pidfd, effective ids and groups as they were when it connected, and its
// ancestors as they are now.
func askKernel(conn *unixsock.Conn) (p peer, err error) {
	cred, err := conn.PeerCred()
	if err != nil {
		return p, err
	}
	p.pidfile, err = conn.PeerPIDFD()
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			p.pidfile.Close()
		}
	}()
	p.PID = cred.PID
	p.Attaching = Attaching{PID: int32(cred.PID), UID: cred.UID, GID: cred.GID}
	if p.Groups, err = conn.PeerGroups(); err != nil {
		return p, err
	}
	if p.Process, err = pidfd.KeyOf(p.pidfile); err != nil {
		return p, err
	}
	p.Chain, p.Proven = ancestors(p.pidfile)
	p.Program = program(cred.PID)
	if !pidfd.Alive(p.pidfile) {
		return p, fmt.Errorf("process %d has died", cred.PID)
	}
	return p, nil
}

// kernelFloor refuses a kernel that can't prove who is calling.
func kernelFloor() error {
	if kernel.AtLeast(kernel.FloorMajor, kernel.FloorMinor) {
		return nil
	}
	_, _, release, _ := kernel.Version()
	return ntstatus.Errorf("core.Start", "", ntstatus.NotSupported, "Linux %s is too old: %d.%d is the first that proves by pidfd who connects", release, kernel.FloorMajor, kernel.FloorMinor)
}

// ancestors walks from a process to its outermost ancestor. Each step opens the parent and then asks again who the parent
// is: a parent that died in between may have left its pid to another, and then nothing is proven from there on.
func ancestors(p *os.File) (chain []Ancestor, proven bool) {
	child := p
	defer func() {
		if child != p {
			child.Close()
		}
	}()
	for len(chain) < maxAncestors {
		ppid, err := pidfd.Parent(child)
		if err != nil {
			return chain, false
		}
		if ppid == 0 {
			return chain, true // the outermost process of this namespace, or a parent outside it
		}
		parent, err := pidfd.Open(ppid)
		if err != nil {
			return chain, false
		}
		key, uid, err := identify(parent)
		again, perr := pidfd.Parent(child)
		if child != p {
			child.Close()
		}
		child = parent
		if err != nil || perr != nil || again != ppid {
			return chain, false
		}
		chain = append(chain, Ancestor{Process: key, UID: uid})
	}
	return chain, false
}

// identify names the process behind a pidfd, and says what effective uid it has.
func identify(p *os.File) (ProcessKey, uint32, error) {
	key, err := pidfd.KeyOf(p)
	if err != nil {
		return ProcessKey{}, 0, err
	}
	uid, err := pidfd.EUID(p)
	if err == nil && !pidfd.Alive(p) {
		err = ntstatus.InvalidCID
	}
	if err != nil {
		return ProcessKey{}, 0, err
	}
	return key, uid, nil
}

// program is a process's own name: a hint for listings, which the process can set as it likes.
func program(pid int) string {
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(comm))
}
