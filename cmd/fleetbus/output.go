package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/internal/document"
)

// The formats of --output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatJSONL = "jsonl"
)

// A report is what a command found out or did.
type report struct {
	// value is for programs: JSON with names in snake_case. In jsonl each item of
	// a slice is a line.
	value any
	// text lays the same out for people.
	text func(p *page)
}

// output gives cmd the flag --output, for which more may be further formats.
func (a *app) output(cmd *cobra.Command, more ...string) *cobra.Command {
	formats := append([]string{formatTable, formatJSON, formatYAML, formatJSONL}, more...)
	a.format = formatTable
	cmd.Flags().VarP(&choice{&a.format, formats}, "output", "o", "how to print the data: "+strings.Join(formats, ", "))
	return cmd
}

// outputFromEnv applies FLEETBUS_OUTPUT where the flag was not given.
func (a *app) outputFromEnv(cmd *cobra.Command) error {
	f, format := cmd.Flags().Lookup("output"), a.getenv("FLEETBUS_OUTPUT")
	if f == nil || f.Changed || format == "" {
		return nil
	}
	if err := f.Value.Set(format); err != nil {
		return fmt.Errorf("reading FLEETBUS_OUTPUT: %q %w", format, err)
	}
	return nil
}

// show writes a report to stdout.
func (a *app) show(r report) error {
	var buf bytes.Buffer
	var err error
	switch a.format {
	case formatJSON:
		err = document.JSON(&buf, r.value, "  ")
	case formatJSONL:
		err = document.Lines(&buf, r.value)
	case formatYAML:
		err = document.YAML(&buf, r.value)
	default:
		r.text(&page{w: &buf})
	}
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	if _, err := a.stdout.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// A page is text for people. Whatever is written to it cannot control a
// terminal.
type page struct{ w io.Writer }

// line writes one line.
func (p *page) line(format string, args ...any) {
	fmt.Fprintln(p.w, document.Escape(fmt.Sprintf(format, args...)))
}

// A column of a table of Ts.
type column[T any] struct {
	head string
	cell func(T) string
}

// table writes a line of heads and one for each row, with two spaces between
// columns. Nothing is cut off; an empty cell is "-".
func table[T any](p *page, rows []T, columns ...column[T]) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	line := make([]string, len(columns))
	for i, c := range columns {
		line[i] = c.head
	}
	fmt.Fprintln(tw, strings.Join(line, "\t"))
	for _, row := range rows {
		for i, c := range columns {
			line[i] = orDash(document.Escape(c.cell(row)))
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	// The writer below is a buffer.
	_ = tw.Flush()
}

// A field is a name and its value.
type field struct{ name, value string }

// fields writes a line for each field.
func fields(p *page, list []field) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		fmt.Fprintf(tw, "%s\t%s\n", f.name, orDash(document.Escape(f.value)))
	}
	_ = tw.Flush()
}

// list is the report of a slice that is a table.
func list[T any](rows []T, columns ...column[T]) report {
	return report{value: rows, text: func(p *page) { table(p, rows, columns...) }}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// showCheck prints a check when it is done.
func (a *app) showCheck(name string, ok bool, detail, fix string) {
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	a.hint("  %s  %-16s %s", mark, name, detail)
	if fix != "" {
		a.hint("        %-16s fix: %s", "", fix)
	}
}
