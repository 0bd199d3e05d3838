package frame

import "testing"

func message(b *testing.B) (one, properties []byte) {
	p := Properties{ContentType: "application/json", DeliveryMode: 2, Headers: Table{"trace": "00-abc", "retries": int32(1)}, CorrelationID: "c1", ReplyTo: "r"}
	properties, err := p.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	one, err = AppendMethod(nil, 1, &BasicPublish{Exchange: "orders", RoutingKey: "a.b.c"})
	if err != nil {
		b.Fatal(err)
	}
	return AppendContent(one, 1, properties, make([]byte, 256), DefaultMaximum), properties
}

// BenchmarkReadPublish reads messages of 256 bytes, with properties.
func BenchmarkReadPublish(b *testing.B) {
	one, _ := message(b)
	r := NewReader(&endless{b: one}, 16<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(one)))
	for b.Loop() {
		for kind := KindMethod; kind <= KindBody; kind++ {
			f, err := r.Next()
			switch f.Kind {
			case KindMethod:
				_, err = r.Method(f)
			case KindHeader:
				_, err = DecodeHeader(f.Payload)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkWriteDeliver writes the same to a consumer.
func BenchmarkWriteDeliver(b *testing.B) {
	_, properties := message(b)
	body, out := make([]byte, 256), make([]byte, 0, 4096)
	m := &BasicDeliver{ConsumerTag: "ctag", Exchange: "orders", RoutingKey: "a.b.c"}
	b.ReportAllocs()
	for b.Loop() {
		m.DeliveryTag++
		out, _ = AppendMethod(out[:0], 1, m)
		out = AppendContent(out, 1, properties, body, DefaultMaximum)
	}
	b.SetBytes(int64(len(out)))
}

// BenchmarkDecodeProperties makes a Properties of what a message has.
func BenchmarkDecodeProperties(b *testing.B) {
	_, properties := message(b)
	var p Properties
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Decode(properties); err != nil {
			b.Fatal(err)
		}
	}
}
