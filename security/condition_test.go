package security_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sallyport/ntstatus"
	"sallyport/security"
)

func TestConditionsAreReadAndWritten(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`(a)`, ``},
		{`( ( a ) )`, `(a)`},
		{`(@user.a&&@DEVICE.b||@Resource.c)`, `(((@USER.a) && (@DEVICE.b)) || (@RESOURCE.c))`},
		{`(a || b && c)`, `((a) || ((b) && (c)))`},
		{`(a && (b || c) && d)`, `(((a) && ((b) || (c))) && (d))`},
		{`(!(a))`, ``},
		{`(! ( a ) && !(!(b)))`, `((!(a)) && (!(!(b))))`},
		{`(a == 1 && b != -2 || c < +3)`, `(((a == 1) && (b != -2)) || (c < +3))`},
		{`(a <= 0x1F || a>=017||a>00)`, `(((a <= 0x1f) || (a >= 017)) || (a > 00))`},
		{`(a == -0)`, ``},
		{`(a == 18446744073709551615)`, ``},
		{`(a == -9223372036854775808)`, ``},
		{`(a == @User.b)`, `(a == @USER.b)`},
		{`(a=="x y")`, `(a == "x y")`},
		{`(a == "%0022%00e9%0025é")`, `(a == "%0022é%0025é")`},
		{`(a == "100% %zz%1")`, `(a == "100%0025 %0025zz%00251")`},
		{`(a == "😀")`, `(a == "%d83d%de00")`},
		{`(a == #)`, ``},
		{`(a == #1#2)`, `(a == #0102)`},
		{`(a == {})`, ``},
		{`(a == { 1 , "b",#02, SID( BA ) })`, `(a == {1, "b", #02, SID(BA)})`},
		{`(a contains{1})`, `(a Contains {1})`},
		{`(a NOT_CONTAINS 1)`, `(a Not_Contains 1)`},
		{`(a any_OF 1)`, `(a Any_of 1)`},
		{`(a Not_Any_of 1)`, ``},
		{`(exists a)`, `(Exists a)`},
		{`(Not_Exists @User.a)`, `(Not_Exists @USER.a)`},
		{`(Member_of SID(BA))`, ``},
		{`(member_of( SID(BA) ))`, `(Member_of SID(BA))`},
		{`(Member_of_Any{SID(BA),SID(S-1-5-18)})`, `(Member_of_any {SID(BA), SID(SY)})`},
		{`(Device_Member_of {SID(BA)})`, ``},
		{`(Device_Member_of_any {SID(BA)})`, ``},
		{`(Not_Member_of {SID(BA)})`, ``},
		{`(Not_Member_of_any {SID(BA)})`, ``},
		{`(Not_Device_Member_of {SID(BA)})`, ``},
		{`(Not_Device_Member_of_any {SID(BA)})`, ``},
		{`(@User.a-b[c]{d};%d1d6)`, `(@USER.a-b[c]{d};%d1d6)`},
		{`(@User.é)`, `(@USER.%00e9)`},
		{`(a:b/c.d_e)`, ``},
		{`(%0045xists)`, ``},
		{`(7a < -06244777767)`, ``},
	} {
		got, err := security.ParseCondition(c.in)
		require.NoError(t, err, c.in)
		want := c.want
		if want == "" {
			want = c.in
		}
		require.Equal(t, want, got.String(), c.in)
		require.True(t, got.Valid())
		require.Zero(t, len(got)%4)
		again, err := security.ParseCondition(want)
		require.NoError(t, err, want)
		require.Equal(t, got, again, c.in)
	}
}

