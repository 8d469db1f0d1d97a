package security

import (
	"cmp"
	"strings"
	"unicode"
)

// Truth is what a condition comes to (MS-DTYP 2.4.4.17.7): three-valued, as an attribute may be unknown.
type Truth uint8

// The values.
const (
	Unknown Truth = iota
	False
	True
)

// String is the value in lower case.
func (t Truth) String() string { return [...]string{"unknown", "false", "true"}[t] }

func truth(b bool) Truth {
	if b {
		return True
	}
	return False
}

func (t Truth) not() Truth { return [...]Truth{Unknown: Unknown, False: True, True: False}[t] }

// and and or are the tables of MS-DTYP 2.4.4.17.7.
func (t Truth) and(o Truth) Truth {
	switch {
	case t == False || o == False:
		return False
	case t == True && o == True:
		return True
	}
	return Unknown
}

func (t Truth) or(o Truth) Truth { return t.not().and(o.not()).not() }

// Evaluate is the condition's value for token and an object with these resource attributes. With deny, SIDs and claims that are for
// denying only count. A condition that is not valid is unknown.
func (c Condition) Evaluate(token *Token, resource []Claim, deny bool) Truth {
	tree, ok := c.nodes()
	if !ok || token == nil {
		return Unknown
	}
	e := evaluation{token: token, resource: resource, deny: deny}
	results := make([]Truth, len(tree))
	for i := range tree {
		n := &tree[i]
		op := operator(n.code)
		switch {
		case n.isAttribute():
			results[i] = e.operand(n.conditionToken).truth()
		case op == nil:
		case op.takes == ofResult:
			results[i] = results[n.left].not()
		case n.code == tokenAnd:
			results[i] = results[n.left].and(results[n.right])
		case n.code == tokenOr:
			results[i] = results[n.left].or(results[n.right])
		case op.takes == ofAttribute:
			results[i] = truth(len(e.operand(tree[n.left].conditionToken).values) > 0)
			if n.code == tokenNotExists {
				results[i] = results[i].not()
			}
		case op.takes == ofSIDs:
			results[i] = e.member(n.code, e.operand(tree[n.left].conditionToken))
		default:
			results[i] = compare(n.code, e.operand(tree[n.left].conditionToken), e.operand(tree[n.right].conditionToken))
		}
	}
	return results[len(results)-1]
}

// evaluation is for whom a condition is evaluated.
type evaluation struct {
	token    *Token
	resource []Claim
	deny     bool
}

// kind is what values can be compared with each other.
type kind uint8

const (
	kindNumber kind = iota + 1
	kindString
	kindOctets
	kindSID
)

// value is one value, comparable where the kinds are the same. Numbers of all types are sign and magnitude, so that 64 bits with and
// without a sign compare as numbers.
type value struct {
	kind     kind
	negative bool
	number   uint64
	text     string
	sid      SID
}

// operand is an attribute or a literal as values. An attribute that is not there has none.
type operand struct {
	values        []value
	list          bool // a literal {…}
	attribute     bool
	caseSensitive bool
}

func (e *evaluation) operand(t conditionToken) operand {
	if t.isAttribute() {
		return e.attribute(t)
	}
	if t.code != tokenComposite {
		return operand{values: []value{literalValue(t)}}
	}
	o := operand{list: true}
	for rest := t.body; rest != ""; {
		var element conditionToken
		element, rest, _ = nextToken(rest)
		o.values = append(o.values, literalValue(element))
	}
	return o
}

func literalValue(t conditionToken) value {
	switch t.code {
	case tokenString:
		return value{kind: kindString, text: narrow(t.body)}
	case tokenOctets:
		return value{kind: kindOctets, text: t.body}
	case tokenSID:
		sid, _ := sidOf(t.body)
		return value{kind: kindSID, sid: sid}
	}
	// A literal without a sign is never negative: 0xffffffffffffffff is a number of 64 bits.
	return number(le64(t.body), t.body[8] == signMinus)
}

func number(v uint64, signed bool) value {
	if signed && v >= 1<<63 {
		return value{kind: kindNumber, negative: true, number: -v}
	}
	return value{kind: kindNumber, number: v}
}

func (e *evaluation) attribute(t conditionToken) operand {
	claims := e.resource
	switch t.code {
	case tokenLocal:
		claims = e.token.LocalClaims
	case tokenUser:
		claims = e.token.UserClaims
	case tokenDevice:
		claims = e.token.DeviceClaims
	}
	o := operand{attribute: true}
	c := findClaim(claims, narrow(t.body), e.deny)
	if c == nil {
		return o
	}
	o.caseSensitive = c.Flags&ClaimCaseSensitive != 0
	for i := range c.Values {
		v := &c.Values[i]
		switch c.Type {
		case ClaimString:
			o.values = append(o.values, value{kind: kindString, text: v.Text})
		case ClaimOctets:
			o.values = append(o.values, value{kind: kindOctets, text: v.Text})
		case ClaimSID:
			o.values = append(o.values, value{kind: kindSID, sid: v.SID})
		case ClaimInt64, ClaimUint64, ClaimBoolean:
			o.values = append(o.values, number(v.Number, c.Type == ClaimInt64))
		}
	}
	return o
}

