package certificates

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newCertCommand(a *command.App) *cobra.Command {
	return OnManagers(a, command.Noun("cert", "Certificates, issued once and delivered to every target of a group",
		newCertMake(a), newCertImport(a), newCertList(a), newCertCat(a), newCertStatus(a),
		newCertRenewable(a), newCertRenew(a), newCertRemove(a), newCertRoot(a), newCertTarget(a)))
}

// certFlags are what a certificate shall be like.
type certFlags struct {
	wildcard, subdomain             bool
	names, issuers, delegate        []string
	dns, persist, http, alpn        bool
	provider, group, profile, waves string
	keyType                         string
	reuseKey, noWait, again         bool
}

func (f *certFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.wildcard, "wildcard", false, "for *.DOMAIN and DOMAIN")
	flags.BoolVar(&f.subdomain, "subdomain", false, "for DOMAIN alone")
	flags.StringSliceVar(&f.names, "name", nil, "for DOMAIN and these names")
	cmd.MarkFlagsMutuallyExclusive("wildcard", "subdomain", "name")
	flags.BoolVar(&f.dns, "dns", false, "prove the names by a record in DNS (dns-01)")
	flags.BoolVar(&f.persist, "dns-persist", false, "prove them by a record in DNS that stays (dns-persist-01)")
	flags.BoolVar(&f.http, "http", false, "prove them over HTTP, by any target of the group (http-01)")
	flags.BoolVar(&f.alpn, "tls-alpn", false, "prove them over TLS, by any target of the group (tls-alpn-01)")
	cmd.MarkFlagsMutuallyExclusive("dns", "dns-persist", "http", "tls-alpn")
	flags.StringVar(&f.provider, "provider", "", "DNS provider, by its name in the configuration")
	flags.StringSliceVar(&f.delegate, "delegate", nil, "`NAME=TARGET`: _acme-challenge.NAME is a CNAME of TARGET, where the record is made")
	flags.StringSliceVar(&f.issuers, "issuer", nil, "issuers, by their names in the configuration, in the order in which they are tried")
	flags.StringVar(&f.group, "group", "", "group of targets that serve it (default \"default\")")
	flags.StringVar(&f.profile, "profile", "", "profile at the issuer, such as shortlived")
	f.keyType = "p256"
	flags.Var(&command.Choice{Value: &f.keyType, Words: []string{"p256", "p384", "rsa2048", "rsa3072", "rsa4096"}}, "key-type", "type of the private key: p256, p384, rsa2048, rsa3072, rsa4096")
	flags.BoolVar(&f.reuseKey, "reuse-key", false, "keep the private key over renewals")
	f.addWaves(cmd)
	flags.BoolVar(&f.noWait, "no-wait", false, "do not wait until it is issued")
	flags.BoolVar(&f.again, "again", false, "even if there is one for the same names")
}

func (f *certFlags) addWaves(cmd *cobra.Command) {
	f.waves = "waves"
	cmd.Flags().Var(&command.Choice{Value: &f.waves, Words: []string{"waves", "all"}}, "rollout", "how a renewed one reaches the targets: one, a tenth, the rest (waves), or at once (all)")
}

