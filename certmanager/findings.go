package certmanager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
)

// Codes of findings.
const (
	CodeNoConfig   = "CERT-NO-CONFIG"   // managers have no configuration, or cannot read it
	CodeNoRecovery = "CERT-NO-RECOVERY" // nobody but the managers can read it
	CodeExpiring   = "CERT-EXPIRING"    // a certificate ends soon, or has ended
	CodeFailing    = "CERT-FAILING"     // attempts come to nothing
	CodeOverdue    = "CERT-OVERDUE"     // nobody renews a certificate
	CodeBehind     = "CERT-BEHIND"      // targets do not serve what they should
	CodeKeyKnown   = "CERT-KEY-KNOWN"   // a target that was removed knows the key of an imported one
	CodeRecord     = "CERT-RECORD"      // a record in the ledger cannot be believed
	CodeClock      = "CERT-CLOCK"       // the clock of this manager is not the ledger's
	CodeManager    = "CERT-MANAGER"     // this manager does not run, or something else fails
)

const (
	// overdue is for how long a certificate may be due until it is a finding that
	// nobody works on it.
	overdue = time.Hour
	// defaultAlertDays is how long before its end a certificate is a finding.
	defaultAlertDays = 7
	// maxFindings of one kind are told one by one.
	maxFindings = 50
)

// Check is what is wrong with certificates, as this manager sees it.
func (m *Manager) Check(ctx context.Context) []doctor.Finding {
	s := m.session()
	if s == nil {
		return []doctor.Finding{{Code: CodeManager, Severity: doctor.Warning, Subject: m.o.Name,
			Text: "the manager of certificates does not run", Fix: "look for why in the log of this node"}}
	}
	return s.findings(ctx)
}

// findings are those of a session. Of many of a kind the first are told, and how many
// there are.
func (s *session) findings(ctx context.Context) []doctor.Finding {
	all := s.configFindings()
	for _, found := range [][]doctor.Finding{s.certificateFindings(), s.behind(ctx), s.recordFindings()} {
		counts := map[string]int{}
		for _, f := range found {
			if counts[f.Code]++; counts[f.Code] <= maxFindings {
				all = append(all, f)
			}
		}
		for code, n := range counts {
			if n > maxFindings {
				all = append(all, doctor.Finding{Code: code, Severity: doctor.Warning, Subject: "certificates",
					Text: fmt.Sprintf("there are %d more of these", n-maxFindings), Fix: "fleetbus cert status"})
			}
		}
	}
	return all
}

