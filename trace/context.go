// Package trace takes traces of OpenTelemetry across protocols: a message that has a
// trace context, in a header of NATS or a user property of MQTT 5.0, keeps it on its way,
// and what a node does with it becomes a span. It speaks OTLP over HTTP with JSON and
// links nothing; the program has it only if it is built with the tag traces.
package trace

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// Key is the name of the header, or user property, that has a trace context, and StateKey
// of the one beside it. In W3C's Trace Context they are spelled so in all protocols.
const (
	Key      = "traceparent"
	StateKey = "tracestate"
)

// A Context is the trace that something is part of, and the span that caused it.
type Context struct {
	Trace   [16]byte
	Span    [8]byte
	Sampled bool
}

// Parse reads a traceparent; false if it is none, which begins no trace. A version that
// is not known yet may have more at its end.
func Parse(s string) (c Context, ok bool) {
	const version, length = 2, 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(s) < length || len(s) > 512 || s[2] != '-' || s[35] != '-' || s[52] != '-' || strings.ToLower(s) != s {
		return c, false
	}
	first, err := hex.DecodeString(s[:version])
	if err != nil || first[0] == 0xff || first[0] == 0 && len(s) != length || len(s) > length && s[length] != '-' {
		return c, false
	}
	if _, err := hex.Decode(c.Trace[:], []byte(s[3:35])); err != nil || c.Trace == [16]byte{} {
		return Context{}, false
	}
	if _, err := hex.Decode(c.Span[:], []byte(s[36:52])); err != nil || c.Span == [8]byte{} {
		return Context{}, false
	}
	flags, err := hex.DecodeString(s[53:55])
	if err != nil {
		return Context{}, false
	}
	c.Sampled = flags[0]&1 == 1
	return c, true
}

// String is the traceparent.
func (c Context) String() string {
	flags := "00"
	if c.Sampled {
		flags = "01"
	}
	return "00-" + hex.EncodeToString(c.Trace[:]) + "-" + hex.EncodeToString(c.Span[:]) + "-" + flags
}

// New begins a trace that is sampled.
func New() Context {
	c := Context{Sampled: true}
	_, _ = rand.Read(c.Trace[:]) // it never fails
	return c.Next()
}

// Next is another span of the same trace.
func (c Context) Next() Context {
	_, _ = rand.Read(c.Span[:]) // it never fails
	return c
}
