package cli

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/security"
)

// sdReport is a descriptor, taken apart.
type sdReport struct {
	SDDL    string   `json:"sddl"`
	Owner   string   `json:"owner"`
	Group   string   `json:"group"`
	Control string   `json:"control"`
	DACL    []aceRow `json:"dacl"`
	SACL    []aceRow `json:"sacl"`
}

// aceRow is one entry as SDDL writes it, field by field.
type aceRow struct {
	Entry string `json:"entry"`
	Type  string `json:"type"`
	Flags string `json:"flags"`
	Mask  string `json:"mask"`
	SID   string `json:"sid"`
	SDDL  string `json:"sddl"`
}

// diffRow is what one descriptor has and the other has not.
type diffRow struct {
	Change string `json:"change"` // - only in the first, + only in the second
	Part   string `json:"part"`
	Value  string `json:"value"`
}

const sdLong = `sd works on security descriptors without an instance, for whoever needs only that: it reads SDDL, or the self-relative binary form as
hexadecimal or base64 (or as it is, from standard input with "-"), and writes what Windows writes. Relative aliases such as DA need --domain.`

func sdCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "sd", Short: "read, write, compare and check security descriptors", Long: sdLong}
	var domain string
	c.PersistentFlags().StringVar(&domain, "domain", "", "`SID` of the domain that relative aliases mean")
	c.AddCommand(sdParse(a, &domain), sdFormat(a, &domain), sdDiff(a, &domain), sdCheck(a, &domain))
	return c
}

func sdParse(a *app, domain *string) *cobra.Command {
	return &cobra.Command{
		Use: "parse DESCRIPTOR", Short: "take a descriptor apart", Args: cobra.ExactArgs(1), Example: "  sallyport sd parse 'O:SYG:SYD:(A;;FA;;;BA)(A;;0x1200a9;;;WD)'",
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := a.readDescriptor(args[0], *domain)
			if err != nil {
				return err
			}
			return a.printOne(sdReport{SDDL: d.String(), Owner: sidOrNone(d.Owner), Group: sidOrNone(d.Group), Control: fmt.Sprintf("%#06x", uint16(d.Control)),
				DACL: aceRows(d.DACL, false), SACL: aceRows(d.SACL, true)})
		},
	}
}