func TestBadConditionSaysWhere(t *testing.T) {
	deep := strings.Repeat("(", 300)
	for _, c := range []struct {
		in  string
		pos int
	}{
		{``, 0}, {`a`, 0}, {`()`, 1}, {`(a`, 2}, {`(a))`, 3}, {`(a b)`, 3}, {`(a & b)`, 3}, {`(a && )`, 6}, {`(!a)`, 2}, {`(!!(a))`, 2},
		{`(a == )`, 6}, {`(a == b)`, 6}, {`(1 ==)`, 5}, {`(a == 1`, 7}, {`(a == 1x)`, 6}, {`(a == 0x)`, 6}, {`(a == 09)`, 6}, {`(a == 18446744073709551616)`, 6},
		{`(a == -9223372036854775809)`, 7}, {`(a == "b)`, 9}, {`(%12)`, 1}, {`(%zzzz)`, 1}, {"(a == \"\xff\")", 7}, {"(\xff)", 1},
		{`(a == {1)`, 8}, {`(a == {1,})`, 9}, {`(a == {1 2})`, 9}, {`(a == {{1}})`, 7}, {`(a == SID(ZZ))`, 10}, {`(a == SID BA)`, 10}, {`(a == SID(BA)`, 13},
		{`(Member_of 1)`, 11}, {`(Member_of {1})`, 12}, {`(Member_of (SID(BA))`, 20}, {`(Member_of {SID(BA), "x"})`, 21}, {`(Exists)`, 7}, {`(Exists 1 1)`, 10},
		{`(@User.)`, 7}, {`(a Member_of {SID(BA)})`, 3}, {`(a == @Foo.b)`, 6}, {deep + "a" + strings.Repeat(")", 300), 257},
		{`(` + strings.Repeat(`abcd && `, 1<<13) + `a)`, 37446},
	} {
		_, err := security.ParseCondition(c.in)
		require.ErrorIs(t, errors.Join(err), err)
		require.Error(t, err, c.in)
		var syntax *security.SyntaxError
		require.ErrorAs(t, err, &syntax)
		require.Equal(t, c.pos, syntax.Pos, "%.60s: %v", c.in, err)
	}
}

// MS-DTYP 2.4.4.17.9 has an example of its own; these are small enough to be checked by eye.
func TestConditionsHaveTheBinaryFormOfMSDTYP(t *testing.T) {
	for text, want := range map[string]string{
		`(a)`:                 "61727478 f802000000 6100",
		`(@User.a == 1)`:      "61727478 f902000000 6100 04 0100000000000000 03 02 80",
		`(a == -0x2)`:         "61727478 f802000000 6100 04 feffffffffffffff 02 03 80",
		`(!(exists a))`:       "61727478 f802000000 6100 87 a2",
		`(a == {"b", #0c})`:   "61727478 f802000000 6100 50 0d000000 10 02000000 6200 18 01000000 0c 80",
		`(a && b || c)`:       "61727478 f802000000 6100 f802000000 6200 a0 f802000000 6300 a1",
		`(Member_of SID(WD))`: "61727478 51 0c000000 010100000000000100000000 89",
	} {
		got, err := security.ParseCondition(text)
		require.NoError(t, err)
		binary, err := hex.DecodeString(strings.ReplaceAll(want, " ", ""))
		require.NoError(t, err)
		for len(binary)%4 != 0 { // the padding is checked by the length alone
			binary = append(binary, 0)
		}
		require.Equal(t, hex.EncodeToString(binary), hex.EncodeToString([]byte(got)), text)
	}
}