// request is what the managers are asked for.
func (f *certFlags) request(cmd *cobra.Command, domain string) (r certmanager.MakeRequest, err error) {
	p := cert.Policy{Issuers: f.issuers, Profile: f.profile, ReuseKey: f.reuseKey, Challenge: cert.Method{Provider: f.provider}}
	if cmd.Flags().Changed("key-type") {
		p.KeyType = f.keyType
	}
	if cmd.Flags().Changed("rollout") {
		p.Waves = f.waves
	}
	_, noAddress := netip.ParseAddr(domain)
	switch {
	case f.wildcard:
		p.Names = []string{"*." + domain, domain}
	case len(f.names) > 0:
		p.Names = append([]string{domain}, f.names...)
	case f.subdomain, noAddress == nil, strings.HasPrefix(domain, "*."), strings.HasPrefix(domain, "www."):
		p.Names = []string{domain}
	default:
		p.Names = []string{"www." + domain, domain}
	}
	switch {
	case f.dns, f.provider != "" && !f.persist:
		p.Challenge.Type = "dns-01"
	case f.persist:
		p.Challenge.Type = "dns-persist-01"
	case f.http:
		p.Challenge.Type = "http-01"
	case f.alpn:
		p.Challenge.Type = "tls-alpn-01"
	}
	for _, pair := range f.delegate {
		name, target, ok := strings.Cut(pair, "=")
		if !ok {
			return r, command.Fail(command.ExitUsage, "write it like example.org=example-org.acme.example.net", "making a certificate: %q delegates nothing", pair)
		}
		found := false
		for _, n := range p.Names {
			if !strings.EqualFold(strings.TrimPrefix(n, "*."), name) {
				continue
			}
			found = true
			if p.Challenges == nil {
				p.Challenges = map[string]cert.Method{}
			}
			p.Challenges[n] = cert.Method{Type: cmp.Or(p.Challenge.Type, "dns-01"), Provider: f.provider, Delegated: target}
		}
		if !found {
			return r, command.Fail(command.ExitUsage, "delegate one of them: "+strings.Join(p.Names, ", "), "making a certificate: %q is none of its names", name)
		}
	}
	return certmanager.MakeRequest{Group: f.group, Policy: p, Wait: !f.noWait, Again: f.again}, nil
}

func newCertMake(a *command.App) *cobra.Command {
	var f certFlags
	var g command.Guard
	cmd := &cobra.Command{
		Use: "mk DOMAIN", Aliases: []string{"add", "create"}, Args: command.Takes("DOMAIN"), Annotations: command.Writes(),
		Short: "Obtain a certificate, and deliver it to the targets of a group",
		Long: `Obtain a certificate, and deliver it to the targets of a group. It is for
www.DOMAIN and DOMAIN, unless other names are asked for. From then on it is renewed
in time, under the same id.`,
		Example: `  fleetbus cert mk example.org
  fleetbus cert mk example.org --wildcard --dns --provider cloudflare
  fleetbus cert mk shop.example.org --subdomain --http --group web
  fleetbus cert mk db.internal --subdomain --issuer private`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(cmd, args[0])
			if err != nil {
				return err
			}
			what := fmt.Sprintf("making a certificate for %q", args[0])
			if g.DryRun {
				return a.ShowPlan("obtain a certificate for %s, for group %s", strings.Join(r.Policy.Names, ", "), cmp.Or(r.Group, certmanager.DefaultGroup))
			}
			made, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (*cert.Record, error) {
				return c.Make(ctx, r)
			})
			if err != nil {
				return err
			}
			return showCert(a, made)
		},
	}
	f.add(cmd)
	g.Drying(cmd)
	return a.Output(cmd)
}

// showCert says how a certificate stands after something was done with it.
func showCert(a *command.App, r *cert.Record) error {
	b := latest(r)
	return a.Show(command.Report{Value: brief(r), Text: func(p *command.Page) {
		list := []command.Field{{"id", r.ID}, {"names", strings.Join(r.Policy.Names, ", ")}, {"group", r.Group}, {"state", certState(r)}}
		if b != nil {
			list = append(list, command.Field{"generation", fmt.Sprint(b.Generation)}, command.Field{"serial", b.Serial}, command.Field{"issuer", b.Issuer},
				command.Field{"valid", human.Time(b.NotBefore) + " to " + human.Time(b.NotAfter)})
		}
		command.Fields(p, list)
	}})
}

// latest is the newest generation of a certificate, nil before the first.
func latest(r *cert.Record) *cert.Bundle {
	if r.Next != nil {
		return r.Next
	}
	return r.Current
}

