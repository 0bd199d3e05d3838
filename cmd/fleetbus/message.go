package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/internal/document"
)

// message is one message as programs get it.
type message struct {
	Subject string              `json:"subject"`
	Reply   string              `json:"reply,omitempty"`
	Headers map[string][]string `json:"headers,omitempty"`
	// Data if it is UTF-8, else Base64; one of them is always there.
	Data   *string `json:"data,omitempty"`
	Base64 *string `json:"data_base64,omitempty"`
	// Stream, Sequence and Stored are of a stored message.
	Stream   string    `json:"stream,omitempty"`
	Sequence uint64    `json:"sequence,omitempty"`
	Stored   time.Time `json:"stored,omitzero"`
}

func newMessage(subject, reply string, headers nats.Header, data []byte) message {
	m := message{Subject: subject, Reply: reply, Headers: headers}
	if utf8.Valid(data) {
		s := string(data)
		m.Data = &s
	} else {
		s := base64.StdEncoding.EncodeToString(data)
		m.Base64 = &s
	}
	return m
}

// showMessage prints a message: for people its subject, headers and data on a
// line, unless bare is set, which leaves the data. On a terminal it is escaped;
// elsewhere the data is passed on as it came.
func (a *app) showMessage(m message, data []byte, bare bool) error {
	if a.format != formatTable {
		if a.format == formatYAML {
			fmt.Fprintln(a.stdout, "---")
		}
		return a.show(report{value: m})
	}
	text := string(data)
	if a.terminal(a.stdout) {
		text = document.Escape(text)
	}
	var b strings.Builder
	if !bare {
		b.WriteString(document.Escape(m.Subject))
		for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
			for _, value := range m.Headers[name] {
				fmt.Fprintf(&b, " [%s: %s]", document.Escape(name), document.Escape(value))
			}
		}
		b.WriteString("  ")
	}
	b.WriteString(text)
	b.WriteByte('\n')
	if _, err := io.WriteString(a.stdout, b.String()); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// payload is the data of a message: the argument, or all of stdin if it is "-";
// nothing if there is none.
func (a *app) payload(args []string) ([]byte, error) {
	switch {
	case len(args) == 0:
		return nil, nil
	case args[0] != "-":
		return []byte(args[0]), nil
	}
	data, err := io.ReadAll(a.stdin)
	if err != nil {
		return nil, fmt.Errorf("reading stdin: %w", err)
	}
	return data, nil
}

// parseHeaders reads headers such as "Name: value".
func parseHeaders(lines []string) (nats.Header, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	h := nats.Header{}
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(line, "\r\n") {
			return nil, fail(exitUsage, `--header "Name: value"`, "reading header %q: it is not a name, a colon and a value", line)
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return h, nil
}