func sdFormat(a *app, domain *string) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "format DESCRIPTOR", Short: "write a descriptor as SDDL, hexadecimal, base64 or binary", Args: cobra.ExactArgs(1), Example: "  sallyport sd format --to hex 'D:(A;;GA;;;BA)'",
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := a.readDescriptor(args[0], *domain)
			if err != nil {
				return err
			}
			if to == "sddl" {
				_, err := fmt.Fprintln(a.stdout, d)
				return err
			}
			b, err := d.MarshalBinary()
			if err != nil {
				return err
			}
			switch to {
			case "hex":
				_, err = fmt.Fprintln(a.stdout, hex.EncodeToString(b))
			case "base64":
				_, err = fmt.Fprintln(a.stdout, base64.StdEncoding.EncodeToString(b))
			case "binary":
				_, err = a.stdout.Write(b)
			default:
				return usage("--to %s: it takes sddl, hex, base64, binary", to)
			}
			return err
		},
	}
	c.Flags().StringVar(&to, "to", "sddl", "`form`: sddl, hex, base64, binary")
	must(c.RegisterFlagCompletionFunc("to", cobra.FixedCompletions([]string{"sddl", "hex", "base64", "binary"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func sdDiff(a *app, domain *string) *cobra.Command {
	return &cobra.Command{
		Use: "diff DESCRIPTOR DESCRIPTOR", Short: "what two descriptors do not share; ends with 1 where there is something", Args: cobra.ExactArgs(2),
		Long: "diff lists what only the first has (-) and only the second (+). The order of entries counts: one that has moved is listed on both sides.",
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] == "-" && args[1] == "-" {
				return usage("only one descriptor can come from standard input")
			}
			var d [2]*security.Descriptor
			for i := range d {
				var err error
				if d[i], err = a.readDescriptor(args[i], *domain); err != nil {
					return err
				}
			}
			rows := diffDescriptors(d[0], d[1])
			if err := a.printList(rows); err != nil {
				return err
			}
			if len(rows) > 0 {
				return exitStatus(exitFailure)
			}
			return nil
		},
	}
}

// checkFlags are the token that sd check makes up.
type checkFlags struct {
	token, user, integrity       string
	groups, denyOnly, restricted []string
	privileges                   []string
	kind, right                  string
}

func sdCheck(a *app, domain *string) *cobra.Command {
	var o checkFlags
	c := &cobra.Command{
		Use: "check DESCRIPTOR", Aliases: []string{"explain"}, Short: "whether a token, or a user with groups, gets rights, and which entry decides", Args: cobra.ExactArgs(1),
		Long: `check asks the access check that decides everywhere here, and prints its own trace: what each rule and entry did. The subject is a
token object of the running instance (--token), or one made up of SIDs (--user, --group). "denied" ends with 4.`,
		Example: `  sallyport sd check 'O:BAG:BAD:(D;;FW;;;BG)(A;;FA;;;BU)' --user S-1-5-21-1-2-3-1001 --group BU --right FR
  sallyport sd check 'O:SYG:SYD:(A;;CC;;;AU)' --token 0:1004 --type port --right 0x1`,
	}
	f := c.Flags()
	f.StringVar(&o.token, "token", "", "`id` of a token object, as \"sallyport whoami\" prints it")
	f.StringVar(&o.user, "user", "", "`SID` of the subject, by number or alias")
	f.StringArrayVar(&o.groups, "group", nil, "`SID` of a group that the subject is in")
	f.StringArrayVar(&o.denyOnly, "deny-only", nil, "`SID` of a group that counts for denying only")
	f.StringArrayVar(&o.restricted, "restrict", nil, "restricting `SID`")
	f.StringArrayVar(&o.privileges, "privilege", nil, "enabled `privilege`, by name")
	f.StringVar(&o.integrity, "integrity", "ME", "integrity `level`: LW, ME, HI, SI, or a SID")
	f.StringVar(&o.kind, "type", "file", "`type` of the object, which says what generic rights mean: "+strings.Join(objectTypes(), ", "))
	f.StringVar(&o.right, "right", "", "`rights` as SDDL writes them, letters or a number (default: all that there are)")
	c.MarkFlagsMutuallyExclusive("token", "user")
	c.MarkFlagsMutuallyExclusive("token", "group")
	c.MarkFlagsOneRequired("token", "user")
	must(c.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(objectTypes(), cobra.ShellCompDirectiveNoFileComp)))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := a.readDescriptor(args[0], *domain)
		if err != nil {
			return err
		}
		// A descriptor written down by hand often has neither; the check demands both, and nobody is them.
		if d.Owner.IsZero() {
			d.Owner = security.Nobody()
		}
		if d.Group.IsZero() {
			d.Group = security.Nobody()
		}
		q := security.CheckRequest{Descriptor: d, Trace: true, Rights: standardRights()}
		var known bool
		if q.Mapping, known = objectMapping(o.kind); !known {
			return usage("--type %s: it takes %s", o.kind, strings.Join(objectTypes(), ", "))
		}
		if q.Desired, err = sddlRights(o.right); err != nil {
			return err
		}
		q.Desired = q.Mapping.Map(q.Desired)
		if o.token != "" {
			id, err := parseLUID(o.token)
			if err != nil {
				return err
			}
			ask := a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
				q.Token, err = sys.QueryToken(ctx, id)
				return err
			})
			if err := ask(cmd, nil); err != nil {
				return err
			}
		} else if q.Token, err = o.imagine(*domain); err != nil {
			return err
		}
		decision := security.AccessCheck(q)
		report := verdictReport{Outcome: "allowed", Status: decision.Status.String(), Subject: q.Token.User.SID.String(), Object: "the descriptor",
			Asked: q.Rights.Describe(q.Desired), Granted: q.Rights.Describe(decision.Granted), Why: decision.Explain(), Security: d.String()}
		if decision.Status != ntstatus.Success {
			report.Outcome = "denied"
		}
		if err := a.printOne(report); err != nil {
			return err
		}
		if decision.Status != ntstatus.Success {
			return exitStatus(exitDenied)
		}
		return nil
	}
	return c
}