// configFindings are about the manager itself.
func (s *session) configFindings() []doctor.Finding {
	var all []doctor.Finding
	settings, err := s.configured()
	switch {
	case err != nil:
		all = append(all, doctor.Finding{Code: CodeNoConfig, Severity: doctor.Problem, Subject: "configuration",
			Text: "no certificate can be obtained or renewed: " + err.Error(), Fix: "fleetbus conf update < config.json"})
	case len(settings.Recovery) == 0:
		all = append(all, doctor.Finding{Code: CodeNoRecovery, Severity: doctor.Warning, Subject: "configuration",
			Text: "if the managers' key is lost, nobody can read the accounts and secrets in the configuration",
			Fix:  "add an age recipient to recovery: fleetbus conf update"})
	}
	if ahead := s.ahead().Round(time.Second); ahead.Abs() > clockSkew {
		side := "ahead of"
		if ahead < 0 {
			side = "behind"
		}
		all = append(all, doctor.Finding{Code: CodeClock, Severity: doctor.Warning, Subject: s.m.o.Name, Fix: "NTP, here and on the nodes",
			Text: fmt.Sprintf("the clock of this manager is %s %s that of the ledger, which decides what is due", ahead.Abs(), side)})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stopped := time.Since(s.lastPass); !s.lastPass.IsZero() && stopped > 10*s.m.o.Every+time.Minute {
		all = append(all, doctor.Finding{Code: CodeManager, Severity: doctor.Problem, Subject: s.m.o.Name,
			Text: fmt.Sprintf("the manager has not looked at certificates for %s", stopped.Round(time.Second)), Fix: "restart this node"})
	}
	for what, why := range s.trouble {
		if what == "configuration" {
			continue
		}
		all = append(all, doctor.Finding{Code: CodeManager, Severity: doctor.Warning, Subject: what, Text: why})
	}
	return all
}

// certificateFindings are about what is obtained and renewed.
func (s *session) certificateFindings() []doctor.Finding {
	var all []doctor.Finding
	days := defaultAlertDays
	if settings, err := s.configured(); err == nil && settings.AlertDays > 0 {
		days = settings.AlertDays
	}
	now := s.now()
	for _, r := range s.state.Records("") {
		name := r.Policy.Names[0]
		fix := "fleetbus cert renew " + r.ID
		if r.Policy.Imported {
			fix = "fleetbus cert import --id " + r.ID
		}
		p, planned := planFor(r, now)
		if b := r.Current; b != nil {
			left := b.NotAfter.Sub(now)
			late := r.Policy.Imported || now.After(renewalOf(r.ID, b).At)
			switch {
			case left <= 0:
				all = append(all, doctor.Finding{Code: CodeExpiring, Severity: doctor.Problem, Subject: r.ID, Fix: fix,
					Text: fmt.Sprintf("the certificate of %s expired on %s", name, b.NotAfter.Format(time.DateTime))})
			case left < time.Duration(days)*24*time.Hour && late:
				all = append(all, doctor.Finding{Code: CodeExpiring, Severity: doctor.Warning, Subject: r.ID, Fix: fix,
					Text: fmt.Sprintf("the certificate of %s ends on %s, in %s", name, b.NotAfter.Format(time.DateTime), left.Round(time.Minute))})
			}
			if g, ok := s.state.GroupKey(r.Group); ok && r.Policy.Imported && b.KeyGeneration() < g.Generation {
				all = append(all, doctor.Finding{Code: CodeKeyKnown, Severity: doctor.Warning, Subject: r.ID, Fix: fix,
					Text: fmt.Sprintf("a target that was removed knows the private key of the imported certificate of %s", name)})
			}
		}
		if f := r.Failure; f != nil && r.Next == nil {
			severity := doctor.Warning
			if r.Current == nil || r.Current.NotAfter.Before(f.Next) {
				severity = doctor.Problem
			}
			all = append(all, doctor.Finding{Code: CodeFailing, Severity: severity, Subject: r.ID, Fix: fix,
				Text: fmt.Sprintf("the certificate of %s was not renewed, attempt %d in a row; it is tried again at %s: %s: %s",
					name, f.Attempts, f.Next.Format(time.DateTime), f.Step, f.Detail)})
		}
		if planned && !p.At.IsZero() && now.Sub(p.At) > overdue && idle(r.Lease) {
			all = append(all, doctor.Finding{Code: CodeOverdue, Severity: doctor.Warning, Subject: r.ID, Fix: fix,
				Text: fmt.Sprintf("the certificate of %s was to be renewed at %s, and nobody works on it", name, p.At.Format(time.DateTime))})
		}
	}
	return all
}

// behind are targets that do not serve what they should.
func (s *session) behind(ctx context.Context) []doctor.Finding {
	var all []doctor.Finding
	watcher := s.watchers(ctx)
	for _, r := range s.state.Records("") {
		if r.Current == nil && r.Next == nil {
			continue
		}
		w := watcher(r.Group)
		var names []string
		why := ""
		for _, name := range w.targets {
			b := expected(r, name)
			seen, ok := s.state.Seen(r.Group, name, r.ID)
			if b == nil || ok && serves(seen, b) || s.now().Sub(r.At) < s.m.o.Wave {
				continue
			}
			if !w.present[name] {
				name += " (away)"
			}
			names = append(names, name)
			if ok && seen.Error != "" {
				why = ": " + seen.Error
			}
		}
		if len(names) > 0 {
			if len(names) > 5 {
				names = append(names[:5], fmt.Sprintf("%d more", len(names)-5))
			}
			all = append(all, doctor.Finding{Code: CodeBehind, Severity: doctor.Warning, Subject: r.ID, Fix: "fleetbus cert status " + r.ID,
				Text: fmt.Sprintf("%s were not seen serving the latest certificate of %s%s", strings.Join(names, ", "), r.Policy.Names[0], why)})
		}
	}
	return all
}

// recordFindings are about what is in the ledger and not believed.
func (s *session) recordFindings() []doctor.Finding {
	var all []doctor.Finding
	problems := s.state.Problems()
	for subject, err := range problems {
		all = append(all, doctor.Finding{Code: CodeRecord, Severity: doctor.Problem, Subject: subject,
			Text: "somebody wrote a record that cannot be believed: " + err.Error(),
			Fix:  "see who may publish under $FLEETBUS.certs and $FLEETBUS.certreports: fleetbus role ls"})
	}
	slices.SortFunc(all, func(a, b doctor.Finding) int { return strings.Compare(a.Subject, b.Subject) })
	return all
}
