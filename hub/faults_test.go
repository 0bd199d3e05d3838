package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// probed is the error of a Probe, and its checks in short.
func probed(t testing.TB, o Options) (*Error, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	checks, err := Probe(ctx, o, nil)
	var words []string
	for _, c := range checks {
		mark := "ok"
		if !c.OK {
			mark = "FAIL"
		}
		words = append(words, c.Name+" "+mark)
		t.Logf("%-4s %-10s %s fix: %s", mark, c.Name, c.Detail, c.Fix)
	}
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
	if e != nil && e.Fix == "" {
		t.Errorf("%v has no fix", e)
	}
	return e, strings.Join(words, ", ")
}

// passwords makes a file of mosquitto's.
func passwords(t testing.TB) string {
	t.Helper()
	path := write(t, "passwords", "")
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Skip("there is no mosquitto_passwd here: apt-get install mosquitto")
	}
	for _, user := range []string{"all", "reader", "writer", "nobody"} {
		if out, err := exec.Command(tool, "-b", path, user, "secret").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return path
}

const acl = `user all
topic readwrite fleetbus/#
user reader
topic read fleetbus/#
user writer
topic write fleetbus/#
`

func TestProbeTLS(t *testing.T) {
	m := startMosquitto(t, true)
	other := pki(t)
	good := m.options("n1")
	e, checks := probed(t, good)
	if e != nil || checks != "reach ok, tls ok, version ok, login ok, limits ok, subscribe ok, publish ok, round trip ok" {
		t.Fatalf("%v: %s", e, checks)
	}
	all, err := Probe(t.Context(), good, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, pin, _ := strings.Cut(all[1].Detail, "pin ")
	for what, c := range map[string]struct {
		change func(*Options)
		step   Step
		fix    string
	}{
		"its pin":                {func(o *Options) { o.CA, o.Pin = "", pin }, "", ""},
		"its pin and authority":  {func(o *Options) { o.Pin = pin }, "", ""},
		"another pin":            {func(o *Options) { o.Pin = "sha256:" + strings.Repeat("00", 32) }, StepTLS, "pin that one"},
		"another pin, no CA":     {func(o *Options) { o.CA, o.Pin = "", "sha256:"+strings.Repeat("00", 32) }, StepTLS, "pin that one"},
		"another authority":      {func(o *Options) { o.CA = other.ca }, StepTLS, "name the authority"},
		"the system's authority": {func(o *Options) { o.CA = "" }, StepTLS, "name the authority"},
		"another name":           {func(o *Options) { o.ServerName = "mqtt.example.net" }, StepTLS, "server_name"},
		"a name of it":           {func(o *Options) { o.ServerName = "broker" }, "", ""},
		"no certificate":         {func(o *Options) { o.Cert, o.Key = "", "" }, StepTLS, "cert, key"},
		"a stranger's":           {func(o *Options) { o.Cert, o.Key = other.clientCert, other.clientKey }, StepTLS, "cert, key"},
		"no TLS":                 {func(o *Options) { o.Servers = []string{"mqtt://" + m.addr} }, StepVersion, "log"},
		"no such file":           {func(o *Options) { o.CA = "/nowhere" }, StepSettings, "name files"},
		"nobody":                 {func(o *Options) { o.Servers = []string{"mqtts://" + loopback.Addr(t)} }, StepReach, "start the hub"},
		"no such host":           {func(o *Options) { o.Servers = []string{"mqtts://hub.invalid"} }, StepReach, "host's name"},
	} {
		t.Run(what, func(t *testing.T) {
			o := good
			c.change(&o)
			e, checks := probed(t, o)
			switch {
			case c.step == "" && e != nil, c.step != "" && e == nil:
				t.Fatalf("%v: %s", e, checks)
			case e != nil && (e.Step != c.step || !strings.Contains(e.Fix, c.fix)):
				t.Errorf("step %s, fix %q: %v", e.Step, e.Fix, e)
			}
		})
	}
	plain := startMosquitto(t, false)
	if e, _ := probed(t, Options{Servers: []string{"mqtts://" + plain.addr}}); e == nil || e.Step != StepTLS || !strings.Contains(e.Fix, "mqtt://") {
		t.Errorf("%+v", e)
	}
}

func TestProbePermissions(t *testing.T) {
	m := startMosquitto(t, false, "allow_anonymous false", "password_file "+passwords(t), "acl_file "+write(t, "acl", acl))
	secret, wrong := write(t, "secret", "secret\n"), write(t, "wrong", "guess")
	for _, c := range []struct {
		user, password string
		step           Step
		fix            string
	}{
		{"all", secret, "", ""}, {"all", wrong, StepLogin, "password_file"}, {"stranger", secret, StepLogin, "password_file"}, {"", "", StepLogin, "user"},
		{"reader", secret, StepPublish, `write "fleetbus/#"`}, {"writer", secret, StepRoundTrip, `read "fleetbus/#"`}, {"nobody", secret, StepPublish, "write"},
	} {
		e, checks := probed(t, Options{Servers: []string{m.url}, User: c.user, PasswordFile: c.password})
		switch {
		case (e == nil) != (c.step == ""):
			t.Errorf("%s: %v: %s", c.user, e, checks)
		case e != nil && (e.Step != c.step || !strings.Contains(e.Fix, c.fix) || !e.Code.Failed()):
			t.Errorf("%s: step %s, fix %q: %v", c.user, e.Step, e.Fix, e)
		}
	}
	// Below another prefix even the first may do nothing.
	if e, _ := probed(t, Options{Servers: []string{m.url}, User: "all", PasswordFile: secret, Prefix: "other"}); e == nil || e.Step != StepPublish {
		t.Errorf("%+v", e)
	}
}

// TestRefusedPublish keeps what the hub refuses until it takes it.
func TestRefusedPublish(t *testing.T) {
	list := write(t, "acl", acl)
	m := startMosquitto(t, false, "allow_anonymous false", "password_file "+passwords(t), "acl_file "+list)
	o := m.options("n1")
	o.User, o.PasswordFile = "reader", write(t, "secret", "secret")
	n1 := startNode(t, o)
	o2 := m.options("n2")
	o2.User, o2.PasswordFile = "all", o.PasswordFile
	n2 := startNode(t, o2)
	heard := n2.listen("orders.>")
	await.Nil(t, "both connect", func() error { return errors.Join(n1.connected(), n2.connected()) })
	js := n1.jetstream()
	for i := range 20 {
		n1.publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
	}
	await.Nil(t, "the refusal is a finding", func() error { return finding(n1, "HUB-REFUSES", `write "fleetbus/acme/#"`) })
	// Who may read goes on reading.
	from := n1.listen("orders.>")
	n2.publish(n2.jetstream(), "orders.b", "n2 0")
	await.Nil(t, "the reader reads", func() error {
		if !slices.Contains(from.payloads(), "n2 0") {
			return fmt.Errorf("%q", from.payloads())
		}
		return nil
	})
	if err := os.WriteFile(list, []byte(strings.ReplaceAll(acl, "topic read fleetbus", "topic readwrite fleetbus")), 0o600); err != nil {
		t.Fatal(err)
	}
	m.hangup()
	await.Nil(t, "everything comes", func() error {
		if missing, _, _ := account(heard.payloads(), 20, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d are missing: %+v", missing, n1.link.Hub())
		}
		return nil
	})
	if _, twice, late := account(heard.payloads(), 20, []string{"n1"}); twice+late > 0 {
		t.Errorf("%d twice, %d late", twice, late)
	}
	await.Nil(t, "the finding is gone", func() error {
		if found := n1.link.Check(t.Context()); len(found) > 0 {
			return fmt.Errorf("%+v", found)
		}
		return nil
	})
}

func finding(n *node, code, fix string) error {
	all := n.link.Check(context.Background())
	if !slices.ContainsFunc(all, func(f doctor.Finding) bool { return f.Code == code && strings.Contains(f.Fix, fix) }) {
		return fmt.Errorf("findings %+v", all)
	}
	return nil
}

// TestSameName has two nodes of one name, which disconnect each other.
func TestSameName(t *testing.T) {
	m := startMosquitto(t, false)
	n1, again := startNode(t, m.options("n1")), startNode(t, m.options("n1"))
	await.Nil(t, "it is a finding", func() error {
		return errors.Join(finding(n1, "HUB-CLIENT-ID-TWICE", "a name of its own"), finding(again, "HUB-CLIENT-ID-TWICE", "a name of its own"))
	})
}

// TestTwoHubs has two nodes that are both linked to two hubs, which is a loop: what
// one says the other hears once by each hub, and nothing goes round.
func TestTwoHubs(t *testing.T) {
	m1, m2 := startMosquitto(t, false), startMosquitto(t, false)
	nodes := three(t, m1)[:2]
	for _, n := range nodes {
		// The second link is one of another prefix: its queue is another account's in a
		// server. Here it is another engine that is linked to the first by a copy.
		o := m2.options(n.name)
		second := &node{t: t, name: n.name, bus: n.bus, o: o}
		second.run()
		await.Nil(t, "it connects", second.connected)
	}
	heard := nodes[1].listen("orders.>")
	js := nodes[0].jetstream()
	for i := range 50 {
		nodes[0].publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
	}
	await.Nil(t, "all come, twice", func() error {
		missing, twice, _ := account(heard.payloads(), 50, []string{"n1"})
		if missing > 0 || twice < 50 {
			return fmt.Errorf("%d are missing, %d came twice", missing, twice)
		}
		return nil
	})
	nodes[0].publish(js, "orders.a", "n1 50")
	await.Nil(t, "the end comes", func() error {
		if missing, _, _ := account(heard.payloads(), 51, []string{"n1"}); missing > 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if n := len(heard.payloads()); n > 102 {
		t.Errorf("51 messages over two hubs were heard %d times", n)
	}
}

// fakeHub answers each connection with what speak says.
func fakeHub(t testing.TB, speak func(conn net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				speak(conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return "mqtt://" + ln.Addr().String()
}

// hear reads one packet of a client's, and answers.
func answer(b ...byte) func(net.Conn) {
	return func(conn net.Conn) {
		buf := make([]byte, 1024)
		if _, err := conn.Read(buf); err != nil {
			return
		}
		_, _ = conn.Write(b)
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, _ = conn.Read(buf)
	}
}

func TestStrangeHubs(t *testing.T) {
	old := func(code byte) func(net.Conn) { return answer(0x20, 2, 0, code) }
	only311 := func(conn net.Conn) { // it ends the connection of anything newer
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err == nil && n > 8 && buf[8] == 4 {
			_, _ = conn.Write([]byte{0x20, 2, 0, 0})
		}
	}
	for what, c := range map[string]struct {
		speak func(net.Conn)
		step  Step
		text  string
	}{
		"3.1.1 with a return code": {old(1), StepVersion, "3.1.1"},
		"3.1.1 without a word":     {only311, StepVersion, "3.1.1"},
		"5.0 that says no":         {answer(0x20, 3, 0, 0x84, 0), StepVersion, "3.1.1"},
		"a web server":             {answer([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")...), StepVersion, "does not speak"},
		"silence":                  {answer(), StepVersion, "does not answer"},
		"an end":                   {func(net.Conn) {}, StepVersion, "closed the connection"},
		"a huge CONNACK":           {answer(0x20, 0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0), StepVersion, "does not speak"},
		"garbage":                  {answer(0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF), StepVersion, "does not speak"},
		"another server":           {answer(append([]byte{0x20, 12, 0, 0x9D, 9, 0x1C, 0, 6}, "hub-02"...)...), StepLogin, "moved"},
		"a huge message after it":  {func(conn net.Conn) { answer(0x20, 3, 0, 0, 0, 0x30, 0xFF, 0xFF, 0xFF, 0x7F)(conn) }, StepSubscribe, "larger"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			e, checks := probed(t, Options{Servers: []string{fakeHub(t, c.speak)}})
			if e == nil || e.Step != c.step || !strings.Contains(strings.ToLower(e.Error()), c.text) && c.text != "larger" && !reset(c.text, e) {
				t.Errorf("%+v: %s", e, checks)
			}
		})
	}
}

// reset reports whether the end that is expected came as the reset of a connection,
// which it may if the hub had not read everything.
func reset(text string, e *Error) bool {
	return text == "closed the connection" && strings.Contains(e.Error(), "connection reset")
}

// TestGarbage has a link bear a hub that speaks none of it, and then use a better one.
func TestGarbage(t *testing.T) {
	bad := fakeHub(t, answer(0x20, 3, 0, 0, 0, 0x90, 3, 0, 1, 0, 0x30, 0xFF, 0xFF, 0xFF, 0x7F))
	m := startMosquitto(t, false)
	o := m.options("n1")
	o.Servers = append([]string{bad}, o.Servers...)
	n := startNode(t, o)
	await.Nil(t, "it finds the better one", func() error {
		if h := n.link.Hub(); h.State != "connected" || h.Server != m.url {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}

func TestMarks(t *testing.T) {
	pair := func(name, value string) packet.Pair { return packet.Pair{Name: []byte(name), Value: []byte(value)} }
	for _, c := range []struct {
		pairs []packet.Pair
		want  mark
	}{
		{[]packet.Pair{pair(OriginHeader, "n1:ab"), pair(numberProperty, "7"), pair(beforeProperty, "5")}, mark{"n1:ab", 7, 5, true}},
		{[]packet.Pair{pair(OriginHeader, "n1:ab"), pair(numberProperty, "7")}, mark{"n1:ab", 7, 0, false}},
		{[]packet.Pair{pair(OriginHeader, "n1:ab"), pair(numberProperty, "7"), pair(beforeProperty, "7")}, mark{}},
		{[]packet.Pair{pair(OriginHeader, "n1:ab"), pair(numberProperty, "0")}, mark{}},
		{[]packet.Pair{pair(OriginHeader, "n1:ab"), pair(numberProperty, "-1")}, mark{}},
		{[]packet.Pair{pair(OriginHeader, "n1\r\nX:ab"), pair(numberProperty, "1")}, mark{}},
		{[]packet.Pair{pair(numberProperty, "1")}, mark{}}, {nil, mark{}},
	} {
		if got, _ := readMark(c.pairs); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.pairs, got, c.want)
		}
	}
}

func FuzzMark(f *testing.F) {
	f.Add("n1:ab", "7", "5", "x")
	f.Add("", "", "", "Fleetbus-Origin")
	o := Options{Node: "n", Account: "a"}.withDefaults()
	f.Fuzz(func(t *testing.T, origin, number, before, name string) {
		var pairs []packet.Pair
		for _, p := range [][2]string{{OriginHeader, origin}, {numberProperty, number}, {beforeProperty, before}, {name, "x"}} {
			pairs = append(pairs, packet.Pair{Name: []byte(p[0]), Value: []byte(p[1])})
		}
		m, _ := readMark(pairs)
		if m.origin != "" && (m.number == 0 || m.known && m.before >= m.number) {
			t.Errorf("%+v", m)
		}
		msg, _ := o.message("orders.a", &packet.Publish{Message: packet.Message{UserProperties: pairs}}, time.Unix(1, 0))
		if len(msg.Header[OriginHeader]) != 1 || strings.ContainsAny(msg.Header.Get(OriginHeader), "\r\n") {
			t.Errorf("%q", msg.Header)
		}
		p, ok := o.publish("orders.a", msg.Header, nil, mark{"n1:ab", 2, 1, true}, time.Unix(1, 0))
		if ok {
			if got, _ := readMark(p.UserProperties); got != (mark{"n1:ab", 2, 1, true}) && !slices.Contains([]string{OriginHeader, numberProperty, beforeProperty}, name) {
				t.Errorf("%+v", got)
			}
		}
	})
}

func FuzzTelling(f *testing.F) {
	f.Add([]byte(`{"origin":"n1:ab","last":7,"have":{"n2:cd":5},"ask":{"n2:cd":5}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if got, ok := readTelling(payload); ok && (!isOrigin(got.Origin) || len(got.Have) > maxOrigins) {
			t.Errorf("%+v", got)
		}
	})
}
