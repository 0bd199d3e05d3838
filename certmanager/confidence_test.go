package certmanager

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/internal/await"
)

// Nobody who hears everything in the account reads a secret on its way.
func TestConfidence(t *testing.T) {
	w := newWorld(t)
	w.run(w.options("m1"))
	spy := dial(t, w.url)
	var mu sync.Mutex
	var heard bytes.Buffer
	if _, err := spy.Subscribe(">", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		heard.WriteString(m.Subject)
		heard.Write(m.Data)
	}); err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	const planted = "planted-secret"
	text := strings.TrimSuffix(fakeConfig, "}") + `,"dns":[{"name":"d","provider":"rfc2136","settings":{"key":"` + planted + `"}}]}`
	c := w.client()
	if _, err := c.UpdateConfig(within(t), []byte(text)); err != nil {
		t.Fatal(err)
	}
	reply, err := c.Config(within(t))
	if err != nil || !strings.Contains(string(reply.Settings.DNS[0].Settings), planted) {
		t.Fatalf("%+v %v", reply, err)
	}
	await.Nil(t, "the spy hears of it", func() error {
		mu.Lock()
		defer mu.Unlock()
		if strings.Count(heard.String(), cert.APISubject("conf.display")) == 0 {
			return errors.New("it hears nothing")
		}
		return nil
	})
	mu.Lock()
	if strings.Contains(heard.String(), planted) {
		t.Error("a secret was on the bus")
	}
	mu.Unlock()
	// What is not sealed, or was sealed for something else, is refused.
	other, err := cert.SealMessage(w.key.Public(), "import", []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []any{ConfigRequest{Config: json.RawMessage(fakeConfig)}, confidence{other}, struct{}{}} {
		if _, err := call[confidence](within(t), c, "conf.update", bad); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
