// Package lsass is the local security authority: it says who somebody is. It keeps the accounts, verifies passwords, assembles
// tokens and has the core make them; which logon sessions there are it reads from the core's tokens, so that it may be killed at
// any instruction and lose none.
//
// lsass trusts the core (who calls) and its own database file. It distrusts every caller: what they may ask is in the .proto and
// checked by package rpc, a token goes to the attachment that the port proved and to no other, wrong names and wrong passwords
// look alike in answer, in time and in what they write, and a flood of logons waits in its own line. Passwords are wiped once they
// are used, as far as Go's memory allows: the copy in the port's message buffer is overwritten only by the next message.
//
// Lock order: sessions.mu and limiter.mu are leaves; nothing is called while they are held.
package lsass

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/rpc"
	"sallyport/subsys"
	"sallyport/subsys/lsass/internal/kdf"
	"sallyport/subsys/lsass/internal/sam"
	"sallyport/subsys/lsass/lsa"
)

const (
	// hashMemoryKiB bounds the memory of all hashing, hashWaiting how many may wait for it.
	hashMemoryKiB = 128 << 10
	hashWaiting   = 256

	// EnvUIDBase names the variable with the number that RIDs are added to for the uids of accounts, where the instance runs as root.
	EnvUIDBase     = "SALLYPORT_ACCOUNT_UID_BASE"
	defaultUIDBase = 400000

	databaseName = "accounts.db"
)

// Who may do what on the interface: the system and administrators everything; whoever is authenticated may log on, look names
// up and see what is theirs.
const interfaceSDDL = "O:SYG:SYD:(A;;0xf2c11;;;SY)(A;;0xf2c11;;;BA)(A;;0x22801;;;AU)"

// Server is lsass in a program's table of servers.
func Server() subsys.Server { return subsys.Server{Name: "lsass", Run: run} }

func run(ctx context.Context, env *subsys.Env) error {
	if env.StateDir == "" {
		return ntstatus.Errorf("lsass.run", env.Name, ntstatus.InvalidParameter, "accounts need a state directory")
	}
	ids, err := unixIDs()
	if err != nil {
		return err
	}
	accounts, err := sam.Open(sam.Options{
		Path: filepath.Join(env.StateDir, databaseName), Domain: machineName(), IDs: ids, Queue: kdf.NewQueue(hashMemoryKiB, hashWaiting),
	})
	if err != nil {
		return err
	}
	defer accounts.Close()
	s := &service{system: env.System, accounts: accounts, audit: audit{log: env.Logger}, sessions: sessions{system: env.System}}
	server := rpc.NewServer(rpc.ServerOptions{System: env.System, Logger: env.Logger})
	lsapb.RegisterLocalSecurityAuthorityServer(server, s)
	server.Secure(lsapb.LocalSecurityAuthority_ServiceDesc.ServiceName, rpc.Interface{SDDL: interfaceSDDL, Resolve: s.resolve, Name: lsa.PortName})
	server.OfferReflection(rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;SY)(A;;0x1;;;BA)(A;;0x1;;;AU)"})
	listener, err := env.System.Listen(ctx, lsa.PortName, alpc.PortAttributes{
		SecurityDescriptor: "O:SYG:SYD:(A;;0x1f0001;;;SY)(A;;0x1f0001;;;BA)(A;;0x1;;;AU)", AutoAccept: true,
	})
	if err != nil {
		return err
	}
	found, err := s.sessions.list(ctx)
	if err != nil {
		return err
	}
	env.Logger.Info("took over", "logon_sessions", len(found))
	if err := env.Ready(); err != nil {
		return err
	}
	return server.Serve(ctx, listener)
}

// unixIDs is the rule for accounts' uids. An instance belongs to whoever owns the core's socket: root's can give each account
// a uid of its own, whatever uid lsass itself runs as; anybody else's has one.
func unixIDs() (sam.IDs, error) {
	owner := uint32(os.Getuid())
	if path := os.Getenv("SALLYPORT_CORE"); path != "" {
		info, err := os.Stat(path)
		if err != nil {
			return sam.IDs{}, ntstatus.Wrap("lsass.run", path, err)
		}
		owner = info.Sys().(*syscall.Stat_t).Uid
	}
	if owner != 0 {
		return sam.IDs{UID: owner, GID: uint32(os.Getgid())}, nil
	}
	base := uint64(defaultUIDBase)
	if text := os.Getenv(EnvUIDBase); text != "" {
		var err error
		if base, err = strconv.ParseUint(text, 10, 32); err != nil || base < 1000 || base > math.MaxInt32 {
			return sam.IDs{}, ntstatus.Errorf("lsass.run", EnvUIDBase, ntstatus.InvalidParameter, "%q: want a number from 1000 to %d", text, math.MaxInt32)
		}
	}
	return sam.IDs{Base: uint32(base)}, nil
}

// machineName is the account domain's name, as NT derives it: the host's, without its domain, at most 15 characters.
func machineName() string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	host = strings.Map(func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}, strings.ToUpper(host))
	if host == "" {
		return "SALLYPORT"
	}
	return host[:min(len(host), 15)]
}
