// Package csrss is the client/server runtime of one session: the registry of its processes and its consoles (NT: csrsrv's
// process table and consrv). A console is a pty whose output is kept while nobody watches.
//
// csrss trusts smss, which keeps for it what must outlive it: the master of every pty, the memory in which its output is, the
// pidfds of registered processes. So csrss may be killed at any instruction: its successor fetches these and goes on,
// programs notice nothing, no output is lost, viewers come back to where they were. csrss believes nobody else: clients are who
// the port proves, each console has a descriptor, and what runs in a console may write, resize, hang up or stop reading as it
// likes and harms only its own console.
//
// Lock order: console.keeping (held during calls to smss), consoles.mu, console.mu. processes.mu is a leaf.
package csrss

import (
	"context"
	"strings"
	"time"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/csrpb"
	"sallyport/rpc"
	"sallyport/security"
	"sallyport/subsys"
	"sallyport/subsys/csrss/csr"
	"sallyport/subsys/smss/sm"
)

// Rights, as csr.proto declares them.
const (
	rightQuery    security.AccessMask = 0x10
	rightRead     security.AccessMask = 0x20
	rightWrite    security.AccessMask = 0x40
	rightTerminal security.AccessMask = 0x80
	allRights     security.AccessMask = 0xF00F7
)

const (
	lastWordsTime = 300 * time.Millisecond // how long csrss, when it stops, waits for programs' last output
	farewellTime  = time.Second            // and then for viewers to hear it
)

// interfaceSDDL guards the interface: the system and administrators may all, anybody who was authenticated may look, register and
// make consoles. It also stands for a console that is not there.
const interfaceSDDL = "O:SYG:SYD:(A;;0xf00f7;;;SY)(A;;0xf00f7;;;BA)(A;;0x20007;;;AU)"

func mapping() security.GenericMapping {
	return security.GenericMapping{Read: 0x20031, Write: 0x20046, Execute: 0x20001, All: allRights}
}

func rightNames() security.RightNames {
	return security.RightNames{
		{Name: "CSR_QUERY", Mask: 0x1}, {Name: "CSR_REGISTER_PROCESS", Mask: 0x2}, {Name: "CSR_CREATE_CONSOLE", Mask: 0x4},
		{Name: "CONSOLE_QUERY", Mask: rightQuery}, {Name: "CONSOLE_READ", Mask: rightRead},
		{Name: "CONSOLE_WRITE", Mask: rightWrite}, {Name: "CONSOLE_TERMINAL", Mask: rightTerminal},
	}
}

// Server is csrss in a program's table of servers.
func Server() subsys.Server { return subsys.Server{Name: "csrss", Run: run} }

func run(ctx context.Context, env *subsys.Env) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keeper := env.Manager
	if keeper == nil { // a part of another program
		var err error
		if keeper, err = sm.Dial(ctx, env.System); err != nil {
			return err
		}
		defer keeper.Close()
	}
	s := &service{
		sys: env.System, keeper: keeper, session: env.Session, log: env.Logger,
		leaving:  make(chan struct{}),
		consoles: newConsoles(env.Session, keeper, env.Logger), processes: newProcesses(ctx, env.Session, keeper, env.Logger),
	}
	defer s.processes.waits.Wait()
	defer cancel()
	defer s.consoles.release()
	if err := s.adopt(ctx); err != nil {
		return err
	}
	server := rpc.NewServer(rpc.ServerOptions{System: env.System, Logger: env.Logger})
	csrpb.RegisterClientServerRuntimeServer(server, s)
	server.Secure("sallyport.csr.ClientServerRuntime", rpc.Interface{SDDL: interfaceSDDL, Resolve: s.resolve, Name: csr.PortName(env.Session)})
	server.OfferReflection(rpc.Interface{SDDL: "O:SYG:SYD:(A;;0x1;;;SY)(A;;0x1;;;BA)(A;;0x1;;;AU)"})
	listener, err := env.System.Listen(ctx, csr.PortName(env.Session), alpc.PortAttributes{
		SecurityDescriptor: "O:SYG:SYD:(A;;0x1f0001;;;SY)(A;;0x1f0001;;;BA)(A;;0x1;;;AU)", HandleTypes: alpc.HandleProcess, MaxConnections: 256,
	})
	if err != nil {
		return err
	}
	// Without exits from smss no console would ever end: when they stop, csrss does, and its successor takes over.
	failed := make(chan error, 1)
	go func() {
		err := keeper.Exits(ctx, func(exit sm.Exit) error { s.consoles.exited(exit); return nil })
		if ctx.Err() == nil {
			failed <- err
			cancel()
		}
	}()
	if err := env.Ready(); err != nil {
		return err
	}
	// At the end viewers get what is left of the output: a shell's last words come a moment before its session ends.
	go func() {
		<-ctx.Done()
		s.consoles.lastWords(lastWordsTime)
		close(s.leaving)
		farewell, done := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
		defer done()
		server.GracefulStop(farewell)
	}()
	err = server.Serve(context.WithoutCancel(ctx), listener)
	select {
	case lost := <-failed:
		return ntstatus.Errorf("csrss.run", sm.PortName, ntstatus.PortDisconnected, "smss sends no more exits: %w", lost)
	default:
		return err
	}
}

// adopt takes over what a predecessor left at smss. One console that can't be taken over is given up, and the others are.
func (s *service) adopt(ctx context.Context) error {
	stored, err := s.keeper.FetchAll(ctx)
	if err != nil {
		return err
	}
	running, err := s.keeper.List(ctx)
	if err != nil {
		return err
	}
	commands := map[string]sm.Process{}
	for _, p := range running {
		if strings.HasPrefix(p.Name, consolePrefix) {
			commands[p.Name] = p
		}
	}
	for _, st := range stored {
		switch {
		case strings.HasPrefix(st.Name, consolePrefix):
			if err = s.consoles.adopt(st, commands); err != nil {
				s.log.Error("a console is lost", "console", strings.TrimPrefix(st.Name, consolePrefix), "error", err)
				err = s.keeper.Remove(ctx, st.Name)
			}
		case strings.HasPrefix(st.Name, processPrefix):
			err = s.processes.adopt(ctx, st)
		default:
			closeFiles(st.Files)
		}
		if err != nil {
			s.log.Warn("something in the store could not be taken over", "name", st.Name, "error", err)
		}
	}
	for _, p := range commands {
		c := s.consoles.byID(p.Name)
		switch {
		case c == nil && p.Exit != nil:
			s.consoles.acknowledge(p.ID, p.Name)
		case c == nil: // of a console that was being closed
			s.consoles.kill(p.ID, p.Name)
			p.PIDFD.Close()
		case p.Exit == nil:
			if _, err := s.processes.add(ctx, p.PIDFD, record{Name: c.name, User: c.deposit.Owner, Registered: p.Started.UnixNano()}, false); err != nil {
				s.log.Warn("a console's command is not in the process table", "console", c.name, "error", err)
			}
		}
	}
	s.log.Info("took over", "consoles", len(s.consoles.list()), "processes", len(s.processes.list()))
	return nil
}
