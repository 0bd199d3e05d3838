package messages

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

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
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
func showMessage(a *command.App, m message, data []byte, bare bool) error {
	if a.Format != command.FormatTable {
		if a.Format == command.FormatYAML {
			fmt.Fprintln(a.Stdout, "---")
		}
		return a.Show(command.Report{Value: m})
	}
	text := string(data)
	if a.Terminal(a.Stdout) {
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
	if _, err := io.WriteString(a.Stdout, b.String()); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
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
			return nil, command.Fail(command.ExitUsage, `--header "Name: value"`, "reading header %q: it is not a name, a colon and a value", line)
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return h, nil
}
