package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/proto/lsapb"
	"sallyport/proto/smpb"
	"sallyport/security"
	"sallyport/subsys/lsass/lsa"
	"sallyport/subsys/smss/sm"
	"sallyport/subsys/winlogon"
)

// sessionRow is a session of smss's as the verbs print it.
type sessionRow struct {
	Session   uint32     `json:"session"`
	State     string     `json:"state"`
	Users     []string   `json:"users"` // who is logged on in it
	Processes uint32     `json:"processes"`
	Created   *time.Time `json:"created"`
	Creator   string     `json:"creator"`
	Reason    string     `json:"reason"`
}

// enumWord is the last part of a protobuf enumeration's name, in lower case.
func enumWord(name, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", " "))
}

// logonRow is a logon session of lsass's.
type logonRow struct {
	LogonSID string     `json:"logon_sid"`
	User     string     `json:"user"`
	Type     string     `json:"type"`
	Session  uint32     `json:"session"`
	Since    *time.Time `json:"since"`
	Tokens   uint32     `json:"tokens"`
	Origin   string     `json:"origin"`
	UserSID  string     `json:"user_sid"`
}

func (a *app) sessionNumbers(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
	if len(args) > 0 {
		return nil, nil
	}
	c, err := sm.Dial(ctx, sys)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	sessions, err := c.Sessions(ctx)
	var names []string
	for _, s := range sessions {
		names = append(names, strconv.FormatUint(uint64(s.Session), 10))
	}
	return names, err
}

func sessionCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "session", Short: "sessions and logons: list, logons, end, logoff"}
	c.AddCommand(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "the sessions, and who is logged on in them", Args: cobra.NoArgs,
		RunE: a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
			c, err := sm.Dial(ctx, sys)
			if err != nil {
				return err
			}
			defer c.Close()
			sessions, err := c.Sessions(ctx)
			if err != nil {
				return err
			}
			// Who may not ask the authority still sees the sessions.
			users := map[uint32][]string{}
			if logons, err := logonSessions(ctx, sys); err == nil {
				for _, l := range logons {
					users[l.Session] = append(users[l.Session], l.User)
				}
			}
			rows := make([]sessionRow, 0, len(sessions))
			for _, s := range sessions {
				rows = append(rows, sessionRow{Session: s.Session, State: enumWord(smpb.SessionState_name[int32(s.State)], "SESSION_STATE_"),
					Users: users[s.Session], Processes: s.Processes, Created: moment(s.CreatedUnixNs), Creator: s.Creator, Reason: s.Reason})
			}
			return a.printList(rows)
		}),
	}, &cobra.Command{
		Use: "logons", Short: "the logon sessions that the caller may see", Args: cobra.NoArgs,
		RunE: a.withSystem(func(ctx context.Context, sys *alpc.System, _ []string) error {
			logons, err := logonSessions(ctx, sys)
			if err != nil {
				return err
			}
			rows := make([]logonRow, 0, len(logons))
			for _, l := range logons {
				rows = append(rows, logonRow{LogonSID: l.LogonSid, User: l.User, Type: enumWord(l.LogonType.String(), "LOGON_TYPE_"), Session: l.Session,
					Since: moment(l.LogonTimeUnixNano), Tokens: l.Tokens, Origin: l.Origin, UserSID: l.UserSid})
			}
			return a.printList(rows)
		}),
	}, &cobra.Command{
		Use: "end SESSION", Short: "end a session: every process in it is stopped", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.sessionNumbers),
		RunE: a.withManager(func(ctx context.Context, c *sm.Client, args []string) error {
			n, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil {
				return usage("session %s: it takes a number; \"sallyport session list\" shows them", args[0])
			}
			return c.TerminateSession(ctx, uint32(n))
		}),
	}, &cobra.Command{
		Use: "logoff LOGON-SID", Short: "end a logon session: its tokens stop working", Args: cobra.ExactArgs(1),
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, args []string) error {
			sid, err := security.ParseSID(args[0])
			if err != nil || !sid.HasPrefix(security.LogonSID(0).Domain().Domain()) || sid.Len() != 3 {
				return usage("%s is not a logon SID (S-1-5-5-…): \"sallyport session logons\" shows them", args[0])
			}
			return c.LogOff(ctx, security.LUID(uint64(sid.Sub(1))<<32|uint64(sid.Sub(2))))
		}),
	})
	return c
}

func logonSessions(ctx context.Context, sys *alpc.System) ([]*lsapb.LogonSession, error) {
	c, err := lsa.Dial(ctx, sys)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.LogonSessions(ctx)
}

func logonCommand(a *app) *cobra.Command {
	var noAttach bool
	c := &cobra.Command{
		Use:   "logon",
		Short: "make an interactive session and log on in it, at this terminal",
		Long: `Logon asks smss for a new session, with a csrss and a winlogon of its own, and shows winlogon's console on this
terminal: it asks for name and password and starts the user's shell. The session ends with the shell.

Ctrl-] takes this terminal away and leaves the session running; "sallyport console attach" comes back to it.`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVar(&noAttach, "no-attach", false, "make the session and print its number")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.attached(cmd.Context(), func(sys *alpc.System) error {
			ctx, cancel := a.bounded(cmd.Context())
			defer cancel()
			c, err := sm.Dial(ctx, sys)
			if err != nil {
				return err
			}
			defer c.Close()
			session, err := c.CreateSession(ctx, nil, "")
			if err != nil {
				return err
			}
			if noAttach {
				_, err := fmt.Fprintln(a.stdout, session)
				return err
			}
			return a.view(cmd.Context(), sys, session, winlogon.ConsoleName, false)
		})
	}
	return c
}
