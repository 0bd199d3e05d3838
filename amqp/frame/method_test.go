package frame

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// ids are those of all methods.
func ids() (all []ID) {
	for class := range uint32(100) {
		for method := range uint32(130) {
			if id := ID(class<<16 | method); newMethod(id) != nil {
				all = append(all, id)
			}
		}
	}
	return all
}

// drawn is a method with anything in it.
func drawn(t *rapid.T, id ID) Method {
	m := newMethod(id)
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		field, name := v.Field(i), v.Type().Field(i).Name
		switch field.Kind() {
		case reflect.String:
			field.SetString(rapid.StringN(0, 60, 255).Draw(t, name))
		case reflect.Bool:
			field.SetBool(rapid.Bool().Draw(t, name))
		case reflect.Uint8:
			field.SetUint(uint64(rapid.Uint8().Draw(t, name)))
		case reflect.Uint16:
			field.SetUint(uint64(rapid.Uint16().Draw(t, name)))
		case reflect.Uint32:
			field.SetUint(uint64(rapid.Uint32().Draw(t, name)))
		case reflect.Uint64:
			field.SetUint(rapid.Uint64().Draw(t, name))
		case reflect.Map:
			field.Set(reflect.ValueOf(tables(2).Draw(t, name)))
		default:
			t.Fatalf("%T has a %v", m, field.Kind())
		}
	}
	return m
}

func TestMethodRoundTrip(t *testing.T) {
	if n := len(ids()); n != 64 {
		t.Fatalf("there are %d methods", n)
	}
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom(ids()).Draw(t, "id")
		in := drawn(t, id)
		if in.ID() != id {
			t.Fatalf("%v is %v", in.ID(), id)
		}
		channel := rapid.Uint16().Draw(t, "channel")
		b, err := AppendMethod([]byte("x"), channel, in)
		if err != nil {
			t.Fatal(err)
		}
		r := NewReader(strings.NewReader(string(b[1:])), 64)
		f, err := r.Next()
		if err != nil || f.Kind != KindMethod || f.Channel != channel {
			t.Fatalf("%+v, %v", f, err)
		}
		for _, decode := range []func() (Method, error){func() (Method, error) { return r.Method(f) }, func() (Method, error) { return DecodeMethod(f.Payload) }} {
			if out, err := decode(); err != nil || !reflect.DeepEqual(in, out) {
				t.Fatalf("%#v came back as %#v, %v", in, out, err)
			}
		}
		for n := range len(f.Payload) {
			if _, err := DecodeMethod(f.Payload[:n]); !isFault(err) {
				t.Fatalf("the first %d bytes of %v: %v", n, id, err)
			}
		}
		if _, err := DecodeMethod(append(f.Payload[:len(f.Payload):len(f.Payload)], 0)); !isFault(err) {
			t.Fatalf("%v with a byte behind it: %v", id, err)
		}
	})
}

func isFault(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Scope == OfConnection
}

func TestMethodNames(t *testing.T) {
	for id, name := range map[ID]string{
		10<<16 | 71: "connection.update-secret-ok", 40<<16 | 51: "exchange.unbind-ok", 60<<16 | 72: "basic.get-empty", 60<<16 | 100: "basic.recover-async",
		85<<16 | 10: "confirm.select", 90<<16 | 31: "tx.rollback-ok", 60<<16 | 999: "method 60.999",
	} {
		if id.String() != name {
			t.Errorf("%d.%d is %q", id.Class(), id.Method(), id)
		}
	}
	_, err := DecodeMethod([]byte{0, 60, 3, 231})
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CommandInvalid || e.Class != 60 || e.Method != 999 {
		t.Errorf("%#v", err)
	}
}

// TestMethodWire holds some methods to bytes that others write.
func TestMethodWire(t *testing.T) {
	for _, c := range []struct {
		m    Method
		wire string
	}{
		{&QueueDeclare{Queue: "q", Durable: true, NoWait: true}, "\x00\x32\x00\x0a\x00\x00\x01q\x12\x00\x00\x00\x00"},
		{&ExchangeDeclare{Exchange: "e", Type: "topic", Passive: true, Internal: true}, "\x00\x28\x00\x0a\x00\x00\x01e\x05topic\x09\x00\x00\x00\x00"},
		{&BasicPublish{Exchange: "e", RoutingKey: "k", Immediate: true}, "\x00\x3c\x00\x28\x00\x00\x01e\x01k\x02"},
		{&BasicNack{DeliveryTag: 258, Multiple: true, Requeue: true}, "\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x01\x02\x03"},
		{&ConnectionOpen{VirtualHost: "/"}, "\x00\x0a\x00\x28\x01/\x00\x00"},
		{&ConnectionClose{ReplyCode: NotFound, ReplyText: "x", ClassID: 60, MethodID: 40}, "\x00\x0a\x00\x32\x01\x94\x01x\x00\x3c\x00\x28"},
		{&ChannelOpenOk{}, "\x00\x14\x00\x0b\x00\x00\x00\x00"},
	} {
		b, err := AppendMethod(nil, 1, c.m)
		want := "\x01\x00\x01\x00\x00" + string([]byte{0, byte(len(c.wire))}) + c.wire + "\xCE"
		if err != nil || string(b) != want {
			t.Errorf("%v: %q, %v", c.m.ID(), b, err)
		}
	}
}

func TestLongTextsAreNotCut(t *testing.T) {
	b, err := AppendMethod([]byte("x"), 1, &QueueDeclare{Queue: strings.Repeat("q", 256)})
	if !errors.Is(err, ErrLong) || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	text := (&Error{Code: NotFound, Text: strings.Repeat("é", 200)}).Reply()
	if len(text) > 255 || !strings.HasPrefix(text, "NOT_FOUND - éé") || !strings.HasSuffix(text, "é...") {
		t.Errorf("%q", text)
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	m := &ConnectionStartOk{Response: "hunter2"}
	if s := fmt.Sprintf("%v %+v %#v %s", m, m, m, m.Response); strings.Contains(s, "hunter2") {
		t.Error(s)
	}
}

func TestErrors(t *testing.T) {
	e := ChannelError(NotFound, "no queue '%s' in vhost '%s'", "q", "/").Of(&BasicGet{})
	if e.Error() != "404 NOT_FOUND - no queue 'q' in vhost '/' (channel)" || e.Class != 60 || e.Method != 70 {
		t.Errorf("%v %+v", e, e)
	}
	for c := Code(200); c < 600; c++ {
		_ = c.String()
	}
}
