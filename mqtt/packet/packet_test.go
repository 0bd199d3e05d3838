package packet

import (
	"bytes"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

// A sample is a packet that is right, and has all that one may have.
type sample struct {
	v    Version
	from Side
	spec string
	want Packet
	// whole says which shorter bodies are right too.
	whole func(n int) bool
}

// connecting is the version that a connection has before p.
func (s sample) connecting() Version {
	if s.want.Type() == CONNECT {
		return 0
	}
	return s.v
}

func only(lengths ...int) func(int) bool {
	return func(n int) bool {
		for _, l := range lengths {
			if n == l {
				return true
			}
		}
		return false
	}
}

func atLeast(least int) func(int) bool { return func(n int) bool { return n >= least } }

func samples() []sample {
	none := only()
	user := []Pair{{[]byte("n"), []byte("v")}, {[]byte("n"), []byte("")}}
	message := Message{
		Topic: []byte("a/b"), Payload: []byte("hi"), QoS: 1, Retain: true, Format: Text, Expires: true, Expiry: 7,
		ContentType: []byte("t"), ResponseTopic: []byte("r/s"), CorrelationData: []byte{}, UserProperties: user,
	}
	properties := `0101 0200000007 03"t" 08"r/s" 09"" 26"n""v" 26"n"""`
	sent := message
	sent.QoS = 2
	return []sample{
		{V311, Client, `10 "MQTT" 04 02 003C ""`, &Connect{Version: V311, CleanStart: true, KeepAlive: 60}, none},
		{V311, Client, `10 "MQTT" 04 F4 003C "c" "w" 00020102 "u" "p"`, &Connect{
			Version: V311, KeepAlive: 60, ClientID: "c", Username: new("u"), Password: Secret("p"),
			Will: &Will{Message: Message{Topic: []byte("w"), Payload: []byte{1, 2}, QoS: 2, Retain: true}},
		}, none},
		{V5, Client, `10 "MQTT" 05 42 0000 {} "c" ""`, &Connect{Version: V5, CleanStart: true, ClientID: "c", Password: Secret{}}, none},
		{V5, Client, `10 "MQTT" 05 EE 000A {1100000001 210002 2700000003 220004 1901 1700 26"n""v"26"n""" 15"m" 16"d"} "c" {1800000005 ` +
			properties + `} "a/b" "hi" "" "p"`, &Connect{
			Version: V5, CleanStart: true, KeepAlive: 10, ClientID: "c", Username: new(""), Password: Secret("p"),
			SessionExpiry: 1, ReceiveMaximum: 2, MaximumPacketSize: 3, TopicAliasMaximum: 4, RequestResponse: true,
			NoProblemInformation: true, AuthMethod: "m", AuthData: Secret("d"), UserProperties: user,
			Will: &Will{Message: message, Delay: 5},
		}, none},
		{V311, Server, `20 01 00`, &Connack{SessionPresent: true}, none},
		{V311, Server, `20 00 05`, &Connack{Code: NotAuthorized}, none},
		{V5, Server, `20 01 00 {1100000001 210002 2401 2500 2700000003 12"c" 220004 1F"r" 26"n""v"26"n""" 2800 2900 2A00 130005 1A"i" 1C"s" 15"m" 16""}`, &Connack{
			SessionPresent: true, SessionExpiry: new(uint32(1)), ReceiveMaximum: 2, MaximumQoS: new(QoS(1)), NoRetain: true,
			MaximumPacketSize: 3, AssignedClientID: "c", TopicAliasMaximum: 4, ReasonString: "r", UserProperties: user,
			NoWildcards: true, NoSubscriptionIDs: true, NoShared: true, ServerKeepAlive: new(uint16(5)), ResponseInfo: "i",
			ServerReference: "s", AuthMethod: "m", AuthData: Secret{},
		}, none},
		{V311, Client, `30 "a/b" 6869`, &Publish{Message: Message{Topic: []byte("a/b"), Payload: []byte("hi")}}, atLeast(5)},
		{V311, Server, `3B "a/b" 1234 6869`, &Publish{Message: Message{Topic: []byte("a/b"), Payload: []byte("hi"), QoS: 1, Retain: true}, Dup: true, ID: 0x1234}, atLeast(7)},
		{V5, Client, `35 "a/b" 1234 {` + properties + ` 230009} 6869`, &Publish{Message: sent, ID: 0x1234, TopicAlias: 9}, atLeast(8 + 36)},
		{V5, Server, `3C "" 1234 {230009 0B01 0BFFFFFF7F}`, &Publish{
			Message: Message{Topic: []byte{}, Payload: []byte{}, QoS: 2}, Dup: true, ID: 0x1234, TopicAlias: 9, SubscriptionIDs: []uint32{1, 268_435_455},
		}, none},
		{V311, Client, `40 0001`, &Ack{Kind: PUBACK, ID: 1}, none},
		{V311, Server, `62 0001`, &Ack{Kind: PUBREL, ID: 1}, none},
		{V5, Client, `50 0001`, &Ack{Kind: PUBREC, ID: 1}, none},
		{V5, Client, `62 0001 92`, &Ack{Kind: PUBREL, ID: 1, Code: PacketIdentifierNotFound}, only(2)},
		{V5, Server, `40 0001 10 {1F"r" 26"n""v"26"n"""}`, &Ack{Kind: PUBACK, ID: 1, Code: NoMatchingSubscribers, ReasonString: "r", UserProperties: user}, only(2, 3)},
		{V5, Server, `70 0001 00 {1F"r"}`, &Ack{Kind: PUBCOMP, ID: 1, ReasonString: "r"}, only(2, 3)},
		{V311, Client, `82 0001 "a/b" 01 "#" 02`, &Subscribe{ID: 1, Subscriptions: []Subscription{{Filter: "a/b", QoS: 1}, {Filter: "#", QoS: 2}}}, only(8)},
		{V5, Client, `82 0001 {0B8001 26"n""v"26"n"""} "+/b/#" 2E "$share/g/a" 11`, &Subscribe{
			ID: 1, SubscriptionID: 128, UserProperties: user, Subscriptions: []Subscription{
				{Filter: "+/b/#", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: RetainNever},
				{Filter: "$share/g/a", QoS: 1, RetainHandling: RetainIfNew},
			},
		}, only(2 + 1 + 16 + 8)},
		{V311, Server, `90 0001 00010280`, &Suback{ID: 1, Codes: []Code{0, 1, 2, UnspecifiedError}}, atLeast(3)},
		{V5, Server, `90 0001 {1F"r" 26"n""v"26"n"""} 008F`, &Suback{ID: 1, ReasonString: "r", UserProperties: user, Codes: []Code{0, TopicFilterInvalid}}, atLeast(2 + 18 + 1)},
		{V311, Client, `A2 0001 "a/b" "#"`, &Unsubscribe{ID: 1, Filters: []string{"a/b", "#"}}, only(7)},
		{V5, Client, `A2 0001 {26"n""v"26"n"""} "a/b" "#"`, &Unsubscribe{ID: 1, UserProperties: user, Filters: []string{"a/b", "#"}}, only(2 + 14 + 5)},
		{V311, Server, `B0 0001`, &Unsuback{ID: 1}, none},
		{V5, Server, `B0 0001 {1F"r" 26"n""v"26"n"""} 0011`, &Unsuback{ID: 1, ReasonString: "r", UserProperties: user, Codes: []Code{0, NoSubscriptionExisted}}, atLeast(2 + 18 + 1)},
		{V311, Client, `C0`, &Pingreq{}, none},
		{V5, Server, `D0`, &Pingresp{}, none},
		{V311, Client, `E0`, &Disconnect{}, none},
		{V5, Client, `E0`, &Disconnect{}, none},
		{V5, Client, `E0 04`, &Disconnect{Code: DisconnectWithWill}, only(0)},
		{V5, Client, `E0 00 {1100000001 1F"r" 26"n""v"26"n"""}`, &Disconnect{SessionExpiry: new(uint32(1)), ReasonString: "r", UserProperties: user}, only(0, 1)},
		{V5, Server, `E0 9C {1F"r" 1C"s"}`, &Disconnect{Code: UseAnotherServer, ReasonString: "r", ServerReference: "s"}, only(0, 1)},
		{V5, Client, `F0 18 {15"m" 16"d" 1F"r" 26"n""v"26"n"""}`, &Auth{Code: ContinueAuthentication, Method: "m", Data: Secret("d"), ReasonString: "r", UserProperties: user}, none},
		{V5, Server, `F0`, &Auth{}, none},
	}
}

// TestDecode reads and writes each sample, byte for byte.
func TestDecode(t *testing.T) {
	for _, s := range samples() {
		first, body := packettest.Wire(s.spec)
		got, err := Decode(first, body, s.connecting(), s.from)
		if err != nil || !reflect.DeepEqual(got, s.want) {
			t.Errorf("%s of %v was read as %s: %v", s.spec, s.v, describe(got), err)
		}
		if got != nil && got.Type() != Type(first>>4) {
			t.Errorf("%s is said to be a %v", s.spec, got.Type())
		}
		w := writer{b: append([]byte{first}, body...)}
		w.measure(1)
		out, err := s.want.Append([]byte("before"), s.v, 0)
		if err != nil || !bytes.Equal(out, append([]byte("before"), w.b...)) {
			t.Errorf("%s of %v was written as % X, want % X: %v", s.spec, s.v, out, w.b, err)
		}
	}
}

func describe(p Packet) string { return strings.ReplaceAll(fmt.Sprintf("%+v", p), "\n", " ") }

// TestCut cuts every packet at every byte, with the length of what is left and
// with that of the whole.
func TestCut(t *testing.T) {
	for _, s := range samples() {
		first, body := packettest.Wire(s.spec)
		for _, v := range []Version{0, V311, V5} {
			for _, side := range []Side{Client, Server} {
				for n := range len(body) {
					p, err := Decode(first, body[:n], v, side)
					right := v == s.connecting() && side == s.from
					switch {
					case right && (err == nil) != s.whole(n):
						t.Errorf("%d bytes of %s of %v from the %v were read as %v: %v", n, s.spec, s.v, s.from, describe(p), err)
					case err == nil && right:
						again(t, p, s.v, side)
					}
				}
			}
		}
		w := writer{b: append([]byte{first}, body...)}
		w.measure(1)
		for n := range len(w.b) {
			r := NewReader(bytes.NewReader(w.b[:n]), s.from, 0)
			r.Version = s.connecting()
			if p, err := r.Next(); p != nil || err == nil {
				t.Errorf("%d bytes of %s of %v from the %v were read as %v: %v", n, s.spec, s.v, s.from, describe(p), err)
			}
		}
	}
}

// again writes p, reads it and compares.
func again(t interface{ Errorf(string, ...any) }, p Packet, v Version, from Side) {
	out, err := p.Append(nil, v, 0)
	if err != nil {
		t.Errorf("%v of %v cannot be written: %v", describe(p), v, err)
		return
	}
	if p.Type() == CONNECT {
		v = 0
	}
	_, size := variable(out[1:])
	got, err := Decode(out[0], out[1+size:], v, from)
	if err != nil || !reflect.DeepEqual(p, got) {
		t.Errorf("%s of %v from the %v became %s: %v", describe(p), v, from, describe(got), err)
	}
}

func TestByteOrderMark(t *testing.T) {
	first, body := packettest.Wire("30 \"\ufeffa\ufeff\" {}")
	p, err := Decode(first, body, V5, Client)
	if err != nil || string(p.(*Publish).Topic) != "\ufeffa\ufeff" {
		t.Errorf("it was read as %v: %v", p, err)
	}
}

// TestMaximum compares sizes with maxima around them.
func TestMaximum(t *testing.T) {
	for _, s := range samples() {
		whole, err := s.want.Append(nil, s.v, 0)
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := s.want.(*Publish); ok && p.Size(s.v) != len(whole) {
			t.Errorf("%s is said to have %d bytes, and has %d", s.spec, p.Size(s.v), len(whole))
		}
		out, err := s.want.Append([]byte("before"), s.v, len(whole))
		if err != nil || string(out) != "before"+string(whole) {
			t.Errorf("%s at its size was written as %q: %v", s.spec, out, err)
		}
		for limit := 1; limit < len(whole); limit++ {
			out, err := s.want.Append([]byte("before"), s.v, limit)
			if err == ErrSize && string(out) == "before" {
				continue
			}
			if err != nil || len(out) > len("before")+limit || !sheds(s.want.Type()) {
				t.Errorf("%s in %d bytes was written as %q: %v", s.spec, limit, out, err)
			}
		}
	}
	p := &Publish{Message: Message{Topic: []byte("a"), Payload: make([]byte, maxRemaining)}}
	if _, err := p.Append(nil, V311, 0); err != ErrSize {
		t.Errorf("what no packet can have was written: %v", err)
	}
}

// sheds says whether packets of this type are answers.
func sheds(t Type) bool {
	return t == CONNACK || t >= PUBACK && t <= PUBCOMP || t == SUBACK || t == UNSUBACK || t >= DISCONNECT
}

func TestShedding(t *testing.T) {
	user := []Pair{{[]byte("name"), []byte("value")}}
	for _, p := range []Packet{
		&Connack{Code: NotAuthorized, ReasonString: "why", UserProperties: user},
		&Ack{Kind: PUBACK, ID: 1, Code: NotAuthorized, ReasonString: "why", UserProperties: user},
		&Ack{Kind: PUBREC, ID: 1, ReasonString: "why", UserProperties: user},
		&Ack{Kind: PUBREL, ID: 1, Code: PacketIdentifierNotFound, ReasonString: "why", UserProperties: user},
		&Ack{Kind: PUBCOMP, ID: 1, ReasonString: "why", UserProperties: user},
		&Suback{ID: 1, ReasonString: "why", UserProperties: user, Codes: []Code{0}},
		&Unsuback{ID: 1, ReasonString: "why", UserProperties: user, Codes: []Code{0}},
		&Disconnect{Code: ServerBusy, ReasonString: "why", UserProperties: user, ServerReference: "s"},
		&Auth{Code: ContinueAuthentication, Method: "m", ReasonString: "why", UserProperties: user},
	} {
		whole, err := p.Append(nil, V5, 0)
		if err != nil {
			t.Fatal(err)
		}
		withReason, err := p.Append(nil, V5, len(whole)-1)
		if err != nil || bytes.Contains(withReason, []byte("value")) || !bytes.Contains(withReason, []byte("why")) {
			t.Errorf("%v in a byte less is %q: %v", p.Type(), withReason, err)
		}
		bare, err := p.Append(nil, V5, len(withReason)-1)
		if err != nil || bytes.Contains(bare, []byte("value")) || bytes.Contains(bare, []byte("why")) {
			t.Errorf("%v in a byte less is %q: %v", p.Type(), bare, err)
		}
		if out, err := p.Append(nil, V5, len(bare)-1); err != ErrSize || len(out) > 0 {
			t.Errorf("%v in a byte less is %q: %v", p.Type(), out, err)
		}
		for _, b := range [][]byte{whole, withReason, bare} {
			_, n := variable(b[1:])
			if got, err := Decode(b[0], b[1+n:], V5, Server); err != nil {
				t.Errorf("%q was read as %v: %v", b, got, err)
			}
		}
	}
	// A client's request is whole or not sent.
	s := &Subscribe{ID: 1, UserProperties: user, Subscriptions: []Subscription{{Filter: "a"}}}
	if _, err := s.Append(nil, V5, 16); err != ErrSize {
		t.Errorf("a SUBSCRIBE was cut: %v", err)
	}
}

func TestAppendRefuses(t *testing.T) {
	long := strings.Repeat("a", 65_536)
	for _, p := range []Packet{
		&Publish{Message: Message{Topic: []byte(long)}},
		&Publish{Message: Message{Topic: []byte("a"), UserProperties: []Pair{{[]byte("n"), []byte(long)}}}},
		&Subscribe{ID: 1, Subscriptions: []Subscription{{Filter: long}}},
		&Ack{Kind: PUBACK, ID: 1, ReasonString: long},
	} {
		if out, err := p.Append([]byte("before"), V5, 0); err != ErrLong || string(out) != "before" {
			t.Errorf("a %v with too long a text was written: %v", p.Type(), err)
		}
	}
	if out, err := (&Connack{Code: ServerMoved}).Append(nil, V311, 0); err == nil || len(out) > 0 {
		t.Errorf("a code that 3.1.1 does not have was written as % X", out)
	}
}

// TestOldCodes writes codes as MQTT 3.1.1 has them.
func TestOldCodes(t *testing.T) {
	for code, want := range map[Code]byte{
		Success: 0, UnsupportedProtocolVersion: 1, ClientIdentifierNotValid: 2, ServerUnavailable: 3, ServerBusy: 3,
		BadUserNameOrPassword: 4, NotAuthorized: 5, Banned: 5,
	} {
		out, err := (&Connack{Code: code}).Append(nil, V311, 0)
		if err != nil || !bytes.Equal(out, []byte{0x20, 2, 0, want}) {
			t.Errorf("%v was written as % X: %v", code, out, err)
		}
	}
	out, err := (&Suback{ID: 1, ReasonString: "why", Codes: []Code{GrantedQoS2, NotAuthorized}}).Append(nil, V311, 0)
	if err != nil || !bytes.Equal(out, []byte{0x90, 4, 0, 1, 2, 0x80}) {
		t.Errorf("a SUBACK was written as % X: %v", out, err)
	}
}

// TestCodes compares the codes of each packet with the tables of the
// specification, and looks for a name of each.
func TestCodes(t *testing.T) {
	for _, test := range []struct {
		t     Type
		s     Side
		codes string
	}{
		{CONNACK, Server, "00 80 81 82 83 84 85 86 87 88 89 8A 8C 90 95 97 99 9A 9B 9C 9D 9F"},
		{PUBACK, Client, "00 10 80 83 87 90 91 97 99"},
		{PUBREC, Server, "00 10 80 83 87 90 91 97 99"},
		{PUBREL, Client, "00 92"},
		{PUBCOMP, Client, "00 92"},
		{SUBACK, Server, "00 01 02 80 83 87 8F 91 97 9E A1 A2"},
		{UNSUBACK, Server, "00 11 80 83 87 8F 91"},
		{DISCONNECT, Client, "00 04 80 81 82 83 90 93 94 95 96 97 98 99"},
		{DISCONNECT, Server, "00 80 81 82 83 87 89 8B 8D 8E 8F 90 93 94 95 96 97 98 99 9A 9B 9C 9D 9E 9F A0 A1 A2"},
		{AUTH, Client, "18 19"},
		{AUTH, Server, "00 18"},
		{PINGREQ, Client, ""},
	} {
		var got []string
		for n := range 256 {
			if c := Code(n); c.of(test.t, test.s) {
				got = append(got, fmt.Sprintf("%02X", n))
				if strings.HasPrefix(c.String(), "reason code") || c.Failed() != (n >= 0x80) {
					t.Errorf("0x%02X is %v, failed %v", n, c, c.Failed())
				}
			}
		}
		if s := strings.Join(got, " "); s != test.codes {
			t.Errorf("%v of a %v may have %s, want %s", test.t, test.s, s, test.codes)
		}
	}
	if s := Code(0x50).String(); s != "reason code 0x50" {
		t.Errorf("an unknown code is %q", s)
	}
}

func TestError(t *testing.T) {
	_, err := Decode(0x60, []byte{0, 1}, V5, Client)
	if want := "malformed packet: PUBREL with flags 0000 [MQTT-3.6.1-1]"; err == nil || err.Error() != want {
		t.Errorf("it says %v, want %s", err, want)
	}
}

func TestCheck(t *testing.T) {
	for topic, clause := range map[string]string{
		"a": "", "/": "", "a b/*/>": "", strings.Repeat("a/", 127) + "a": "",
		"": "MQTT-4.7.3-1", "a/#": "MQTT-4.7.0-1", "\x00": "MQTT-4.7.3-2", "\xff": "MQTT-1.5.4-1",
		strings.Repeat("a", 65_536): "MQTT-4.7.3-3", strings.Repeat("a/", 128): "MQTT 4.7.3",
	} {
		compare(t, topic, CheckTopic(topic), clause)
	}
	for filter, want := range map[string]struct{ group, filter, clause string }{
		"#": {"", "#", ""}, "a/+/#": {"", "a/+/#", ""}, "//+": {"", "//+", ""}, "$share": {"", "$share", ""},
		"$share/g/a/#": {"g", "a/#", ""}, "$share/g//": {"g", "/", ""}, "$SHARE//a": {"", "$SHARE//a", ""},
		"a/#/b": {"", "", "MQTT-4.7.1-1"}, "##": {"", "", "MQTT-4.7.1-1"}, "a/b+": {"", "", "MQTT-4.7.1-2"},
		"": {"", "", "MQTT-4.7.3-1"}, "$share/": {"", "", "MQTT-4.8.2-1"}, "$share/#/a": {"", "", "MQTT-4.8.2-2"},
		"$share/g/": {"", "", "MQTT-4.8.2-2"}, "a\x00": {"", "", "MQTT-4.7.3-2"}, strings.Repeat("+/", 128) + "#": {"", "", "MQTT 4.7.3"},
	} {
		group, rest, err := CheckFilter(filter)
		compare(t, filter, err, want.clause)
		if group != want.group || rest != want.filter {
			t.Errorf("%q is %q and %q", filter, group, rest)
		}
	}
}

func compare(t *testing.T, text string, err error, clause string) {
	t.Helper()
	e, _ := err.(*Error)
	if len(text) > 40 {
		text = text[:40]
	}
	if (err == nil) != (clause == "") || e != nil && e.Clause != clause {
		t.Errorf("%q: %v, want %q", text, err, clause)
	}
}

func TestSecret(t *testing.T) {
	c := Connect{Password: Secret("hunter2"), AuthData: Secret("hunter2")}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("a", "connect", c, "password", c.Password)
	slog.New(slog.NewTextHandler(&log, nil)).Info("a", "connect", c, "password", c.Password)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+verb, c, c.Password)
	}
	for _, shown := range []string{"hunter2", "68756e74", "104 117", "0x68", "aHVudGVy"} {
		if strings.Contains(log.String(), shown) {
			t.Errorf("a secret is shown: %s", &log)
		}
	}
}
