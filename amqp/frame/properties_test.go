package frame

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func properties() *rapid.Generator[Properties] {
	return rapid.Custom(func(t *rapid.T) Properties {
		text := func(name string) string { return rapid.OneOf(rapid.Just(""), rapid.StringN(0, 60, 255)).Draw(t, name) }
		p := Properties{
			ContentType: text("content type"), ContentEncoding: text("encoding"), DeliveryMode: rapid.Uint8Max(2).Draw(t, "mode"), Priority: rapid.Uint8Max(9).Draw(t, "priority"),
			CorrelationID: text("correlation"), ReplyTo: text("reply"), Expiration: text("expiration"), MessageID: text("id"), Timestamp: rapid.Uint64().Draw(t, "time"),
			Type: text("type"), UserID: text("user"), AppID: text("app"), ClusterID: text("cluster"), Flags: rapid.Uint16().Draw(t, "flags") &^ noFlags,
		}
		if rapid.Bool().Draw(t, "headers") {
			p.Headers = tables(2).Draw(t, "headers")
		}
		return p
	})
}

func TestPropertiesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := properties().Draw(t, "properties")
		b, err := in.Append([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckProperties(b[1:]); err != nil {
			t.Fatal(err)
		}
		in.Flags = in.present()
		if in.Flags&HasHeaders == 0 {
			in.Headers = nil
		} else if in.Headers == nil {
			in.Headers = Table{}
		}
		var out Properties
		if err := out.Decode(b[1:]); err != nil || !reflect.DeepEqual(in, out) {
			t.Fatalf("%+v came back as %+v, %v", in, out, err)
		}
		out.Drop(HasExpiration | HasHeaders | HasPriority)
		in.Expiration, in.Headers, in.Priority = "", nil, 0
		in.Flags &^= HasExpiration | HasHeaders | HasPriority
		if !reflect.DeepEqual(in, out) {
			t.Fatalf("%+v is left of %+v", out, in)
		}
	})
}

func TestPropertiesEmptyIsThere(t *testing.T) {
	p := Properties{Flags: HasContentType | HasDeliveryMode}
	b, err := p.Append(nil)
	if err != nil || string(b) != "\x90\x00\x00\x00" {
		t.Errorf("%q, %v", b, err)
	}
	p.Drop(0xFFFF)
	if b, err := p.Append(nil); err != nil || string(b) != "\x00\x00" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestPropertiesRefused(t *testing.T) {
	for what, b := range map[string]string{
		"nothing": "", "more flags": "\x80\x01\x00\x00\x00", "unknown flag": "\x00\x02", "cut text": "\x80\x00\x05ab", "no table": "\x20\x00", "cut table": "\x20\x00\x00\x00\x00\x05",
		"no octet": "\x10\x00", "cut time": "\x00\x40\x00", "something behind": "\x00\x00\x00", "headers of an unknown type": "\x20\x00\x00\x00\x00\x03\x01a?",
	} {
		var p Properties
		err, check := p.Decode([]byte(b)), CheckProperties([]byte(b))
		if err == nil || !reflect.DeepEqual(err, check) {
			t.Errorf("%s: %v and %v", what, err, check)
		}
	}
	p := Properties{MessageID: strings.Repeat("x", 256)}
	if b, err := p.Append([]byte("x")); err != ErrLong || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}
