package wire

import (
	"bytes"
	"strconv"

	"github.com/nats-io/nats.go"
)

// A Message is one of the engine's, in the bytes that it came in.
type Message struct {
	// ID is that of the subscription that took it.
	ID             uint64
	Subject, Reply []byte
	// Header is empty if there is none, and else as nats.DecodeHeadersMsg reads it.
	Header, Payload []byte
}

// AppendPublish appends the publication of a message. Neither subject nor reply, which
// may be empty, has a space or a control character, and header is empty or whole, from
// its version to its empty line. It is the caller who keeps to the engine's limits: it
// ends a connection that does not.
func AppendPublish(b []byte, subject, reply string, header, payload []byte) []byte {
	if len(header) > 0 {
		b = append(b, 'H')
	}
	b = append(append(append(b, "PUB "...), subject...), ' ')
	if reply != "" {
		b = append(append(b, reply...), ' ')
	}
	if len(header) > 0 {
		b = append(strconv.AppendInt(b, int64(len(header)), 10), ' ')
	}
	b = append(strconv.AppendInt(b, int64(len(header)+len(payload)), 10), "\r\n"...)
	return append(append(append(b, header...), payload...), "\r\n"...)
}

// Header is a header for AppendPublish, whose names and values have no line ends.
func Header(header nats.Header) []byte {
	if len(header) == 0 {
		return nil
	}
	b := []byte("NATS/1.0\r\n")
	for name, values := range header {
		for _, value := range values {
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

// Next is the message that b, which Conn.Receive returned, begins with, and the rest.
func Next(b []byte) (Message, []byte) {
	o, _ := first(b)
	return o.message(b), b[o.size:]
}

// own begins the identifiers of a Conn's own subscriptions, as those of the library do
// not.
const own = 'w'

// maxLine bounds a line of the engine but for INFO, in bytes; see its max_control_line.
const maxLine = 64 << 10

// An operation is one that a stream of the engine begins with.
type operation struct {
	size    int    // in bytes, with what follows its line
	id      []byte // of the subscription if it is a message, as it stands there
	subject []byte
	reply   []byte
	line    int // its size, in bytes
	header  int // the same of the header
}

// own reports whether it is a message for a subscription of the Conn.
func (o *operation) own() bool { return len(o.id) > 1 && o.id[0] == own }

// message is o of b, of which it is the first.
func (o *operation) message(b []byte) Message {
	id, _ := strconv.ParseUint(string(o.id[1:]), 10, 64)
	end := o.line + o.header
	return Message{ID: id, Subject: o.subject, Reply: o.reply, Header: b[o.line:end], Payload: b[end : o.size-2]}
}

// first is what b begins with; ok is false if its line is not all there. What it does
// not understand it leaves to the library, line by line.
func first(b []byte) (o operation, ok bool) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return operation{size: len(b), line: len(b)}, len(b) > maxLine
	}
	o.line = end + 1
	o.size = o.line
	line := bytes.TrimSuffix(b[:end], []byte("\r"))
	var verb []byte
	verb, line = word(line)
	headers := false
	switch string(verb) {
	case "MSG":
	case "HMSG":
		headers = true
	default:
		return o, true
	}
	o.subject, line = word(line)
	o.id, line = word(line)
	var words [3][]byte
	n := 0
	for ; n < len(words) && len(line) > 0; n++ {
		words[n], line = word(line)
	}
	sizes := 1
	if headers {
		sizes = 2
	}
	if n == sizes+1 {
		o.reply = words[0]
	} else if n != sizes {
		return operation{size: o.line, line: o.line}, true
	}
	total, good := number(words[n-1])
	if headers && good {
		o.header, good = number(words[n-2])
	}
	if !good || o.header > total {
		return operation{size: o.line, line: o.line}, true
	}
	o.size += total + 2
	return o, true
}

// word is the first of a line, and what follows it.
func word(line []byte) (first, rest []byte) {
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		return line[:i], line[i+1:]
	}
	return line, nil
}

// number is a size.
func number(digits []byte) (n int, ok bool) {
	if len(digits) == 0 || len(digits) > 9 {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = 10*n + int(d-'0')
	}
	return n, true
}
