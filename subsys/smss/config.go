package smss

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"sallyport/ntstatus"
	"sallyport/security"
)

// defaultTOML is read before any file.
//
//go:embed default.toml
var defaultTOML []byte

// Config is what smss is told to run. Load makes it; it is not changed afterwards.
type Config struct {
	UIDBase             uint32                      `toml:"uid_base"`
	ShutdownGrace       Duration                    `toml:"shutdown_grace"`
	UsersCreateSessions bool                        `toml:"users_create_sessions"`
	MaxSessions         uint32                      `toml:"max_sessions"`
	MaxSessionsPerUser  uint32                      `toml:"max_sessions_per_user"`
	Directories         map[string]*DirectoryConfig `toml:"directory"`
	SessionDirectories  map[string]*DirectoryConfig `toml:"session_directory"`
	Servers             map[string]*ServerConfig    `toml:"server"`
	SessionServers      map[string]*ServerConfig    `toml:"session_server"`
}

// DirectoryConfig is one directory of the namespace.
type DirectoryConfig struct {
	Descriptor SDDL `toml:"descriptor"`
}

// ServerConfig is one server.
type ServerConfig struct {
	Disabled     bool                   `toml:"disabled"`
	Order        int                    `toml:"order"`   // start order; stopped in reverse. Servers of one order by name
	Command      []string               `toml:"command"` // empty: the program itself, "server NAME"
	Args         []string               `toml:"args"`    // after those
	Env          map[string]string      `toml:"env"`
	Start        StartMode              `toml:"start"`
	Ready        ReadyMode              `toml:"ready"`
	Restart      Restart                `toml:"restart"`
	Restarts     uint16                 `toml:"restarts"` // budget within the window
	Within       Duration               `toml:"within"`
	Backoff      Duration               `toml:"backoff"`
	BackoffMax   Duration               `toml:"backoff_max"`
	ReadyTimeout Duration               `toml:"ready_timeout"`
	StopTimeout  Duration               `toml:"stop_timeout"`
	Critical     bool                   `toml:"critical"`
	Terminal     bool                   `toml:"terminal"` // session servers: gets the terminal that the session was made with
	User         User                   `toml:"user"`
	UID          uint16                 `toml:"uid"` // added to uid_base
	Privileges   []Privilege            `toml:"privileges"`
	Ports        map[string]*PortConfig `toml:"port"`
}

// PortConfig is a port that is declared for a server.
type PortConfig struct {
	Descriptor SDDL `toml:"descriptor"`
}

// newServerConfig is what a [server.NAME] starts from.
func newServerConfig() *ServerConfig {
	return &ServerConfig{
		Order: 100, Restarts: 5, Within: Duration(time.Minute), Backoff: Duration(100 * time.Millisecond), BackoffMax: Duration(5 * time.Second),
		ReadyTimeout: Duration(30 * time.Second), StopTimeout: Duration(10 * time.Second), User: User{security.LocalService()},
		Privileges: []Privilege{Privilege(security.SeChangeNotify)},
	}
}

// Duration is written "1m30s".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration does, but nothing negative.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write \"500ms\", \"10s\" or \"1m30s\"", text)
	}
	*d = Duration(v)
	return nil
}

// SDDL is a security descriptor in its text form, which has been parsed once.
type SDDL struct{ text string }

// UnmarshalText refuses what is not a descriptor with a DACL: without one everybody could do everything.
func (s *SDDL) UnmarshalText(text []byte) error {
	d, err := security.ParseSDDL(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a descriptor: %w", text, err)
	}
	if d.DACL == nil {
		return fmt.Errorf("%q has no DACL, so everybody could do everything: add \"D:(A;;GA;;;SY)\" with entries for whom you mean", text)
	}
	s.text = string(text)
	return nil
}

// User is a SID, written as such or as LocalSystem, LocalService or NetworkService.
type User struct{ security.SID }

// UnmarshalText reads a User.
func (u *User) UnmarshalText(text []byte) (err error) {
	switch string(text) {
	case "LocalSystem":
		u.SID = security.LocalSystem()
	case "LocalService":
		u.SID = security.LocalService()
	case "NetworkService":
		u.SID = security.NetworkService()
	default:
		if u.SID, err = security.ParseSID(string(text)); err != nil {
			return fmt.Errorf("%q is not a user: write LocalSystem, LocalService, NetworkService or a SID (S-1-…)", text)
		}
	}
	return nil
}

// Privilege is written by NT's name.
type Privilege security.Privilege

// UnmarshalText reads a Privilege.
func (p *Privilege) UnmarshalText(text []byte) error {
	v, err := security.ParsePrivilege(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a privilege: write its full name, as \"SeTcbPrivilege\"", text)
	}
	*p = Privilege(v)
	return nil
}

// StartMode is written "boot" (false) or "demand" (true).
type StartMode bool

// UnmarshalText reads a StartMode.
func (s *StartMode) UnmarshalText(text []byte) error {
	return choose((*bool)(s), text, map[string]bool{"boot": false, "demand": true})
}

