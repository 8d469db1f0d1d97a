package scm

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"sallyport/internal/logpipe"
	"sallyport/ntstatus"
)

const (
	logChunk    = 64 << 10
	maxFileName = 200
)

// serviceLog is the log of one service: what comes out of its pipe, byte for byte, in a file that is rotated at a size. Lines may be
// cut at a rotation only if they are longer than a quarter of it; a reader sees the files as one text.
type serviceLog struct {
	path   string
	logger hclog.Logger
	pipe   *os.File // read end; nil until there is one
	write  *os.File // write end, what services get

	mu         sync.Mutex // guards what follows; held over short file calls
	file       *os.File
	size       int64
	limit      int64
	keep       int
	generation uint64 // of file: counts rotations since this process opened it
	dropped    uint64 // bytes that no file took
	pending    uint64 // of these, not yet mentioned in the log
	more       chan struct{}
	closed     bool
}

// logPath names a service's log: its folded name, escaped, so that no name leaves the directory.
func logPath(dir, key string) string {
	name := url.PathEscape(key)
	if len(name) > maxFileName {
		sum := sha1.Sum([]byte(key))
		name = name[:maxFileName-41] + "~" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(dir, name+".log")
}

// openLog opens or creates a log. It does not own the pipe until start.
func openLog(path string, limit int64, keep int, logger hclog.Logger) (*serviceLog, error) {
	l := &serviceLog{path: path, logger: logger, limit: limit, keep: keep, more: make(chan struct{})}
	return l, l.open()
}

func (l *serviceLog) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return ntstatus.Wrap("scm.Log", l.path, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return ntstatus.Wrap("scm.Log", l.path, err)
	}
	l.file, l.size = f, size
	return nil
}

// configure takes up new limits at the next rotation.
func (l *serviceLog) configure(limit int64, keep int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit, l.keep = limit, keep
}

// run moves from the pipe to the file until the pipe is closed.
func (l *serviceLog) run() {
	for logpipe.Wait(l.pipe) == nil {
		l.mu.Lock()
		err := l.drain()
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// drain takes one portion out of the pipe. The caller holds mu. The only error is the pipe's end.
func (l *serviceLog) drain() error {
	if l.closed {
		return os.ErrClosed
	}
	if l.pending > 0 {
		note := fmt.Appendf(nil, "[sallyport: %d bytes of this log could not be written]\n", l.pending)
		if _, err := l.file.WriteAt(note, l.size); err == nil {
			l.size += int64(len(note))
			l.pending = 0
		}
	}
	n, err := logpipe.Append(l.pipe, l.file, logChunk, l.size)
	switch {
	case errors.Is(err, io.EOF):
		return err
	case err != nil:
		if l.pending == 0 {
			l.logger.Error("a log can't be written, what comes is dropped", "log", l.path, "error", err)
		}
		lost := uint64(logpipe.Discard(l.pipe, make([]byte, logChunk)))
		l.dropped += lost
		l.pending += lost
		return nil
	case n == 0:
		return nil
	}
	l.size += int64(n)
	l.rotate()
	close(l.more)
	l.more = make(chan struct{})
	return nil
}

// rotate begins a new file when this one is full: at the end of a line, unless one is too long for that.
func (l *serviceLog) rotate() {
	if l.size < l.limit {
		return
	}
	var last [1]byte
	if _, err := l.file.ReadAt(last[:], l.size-1); err == nil && last[0] != '\n' && l.size < l.limit+l.limit/4 {
		return
	}
	for i := l.keep; i > 0; i-- {
		if err := os.Rename(l.rotated(uint64(i-1)), l.rotated(uint64(i))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.logger.Error("a log can't be rotated", "log", l.path, "error", err)
			return
		}
	}
	old := l.file
	if err := l.open(); err != nil {
		l.logger.Error("a log can't be rotated", "log", l.path, "error", err)
		return
	}
	old.Close()
	l.generation++
}

// rotated is the name of the file n rotations ago.
func (l *serviceLog) rotated(n uint64) string {
	if n == 0 {
		return l.path
	}
	return fmt.Sprintf("%s.%d", l.path, n)
}

// seam ends a line that the last run left open, so that the next run begins with one of its own.
func (l *serviceLog) seam() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pipe == nil || l.closed {
		return
	}
	for before := int64(-1); before != l.size; {
		before = l.size
		if l.drain() != nil {
			return
		}
	}
	var last [1]byte
	if l.size == 0 {
		return
	}
	if _, err := l.file.ReadAt(last[:], l.size-1); err == nil && last[0] != '\n' {
		if _, err := l.file.WriteAt([]byte("\n"), l.size); err == nil {
			l.size++
		}
	}
}

func (l *serviceLog) lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// close ends the log. The pipe's other holders keep what is in it.
func (l *serviceLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	l.file.Close()
	for _, f := range []*os.File{l.pipe, l.write} {
		if f != nil {
			f.Close()
		}
	}
	close(l.more)
}

// remove deletes the files; after close.
func (l *serviceLog) remove() {
	for n := range uint64(maxLogFiles + 1) {
		if os.Remove(l.rotated(n)) != nil && n > 0 {
			return
		}
	}
}

// cursor is a place in the text that the files are together.
type cursor struct {
	generation int64 // of the file; those of older runs of the controller are negative
	offset     int64
}

// read sends the log from the cursor that tail gives (negative: everything) and, with follow, goes on until ctx ends or the
// log is closed.
func (l *serviceLog) read(ctx context.Context, tail int, follow bool, send func([]byte) error) error {
	at, err := l.start(tail)
	if err != nil {
		return err
	}
	buf := make([]byte, logChunk)
	for {
		n, more, err := l.next(&at, buf)
		if err != nil {
			return err
		}
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
			continue
		}
		if more == nil || !follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// next reads on from at; with nothing there more is the channel that closes when there is, nil when there never will be.
func (l *serviceLog) next(at *cursor, buf []byte) (n int, more <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return 0, nil, nil
		}
		if oldest := l.oldest(); at.generation < oldest {
			*at = cursor{generation: oldest} // it was rotated away meanwhile
		}
		n, err := l.readAt(*at, buf)
		if n > 0 {
			at.offset += int64(n)
			return n, nil, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, nil, ntstatus.Wrap("scm.ReadServiceLog", l.path, err)
		}
		if at.generation == int64(l.generation) {
			return 0, l.more, nil
		}
		*at = cursor{generation: at.generation + 1}
	}
}

