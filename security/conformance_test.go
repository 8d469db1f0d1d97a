package security_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/security"
)

// Cases that others have published, in the folder that SALLYPORT_CASES names; they are not part of the project. Each group has
// a recorded score, the number of cases that must hold per hundred. A group that is not listed is reported and not required.
const casesEnv = "SALLYPORT_CASES"

func TestPublishedAccessChecks(t *testing.T) {
	file := readCases[accessCase](t, "access_check.json")
	score := scores{required: map[string]int{"samba_oracle": 100, "wine_accesscheck": 100, "samba_basic": 100, "samba_smb2_semantics": 100,
		"reactos_bytype": 100, "samba_conditional": 100, "samba_conditional_c": 100}}
	for _, c := range file {
		if c.Informational || c.Op != "" {
			continue
		}
		score.add(c.Group, c.ID, c.run())
	}
	score.report(t)
}

func TestPublishedSIDs(t *testing.T) {
	const domain = "S-1-5-21-111-222-333"
	score := scores{required: map[string]int{"alias": 100, "alias_reject": 100, "numeric": 100, "wine_stringsid": 100}}
	for _, c := range readCases[sidCase](t, "sid_strings.json") {
		relative, err := security.ParseSID(domain)
		require.NoError(t, err)
		got := "reject"
		if strings.HasPrefix(c.Context, "SDDL") {
			if sd, err := security.ParseSDDLIn("O:"+c.Input, relative); err == nil {
				got = sd.Owner.String()
			}
		} else if sid, err := security.ParseSIDIn(c.Input, relative); err == nil {
			got = sid.String()
		}
		score.add(c.Group, c.ID, differ(strings.ReplaceAll(c.Expect, "{domain_sid}", domain), got))
	}
	score.report(t)
}

func TestPublishedSDDL(t *testing.T) {
	domain, err := security.ParseSID("S-1-2-3-4")
	require.NoError(t, err)
	score := scores{required: map[string]int{"canonical": 100, "non_canonical": 100, "windows_lenient": 100,
		"wine_format": 100, "wine_parse": 100, "conditional_aces": 100, "conditional_windows_only": 100}}
	for _, c := range readCases[sddlCase](t, "sddl_roundtrip.json") {
		score.add(c.Group, c.ID, c.run(domain))
	}
	score.report(t)
}

func TestPublishedBadSDDL(t *testing.T) {
	domain, err := security.ParseSID("S-1-2-3-4")
	require.NoError(t, err)
	score := scores{required: map[string]int{"should_fail": 100, "wine_reject": 100, "conditional_should_fail": 100}}
	for _, c := range readCases[sddlCase](t, "sddl_invalid.json") {
		_, err := security.ParseSDDLIn(c.SDDL, domain)
		var syntax *security.SyntaxError
		switch {
		case err == nil:
			score.add(c.Group, c.ID, errors.New("accepted"))
		case !errors.As(err, &syntax) || syntax.Pos < 0 || syntax.Pos > len(c.SDDL):
			score.add(c.Group, c.ID, fmt.Errorf("no position: %w", err))
		default:
			score.add(c.Group, c.ID, nil)
		}
	}
	score.report(t)
}

// TestPublishedBinary compares with what Windows writes, byte for byte. Lists with bytes left over and attributes whose numbers are
// read as nobody has documented (informational, resource_tx_int) must be read.
func TestPublishedBinary(t *testing.T) {
	domain, err := security.ParseSID("S-1-5-21-2457507606-2709100691-398136650")
	require.NoError(t, err)
	score := scores{required: map[string]int{"ordinary": 100, "ordinary_v2": 100, "registry_rights": 100, "conditional_and_resource": 100,
		"collected_conditional": 100, "resource_tx_int": 100, "slack": 100, "text": 100}}
	for _, c := range readCases[binaryCase](t, "sd_binary.json") {
		var sd security.Descriptor
		if err := sd.UnmarshalBinary(c.Bytes); err != nil {
			score.add(c.Group, c.ID, err)
			continue
		}
		for i := range len(c.Bytes) {
			if i < 500 || i%17 == 0 {
				require.Error(t, new(security.Descriptor).UnmarshalBinary(c.Bytes[:i]), "%s cut to %d", c.ID, i)
			}
		}
		if c.Informational || c.Slack || c.Group == "resource_tx_int" {
			score.add("slack", c.ID, nil)
			continue
		}
		score.add(c.Group, c.ID, c.run(domain))
		// What Windows wrote has a text that is read back as the same.
		again, err := security.ParseSDDL(sd.String())
		if err == nil && !again.Equal(&sd) {
			err = fmt.Errorf("%s is read as %s", sd.String(), again)
		}
		score.add("text", c.ID, err)
	}
	score.report(t)
}

