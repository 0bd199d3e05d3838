package packet

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

func TestBreaches(t *testing.T) {
	for _, b := range packettest.Breaches() {
		name := b.Spec
		if len(name) > 40 {
			name = name[:40]
		}
		v, from := Version(b.Version), Side(b.From)
		t.Run(b.Clauses+" "+v.String()+" "+name, func(t *testing.T) {
			first, body := b.Wire()
			p, err := Decode(first, body, v, from)
			e, ok := err.(*Error)
			if p != nil || !ok {
				t.Fatalf("it was read as %#v: %v", p, err)
			}
			want, _, _ := strings.Cut(b.Clauses, " MQTT-")
			if e.Clause != want || e.Code != Code(b.Code) {
				t.Errorf("it is refused with %v, %q, want %v of %s", e.Code, e, Code(b.Code), want)
			}
			if (e.Code == UnsupportedProtocolVersion) != errors.Is(err, ErrVersion) {
				t.Errorf("%v and ErrVersion say two things", e)
			}
			connack, disconnect := e.Code.of(CONNACK, Server), e.Code.of(DISCONNECT, Server)
			if first>>4 == byte(CONNECT) && v == 0 && !connack || v != 0 && !disconnect && from == Client {
				t.Errorf("%v cannot be answered", e.Code)
			}
		})
	}
}

// A clause that Append or the Reader keeps, or that lets something through, is
// held by the test that is named here.
func otherwiseHeld() map[string]string {
	return map[string]string{
		"MQTT-1.5.4-3": "TestByteOrderMark", "MQTT-2.2.1-2": "TestDecode", "MQTT-3.1.3-10": "TestRoundTrip", "MQTT-3.3.2-18": "TestRoundTrip",
		"MQTT-3.1.2-24": "TestMaximum", "MQTT-3.2.2-15": "TestMaximum", "MQTT-3.1.2-25": "TestMaximum",
		"MQTT-3.2.2-19": "TestShedding", "MQTT-3.2.2-20": "TestShedding", "MQTT-3.4.2-2": "TestShedding", "MQTT-3.4.2-3": "TestShedding",
		"MQTT-3.5.2-2": "TestShedding", "MQTT-3.5.2-3": "TestShedding", "MQTT-3.6.2-2": "TestShedding", "MQTT-3.6.2-3": "TestShedding",
		"MQTT-3.7.2-2": "TestShedding", "MQTT-3.7.2-3": "TestShedding", "MQTT-3.9.2-1": "TestShedding", "MQTT-3.9.2-2": "TestShedding",
		"MQTT-3.11.2-1": "TestShedding", "MQTT-3.11.2-2": "TestShedding", "MQTT-3.14.2-3": "TestShedding", "MQTT-3.14.2-4": "TestShedding",
		"MQTT-3.15.2-2": "TestShedding", "MQTT-3.15.2-3": "TestShedding",
		"MQTT-4.13.2-1": "TestCodes", "MQTT-4.7.3-2": "TestCheck", "MQTT-4.7.3-3": "TestCheck",
	}
}

// TestCitations demands a test for every clause that the code cites.
func TestCitations(t *testing.T) {
	cited, held := regexp.MustCompile(`\[(MQTT(?:311)?[- ][0-9]+\.[0-9.]*[0-9](?:-[0-9]+)?)\]`), otherwiseHeld()
	broken := map[string]bool{}
	for _, b := range packettest.Breaches() {
		for _, clause := range regexp.MustCompile(`MQTT(?:311)?[- ]\S+`).FindAllString(b.Clauses, -1) {
			broken[clause] = true
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	citations := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			tests.Write(text)
			continue
		}
		for _, match := range cited.FindAllStringSubmatch(string(text), -1) {
			citations[match[1]] = true
		}
	}
	for clause := range citations {
		if !broken[clause] && held[clause] == "" {
			t.Errorf("%s is cited, and no test breaks it", clause)
		}
	}
	for clause := range broken {
		if !citations[clause] {
			t.Errorf("%s has a test, and the code does not cite it", clause)
		}
	}
	for clause, name := range held {
		if !citations[clause] || !strings.Contains(tests.String(), "func "+name+"(") {
			t.Errorf("%s is not cited, or there is no %s", clause, name)
		}
	}
}
