package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/security"
	"sallyport/subsys/lsass/lsa"
)

// denialRow is a logged refusal as explain prints it.
type denialRow struct {
	Decision uint64    `json:"decision"`
	Time     time.Time `json:"time"`
	User     string    `json:"user"`
	PID      int       `json:"pid"`
	Object   string    `json:"object"`
	Right    string    `json:"right"`
	Status   string    `json:"status"`
	Op       string    `json:"op"`
	Reporter uint64    `json:"reporter"` // attachment of the server that refused; 0: the core
	Why      []string  `json:"why"`
	Security string    `json:"security"`
	Hint     string    `json:"hint"`
}

func denialRowOf(d alpc.Denial) denialRow {
	return denialRow{Decision: d.Decision, Time: d.Time.UTC(), User: d.User, PID: d.PID, Object: d.Object, Right: d.Right, Status: d.Status.String(), Op: d.Op,
		Reporter: d.Reporter, Why: d.Trace, Security: d.SecurityDescriptor, Hint: d.Hint}
}

// verdictReport answers a question asked beforehand.
type verdictReport struct {
	Outcome  string   `json:"outcome"` // allowed or denied
	Status   string   `json:"status"`
	Subject  string   `json:"subject"`
	Object   string   `json:"object"`
	Asked    string   `json:"asked"`
	Granted  string   `json:"granted"`
	Why      []string `json:"why"`
	Security string   `json:"security"`
}

// portRights are the words of --right. A number does, too.
func portRights() security.RightNames {
	return security.RightNames{
		{Name: "PORT_ALL_ACCESS", Mask: 0x1F0001}, {Name: "PORT_CONNECT", Mask: 0x1},
		{Name: "DIRECTORY_QUERY", Mask: 0x1}, {Name: "DIRECTORY_TRAVERSE", Mask: 0x2}, {Name: "DIRECTORY_CREATE_OBJECT", Mask: 0x4}, {Name: "DIRECTORY_CREATE_SUBDIRECTORY", Mask: 0x8},
		{Name: "DELETE", Mask: security.Delete}, {Name: "READ_CONTROL", Mask: security.ReadControl}, {Name: "WRITE_DAC", Mask: security.WriteDAC},
		{Name: "WRITE_OWNER", Mask: security.WriteOwner}, {Name: "MAXIMUM_ALLOWED", Mask: security.MaximumAllowed},
	}
}

func explainCommand(a *app) *cobra.Command {
	var user, token, port, descriptor, right string
	var after uint64
	c := &cobra.Command{
		Use:   "explain [DECISION]",
		Short: "why somebody was refused, or would be: which entry decides",
		Long: `With a number, explain shows that decision from the core's log of denials. Without one it lists the log, or answers a question
that is asked beforehand, by the same check that would decide: may --user (or --token; else the caller) have --right on --port
(or under the descriptor --security)? The entry that decided is shown to administrators and to those who may read the descriptor.
An answer of "denied" ends with 4.`,
		Example: `  sallyport explain 17
  sallyport explain
  sallyport explain --user alice --port '\LsaAuthenticationPort' --right PORT_CONNECT
  sallyport explain --security 'O:SYG:SYD:(D;;GA;;;BG)(A;;0x1;;;AU)' --right 0x1`,
		Args: cobra.MaximumNArgs(1),
	}
	f := c.Flags()
	f.StringVar(&user, "user", "", "account or `SID` whose rights are asked for; an account is taken as logged on with all its groups")
	f.StringVar(&token, "token", "", "`id` of a token object whose rights are asked for")
	f.StringVar(&port, "port", "", "`name` of the port or directory")
	f.StringVar(&descriptor, "security", "", "a descriptor in `SDDL`, instead of --port")
	f.StringVar(&right, "right", "", "`right` by name or number, several with | (default: what it takes to connect)")
	f.Uint64Var(&after, "after", 0, "list only denials after this decision")
	c.MarkFlagsMutuallyExclusive("user", "token")
	c.MarkFlagsMutuallyExclusive("port", "security")
	must(c.RegisterFlagCompletionFunc("port", a.complete(func(ctx context.Context, sys *alpc.System, _ []string) ([]string, error) { return portNames(ctx, sys) })))
	must(c.RegisterFlagCompletionFunc("user", a.complete(func(ctx context.Context, sys *alpc.System, _ []string) ([]string, error) {
		return a.userNames(ctx, sys, nil)
	})))
	c.RunE = a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		switch {
		case len(args) == 1:
			n, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usage("decision %s: it takes the number that the denial named", args[0])
			}
			d, err := sys.Explain(ctx, n)
			if err != nil {
				return hinted(err, "the log is bounded: old decisions are forgotten. \"sallyport explain\" lists those that are kept")
			}
			return a.printOne(denialRowOf(d))
		case port == "" && descriptor == "":
			if user != "" || token != "" || right != "" {
				return usage("on what? name it with --port or --security")
			}
			denials, err := sys.Denials(ctx, after)
			if err != nil {
				return err
			}
			rows := make([]denialRow, 0, len(denials))
			for _, d := range denials {
				rows = append(rows, denialRowOf(d))
			}
			return a.printList(rows)
		}
		q := alpc.Question{Name: port, SecurityDescriptor: descriptor}
		var err error
		if q.Desired, err = parseRight(right); err != nil {
			return err
		}
		subject := "the caller"
		switch {
		case token != "":
			id, err := parseLUID(token)
			if err != nil {
				return err
			}
			q.TokenID, subject = id, "token "+token
		case user != "":
			if q.Token, err = imagined(ctx, sys, user); err != nil {
				return err
			}
			subject = user + " (" + q.Token.User.SID.String() + ")"
		}
		v, err := sys.Evaluate(ctx, q)
		if err != nil {
			return err
		}
		report := verdictReport{Outcome: "allowed", Status: v.Status.String(), Subject: subject, Object: port + descriptor, Asked: portRights().Describe(q.Desired),
			Granted: portRights().Describe(v.Granted), Why: v.Trace, Security: v.SecurityDescriptor}
		if q.Desired == 0 {
			report.Asked = "what it takes to use it"
		}
		if v.Status != ntstatus.Success {
			report.Outcome = "denied"
		}
		if err := a.printOne(report); err != nil {
			return err
		}
		if v.Status != ntstatus.Success {
			return exitStatus(exitDenied)
		}
		return nil
	})
	return c
}