type binaryCase struct {
	ID, Group, SDDL      string
	Bytes                []byte
	Informational, Slack bool
}

func (c binaryCase) run(domain security.SID) error {
	sd, err := security.ParseSDDLIn(c.SDDL, domain)
	if err != nil {
		return err
	}
	got, err := sd.MarshalBinary()
	if err != nil {
		return err
	}
	if !bytes.Equal(got, c.Bytes) {
		return fmt.Errorf("%s:\nwant %x\ngot  %x", c.SDDL, c.Bytes, got)
	}
	return nil
}

func TestPublishedInheritance(t *testing.T) {
	score := scores{required: map[string]int{"reactos_assign": 100, "samba_smb2_inherit": 100}}
	for _, c := range readCases[inheritCase](t, "sd_inherit.json") {
		score.add(c.Group, c.ID, c.run(t))
	}
	score.report(t)
}

type inheritCase struct {
	ID, Group string
	Token     *struct {
		DefaultOwner string `json:"default_owner"`
		PrimaryGroup string `json:"primary_group"`
		DefaultDACL  string `json:"default_dacl"`
	}
	Mapping           map[string]string
	Creator           string `json:"creator_owner"`
	Parent, Explicit  *string
	ExplicitDefaulted bool   `json:"explicit_dacl_defaulted"`
	Container         bool   `json:"is_container"`
	DACL              string `json:"expect_dacl"`
	Owner             string `json:"expect_owner"`
	Group2            string `json:"expect_group"`
	Defaulted         bool   `json:"expect_dacl_defaulted"`
}

func (c inheritCase) run(t *testing.T) error {
	n := security.NewObject{Token: &security.Token{Type: security.TokenPrimary}, Container: c.Container, Mapping: mappingOf(c.Mapping)}
	if c.Token != nil {
		n.Token.Owner, n.Token.PrimaryGroup = sid(t, c.Token.DefaultOwner), sid(t, c.Token.PrimaryGroup)
		n.Token.DefaultDACL = parse(t, c.Token.DefaultDACL).DACL
	} else {
		n.Token.User.SID, n.Token.PrimaryGroup = sid(t, c.Creator), security.Users()
		n.Token.DefaultDACL = parse(t, "D:(A;;FA;;;SY)").DACL
		n.Mapping = security.GenericMapping{Read: 0x120089, Write: 0x120116, Execute: 0x1200a0, All: 0x1f01ff}
	}
	if c.Parent != nil {
		n.Parent = parse(t, *c.Parent)
	}
	if c.Explicit != nil {
		n.Explicit = parse(t, *c.Explicit)
		if c.ExplicitDefaulted {
			n.Explicit.Control |= security.DACLDefaulted
		}
	}
	d, err := security.NewDescriptor(n)
	if err != nil {
		return err
	}
	got := (&security.Descriptor{Control: d.Control, DACL: d.DACL}).String()
	if want := c.DACL; want == "DEFAULT" {
		return differ("D:(A;;FA;;;SY)", got)
	} else if err := differ(parse(t, want).String(), got); err != nil {
		return err
	}
	if c.Token != nil {
		return cmp.Or(differ(sid(t, c.Owner), d.Owner), differ(sid(t, c.Group2), d.Group),
			differ(c.Defaulted, d.Control&security.DACLDefaulted != 0))
	}
	return nil
}

func mappingOf(m map[string]string) security.GenericMapping {
	return security.GenericMapping{
		Read:    security.AccessMask(number(m["GENERIC_READ"])),
		Write:   security.AccessMask(number(m["GENERIC_WRITE"])),
		Execute: security.AccessMask(number(m["GENERIC_EXECUTE"])),
		All:     security.AccessMask(number(m["GENERIC_ALL"])),
	}
}

