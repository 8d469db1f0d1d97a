package main

import (
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// asProgram makes the test binary be the program; its second half says so by coreVariable.
const asProgram = "PRIVSEP_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPicturesAreReadByAHalfThatCanOpenNothing(t *testing.T) {
	picture, text := filepath.Join(t.TempDir(), "a.png"), filepath.Join(t.TempDir(), "b.txt")
	f, err := os.Create(picture)
	require.NoError(t, err)
	require.NoError(t, png.Encode(f, image.NewGray(image.Rect(0, 0, 12, 34))))
	require.NoError(t, f.Close())
	require.NoError(t, os.WriteFile(text, []byte("no picture"), 0o600))

	program := exec.Command(os.Args[0], picture, text)
	program.Env = append(os.Environ(), asProgram+"=1")
	out, err := program.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "a file that is no picture is a failure: %s", out)
	require.Equal(t, 1, exit.ExitCode(), "%s", out)
	require.Contains(t, string(out), picture+": png, 12 x 34\n")
	require.Contains(t, string(out), text+": image: unknown format\n")
	require.Regexp(t, `/etc/shadow: .*access denied`, string(out), "a name that the user did not give")
	require.NotContains(t, string(out), "this kernel does not confine")
}
