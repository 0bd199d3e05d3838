//go:build !lean

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/document"
	"github.com/fleetbus/fleetbus/internal/hardening"
	"github.com/fleetbus/fleetbus/internal/hardening/probe"
)

// auditFiles are the verbs of audit that look at what others run: they need no fleet.
func auditFiles(a *command.App) []*cobra.Command {
	return []*cobra.Command{
		auditFilesOf(a, hardening.RabbitMQ, "RabbitMQ", "/etc/rabbitmq"),
		auditFilesOf(a, hardening.Qpid, "Qpid", "/etc/qpid"),
		auditFilesOf(a, hardening.OpenStack, "OpenStack's services", "/etc/nova /etc/neutron /etc/cinder"),
	}
}

// formatSARIF is a format of --output that code hosts read.
const formatSARIF = "sarif"

// fileAudit is one run of such a verb.
type fileAudit struct {
	kind     hardening.Kind
	o        hardening.Options
	networks []string
	strict   bool
	probes   []string
	hosts    []string
	cert     string
	key      string
	each     time.Duration
}

func auditFilesOf(a *command.App, kind hardening.Kind, whose, example string) *cobra.Command {
	f := fileAudit{kind: kind}
	cmd := &cobra.Command{
		Use: string(kind) + " [PATH]...", Args: command.Takes("[PATH]..."), Annotations: command.Reads(),
		Short: "Hold files of " + whose + " against the security guides",
		Long: `Read settings of ` + whose + `, and what they name, and judge them by the rules
of OpenStack's security guide for message queues and of the vendor's guides. A PATH is
a file, or a directory of which all is read. Nothing is changed, and no secret is told.
It needs no fleet. Exit code 1 says that a rule is broken, 78 that a file could not be
read or understood, and 3 that there is no such path.`,
		Example: fmt.Sprintf("  fleetbus audit %s %s\n  fleetbus audit %s --root copy-of-ctl1 copy-of-ctl1/etc -o sarif > audit.sarif", kind, example, kind),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.run(cmd, a, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.o.Root, "root", "", "`directory` that absolute paths in files are below: a copy of another machine's files")
	flags.StringSliceVar(&f.networks, "management-network", nil, "`CIDR` that listeners have to be in, or several")
	flags.BoolVar(&f.strict, "strict", false, "let warnings fail, too")
	if kind != hardening.Qpid {
		flags.StringVar(&f.o.RabbitMQ, "rabbitmq-version", "", "`version` of RabbitMQ, on which defaults depend")
		flags.StringVar(&f.o.OsloMessaging, "oslo-messaging-version", "", "`version` of oslo.messaging, on which defaults depend")
	}
	flags.StringSliceVar(&f.probes, "probe", nil, "ask the broker at `host:port` too, or several, without any right there")
	flags.StringSliceVar(&f.hosts, "probe-name", nil, "`name` or address that the broker's certificate has to be for, too")
	flags.StringVar(&f.cert, "probe-cert", "", "PEM `file` of a certificate to show, so that more can be seen")
	flags.StringVar(&f.key, "probe-key", "", "PEM `file` of its private key")
	flags.DurationVar(&f.each, "probe-timeout", 5*time.Second, "how long to wait for each answer")
	return a.Output(cmd, formatSARIF)
}

func (f *fileAudit) run(cmd *cobra.Command, a *command.App, paths []string) error {
	what := "auditing " + string(f.kind)
	if len(paths)+len(f.probes) == 0 {
		return command.Fail(command.ExitUsage, cmd.CommandPath()+" /etc/…, or --probe HOST:PORT", "%s: PATH is missing", what)
	}
	for _, text := range f.networks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return command.Fail(command.ExitUsage, "--management-network 10.0.0.0/24", "%s: --management-network: %q is no network", what, text)
		}
		f.o.Networks = append(f.o.Networks, n)
	}
	r := hardening.Report{Kind: f.kind}
	var err error
	if len(paths) > 0 {
		if r, err = hardening.Audit(f.kind, paths, f.o); errors.Is(err, hardening.ErrNothing) {
			return command.Fail(command.ExitNotFound, "name its files, or the directory that has them", "%s: %s: %v", what, strings.Join(paths, ", "), err)
		} else if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := f.probe(cmd.Context(), &r); err != nil {
		return err
	}
	if err := f.show(a, r, strings.Join(append(paths, "."), "\n")); err != nil {
		return err
	}
	switch {
	case r.Failed > 0 || f.strict && r.Warned > 0:
		return command.Fail(command.ExitFailed, "", "%s: %d failures and %d warnings to mend", what, r.Failed, r.Warned)
	case r.Missing > 0:
		return command.Fail(command.ExitNotFound, "name paths that are there", "%s: %d paths are missing", what, r.Missing)
	case r.Unread > 0:
		return command.Fail(command.ExitConfig, "mend what rule F1 has, or run it as a user who may read the files", "%s: %d files or lines cannot be read", what, r.Unread)
	}
	return nil
}

// probe adds what brokers answer.
func (f *fileAudit) probe(ctx context.Context, r *hardening.Report) error {
	o := probe.Options{Timeout: f.each, Hosts: f.hosts}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, cmp.Or(f.key, f.cert))
		if err != nil {
			return fmt.Errorf("reading the certificate of --probe-cert: %w", err)
		}
		o.Certificate = &pair
	}
	for _, addr := range f.probes {
		found, err := probe.Probe(ctx, addr, o)
		if err != nil {
			return err
		}
		r.Add(found)
	}
	return nil
}

func (f *fileAudit) show(a *command.App, r hardening.Report, paths string) error {
	if a.Format == formatSARIF {
		first, _, _ := strings.Cut(paths, "\n")
		var buf bytes.Buffer
		if err := document.JSON(&buf, r.SARIF(version, first), "  "); err != nil {
			return fmt.Errorf("encoding the output: %w", err)
		}
		return a.Print(buf.Bytes())
	}
	report := command.Report{Value: r, Text: func(p *command.Page) { showAudit(p, r) }}
	if a.Format == command.FormatJSONL {
		report.Value = r.Findings
	}
	return a.Show(report)
}

// showAudit lays a report out for people: by rule, and what is kept in one line.
func showAudit(p *command.Page, r hardening.Report) {
	marks := map[hardening.Verdict]string{hardening.Pass: "✓", hardening.Fail: "✗", hardening.Warn: "!", hardening.Unknown: "?", hardening.NotApplicable: "-"}
	count := map[hardening.Verdict]int{}
	rule := ""
	for i, f := range r.Findings {
		if f.Rule != rule {
			rule = f.Rule
			count[f.Verdict]++ // the worst comes first
			p.Line("%-3s %s", f.Rule, f.Title)
		} else if (f.Verdict == hardening.Pass || f.Verdict == hardening.NotApplicable) && r.Findings[i-1].Verdict == f.Verdict {
			continue // the first one is enough for people
		}
		where := f.Where()
		if f.Evidence != "" {
			where = strings.TrimPrefix(where+": "+f.Evidence, ": ")
		}
		p.Line("    %s %s: %s", marks[f.Verdict], f.Verdict, f.Text)
		if where != "" {
			p.Line("      at:  %s", where)
		}
		if f.Fix != "" && f.Verdict != hardening.Pass {
			p.Line("      fix: %s", f.Fix)
		}
	}
	var all []string
	for _, v := range hardening.Verdicts() {
		if n := count[v]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, v))
		}
	}
	p.Line("of %d rules: %s", len(hardening.Rules()), strings.Join(all, ", "))
}