type sidCase struct{ ID, Group, Input, Context, Expect string }

type sddlCase struct {
	ID, Group, SDDL, Canonical string
	FirstMask                  string `json:"expect_first_ace_mask"`
}

func (c sddlCase) run(domain security.SID) error {
	first, err := security.ParseSDDLIn(c.SDDL, domain)
	if err != nil {
		return err
	}
	if c.FirstMask != "" {
		list := cmp.Or(first.DACL, first.SACL)
		if err := differ(security.AccessMask(number(c.FirstMask)), list.ACEs[0].Mask); err != nil {
			return err
		}
	}
	text := first.Format(domain)
	if c.Canonical != "" {
		if err := differ(c.Canonical, text); err != nil {
			return err
		}
	}
	second, err := security.ParseSDDLIn(text, domain)
	if err != nil {
		return err
	}
	if !first.Equal(second) {
		return fmt.Errorf("%s and %s parse differently", c.SDDL, text)
	}
	return nil
}

type accessCase struct {
	ID, Group string
	Token     *struct {
		SIDs              []string
		PrivilegesEnabled []string    `json:"privileges_enabled"`
		DeviceSIDs        []string    `json:"device_sids"`
		UserClaims        []claimCase `json:"user_claims"`
		DeviceClaims      []claimCase `json:"device_claims"`
		LocalClaims       []claimCase `json:"local_claims"`
		Type, Level       string
	}
	SDDL        *string
	Desired     string
	Mapping     map[string]string
	ObjectTypes [][2]any `json:"object_types"`
	Expect      string
	Granted     *string
	// IgnoreBits are masked out of both sides.
	IgnoreBits    string `json:"ignore_bits"`
	DomainSID     string `json:"domain_sid"`
	Informational bool
	Op            string
}

func (c accessCase) run() error {
	domain, err := security.ParseSID(cmp.Or(c.DomainSID, "S-1-22-333-4444"))
	if err != nil {
		return err
	}
	req := security.CheckRequest{Desired: security.AccessMask(number(c.Desired)), Trace: true, Mapping: mappingOf(c.Mapping)}
	if req.Token, err = c.token(domain); err != nil {
		return err
	}
	for _, o := range c.ObjectTypes {
		guid, err := security.ParseGUID(o[1].(string))
		if err != nil {
			return err
		}
		req.ObjectTypes = append(req.ObjectTypes, security.ObjectType{Level: int(o[0].(float64)), Type: guid})
	}
	if strings.HasPrefix(c.Group, "wine") || strings.HasPrefix(c.Group, "reactos") {
		req.Mode = security.CheckQuery // these call NtAccessCheck
	}
	if c.SDDL != nil {
		if req.Descriptor, err = security.ParseSDDLIn(*c.SDDL, domain); err != nil {
			return err
		}
		if strings.HasPrefix(c.Group, "samba") { // Samba takes descriptors without owner and group
			if req.Descriptor.Owner.IsZero() {
				req.Descriptor.Owner = security.Nobody()
			}
			if req.Descriptor.Group.IsZero() {
				req.Descriptor.Group = security.Nobody()
			}
		}
	}
	d := security.AccessCheck(req)
	want, got := strings.Replace(c.Expect, "ERROR_", "STATUS_", 1), "granted"
	if !d.Allowed() {
		got = d.Status.String()
	}
	if err := differ(want, got); err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(d.Explain(), "; "))
	}
	if c.Granted != nil {
		ignore := security.AccessMask(number(c.IgnoreBits))
		return differ(security.AccessMask(number(*c.Granted))&^ignore, d.Granted&^ignore)
	}
	return nil
}

