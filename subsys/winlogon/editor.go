package winlogon

import "unicode/utf8"

// verdict is what a key made of a line.
type verdict uint8

const (
	more        verdict = iota
	finished            // Enter
	interrupted         // Ctrl-C: begin again
	ended               // Ctrl-D on an empty line
)

// sequence is where in a terminal's escape sequence the keys are; a cursor key sends one. Sequences are ignored.
type sequence uint8

const (
	plain      sequence = iota
	escaped             // after ESC
	introduced          // after ESC [ or ESC O
)

// editor gathers one line from keys that arrive one by one, unechoed, and says what to show. The zero value with a limit is
// ready. The typist is a stranger: a line never exceeds the limit, and what is typed beyond it spoils the line, lest a cut password
// is taken for a whole one.
type editor struct {
	limit   int  // bytes
	echo    bool // show what is typed
	line    []byte
	spoiled bool // it was longer than the limit

	sequence sequence
}

// The keys that edit, as the line discipline has them.
const (
	keyCtrlC     = 'C' - '@'
	keyCtrlD     = 'D' - '@'
	keyCtrlH     = 'H' - '@'
	keyCtrlU     = 'U' - '@'
	keyCtrlW     = 'W' - '@'
	keyEscape    = 0x1b
	keyBackspace = 0x7f
)

// key takes one byte, and returns what to show for it.
func (e *editor) key(b byte) (show string, v verdict) {
	switch e.sequence {
	case escaped:
		e.sequence = plain
		if b == '[' || b == 'O' {
			e.sequence = introduced
			return "", more
		}
	case introduced:
		if b >= 0x40 && b <= 0x7e { // the final byte of a control sequence (ECMA-48)
			e.sequence = plain
		}
		if b >= ' ' {
			return "", more
		}
		e.sequence = plain // a control character breaks it off
	}
	switch b {
	case '\r', '\n':
		return "\n", finished
	case keyCtrlC:
		return "\n", interrupted
	case keyCtrlD:
		if len(e.line) == 0 && !e.spoiled {
			return "\n", ended
		}
		return "", more
	case keyBackspace, keyCtrlH:
		return e.erase(1), more
	case keyCtrlU:
		e.spoiled = false
		return e.erase(len(e.line)), more
	case keyCtrlW:
		n := len(e.line)
		for n > 0 && e.line[n-1] == ' ' {
			n--
		}
		for n > 0 && e.line[n-1] != ' ' {
			n--
		}
		return e.erase(utf8.RuneCount(e.line[n:])), more
	case keyEscape:
		e.sequence = escaped
		return "", more
	}
	if b < ' ' {
		return "", more
	}
	if len(e.line) >= e.limit {
		e.spoiled = true
		return "\a", more
	}
	if e.line == nil {
		e.line = make([]byte, 0, e.limit) // never moves: a password leaves no copy behind
	}
	e.line = append(e.line, b)
	if !e.echo {
		return "", more
	}
	return string([]byte{b}), more // not string(b), which would be a rune
}

// erase takes the last n runes away.
func (e *editor) erase(n int) (show string) {
	for ; n > 0 && len(e.line) > 0; n-- {
		_, size := utf8.DecodeLastRune(e.line)
		cut := len(e.line) - size
		clear(e.line[cut:])
		e.line = e.line[:cut]
		if e.echo {
			show += "\b \b"
		}
	}
	return show
}

// wipe forgets the line.
func (e *editor) wipe() {
	clear(e.line[:cap(e.line)])
	e.line, e.spoiled = e.line[:0], false
}
