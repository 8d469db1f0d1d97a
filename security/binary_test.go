package security_test

import (
	"encoding/hex"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sallyport/ntstatus"
	"sallyport/security"
)

// The samples of the package: every type of entry, every part.
var samples = []string{
	"O:SYG:BAD:PAI(A;OICI;GA;;;SY)(D;IO;0x1f;;;S-1-22-1-0)S:ARAI(AU;SAFA;FA;;;WD)(ML;;NW;;;HI)",
	"D:NO_ACCESS_CONTROL", "D:", "S:", "O:WD", "",
	"D:(OA;CI;RPWP;bf967aba-0de6-11d0-a285-00aa003049e2;bf967a86-0de6-11d0-a285-00aa003049e2;BA)(OD;;CR;;bf967aba-0de6-11d0-a285-00aa003049e2;WD)(OA;;CC;;;SY)" +
		"S:(OU;SA;WP;bf967aba-0de6-11d0-a285-00aa003049e2;;WD)(OL;;CC;;;WD)(AL;;CC;;;WD)",
	`D:(XA;;FX;;;WD;(@User.Title == "PM" && Member_of {SID(BA)}))(XD;;FR;;;BU;(!(Exists a)))(ZA;;RP;bf967aba-0de6-11d0-a285-00aa003049e2;;AU;(a))` +
		`S:(XU;SA;FA;;;WD;(@Resource.colour Any_of {"red", "blue"}))(RA;;;;;WD;("colour",TS,0x0,"red"))(RA;;;;;WD;("n",TI,0x2,1,-2))` +
		`(SP;;;;;S-1-17-1)(TL;;FR;;;S-1-19-512-4096)(FL;TP;FR;;;WD;(a))`,
}

func marshal(t require.TestingT, sddl string) []byte {
	b, err := parse(t, sddl).MarshalBinary()
	require.NoError(t, err)
	return b
}

func TestDescriptorsTravelAsBytes(t *testing.T) {
	for _, s := range samples {
		want := parse(t, s)
		b := marshal(t, s)
		var got security.Descriptor
		require.NoError(t, got.UnmarshalBinary(b), s)
		require.True(t, want.Equal(&got), "%s\n%s", want, &got)
		require.Equal(t, want.String(), got.String())
		again, err := got.MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, b, again)
	}
}

// The layout of MS-DTYP 2.4.6, 2.4.5, 2.4.4 and 2.4.2.2, by hand.
func TestDescriptorHasTheLayoutOfMSDTYP(t *testing.T) {
	for sddl, want := range map[string]string{
		"":                    "01000080 00000000 00000000 00000000 00000000",
		"D:NO_ACCESS_CONTROL": "01000480 00000000 00000000 00000000 00000000",
		"O:SYG:BAD:P(A;OI;GA;;;WD)S:(AU;FA;RC;;;WD)": "01001490 4c000000 58000000 14000000 30000000" + // parts: SACL, DACL, owner, group
			"02001c0001000000 02801400 00000200 010100000000000100000000" +
			"02001c0001000000 00011400 00000010 010100000000000100000000" +
			"010100000000000512000000" + "01020000000000052000000020020000",
		"D:(OA;;CC;bf967aba-0de6-11d0-a285-00aa003049e2;;WD)": "01000480 00000000 00000000 00000000 14000000" +
			"0400300001000000 05002800 01000000 01000000 ba7a96bfe60dd011a28500aa003049e2 010100000000000100000000",
		`S:(RA;;;;;WD;("a",TI,0x2,1))`: "01001080 00000000 00000000 14000000 00000000" + "02003c0001000000 12003400 00000000 010100000000000100000000" +
			"14000000 0100 0000 02000000 01000000 18000000 61000000 0100000000000000",
	} {
		require.Equal(t, strings.ReplaceAll(want, " ", ""), hex.EncodeToString(marshal(t, sddl)), sddl)
	}
}

