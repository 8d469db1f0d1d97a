package lsass

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/sam"
)

// audit writes what a security log wants to know, with NT's event numbers. No line has a password in it, nor a name that no
// account has: people type passwords where names belong.
type audit struct {
	log hclog.Logger

	logons, failures limiter // what strangers can cause as fast as they like
}

// record writes one line about what caller did.
func (a *audit) record(event, what string, caller *alpc.Client, more ...any) {
	a.log.Info(what, append([]any{"event", event, "by", caller.Token.User.SID, "pid", caller.PID}, more...)...)
}

func (a *audit) logon(caller *alpc.Client, user string, req *lsapb.LogonUserRequest, token *security.Token) {
	if dropped, ok := a.logons.take(time.Now()); ok {
		a.record("4624", "logged on", caller, "user", user, "type", req.LogonType, "origin", req.Origin, "logon_id", token.AuthenticationID,
			"session", token.SessionID, "not_logged", dropped)
	}
}

// failure writes a line about an attempt with a password, and always one when it locked the account.
func (a *audit) failure(event, what string, caller *alpc.Client, account sam.Account, err error, more ...any) {
	status := ntstatus.Of(err)
	name := account.Name
	if name == "" {
		name = "(unknown)"
	}
	if status == ntstatus.WrongPassword && account.LockedAt != 0 {
		a.record("4740", "account locked out", caller, "user", name)
	}
	if dropped, ok := a.failures.take(time.Now()); ok {
		a.record(event, what, caller, append([]any{"user", name, "status", status.String(), "not_logged", dropped}, more...)...)
	}
}

// limiter lets burst lines through at once and perSecond after that, and counts the others. The zero value is full.
type limiter struct {
	mu      sync.Mutex
	spent   float64
	last    time.Time
	dropped int
}

const burst, perSecond = 50, 5

// take reports whether a line may be written now, and how many were not since the last one that was.
func (l *limiter) take(now time.Time) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() {
		l.spent = max(0, l.spent-max(0, now.Sub(l.last).Seconds())*perSecond)
	}
	l.last = now
	if l.spent > burst-1 {
		l.dropped++
		return 0, false
	}
	l.spent++
	dropped, l.dropped = l.dropped, 0
	return dropped, true
}
