package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"sallyport/internal/instance"
	"sallyport/internal/probe"
	"sallyport/ntstatus"
)

// findingRow is a finding as doctor prints it.
type findingRow struct {
	Check string `json:"check"`
	State string `json:"state"`
	Found string `json:"found"`
	Do    string `json:"do"`
}

func doctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "try what this kernel and this user's surroundings give, and say what is degraded for want of it",
		Long:  "Doctor tries things instead of believing version numbers. It ends with 1 if something is broken, so that the set can't run.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var rows []findingRow
			broken := 0
			for _, f := range append(probe.Findings(), a.surroundings()...) {
				rows = append(rows, findingRow{Check: f.Name, State: string(f.State), Found: f.Found, Do: f.Do})
				if f.State == probe.Broken {
					broken++
				}
			}
			if err := a.printList(rows); err != nil {
				return err
			}
			if broken > 0 {
				return &failure{err: fmt.Errorf("%d things are broken: the set does not run here", broken), hint: "the table says what to do", code: exitFailure}
			}
			return nil
		},
	}
}

// surroundings are the directories that an instance would use.
func (a *app) surroundings() []probe.Finding {
	in, err := instance.Locate(a.where)
	if err != nil {
		return []probe.Finding{{Name: "instance", State: probe.Broken, Found: err.Error()}}
	}
	runtime := probe.Finding{Name: "runtime directory", State: probe.OK, Found: in.Runtime}
	switch err := in.Verify(); {
	case err == nil, errors.Is(err, ntstatus.ObjectNameNotFound):
	default:
		runtime.State, runtime.Found, runtime.Do = probe.Broken, err.Error(), "choose a directory of your own with --runtime or "+instance.EnvRuntime
	}
	findings := []probe.Finding{runtime}
	if os.Geteuid() != 0 && a.where.Runtime == "" && os.Getenv(instance.EnvRuntime) == "" {
		xdg := probe.Finding{Name: "XDG_RUNTIME_DIR", State: probe.OK, Found: os.Getenv("XDG_RUNTIME_DIR")}
		if info, err := os.Stat(xdg.Found); xdg.Found == "" || err != nil || !info.IsDir() {
			xdg.State, xdg.Do = probe.Degraded, "nothing: "+in.Runtime+" is used; log on through a session manager (pam_systemd, elogind) to have one that is cleared at logout"
			if xdg.Found == "" {
				xdg.Found = "not set"
			}
		}
		findings = append(findings, xdg)
	}
	state := probe.Finding{Name: "state directory", State: probe.OK, Found: in.State}
	if info, err := os.Stat(in.State); err == nil && !info.IsDir() {
		state.State, state.Found, state.Do = probe.Broken, in.State+" is not a directory", "choose another with --state or "+instance.EnvState
	}
	return append(findings, state)
}