func TestDamagedDescriptorsAreRefused(t *testing.T) {
	whole := marshal(t, "O:SYG:BAD:(OA;;CC;bf967aba-0de6-11d0-a285-00aa003049e2;;WD)(A;;CC;;;WD)")
	const dacl, ace = 20, 28
	for name, c := range map[string]struct {
		pos   int
		bytes string
		want  ntstatus.Status
	}{
		"revision":                {0, "\x02", ntstatus.InvalidSecurityDescr},
		"absolute form":           {3, "\x00", ntstatus.InvalidSecurityDescr},
		"owner in the header":     {4, "\x04", ntstatus.InvalidSecurityDescr},
		"owner behind the end":    {4, "\xff\xff\xff\xff", ntstatus.InvalidSecurityDescr},
		"group behind the end":    {8, "\xff\xff\xff\xff", ntstatus.InvalidSecurityDescr},
		"owner is no SID":         {4, "\x15", ntstatus.InvalidSID},
		"list behind the end":     {16, "\xff\xff", ntstatus.InvalidSecurityDescr},
		"list at the end":         {16, string([]byte{byte(len(whole) - 4)}), ntstatus.InvalidACL},
		"revision of the list":    {dacl, "\x01", ntstatus.InvalidACL},
		"list too long":           {dacl + 2, "\xff\xff", ntstatus.InvalidACL},
		"list too short":          {dacl + 2, "\x04\x00", ntstatus.InvalidACL},
		"too many entries":        {dacl + 4, "\xff\xff", ntstatus.InvalidACL},
		"one entry too many":      {dacl + 4, "\x03", ntstatus.InvalidACL},
		"entry too short":         {ace + 2, "\x00", ntstatus.InvalidACL},
		"entry too long":          {ace + 2, "\xfc\xff", ntstatus.InvalidACL},
		"entry not of words":      {ace + 2, "\x2d", ntstatus.InvalidACL},
		"entry without a mask":    {ace + 2, "\x04", ntstatus.InvalidACL},
		"entry without flags":     {ace + 2, "\x08", ntstatus.InvalidACL},
		"entry without its GUID":  {ace + 2, "\x10", ntstatus.InvalidACL},
		"entry without a SID":     {ace + 2, "\x1c", ntstatus.InvalidACL},
		"SID of another revision": {ace + 28, "\x02", ntstatus.InvalidACL},
		"SID too long":            {ace + 29, "\x10", ntstatus.InvalidACL},
	} {
		b := []byte(string(whole))
		copy(b[c.pos:], c.bytes)
		sd := security.Descriptor{Owner: security.Everyone()}
		err := sd.UnmarshalBinary(b)
		require.ErrorIs(t, err, c.want, "%s: %v", name, err)
		var format *security.FormatError
		require.ErrorAs(t, err, &format)
		require.NotEmpty(t, format.Want)
		require.Contains(t, err.Error(), "at byte ")
		require.Equal(t, security.Everyone(), sd.Owner, "a failure leaves the value alone")
	}
}

func TestWhatIsNotUnderstoodIsKept(t *testing.T) {
	b := marshal(t, "D:(A;;CC;;;WD)")
	b[1], b[3], b[20] = 7, b[3]|0x40, 4 // resource manager's byte and bit, revision of the list
	b[28] = 0x77                        // an unknown type
	var sd security.Descriptor
	require.NoError(t, sd.UnmarshalBinary(b))
	require.Equal(t, uint8(7), sd.RMControl)
	require.Equal(t, security.ACE{Type: 0x77, Data: string(b[32:])}, sd.DACL.ACEs[0])
	again, err := sd.Clone().MarshalBinary()
	require.NoError(t, err)
	require.Equal(t, b, again)
	// A list that its bit says is absent is absent, wherever its offset points.
	b = marshal(t, "D:(A;;CC;;;WD)")
	b[2] = 0
	require.NoError(t, sd.UnmarshalBinary(b))
	require.False(t, sd.HasDACL())
}

func TestWhatHasNoBinaryFormIsRefused(t *testing.T) {
	_, err := (*security.Descriptor)(nil).MarshalBinary()
	require.ErrorIs(t, err, ntstatus.InvalidSecurityDescr)
	_, err = (&security.Descriptor{DACL: security.NewACL(security.ACE{})}).MarshalBinary()
	require.ErrorIs(t, err, ntstatus.InvalidACL)
	long := security.NewACL()
	for range 3300 {
		long.ACEs = append(long.ACEs, security.Allow(security.Everyone(), 1))
	}
	_, err = (&security.Descriptor{SACL: long}).MarshalBinary()
	require.ErrorIs(t, err, ntstatus.InvalidACL)
	_, err = security.SID{}.MarshalBinary()
	require.ErrorIs(t, err, ntstatus.InvalidSID)
	var s security.SID
	for _, b := range []string{"", "\x01\x00\x00\x00\x00\x00\x00", "\x01\x01\x00\x00\x00\x00\x00\x05", "\x01\x00\x00\x00\x00\x00\x00\x05x"} {
		require.ErrorIs(t, s.UnmarshalBinary([]byte(b)), ntstatus.InvalidSID, "%x", b)
	}
	odd := security.ACE{Type: 0x77, Data: "abc"}
	b, err := (&security.Descriptor{DACL: security.NewACL(odd)}).MarshalBinary()
	require.NoError(t, err)
	require.Equal(t, "abc\x00", string(b[32:]), "whole words")
}

