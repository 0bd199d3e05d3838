package certmanager

import (
	"fmt"
	"strings"
)

// Metrics are the status in the text format of Prometheus and OpenMetrics, for a file
// that a collector reads: when certificates end, who serves them, what fails.
func (s Status) Metrics() string {
	var b strings.Builder
	gauge := func(name, help string, write func(sample func(value int64, labels ...string))) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name)
		write(func(value int64, labels ...string) {
			var pairs []string
			for i := 0; i+1 < len(labels); i += 2 {
				pairs = append(pairs, labels[i]+"=\""+escapeLabel(labels[i+1])+"\"")
			}
			fmt.Fprintf(&b, "%s{%s} %d\n", name, strings.Join(pairs, ","), value)
		})
	}
	each := func(write func(c CertificateStatus, labels []string)) {
		for _, c := range s.Certificates {
			name := ""
			if len(c.Names) > 0 {
				name = c.Names[0]
			}
			write(c, []string{"id", c.ID, "group", c.Group, "name", name})
		}
	}
	gauge("fleetbus_certificate_not_after_timestamp_seconds", "When the latest generation of a certificate ends.", func(sample func(int64, ...string)) {
		each(func(c CertificateStatus, labels []string) {
			if !c.NotAfter.IsZero() {
				sample(c.NotAfter.Unix(), labels...)
			}
		})
	})
	gauge("fleetbus_certificate_renews_timestamp_seconds", "When a certificate is to be renewed, or tried again.", func(sample func(int64, ...string)) {
		each(func(c CertificateStatus, labels []string) {
			if !c.Renews.IsZero() {
				sample(c.Renews.Unix(), labels...)
			}
		})
	})
	gauge("fleetbus_certificate_failed_attempts", "Attempts to obtain a certificate that failed in a row.", func(sample func(int64, ...string)) {
		each(func(c CertificateStatus, labels []string) {
			attempts := int64(0)
			if c.Failure != nil {
				attempts = int64(c.Failure.Attempts)
			}
			sample(attempts, labels...)
		})
	})
	gauge("fleetbus_certificate_targets", "Targets of a certificate, by what they were seen serving.", func(sample func(int64, ...string)) {
		each(func(c CertificateStatus, labels []string) {
			for _, state := range []struct {
				name  string
				count int
			}{{"current", c.Current}, {"pending", c.Pending}, {"failed", c.Failed}, {"away", c.Away}} {
				sample(int64(state.count), append(labels, "state", state.name)...)
			}
		})
	})
	gauge("fleetbus_certificate_findings", "What is wrong, by its code.", func(sample func(int64, ...string)) {
		counts, order := map[string]int64{}, []string{}
		for _, f := range s.Findings {
			if counts[f.Code]++; counts[f.Code] == 1 {
				order = append(order, f.Code)
			}
		}
		for _, code := range order {
			sample(counts[code], "code", code)
		}
	})
	return b.String()
}

// escapeLabel is a label's value as the text format has it.
func escapeLabel(value string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value)
}
