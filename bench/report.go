package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// report is everything that was measured, by transport.
type report struct {
	plan *plan
	rows []*row
}

// row is one transport: a value for each round.
type row struct {
	transport *transport
	cases     []caseValues

	perSecond, serverBytes, clientBytes []float64 // connects, and what an idle connection keeps
}

type caseValues struct {
	P50, P99, Rate, CPU, Mallocs []float64 // µs, µs, calls/s, µs and allocations per call of both sides
}

func newReport(p *plan) *report {
	r := &report{plan: p}
	for _, t := range p.transports {
		r.rows = append(r.rows, &row{transport: t, cases: make([]caseValues, len(p.cases))})
	}
	return r
}

func (r *report) of(name string) *row {
	return r.rows[slices.IndexFunc(r.rows, func(w *row) bool { return w.transport.name == name })]
}

func (w *row) add(i int, m result, cpu time.Duration, mallocs uint64) {
	µs := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	c := &w.cases[i]
	c.P50, c.P99 = append(c.P50, µs(m.P50)), append(c.P99, µs(m.P99))
	c.Rate = append(c.Rate, float64(m.Calls)/m.Elapsed.Seconds())
	c.CPU, c.Mallocs = append(c.CPU, µs(cpu)/float64(m.All)), append(c.Mallocs, float64(mallocs)/float64(m.All))
}

func (w *row) connects(m result, server, client float64) {
	w.perSecond = append(w.perSecond, float64(m.Calls)/m.Elapsed.Seconds())
	w.serverBytes, w.clientBytes = append(w.serverBytes, server), append(w.clientBytes, client)
}

// median of the rounds; 0 without any.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// ratio is the median of the rounds' own ratios a:b.
func ratio(a, b []float64) float64 {
	each := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			each = append(each, a[i]/b[i])
		}
	}
	return median(each)
}

// table is a heading and cells of text.
type table struct {
	title string
	head  []string
	rows  [][]string
}

// tables are the report as people read it.
func (r *report) tables() []table {
	base := r.of(baseline)
	latency := table{
		title: "One caller: µs a call (median, and 99th percentile of 64 B); how many times faster than " + baseline + "; of both sides together, CPU µs and allocations a call of 64 B",
		head:  []string{"", "64 B", "p99", "times", "1 KiB", "times", "64 KiB", "times", "1 MiB", "times", "CPU", "allocations"},
	}
	many := table{
		title: "Many callers on one connection: thousand calls of 64 B a second; how many times " + baseline + "'s",
		head:  []string{"", "8 callers", "times", "64 callers", "times", "CPU µs a call"},
	}
	idle := table{
		title: "Connections: connects with a first call a second, one after the other; KiB that an idle one keeps (for Sallyport's, the core's share is the server's)",
		head:  []string{"", "connects/s", "times", "server KiB", "client KiB"},
	}
	for _, w := range r.rows {
		line := []string{w.transport.name}
		for i, c := range r.plan.cases[:4] {
			v, b := w.cases[i], base.cases[i]
			line = append(line, number(median(v.P50)))
			if c.Size == 64 {
				line = append(line, number(median(v.P99)))
			}
			line = append(line, number(ratio(b.P50, v.P50)))
		}
		latency.rows = append(latency.rows, append(line, number(median(w.cases[0].CPU)), number(median(w.cases[0].Mallocs))))
		if w.transport.alone {
			continue
		}
		line = []string{w.transport.name}
		for i := 4; i < len(r.plan.cases); i++ {
			line = append(line, number(median(w.cases[i].Rate)/1000), number(ratio(w.cases[i].Rate, base.cases[i].Rate)))
		}
		many.rows = append(many.rows, append(line, number(median(w.cases[len(r.plan.cases)-1].CPU))))
		idle.rows = append(idle.rows, []string{
			w.transport.name, number(median(w.perSecond)), number(ratio(w.perSecond, base.perSecond)),
			number(median(w.serverBytes) / 1024), number(median(w.clientBytes) / 1024),
		})
	}
	return []table{latency, many, idle}
}

// number has three digits that mean something; what was not measured is a dash.
func number(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// machine is where it was measured.
func machine() string {
	kernel := "unknown"
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		kernel = ""
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			kernel += string(rune(c))
		}
	}
	kernel, _, _ = strings.Cut(kernel, "-")
	return fmt.Sprintf("%d processors, Linux %s, %s", runtime.NumCPU(), kernel, runtime.Version())
}

func (r *report) about() string {
	rounds := "rounds"
	if r.plan.rounds == 1 {
		rounds = "round"
	}
	load := ""
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = ", load " + strings.Fields(string(text))[0]
	}
	return fmt.Sprintf("%s%s; medians of %d interleaved %s, %v a case.", machine(), load, r.plan.rounds, rounds, r.plan.time)
}

func formats() map[string]func(io.Writer, *report) error {
	return map[string]func(io.Writer, *report) error{"table": writeTable, "json": writeJSON, "markdown": writeMarkdown}
}

func writeTable(out io.Writer, r *report) error {
	fmt.Fprintln(out, r.about())
	for _, t := range r.tables() {
		fmt.Fprintf(out, "\n%s\n", t.title)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, line := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(w, strings.Join(line, "\t"))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func writeMarkdown(out io.Writer, r *report) error {
	fmt.Fprintln(out, r.about())
	for _, t := range r.tables() {
		fmt.Fprintf(out, "\n%s.\n\n| %s |\n|---|%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat("---:|", len(t.head)-1))
		for _, line := range t.rows {
			if _, err := fmt.Fprintf(out, "| %s |\n", strings.Join(line, " | ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeJSON has every round's value, for other tools.
func writeJSON(out io.Writer, r *report) error {
	type caseOut struct {
		Name      string    `json:"name"`
		Size      int       `json:"size"`
		Callers   int       `json:"callers"`
		P50       []float64 `json:"p50_us"`
		P99       []float64 `json:"p99_us"`
		Rate      []float64 `json:"calls_per_second"`
		CPU       []float64 `json:"cpu_us_per_call"`
		Mallocs   []float64 `json:"allocations_per_call"`
		TimesBase float64   `json:"times_baseline"`
	}
	type rowOut struct {
		Name        string    `json:"name"`
		Cases       []caseOut `json:"cases"`
		Connects    []float64 `json:"connects_per_second,omitempty"`
		ServerBytes []float64 `json:"server_bytes_per_idle_connection,omitempty"`
		ClientBytes []float64 `json:"client_bytes_per_idle_connection,omitempty"`
	}
	doc := struct {
		Version    int      `json:"version"`
		Machine    string   `json:"machine"`
		Rounds     int      `json:"rounds"`
		Baseline   string   `json:"baseline"`
		Transports []rowOut `json:"transports"`
	}{Version: 1, Machine: machine(), Rounds: r.plan.rounds, Baseline: baseline}
	base := r.of(baseline)
	for _, w := range r.rows {
		line := rowOut{Name: w.transport.name, Connects: w.perSecond, ServerBytes: w.serverBytes, ClientBytes: w.clientBytes}
		for i, c := range r.plan.cases {
			v := w.cases[i]
			if len(v.P50) == 0 {
				continue // it can't
			}
			times := ratio(base.cases[i].P50, v.P50)
			if c.Callers > 1 {
				times = ratio(v.Rate, base.cases[i].Rate)
			}
			line.Cases = append(line.Cases, caseOut{c.Name, c.Size, c.Callers, v.P50, v.P99, v.Rate, v.CPU, v.Mallocs, times})
		}
		doc.Transports = append(doc.Transports, line)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}
