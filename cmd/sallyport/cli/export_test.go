package cli

import (
	"bytes"
	"os"
)

// Print prints rows (a slice) or one row in a format, without colour.
func Print(format string, rows any, one bool) (string, error) {
	var b bytes.Buffer
	a := &app{stdout: &b, stderr: os.Stderr, output: format}
	var err error
	if one {
		err = a.printOne(rows)
	} else {
		err = a.printList(rows)
	}
	return b.String(), err
}

// WriteError is writeError as text.
func WriteError(format string, err error) (string, int) {
	var b bytes.Buffer
	writeError(&b, format, err)
	return b.String(), exitCode(err)
}

// Formats are the output formats.
func Formats() []string { return formats[:] }
