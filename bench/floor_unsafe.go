package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"sallyport/internal/futex"
	"sallyport/internal/memfd"
)

// The floor: two processes, one page of shared memory, no identity, no check, no second caller. What is between it and a
// transport is what the transport costs.
const (
	floorSize = 1 << 20
	floorData = 4096
	floorMax  = 64 << 10
)

// floor is the shared memory: a word that counts requests and one that counts replies, on cache lines of their own, and a
// place for the payload each way.
type floor struct {
	request, reply    *atomic.Uint32
	question, answers []byte
}

func mapFloor(f *os.File) (*floor, error) {
	mem, err := memfd.Map(f, floorSize, true)
	if err != nil {
		return nil, err
	}
	return &floor{
		request: (*atomic.Uint32)(unsafe.Pointer(&mem[0])), reply: (*atomic.Uint32)(unsafe.Pointer(&mem[128])),
		question: mem[floorData:][:floorMax], answers: mem[floorData+floorMax:][:floorMax],
	}, nil
}

// openFloor maps the memory that the server's address leads to.
func openFloor(address string) (*floor, error) {
	path, err := os.Readlink(address)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mapFloor(f)
}

// serveFloor makes the memory, and answers each request that wait sees.
func serveFloor(address string, ready func(), wait, done func(word *atomic.Uint32, old uint32)) error {
	f, err := memfd.Create("bench-floor", floorSize)
	if err != nil {
		return err
	}
	m, err := mapFloor(f)
	if err != nil {
		return err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), address); err != nil {
		return err
	}
	ready()
	buf := make([]byte, floorMax)
	for last := uint32(0); ; last++ {
		wait(m.request, last)
		n := m.size()
		copy(buf[:n], m.question)
		copy(m.answers, buf[:n])
		m.reply.Store(last + 1)
		done(m.reply, last)
	}
}

// size is how many bytes the request has: the client writes it behind the request's word.
func (m *floor) size() int {
	n := (*atomic.Uint32)(unsafe.Add(unsafe.Pointer(m.request), 4))
	return min(int(n.Load()), floorMax)
}

func dialFloor(t *target, wait, done func(word *atomic.Uint32, old uint32)) (*client, error) {
	m, err := openFloor(t.address)
	if err != nil {
		return nil, err
	}
	return &client{close: func() error { return nil }, caller: func(size int) func(context.Context) error {
		data := make([]byte, size)
		return func(context.Context) error {
			last := m.reply.Load()
			copy(m.question, data)
			(*atomic.Uint32)(unsafe.Add(unsafe.Pointer(m.request), 4)).Store(uint32(size))
			m.request.Store(last + 1)
			done(m.request, last)
			wait(m.reply, last)
			copy(data, m.answers)
			return nil
		}
	}}, nil
}

// idleFloor is after how many looks the spinning side counts as idle and looks once a millisecond, to leave the processor to
// the transports that are measured meanwhile.
const idleFloor = 1 << 22

func spinWhile(word *atomic.Uint32, old uint32) {
	for looks := 0; word.Load() == old; looks++ {
		if looks > idleFloor {
			time.Sleep(time.Millisecond)
		}
	}
}

func silent(*atomic.Uint32, uint32) {}

func sleepWhile(word *atomic.Uint32, old uint32) {
	for word.Load() == old {
		futex.Wait(word, old, time.Second)
	}
}

func wake(word *atomic.Uint32, _ uint32) { futex.Wake(word) }

func serveSpin(address string, ready func()) error {
	return serveFloor(address, ready, spinWhile, silent)
}

func dialSpin(_ context.Context, t *target) (*client, error) {
	return dialFloor(t, spinWhile, silent)
}

func serveFutex(address string, ready func()) error {
	return serveFloor(address, ready, sleepWhile, wake)
}

func dialFutex(_ context.Context, t *target) (*client, error) {
	return dialFloor(t, sleepWhile, wake)
}
