package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// rawMax is the longest datagram that we send without raising socket buffers.
const rawMax = 64 << 10

// frameLen is the header of a frame on a stream: length and number, 32 bits each.
const frameLen = 8

// serveRaw echoes whatever comes: frames on a stream, datagrams on a seqpacket socket.
func serveRaw(network string) func(string, func()) error {
	return func(address string, ready func()) error {
		return accept(network, address, ready, func(conn *net.UnixConn) {
			if network == "unixpacket" {
				buf := make([]byte, rawMax)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					if _, err := conn.Write(buf[:n]); err != nil {
						return
					}
				}
			}
			in := bufio.NewReaderSize(conn, 4<<10)
			var frame []byte
			for {
				var err error
				if frame, err = readFrame(in, frame); err != nil {
					return
				}
				if _, err := conn.Write(frame); err != nil {
					return
				}
			}
		})
	}
}

func accept(network, address string, ready func(), serve func(*net.UnixConn)) error {
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: address, Net: network})
	if err != nil {
		return err
	}
	ready()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}

// readFrame reads a frame, header included, into frame's memory.
func readFrame(in *bufio.Reader, frame []byte) ([]byte, error) {
	head, err := in.Peek(frameLen)
	if err != nil {
		return nil, err
	}
	n := frameLen + int(binary.LittleEndian.Uint32(head))
	if cap(frame) < n {
		frame = make([]byte, n)
	}
	_, err = io.ReadFull(in, frame[:n])
	return frame[:n], err
}

// dialRaw is a connection that one call at a time has to itself.
func dialRaw(network string) func(context.Context, *target) (*client, error) {
	return func(_ context.Context, t *target) (*client, error) {
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: t.address, Net: network})
		if err != nil {
			return nil, err
		}
		var mu sync.Mutex
		in := bufio.NewReaderSize(conn, 4<<10)
		return &client{close: conn.Close, caller: func(size int) func(context.Context) error {
			if network == "unixpacket" {
				request, buf := make([]byte, size), make([]byte, rawMax)
				return func(context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					if _, err := conn.Write(request); err != nil {
						return err
					}
					n, err := conn.Read(buf)
					if err != nil {
						return err
					}
					return whole(n, size)
				}
			}
			request := make([]byte, frameLen+size)
			binary.LittleEndian.PutUint32(request, uint32(size))
			var reply []byte
			return func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				if _, err := conn.Write(request); err != nil {
					return err
				}
				var err error
				if reply, err = readFrame(in, reply); err != nil {
					return err
				}
				return whole(len(reply)-frameLen, size)
			}
		}}, nil
	}
}

// dialMultiplexed shares a connection between callers: one goroutine reads and hands replies over by their number.
func dialMultiplexed(_ context.Context, t *target) (*client, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: t.address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	var (
		writing sync.Mutex
		mu      sync.Mutex
		next    uint32
		waiting = map[uint32]chan int{}
	)
	go func() {
		in := bufio.NewReaderSize(conn, 64<<10)
		var frame []byte
		for {
			var err error
			if frame, err = readFrame(in, frame); err != nil {
				mu.Lock()
				defer mu.Unlock()
				for _, c := range waiting {
					close(c)
				}
				return
			}
			mu.Lock()
			waiting[binary.LittleEndian.Uint32(frame[4:])] <- len(frame) - frameLen
			mu.Unlock()
		}
	}()
	return &client{close: conn.Close, caller: func(size int) func(context.Context) error {
		request := make([]byte, frameLen+size)
		binary.LittleEndian.PutUint32(request, uint32(size))
		reply := make(chan int, 1)
		mu.Lock()
		next++
		waiting[next] = reply
		binary.LittleEndian.PutUint32(request[4:], next)
		mu.Unlock()
		return func(context.Context) error {
			writing.Lock()
			_, err := conn.Write(request)
			writing.Unlock()
			if err != nil {
				return err
			}
			n, ok := <-reply
			if !ok {
				return errors.New("the connection ended")
			}
			return whole(n, size)
		}
	}}, nil
}
