package mqtt_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

// A clause is a normative statement, as testdata/clauses.txt has it.
type clause struct {
	name string
	// binds is whom it binds: "server", "client", or "other", which is what this
	// package is not.
	binds string
	// same are the statements of 5.0 that say what this one of 3.1.1 says.
	same []string
	text string
}

func (c clause) v() packet.Version {
	if strings.HasPrefix(c.name, "MQTT311") {
		return packet.V311
	}
	return packet.V5
}

func clauses(t *testing.T) (all []clause) {
	text, err := os.ReadFile("testdata/clauses.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 4 {
			t.Fatalf("a clause that is none: %s", line)
		}
		all = append(all, clause{strings.TrimSpace(f[0]), strings.TrimSpace(f[1]), strings.Fields(f[2]), strings.TrimSpace(f[3])})
	}
	return all
}

// citations are where the code cites each clause.
func citations(t *testing.T) map[string][]string {
	cited := regexp.MustCompile(`MQTT(?:311)?-[0-9]+\.[0-9]+\.?[0-9]*-[0-9]+`)
	found := map[string][]string{}
	for _, pattern := range []string{"*.go", "packet/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for line := range strings.Lines(string(text)) {
				n++
				for _, in := range regexp.MustCompile(`\[(?:MQTT[^\]]*)\]`).FindAllString(line, -1) {
					for _, name := range cited.FindAllString(in, -1) {
						found[name] = append(found[name], fmt.Sprintf("%s:%d", file, n))
					}
				}
			}
		}
	}
	return found
}

// A proof says which tests hold a clause, in a version.
type proof map[packet.Version]map[string][]string

func (p proof) add(v packet.Version, test string, names ...string) {
	if p[v] == nil {
		p[v] = map[string][]string{}
	}
	for _, name := range names {
		if !slices.Contains(p[v][name], test) {
			p[v][name] = append(p[v][name], test)
		}
	}
}

// of are the tests of a clause: of 3.1.1, those of all that it is the same as.
func (p proof) of(c clause) []string {
	tests := slices.Clone(p[c.v()][c.name])
	for _, same := range c.same {
		more := p[packet.V311][same]
		if len(more) == 0 {
			return nil
		}
		tests = append(tests, more[0])
	}
	slices.Sort(tests)
	return slices.Compact(tests)
}

// TestConformance tries every normative statement of both versions that binds a
// server, and prints where it is kept and which test says so. With -v it prints
// all of them.
func TestConformance(t *testing.T) {
	all, cited, proven, failed := clauses(t), citations(t), proof{}, map[string]bool{}
	known := map[string]bool{}
	for _, c := range all {
		known[c.name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(cited)) {
		if !known[name] {
			t.Errorf("%s, which %s cites, is no statement", name, cited[name][0])
		}
	}
	run := func(name string, vs []packet.Version, clauses []string, test func(*testing.T, packet.Version)) {
		for _, name := range clauses {
			if !known[name] {
				t.Errorf("%s is no statement", name)
			}
		}
		for _, v := range vs {
			full := name + "/" + v.String()
			if !t.Run(full, func(t *testing.T) { test(t, v) }) {
				failed[full] = true
			}
			proven.add(v, full, clauses...)
		}
	}
	h := start(t)
	tryPackets(t, h, proven, failed)
	for i, s := range stories() {
		run(s.name, s.versions(), s.names(), func(t *testing.T, v packet.Version) {
			s.run(&scene{t, h, v, fmt.Sprintf("%d-%s-", i, v)})
		})
	}
	tryCodec(t, proven, failed)

	counts := map[string]int{}
	for _, c := range all {
		where, tests, state := cited[c.name], proven.of(c), "pass"
		for _, same := range c.same {
			where = append(where, cited[same]...)
		}
		counts[c.name[:strings.Index(c.name, "-")]+" "+c.binds]++
		if c.binds != "server" {
			t.Logf("%-18s %s's: %s", c.name, c.binds, c.text)
			continue
		}
		if len(where) == 0 {
			t.Errorf("%s is not cited: %s", c.name, c.text)
		}
		if len(tests) == 0 {
			t.Errorf("%s has no test: %s", c.name, c.text)
		}
		if slices.ContainsFunc(tests, func(name string) bool { return failed[name] }) {
			state = "FAIL"
		}
		if n := len(tests); n > 3 {
			tests = append(tests[:3:3], fmt.Sprintf("and %d more", n-3))
		}
		t.Logf("%-18s %-4s %s | %s | %s", c.name, state, c.text, strings.Join(where, " "), strings.Join(tests, ", "))
	}
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%s: %d statements", what, counts[what])
	}
}

