// SPDX-License-Identifier: Apache-2.0

// Package report shows lists: as tables for people, as JSON for programs, once or
// again and again. It decides nothing about what is shown.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
)

// Table is rows below titles. All have the same number of cells.
type Table struct {
	Titles []string
	Rows   [][]string
}

// lines returns the table with its columns aligned; the first line has the titles.
func (t *Table) lines() []string {
	var b bytes.Buffer
	const gap = 3 // as docker and kubectl
	w := tabwriter.NewWriter(&b, 0, 0, gap, ' ', 0)
	for _, row := range append([][]string{t.Titles}, t.Rows...) {
		for i, cell := range row {
			if i > 0 {
				_, _ = w.Write([]byte{'\t'}) // to memory
			}
			_, _ = w.Write([]byte(printable(cell)))
		}
		_, _ = w.Write([]byte{'\n'})
	}
	_ = w.Flush()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return lines
}

// printable keeps names and commands from changing the terminal or the table.
func printable(cell string) string {
	if cell == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, cell)
}

// Write writes the table.
func (t *Table) Write(w io.Writer) error {
	_, err := fmt.Fprintln(w, strings.Join(t.lines(), "\n"))
	return err
}

// JSON writes a value, indented, and a list that is nil as an empty one.
func JSON[T any](w io.Writer, value T) error {
	b, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w: %w", errdefs.ErrInternal, err)
	}
	if string(b) == "null" {
		b = []byte("[]")
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Line writes a value as JSON in one line.
func Line(w io.Writer, value any) error { return json.NewEncoder(w).Encode(value) }

// Format is what -o says.
type Format string

// Formats.
const (
	Tables Format = "table"
	AsJSON Format = "json"
)

// String returns it as -o has it. With Set and Type it is a flag.
func (f *Format) String() string { return string(*f) }

// Set refuses what is no format.
func (f *Format) Set(text string) error {
	switch Format(text) {
	case Tables, AsJSON:
		*f = Format(text)
		return nil
	}
	return fmt.Errorf("table or json: %w", errdefs.ErrInvalidArgument)
}

// Type names it in a usage.
func (f *Format) Type() string { return "table|json" }
