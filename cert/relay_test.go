package cert

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// FuzzReadable asks for whatever a target could: what the engine is asked for then is to
// read what is of groups, or the target's own, and to deliver it to who asks.
func FuzzReadable(f *testing.F) {
	own := ReportPrefix + "." + SeenSubject("web", "lb1", "a")
	for call, body := range map[string]string{
		"STREAM.INFO.CERTS": "", "STREAM.MSG.GET.CERTREPORTS": `{"last_by_subj":"` + own + `"}`, "CONSUMER.MSG.NEXT.CERTS.x": `{"batch":1}`,
		"CONSUMER.CREATE.CERTS.x":       `{"config":{"opt_start_seq":7,"filter_subjects":["` + Prefix + `.g.web.cert.*"],"deliver_subject":"orders","durable_name":"y"}}`,
		"CONSUMER.CREATE.CERTREPORTS.x": `{"config":{"filter_subjects":["` + own + `"]}}`,
	} {
		f.Add(call, []byte(body))
	}
	f.Fuzz(func(t *testing.T, call string, data []byte) {
		body, err := readable("lb1", call, data)
		if err != nil {
			return
		}
		words := strings.Split(call, ".")
		stream := words[min(len(words)-1, 3)] // but of a consumer that is made
		var all []string
		switch {
		case (call == "STREAM.INFO.CERTS" || call == "STREAM.INFO.CERTREPORTS") && len(body) == 0, len(words) == 5 && strings.HasPrefix(call, "CONSUMER.MSG.NEXT."):
			return
		case len(words) == 4 && strings.HasPrefix(call, "STREAM.MSG.GET."):
			r := map[string]any{}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			delete(r, "seq")
			for _, subject := range r {
				all = append(all, subject.(string))
			}
		case len(words) == 4 && strings.HasPrefix(call, "CONSUMER.CREATE."):
			var r struct {
				Stream string                   `json:"stream_name"`
				Config jetstream.ConsumerConfig `json:"config"`
			}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			c := r.Config
			if c.DeliverSubject != "" || c.Durable != "" || c.FilterSubject != "" || c.Name != words[3] || r.Stream != words[2] {
				t.Errorf("%s", body)
			}
			stream, all = r.Stream, c.FilterSubjects
		}
		if len(all) == 0 {
			t.Errorf("%q was let through: %s", call, body)
		}
		for _, subject := range all {
			words := strings.Split(subject, ".")
			if own := len(words) == 6 && words[1] == "certreports" && words[2] == "report" && words[4] == "lb1"; stream == ReportStream && !own ||
				stream == Stream && !strings.HasPrefix(subject, Prefix+".g.") || stream != Stream && stream != ReportStream {
				t.Errorf("%q may be read in %q", subject, stream)
			}
		}
	})
}
