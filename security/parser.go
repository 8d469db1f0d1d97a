package security

import (
	"fmt"
	"strconv"
	"strings"

	"sallyport/ntstatus"
)

// SyntaxError is where a text stopped being what it should be. It is the cause (errors.As) of every error of a parser.
type SyntaxError struct {
	Pos  int    // byte offset, 0 to the length of the text
	Want string // what was expected there
	Got  string // the beginning of what stands there; empty at the end of the text
}

// Error says where, what was expected and what was found.
func (e *SyntaxError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("at byte %d: expected %s, found the end", e.Pos, e.Want)
	}
	return fmt.Sprintf("at byte %d: expected %s, found %q", e.Pos, e.Want, e.Got)
}

// parser reads a text from left to right. The first failure sticks; after it every method returns at once with a zero value, so
// that a caller checks err where a loop could run on and once at the end.
type parser struct {
	text   string
	pos    int
	domain SID // of relative aliases; zero: there is none
	err    *SyntaxError
	status ntstatus.Status
}

func (p *parser) fail(status ntstatus.Status, want string) { p.failAt(p.pos, status, want) }

func (p *parser) failAt(pos int, status ntstatus.Status, want string) {
	if p.err != nil {
		return
	}
	const shown = 16
	rest := p.text[pos:]
	p.err, p.status = &SyntaxError{Pos: pos, Want: want, Got: rest[:min(len(rest), shown)]}, status
}

// wrap is the failure as the error that leaves the package.
func (p *parser) wrap(op string) error {
	return &ntstatus.Error{Op: op, Status: p.status, Err: p.err}
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.err != nil || p.pos >= len(p.text) {
		return 0
	}
	return p.text[p.pos]
}

// accept takes c if it is next.
func (p *parser) accept(c byte) bool {
	if p.peek() != c || c == 0 {
		return false
	}
	p.pos++
	return true
}

func (p *parser) expect(c byte, status ntstatus.Status, want string) {
	if !p.accept(c) {
		p.fail(status, want)
	}
}

// space skips blanks: Windows takes them around the parts of a descriptor and the fields of an entry.
func (p *parser) space() {
	for c := p.peek(); c == ' ' || c == '\t' || c == '\r' || c == '\n'; c = p.peek() {
		p.pos++
	}
}

// pair takes two letters.
func (p *parser) pair() (string, bool) {
	if p.err != nil || len(p.text)-p.pos < 2 || !isLetter(p.text[p.pos]) || !isLetter(p.text[p.pos+1]) {
		return "", false
	}
	p.pos += 2
	return strings.ToUpper(p.text[p.pos-2 : p.pos]), true
}

// number takes a decimal or 0x number of at most limit; octal allows the C reading of a leading zero. In a SID there is none.
func (p *parser) number(limit uint64, octal bool, status ntstatus.Status, want string) uint64 {
	start, base := p.pos, 10
	if c := p.peek(); c == '0' && len(p.text)-p.pos > 1 {
		switch next := p.text[p.pos+1]; {
		case next == 'x' || next == 'X':
			base, p.pos = 16, p.pos+2
		case octal && isDigit(next, 10):
			base, p.pos = 8, p.pos+1
		}
	}
	digits := p.pos
	for c := p.peek(); isDigit(c, base); c = p.peek() {
		p.pos++
	}
	// ParseUint refuses what does not fit, in time linear in the digits.
	v, err := strconv.ParseUint(p.text[digits:p.pos], base, 64)
	if err != nil || v > limit {
		p.failAt(start, status, want)
		return 0
	}
	return v
}

// sid takes a SID in either form (MS-DTYP 2.5.1.1, sid-string).
func (p *parser) sid() SID {
	const want = "a SID (S-1-… or a two-letter alias)"
	start := p.pos
	if c := p.peek(); (c == 'S' || c == 's') && strings.HasPrefix(p.text[p.pos+1:], "-") {
		return p.longSID()
	}
	name, ok := p.pair()
	if !ok {
		p.fail(ntstatus.InvalidSID, want)
		return SID{}
	}
	a := findAlias(name[0], name[1])
	if a == nil {
		p.failAt(start, ntstatus.InvalidSID, want)
		return SID{}
	}
	sid := a.in(p.domain)
	if sid.IsZero() {
		p.failAt(start, ntstatus.InvalidSID, "a SID that does not need a domain")
	}
	return sid
}

// longSID takes S-1-authority-sub-…, with at least one sub-authority.
func (p *parser) longSID() SID {
	p.pos += len("S-")
	if p.number(1, false, ntstatus.InvalidSID, "revision 1 of a SID") != 1 {
		p.fail(ntstatus.InvalidSID, "revision 1 of a SID")
	}
	p.expect('-', ntstatus.InvalidSID, "- and the authority of a SID")
	sid := makeSID(p.number(maxAuthority, false, ntstatus.InvalidSID, "an authority of 48 bits"))
	for p.err == nil && p.accept('-') {
		if sid.count == MaxSubAuthorities {
			p.fail(ntstatus.InvalidSID, "at most 15 sub-authorities")
		}
		sid = sid.WithRID(uint32(p.number(1<<32-1, false, ntstatus.InvalidSID, "a sub-authority of 32 bits")))
	}
	if p.err == nil && sid.count == 0 {
		p.fail(ntstatus.InvalidSID, "- and a sub-authority")
	}
	return sid
}

func isLetter(c byte) bool { return 'A' <= upper(c) && upper(c) <= 'Z' }

func isDigit(c byte, base int) bool {
	switch {
	case '0' <= c && c <= '9':
		return int(c-'0') < base
	case 'A' <= upper(c) && upper(c) <= 'F':
		return base == 16
	}
	return false
}