func (l *serviceLog) readAt(at cursor, buf []byte) (int, error) {
	if at.generation == int64(l.generation) {
		return l.file.ReadAt(buf[:min(int64(len(buf)), max(l.size-at.offset, 0))], at.offset)
	}
	f, err := os.Open(l.rotated(uint64(int64(l.generation) - at.generation)))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(buf, at.offset)
}

// oldest is the generation of the oldest file that there is.
func (l *serviceLog) oldest() int64 {
	g := int64(l.generation)
	for n := 1; n <= l.keep; n++ {
		if _, err := os.Stat(l.rotated(uint64(n))); err != nil {
			break
		}
		g--
	}
	return g
}

// start finds where the last tail lines begin, reading backwards through the files.
func (l *serviceLog) start(tail int) (cursor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.oldest()
	if tail < 0 {
		return cursor{generation: oldest}, nil
	}
	if tail == 0 {
		return cursor{int64(l.generation), l.size}, nil
	}
	buf := make([]byte, logChunk)
	lines, first := 0, true
	for g := int64(l.generation); g >= oldest; g-- {
		end := l.size
		if g != int64(l.generation) {
			info, err := os.Stat(l.rotated(uint64(int64(l.generation) - g)))
			if err != nil {
				return cursor{}, ntstatus.Wrap("scm.ReadServiceLog", l.path, err)
			}
			end = info.Size()
		}
		for end > 0 {
			part := buf[:min(end, logChunk)]
			end -= int64(len(part))
			if _, err := l.readAt(cursor{g, end}, part); err != nil && !errors.Is(err, io.EOF) {
				return cursor{}, ntstatus.Wrap("scm.ReadServiceLog", l.path, err)
			}
			if first { // a newline at the very end ends the last line, and begins none
				part, first = part[:len(part)-1], false
			}
			for i := len(part); ; lines++ {
				if i = bytes.LastIndexByte(part[:i], '\n'); i < 0 {
					break
				}
				if lines+1 == tail {
					return cursor{g, end + int64(i) + 1}, nil
				}
			}
		}
	}
	return cursor{generation: oldest}, nil
}