// ReadyMode is written "report" (false: the server says Ready) or "start" (true: its process exists).
type ReadyMode bool

// UnmarshalText reads a ReadyMode.
func (r *ReadyMode) UnmarshalText(text []byte) error {
	return choose((*bool)(r), text, map[string]bool{"report": false, "start": true})
}

// Restart is written "always", "on-failure" or "never".
type Restart restartPolicy

// UnmarshalText reads a Restart.
func (r *Restart) UnmarshalText(text []byte) error {
	return choose((*restartPolicy)(r), text, map[string]restartPolicy{"always": restartAlways, "on-failure": restartOnFailure, "never": restartNever})
}

func choose[T any](to *T, text []byte, from map[string]T) error {
	v, ok := from[string(text)]
	if !ok {
		var words []string
		for w := range from {
			words = append(words, fmt.Sprintf("%q", w))
		}
		slices.Sort(words)
		return fmt.Errorf("%q is not known here: write %s", text, strings.Join(words, " or "))
	}
	*to = v
	return nil
}

// ConfigError is one thing that is wrong with a file.
type ConfigError struct {
	File         string
	Line, Column int // from 1; 0 where the whole file is meant
	Text         string
}

// Error has the form that editors jump to.
func (e *ConfigError) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
}

// Load reads the built-in configuration, then the file (which need not exist), then the files of its drop-in directory
// ("sallyport.d/*.toml" beside "sallyport.toml") in the order of their names. builtin are the servers that the program
// has; where they are given, a server without a command must be one of them. All that is wrong in the first bad file is reported at once, as
// joined *ConfigErrors under INVALID_PARAMETER.
func Load(path string, builtin ...string) (*Config, error) {
	c := new(Config)
	if err := c.merge("built-in", defaultTOML, nil); err != nil {
		return nil, ntstatus.Errorf("smss.Load", "built-in", ntstatus.InternalError, "%w", err)
	}
	if path == "" {
		return c, nil
	}
	drop, err := filepath.Glob(strings.TrimSuffix(path, ".toml") + ".d/*.toml")
	if err != nil {
		return nil, ntstatus.Wrap("smss.Load", path, err)
	}
	for _, file := range append([]string{path}, drop...) {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && file == path {
			continue
		}
		if err != nil {
			return nil, ntstatus.Wrap("smss.Load", file, err)
		}
		if err := c.merge(file, text, builtin); err != nil {
			return nil, ntstatus.Errorf("smss.Load", file, ntstatus.InvalidParameter, "the configuration has errors:\n%w", err)
		}
	}
	return c, nil
}

// merge reads one file over what is there.
func (c *Config) merge(file string, text []byte, builtin []string) error {
	at := places(text)
	// A table that the file begins anew starts from the defaults, not from zero.
	for key := range at {
		part := strings.Split(key, keySeparator)
		if len(part) < 2 {
			continue
		}
		switch part[0] {
		case "server":
			begin(&c.Servers, part[1], newServerConfig)
		case "session_server":
			begin(&c.SessionServers, part[1], newServerConfig)
		}
	}
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var all []error
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			row, column := e.Position()
			all = append(all, &ConfigError{file, row, column, fmt.Sprintf("unknown key %q: %s", strings.Join(e.Key(), "."), keysBeside(e.Key()))})
		}
		return errors.Join(all...)
	case errors.As(err, &bad):
		row, column := bad.Position()
		return &ConfigError{file, row, column, strings.TrimPrefix(bad.Error(), "toml: ")}
	case err != nil:
		return &ConfigError{File: file, Text: err.Error()}
	}
	return c.check(file, at, builtin)
}

func begin[T any](m *map[string]*T, key string, fresh func() *T) {
	if *m == nil {
		*m = map[string]*T{}
	}
	if (*m)[key] == nil {
		(*m)[key] = fresh()
	}
}

