package change

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"time"
)

// wire is a notice as it travels: JSON in UTF-8, of exactly these fields. Source
// and key are the subject's, but the key of a Resync, whose subject has none.
type wire struct {
	Kind    Kind      `json:"kind"`
	Key     *string   `json:"key,omitempty"`
	Version uint64    `json:"version,omitempty"`
	Epoch   string    `json:"epoch,omitempty"`
	Origin  string    `json:"origin,omitempty"`
	Count   uint64    `json:"count,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

// encode is the payload of n, which is valid: none of its texts has a byte that
// JSON escapes. A time that JSON cannot say is left out.
func (n *Notice) encode() []byte {
	b := make([]byte, 0, 192)
	b = append(append(append(b, `{"kind":"`...), n.Kind...), '"')
	if n.Kind == Resync {
		b = append(append(append(b, `,"key":"`...), n.Key.String()...), '"')
	}
	if n.Version > 0 {
		b = strconv.AppendUint(append(b, `,"version":`...), n.Version, 10)
	}
	if n.Epoch != "" {
		b = append(append(append(b, `,"epoch":"`...), n.Epoch...), '"')
	}
	if n.Origin != "" {
		b = append(append(append(b, `,"origin":"`...), n.Origin...), '"')
	}
	if n.Count > 0 {
		b = strconv.AppendUint(append(b, `,"count":`...), n.Count, 10)
	}
	if t := n.Time.UTC(); !t.IsZero() && t.Year() >= 0 && t.Year() <= 9999 {
		b = append(t.AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano), '"')
	}
	return append(b, '}')
}

// words remembers texts that come again and again, so that they are not copied
// each time. The zero value is ready; it is for one goroutine.
type words struct{ epoch, origin string }

func again(last *string, text []byte) string {
	if *last != string(text) {
		*last = string(text)
	}
	return *last
}

// decode reads JSON of the known fields.
func (w *wire) decode(payload []byte, known *words) bool {
	if w.quick(payload, known) {
		return true
	}
	*w = wire{}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	err := d.Decode(w)
	_, after := d.Token()
	return err == nil && after == io.EOF
}

// quick reads what encode wrote; reading the JSON of everybody costs six times as
// much. It reports false if payload is anything else.
func (w *wire) quick(payload []byte, known *words) bool {
	rest, ok := bytes.CutPrefix(payload, []byte(`{"kind":"`))
	if !ok {
		return false
	}
	var text []byte
	if text, rest, ok = quoted(rest); !ok {
		return false
	}
	switch Kind(text) {
	case Insert:
		w.Kind = Insert
	case Update:
		w.Kind = Update
	case Delete:
		w.Kind = Delete
	case Resync:
		w.Kind = Resync
	default:
		return false
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"key":"`)); found {
		if text, rest, ok = quoted(value); !ok {
			return false
		}
		key := string(text)
		w.Key = &key
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"version":`)); found {
		if w.Version, rest, ok = number(value); !ok {
			return false
		}
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"epoch":"`)); found {
		if text, rest, ok = quoted(value); !ok {
			return false
		}
		w.Epoch = again(&known.epoch, text)
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"origin":"`)); found {
		if text, rest, ok = quoted(value); !ok {
			return false
		}
		w.Origin = again(&known.origin, text)
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"count":`)); found {
		if w.Count, rest, ok = number(value); !ok {
			return false
		}
	}
	if value, found := bytes.CutPrefix(rest, []byte(`,"time":"`)); found {
		if text, rest, ok = quoted(value); !ok || w.Time.UnmarshalText(text) != nil {
			return false
		}
	}
	return string(rest) == "}"
}

// quoted is b up to its next quotation mark, and what follows it, if nothing
// before it could mean anything but itself.
func quoted(b []byte) (text, rest []byte, ok bool) {
	for i, c := range b {
		switch {
		case c == '"':
			return b[:i], b[i+1:], true
		case !unescaped(c) && c != ':' && c != '.' && c != '%' && c != '+':
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// number is the number that b begins with, of so few digits that it fits.
func number(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		n = 10*n + uint64(b[i]-'0')
	}
	return n, b[i:], i > 0 && i < 20 && b[0] != '0'
}
