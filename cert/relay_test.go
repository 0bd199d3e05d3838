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
	own := Prefix + "." + SeenSubject("web", "lb1", "a")
	for call, body := range map[string]string{
		"STREAM.INFO.CERTS": "", "STREAM.MSG.GET.CERTS": `{"last_by_subj":"` + own + `"}`, "CONSUMER.MSG.NEXT.CERTS.x": `{"batch":1}`,
		"CONSUMER.CREATE.CERTS.x": `{"config":{"opt_start_seq":7,"filter_subjects":["` + own + `","` + Prefix + `.g.web.cert.*"],"deliver_subject":"orders","durable_name":"y"}}`,
	} {
		f.Add(call, []byte(body))
	}
	f.Fuzz(func(t *testing.T, call string, data []byte) {
		body, err := readable("lb1", call, data)
		if err != nil {
			return
		}
		all := []string{Prefix + ".g.web.cert.a"}
		switch words := strings.Split(call, "."); {
		case call == "STREAM.INFO.CERTS" && len(body) == 0, len(words) == 5 && strings.HasPrefix(call, "CONSUMER.MSG.NEXT.CERTS."):
		case call == "STREAM.MSG.GET.CERTS":
			r := map[string]any{}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			delete(r, "seq")
			all = nil
			for _, subject := range r {
				all = append(all, subject.(string))
			}
		case len(words) == 4 && strings.HasPrefix(call, "CONSUMER.CREATE.CERTS."):
			var r struct {
				Config jetstream.ConsumerConfig `json:"config"`
			}
			if err := json.Unmarshal(body, &r); err != nil {
				t.Fatal(err)
			}
			c := r.Config
			if c.DeliverSubject != "" || c.Durable != "" || c.FilterSubject != "" || c.Name != words[3] {
				t.Errorf("%s", body)
			}
			all = c.FilterSubjects
		default:
			t.Errorf("%q was let through", call)
		}
		if len(all) == 0 {
			t.Errorf("all may be read: %s", body)
		}
		for _, subject := range all {
			if words := strings.Split(subject, "."); !strings.HasPrefix(subject, Prefix+".g.") && (len(words) != 6 || words[2] != "seen" || words[4] != "lb1") {
				t.Errorf("%q may be read", subject)
			}
		}
	})
}
