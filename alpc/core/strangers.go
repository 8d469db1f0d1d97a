package core

import (
	"slices"
	"sync"

	"sallyport/internal/unixsock"
)

// maxStrangers bounds the sockets that have not said hello. When there are more, one of the process that has most of them goes,
// of the user that has most: whoever connects and says nothing makes room by it, and an honest newcomer is not shut out.
const maxStrangers = 256

// strangers are the sockets that have not said hello, oldest first. mu is a leaf.
type strangers struct {
	mu   sync.Mutex
	here []*stranger
}

type stranger struct {
	conn *unixsock.Conn
	who  unixsock.Ucred // when it connected: good enough for being fair
}

// enter takes a socket in, and shuts another one down if there are too many.
func (s *strangers) enter(conn *unixsock.Conn) *stranger {
	who, _ := conn.PeerCred() // unknown ones count together
	n := &stranger{conn: conn, who: who}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here = append(s.here, n); len(s.here) > maxStrangers {
		goes := s.heaviest()
		s.remove(goes)
		goes.conn.Shutdown() // its reader sees it, and closes
	}
	return n
}

func (s *strangers) leave(n *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(n)
}

func (s *strangers) remove(n *stranger) {
	if i := slices.Index(s.here, n); i >= 0 {
		s.here = slices.Delete(s.here, i, i+1)
	}
}

// heaviest is the oldest socket of the heaviest process of the heaviest user.
func (s *strangers) heaviest() *stranger {
	users, processes := map[uint32]int{}, map[int]int{}
	for _, n := range s.here {
		users[n.who.UID]++
		processes[n.who.PID]++
	}
	return slices.MaxFunc(s.here, func(a, b *stranger) int {
		if d := users[a.who.UID] - users[b.who.UID]; d != 0 {
			return d
		}
		return processes[a.who.PID] - processes[b.who.PID]
	})
}
