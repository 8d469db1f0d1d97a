package scm

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"sallyport/alpc"
	"sallyport/internal/store"
	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/rpc"
	"sallyport/scm/mgr"
	"sallyport/subsys"
)

// Server is scm in a program's table of servers.
func Server() subsys.Server {
	return subsys.Server{Name: "scm", Run: run, Grace: 28 * time.Second} // its services stop first
}

// The port's and the interfaces' descriptors. What a caller may do is decided by method and service, not by the connect.
const (
	portSDDL       = "O:SYG:SYD:(A;;GA;;;SY)(A;;GA;;;BA)(A;;0x1;;;AU)"
	dispatcherSDDL = "O:SYG:SYD:(A;;0x20001;;;SY)(A;;0x20001;;;AU)"
	reflectionSDDL = "O:SYG:SYD:(A;;0x1;;;SY)(A;;0x1;;;BA)(A;;0x1;;;AU)"
)

// booted is the name in smss's store that says that the automatic services were started: once in the life of smss, so that a
// restarted controller does not start what somebody stopped.
const booted = "booted"

// run is the life of the controller: load, adopt, serve; at the orderly end it stops every service first.
func run(ctx context.Context, env *subsys.Env) error {
	db, err := store.Open(filepath.Join(env.StateDir, "services.db"), store.Options{Application: "sallyport.scm", Schema: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	// What stops the services at the end must outlive ctx, which is the word to stop.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	if env.Manager == nil {
		return ntstatus.Errorf("scm.Run", "", ntstatus.InvalidParameter, "it runs under smss only: somebody has to fork, and to keep what outlives it")
	}
	c, err := newController(env.System, env.Logger, db, env.Manager, env.StateDir, env.RuntimeDir)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.load(ctx); err != nil {
		return err
	}
	go c.work(life)
	gone := make(chan error, 2)
	go func() { gone <- c.exits(life) }()

	rs := rpc.NewServer(rpc.ServerOptions{System: env.System, Logger: env.Logger})
	scmpb.RegisterServiceControlManagerServer(rs, &server{c: c})
	scmpb.RegisterDispatcherServer(rs, &dispatcher{c: c})
	rs.Secure(scmpb.ServiceControlManager_ServiceDesc.ServiceName, rpc.Interface{Descriptor: c.manager, Resolve: c.resolve})
	rs.Secure(scmpb.Dispatcher_ServiceDesc.ServiceName, rpc.Interface{SDDL: dispatcherSDDL})
	rs.OfferReflection(rpc.Interface{SDDL: reflectionSDDL})
	listener, err := env.System.Listen(ctx, mgr.PortName, alpc.PortAttributes{SecurityDescriptor: portSDDL, AutoAccept: true})
	if err != nil {
		return err
	}
	go func() { gone <- rs.Serve(life, listener) }()

	if err := c.boot(ctx); err != nil {
		return err
	}
	if err := env.Ready(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		stopped := make(chan struct{})
		go func() { c.shutdown(life); close(stopped) }()
		select {
		case <-stopped:
		case <-gone: // without smss nothing can be stopped from here, and who is left ends the services
		}
		rs.Stop()
		return nil
	case err := <-gone:
		return ntstatus.Errorf("scm.Run", "", ntstatus.PortDisconnected, "smss or the core has gone: %v", err)
	}
}

// boot starts the automatic services unless a predecessor did.
func (c *controller) boot(ctx context.Context) error {
	kept, err := c.keeper.Fetch(ctx, booted)
	if err == nil || !errors.Is(err, ntstatus.NotFound) {
		for _, f := range kept.Files {
			f.Close()
		}
		return err
	}
	var failed map[string]error
	_ = c.apply(func(now time.Time) error { failed = c.machine.StartAll(now); return nil })
	for key, err := range failed {
		c.mu.Lock()
		s, ok := c.machine.Get(key)
		quiet := ok && s.Config.GetErrorControl() == scmpb.ErrorControl_SERVICE_ERROR_IGNORE
		c.mu.Unlock()
		if !quiet {
			c.log.Error("an automatic service can't be started", "service", key, "error", err)
		}
	}
	return c.keeper.Store(ctx, booted, nil)
}
