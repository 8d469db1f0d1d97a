package security

import (
	"encoding/binary"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"sallyport/ntstatus"
)

// Condition is the expression of a conditional entry in its binary form (MS-DTYP 2.4.4.17.4): "artx", then operands and operators
// with the operators last, filled up with zeros to whole words. ParseCondition makes one, and so does an entry's data.
type Condition string

const (
	conditionMagic = "artx"

	// maxConditionDepth bounds parentheses in the text and operands that wait for their operator in the binary form.
	maxConditionDepth = 1024
)

// Tokens of MS-DTYP 2.4.4.17.5 (literals), 2.4.4.17.6 (relational operators), 2.4.4.17.7 (logical operators) and
// 2.4.4.17.8 (attributes).
const (
	tokenPadding   = 0x00
	tokenInt8      = 0x01
	tokenInt64     = 0x04
	tokenString    = 0x10
	tokenOctets    = 0x18
	tokenComposite = 0x50
	tokenSID       = 0x51

	tokenEqual              = 0x80
	tokenNotEqual           = 0x81
	tokenLess               = 0x82
	tokenLessOrEqual        = 0x83
	tokenGreater            = 0x84
	tokenGreaterOrEqual     = 0x85
	tokenContains           = 0x86
	tokenExists             = 0x87
	tokenAnyOf              = 0x88
	tokenMemberOf           = 0x89
	tokenDeviceMemberOf     = 0x8a
	tokenMemberOfAny        = 0x8b
	tokenDeviceMemberOfAny  = 0x8c
	tokenNotExists          = 0x8d
	tokenNotContains        = 0x8e
	tokenNotAnyOf           = 0x8f
	tokenNotMemberOf        = 0x90
	tokenNotDeviceMemberOf  = 0x91
	tokenNotMemberOfAny     = 0x92
	tokenNotDeviceMemberAny = 0x93

	tokenAnd = 0xa0
	tokenOr  = 0xa1
	tokenNot = 0xa2

	tokenLocal    = 0xf8
	tokenUser     = 0xf9
	tokenResource = 0xfa
	tokenDevice   = 0xfb
)

// arity is what an operator takes.
type arity uint8

const (
	ofSIDs      arity = iota + 1 // SIDs behind it
	ofAttribute                  // an attribute behind it
	ofTwo                        // an attribute before it, an attribute or a literal behind it
	ofResult                     // a condition behind it
	ofResults                    // two conditions around it
)

type conditionWord struct {
	word  string
	token byte
	takes arity
}

// conditionWords are the operators as Windows writes them; read, they are taken in either case. A word that begins with another
// stands before it.
var conditionWords = [...]conditionWord{
	{"==", tokenEqual, ofTwo}, {"!=", tokenNotEqual, ofTwo}, {"<=", tokenLessOrEqual, ofTwo}, {"<", tokenLess, ofTwo},
	{">=", tokenGreaterOrEqual, ofTwo}, {">", tokenGreater, ofTwo},
	{"Contains", tokenContains, ofTwo}, {"Not_Contains", tokenNotContains, ofTwo},
	{"Any_of", tokenAnyOf, ofTwo}, {"Not_Any_of", tokenNotAnyOf, ofTwo},
	{"Exists", tokenExists, ofAttribute}, {"Not_Exists", tokenNotExists, ofAttribute},
	{"Member_of_any", tokenMemberOfAny, ofSIDs}, {"Member_of", tokenMemberOf, ofSIDs},
	{"Device_Member_of_any", tokenDeviceMemberOfAny, ofSIDs}, {"Device_Member_of", tokenDeviceMemberOf, ofSIDs},
	{"Not_Member_of_any", tokenNotMemberOfAny, ofSIDs}, {"Not_Member_of", tokenNotMemberOf, ofSIDs},
	{"Not_Device_Member_of_any", tokenNotDeviceMemberAny, ofSIDs}, {"Not_Device_Member_of", tokenNotDeviceMemberOf, ofSIDs},
	{"&&", tokenAnd, ofResults}, {"||", tokenOr, ofResults}, {"!", tokenNot, ofResult},
}

func operator(token byte) *conditionWord {
	for i := range conditionWords {
		if conditionWords[i].token == token {
			return &conditionWords[i]
		}
	}
	return nil
}

