package certmanager

import (
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/doctor"
)

func TestMetrics(t *testing.T) {
	end := time.Unix(1_800_000_000, 0)
	s := Status{
		Certificates: []CertificateStatus{
			{ID: "a", Group: "web", Names: []string{"a.example.org"}, NotAfter: end, Renews: end.Add(-time.Hour), Targets: 3, Current: 2, Failed: 1},
			{ID: `b"`, Group: "web", Failure: &cert.Failure{Attempts: 4}},
		},
		Findings: []doctor.Finding{{Code: "CERT-X"}, {Code: "CERT-X"}},
	}
	want := `# HELP fleetbus_certificate_not_after_timestamp_seconds When the latest generation of a certificate ends.
# TYPE fleetbus_certificate_not_after_timestamp_seconds gauge
fleetbus_certificate_not_after_timestamp_seconds{id="a",group="web",name="a.example.org"} 1800000000
# HELP fleetbus_certificate_renews_timestamp_seconds When a certificate is to be renewed, or tried again.
# TYPE fleetbus_certificate_renews_timestamp_seconds gauge
fleetbus_certificate_renews_timestamp_seconds{id="a",group="web",name="a.example.org"} 1799996400
# HELP fleetbus_certificate_failed_attempts Attempts to obtain a certificate that failed in a row.
# TYPE fleetbus_certificate_failed_attempts gauge
fleetbus_certificate_failed_attempts{id="a",group="web",name="a.example.org"} 0
fleetbus_certificate_failed_attempts{id="b\"",group="web",name=""} 4
# HELP fleetbus_certificate_targets Targets of a certificate, by what they were seen serving.
# TYPE fleetbus_certificate_targets gauge
fleetbus_certificate_targets{id="a",group="web",name="a.example.org",state="away"} 0
fleetbus_certificate_targets{id="a",group="web",name="a.example.org",state="current"} 2
fleetbus_certificate_targets{id="a",group="web",name="a.example.org",state="failed"} 1
fleetbus_certificate_targets{id="a",group="web",name="a.example.org",state="pending"} 0
fleetbus_certificate_targets{id="b\"",group="web",name="",state="away"} 0
fleetbus_certificate_targets{id="b\"",group="web",name="",state="current"} 0
fleetbus_certificate_targets{id="b\"",group="web",name="",state="failed"} 0
fleetbus_certificate_targets{id="b\"",group="web",name="",state="pending"} 0
# HELP fleetbus_certificate_findings What is wrong, by its code.
# TYPE fleetbus_certificate_findings gauge
fleetbus_certificate_findings{code="CERT-X"} 2
`
	if got := s.Metrics(); got != want {
		t.Errorf("the metrics are\n%s", got)
	}
}