func TestDamagedConditionsAreNotValid(t *testing.T) {
	const a = "\xf8\x02\x00\x00\x00a\x00"
	const one = "\x04\x01\x00\x00\x00\x00\x00\x00\x00\x03\x02"
	const list = "\x50\x0b\x00\x00\x00" + one
	const sid = "\x51\x0c\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"
	for name, c := range map[string]string{
		"nothing":                   "",
		"another magic":             "arty" + a,
		"no operand":                "artx",
		"two operands":              "artx" + a + a,
		"a literal":                 "artx" + one,
		"a list":                    "artx" + list,
		"an operator alone":         "artx\x87",
		"half the operands":         "artx" + a + "\x80",
		"an unknown token":          "artx" + a + "\xee",
		"an odd name":               "artx\xf8\x01\x00\x00\x00a",
		"a cut number":              "artx" + a + one[:9] + "\x80",
		"a cut length":              "artx" + a + "\x10\x01",
		"a long length":             "artx\xf8\xff\xff\xff\xffa\x00",
		"more than padding":         "artx" + a + "\x00\x00\x00\x00",
		"a token behind padding":    "artx" + a + "\x00" + a,
		"a literal on the left":     "artx" + one + a + "\x80",
		"an operator on the right":  "artx" + a + a + "\x87\x80",
		"a literal joined":          "artx" + a + one + "\xa0",
		"a literal joined on left":  "artx" + one + a + "\xa0",
		"a negated literal":         "artx" + one + "\xa2",
		"a literal that exists":     "artx" + one + "\x87",
		"a member of a number":      "artx" + one + "\x89",
		"a member of an attribute":  "artx" + a + "\x89",
		"a list in a list":          "artx" + a + "\x50\x10\x00\x00\x00" + list + "\x80",
		"a cut element":             "artx" + a + "\x50\x0a\x00\x00\x00" + one[:10] + "\x80",
		"an attribute in a list":    "artx" + a + "\x50\x07\x00\x00\x00" + a + "\x80",
		"a number among SIDs":       "artx\x50\x1c\x00\x00\x00" + sid + one + "\x89",
		"a SID with more behind it": "artx" + a + "\x51\x0d\x00\x00\x00" + sid[5:] + "\x00\x80",
		"no SID":                    "artx\x51\x02\x00\x00\x00\x01\x01\x89",
		"too deep":                  "artx" + strings.Repeat(a, 1025) + strings.Repeat("\xa0", 1024),
	} {
		require.False(t, security.Condition(c).Valid(), name)
		require.Empty(t, security.Condition(c).String(), name)
		require.Equal(t, security.Unknown, security.Condition(c).Evaluate(&security.Token{}, nil, false), name)
		ace := security.ACE{Type: security.AccessAllowedCallback, SID: security.Everyone(), Data: c}
		require.True(t, strings.HasPrefix(ace.String(), "(0x9;;;;;;#"), name)
	}
	local := security.Condition("artx" + a + a + "\x80")
	require.True(t, local.Valid())
	require.Empty(t, local.String(), "SDDL has no words for it")
	require.Equal(t, `(a == 1)`, security.Condition("artx"+a+"\x01"+one[1:]+"\x80").String(), "a number of 8 bits")
	require.Equal(t, `(a == 1)`, security.Condition("artx"+a+"\x04\x01\x00\x00\x00\x00\x00\x00\x00\x02\x02\x80").String(), "a sign that the value has not")
}

