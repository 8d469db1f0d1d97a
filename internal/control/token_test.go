package control_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"sallyport/internal/control"
	"sallyport/proto/corepb"
	"sallyport/security"
)

// TestTokenCrossesTheWireWhole fills every field of a token: one that is forgotten in the translation comes back empty.
func TestTokenCrossesTheWireWhole(t *testing.T) {
	want := &security.Token{}
	fill(t, reflect.ValueOf(want).Elem(), "")
	want.DefaultDACL = security.NewACL(security.Allow(security.Everyone(), security.ReadControl))
	wire, err := proto.Marshal(control.TokenToWire(want))
	require.NoError(t, err)
	back := &corepb.Token{}
	require.NoError(t, proto.Unmarshal(wire, back))
	got, err := control.TokenFromWire(back)
	require.NoError(t, err)
	require.Equal(t, want.DefaultDACL.ACEs, got.DefaultDACL.ACEs)
	got.DefaultDACL = want.DefaultDACL
	require.Equal(t, want, got)
}

// fill sets everything below v to something that is not zero and that is valid.
func fill(t *testing.T, v reflect.Value, name string) {
	switch {
	case v.Type() == reflect.TypeFor[security.SID]():
		v.Set(reflect.ValueOf(security.UnixUser(7)))
	case v.Type() == reflect.TypeFor[*security.ACL]():
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), name)
		fill(t, v.Index(1), name)
	case v.Kind() == reflect.String:
		v.SetString("name")
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(1)
	case v.CanUint():
		v.SetUint(1)
	default:
		t.Fatalf("%s is of kind %s: teach this test", name, v.Kind())
	}
}

func TestTokenOfAPeerIsBoundedAndChecked(t *testing.T) {
	many := func(n int) (out []*corepb.ClaimValue) {
		for range n {
			out = append(out, &corepb.ClaimValue{})
		}
		return out
	}
	for name, spoil := range map[string]func(*corepb.Token){
		"no user":               func(w *corepb.Token) { w.User = nil },
		"no such SID":           func(w *corepb.Token) { w.Owner = "S-1-x" },
		"a group without a SID": func(w *corepb.Token) { w.Capabilities = []*corepb.Group{{}} },
		"no such type":          func(w *corepb.Token) { w.Type = 3 },
		"no such level":         func(w *corepb.Token) { w.Level = 4 },
		"no such elevation":     func(w *corepb.Token) { w.Elevation = 4 },
		"a long source":         func(w *corepb.Token) { w.SourceName = "ninebytes" },
		"no such DACL":          func(w *corepb.Token) { w.DefaultDacl = "D:(nonsense)" },
		"a long DACL":           func(w *corepb.Token) { w.DefaultDacl = "D:" + strings.Repeat("(A;;GA;;;SY)", 1000) },
		"no such type of claim": func(w *corepb.Token) { w.UserClaims = []*corepb.Claim{{Type: 0x10003}} },
		"a claim of a bad SID": func(w *corepb.Token) {
			w.UserClaims = []*corepb.Claim{{Type: 5, Values: []*corepb.ClaimValue{{Sid: "x"}}}}
		},
		"too many groups":         func(w *corepb.Token) { w.DeviceGroups = make([]*corepb.Group, 1025) },
		"too many claims' values": func(w *corepb.Token) { w.LocalClaims = []*corepb.Claim{{Type: 1, Values: many(1025)}} },
	} {
		t.Run(name, func(t *testing.T) {
			w := control.TokenToWire(&security.Token{Type: security.TokenPrimary, User: security.Group{SID: security.Everyone()}})
			_, err := control.TokenFromWire(w)
			require.NoError(t, err)
			spoil(w)
			_, err = control.TokenFromWire(w)
			require.Error(t, err)
		})
	}
	_, err := control.TokenFromWire(nil)
	require.Error(t, err)
}