// brief is a record without the chain and the sealed key.
func brief(r *cert.Record) *cert.Record {
	short := *r
	for _, b := range []**cert.Bundle{&short.Current, &short.Next} {
		if *b != nil {
			copied := **b
			copied.Chain, copied.Key = "", cert.Sealed{}
			*b = &copied
		}
	}
	return &short
}

// certState is how a certificate stands, in a few words.
func certState(r *cert.Record) string {
	switch {
	case r.Removed:
		return "removed"
	case r.Next != nil && r.Wave != nil:
		return fmt.Sprintf("rolling out generation %d, wave %d", r.Next.Generation, r.Wave.Number)
	case r.Failure != nil && r.Current == nil:
		return "failing: " + r.Failure.Detail
	case r.Failure != nil:
		return "renewal fails: " + r.Failure.Detail
	case r.Lease != nil && r.Lease.Holder != "":
		return "being obtained by " + r.Lease.Holder
	case r.Current == nil:
		return "asked for"
	}
	return "obtained"
}

func newCertImport(a *command.App) *cobra.Command {
	var r certmanager.ImportRequest
	var chain, key string
	var f certFlags
	cmd := &cobra.Command{
		Use: "import", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Deliver a certificate that was obtained elsewhere",
		Long: `Deliver a certificate that was obtained elsewhere to the targets of a group. It is
not renewed: before its end it is a finding, and --id imports the next one.`,
		Example: `  fleetbus cert import --chain bought.pem --key bought.key --group web`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "importing a certificate"
			if chain == "" || key == "" {
				return command.Fail(command.ExitUsage, "--chain FILE --key FILE", "%s: the chain or the key is missing", what)
			}
			for _, file := range []struct {
				path string
				into *string
			}{{chain, &r.Chain}, {key, &r.Key}} {
				text, err := os.ReadFile(file.path)
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				*file.into = string(text)
			}
			if cmd.Flags().Changed("rollout") {
				r.Waves = f.waves
			}
			made, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (*cert.Record, error) {
				return c.Import(ctx, r)
			})
			if err != nil {
				return err
			}
			return showCert(a, made)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&chain, "chain", "", "PEM `file` of the certificate and what leads to its root")
	flags.StringVar(&key, "key", "", "PEM `file` of its private key")
	flags.StringVar(&r.Group, "group", "", "group of targets that serve it (default \"default\")")
	flags.StringVar(&r.ID, "id", "", "imported certificate that it takes the place of")
	f.addWaves(cmd)
	return a.Output(cmd)
}

func newCertList(a *command.App) *cobra.Command {
	var r certmanager.ListRequest
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the certificates",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := Manage(cmd, a, "listing certificates", func(ctx context.Context, c *certmanager.Client) ([]*cert.Record, error) {
				return c.Certificates(ctx, r.Group)
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(all,
				command.Col("ID", func(r *cert.Record) string { return r.ID }),
				command.Col("NAMES", func(r *cert.Record) string { return strings.Join(r.Policy.Names, ",") }),
				command.Col("GROUP", func(r *cert.Record) string { return r.Group }),
				command.Col("GENERATION", func(r *cert.Record) string {
					if b := latest(r); b != nil {
						return fmt.Sprint(b.Generation)
					}
					return ""
				}),
				command.Col("EXPIRES", func(r *cert.Record) string {
					if b := latest(r); b != nil {
						return human.Time(b.NotAfter)
					}
					return ""
				}),
				command.Col("ISSUER", func(r *cert.Record) string {
					if b := latest(r); b != nil {
						return b.Issuer
					}
					return ""
				}),
				command.Col("CHALLENGE", func(r *cert.Record) string { return r.Policy.Challenge.Type }),
				command.Col("STATE", certState),
			))
		},
	}
	cmd.Flags().StringVar(&r.Group, "group", "", "those of one group (default: all)")
	return a.Output(cmd)
}