type attributeWord struct {
	word  string
	token byte
}

var attributeWords = [...]attributeWord{{"@USER.", tokenUser}, {"@DEVICE.", tokenDevice}, {"@RESOURCE.", tokenResource}}

// Bytes of an integer literal: its value is followed by its sign and its base, which only the text needs.
const (
	signPlus, signMinus, signNone             = 0x01, 0x02, 0x03
	baseOctal, baseDecimal, baseHex           = 0x01, 0x02, 0x03
	integerSize                               = 10
	literalHeader                             = 5 // token and length
	integer8, integer16, integer32, integer64 = 1, 2, 3, 4
)

// conditionToken is one token; body is what follows its code and, where it has one, its length.
type conditionToken struct {
	code byte
	body string
}

// next takes the first token of s; ok is false where it is not whole or unknown.
func nextToken(s string) (t conditionToken, rest string, ok bool) {
	t.code = s[0]
	switch {
	case integer8 <= t.code && t.code <= integer64:
		if len(s) < 1+integerSize {
			return t, "", false
		}
		t.body = s[1 : 1+integerSize]
		return t, s[1+integerSize:], true
	case t.code == tokenString, t.code == tokenOctets, t.code == tokenComposite, t.code == tokenSID, t.code >= tokenLocal && t.code <= tokenDevice:
		if len(s) < literalHeader || uint64(len(s)-literalHeader) < uint64(le32(s[1:])) {
			return t, "", false
		}
		n := literalHeader + int(le32(s[1:]))
		t.body = s[literalHeader:n]
		wide := t.code == tokenString || t.isAttribute()
		return t, s[n:], (!wide || len(t.body)%2 == 0) && (!t.isAttribute() || t.body != "")
	}
	return t, s[1:], operator(t.code) != nil
}

func (t *conditionToken) isAttribute() bool { return t.code >= tokenLocal }

func (t *conditionToken) isLiteral() bool { return t.code <= tokenSID }

// conditionNode is an operand or an operator with its operands, as indices of nodes that stand before it; -1 is none.
type conditionNode struct {
	conditionToken
	left, right int
}

// nodes is the condition as a tree in the order of its binary form, the root last; ok is false where it is not whole, leaves
// operands over, or gives an operator what it does not take.
func (c Condition) nodes() (tree []conditionNode, ok bool) {
	rest, ok := strings.CutPrefix(string(c), conditionMagic)
	var stack []int
	for ok && rest != "" {
		if rest[0] == tokenPadding {
			ok = strings.Trim(rest, "\x00") == "" && len(rest) < 4
			break
		}
		n := conditionNode{left: -1, right: -1}
		if n.conditionToken, rest, ok = nextToken(rest); !ok {
			break
		}
		if op := operator(n.code); op != nil {
			if op.takes == ofTwo || op.takes == ofResults {
				if len(stack) < 2 {
					return nil, false
				}
				n.right, stack = stack[len(stack)-1], stack[:len(stack)-1]
			}
			if len(stack) < 1 {
				return nil, false
			}
			n.left, stack = stack[len(stack)-1], stack[:len(stack)-1]
			ok = op.fits(tree, n)
		}
		if len(stack) == maxConditionDepth {
			return nil, false
		}
		stack = append(stack, len(tree))
		tree = append(tree, n)
	}
	if !ok || len(stack) != 1 || tree[stack[0]].isLiteral() {
		return nil, false
	}
	return tree, true
}

// fits reports whether the operands are of the kinds that the operator takes.
func (w *conditionWord) fits(tree []conditionNode, n conditionNode) bool {
	left := &tree[n.left]
	switch w.takes {
	case ofSIDs:
		return literalOf(left.conditionToken, true)
	case ofAttribute:
		return left.isAttribute()
	case ofTwo:
		right := &tree[n.right]
		return left.isAttribute() && (right.isAttribute() || literalOf(right.conditionToken, false))
	case ofResults:
		return !left.isLiteral() && !tree[n.right].isLiteral()
	}
	return !left.isLiteral()
}

