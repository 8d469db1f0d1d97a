package cli

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/alpc"
	"sallyport/proto/lsapb"
	"sallyport/subsys/lsass/lsa"
)

// userRow is an account as the verbs print it.
type userRow struct {
	Name        string     `json:"name"`
	SID         string     `json:"sid"`
	State       string     `json:"state"` // enabled, disabled, locked
	Groups      []string   `json:"groups"`
	UID         uint32     `json:"uid"`
	GID         uint32     `json:"gid"`
	LastLogon   *time.Time `json:"last_logon"`
	Logons      uint64     `json:"logons"`
	BadPassword uint32     `json:"bad_passwords"`
	LockedUntil *time.Time `json:"locked_until"`
	PasswordSet *time.Time `json:"password_set"`
	MustChange  bool       `json:"must_change_password"`
	Expires     *time.Time `json:"expires"`
	Home        string     `json:"home"`
	Shell       string     `json:"shell"`
	FullName    string     `json:"full_name"`
}

func userRowOf(u *lsapb.User) userRow {
	state := "enabled"
	switch {
	case u.Disabled:
		state = "disabled"
	case u.Locked:
		state = "locked"
	}
	return userRow{Name: u.Name, SID: u.Sid, State: state, Groups: u.Aliases, UID: u.UnixUid, GID: u.UnixGid, LastLogon: moment(u.LastLogonUnixNano),
		Logons: u.LogonCount, BadPassword: u.BadPasswordCount, LockedUntil: moment(u.LockoutUntilUnixNano), PasswordSet: moment(u.PasswordSetUnixNano),
		MustChange: u.MustChangePassword, Expires: moment(u.ExpiresUnixNano), Home: u.Home, Shell: u.Shell, FullName: u.FullName}
}

// moment is a time that may be absent (0) or beyond any (the largest number).
func moment(ns int64) *time.Time {
	if ns == 0 || ns == math.MaxInt64 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

// withAuthority runs f with a client of lsass.
func (a *app) withAuthority(f func(ctx context.Context, c *lsa.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.withSystem(func(ctx context.Context, sys *alpc.System, args []string) error {
		c, err := lsa.Dial(ctx, sys)
		if err != nil {
			return err
		}
		defer c.Close()
		return f(ctx, c, args)
	})
}

func (a *app) userNames(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
	if len(args) > 0 {
		return nil, nil
	}
	c, err := lsa.Dial(ctx, sys)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	users, err := c.Users(ctx)
	var names []string
	for _, u := range users {
		names = append(names, u.Name)
	}
	return names, err
}

func userCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "user", Short: "accounts: add, list, passwd, disable, enable, unlock, delete, …"}
	c.AddCommand(userAddCommand(a), userListCommand(a), userShowCommand(a), userSetCommand(a), userPasswdCommand(a), userDeleteCommand(a),
		userMemberCommand(a, "grant", "make an account a member of a group, such as Administrators", (*lsa.Client).AddMember),
		userMemberCommand(a, "revoke", "end a membership", (*lsa.Client).RemoveMember),
		userStateCommand(a, "disable", "forbid an account to log on", (*lsa.Client).DisableUser),
		userStateCommand(a, "enable", "allow it again", (*lsa.Client).EnableUser),
		userStateCommand(a, "unlock", "end the lockout that wrong passwords caused", (*lsa.Client).UnlockUser))
	return c
}

func userAddCommand(a *app) *cobra.Command {
	r := &lsapb.CreateUserRequest{}
	var uid, gid uint32
	var admin bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "make an account; its password is asked for",
		Example: `  sallyport user add alice
  sallyport user add backup --admin --password-fd 3 3<password.txt`,
		Args: cobra.ExactArgs(1),
	}
	p := passwordFlag(a, c)
	f := c.Flags()
	f.StringVar(&r.FullName, "full-name", "", "the person's `name`")
	f.StringVar(&r.Home, "home", "", "home `directory`")
	f.StringVar(&r.Shell, "shell", "", "`program` that a logon starts")
	f.Uint32Var(&uid, "uid", 0, "unix `uid` (default: allocated as root, else the instance's own)")
	f.Uint32Var(&gid, "gid", 0, "unix `gid`")
	f.BoolVar(&r.Disabled, "disabled", false, "make it disabled")
	f.BoolVar(&r.MustChangePassword, "must-change", false, "the password has to be changed at the first logon")
	f.BoolVar(&admin, "admin", false, "make it an administrator")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r.Name = args[0]
		if f.Changed("uid") {
			r.UnixUid = &uid
		}
		if f.Changed("gid") {
			r.UnixGid = &gid
		}
		password, err := p.read(cmd.Context(), "password for "+r.Name+": ", true)
		if err != nil {
			return err
		}
		defer clear(password)
		r.Password = password
		return a.withAuthority(func(ctx context.Context, c *lsa.Client, _ []string) error {
			u, err := c.CreateUser(ctx, r)
			if err == nil && admin {
				u, err = c.AddMember(ctx, "Administrators", r.Name)
			}
			if err != nil {
				return err
			}
			return a.printOne(userRowOf(u))
		})(cmd, args)
	}
	return c
}

func userListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "the accounts", Args: cobra.NoArgs,
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, _ []string) error {
			users, err := c.Users(ctx)
			if err != nil {
				return err
			}
			rows := make([]userRow, 0, len(users))
			for _, u := range users {
				rows = append(rows, userRowOf(u))
			}
			return a.printList(rows)
		}),
	}
}

func userShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "one account", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.userNames),
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, args []string) error {
			u, err := c.QueryUser(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printOne(userRowOf(u))
		}),
	}
}

func userSetCommand(a *app) *cobra.Command {
	var fullName, home, shell, expires string
	var uid, gid uint32
	var mustChange bool
	c := &cobra.Command{Use: "set NAME", Short: "change what an account's record says", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.userNames)}
	f := c.Flags()
	f.StringVar(&fullName, "full-name", "", "the person's `name`")
	f.StringVar(&home, "home", "", "home `directory`")
	f.StringVar(&shell, "shell", "", "`program` that a logon starts")
	f.StringVar(&expires, "expires", "", "last `day` of the account, as 2030-12-31; \"never\"")
	f.Uint32Var(&uid, "uid", 0, "unix `uid`")
	f.Uint32Var(&gid, "gid", 0, "unix `gid`")
	f.BoolVar(&mustChange, "must-change", false, "the password has to be changed at the next logon")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r := &lsapb.SetUserInfoRequest{Name: args[0]}
		for name, set := range map[string]func(){
			"full-name": func() { r.FullName = &fullName }, "home": func() { r.Home = &home }, "shell": func() { r.Shell = &shell },
			"uid": func() { r.UnixUid = &uid }, "gid": func() { r.UnixGid = &gid }, "must-change": func() { r.MustChangePassword = &mustChange },
		} {
			if f.Changed(name) {
				set()
			}
		}
		if f.Changed("expires") {
			ns := int64(0)
			if expires != "never" {
				day, err := time.ParseInLocation(time.DateOnly, expires, time.Local)
				if err != nil {
					return usage("--expires %s: %v", expires, err)
				}
				ns = day.AddDate(0, 0, 1).UnixNano()
			}
			r.ExpiresUnixNano = &ns
		}
		return a.withAuthority(func(ctx context.Context, c *lsa.Client, _ []string) error {
			u, err := c.SetUserInfo(ctx, r)
			if err != nil {
				return err
			}
			return a.printOne(userRowOf(u))
		})(cmd, args)
	}
	return c
}

func userPasswdCommand(a *app) *cobra.Command {
	var change, mustChange bool
	c := &cobra.Command{
		Use:   "passwd NAME",
		Short: "give an account a new password",
		Long: `Passwd sets a password, for which an administrator need not know the old one. With --change the old password is asked for
first, and its knowledge is what allows the change; on standard input or --password-fd it is the first line.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.userNames),
	}
	p := passwordFlag(a, c)
	c.Flags().BoolVar(&change, "change", false, "change a password that is known")
	c.Flags().BoolVar(&mustChange, "must-change", false, "the new one has to be changed at the next logon")
	c.MarkFlagsMutuallyExclusive("change", "must-change")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var old []byte
		var err error
		if change {
			if old, err = p.read(cmd.Context(), "old password of "+args[0]+": ", false); err != nil {
				return err
			}
			defer clear(old)
		}
		password, err := p.read(cmd.Context(), "new password of "+args[0]+": ", true)
		if err != nil {
			return err
		}
		defer clear(password)
		return a.withAuthority(func(ctx context.Context, c *lsa.Client, _ []string) error {
			if change {
				return c.ChangePassword(ctx, args[0], old, password)
			}
			return c.SetPassword(ctx, args[0], password, mustChange)
		})(cmd, args)
	}
	return c
}

func userDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "remove an account", Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.userNames),
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, args []string) error { return c.DeleteUser(ctx, args[0]) }),
	}
}

func userStateCommand(a *app, verb, short string, do func(*lsa.Client, context.Context, string) (*lsapb.User, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(a.userNames),
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, args []string) error {
			u, err := do(c, ctx, args[0])
			if err != nil {
				return err
			}
			return a.printOne(userRowOf(u))
		}),
	}
}

func userMemberCommand(a *app, verb, short string, do func(*lsa.Client, context.Context, string, string) (*lsapb.User, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME GROUP", Short: short, Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.complete(func(ctx context.Context, sys *alpc.System, args []string) ([]string, error) {
			if len(args) == 1 {
				return []string{"Administrators", "Users"}, nil
			}
			return a.userNames(ctx, sys, args)
		}),
		RunE: a.withAuthority(func(ctx context.Context, c *lsa.Client, args []string) error {
			u, err := do(c, ctx, strings.TrimPrefix(args[1], `BUILTIN\`), args[0])
			if err != nil {
				return err
			}
			return a.printOne(userRowOf(u))
		}),
	}
}