// parseRight reads "PORT_CONNECT|READ_CONTROL" or a number.
func parseRight(text string) (security.AccessMask, error) {
	var mask security.AccessMask
	for word := range strings.SplitSeq(text, "|") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		if n, err := strconv.ParseUint(word, 0, 32); err == nil {
			mask |= security.AccessMask(n)
			continue
		}
		found := false
		for _, r := range portRights() {
			if strings.EqualFold(r.Name, word) {
				mask, found = mask|r.Mask, true
			}
		}
		if !found {
			return 0, usage("right %s: it is no right of ports or directories, nor a number", word)
		}
	}
	return mask, nil
}

// parseLUID reads a LUID as it is printed, "high:low" in hexadecimal, or as one number.
func parseLUID(text string) (security.LUID, error) {
	var high, low uint32
	if n, err := fmt.Sscanf(text, "%x:%x", &high, &low); n == 2 && err == nil {
		return security.LUID(uint64(high)<<32 | uint64(low)), nil
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		return 0, usage("token %s: it takes an id as \"sallyport whoami\" prints it", text)
	}
	return security.LUID(n), nil
}

// imagined is the token that a user's interactive logon would have, as far as the access check cares.
func imagined(ctx context.Context, sys *alpc.System, user string) (*security.Token, error) {
	t := &security.Token{Type: security.TokenPrimary, Integrity: security.IntegrityMedium()}
	add := func(sids ...security.SID) {
		for _, sid := range sids {
			t.Groups = append(t.Groups, security.Group{SID: sid, Attributes: security.GroupDefault})
		}
	}
	add(security.Everyone(), security.AuthenticatedUsers(), security.Interactive())
	if sid, err := security.ParseSID(user); err == nil {
		t.User.SID = sid
	} else {
		c, err := lsa.Dial(ctx, sys)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		u, err := c.QueryUser(ctx, user)
		if err != nil {
			return nil, err
		}
		if t.User.SID, err = security.ParseSID(u.Sid); err != nil {
			return nil, err
		}
		for _, alias := range u.Aliases {
			switch strings.TrimPrefix(alias, `BUILTIN\`) {
			case "Administrators":
				add(security.Administrators())
				t.Integrity = security.IntegrityHigh()
			case "Users":
				add(security.Users())
			case "Guests":
				add(security.Guests())
			}
		}
		add(security.UnixUser(u.UnixUid), security.UnixGroup(u.UnixGid))
	}
	t.Owner, t.PrimaryGroup = t.User.SID, t.User.SID
	return t, nil
}