// imagine makes up the token that the flags describe.
func (o *checkFlags) imagine(domain string) (*security.Token, error) {
	t := &security.Token{Type: security.TokenPrimary, MandatoryPolicy: security.PolicyDefault}
	var err error
	sid := func(text string) (s security.SID) {
		if err == nil {
			s, err = parseSID(text, domain)
		}
		return s
	}
	t.User.SID, t.Integrity = sid(o.user), sid(o.integrity)
	for attributes, sids := range map[security.GroupAttributes][]string{security.GroupDefault: o.groups, security.GroupUseForDenyOnly: o.denyOnly} {
		for _, g := range sids {
			t.Groups = append(t.Groups, security.Group{SID: sid(g), Attributes: attributes})
		}
	}
	for _, g := range o.restricted {
		t.Restricted = append(t.Restricted, security.Group{SID: sid(g), Attributes: security.GroupDefault})
	}
	if _, label := t.Integrity.IntegrityLevel(); err == nil && !label {
		err = usage("--integrity %s: it is no integrity level", o.integrity)
	}
	for _, name := range o.privileges {
		p, perr := security.ParsePrivilege(name)
		if perr != nil {
			return nil, usage("--privilege %s: there is none of that name", name)
		}
		t.Privileges = append(t.Privileges, security.TokenPrivilege{Privilege: p, Attributes: security.PrivilegeEnabled})
	}
	return t, err
}

// readDescriptor reads a descriptor in any of its forms: SDDL, hexadecimal, base64, or from standard input also binary.
func (a *app) readDescriptor(arg, domain string) (*security.Descriptor, error) {
	text := arg
	if arg == "-" {
		b, err := io.ReadAll(io.LimitReader(a.stdin, 1<<20))
		if err != nil {
			return nil, err
		}
		d := &security.Descriptor{}
		if len(b) > 0 && b[0] == 1 && d.UnmarshalBinary(b) == nil {
			return d, nil
		}
		text = strings.TrimRight(string(b), "\r\n")
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if b, err := decode(text); err == nil && len(b) > 0 {
			d := &security.Descriptor{}
			if err := d.UnmarshalBinary(b); err != nil {
				return nil, descriptorError(text, err)
			}
			return d, nil
		}
	}
	var in security.SID
	if domain != "" {
		var err error
		if in, err = parseSID(domain, ""); err != nil {
			return nil, err
		}
	}
	d, err := security.ParseSDDLIn(text, in)
	if err != nil {
		return nil, descriptorError(text, err)
	}
	return d, nil
}

func descriptorError(text string, err error) error {
	return &failure{err: fmt.Errorf("%w, in %s", err, printable(text)), hint: "SDDL is O:owner G:group D:(type;flags;rights;;;SID)… S:(…); quote it for the shell", code: exitUsage}
}

// parseSID reads a SID by number or by SDDL's alias.
func parseSID(text, domain string) (security.SID, error) {
	if s, err := security.ParseSID(text); err == nil {
		return s, nil
	}
	var in security.SID
	if domain != "" {
		in, _ = security.ParseSID(domain)
	}
	d, err := security.ParseSDDLIn("O:"+text, in)
	if err != nil || d.Owner.IsZero() || d.HasDACL() || d.HasSACL() || !d.Group.IsZero() {
		return security.SID{}, usage("%s: it is neither a SID nor an alias of one", text)
	}
	return d.Owner, nil
}

// sddlRights reads rights as an entry of a descriptor has them; none asks for all there is.
func sddlRights(text string) (security.AccessMask, error) {
	if text == "" {
		return security.MaximumAllowed, nil
	}
	d, err := security.ParseSDDL("D:(A;;" + text + ";;;WD)")
	if err != nil || d.DACL == nil || len(d.DACL.ACEs) != 1 || strings.ContainsAny(text, ";()") {
		return 0, usage("--right %s: it takes what SDDL takes: letters such as FR, GRGX, RC, or a number", text)
	}
	return d.DACL.ACEs[0].Mask, nil
}

func standardRights() security.RightNames {
	return security.RightNames{
		{Name: "DELETE", Mask: security.Delete}, {Name: "READ_CONTROL", Mask: security.ReadControl}, {Name: "WRITE_DAC", Mask: security.WriteDAC},
		{Name: "WRITE_OWNER", Mask: security.WriteOwner}, {Name: "SYNCHRONIZE", Mask: security.Synchronize},
		{Name: "ACCESS_SYSTEM_SECURITY", Mask: security.AccessSystemSecurity}, {Name: "MAXIMUM_ALLOWED", Mask: security.MaximumAllowed},
	}
}

