package scm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/proto/scmpb"
	"sallyport/scm/mgr"
	"sallyport/security"
)

// kills is how often the controller dies; SALLYPORT_KILLS asks for more.
func kills(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("SALLYPORT_KILLS")); err == nil {
		return n
	}
	if testing.Short() {
		t.Skip("runs processes")
	}
	return 10
}

// TestAControllerThatDiesAtAnyMomentLosesNothing kills it while clients create, start, stop and delete: what was acknowledged
// holds, no client waits for ever, there are never two processes of a service, and in the end nothing is left.
func TestAControllerThatDiesAtAnyMomentLosesNothing(t *testing.T) {
	n := kills(t)
	s := boot(t)
	s.create("steady", "counter", func(c *scmpb.ServiceConfig) { c.LogBytes, c.LogFiles = 4<<20, 10 })
	st := s.start(s.open("steady"))
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	acknowledged := make([]map[string]bool, 3) // name → exists
	broken := make(chan error, len(acknowledged))
	for i := range acknowledged {
		acknowledged[i] = map[string]bool{}
		clients.Go(func() {
			if err := s.play(ctx, i, acknowledged[i]); err != nil {
				broken <- err
			}
		})
	}
	for range n {
		servers, err := s.servers.Servers(s.context())
		require.NoError(t, err)
		for _, server := range servers {
			if server.Name == "scm" && server.Pid != 0 {
				_ = syscall.Kill(int(server.Pid), syscall.SIGKILL)
			}
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // a random moment is the point
	}
	cancel()
	clients.Wait()
	select {
	case err := <-broken:
		require.NoError(t, err)
	default:
	}
	s.manager.Close()
	eventually(t, func() bool {
		var err error
		s.manager, err = mgr.Connect(s.context(), s.sys)
		if err == nil {
			_, err = s.manager.Services(s.context(), scmpb.ServiceStateFilter_SERVICE_STATE_ALL)
		}
		return err == nil
	})
	for _, mine := range acknowledged {
		for name, exists := range mine {
			_, err := s.manager.OpenService(s.context(), name, 0)
			if exists {
				require.NoError(t, err, "%s was acknowledged", name)
			} else {
				require.ErrorIs(t, err, ntstatus.ServiceDoesNotExist, "%s was deleted", name)
			}
		}
	}
	steady := s.open("steady")
	now, err := steady.Query(s.context())
	require.NoError(t, err)
	require.Equal(t, st.Pid, now.Pid, "the daemon never noticed")
	list, err := s.manager.Services(s.context(), scmpb.ServiceStateFilter_SERVICE_STATE_ALL)
	require.NoError(t, err)
	for _, one := range list {
		service := s.open(one.Name)
		if _, err := service.Stop(s.context(), true, true); err != nil {
			require.Contains(t, []ntstatus.Status{ntstatus.ServiceNotActive, ntstatus.ServiceCannotAcceptControl}, ntstatus.Of(err), "%v", err)
		}
		s.await(service, "stopped", func(st *scmpb.ServiceStatus) bool { return st.State == scmpb.ServiceState_SERVICE_STOPPED })
	}
	require.Equal(t, 1, whole(t, s.log(steady)))
}

// play is one client: it does what comes, and remembers what it was promised. A name whose last call got no answer is unknown.
func (s *set) play(ctx context.Context, client int, acknowledged map[string]bool) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("c%d-%d", client, i)
		err := func() error {
			call, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			m, err := mgr.Connect(call, s.sys)
			if err != nil {
				return err
			}
			defer m.Close()
			service, err := m.CreateService(call, &scmpb.ServiceConfig{Name: name, Path: exe, Environment: []string{role + "=counter"}, ReadyDelayMs: 1},
				mgr.CreateOptions{Access: security.MaximumAllowed})
			if err != nil {
				return err
			}
			acknowledged[name] = true
			if _, err := service.Start(call, true); err != nil {
				return err
			}
			if _, err := service.Stop(call, false, true); err != nil {
				return err
			}
			if i%2 == 0 {
				return nil
			}
			delete(acknowledged, name)
			if err := service.Delete(call); err != nil {
				return err
			}
			if err := service.Close(); err == nil {
				if _, err := m.OpenService(call, name, 0); ntstatus.Of(err) == ntstatus.ServiceDoesNotExist {
					acknowledged[name] = false
				}
			}
			return nil
		}()
		var known *ntstatus.Error
		switch status := ntstatus.Of(err); {
		case status == ntstatus.IOTimeout:
			return fmt.Errorf("%s: a client hung: %w", name, err)
		case err != nil && !errors.As(err, &known):
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