func newCertCat(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "cat ID", Args: command.Takes("ID"), Annotations: command.Reads(),
		Short: "Print the record of a certificate, with its chain and its sealed key",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := Manage(cmd, a, fmt.Sprintf("reading certificate %q", args[0]), func(ctx context.Context, c *certmanager.Client) (*cert.Record, error) {
				return c.Certificate(ctx, args[0])
			})
			if err != nil {
				return err
			}
			if a.Format == command.FormatTable {
				a.Format = command.FormatJSON
			}
			return a.Show(command.Report{Value: r})
		},
	})
}

// formatMetrics is the text format of Prometheus.
const formatMetrics = "metrics"

func newCertStatus(a *command.App) *cobra.Command {
	var r certmanager.StatusRequest
	cmd := &cobra.Command{
		Use: "status [ID]", Args: command.Takes("[ID]"), Annotations: command.Reads(),
		Short: "Say which certificates are seen serving, where, and what is wrong",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.ID = args[0]
			}
			s, err := Manage(cmd, a, "looking at certificates", func(ctx context.Context, c *certmanager.Client) (certmanager.Status, error) {
				return c.Status(ctx, r)
			})
			if err != nil {
				return err
			}
			if a.Format == formatMetrics {
				return a.Print([]byte(s.Metrics()))
			}
			return a.Show(command.Report{Value: s, Text: func(p *command.Page) {
				for _, c := range s.Certificates {
					p.Line("%s  %s", c.ID, strings.Join(c.Names, ", "))
					if c.Generation > 0 {
						renewal := "" // nobody plans one of what was imported, or is being rolled out
						if !c.Renews.IsZero() {
							renewal = ", to be renewed " + human.Time(c.Renews)
						}
						p.Line("  generation %d until %s%s", c.Generation, human.Time(c.NotAfter), renewal)
					}
					p.Line("  %s", c.Line())
					if c.Failure != nil {
						p.Line("  failed %s: %s: %s; again at %s", human.Count(c.Failure.Attempts, "time"), c.Failure.Step, c.Failure.Detail, human.Time(c.Failure.Next))
					}
				}
				for _, f := range s.Findings {
					p.Line("%s %s: %s", f.Code, f.Subject, f.Text)
					if f.Fix != "" {
						p.Line("  fix: %s", f.Fix)
					}
				}
			}})
		},
	}
	cmd.Flags().StringVar(&r.Group, "group", "", "those of one group (default: all)")
	return a.Output(cmd, formatMetrics)
}