// truth is an attribute as a condition of its own (MS-DTYP 2.4.4.17.7): a number that is not 0, a text that is not empty.
func (o operand) truth() Truth {
	if len(o.values) == 1 {
		switch v := o.values[0]; v.kind {
		case kindNumber:
			return truth(v.number != 0)
		case kindString:
			return truth(v.text != "")
		}
	}
	return Unknown
}

// member is MS-DTYP 2.4.4.17.6, unary: all of the SIDs, or any, are in the token or among its device's groups.
func (e *evaluation) member(code byte, sids operand) Truth {
	if len(sids.values) == 0 {
		return Unknown
	}
	matches := func(s *SID) bool { return e.token.match(s, e.deny) }
	switch code {
	case tokenDeviceMemberOf, tokenDeviceMemberOfAny, tokenNotDeviceMemberOf, tokenNotDeviceMemberAny:
		matches = func(s *SID) bool { return matchGroups(e.token.DeviceGroups, s, e.deny) }
	}
	found := 0
	for i := range sids.values {
		if matches(&sids.values[i].sid) {
			found++
		}
	}
	switch code {
	case tokenMemberOf, tokenDeviceMemberOf:
		return truth(found == len(sids.values))
	case tokenNotMemberOf, tokenNotDeviceMemberOf:
		return truth(found != len(sids.values))
	case tokenMemberOfAny, tokenDeviceMemberOfAny:
		return truth(found > 0)
	}
	return truth(found == 0)
}

// compare is MS-DTYP 2.4.4.17.6, binary. What is not there, and what is not of one kind, makes the result unknown.
func compare(code byte, left, right operand) Truth {
	if len(left.values) == 0 || len(right.values) == 0 {
		return Unknown
	}
	fold := !left.caseSensitive && !right.caseSensitive
	switch code {
	case tokenEqual, tokenNotEqual, tokenContains, tokenNotContains, tokenAnyOf, tokenNotAnyOf:
		return compareSets(code, left, right, fold)
	}
	l, r := left.values[0].folded(fold), right.values[0].folded(fold)
	if len(left.values) != 1 || len(right.values) != 1 || right.list || l.kind != r.kind || l.kind == kindSID {
		return Unknown
	}
	order := l.compare(r)
	switch code {
	case tokenLess:
		return truth(order < 0)
	case tokenLessOrEqual:
		return truth(order <= 0)
	case tokenGreater:
		return truth(order > 0)
	}
	return truth(order >= 0)
}

// compareSets compares without order. A claim that says a value twice is not well-formed (MS-DTYP 2.4.10.1): the result is unknown.
func compareSets(code byte, left, right operand, fold bool) Truth {
	l, ok := left.set(fold)
	r, whole := right.set(fold)
	if !ok || !whole {
		return Unknown
	}
	shared, related := 0, false
	for v := range r {
		if l[v] {
			shared++
		}
		// All values of a claim are of one kind.
		sameKind := v.kind == left.values[0].kind
		if related = related || sameKind; !sameKind && (code == tokenEqual || code == tokenNotEqual) {
			return Unknown
		}
	}
	if !related {
		return Unknown
	}
	switch code {
	case tokenEqual:
		return truth(shared == len(l) && shared == len(r))
	case tokenNotEqual:
		return truth(shared != len(l) || shared != len(r))
	case tokenContains:
		return truth(shared == len(r))
	case tokenNotContains:
		return truth(shared != len(r))
	case tokenAnyOf:
		return truth(shared > 0)
	}
	return truth(shared == 0)
}

// set is the values without order; false where an attribute has one twice.
func (o operand) set(fold bool) (map[value]bool, bool) {
	set := make(map[value]bool, len(o.values))
	for _, v := range o.values {
		set[v.folded(fold)] = true
	}
	return set, !o.attribute || len(set) == len(o.values)
}

// folded is v as it is compared without case.
func (v value) folded(fold bool) value {
	if fold && v.kind == kindString {
		v.text = strings.Map(unicode.ToUpper, v.text)
	}
	return v
}

func (v value) compare(o value) int {
	if v.kind != kindNumber {
		return strings.Compare(v.text, o.text)
	}
	switch {
	case v.negative && !o.negative:
		return -1
	case o.negative && !v.negative:
		return 1
	case v.negative:
		return cmp.Compare(o.number, v.number)
	}
	return cmp.Compare(v.number, o.number)
}
