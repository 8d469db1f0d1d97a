package core

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"sallyport/internal/channel"
	"sallyport/internal/control"
	"sallyport/internal/pidfd"
	"sallyport/internal/unixsock"
	"sallyport/ntstatus"
	"sallyport/proto/corepb"
)

// do carries one effect out. It runs on the machine's goroutine and never waits.
func (c *Core) do(effect Effect) {
	switch e := effect.(type) {
	case Send:
		c.send(e, nil)
	case MakeChannel:
		c.makeChannel(e)
	case MakeSection:
		section, err := channel.CreateSection(e.Connection)
		if err != nil {
			c.log.Error("no section for a connection", "connection", e.Connection, "error", err)
			e.ToClient.Frame = replyFrame(&corepb.Reply{Id: e.ToClient.Frame.GetReply().GetId(), Failure: fail("core.OfferSection", "", ntstatus.Of(err), "the core could not make the section")})
			c.send(e.ToClient, nil)
			return
		}
		c.send(e.ToServer, []*os.File{section})
		c.send(e.ToClient, []*os.File{section})
		section.Close()
	case MakeSlab:
		memory, err := channel.CreateSlab(int(e.Lines))
		var page *os.File
		if err == nil {
			defer memory.Close()
			page, err = c.slabs.put(e.Port, memory, int(e.Lines))
		}
		if err != nil {
			c.log.Error("no counters for a port: its server is cut", "error", err)
			c.cut(e.Reply.To)
			return
		}
		defer page.Close()
		c.send(e.Reply, []*os.File{memory, page})
	case DropSlab:
		c.slabs.drop(e.Port)
	case Raise:
		c.slabs.raise(e)
	case Drop:
		if l := c.links[e.ID]; l != nil {
			delete(c.links, e.ID)
			l.finish()
		}
	case Watch:
		if f := c.files.take(e.FD); f != nil {
			c.wg.Go(func() {
				defer f.Close()
				if pidfd.Wait(c.ctx, f) == nil {
					c.post(func() Event { return ProcessExited{e.Process} })
				}
			})
		}
	case CloseFD:
		if f := c.files.take(e.FD); f != nil {
			f.Close()
		}
	case Audit:
		c.audit(e.Denial)
	}
}

// makeChannel makes the socket pair of a connection. The core keeps neither end: a kept end would hide a death.
func (c *Core) makeChannel(e MakeChannel) {
	var made []*os.File
	defer func() {
		for _, f := range made {
			f.Close()
		}
	}()
	pair, err := unixsock.PairFDs()
	if err != nil {
		c.failConnection(e.Connection, err)
		return
	}
	client, server := os.NewFile(uintptr(pair[0]), "client"), os.NewFile(uintptr(pair[1]), "server")
	made = append(made, client, server)
	toClient, toServer := []*os.File{client}, []*os.File{server}
	if e.Section {
		section, err := channel.CreateSection(e.Connection)
		if err != nil {
			c.failConnection(e.Connection, err)
			return
		}
		made = append(made, section)
		toClient, toServer = append(toClient, section), append(toServer, section)
	}
	c.send(e.ToServer, toServer)
	c.send(e.ToClient, toClient)
}

// failConnection feeds back that a channel could not be made.
func (c *Core) failConnection(id uint64, err error) {
	c.log.Error("no channel for a connection", "connection", id, "error", err)
	for _, effect := range c.machine.Step(time.Now(), GrantFailed{Connection: id, Status: ntstatus.Of(err)}) {
		c.do(effect)
	}
}

// cut ends an attachment from this side; its reader posts the rest.
func (c *Core) cut(id uint64) {
	if l := c.links[id]; l != nil {
		l.conn.Shutdown()
	}
}

func (c *Core) send(s Send, more []*os.File) {
	l := c.links[s.To]
	if l == nil {
		return
	}
	frame, err := proto.Marshal(s.Frame)
	if err != nil || len(frame) > control.MaxFrame {
		c.log.Error("a reply does not fit its frame", "attachment", s.To, "bytes", len(frame), "error", err)
		frame, _ = proto.Marshal(replyFrame(&corepb.Reply{Id: s.Frame.GetReply().GetId(), Failure: fail("core.Reply", "", ntstatus.InternalError, "the reply has %d bytes", len(frame))}))
		more, s.FDs = nil, nil
	}
	files := make([]*os.File, 0, len(s.FDs)+len(more))
	for _, fd := range s.FDs {
		if f := c.files.get(fd); f != nil {
			files = append(files, f)
		}
	}
	if !l.send(frame, append(files, more...)) {
		c.log.Warn("attachment cut: it does not read what the core sends", "attachment", l.id, "pid", l.pid)
		l.conn.Shutdown()
	}
}

