package integration_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// daemon is a program that knows nothing of us.
type daemon struct {
	create []string // what "sc create NAME" gets
	ready  string   // in its log, once for each start
	use    func(s *set) error
}

func daemons(t *testing.T, name string) daemon {
	t.Helper()
	switch name {
	case "redis":
		program := find(t, "redis-server")
		// As a service of the set it may run under another user than the test: its own directory is under /tmp.
		dir, err := os.MkdirTemp("", "redis")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		socket := filepath.Join(dir, "s")
		n := 0
		return daemon{
			create: []string{"--kind", "notify", "--directory", dir, "--", program, "--supervised", "systemd", "--daemonize", "no", "--port", "0",
				"--unixsocket", socket, "--save", "", "--appendonly", "no"},
			ready: "eady to accept connections",
			use: func(*set) error {
				n++
				return redisRemembers(socket, fmt.Sprint(n))
			},
		}
	default:
		return daemon{
			create: []string{"--env", "PYTHONUNBUFFERED=1", "--", find(t, "python3"), "-m", "http.server", "--bind", "127.0.0.1", "0"},
			ready:  "Serving HTTP on 127.0.0.1 port",
			use: func(s *set) error {
				ports := regexp.MustCompile(`Serving HTTP on 127\.0\.0\.1 port (\d+)`).FindAllStringSubmatch(s.verb("sc", "log", "web"), -1)
				if len(ports) == 0 {
					return fmt.Errorf("it does not say where it serves")
				}
				client := http.Client{Timeout: 5 * time.Second}
				defer client.CloseIdleConnections()
				r, err := client.Get("http://127.0.0.1:" + ports[len(ports)-1][1] + "/")
				if err == nil {
					r.Body.Close()
					if r.StatusCode != http.StatusOK {
						err = fmt.Errorf("it answers %s", r.Status)
					}
				}
				return err
			},
		}
	}
}

// find finds a program of the system's, or skips the test.
func find(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/local/bin"} {
		if path := filepath.Join(dir, name); exec.Command(path, "--version").Run() == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// redisRemembers sets a key and reads it back, as any client of redis does.
func redisRemembers(socket, value string) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	lines := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, "SET key "+value+"\r\nGET key\r\n"); err != nil {
		return err
	}
	for _, want := range []string{"+OK", fmt.Sprintf("$%d", len(value)), value} {
		line, err := lines.ReadString('\n')
		if err != nil || strings.TrimSpace(line) != want {
			return fmt.Errorf("redis says %q, not %q: %w", line, want, err)
		}
	}
	return nil
}

// serviceStatus is what "sc query" says of a service.
type serviceStatus struct {
	State  string
	PID    int
	Starts int
}

func (s *set) service(name string) (v serviceStatus, err error) {
	err = json.Unmarshal([]byte(s.verb("sc", "query", name, "-o", "json")), &v)
	return v, err
}

// TestDaemonsThatKnowNothingOfUsAreServices runs redis (sd_notify) and python's web server by the program's verbs; both are killed,
// and the controller over their heads too.
func TestDaemonsThatKnowNothingOfUsAreServices(t *testing.T) {
	for _, name := range []string{"redis", "web"} {
		t.Run(name, func(t *testing.T) {
			d := daemons(t, name)
			s := up(t, raised)
			s.verb(append([]string{"sc", "create", name, "--restart-delay", "20ms", "--env", s.mark()}, d.create...)...)
			s.verb("sc", "start", name)
			serving := func(starts int) (v serviceStatus) {
				t.Helper()
				eventually(t, 20*time.Second, func() (err error) {
					switch v, err = s.service(name); {
					case err != nil:
						return err
					case v.State != "running" || v.Starts != starts:
						return fmt.Errorf("it is %+v, and start %d is awaited", v, starts)
					}
					return d.use(s)
				})
				return v
			}
			first := serving(1)
			record := s.verb("sc", "config", name, "-o", "json")

			daemon, err := os.FindProcess(first.PID)
			require.NoError(t, err)
			require.NoError(t, daemon.Kill())
			second := serving(2)
			require.NotEqual(t, first.PID, second.PID)
			require.Equal(t, record, s.verb("sc", "config", name, "-o", "json"), "its record is whole")
			require.Equal(t, 2, strings.Count(s.verb("sc", "log", name), d.ready), "its log is whole")

			for range 3 {
				s.awaitBack("scm", s.kill("scm"))
				require.Equal(t, second, serving(2), "it did not notice")
			}
			require.Equal(t, record, s.verb("sc", "config", name, "-o", "json"))
			require.Equal(t, 2, strings.Count(s.verb("sc", "log", name), d.ready))
			s.verb("sc", "stop", name)
			require.False(t, alive(second.PID))
			s.verb("sc", "start", name)
			last := serving(3)
			were := append(s.processes(), last.PID) // redis writes its title over its environment
			s.verb("down")
			s.requireDown(0, were)
		})
	}
}
