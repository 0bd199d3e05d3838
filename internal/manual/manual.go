// Package manual writes what a package has besides its program and what is made of
// the commands: man pages, completions of shells, the file of settings and its schema.
// The program itself does without it.
package manual

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/internal/config"
)

// Write makes all files of root, the whole tree of commands, in dir.
func Write(dir string, root *cobra.Command) error {
	files := map[string][]byte{
		"fleetbus.yaml":        config.Defaults(false),
		"fleetbus.schema.json": config.Schema(),
	}
	for name, page := range Pages(root) {
		files[filepath.Join("man", "man"+name[len(name)-1:], name)] = page
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("writing the manual: %w", err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return fmt.Errorf("writing the manual: %w", err)
		}
	}
	completion := filepath.Join(dir, "completion")
	if err := os.MkdirAll(completion, 0o755); err != nil {
		return fmt.Errorf("writing completions: %w", err)
	}
	for shell, write := range map[string]func(path string) error{
		"bash": func(path string) error { return root.GenBashCompletionFileV2(path, true) },
		"zsh":  root.GenZshCompletionFile,
		"fish": func(path string) error { return root.GenFishCompletionFile(path, true) },
	} {
		if err := write(filepath.Join(completion, root.Name()+"."+shell)); err != nil {
			return fmt.Errorf("writing the completion of %s: %w", shell, err)
		}
	}
	return nil
}

// Pages are the man pages of a tree of commands, by name: one of the whole, one of
// each of its commands with everything below that, and one of the file of settings.
func Pages(root *cobra.Command) map[string][]byte {
	name := root.Name()
	pages := map[string][]byte{name + ".1": overview(root), name + ".yaml.5": settings(name)}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			pages[name+"-"+c.Name()+".1"] = page(c)
		}
	}
	return pages
}

// A roff is a page that is being written.
type roff struct{ strings.Builder }

func begin(name, section, about string) *roff {
	r := &roff{}
	// Without a date, so that the same commands make the same page.
	fmt.Fprintf(r, ".TH %s %s \"\" fleetbus \"fleetbus\"\n.nh\n.ad l\n", quote(strings.ToUpper(name)), section)
	r.section("NAME")
	fmt.Fprintf(r, "%s \\- %s\n", escape(name), escape(about))
	return r
}

func (r *roff) bytes() []byte { return []byte(r.String()) }

func (r *roff) section(title string) { fmt.Fprintf(r, ".SH %s\n", quote(title)) }

func (r *roff) subsection(title string) { fmt.Fprintf(r, ".SS %s\n", quote(title)) }

// item is a term and what there is to say about it.
func (r *roff) item(term, text string) {
	fmt.Fprintf(r, ".TP\n\\fB%s\\fR\n%s\n", escape(term), escape(strings.TrimSpace(text)))
}

// text writes paragraphs. Lines that are indented stay as they are.
func (r *roff) text(text string) {
	for paragraph := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		if strings.HasPrefix(paragraph, " ") {
			r.verbatim(paragraph)
			continue
		}
		r.WriteString(".PP\n")
		for line := range strings.SplitSeq(paragraph, "\n") {
			if strings.HasPrefix(line, " ") {
				r.WriteString(".br\n")
			}
			r.WriteString(escape(strings.TrimSpace(line)) + "\n")
		}
	}
}

func (r *roff) verbatim(text string) {
	r.WriteString(".PP\n.nf\n.RS 2\n")
	for line := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		r.WriteString(escape(strings.TrimPrefix(line, "  ")) + "\n")
	}
	r.WriteString(".RE\n.fi\n")
}

// escape has text stand for itself.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "^", `\(ha`, "~", `\(ti`, "`", `\(ga`, "'", `\(aq`).Replace(text)
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		if strings.HasPrefix(line, ".") {
			b.WriteString(`\&`)
		}
		b.WriteString(line)
	}
	return b.String()
}

// quote makes text one argument of a request.
func quote(text string) string {
	return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"`
}

