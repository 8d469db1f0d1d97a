package winlogon

// What the tests of the pure parts see.

type (
	State = state
	Event = event
)

const (
	NoUser, Authenticating, LoggedOn, LoggedOff, Over, States, Impossible = noUser, authenticating, loggedOn, loggedOff, over, states, impossible
	Entered, Left, Accepted, Stopped, Events                              = entered, left, accepted, stopped, events
)

// Next is next.
func Next(s State, e Event) State { return next(s, e) }

// Verdict is verdict.
type Verdict = verdict

const (
	More, Finished, Interrupted, Ended = more, finished, interrupted, ended
)

// Line is an editor fed with keys: what it shows, the line and the last verdict.
func Line(limit int, echo bool, keys []byte) (shown, line string, spoiled bool, v Verdict) {
	e := &editor{limit: limit, echo: echo}
	for _, k := range keys {
		var show string
		show, v = e.key(k)
		shown += show
		if v != more {
			break
		}
	}
	return shown, string(e.line), e.spoiled, v
}

// Explain is explain.
func Explain(err error) string { return explain(err) }