// Every prefix and every change of one byte: refused or read, without a panic and without much memory; and what is read is written and
// read again as the same.
func TestEveryDamageOfEverySample(t *testing.T) {
	check := func(b []byte) {
		var sd security.Descriptor
		if sd.UnmarshalBinary(b) != nil {
			return
		}
		again, err := sd.MarshalBinary()
		require.NoError(t, err, "%x", b)
		var second security.Descriptor
		require.NoError(t, second.UnmarshalBinary(again), "%x\n%x", b, again)
		require.True(t, sd.Equal(&second), "%x", b)
		_ = sd.String()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	bytes := 0
	for _, s := range samples {
		whole := marshal(t, s)
		for i := range whole {
			bytes += i
			check(whole[:i])
			b := []byte(string(whole))
			for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff, whole[i] + 1, whole[i] - 1, whole[i] ^ 0x10} {
				b[i] = v
				bytes += len(b)
				check(b)
			}
		}
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, 100*uint64(bytes), "memory in proportion to the input")
}

func TestEveryPrefixOfEverySample(t *testing.T) {
	for _, s := range samples {
		for i := range len(s) {
			if sd, err := security.ParseSDDL(s[:i]); err == nil {
				require.True(t, sd.Equal(parse(t, sd.String())), s[:i])
			}
			b := []byte(s)
			for _, c := range []byte{0, ' ', '(', ')', ';', '"', '0', 'A', 0x80, 0xff} {
				b[i] = c
				if sd, err := security.ParseSDDL(string(b)); err == nil {
					require.True(t, sd.Equal(parse(t, sd.String())), "%q", b)
				}
			}
		}
	}
}

func TestBinaryRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyDescriptor().Draw(t, "descriptor")
		b, err := want.MarshalBinary()
		require.NoError(t, err)
		var got security.Descriptor
		require.NoError(t, got.UnmarshalBinary(b))
		require.True(t, want.Equal(&got), "%s\n%s", want, &got)
		s := anySID().Draw(t, "sid")
		b, err = s.MarshalBinary()
		require.NoError(t, err)
		var again security.SID
		require.NoError(t, again.UnmarshalBinary(b))
		require.Equal(t, s, again)
	})
}

func TestGUIDs(t *testing.T) {
	g, err := security.ParseGUID("BF967aba-0de6-11d0-a285-00aa003049e2")
	require.NoError(t, err)
	require.Equal(t, "bf967aba-0de6-11d0-a285-00aa003049e2", g.String())
	for _, s := range []string{"", "bf967aba-0de6-11d0-a285-00aa003049e", "bf967aba00de6-11d0-a285-00aa003049e2", "bf967aba-0de6011d0-a285-00aa003049e2",
		"bf967aba-0de6-11d00a285-00aa003049e2", "bf967aba-0de6-11d0-a285000aa003049e2", "gf967aba-0de6-11d0-a285-00aa003049e2"} {
		_, err := security.ParseGUID(s)
		require.ErrorIs(t, err, ntstatus.InvalidParameter, s)
	}
}

func FuzzUnmarshalDescriptor(f *testing.F) {
	for _, s := range samples {
		f.Add(marshal(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var sd, again security.Descriptor
		if sd.UnmarshalBinary(b) != nil {
			return
		}
		out, err := sd.MarshalBinary()
		if err != nil {
			t.Fatalf("%x is read, and not written: %v", b, err)
		}
		if err := again.UnmarshalBinary(out); err != nil || !again.Equal(&sd) {
			t.Fatalf("%x is written as %x, which is read as %v, %v", b, out, &again, err)
		}
		if text, err := security.ParseSDDL(sd.String()); err == nil && text.String() != sd.String() {
			t.Fatalf("%x is %s, which is read as %s", b, &sd, text)
		}
	})
}

func FuzzUnmarshalSID(f *testing.F) {
	for _, s := range []security.SID{security.Everyone(), security.Administrators(), security.UnixUser(1)} {
		b, err := s.MarshalBinary()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s security.SID
		if s.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := s.MarshalBinary(); err != nil || string(again) != string(b) {
			t.Fatalf("%x is written as %x, %v", b, again, err)
		}
	})
}

func BenchmarkParseSDDL(b *testing.B) {
	b.SetBytes(int64(len(samples[0])))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := security.ParseSDDL(samples[0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFormatSDDL(b *testing.B) {
	sd := parse(b, samples[0])
	b.SetBytes(int64(len(samples[0])))
	for b.Loop() {
		_ = sd.String()
	}
}

func BenchmarkMarshalBinary(b *testing.B) {
	sd := parse(b, samples[0])
	var buffer []byte
	b.SetBytes(int64(len(marshal(b, samples[0]))))
	b.ReportAllocs()
	for b.Loop() {
		buffer, _ = sd.AppendBinary(buffer[:0])
	}
}

func BenchmarkUnmarshalBinary(b *testing.B) {
	data := marshal(b, samples[0])
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var sd security.Descriptor
		if err := sd.UnmarshalBinary(data); err != nil {
			b.Fatal(err)
		}
	}
}