func overview(root *cobra.Command) []byte {
	r := begin(root.Name(), "1", lower(root.Short))
	r.section("SYNOPSIS")
	fmt.Fprintf(r, "\\fB%s\\fR \\fICOMMAND\\fR [\\fIflags\\fR]\n", escape(root.Name()))
	r.section("COMMANDS")
	var topics []*cobra.Command
	for _, c := range root.Commands() {
		switch {
		case c.IsAvailableCommand():
			r.item(root.Name()+"-"+c.Name()+"(1)", c.Short)
		case c.IsAdditionalHelpTopicCommand() && !c.Hidden:
			topics = append(topics, c)
		}
	}
	if root.HasExample() {
		r.section("EXAMPLES")
		r.verbatim(root.Example)
	}
	for _, c := range topics {
		r.section(strings.ToUpper(strings.ReplaceAll(c.Name(), "-", " ")))
		r.text(c.Long)
	}
	r.section("FILES")
	r.item("/etc/fleetbus/fleetbus.yaml", "The settings of the node of this machine, see fleetbus.yaml(5).")
	r.item("/var/lib/fleetbus", "The data directory of the node that the service runs, or that root does. That of anybody else is ~/.local/share/fleetbus.")
	r.section("SEE ALSO")
	r.text("fleetbus.yaml(5), and \"fleetbus help COMMAND\" for each command")
	return r.bytes()
}

// page describes a command and all below it.
func page(c *cobra.Command) []byte {
	r := begin(strings.ReplaceAll(c.CommandPath(), " ", "-"), "1", lower(c.Short))
	var all []*cobra.Command
	walk(c, func(c *cobra.Command) { all = append(all, c) })
	r.section("SYNOPSIS")
	for i, c := range all {
		if i > 0 {
			r.WriteString(".br\n")
		}
		r.WriteString(escape(c.UseLine()) + "\n")
	}
	keys := settingFlags()
	if len(all) == 1 && all[0] == c {
		r.section("DESCRIPTION")
		describe(r, c, keys)
	} else {
		r.section("COMMANDS")
		for _, c := range all {
			r.subsection(c.CommandPath())
			describe(r, c, keys)
		}
	}
	r.section("SEE ALSO")
	r.text(c.Root().Name() + "(1), fleetbus.yaml(5)")
	return r.bytes()
}

// walk visits the commands that do something, c included. A noun does nothing by
// itself; one that does has annotations.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	if !c.HasAvailableSubCommands() || len(c.Annotations) > 0 {
		visit(c)
	}
	for _, below := range c.Commands() {
		if below.IsAvailableCommand() {
			walk(below, visit)
		}
	}
}

func describe(r *roff, c *cobra.Command, keys map[string]bool) {
	if c.Long != "" {
		r.text(c.Long)
	} else {
		r.text(c.Short + ".")
	}
	set := false
	flag := func(f *pflag.Flag) {
		switch {
		case f.Hidden:
		case keys[f.Name]:
			set = true
		default:
			term := "--" + f.Name
			if f.Shorthand != "" {
				term = "-" + f.Shorthand + ", " + term
			}
			argument, usage := pflag.UnquoteUsage(f)
			if argument != "" {
				term += " " + argument
			}
			r.item(term, usage)
		}
	}
	c.NonInheritedFlags().VisitAll(flag)
	c.InheritedFlags().VisitAll(flag)
	if set {
		r.text("Every key of fleetbus.yaml(5) has a flag too, with a dash for each dot and underscore.")
	}
	if c.HasExample() {
		r.verbatim(c.Example)
	}
}

// settingFlags are the flags that keys of the file have.
func settingFlags() map[string]bool {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	config.AddFlags(flags)
	names := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
	return names
}

// settings is the page of the file.
func settings(name string) []byte {
	r := begin(name+".yaml", "5", "the settings of a node")
	r.section("DESCRIPTION")
	r.text(`The settings that a node starts with, in YAML. What the fleet agrees on, such as accounts and users, is not here but on the bus.

A flag wins over a variable, a variable over the file. The flag of the key a.b_c is --a-b-c, its variable FLEETBUS_A_B_C. "fleetbus config check" reports every problem, "fleetbus config show" where each value comes from.`)
	r.section("KEYS")
	for _, k := range config.Keys() {
		about := k.Doc
		switch {
		case k.Default != "":
			about += " Default: " + k.Default + "."
		case k.Otherwise != "":
			about += " Default: " + k.Otherwise + "."
		}
		if len(k.Choices) > 0 {
			about += " One of: " + strings.Join(k.Choices, ", ") + "."
		}
		r.item(k.Path+" ("+string(k.Type)+")", about)
	}
	r.section("FILES")
	r.text("/etc/fleetbus/fleetbus.yaml, or else fleetbus.yaml in the data directory; --config and FLEETBUS_CONFIG name another.")
	r.section("SEE ALSO")
	r.text(name + "(1), " + name + "-config(1)")
	return r.bytes()
}

// lower begins a sentence as it stands after a dash.
func lower(text string) string {
	if len(text) > 1 && text[1] >= 'a' && text[1] <= 'z' {
		return strings.ToLower(text[:1]) + text[1:]
	}
	return text
}
