package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

// roleEnv makes this program one of the processes of a measurement: "core", "server" or "client".
const roleEnv = "SALLYPORT_BENCH_ROLE"

// order is what the parent asks of a process: one line of JSON each way.
type order struct {
	Op       string        `json:"op"` // usage, memory, dial, run, connect, disconnect
	Size     int           `json:"size,omitempty"`
	Callers  int           `json:"callers,omitempty"`
	Duration time.Duration `json:"duration,omitempty"`
	Count    int           `json:"count,omitempty"`
}

// answer is what a process found; an error is its text.
type answer struct {
	Error   string        `json:"error,omitempty"`
	CPU     time.Duration `json:"cpu,omitempty"`     // usage: user and system time of the process
	Mallocs uint64        `json:"mallocs,omitempty"` // usage: allocations of the process
	Bytes   int64         `json:"bytes,omitempty"`   // memory: its share of what is resident
	Result  result        `json:"result"`            // run, connect
}

// process is a child that takes orders.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// spawn starts this program again in a role and waits until it is ready.
func spawn(role, transport, address string) (*process, error) {
	cmd := exec.Command("/proc/self/exe", transport, address)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if _, err := p.read(); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s of %s: %w", role, transport, err)
	}
	return p, nil
}

// stop ends the process: it leaves when its orders end.
func (p *process) stop() {
	p.in.Close()
	late := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait()
	late.Stop()
}

func (p *process) do(o order) (answer, error) {
	line, err := json.Marshal(o)
	if err != nil {
		return answer{}, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return answer{}, err
	}
	return p.read()
}

func (p *process) read() (a answer, err error) {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("the process ended: %w", err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// obey is a child's life: it says that it is ready, and carries out orders until there are no more.
func obey(handle func(order) (answer, error)) {
	out := json.NewEncoder(os.Stdout)
	out.Encode(answer{})
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if in.Decode(&o) != nil {
			return
		}
		var a answer
		var err error
		switch o.Op {
		case "usage":
			a, err = usage()
		case "memory":
			a.Bytes, err = resident()
		default:
			a, err = handle(o)
		}
		if err != nil {
			a.Error = err.Error()
		}
		out.Encode(a)
	}
}

func usage() (answer, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return answer{}, err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return answer{CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano()), Mallocs: m.Mallocs}, nil
}

// resident is the process's proportional share of memory after a collection: pages shared with n processes count 1/n.
func resident() (int64, error) {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "Pss:" {
			kb, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("smaps_rollup without Pss")
}