func TestConditionsHaveThreeValues(t *testing.T) {
	token := aliceToken(t)
	token.UserClaims = []security.Claim{
		security.IntClaim("level", 5), security.IntClaim("debt", -5), security.IntClaim("none"), security.IntClaim("zero", 0),
		security.StringClaim("title", "PM"), security.StringClaim("empty", ""), security.StringClaim("projects", "red", "Blue"),
		security.StringClaim("twice", "red", "red"), security.SIDClaim("boss", sid(t, staff)),
		{Name: "big", Type: security.ClaimUint64, Values: []security.ClaimValue{{Number: 1<<64 - 1}}},
		{Name: "flag", Type: security.ClaimBoolean, Values: []security.ClaimValue{{Number: 1}}},
		{Name: "key", Type: security.ClaimOctets, Values: []security.ClaimValue{{Text: "\x01\x02"}}},
		{Name: "exact", Type: security.ClaimString, Flags: security.ClaimCaseSensitive, Values: []security.ClaimValue{{Text: "Abc"}}},
		{Name: "off", Type: security.ClaimInt64, Flags: security.ClaimDisabled, Values: []security.ClaimValue{{Number: 1}}},
		{Name: "denying", Type: security.ClaimInt64, Flags: security.ClaimUseForDenyOnly, Values: []security.ClaimValue{{Number: 1}}},
		{Name: "odd", Type: 77, Values: []security.ClaimValue{{Number: 1}}},
	}
	token.DeviceClaims = []security.Claim{security.StringClaim("title", "laptop")}
	token.LocalClaims = []security.Claim{security.IntClaim("local", 1)}
	token.DeviceGroups = []security.Group{{SID: security.Users(), Attributes: security.GroupDefault}}
	resource := []security.Claim{security.StringClaim("projects", "BLUE")}
	for text, want := range map[string]security.Truth{
		`(@User.level == 5)`: security.True, `(@User.LEVEL == 05)`: security.True, `(@User.level != 5)`: security.False, `(@User.level == 6)`: security.False,
		`(@User.level < 6)`: security.True, `(@User.level <= 5)`: security.True, `(@User.level > 5)`: security.False, `(@User.level >= 5)`: security.True,
		`(@User.level > -6)`: security.True, `(@User.debt < 0)`: security.True, `(@User.debt > -4)`: security.False, `(@User.debt >= -5)`: security.True,
		`(@User.debt < @User.level)`: security.True, `(@User.level > @User.debt)`: security.True, `(@User.big == 0xffffffffffffffff)`: security.True, `(@User.big > -1)`: security.True,
		`(@User.level == "5")`: security.Unknown, `(@User.level != "5")`: security.Unknown, `(@User.level < "6")`: security.Unknown,
		`(@User.none == 1)`: security.Unknown, `(@User.missing == 1)`: security.Unknown, `(@User.missing != 1)`: security.Unknown, `(@User.level == @User.missing)`: security.Unknown,
		`(@User.level)`: security.True, `(@User.zero)`: security.False, `(@User.title)`: security.True, `(@User.empty)`: security.False, `(@User.missing)`: security.Unknown,
		`(@User.projects)`: security.Unknown, `(@User.key)`: security.Unknown, `(@User.flag)`: security.True, `(@User.flag == 1)`: security.True, `(local)`: security.True,
		`(Exists @User.level)`: security.True, `(Exists @User.none)`: security.False, `(Not_Exists @User.missing)`: security.True, `(Exists @User.off)`: security.False,
		`(Exists @User.denying)`: security.False, `(Exists @User.odd)`: security.False, `(Exists @Resource.projects)`: security.True,
		`(@User.title == "pm")`: security.True, `(@User.title < "PN")`: security.True, `(@User.exact == "abc")`: security.False, `(@User.exact == "Abc")`: security.True,
		`(@Device.title == "laptop")`: security.True, `(@User.key == #0102)`: security.True, `(@User.key < #0103)`: security.True,
		`(@User.boss == SID(S-1-5-21-7-7-7-2001))`: security.True, `(@User.boss < SID(BA))`: security.Unknown,
		`(@User.projects == {"blue", "red"})`: security.True, `(@User.projects == {"blue", "red", "RED"})`: security.True, `(@User.projects == "red")`: security.False,
		`(@User.projects != "red")`: security.True, `(@User.projects == {"blue", 1})`: security.Unknown, `(@User.projects < {"z"})`: security.Unknown, `(@User.projects < "z")`: security.Unknown,
		`(@User.twice == {"red"})`: security.Unknown, `(@User.twice != {"red"})`: security.Unknown, `(@User.level == {})`: security.Unknown, `(@User.level == {5})`: security.True,
		`(@User.projects Contains "red")`: security.True, `(@User.projects Contains {"red", "green"})`: security.False, `(@User.projects Not_Contains "green")`: security.True,
		`(@User.projects Contains 1)`: security.Unknown, `(@User.projects Contains @Resource.projects)`: security.True,
		`(@User.projects Any_of {"green", "red", 1})`: security.True, `(@User.projects Not_Any_of {"green"})`: security.True, `(@User.projects Any_of {"green"})`: security.False,
		`(Member_of {SID(S-1-5-21-7-7-7-2001)})`: security.True, `(Member_of {SID(S-1-5-21-7-7-7-2001), SID(S-1-5-21-7-7-7-2002)})`: security.False,
		`(Member_of_any {SID(S-1-5-21-7-7-7-2001), SID(BA)})`: security.True, `(Not_Member_of {SID(BA)})`: security.True, `(Not_Member_of_any {SID(BA)})`: security.True,
		`(Member_of {})`: security.Unknown, `(Device_Member_of {SID(BU)})`: security.True, `(Device_Member_of_any {SID(BU), SID(BA)})`: security.True,
		`(Not_Device_Member_of {SID(BU)})`: security.False, `(Not_Device_Member_of_any {SID(BA)})`: security.True,
		`(!(@User.missing))`: security.Unknown, `(!(@User.zero))`: security.True,
		`(@User.level && @User.title)`: security.True, `(@User.level && @User.missing)`: security.Unknown, `(@User.zero && @User.missing)`: security.False,
		`(@User.level || @User.missing)`: security.True, `(@User.zero || @User.missing)`: security.Unknown, `(@User.zero || @User.zero)`: security.False,
	} {
		c, err := security.ParseCondition(text)
		require.NoError(t, err, text)
		require.Equal(t, want, c.Evaluate(token, resource, false), text)
		require.Equal(t, security.Unknown, c.Evaluate(nil, resource, false))
	}
	for text, want := range map[string]security.Truth{
		`(Member_of {SID(S-1-5-21-7-7-7-2002)})`: security.True, `(Exists @User.denying)`: security.True,
	} {
		c, err := security.ParseCondition(text)
		require.NoError(t, err)
		require.Equal(t, want, c.Evaluate(token, nil, true), "for denying: %s", text)
	}
	require.Equal(t, []string{"unknown", "false", "true"}, []string{security.Unknown.String(), security.False.String(), security.True.String()})
}

