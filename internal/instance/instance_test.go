package instance_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/instance"
	"sallyport/ntstatus"
)

func clearEnvironment(t *testing.T) {
	for _, name := range []string{instance.EnvRuntime, instance.EnvState, instance.EnvConfig, "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", "/home/u")
}

func TestLocateFollowsWordsThenEnvironmentThenDefault(t *testing.T) {
	clearEnvironment(t)
	for name, tt := range map[string]struct {
		options                instance.Options
		env                    map[string]string
		runtime, state, config string
	}{
		"system": {instance.Options{System: true}, map[string]string{instance.EnvRuntime: "/elsewhere"},
			"/run/sallyport", "/var/lib/sallyport", "/etc/sallyport/sallyport.toml"},
		"user with a runtime directory": {instance.Options{User: true}, map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"},
			"/run/user/7/sallyport", "/home/u/.local/state/sallyport", "/home/u/.config/sallyport/sallyport.toml"},
		"environment": {instance.Options{}, map[string]string{instance.EnvRuntime: "/r"}, "/r", "/r/state", "/r/sallyport.toml"},
		"words win": {instance.Options{Runtime: "/w", State: "/s"}, map[string]string{instance.EnvRuntime: "/r", instance.EnvState: "/x"},
			"/w", "/s", "/w/sallyport.toml"},
		"a relative XDG_RUNTIME_DIR is not believed": {instance.Options{User: true}, map[string]string{"XDG_RUNTIME_DIR": "tmp", "TMPDIR": "/t"},
			"/t/sallyport-" + strconv.Itoa(os.Geteuid()), "/home/u/.local/state/sallyport", "/home/u/.config/sallyport/sallyport.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			in, err := instance.Locate(tt.options)
			require.NoError(t, err)
			require.Equal(t, tt.runtime, in.Runtime)
			require.Equal(t, tt.state, in.State)
			require.Equal(t, tt.config, in.Config)
			require.Equal(t, filepath.Join(tt.runtime, "core"), in.Socket())
		})
	}
	_, err := instance.Locate(instance.Options{System: true, User: true})
	require.ErrorIs(t, err, ntstatus.InvalidParameter)
}

func TestPrepareMakesPrivateDirectoriesAndVerifyRefusesOpenOnes(t *testing.T) {
	clearEnvironment(t)
	dir := filepath.Join(t.TempDir(), "deep", "instance")
	in := instance.Instance{Runtime: dir, State: filepath.Join(dir, "state")}
	require.ErrorIs(t, in.Verify(), ntstatus.ObjectNameNotFound)
	require.NoError(t, in.Prepare())
	require.NoError(t, in.Prepare(), "what is there already is fine")
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	require.NoError(t, os.Chmod(dir, 0o777))
	require.ErrorIs(t, in.Verify(), ntstatus.AccessDenied)
	require.ErrorIs(t, in.Prepare(), ntstatus.AccessDenied)

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(t.TempDir(), link))
	require.Error(t, instance.Instance{Runtime: link}.Verify(), "a symbolic link may lead anywhere")

	if os.Geteuid() == 0 {
		foreign := t.TempDir()
		require.NoError(t, os.Chown(foreign, 65534, 65534))
		require.ErrorIs(t, instance.Instance{Runtime: foreign}.Verify(), ntstatus.InvalidOwner)
	} else {
		require.ErrorIs(t, instance.Instance{Runtime: "/tmp"}.Verify(), ntstatus.AccessDenied)
	}
}

func TestOneServesAnInstanceAndClearsWhatAKilledOneLeft(t *testing.T) {
	in := instance.Instance{Runtime: t.TempDir(), State: t.TempDir()}
	require.NoError(t, os.WriteFile(in.Socket(), nil, 0o600))
	release, err := in.Claim()
	require.NoError(t, err)
	require.NoFileExists(t, in.Socket())
	_, err = in.Claim()
	require.ErrorIs(t, err, ntstatus.ObjectNameCollision)
	release()
	release, err = in.Claim()
	require.NoError(t, err)
	release()
}