// literalOf reports whether t is a well-formed literal; with sids, one SID or a list of nothing else. Lists don't nest.
func literalOf(t conditionToken, sids bool) bool {
	if t.code == tokenComposite {
		for rest := t.body; rest != ""; {
			e, after, ok := nextToken(rest)
			if !ok || e.code == tokenComposite || !literalOf(e, sids) {
				return false
			}
			rest = after
		}
		return true
	}
	if t.code == tokenSID {
		sid, ok := sidOf(t.body)
		return ok && sid.binarySize() == len(t.body)
	}
	return t.isLiteral() && !sids
}

// Valid reports whether the condition is one that can be evaluated.
func (c Condition) Valid() bool {
	_, ok := c.nodes()
	return ok
}

// String is the text as Windows writes it, with parentheses around the whole and around what && || and ! join; it is empty where
// the condition is not valid, or compares with an attribute without a prefix, for which SDDL has no words.
func (c Condition) String() string {
	b, ok := c.append(nil, SID{})
	if !ok {
		return ""
	}
	return string(b)
}

func (c Condition) append(b []byte, domain SID) ([]byte, bool) {
	tree, ok := c.nodes()
	if !ok {
		return b, false
	}
	// What is left to write, last first: a node, or a text where text is not empty.
	type piece struct {
		node int
		text string
	}
	todo := []piece{{text: ")"}, {node: len(tree) - 1}, {text: "("}}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if p.text != "" {
			b = append(b, p.text...)
			continue
		}
		n := &tree[p.node]
		op := operator(n.code)
		switch {
		case op == nil:
			b = n.append(b, domain)
		case op.takes == ofTwo:
			if tree[n.right].code == tokenLocal {
				return b, false
			}
			b = append(tree[n.left].append(b, domain), ' ')
			b = append(append(b, op.word...), ' ')
			b = tree[n.right].append(b, domain)
		case op.takes == ofResults:
			todo = append(todo, piece{text: ")"}, piece{node: n.right}, piece{text: " " + op.word + " ("}, piece{text: ")"}, piece{node: n.left}, piece{text: "("})
		case op.takes == ofResult:
			todo = append(todo, piece{text: ")"}, piece{node: n.left}, piece{text: op.word + "("})
		default:
			b = tree[n.left].append(append(append(b, op.word...), ' '), domain)
		}
	}
	return b, true
}

// append writes an operand.
func (t *conditionToken) append(b []byte, domain SID) []byte {
	switch t.code {
	case tokenString:
		b = appendQuoted(append(b, '"'), t.body)
		return append(b, '"')
	case tokenOctets:
		return appendOctets(append(b, '#'), t.body)
	case tokenSID:
		sid, _ := sidOf(t.body)
		return append(appendSID(append(b, "SID("...), sid, domain), ')')
	case tokenComposite:
		b = append(b, '{')
		for i, rest := 0, t.body; rest != ""; i++ {
			var e conditionToken
			e, rest, _ = nextToken(rest)
			if i > 0 {
				b = append(b, ", "...)
			}
			b = e.append(b, domain)
		}
		return append(b, '}')
	case tokenLocal:
		return appendName(b, t.body, false)
	}
	for _, w := range attributeWords {
		if w.token == t.code {
			return appendName(append(b, w.word...), t.body, true)
		}
	}
	return t.appendInteger(b)
}

func (t *conditionToken) appendInteger(b []byte) []byte {
	v, sign, base := le64(t.body), t.body[8], t.body[9]
	switch {
	case sign == signMinus && (v == 0 || v >= 1<<63):
		b, v = append(b, '-'), -v
	case sign == signPlus:
		b = append(b, '+')
	}
	switch base {
	case baseOctal:
		return strconv.AppendUint(append(b, '0'), v, 8)
	case baseHex:
		return strconv.AppendUint(append(b, "0x"...), v, 16)
	}
	return strconv.AppendUint(b, v, 10)
}

func appendOctets(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	for i := range len(s) {
		b = append(b, digits[s[i]>>4], digits[s[i]&15])
	}
	return b
}