func TestResourceAttributes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`("a",TI,0x0,1,-2,+3,0x10)`, `("a",TI,0x0,1,-2,3,16)`},
		{`( "a" , ti , 0 , 1 )`, `("a",TI,0x0,1)`},
		{`("a",TI,0x0)`, ``},
		{`("a",TU,0xe,18446744073709551615)`, ``},
		{`("é%0022",TS,0x2,"b","%d83d%de00%d800c")`, `("é%0022",TS,0x2,"b","%d83d%de00%d800c")`},
		{`("a",TD,0x0,BA,SID(SY))`, `("a",TD,0x0,SID(BA),SID(SY))`},
		{`("a",TB,0x0,0,1)`, ``},
		{`("a",TX,0x0,00ff,#1)`, `("a",TX,0x0,00ff,01)`},
		{`("",TS,0x0,"")`, ``},
	} {
		sd, err := security.ParseSDDL("S:(RA;;;;;WD;" + c.in + ")")
		require.NoError(t, err, c.in)
		want := c.want
		if want == "" {
			want = c.in
		}
		require.Equal(t, "S:(RA;;;;;WD;"+want+")", sd.String())
		claim, ok := sd.SACL.ACEs[0].Attribute()
		require.True(t, ok)
		again, err := security.NewResourceAttribute(claim)
		require.NoError(t, err)
		require.Equal(t, sd.SACL.ACEs[0], again)
	}
	for in, pos := range map[string]int{
		``: 13, `(`: 14, `(a`: 14, `("a"`: 17, `("a",`: 18, `("a",TZ,0)`: 18, `("a",TI`: 20, `("a",TI,x)`: 21, `("a",TI,0 1)`: 23, `("a",TI,0,)`: 23, `("a",TI,0,9223372036854775808)`: 23,
		`("a",TU,0,-1)`: 23, `("a",TB,0,2)`: 23, `("a",TX,0,z)`: 23, `("a",TS,0,b)`: 23, `("a%0000",TS,0)`: 14, `("a",TD,0,ZZ)`: 23, `("a",TI,0,1`: 24,
		`("a",TI,0` + strings.Repeat(`,0`, 1<<14) + `)`: 26236,
	} {
		_, err := security.ParseSDDL("S:(RA;;;;;WD;" + in)
		var syntax *security.SyntaxError
		require.ErrorAs(t, err, &syntax, in)
		require.Equal(t, pos, syntax.Pos, "%.40s: %v", in, err)
	}
	_, err := security.NewResourceAttribute(security.Claim{Name: "a"})
	require.ErrorIs(t, err, ntstatus.InvalidParameter)
	_, ok := (&security.ACE{}).Attribute()
	require.False(t, ok)
	whole, err := security.NewResourceAttribute(security.SIDClaim("a", security.Everyone()))
	require.NoError(t, err)
	for i := range whole.Data {
		for _, change := range []byte{1, 0x10, 0x80} {
			ace := whole
			ace.Data = whole.Data[:i]
			_, ok := ace.Attribute()
			require.False(t, ok, "cut to %d", i)
			data := []byte(whole.Data)
			data[i] ^= change
			ace.Data = string(data)
			ace.Attribute()
			_ = ace.String()
		}
	}
	ace := security.ACE{Type: security.ResourceAttribute, SID: security.Everyone(), Data: "x"}
	require.Equal(t, "(0x12;;;;;;#78)", ace.String())
	// Many values that all lie in the same place are more than the bytes that carry them.
	claim := security.StringClaim("n", strings.Repeat("long", 100))
	for range 99 {
		claim.Values = append(claim.Values, security.ClaimValue{Text: "x"})
	}
	ace, err = security.NewResourceAttribute(claim)
	require.NoError(t, err)
	data := []byte(ace.Data)
	for i := range 100 {
		copy(data[16+4*i:20+4*i], data[16:20])
	}
	ace.Data = string(data)
	_, ok = ace.Attribute()
	require.False(t, ok)
}

