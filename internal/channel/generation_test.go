package channel_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/internal/channel"
	"sallyport/internal/memfd"
)

func TestGenerationsAreRaisedByTheirMakerAlone(t *testing.T) {
	core, f, err := channel.CreateGenerations(600)
	require.NoError(t, err)
	defer f.Close()
	server, err := channel.MapGenerations(f, 600)
	require.NoError(t, err)
	core.Raise(599, 1<<40)
	core.Raise(600, 1)
	core.Raise(-1, 1)
	require.EqualValues(t, 1<<40, server.Read(599))
	require.Zero(t, server.Read(598))
	require.Zero(t, server.Read(600))
	require.Zero(t, server.Read(-1))
	for _, lines := range []int{0, -1, 599, 1 << 40} {
		_, err := channel.MapGenerations(f, lines)
		require.Error(t, err, lines)
	}
	_, _, err = channel.CreateGenerations(0)
	require.Error(t, err)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = channel.MapGenerations(r, 600)
	require.ErrorIs(t, err, memfd.ErrUnsealed)
}
