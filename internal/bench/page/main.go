// Program page writes the page of what was measured beside peers, from what "fleetbus
// bench … -o json" printed.
//
// It takes the directory that has the reports, one for each file NAME.json, and writes
// Markdown to standard output. NAME.txt are lines of "go test -bench", which stand as they
// are. Of what was not measured it keeps what the page said before, whose file may be the
// second argument.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/fleetbus/fleetbus/internal/bench"
)

// A chapter is what one report is about.
type chapter struct {
	file, title, about string
}

// chapters are in the order of the page.
var chapters = [...]chapter{
	{"house", "The bus, beside the bare engine", "The peer is nats-server, as it is released."},
	{"mqtt", "MQTT, beside nats-server and mosquitto", "The name of a figure says who the peer is."},
	{"amqp", "AMQP 0-9-1, beside RabbitMQ", "The peer is RabbitMQ."},
	{"certificates", "Certificates", "Where there is a peer, the conditions say which."},
	{"scale", "Very many clients, beside the bare engine", "The peer is nats-server."},
	{"libraries", "Libraries, beside others", "As `go test -bench` has it."},
}

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: page DIRECTORY [PAGE]")
		os.Exit(2)
	}
	var before []byte
	var err error
	if len(os.Args) == 3 {
		before, err = os.ReadFile(os.Args[2])
	}
	if err == nil {
		err = write(os.Stdout, os.Args[1], string(before))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

const preface = `# Performance

What was measured beside peers, in turns on the same machine with the same client: so it is the ratio that tells, and no figure by itself. A ratio is ours to the
peer's; the spread is between the quartiles of the rounds' ratios. ` + "`make compare`" + ` measures it all again and writes this page; nothing in it is written by hand.

`

// write writes the page of the reports in a directory, and what the page of before has of
// those that are missing.
func write(w io.Writer, dir, before string) error {
	var page strings.Builder
	found := false
	for _, c := range chapters {
		text, err := os.ReadFile(filepath.Join(dir, c.file+".json"))
		lines, err2 := os.ReadFile(filepath.Join(dir, c.file+".txt"))
		title := "## " + c.title + "\n\n"
		page.WriteString(title)
		switch {
		case err == nil:
			var r bench.Report
			if err := json.Unmarshal(text, &r); err != nil {
				return fmt.Errorf("reading the report %q: %w", c.file, err)
			}
			table(&page, c, r)
		case err2 == nil:
			fmt.Fprintf(&page, "%s\n\n```\n%s\n```\n\n", c.about, strings.TrimSpace(string(lines)))
		default:
			if _, kept, ok := strings.Cut(before, title); ok {
				kept, _, _ = strings.Cut(kept, "\n## ")
				page.WriteString(strings.TrimRight(kept, "\n") + "\n\n")
			} else {
				page.WriteString("Not measured yet.\n\n")
			}
			continue
		}
		found = true
	}
	if !found {
		return fmt.Errorf("there is no report in %q: fleetbus bench house -o json > house.json", dir)
	}
	met, missed := strings.Count(page.String(), "| met |"), strings.Count(page.String(), "| **not met** |")
	_, err := fmt.Fprintf(w, "%sOf what has a target, %d are met and %d are not.\n\n%s\n", preface, met, missed, strings.TrimRight(page.String(), "\n"))
	return err
}

// table writes one report.
func table(w *strings.Builder, c chapter, r bench.Report) {
	fmt.Fprintf(w, "%s\n\n| figure | ours | peer | ratio | spread | to reach | |\n|---|---|---|---|---|---|---|\n", c.about)
	for _, f := range r.Figures {
		spread := ""
		if len(f.Spread) == 2 {
			spread = bench.Significant(f.Spread[0]) + " to " + bench.Significant(f.Spread[1])
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", cell(f.Name), cell(strings.TrimSpace(bench.Significant(f.Ours)+" "+f.Unit)), unless0(f.Peer), unless0(f.Ratio), spread, cell(f.Target), emphasis(f.Verdict))
	}
	w.WriteString("\n")
	for _, c := range r.Conditions {
		if c.Name == "disk" { // a place that is gone
			continue
		}
		fmt.Fprintf(w, "- %s: %s\n", c.Name, c.Value)
	}
	w.WriteString("\n")
}

// emphasis has a verdict that is none be seen.
func emphasis(verdict string) string {
	if verdict == "not met" {
		return "**not met**"
	}
	return verdict
}

func unless0(f float64) string {
	if f == 0 {
		return ""
	}
	return bench.Significant(f)
}

// cell is a text in a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
