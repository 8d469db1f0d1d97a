package winlogon

// state is where a logon is. NT's winlogon has "locked" besides, which a terminal has not.
type state uint8

const (
	noUser         state = iota // nobody is logged on; a name and a password are asked for
	authenticating              // the authority decides about them
	loggedOn                    // the shell runs
	loggedOff                   // the shell has ended; the logon session is being ended
	over                        // winlogon leaves, and the session with it
	states

	impossible // in the table: the state can't have that event
)

// event is what ends a state.
type event uint8

const (
	entered    event = iota // a name and a password were given
	left                    // Ctrl-D instead of a name, or the terminal hung up
	accepted                // the authority made a logon session
	rejected                // it did not; there may be another try
	tooOften                // it did not, too often in a row
	shellEnded              // or could not be started
	done                    // the logon session has ended
	again                   // likewise, and another user may log on here
	stopped                 // winlogon was asked to stop
	events
)

// next is the whole life of a logon.
func next(s state, e event) state {
	const x = impossible
	table := [states][events]state{
		//               entered         left  accepted  rejected tooOften shellEnded done  again   stopped
		noUser:         {authenticating, over, x, x, x, x, x, x, over},
		authenticating: {x, over, loggedOn, noUser, over, x, x, x, over},
		loggedOn:       {x, x, x, x, x, loggedOff, x, x, loggedOff},
		loggedOff:      {x, x, x, x, x, x, over, noUser, over},
		over:           {over, over, over, over, over, over, over, over, over},
	}
	return table[s][e]
}
