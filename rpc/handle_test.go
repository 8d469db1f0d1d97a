package rpc_test

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/ntpb"
	"sallyport/rpc"
	"sallyport/rpc/internal/testpb"
)

func pipes() config {
	o := alpc.PairOptions{HandleTypes: alpc.HandlePipe}
	return config{pair: [2]alpc.PairOptions{o, o}}
}

func pipe(t *testing.T) (r, w *os.File) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestFilesTravelBesideUnaryMessagesBothWays(t *testing.T) {
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		w, err := rpc.Handles(ctx).Take(b.File)
		if err != nil {
			return nil, err
		}
		if _, err := w.WriteString("from the handler"); err != nil {
			return nil, err
		}
		w.Close()
		if _, err := rpc.Handles(ctx).Take(b.File); ntstatus.Of(err) != ntstatus.InvalidHandle {
			return nil, ntstatus.New("test", "taken twice", ntstatus.Unsuccessful)
		}
		back, in, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		in.WriteString("from the reply")
		in.Close()
		return &testpb.Book{File: rpc.Handles(ctx).Give(back), Text: b.Text}, nil
	}}, pipes())
	for _, size := range []int{1, 200 << 10} { // inline, and in pieces
		r, w := pipe(t)
		hs := rpc.NewHandleSet()
		b, err := f.client.Echo(short(t), &testpb.Book{File: hs.Add(w), Text: make([]byte, size)}, hs.Option())
		require.NoError(t, err)
		require.NoError(t, w.Close()) // it stayed ours
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "from the handler", string(got))
		back, err := hs.Take(b.File)
		require.NoError(t, err)
		got, err = io.ReadAll(back)
		require.NoError(t, err)
		require.Equal(t, "from the reply", string(got))
		require.NoError(t, back.Close())
		require.NoError(t, hs.Close())
	}
}

func TestFilesThatNobodyTakesAreClosed(t *testing.T) {
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		w.Close()
		return &testpb.Book{File: rpc.Handles(ctx).Give(r)}, nil
	}}, pipes())
	r, w := pipe(t)
	hs := rpc.NewHandleSet()
	req := &testpb.Book{File: hs.Add(w)}
	_, err := f.client.Echo(short(t), req, hs.Option())
	require.NoError(t, err)
	require.NoError(t, w.Close())
	got, err := io.ReadAll(r) // ends only when the server's copy is closed too
	require.NoError(t, err)
	require.Empty(t, got)
	require.NoError(t, hs.Close())
	_, err = hs.Take(&ntpb.Handle{Index: 1})
	require.ErrorIs(t, err, ntstatus.InvalidHandle)

	// A caller without a set gets the message and no file.
	b, err := f.client.Echo(short(t), &testpb.Book{})
	require.NoError(t, err)
	require.EqualValues(t, 1, b.File.Index)
}

func TestFilesTravelWithTheMessagesOfAStream(t *testing.T) {
	f := serve(t, &library{chat: func(s grpc.BidiStreamingServer[testpb.Book, testpb.Book]) error {
		hs := rpc.Handles(s.Context())
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			got, err := hs.Take(b.File)
			if err != nil {
				return err
			}
			if err := s.Send(&testpb.Book{Name: b.Name, File: hs.Give(got)}); err != nil { // sends it back
				return err
			}
		}
	}}, pipes())
	hs := rpc.NewHandleSet()
	defer hs.Close()
	chat, err := f.client.Chat(short(t), hs.Option())
	require.NoError(t, err)
	for range 100 { // more than may be untaken at a time
		r, w := pipe(t)
		require.NoError(t, chat.Send(&testpb.Book{File: hs.Add(w)}))
		require.NoError(t, w.Close())
		b, err := chat.Recv()
		require.NoError(t, err)
		back, err := hs.Take(b.File)
		require.NoError(t, err)
		_, err = back.WriteString("x")
		require.NoError(t, err)
		require.NoError(t, back.Close())
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "x", string(got))
		require.NoError(t, r.Close())
	}
	require.NoError(t, chat.CloseSend())
	_, err = chat.Recv()
	require.Equal(t, io.EOF, err)
}

func TestAPortThatTakesNoFilesGetsNone(t *testing.T) {
	f := serve(t, still(), config{})
	_, w := pipe(t)
	hs := rpc.NewHandleSet()
	_, err := f.client.Echo(short(t), &testpb.Book{File: hs.Add(w)}, hs.Option())
	require.Error(t, err)
}

func TestReplyThatCannotBeSentIsAnErrorAtOnce(t *testing.T) {
	_, w := pipe(t)
	f := serve(t, &library{echo: func(ctx context.Context, b *testpb.Book) (*testpb.Book, error) {
		h := rpc.Handles(ctx).Add(w)
		return &testpb.Book{Name: b.Name, File: h}, w.Close() // closed before the reply carries it
	}}, pipes())
	hs := rpc.NewHandleSet()
	defer hs.Close()
	_, err := f.client.Echo(short(t), &testpb.Book{}, hs.Option())
	require.ErrorIs(t, err, ntstatus.InvalidHandle)
}

func TestNoFileIsNoError(t *testing.T) {
	hs := rpc.NewHandleSet()
	require.Nil(t, hs.Add(nil))
	f, err := hs.Take(nil)
	require.NoError(t, err)
	require.Nil(t, f)
	require.NotNil(t, rpc.Handles(context.Background()))
}