// check is what types can't say. Errors are placed at the nearest key that the file has; of what it does not have, at its end.
func (c *Config) check(file string, at map[string]unstable.Position, builtin []string) error {
	var all []error
	wrong := func(format string, args []any, key ...string) {
		e := &ConfigError{File: file, Text: fmt.Sprintf(format, args...)}
		for n := len(key); n > 0; n-- {
			if p, ok := at[strings.Join(key[:n], keySeparator)]; ok {
				e.Line, e.Column = p.Line, p.Column
				break
			}
		}
		all = append(all, e)
	}
	type a = []any
	if c.UIDBase != 0 && (c.UIDBase < 1000 || c.UIDBase > 1<<31) {
		wrong("uid_base %d is in the range of the system's own accounts: choose one from 1000 to 2147483648, or 0 to run all servers as root", a{c.UIDBase}, "uid_base")
	}
	if c.ShutdownGrace == 0 {
		wrong("shutdown_grace must be more than nothing", nil, "shutdown_grace")
	}
	for table, dirs := range map[string]map[string]*DirectoryConfig{"directory": c.Directories, "session_directory": c.SessionDirectories} {
		for name, d := range dirs {
			c.checkName(wrong, table == "session_directory", name, d.Descriptor, table, name)
		}
	}
	owner := map[string]string{}
	for table, servers := range map[string]map[string]*ServerConfig{"server": c.Servers, "session_server": c.SessionServers} {
		for name, s := range servers {
			switch {
			case name == "" || len(name) > 32 || strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(nameLetters, r) }):
				wrong("%q can't name a server: use up to 32 of the letters a-z, digits and \"-\"", a{name}, table, name)
			case s.Disabled:
			case len(s.Command) > 0 && !filepath.IsAbs(s.Command[0]):
				wrong("command %q is not an absolute path", a{s.Command[0]}, table, name, "command")
			case len(s.Command) == 0 && builtin != nil && !slices.Contains(builtin, name):
				wrong("the program has no server %q (it has %s): add command = [\"/path/of/it\"]", a{name, strings.Join(builtin, ", ")}, table, name)
			}
			if s.BackoffMax < s.Backoff {
				wrong("backoff_max %v is less than backoff %v", a{time.Duration(s.BackoffMax), time.Duration(s.Backoff)}, table, name, "backoff_max")
			}
			for key, d := range map[string]Duration{"within": s.Within, "ready_timeout": s.ReadyTimeout, "stop_timeout": s.StopTimeout} {
				if d == 0 {
					wrong("%s must be more than nothing", a{key}, table, name, key)
				}
			}
			if s.Start && len(s.Ports) == 0 {
				wrong("start = \"demand\" needs a port whose first client starts the server: add [%s.%s.port.'\\…']", a{table, name}, table, name, "start")
			}
			for port, p := range s.Ports {
				c.checkName(wrong, table == "session_server", port, p.Descriptor, table, name, "port", port)
				if s.Disabled {
					continue
				}
				if other, taken := owner[strings.ToLower(port)]; taken {
					wrong("port %s is declared for %s too: only one server can have it", a{port, other}, table, name, "port", port)
				}
				owner[strings.ToLower(port)] = table + "." + name
			}
		}
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(place(a), place(b)) })
	return errors.Join(all...)
}

// place orders errors as the file has them.
func place(err error) string {
	e := err.(*ConfigError)
	return fmt.Sprintf("%09d %09d %s", e.Line, e.Column, e.Text)
}

const nameLetters = "abcdefghijklmnopqrstuvwxyz0123456789-"

// sessionMark stands for the session's number in the names of session tables.
const sessionMark = "{session}"

func (c *Config) checkName(wrong func(string, []any, ...string), perSession bool, name string, d SDDL, key ...string) {
	switch {
	case !strings.HasPrefix(name, `\`) || strings.HasSuffix(name, `\`) || strings.Contains(name, `\\`):
		wrong(`%q is not an object name: it begins with \, has a name between each two \ and none at its end`, []any{name}, key...)
	case perSession && !strings.Contains(name, `\`+sessionMark):
		wrong(`%s would be the same in every session: put %s into it, as \Sessions\%s\…`, []any{name, sessionMark, sessionMark}, key...)
	case !perSession && strings.Contains(name, sessionMark):
		wrong("%s belongs to session 0: %s means something in session tables only", []any{name, sessionMark}, key...)
	case d.text == "":
		wrong("%s has no descriptor: add descriptor = \"D:(A;;GA;;;SY)…\"", []any{name}, key...)
	}
}

// keySeparator joins the parts of a key in a map; no key can have it.
const keySeparator = "\x00"

// places finds where each key and table of a document is. What does not parse is left to the decoder to complain of.
func places(text []byte) map[string]unstable.Position {
	at := map[string]unstable.Position{}
	var table []string
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		var key []string
		var where unstable.Position
		it := e.Key()
		for first := true; it.Next(); first = false {
			if first {
				where = p.Shape(it.Node().Raw).Start
			}
			key = append(key, string(it.Node().Data))
		}
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = key
		case unstable.KeyValue:
			key = append(slices.Clone(table), key...)
		}
		for n := 1; n <= len(key); n++ {
			name := strings.Join(key[:n], keySeparator)
			if _, ok := at[name]; !ok || n == len(key) {
				at[name] = where
			}
		}
	}
	return at
}

// keysBeside names what a wrong key's table could have had.
func keysBeside(key []string) string {
	t := reflect.TypeFor[Config]()
	for _, part := range key[:len(key)-1] {
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem().Elem()
		case reflect.Struct:
			next := slices.IndexFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Tag.Get("toml") == part })
			if next < 0 {
				return "its table is not known either"
			}
			t = reflect.VisibleFields(t)[next].Type
		}
	}
	if t.Kind() != reflect.Struct {
		return "remove it"
	}
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		names = append(names, f.Tag.Get("toml"))
	}
	slices.Sort(names)
	return "the keys here are " + strings.Join(names, ", ")
}