// appendQuoted writes UTF-16 text; what would end the text, or has no place in one, is written as %xxxx.
func appendQuoted(b []byte, wide string) []byte {
	for ; wide != ""; wide = wide[2:] {
		switch u := uint16(wide[0]) | uint16(wide[1])<<8; {
		case u < ' ' || u == '"' || u == '%' || u == 0x7f || utf16.IsSurrogate(rune(u)) || u == utf8.RuneError:
			b = appendEscape(b, u)
		default:
			b = utf8.AppendRune(b, rune(u))
		}
	}
	return b
}

func appendEscape(b []byte, u uint16) []byte {
	return appendOctets(append(b, '%'), string([]byte{byte(u >> 8), byte(u)}))
}

// appendName writes an attribute's name. A simple name that would be read as an operator, or as a number, does not begin as one.
func appendName(b []byte, wide string, prefixed bool) []byte {
	start := len(b)
	for s := wide; s != ""; s = s[2:] {
		if u := uint16(s[0]) | uint16(s[1])<<8; u < 0x80 && isNameByte(byte(u), prefixed) {
			b = append(b, byte(u))
		} else {
			b = appendEscape(b, u)
		}
	}
	if !prefixed && len(b) > start {
		if w, _ := wordAt(string(b[start:])); w != nil {
			first := uint16(b[start])
			tail := string(b[start+1:])
			b = append(appendEscape(b[:start], first), tail...)
		}
	}
	return b
}

// isNameByte is MS-DTYP 2.5.1.1, attr-char1 and, behind a prefix, attr-char2.
func isNameByte(c byte, prefixed bool) bool {
	return isLetter(c) || isDigit(c, 10) || strings.IndexByte(":./_", c) >= 0 || prefixed && strings.IndexByte("#$'*+-;?@[\\]^`{}~", c) >= 0
}

// wordAt is the operator in letters that s begins with, and its length.
func wordAt(s string) (*conditionWord, int) {
	n := 0
	for n < len(s) && (isNameByte(s[n], false) || s[n] == '%') {
		n++
	}
	for i := range conditionWords {
		if w := &conditionWords[i]; isLetter(w.word[0]) && strings.EqualFold(w.word, s[:n]) {
			return w, n
		}
	}
	return nil, 0
}

// ParseCondition reads the text of a condition with the parentheses around it, (@User.Title == "PM" && Member_of {SID(BA)}), as MS-DTYP
// 2.5.1.1 has it (conditional-ace, cond-expr). && binds more than ||; ! needs parentheses behind it. Failures are InvalidACL with
// a SyntaxError.
func ParseCondition(s string) (Condition, error) {
	p := parser{text: s}
	p.space()
	c := p.condition()
	p.space()
	if p.err == nil && p.pos < len(s) {
		p.fail(ntstatus.InvalidACL, "the end of the condition")
	}
	if p.err != nil {
		return "", p.wrap("security.ParseCondition")
	}
	return c, nil
}

// condition takes an expression with its parentheses. Operators wait on a stack until one that binds less comes: no recursion.
func (p *parser) condition() Condition {
	const paren = '('
	out := []byte(conditionMagic)
	var stack []byte
	depth := 0
	open := func() {
		p.expect('(', ntstatus.InvalidACL, "( of a condition")
		if depth++; depth > maxConditionDepth/4 {
			p.fail(ntstatus.InvalidACL, "less deeply nested parentheses")
		}
		stack = append(stack, paren)
	}
	pop := func() byte {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		return top
	}
	top := func(token byte) bool { return len(stack) > 0 && stack[len(stack)-1] == token }
	open()
	for p.err == nil && depth > 0 {
		// An operand.
		p.space()
		switch {
		case p.peek() == '(':
			open()
			continue
		case p.accept('!'):
			p.space()
			stack = append(stack, tokenNot)
			open()
			continue
		}
		out = p.term(out)
		// What may follow it.
		for p.err == nil {
			if len(out) > maxACLSize {
				p.fail(ntstatus.InvalidACL, "a condition of less than 64 KiB")
			}
			p.space()
			if p.accept(')') {
				for !top(paren) {
					out = append(out, pop())
				}
				pop()
				depth--
				for top(tokenNot) {
					out = append(out, pop())
				}
				if depth > 0 {
					continue
				}
				break
			}
			rest := p.rest()
			if !strings.HasPrefix(rest, "&&") && !strings.HasPrefix(rest, "||") {
				p.fail(ntstatus.InvalidACL, "&&, || or ) in a condition")
				break
			}
			p.pos += 2
			for top(tokenAnd) || rest[0] == '|' && top(tokenOr) {
				out = append(out, pop())
			}
			if rest[0] == '&' {
				stack = append(stack, tokenAnd)
			} else {
				stack = append(stack, tokenOr)
			}
			break
		}
	}
	for len(out)%4 != 0 {
		out = append(out, tokenPadding)
	}
	return Condition(out)
}

