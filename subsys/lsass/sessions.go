package lsass

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"sallyport/alpc"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/principal"
)

// sessions is the table of logon sessions. It is not kept anywhere: a session is the core's tokens that carry its logon SID,
// so it lives exactly as long as they do, whatever happens to lsass. Beside that there are facts that no token tells; they are
// lost with the process.
type sessions struct {
	system *alpc.System

	mu    sync.Mutex
	known map[security.LUID]facts
	last  uint64 // note's counter
}

type facts struct {
	time      int64 // unix nanoseconds
	origin    string
	logonType lsapb.LogonType
	noted     uint64 // when, by sessions.last
}

// session is one row of the table.
type session struct {
	facts
	id      security.LUID
	user    security.SID
	by      security.LUID // the logon session that asked for it
	session uint32
	source  string
	tokens  uint32
}

// list reads the table from the core, oldest first, and forgets the facts of sessions that are over.
func (s *sessions) list(ctx context.Context) ([]*session, error) {
	s.mu.Lock()
	before := s.last
	s.mu.Unlock()
	tokens, err := s.system.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	rows := map[security.LUID]*session{}
	for _, t := range tokens {
		id := t.Token.AuthenticationID
		if t.Ended || !slices.ContainsFunc(t.Token.Groups, func(g security.Group) bool { return g.SID == security.LogonSID(id) }) {
			continue // logged off, so that what is left of it is dead, or not made by a logon
		}
		row := rows[id]
		if row == nil {
			row = &session{
				id: id, user: t.Token.User.SID, by: t.Token.OriginID, session: t.Token.SessionID, source: t.Token.Source.Name,
				facts: facts{logonType: principal.TypeOf(t.Token)},
			}
			rows[id] = row
		}
		row.tokens++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, f := range s.known {
		if rows[id] == nil && f.noted <= before { // it had its token before the list was read
			delete(s.known, id)
		}
	}
	var out []*session
	for id, row := range rows {
		if f, ok := s.known[id]; ok {
			row.facts = f
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b *session) int { return cmp.Compare(a.id, b.id) })
	return out, nil
}

// find looks a session up by its logon SID.
func (s *sessions) find(ctx context.Context, logonSID string) (*session, bool, error) {
	sid, err := security.ParseSID(logonSID)
	if err != nil {
		return nil, false, nil
	}
	id, ok := principal.LogonID(sid)
	if !ok {
		return nil, false, nil
	}
	all, err := s.list(ctx)
	for _, row := range all {
		if row.id == id {
			return row, true, nil
		}
	}
	return nil, false, err
}

// note remembers what no token tells, once the session has its token. It reports whether there is so much of it that list
// should be called to forget some.
func (s *sessions) note(id security.LUID, f facts) (crowded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[security.LUID]facts{}
	}
	s.last++
	f.noted = s.last
	s.known[id] = f
	return s.last%sweepEvery == 0
}

// sweepEvery bounds what is known of sessions that are over.
const sweepEvery = 256