func newCertRenewable(a *command.App) *cobra.Command {
	var at string
	var first, all bool
	cmd := &cobra.Command{
		Use: "renewable", Args: command.Takes(), Annotations: command.Writes(),
		Short: "List what is to be renewed, and renew it if asked to",
		Example: `  fleetbus cert renewable --at 2027-01-31
  fleetbus cert renewable --renew-first`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "looking for what is to be renewed"
			var r certmanager.RenewableRequest
			if at != "" {
				day, err := time.Parse(time.DateOnly, at)
				if err != nil {
					return command.Fail(command.ExitUsage, "write it like 2027-01-31", "%s: %q is no date", what, at)
				}
				r.At = day
			}
			switch {
			case (first || all) && at != "":
				return command.Fail(command.ExitUsage, "leave --at out", "%s: what is renewed is what is due now", what)
			case first:
				r.Renew = "first"
			case all:
				r.Renew = "all"
			}
			found, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) ([]certmanager.Renewable, error) {
				return c.Renewable(ctx, r)
			})
			if err != nil {
				return err
			}
			type row = certmanager.Renewable
			columns := []command.Column[row]{
				command.Col("ID", func(r row) string { return r.ID }),
				command.Col("NAMES", func(r row) string { return strings.Join(r.Names, ",") }),
				command.Col("GROUP", func(r row) string { return r.Group }),
				command.Col("RENEW AT", func(r row) string { return human.Time(r.At) }),
				command.Col("REASON", func(r row) string { return string(r.Reason) }),
			}
			if r.Renew != "" {
				columns = append(columns, command.Col("RENEWED", func(r row) string { return human.YesNo(r.Renewed) }), command.Col("ERROR", func(r row) string { return r.Error }))
			}
			if err := a.Show(command.List(found, columns...)); err != nil {
				return err
			}
			if failed := slices.DeleteFunc(slices.Clone(found), func(r row) bool { return r.Error == "" }); len(failed) > 0 {
				return command.Fail(command.ExitPartial, "fleetbus cert status", "renewing: %d of %s failed", len(failed), human.Count(len(found), "certificate"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "`date`, such as 2027-01-31, until which it is to be renewed (default: now)")
	cmd.Flags().BoolVarP(&first, "renew-first", "r", false, "renew the most urgent one that is due")
	cmd.Flags().BoolVar(&all, "all", false, "renew all that are due")
	cmd.MarkFlagsMutuallyExclusive("renew-first", "all")
	return a.Output(cmd)
}

func newCertRenew(a *command.App) *cobra.Command {
	reason := "forced"
	var noWait bool
	var g command.Guard
	cmd := &cobra.Command{
		Use: "renew ID", Args: command.Takes("ID"), Annotations: command.Writes(),
		Short: "Renew a certificate before its time",
		Long: `Renew a certificate before its time. With --reason compromised it gets another
private key, is rolled out everywhere, and only then the old one is revoked.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("renewing certificate %q", args[0])
			if g.DryRun {
				return a.ShowPlan("renew certificate %s", args[0])
			}
			r, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (*cert.Record, error) {
				return c.Renew(ctx, certmanager.RenewRequest{ID: args[0], Compromised: reason == "compromised", Wait: !noWait})
			})
			if err != nil {
				return err
			}
			return showCert(a, r)
		},
	}
	cmd.Flags().Var(&command.Choice{Value: &reason, Words: []string{"forced", "compromised"}}, "reason", "why: forced, compromised")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is issued")
	g.Drying(cmd)
	return a.Output(cmd)
}

func newCertRemove(a *command.App) *cobra.Command {
	var r certmanager.RemoveRequest
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ID", Aliases: []string{"delete"}, Args: command.Takes("ID"), Annotations: command.Writes(),
		Short: "Remove a certificate from every target",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.ID = args[0]
			what := fmt.Sprintf("removing certificate %q", r.ID)
			described := fmt.Sprintf("remove certificate %s from every target", r.ID)
			if r.Revoke {
				described += " and revoke it"
			}
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, r.ID, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			gone, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (*cert.Record, error) {
				return c.Remove(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: brief(gone), Text: func(p *command.Page) { p.Line("certificate %s is removed", r.ID) }})
		},
	}
	cmd.Flags().BoolVar(&r.Revoke, "revoke", false, "revoke it at its authority, too")
	g.Destroying(cmd)
	return a.Output(cmd)
}

func newCertRoot(a *command.App) *cobra.Command {
	var crl bool
	cmd := &cobra.Command{
		Use: "root [ISSUER]", Args: command.Takes("[ISSUER]"), Annotations: command.Reads(),
		Short: "Print the root of the managers' own authority, which clients have to trust",
		RunE: func(cmd *cobra.Command, args []string) error {
			issuer := ""
			if len(args) > 0 {
				issuer = args[0]
			}
			root, err := Manage(cmd, a, "reading the root", func(ctx context.Context, c *certmanager.Client) (certmanager.RootReply, error) {
				return c.Root(ctx, issuer)
			})
			if err != nil {
				return err
			}
			text := root.Root
			if crl {
				text = root.CRL
			}
			return a.Show(command.Report{Value: root, Text: func(p *command.Page) {
				for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
					p.Line("%s", line)
				}
			}})
		},
	}
	cmd.Flags().BoolVar(&crl, "crl", false, "print the list of certificates that it has revoked, which is valid for a week")
	return a.Output(cmd)
}
