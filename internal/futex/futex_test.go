package futex_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/internal/futex"
)

func TestWakeEndsAWait(t *testing.T) {
	var word atomic.Uint32
	word.Store(1)
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		for word.Load() == 1 {
			futex.Wait(&word, 1, time.Minute)
		}
	}()
	word.Store(0)
	for {
		futex.Wake(&word)
		select {
		case <-woken:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestWaitIsBoundedAndLooksFirst(t *testing.T) {
	var word atomic.Uint32
	start := time.Now()
	futex.Wait(&word, 1, time.Minute) // the word isn't 1
	futex.Wait(&word, 0, time.Millisecond)
	require.Less(t, time.Since(start), 30*time.Second)
}
