package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys/lsass/lsa"
)

// whoamiReport is what whoami prints.
type whoamiReport struct {
	User       string     `json:"user"`
	Name       string     `json:"name"` // by lsass, where it can be asked
	Source     string     `json:"source"`
	Evidence   string     `json:"evidence"`
	Session    uint32     `json:"session"`
	Logon      string     `json:"logon_id"`
	Integrity  string     `json:"integrity"`
	TokenID    string     `json:"token_id"`
	Attachment uint64     `json:"attachment"`
	Groups     []groupRow `json:"groups"`
	Privileges []string   `json:"privileges"`
}

type groupRow struct {
	SID  string `json:"sid"`
	Name string `json:"name"`
	Uses string `json:"uses"` // how it counts: allow, deny only
}

func whoamiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "who the core says this process is, and how it knows",
		Args:  cobra.NoArgs,
		RunE: a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
			t := sys.Token()
			report := whoamiReport{User: t.User.SID.String(), Session: t.SessionID, Logon: t.AuthenticationID.String(), Integrity: integrityName(t.Integrity),
				TokenID: t.TokenID.String(), Attachment: sys.ID()}
			attachments, err := sys.Attachments(ctx)
			if err != nil {
				return err
			}
			for _, at := range attachments {
				if at.ID == sys.ID() {
					report.Source, report.Evidence = at.Source, at.Evidence
				}
			}
			sids := []security.SID{t.User.SID}
			for _, g := range t.Groups {
				sids = append(sids, g.SID)
			}
			names := sidNames(ctx, sys, sids)
			report.Name = names[t.User.SID]
			for _, g := range t.Groups {
				uses := "off"
				switch {
				case g.Attributes&security.GroupUseForDenyOnly != 0:
					uses = "deny only"
				case g.Attributes&security.GroupEnabled != 0:
					uses = "allow and deny"
				}
				report.Groups = append(report.Groups, groupRow{SID: g.SID.String(), Name: names[g.SID], Uses: uses})
			}
			for _, p := range t.Privileges {
				state := " (off)"
				if t.Has(p.Privilege) {
					state = ""
				}
				report.Privileges = append(report.Privileges, p.Privilege.String()+state)
			}
			return a.printOne(report)
		}),
	}
}

// sidNames asks lsass for the names of SIDs. Without lsass there are none: the verbs that print them also print the SIDs.
func sidNames(ctx context.Context, sys *alpc.System, sids []security.SID) map[security.SID]string {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	names := map[security.SID]string{}
	c, err := lsa.Dial(ctx, sys)
	if err != nil {
		return names
	}
	defer c.Close()
	found, _, err := c.LookupSIDs(ctx, sids...)
	if err != nil && ntstatus.Of(err) != ntstatus.NoneMapped {
		return names
	}
	for i, l := range found {
		if i < len(sids) && l.Use != lsapb.NameUse_NAME_USE_UNKNOWN && l.Name != "" {
			names[sids[i]] = strings.TrimPrefix(l.Domain+`\`+l.Name, `\`)
		}
	}
	return names
}

// integrityName is an integrity label in a word, or the SID where it is between the words.
func integrityName(sid security.SID) string {
	for name, label := range map[string]security.SID{
		"untrusted": security.IntegrityUntrusted(), "low": security.IntegrityLow(), "medium": security.IntegrityMedium(),
		"high": security.IntegrityHigh(), "system": security.IntegritySystem(),
	} {
		if sid == label {
			return name
		}
	}
	return sid.String()
}
