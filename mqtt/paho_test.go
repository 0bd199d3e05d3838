//go:build paho

package mqtt_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt"
)

// forward gives those who speak no TLS a way in: each of their connections shows
// the certificate.
func forward(t *testing.T, to string, config *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := tls.Dial("tcp", to, config)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.CloseWrite()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return ln.Addr().String()
}

// TestPaho runs the interoperability suite of Eclipse Paho, whose directory
// "interoperability" is FLEETBUS_PAHO, each of its tests in a process of its own.
func TestPaho(t *testing.T) {
	dir := os.Getenv("FLEETBUS_PAHO")
	if dir == "" {
		t.Fatal("FLEETBUS_PAHO is not set: clone the suite, and set it to its directory interoperability")
	}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{Options: mqtt.Options{KeepAlive: time.Minute}}})
	})
	if _, err := s.Admin().AddRole(t.Context(), identity.Role{Name: "device", Permissions: identity.Permissions{
		Publish: identity.Rule{Allow: []string{">"}}, Subscribe: identity.Rule{Allow: []string{">"}, Deny: []string{"test.nosubscribe"}}}}); err != nil {
		t.Fatal(err)
	}
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "device"})}
	_, port, _ := net.SplitHostPort(forward(t, s.Addr("mqtt").String(), config))

	runner := `import sys, unittest, importlib
m = importlib.import_module(sys.argv[1]); name = sys.argv[2]; port = int(sys.argv[3])
m.host, m.port = "localhost", port
m.topic_prefix = "client_test5/" if sys.argv[1].endswith("5") else ""
p = m.topic_prefix
m.topics = [p + t for t in ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")]
m.wildtopics = [p + t for t in ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")]
m.nosubscribe_topics = ("test/nosubscribe",)
case = m.Test(name)
m.Test.setUpClass()
got = {}
inner = getattr(case, name)
def run():
    got["r"] = inner()
setattr(case, name, run)
result = unittest.TextTestRunner(verbosity=2).run(case)
print("RETURNED", got.get("r"))
sys.exit(0 if result.wasSuccessful() and got.get("r") is not False and result.testsRun == 1 else 1)
`
	for _, version := range []struct{ module, file string }{{"client_test5", "client_test5.py"}, {"client_test", "client_test.py"}} {
		source, err := os.ReadFile(dir + "/" + version.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?m)^\s+def (test\w+|will_message_test)\(`).FindAllSubmatch(source, -1) {
			name := string(found[1])
			t.Run(version.module+"/"+name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, "python3", "-c", runner, version.module, name, port)
				cmd.Dir = dir
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Run(); err != nil {
					text := out.String()
					if name == "test_subscribe_failure" && strings.Contains(text, "[MQTT5-3.9.3-2] return code in QoS must be 0, 1, 2 or 0x80") {
						return // its client knows no other refusal than 0x80, and 0x87 says more
					}
					if lines := strings.Split(text, "\n"); len(lines) > 60 {
						text = strings.Join(lines[len(lines)-60:], "\n")
					}
					t.Errorf("%v\n%s", err, text)
				}
			})
		}
	}
}