// rest is the text that is left; empty after a failure.
func (p *parser) rest() string {
	if p.err != nil {
		return ""
	}
	return p.text[p.pos:]
}

// term takes a test of SIDs or of attributes.
func (p *parser) term(out []byte) []byte {
	if w, n := wordAt(p.rest()); w != nil && w.takes != ofTwo {
		p.pos += n
		p.space()
		if w.takes == ofAttribute {
			return append(p.attribute(out, true), w.token)
		}
		paren := p.accept('(')
		p.space()
		out = p.literal(out, true)
		if paren {
			p.space()
			p.expect(')', ntstatus.InvalidACL, ") after the SIDs")
		}
		return append(out, w.token)
	}
	out = p.attribute(out, true)
	p.space()
	w, n := wordAt(p.rest())
	if w == nil {
		for i := range conditionWords {
			if o := &conditionWords[i]; o.takes == ofTwo && strings.HasPrefix(p.rest(), o.word) {
				w, n = o, len(o.word)
				break
			}
		}
	}
	if w == nil {
		return out
	}
	if w.takes != ofTwo {
		p.fail(ntstatus.InvalidACL, "an operator between an attribute and a value")
	}
	p.pos += n
	p.space()
	if p.peek() == '@' {
		out = p.attribute(out, false)
	} else {
		out = p.literal(out, false)
	}
	return append(out, w.token)
}

// attribute takes a name with its prefix, or without one where simple allows it.
func (p *parser) attribute(out []byte, simple bool) []byte {
	const want = "an attribute (name, @User.name, @Device.name or @Resource.name)"
	code := byte(tokenLocal)
	for _, w := range attributeWords {
		if hasWord(p.rest(), w.word) {
			code = w.token
			p.pos += len(w.word)
		}
	}
	if code == tokenLocal && !simple {
		p.fail(ntstatus.InvalidACL, want)
	}
	start := p.pos
	out, at := appendHeader(out, code)
	for p.err == nil && p.pos < len(p.text) {
		switch c := p.text[p.pos]; {
		case c == '%':
			out = p.escape(out)
		case c < utf8.RuneSelf && !isNameByte(c, code != tokenLocal):
			return p.closeName(out, at, start, want)
		default:
			out = p.wide(out)
		}
	}
	return p.closeName(out, at, start, want)
}

func (p *parser) closeName(out []byte, at, start int, want string) []byte {
	if p.pos == start {
		p.fail(ntstatus.InvalidACL, want)
	}
	return closeHeader(out, at)
}

// appendHeader writes a token whose length is not known yet; closeHeader fills it in.
func appendHeader(out []byte, code byte) ([]byte, int) {
	out = append(out, code, 0, 0, 0, 0)
	return out, len(out)
}

func closeHeader(out []byte, at int) []byte {
	binary.LittleEndian.PutUint32(out[at-4:], uint32(len(out)-at))
	return out
}