// tryPackets sends a server every packet that breaks a rule: it costs the one
// connection, with the right reason.
func tryPackets(t *testing.T, h *house, proven proof, failed map[string]bool) {
	well, _ := h.connect(t, &packet.Connect{ClientID: "well", CleanStart: true})
	for _, b := range packettest.Breaches() {
		v, name := spoken(b), breachName(b)
		if !sent(b) {
			continue
		}
		if !t.Run(name, func(t *testing.T) { breach(t, h, b) }) {
			failed[name] = true
		}
		for _, in := range []packet.Version{packet.V311, packet.V5} {
			if v == 0 || v == in {
				proven.add(in, name, clauseNames(b)...)
			}
		}
		if b.Version == 0 && v == packet.V311 {
			proven.add(v, name, "MQTT311-3.1.4-1", "MQTT311-3.2.2-6")
		}
	}
	well.well()
}

func breachName(b packettest.Breach) string {
	spec := b.Spec
	if len(spec) > 30 {
		spec = spec[:30]
	}
	return fmt.Sprintf("packets/%s %s %s", spoken(b), strings.Fields(b.Clauses)[0], spec)
}

// sent reports whether a client may send b. What begins with a G is taken for HTTP.
func sent(b packettest.Breach) bool {
	first, _ := b.Wire()
	return b.From == packettest.Client && first != 'G'
}

// spoken is the version that who sends b understands; 0: none.
func spoken(b packettest.Breach) packet.Version {
	if b.Version != 0 {
		return packet.Version(b.Version)
	}
	_, body := b.Wire()
	return speaks(body)
}

// breach sends b, and judges what comes of it.
func breach(t *testing.T, h *house, b packettest.Breach) {
	first, body := b.Wire()
	v := spoken(b)
	p := h.dial(t, max(v, packet.V311))
	if b.Version != 0 {
		p.send(&packet.Connect{Version: v, ClientID: "ill", CleanStart: true})
		next[*packet.Connack](p)
	}
	p.raw(append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...))
	told := p.end()
	var want packet.Packet
	switch code := packet.Code(b.Code); {
	case v == 0:
	case b.Version == 0 && v == packet.V311 && code != packet.UnsupportedProtocolVersion: // [MQTT311-3.1.4-1]
	case b.Version == 0:
		want = &packet.Connack{Code: code}
	case v == packet.V5:
		want = &packet.Disconnect{Code: code}
	}
	if got, is := told.(*packet.Disconnect); is {
		told = &packet.Disconnect{Code: got.Code}
	}
	if fmt.Sprintf("%T%+v", told, told) != fmt.Sprintf("%T%+v", want, want) {
		t.Errorf("it was told %+v, not %+v", told, want)
	}
}

// speaks is the version that a client understands which sent this CONNECT; 0: none.
func speaks(connect []byte) packet.Version {
	level, found := bytes.CutPrefix(connect, []byte("\x00\x04MQTT"))
	switch {
	case bytes.HasPrefix(connect, []byte("\x00\x06MQIsdp")), found && len(level) > 0 && level[0] < byte(packet.V5):
		return packet.V311
	case found && len(level) > 0:
		return packet.V5
	}
	return 0
}