// What is as long as it may be takes time and memory in proportion.
func TestTheLongestAreRead(t *testing.T) {
	values := "1" + strings.Repeat(",1", 5000)
	long := `(@User.a Any_of {` + values + `})`
	wide := `(a` + strings.Repeat(` || a`, 7000) + `)`
	deep := strings.Repeat(`(a || `, 250) + `a` + strings.Repeat(`)`, 250)
	token := aliceToken(t)
	token.UserClaims = []security.Claim{security.IntClaim("a")}
	for i := range int64(5000) {
		token.UserClaims[0].Values = append(token.UserClaims[0].Values, security.ClaimValue{Number: uint64(i)})
	}
	for text, want := range map[string]security.Truth{long: security.True, wide: security.Unknown, deep: security.Unknown} {
		start := time.Now()
		c, err := security.ParseCondition(text)
		require.NoError(t, err)
		require.Equal(t, want, c.Evaluate(token, nil, false))
		require.NotEmpty(t, c.String())
		require.Less(t, time.Since(start), 2*time.Second)
		for i := 0; i < len(text); i += 997 {
			_, err := security.ParseCondition(text[:i])
			require.Error(t, err)
		}
	}
}

func FuzzParseCondition(f *testing.F) {
	for _, s := range []string{
		`(a)`, `(@User.a == 1 && !(Member_of {SID(BA)}) || Exists @Resource.b)`, `(a == {1, "b%0022", #0f, SID(SY)})`, `((((a))))`, `(a == -0x7)`,
		`(Not_Device_Member_of_any SID(BU))`, `(@Device.x-y Any_of @User.z)`, `(%0045xists)`, `(a == "😀")`,
	} {
		f.Add(s)
	}
	token := aliceToken(f)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := security.ParseCondition(s)
		if err != nil {
			var syntax *security.SyntaxError
			if !errors.As(err, &syntax) || syntax.Pos < 0 || syntax.Pos > len(s) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		text := c.String()
		again, err := security.ParseCondition(text)
		if err != nil || again != c || again.String() != text {
			t.Fatalf("%q is %s, which is read as %v, %v", s, text, again, err)
		}
		c.Evaluate(token, nil, true)
	})
}

// FuzzCondition takes the binary form.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{`(a)`, `(@User.a == 1 && !(Member_of {SID(BA)}))`, `(a == {1, "b", #0f})`, `(a < -017)`} {
		c, err := security.ParseCondition(s)
		require.NoError(f, err)
		f.Add([]byte(c))
	}
	token := aliceToken(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := security.Condition(data)
		truth := c.Evaluate(token, nil, false)
		if !c.Valid() {
			if truth != security.Unknown || c.String() != "" {
				t.Fatalf("%x is not valid, and %v, %s", data, truth, c)
			}
			return
		}
		if c.String() == "" {
			return
		}
		again, err := security.ParseCondition(c.String())
		if err != nil || again.String() != c.String() {
			if len(c.String()) < 1<<16 { // the text has a closer limit on its depth and length
				depth, most := 0, 0
				for _, r := range c.String() {
					switch r {
					case '(':
						depth++
					case ')':
						depth--
					}
					most = max(most, depth)
				}
				if most < 250 {
					t.Fatalf("%x is %s, which is read as %v, %v", data, c, again, err)
				}
			}
		} else if again.Evaluate(token, nil, false) != truth {
			t.Fatalf("%x is %s, which is not the same", data, c)
		}
	})
}