// wide takes one character as UTF-16.
func (p *parser) wide(out []byte) []byte {
	r, n := utf8.DecodeRuneInString(p.text[p.pos:])
	if r == utf8.RuneError && n == 1 {
		p.fail(ntstatus.InvalidACL, "text in UTF-8")
		return out
	}
	p.pos += n
	for _, u := range utf16.AppendRune(nil, r) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// escape takes %xxxx.
func (p *parser) escape(out []byte) []byte {
	if !p.escaped() {
		p.fail(ntstatus.InvalidACL, "% and four hexadecimal digits")
		return out
	}
	v, _ := strconv.ParseUint(p.text[p.pos+1:p.pos+5], 16, 16)
	p.pos += 5
	return binary.LittleEndian.AppendUint16(out, uint16(v))
}

// escaped reports whether %xxxx is next.
func (p *parser) escaped() bool {
	rest := p.rest()
	if len(rest) < 5 || rest[0] != '%' {
		return false
	}
	for i := range 4 {
		if !isDigit(rest[1+i], 16) {
			return false
		}
	}
	return true
}

// literal takes a value or a list of values; with sids, of SIDs.
func (p *parser) literal(out []byte, sids bool) []byte {
	if !p.accept('{') {
		return p.value(out, sids)
	}
	out, at := appendHeader(out, tokenComposite)
	p.space()
	for p.err == nil && !p.accept('}') {
		out = p.value(out, sids)
		p.space()
		if p.accept(',') {
			p.space()
			if p.peek() == '}' {
				p.fail(ntstatus.InvalidACL, "one more value")
			}
		} else if p.peek() != '}' {
			p.fail(ntstatus.InvalidACL, ", or } after a value")
		}
	}
	return closeHeader(out, at)
}

func (p *parser) value(out []byte, sids bool) []byte {
	c := p.peek()
	switch {
	case hasWord(p.rest(), "SID"):
		out, at := appendHeader(out, tokenSID)
		sid := p.wrappedSID()
		return closeHeader(sid.appendBinary(out), at)
	case sids:
		p.fail(ntstatus.InvalidACL, "SID(…)")
	case c == '"':
		out, at := appendHeader(out, tokenString)
		return closeHeader(p.quoted(out), at)
	case c == '#':
		out, at := appendHeader(out, tokenOctets)
		return closeHeader(p.octets(out), at)
	case c == '+' || c == '-' || isDigit(c, 10):
		return p.integer(out)
	}
	p.fail(ntstatus.InvalidACL, `a value (a number, "text", #octets, SID(…) or a list {…})`)
	return out
}

// wrappedSID takes SID(…).
func (p *parser) wrappedSID() SID {
	p.pos += len("SID")
	p.space()
	p.expect('(', ntstatus.InvalidACL, "( and a SID")
	p.space()
	sid := p.sid()
	p.space()
	p.expect(')', ntstatus.InvalidACL, ") after a SID")
	return sid
}

// quoted takes "text" as UTF-16. A % without four hexadecimal digits behind it is itself.
func (p *parser) quoted(out []byte) []byte {
	p.pos++
	for p.err == nil && !p.accept('"') {
		switch {
		case p.pos == len(p.text):
			p.fail(ntstatus.InvalidACL, `" at the end of a text`)
		case p.escaped():
			out = p.escape(out)
		default:
			out = p.wide(out)
		}
	}
	return out
}

// octets takes #, which may be missing, and hexadecimal digits; a # among them is a zero, and an odd number of them begins with one.
func (p *parser) octets(out []byte) []byte {
	p.accept('#')
	start := p.pos
	for c := p.peek(); isDigit(c, 16) || c == '#'; c = p.peek() {
		p.pos++
	}
	digits := strings.ReplaceAll(p.text[start:p.pos], "#", "0")
	if len(digits)%2 != 0 {
		digits = "0" + digits
	}
	for ; digits != ""; digits = digits[2:] {
		v, _ := strconv.ParseUint(digits[:2], 16, 8)
		out = append(out, byte(v))
	}
	return out
}

// integer takes a number of 64 bits with its sign and base, which the binary form keeps.
func (p *parser) integer(out []byte) []byte {
	const want = "a number of 64 bits"
	start, sign, limit := p.pos, byte(signNone), uint64(1<<64-1)
	switch {
	case p.accept('+'):
		sign = signPlus
	case p.accept('-'):
		sign, limit = signMinus, 1<<63
	}
	digits, base := p.pos, byte(baseDecimal)
	v := p.number(limit, true, ntstatus.InvalidACL, want)
	if c := p.peek(); isLetter(c) || isDigit(c, 10) || c == '_' {
		p.failAt(start, ntstatus.InvalidACL, want)
	}
	if text := p.text[digits:p.pos]; hasWord(text, "0x") {
		base = baseHex
	} else if len(text) > 1 && text[0] == '0' {
		base = baseOctal
	}
	if sign == signMinus {
		v = -v
	}
	out = binary.LittleEndian.AppendUint64(append(out, tokenInt64), v)
	return append(out, sign, base)
}