// raw sends bytes.
func (p *peer) raw(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// end is the last packet that comes before the connection ends, or nil.
func (p *peer) end() packet.Packet {
	p.t.Helper()
	if err := p.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	var last packet.Packet
	for {
		got, err := p.r.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.t.Fatal("the connection goes on")
		}
		if _, judged := errors.AsType[*packet.Error](err); judged {
			p.t.Fatal(err)
		}
		if err != nil {
			return last
		}
		last = got
		if m, ok := got.(*packet.Publish); ok {
			last = &packet.Publish{ID: m.ID}
		}
	}
}

// tryCodec runs the tests of the codec, which hold what it writes and what it
// reads of a server.
func tryCodec(t *testing.T, proven proof, failed map[string]bool) {
	held := map[string][]string{
		"TestByteOrderMark": {"MQTT-1.5.4-3"},
		"TestShedding": {"MQTT-3.2.2-19", "MQTT-3.2.2-20", "MQTT-3.4.2-2", "MQTT-3.4.2-3", "MQTT-3.5.2-2", "MQTT-3.5.2-3", "MQTT-3.6.2-2", "MQTT-3.6.2-3",
			"MQTT-3.7.2-2", "MQTT-3.7.2-3", "MQTT-3.9.2-1", "MQTT-3.9.2-2", "MQTT-3.11.2-1", "MQTT-3.11.2-2", "MQTT-3.14.2-3", "MQTT-3.14.2-4", "MQTT-3.15.2-2", "MQTT-3.15.2-3"},
		"TestCheck": {"MQTT-4.7.3-2", "MQTT-4.7.3-3"},
	}
	held["TestBreaches"] = nil // by version
	out, err := exec.CommandContext(t.Context(), "go", "test", "-json", "-run", "^("+strings.Join(slices.Sorted(maps.Keys(held)), "|")+")$", "./packet").Output()
	if err != nil && len(out) == 0 {
		t.Errorf("the tests of the codec could not be run: %v", err)
	}
	passed := map[string]bool{}
	for events := json.NewDecoder(bytes.NewReader(out)); ; {
		var event struct{ Action, Test string }
		if err := events.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if event.Action == "pass" {
			passed[event.Test] = true
		}
	}
	for test, names := range held {
		full := "packet." + test
		if !passed[test] {
			t.Errorf("%s failed", full)
			failed[full] = true
		}
		proven.add(packet.V5, full, names...)
		proven.add(packet.V311, full, names...)
	}
	for _, b := range packettest.Breaches() {
		if b.From == packettest.Server {
			proven.add(packet.Version(b.Version), "packet.TestBreaches", clauseNames(b)...)
		}
	}
}

func clauseNames(b packettest.Breach) []string {
	return regexp.MustCompile(`MQTT(?:311)?-\S+`).FindAllString(b.Clauses, -1)
}