func objectTypes() []string { return []string{"file", "key", "port"} }

// objectMapping is what the generic rights mean on a type of object (winnt.h; ports: ours).
func objectMapping(kind string) (security.GenericMapping, bool) {
	switch kind {
	case "file":
		return security.GenericMapping{Read: 0x120089, Write: 0x120116, Execute: 0x1200a0, All: 0x1f01ff}, true
	case "key":
		return security.GenericMapping{Read: 0x20019, Write: 0x20006, Execute: 0x20019, All: 0xf003f}, true
	case "port":
		return alpc.PortMapping(), true
	}
	return security.GenericMapping{}, false
}

func sidOrNone(s security.SID) string {
	if s.IsZero() {
		return ""
	}
	return s.String()
}

// aceTexts are the entries of a list as SDDL writes each.
func aceTexts(l *security.ACL, sacl bool) (out []string) {
	if l == nil {
		return nil
	}
	for _, e := range l.ACEs {
		d := &security.Descriptor{Control: security.DACLPresent, DACL: security.NewACL(e)}
		if sacl {
			d = &security.Descriptor{Control: security.SACLPresent, SACL: security.NewACL(e)}
		}
		out = append(out, d.String()[len("D:"):])
	}
	return out
}

func aceRows(l *security.ACL, sacl bool) []aceRow {
	rows := []aceRow{}
	for i, text := range aceTexts(l, sacl) {
		field := strings.SplitN(strings.Trim(text, "()"), ";", 3)
		e := &l.ACEs[i]
		rows = append(rows, aceRow{Entry: fmt.Sprint(i), Type: field[0], Flags: field[1], Mask: fmt.Sprintf("%#x", uint32(e.Mask)), SID: sidOrNone(e.SID), SDDL: text})
	}
	return rows
}

func diffDescriptors(first, second *security.Descriptor) []diffRow {
	rows := []diffRow{}
	one := func(part, x, y string) {
		if x == y {
			return
		}
		if x != "" {
			rows = append(rows, diffRow{"-", part, x})
		}
		if y != "" {
			rows = append(rows, diffRow{"+", part, y})
		}
	}
	one("owner", sidOrNone(first.Owner), sidOrNone(second.Owner))
	one("group", sidOrNone(first.Group), sidOrNone(second.Group))
	one("control", fmt.Sprintf("%#06x", uint16(first.Control)), fmt.Sprintf("%#06x", uint16(second.Control)))
	presence := func(has bool, l *security.ACL) string {
		switch {
		case !has:
			return "absent"
		case l == nil:
			return "null"
		}
		return "present"
	}
	one("dacl", presence(first.HasDACL(), first.DACL), presence(second.HasDACL(), second.DACL))
	rows = append(rows, diffLists("dacl entry", aceTexts(first.DACL, false), aceTexts(second.DACL, false))...)
	one("sacl", presence(first.HasSACL(), first.SACL), presence(second.HasSACL(), second.SACL))
	return append(rows, diffLists("sacl entry", aceTexts(first.SACL, true), aceTexts(second.SACL, true))...)
}

// diffLists walks a longest common subsequence of two lists, bounded by the lists' own bound of 64 KiB.
func diffLists(part string, x, y []string) (rows []diffRow) {
	start := 0
	for start < len(x) && start < len(y) && x[start] == y[start] {
		start++
	}
	x, y = x[start:], y[start:]
	length := make([][]int, len(x)+1) // of the longest common subsequence of x[i:] and y[j:]
	for i := range length {
		length[i] = make([]int, len(y)+1)
	}
	for i := range slices.Backward(x) {
		for j := range slices.Backward(y) {
			if x[i] == y[j] {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(x) || j < len(y); {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && length[i+1][j] >= length[i][j+1]:
			rows = append(rows, diffRow{"-", fmt.Sprintf("%s %d", part, start+i), x[i]})
			i++
		default:
			rows = append(rows, diffRow{"+", fmt.Sprintf("%s %d", part, start+j), y[j]})
			j++
		}
	}
	return rows
}
