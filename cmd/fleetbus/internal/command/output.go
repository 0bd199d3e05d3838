package command

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
	FormatTable = "table"
	FormatJSON  = "json"
	FormatYAML  = "yaml"
	FormatJSONL = "jsonl"
)

// A Report is what a command found out or did.
type Report struct {
	// Value is for programs: JSON with names in snake_case. In jsonl each item of
	// a slice is a line.
	Value any
	// Text lays the same out for people.
	Text func(p *Page)
}

// Output gives cmd the flag --output, for which more may be further formats.
func (a *App) Output(cmd *cobra.Command, more ...string) *cobra.Command {
	formats := append([]string{FormatTable, FormatJSON, FormatYAML, FormatJSONL}, more...)
	a.Format = FormatTable
	cmd.Flags().VarP(&Choice{&a.Format, formats}, "output", "o", "how to print the data: "+strings.Join(formats, ", "))
	return cmd
}

// outputFromEnv applies FLEETBUS_OUTPUT where the flag was not given.
func (a *App) outputFromEnv(cmd *cobra.Command) error {
	f, format := cmd.Flags().Lookup("output"), a.Getenv("FLEETBUS_OUTPUT")
	if f == nil || f.Changed || format == "" {
		return nil
	}
	if err := f.Value.Set(format); err != nil {
		return fmt.Errorf("reading FLEETBUS_OUTPUT: %q %w", format, err)
	}
	return nil
}

// Show writes a report to stdout.
func (a *App) Show(r Report) error {
	var buf bytes.Buffer
	var err error
	switch a.Format {
	case FormatJSON:
		err = document.JSON(&buf, r.Value, "  ")
	case FormatJSONL:
		err = document.Lines(&buf, r.Value)
	case FormatYAML:
		err = document.YAML(&buf, r.Value)
	default:
		r.Text(&Page{w: &buf})
	}
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	if _, err := a.Stdout.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// Print writes a document to stdout as it is.
func (a *App) Print(document []byte) error {
	if _, err := a.Stdout.Write(document); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// A Page is text for people. Whatever is written to it cannot control a
// terminal.
type Page struct{ w io.Writer }

// NewPage makes a page of what goes to w.
func NewPage(w io.Writer) *Page { return &Page{w} }

// Line writes one line.
func (p *Page) Line(format string, args ...any) {
	fmt.Fprintln(p.w, document.Escape(fmt.Sprintf(format, args...)))
}

// A Column of a table of Ts.
type Column[T any] struct {
	head string
	cell func(T) string
}

// Col is the column under head, whose cells are made by cell.
func Col[T any](head string, cell func(T) string) Column[T] { return Column[T]{head, cell} }

// Table writes a line of heads and one for each row, with two spaces between
// columns. Nothing is cut off; an empty cell is "-".
func Table[T any](p *Page, rows []T, columns ...Column[T]) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	line := make([]string, len(columns))
	for i, c := range columns {
		line[i] = c.head
	}
	fmt.Fprintln(tw, strings.Join(line, "\t"))
	for _, row := range rows {
		for i, c := range columns {
			line[i] = OrDash(document.Escape(c.cell(row)))
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	// The writer below is a buffer.
	_ = tw.Flush()
}

// A Field is a name and its value.
type Field [2]string

// Fields writes a line for each field.
func Fields(p *Page, list []Field) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		fmt.Fprintf(tw, "%s\t%s\n", f[0], OrDash(document.Escape(f[1])))
	}
	_ = tw.Flush()
}

// List is the report of a slice that is a table.
func List[T any](rows []T, columns ...Column[T]) Report {
	return Report{Value: rows, Text: func(p *Page) { Table(p, rows, columns...) }}
}

// OrDash is s, or a dash if it is empty.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ShowCheck prints a check when it is done.
func (a *App) ShowCheck(name string, ok bool, detail, fix string) {
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	a.Hint("  %s  %-16s %s", mark, name, detail)
	if fix != "" {
		a.Hint("        %-16s fix: %s", "", fix)
	}
}

// Words are the values of a list, as they stand in a help text.
func Words[T ~string](list []T) string {
	var all []string
	for _, w := range list {
		all = append(all, string(w))
	}
	return strings.Join(all, ", ")
}

// Some lists n of the names.
func Some(names []string, n int) string {
	if more := len(names) - n; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), more)
	}
	return strings.Join(names, ", ")
}