// TestRules has the rules by name that tell one server from another: eighteen of
// which five are of 3.1.1 as well, and then those of single packets.
func TestRules(t *testing.T) {
	h := start(t)
	both := []packet.Version{packet.V5, packet.V311}
	for i, rule := range []struct {
		name string
		run  func(*scene)
		in   []packet.Version
	}{
		{"a plain and a shared subscription are two copies", shared, both[:1]},
		{"two groups are two copies", shared, both[:1]},
		{"an unknown topic alias ends the connection", clientAliases, both[:1]},
		{"a receive maximum of one", flowControl, both[:1]},
		{"who is away gets what has not expired, with the rest of its time", expiry, both[:1]},
		{"a retained message is for the filters that include its parent", retained, both},
		{"a PUBLISH to $SYS is answered", dollar, both},
		{"a message that is too large does not stop the next", largest, both[:1]},
		{"DISCONNECT 0x04 publishes the will", willProperties, both[:1]},
		{"a will has properties", willProperties, both[:1]},
		{"a will has no payload", wills, both},
		{"nothing expires that was not to", expiry, both[:1]},
		{"an unknown authentication method", authentication, both[:1]},
		{"the first delivery is no duplicate", qos1Out, both},
		{"a session ends", sessionEnds, both[:1]},
		{"who is taken over is told", takenOver, both[:1]},
		{"a user name that is not UTF-8", func(s *scene) { s.breaches("MQTT-3.1.3-12") }, both},
		{"nothing retained for a shared subscription", shared, both[:1]},
		{"the reserved flags of every packet", func(s *scene) {
			s.breaches("MQTT-2.1.3-1", "MQTT-3.6.1-1", "MQTT-3.8.1-1", "MQTT-3.10.1-1", "MQTT-3.14.1-1", "MQTT-3.15.1-1", "MQTT311-2.2.2-2")
		}, both},
		{"a server's packet, and bytes after the end", func(s *scene) { s.breaches("MQTT-4.13.1-1") }, both},
		{"identifier 0", func(s *scene) { s.breaches("MQTT-2.2.1-3", "MQTT-2.2.1-5") }, both},
		{"DUP with QoS 0, and QoS 3", func(s *scene) { s.breaches("MQTT-3.3.1-2", "MQTT-3.3.1-4") }, both},
		{"an acknowledgement of another kind", wrongAcks, both},
		{"an identifier that nobody knows", unknownAcks, both[:1]},
		{"reason codes of another packet", func(s *scene) {
			s.breaches("MQTT-3.4.2-1", "MQTT-3.5.2-1", "MQTT-3.6.2-1", "MQTT-3.7.2-1", "MQTT-3.14.2-1", "MQTT-3.15.2-1")
		}, both[:1]},
		{"a PUBACK has nothing of the message", information, both[:1]},
		{"the flags of CONNECT", func(s *scene) {
			s.breaches("MQTT-3.1.2-3", "MQTT-3.1.2-11", "MQTT-3.1.2-12", "MQTT-3.1.2-13", "MQTT-3.1.2-16", "MQTT-3.1.2-17", "MQTT-3.1.2-18", "MQTT-3.1.2-19", "MQTT311-3.1.2-22")
		}, both},
		{"strings", func(s *scene) { s.breaches("MQTT-1.5.4-1", "MQTT-1.5.4-2", "MQTT-1.5.7-1") }, both},
		{"a user name of no bytes is for the login to judge", refused, both},
		{"no topic and no filter", func(s *scene) { s.breaches("MQTT-4.7.3-1") }, both},
		{"the options of a subscription", func(s *scene) {
			s.breaches("MQTT-3.8.3-4", "MQTT-3.8.3-5", "MQTT 3.8.3.1", "MQTT 3.8.2.1.2", "MQTT311-3.8.3-4")
		}, both},
		{"a shared filter", func(s *scene) { s.breaches("MQTT-4.8.2-1", "MQTT-4.8.2-2") }, both[:1]},
		{"a wildcard in a response topic", func(s *scene) { s.breaches("MQTT-3.3.2-14") }, both[:1]},
		{"a topic alias of 0", func(s *scene) { s.breaches("MQTT-3.3.2-8") }, both[:1]},
		{"the format of a payload", func(s *scene) { s.breaches("MQTT 3.3.2.3.2") }, both[:1]},
		{"a property twice, or of another packet", func(s *scene) { s.breaches("MQTT 2.2.2.2") }, both[:1]},
	} {
		for _, v := range rule.in {
			t.Run(fmt.Sprintf("%02d %s/%s", i+1, rule.name, v), func(t *testing.T) { rule.run(&scene{t, h, v, fmt.Sprintf("rule%d-%s-", i+1, v)}) })
		}
	}
}

// breaches sends all packets of the version that break one of clauses.
func (s *scene) breaches(clauses ...string) {
	n := 0
	for _, b := range packettest.Breaches() {
		told := strings.Contains(b.Clauses, "MQTT-")
		if v := spoken(b); !sent(b) || v != 0 && v != s.v || !slices.ContainsFunc(clauses, func(name string) bool {
			return b.Clauses == name || told && slices.Contains(clauseNames(b), name)
		}) {
			continue
		}
		n++
		s.Run(b.Spec[:min(len(b.Spec), 30)], func(t *testing.T) { breach(t, s.h, b) })
	}
	if n == 0 {
		s.Errorf("no packet breaks %v", clauses)
	}
}