// audit writes a refusal to the log, so many a second: whoever is refused must not be able to fill the disk.
func (c *Core) audit(d *corepb.Denial) {
	if now := time.Now().Unix(); now != c.audited.second {
		if c.audited.dropped > 0 {
			c.log.Named("audit").Warn("refusals not written", "count", c.audited.dropped)
		}
		c.audited.second, c.audited.n, c.audited.dropped = now, 0, 0
	}
	if c.audited.n++; c.audited.n > auditPerSecond {
		c.audited.dropped++
		return
	}
	reason := ""
	if len(d.Trace) > 0 {
		reason = d.Trace[len(d.Trace)-1]
	}
	c.log.Named("audit").Info("refused", "decision", d.Decision, "op", d.Op, "object", d.Object, "right", d.Right,
		"user", d.User, "pid", d.Pid, "status", ntstatus.Status(d.Status).String(), "because", reason)
}

// link is the way to one attachment. Frames go straight to the socket; what it does not take is queued, and a goroutine
// sends it on. mu is a leaf.
type link struct {
	id   uint64
	pid  int
	conn *unixsock.Conn
	core *Core

	mu       sync.Mutex
	queue    []outgoing
	finished bool // close once the queue is empty
	closed   bool
}

type outgoing struct {
	frame []byte
	files []*os.File // owned
}

func (o outgoing) close() {
	for _, f := range o.files {
		f.Close()
	}
}

// send takes the frame; files stay the caller's. It reports false when the queue is full.
func (l *link) send(frame []byte, files []*os.File) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.finished {
		return true
	}
	if len(l.queue) == 0 {
		err := unixsock.WithFDs(files, func(fds []int) error { return l.conn.TrySend(frame, fds) })
		if err != unixsock.ErrWouldBlock {
			return true // sent, or the socket is dead, which its reader sees
		}
	}
	if len(l.queue) >= maxOutgoing {
		return false
	}
	o := outgoing{frame: frame}
	for _, f := range files {
		dup, err := unixsock.Dup(f)
		if err != nil {
			o.close()
			return false
		}
		o.files = append(o.files, dup)
	}
	l.queue = append(l.queue, o)
	if len(l.queue) == 1 {
		l.core.wg.Go(l.flush)
	}
	return true
}

func (l *link) flush() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 || l.closed {
			finished := l.finished
			l.mu.Unlock()
			if finished {
				l.close()
			}
			return
		}
		o := l.queue[0]
		l.mu.Unlock()
		err := unixsock.WithFDs(o.files, func(fds []int) error { return l.conn.Send(o.frame, fds) })
		o.close()
		l.mu.Lock()
		l.queue = l.queue[1:]
		if err != nil {
			for _, rest := range l.queue {
				rest.close()
			}
			l.queue = nil
		}
		l.mu.Unlock()
	}
}

// finish closes once everything queued has been sent.
func (l *link) finish() {
	l.mu.Lock()
	l.finished = true
	empty := len(l.queue) == 0
	l.mu.Unlock()
	if empty {
		l.close()
	}
}

func (l *link) close() {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if !closed {
		l.conn.Shutdown()
		l.conn.Close()
	}
}

// fileTable holds the descriptors that the machine speaks of.
type fileTable struct {
	mu   sync.Mutex
	last atomic.Uint64
	by   map[FD]*os.File
}

func (t *fileTable) add(f *os.File) FD {
	fd := FD(t.last.Add(1))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[FD]*os.File{}
	}
	t.by[fd] = f
	return fd
}

func (t *fileTable) get(fd FD) *os.File { t.mu.Lock(); defer t.mu.Unlock(); return t.by[fd] }

func (t *fileTable) take(fd FD) *os.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.by[fd]
	delete(t.by, fd)
	return f
}

func (t *fileTable) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.by {
		f.Close()
	}
	t.by = nil
}

// slabTable holds what the core and the servers of ports share: the slabs of counters, which the server writes, and the pages
// of generations, which the core writes.
type slabTable struct {
	mu sync.Mutex
	by map[uint64]portMemory
}

type portMemory struct {
	slab        *channel.Slab
	generations *channel.Generations
}

// put takes the slab of a port in, makes its page of generations, and returns the server's file of that.
func (t *slabTable) put(port uint64, memory *os.File, lines int) (*os.File, error) {
	slab, err := channel.MapSlab(memory, lines, false)
	if err != nil {
		return nil, err
	}
	generations, page, err := channel.CreateGenerations(lines)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[uint64]portMemory{}
	}
	t.by[port] = portMemory{slab, generations}
	return page, nil
}

func (t *slabTable) drop(port uint64) { t.mu.Lock(); defer t.mu.Unlock(); delete(t.by, port) }

func (t *slabTable) raise(r Raise) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.by[r.Port]; m.generations != nil {
		m.generations.Raise(int(r.Line), r.To)
	}
}

// read is what the server wrote: zeroes where it made the memory unreadable.
func (t *slabTable) read(port uint64, line uint32) Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.by[port]; m.slab != nil {
		n, _ := m.slab.Read(int(line))
		return Counters(n)
	}
	return Counters{}
}