func (c accessCase) token(domain security.SID) (*security.Token, error) {
	t := &security.Token{Type: security.TokenPrimary}
	if c.Token == nil {
		return nil, nil
	}
	for i, s := range c.Token.SIDs {
		sid, err := security.ParseSIDIn(s, domain)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			t.User.SID = sid
			continue
		}
		t.Groups = append(t.Groups, security.Group{SID: sid, Attributes: security.GroupDefault})
	}
	for _, s := range c.Token.PrivilegesEnabled {
		p, err := security.ParsePrivilege(s)
		if err != nil {
			return nil, err
		}
		t.Privileges = append(t.Privileges, security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabled})
	}
	for _, s := range c.Token.DeviceSIDs {
		sid, err := security.ParseSIDIn(s, domain)
		if err != nil {
			return nil, err
		}
		t.DeviceGroups = append(t.DeviceGroups, security.Group{SID: sid, Attributes: security.GroupDefault})
	}
	for _, list := range []struct {
		from []claimCase
		to   *[]security.Claim
	}{{c.Token.UserClaims, &t.UserClaims}, {c.Token.DeviceClaims, &t.DeviceClaims}, {c.Token.LocalClaims, &t.LocalClaims}} {
		for _, from := range list.from {
			claim, err := from.claim(domain)
			if err != nil {
				return nil, err
			}
			*list.to = append(*list.to, claim)
		}
	}
	if c.Token.Type == "impersonation" {
		t.Type = security.TokenImpersonation
	}
	t.Level = map[string]security.ImpersonationLevel{"SecurityIdentification": security.LevelIdentification,
		"SecurityImpersonation": security.LevelImpersonation, "SecurityDelegation": security.LevelDelegation}[c.Token.Level]
	return t, nil
}

type claimCase struct {
	Name, Type    string
	CaseSensitive bool `json:"case_sensitive"`
	Values        []any
}

func (c claimCase) claim(domain security.SID) (security.Claim, error) {
	claim := security.Claim{Name: c.Name}
	if c.CaseSensitive {
		claim.Flags = security.ClaimCaseSensitive
	}
	for _, v := range c.Values {
		var to security.ClaimValue
		switch v := v.(type) {
		case float64:
			to.Number = uint64(int64(v))
		case bool:
			if v {
				to.Number = 1
			}
		case string:
			to.Text = v
			if n, err := strconv.ParseInt(v, 0, 64); err == nil {
				to.Number = uint64(n)
			}
		}
		switch c.Type {
		case "int64":
			claim.Type = security.ClaimInt64
		case "uint64":
			claim.Type = security.ClaimUint64
		case "boolean", "bool":
			claim.Type = security.ClaimBoolean
		case "string":
			claim.Type = security.ClaimString
		case "octet", "octet_string", "octets":
			claim.Type = security.ClaimOctets
		case "sid":
			sid, err := security.ParseSIDIn(v.(string), domain)
			if err != nil {
				return claim, err
			}
			claim.Type, to.SID = security.ClaimSID, sid
		default:
			return claim, fmt.Errorf("claims of type %q", c.Type)
		}
		claim.Values = append(claim.Values, to)
	}
	return claim, nil
}

func readCases[T any](t *testing.T, name string) []T {
	dir := os.Getenv(casesEnv)
	if dir == "" {
		t.Skipf("%s is not set: the published cases are not part of the project", casesEnv)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	var file struct{ Cases []T }
	require.NoError(t, json.Unmarshal(data, &file))
	require.NotEmpty(t, file.Cases)
	return file.Cases
}

// scores counts what holds, by group.
type scores struct {
	required map[string]int
	groups   map[string]*score
}

type score struct {
	held, total int
	failures    []string
}

func (s *scores) add(group, id string, failure error) {
	if s.groups == nil {
		s.groups = map[string]*score{}
	}
	if s.groups[group] == nil {
		s.groups[group] = &score{}
	}
	g := s.groups[group]
	g.total++
	if failure == nil {
		g.held++
	} else {
		g.failures = append(g.failures, id+": "+failure.Error())
	}
}

func (s *scores) report(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		g := s.groups[name]
		required, scored := s.required[name]
		t.Logf("%-24s %3d of %3d (required: %d %%)", name, g.held, g.total, required)
		if scored && g.held*100 < required*g.total {
			t.Errorf("%s fell below its score:\n%s", name, strings.Join(g.failures, "\n"))
		} else if testing.Verbose() && len(g.failures) > 0 {
			t.Logf("%s", strings.Join(g.failures, "\n"))
		}
	}
}

func differ[T comparable](want, got T) error {
	if want != got {
		return fmt.Errorf("want %v, got %v", want, got)
	}
	return nil
}

func number(s string) uint64 {
	v, err := strconv.ParseUint(cmp.Or(s, "0"), 0, 32)
	if err != nil {
		panic(err)
	}
	return v
}
