package enroll

import (
	"testing"

	"github.com/fleetbus/fleetbus/admin"
)

// FuzzReply opens any answer to a joiner: it is an answer or an error, never neither.
func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"data":{"authority":"eA==","sender":"X"}}`))
	f.Add([]byte(`{"error":{"code":"denied"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = open[NodeReply](data)
		_, err := open[LeafReply](data)
		if refusal, ok := err.(*admin.Error); ok && refusal == nil {
			t.Errorf("%q is an error that is none", data)
		}
	})
}
