package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"sallyport/internal/pty"
)

// formats are what -o takes. Every read verb has the same data in each of them.
var formats = [...]string{"table", "json", "jsonl", "yaml", "name"}

// printList writes rows (a slice of structs whose fields have json tags). The first field is a row's name. In a table each
// field is a column, headed by its json name; json and yaml are one array, jsonl is a row per line.
func (a *app) printList(rows any) error {
	v := reflect.ValueOf(rows)
	switch a.output {
	case "json":
		if v.Len() == 0 {
			_, err := io.WriteString(a.stdout, "[]\n")
			return err
		}
		return a.writeJSON(rows, true)
	case "yaml":
		return a.writeYAML(rows)
	case "jsonl":
		for i := range v.Len() {
			if err := a.writeJSON(v.Index(i).Interface(), false); err != nil {
				return err
			}
		}
		return nil
	case "name":
		for i := range v.Len() {
			fmt.Fprintln(a.stdout, cell(columns(v.Index(i))[0].value))
		}
		return nil
	}
	return a.writeTable(v)
}

// printOne writes one struct: in table format a line per field.
func (a *app) printOne(row any) error {
	v := reflect.Indirect(reflect.ValueOf(row))
	switch a.output {
	case "json":
		return a.writeJSON(row, true)
	case "jsonl":
		return a.writeJSON(row, false)
	case "yaml":
		return a.writeYAML(row)
	case "name":
		_, err := fmt.Fprintln(a.stdout, cell(columns(v)[0].value))
		return err
	}
	return a.writeFields(v)
}

func (a *app) writeJSON(v any, indent bool) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

// writeYAML goes through JSON, which is YAML, so that names and order are the same in both.
func (a *app) writeYAML(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	block(&node)
	e := yaml.NewEncoder(a.stdout)
	e.SetIndent(2)
	return e.Encode(&node)
}

// block takes JSON's flow style and quotes away; what needs quotes gets them back from the encoder.
func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

// column is one field of a row: its name and its value. Embedded structs are part of their row, as in JSON.
type column struct {
	name  string
	value reflect.Value
}

func columns(row reflect.Value) []column {
	var all []column
	for i := range row.NumField() {
		f := row.Type().Field(i)
		if f.Anonymous {
			all = append(all, columns(row.Field(i))...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		all = append(all, column{strings.ReplaceAll(name, "_", " "), row.Field(i)})
	}
	return all
}

// always is how many columns of a table are there even when no row says anything in them.
const always = 3

// writeTable writes rows as columns. A column in which no row says anything is left out: it tells nothing that its absence
// does not.
func (a *app) writeTable(rows reflect.Value) error { return a.writeIndentedTable(rows, "") }

func (a *app) writeIndentedTable(rows reflect.Value, indent string) error {
	lines := [][]string{{}}
	for _, c := range columns(reflect.Zero(rows.Type().Elem())) {
		lines[0] = append(lines[0], strings.ToUpper(c.name))
	}
	said := make([]bool, len(lines[0]))
	for i := range rows.Len() {
		var line []string
		for j, c := range columns(rows.Index(i)) {
			line = append(line, strings.ReplaceAll(cell(c.value), "\n", " "))
			said[j] = said[j] || (!c.value.IsZero() && line[j] != "-")
		}
		lines = append(lines, line)
	}
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b bytes.Buffer
	for n, line := range lines {
		var row strings.Builder
		for i, c := range line {
			if i < always || said[i] {
				row.WriteString(c + strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		text := strings.TrimRight(row.String(), " ")
		if n == 0 {
			text = a.bold(text)
		}
		b.WriteString(indent + text + "\n")
	}
	_, err := b.WriteTo(a.stdout)
	return err
}

// writeFields writes a struct as "name: value" lines; a slice of structs becomes a table below its name, and a slice of
// sentences a list.
func (a *app) writeFields(v reflect.Value) error {
	all := columns(v)
	width := 0
	for _, c := range all {
		width = max(width, len(c.name))
	}
	for _, c := range all {
		var err error
		switch sentences, ok := c.value.Interface().([]string); {
		case c.value.Kind() == reflect.Slice && c.value.Type().Elem().Kind() == reflect.Struct && c.value.Len() > 0:
			fmt.Fprintf(a.stdout, "%s\n", a.bold(c.name+":"))
			err = a.writeIndentedTable(c.value, "  ")
		case ok && slices.ContainsFunc(sentences, func(s string) bool { return strings.Contains(s, " ") }):
			fmt.Fprintf(a.stdout, "%s\n", a.bold(c.name+":"))
			for _, s := range sentences {
				fmt.Fprintf(a.stdout, "  %s\n", printable(s))
			}
		default:
			text := strings.ReplaceAll(cell(c.value), "\n", "\n"+strings.Repeat(" ", width+2))
			_, err = fmt.Fprintf(a.stdout, "%s%s %s\n", a.bold(c.name+":"), strings.Repeat(" ", width-len(c.name)), text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cell is a value as people read it; what is absent is a dash, so that columns can be cut by space.
func cell(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Time:
		if x.IsZero() {
			return "-"
		}
		return x.Local().Format(time.RFC3339)
	case *time.Time:
		if x == nil {
			return "-"
		}
		return x.Local().Format(time.RFC3339)
	case []string:
		if len(x) == 0 {
			return "-"
		}
		return printable(strings.Join(x, ","))
	case json.RawMessage:
		return string(x)
	}
	if v.Kind() == reflect.Slice {
		var parts []string
		for i := range v.Len() {
			parts = append(parts, row(v.Index(i)))
		}
		if len(parts) == 0 {
			return "-"
		}
		return strings.Join(parts, ",")
	}
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return "-"
	}
	s := printable(fmt.Sprint(v.Interface()))
	if s == "" {
		return "-"
	}
	return s
}

// row is a struct within a cell: its parts joined by colons.
func row(v reflect.Value) string {
	if v.Kind() != reflect.Struct {
		return cell(v)
	}
	var parts []string
	for _, c := range columns(v) {
		parts = append(parts, cell(c.value))
	}
	return strings.Join(parts, ":")
}

// printable keeps what another party named from steering the reader's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' && r != '\n' && r != '\t') || (r >= 0x7f && r < 0xa0) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// bold marks headings where colour is wanted.
func (a *app) bold(s string) string { return a.style("1", s) }

// style wraps s in a terminal attribute where colour is wanted.
func (a *app) style(code, s string) string {
	if !a.coloured {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// wantsColour follows --color, then NO_COLOR and TERM, and says no to anything but a terminal.
func wantsColour(choice string, out *os.File) bool {
	switch choice {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && pty.IsTerminal(out)
}
