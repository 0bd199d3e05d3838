package packet

import (
	"errors"
	"fmt"
)

// ErrVersion is what errors.Is finds in the error of a CONNECT of another protocol
// or version. The Version of the Reader is then the one to answer in; it is 0 if
// the client would not understand any answer.
var ErrVersion = errors.New("unsupported protocol version")

// ErrSize is the error of a packet that is larger than its receiver takes. Who
// sends a message goes on as if it had been delivered [MQTT-3.1.2-25].
var ErrSize = errors.New("the packet is larger than the maximum")

// ErrLong is the error of a packet with a text that nobody can be sent: it has more
// than 65,535 bytes.
var ErrLong = errors.New("a text of the packet is longer than 65,535 bytes")

// An Error is what a peer did wrong. The connection cannot go on after it.
type Error struct {
	// Code is what to answer with, in MQTT 5.0. Every code is one of DISCONNECT,
	// and those of a CONNECT are ones of CONNACK.
	Code Code
	// Clause is the broken one, such as "MQTT-3.6.1-1".
	Clause string
	// What says what was wrong, such as "PUBREL with flags 0000". It has nothing
	// of the peer's texts in it.
	What string
}

// Error is code, fact and clause, such as "malformed packet: PUBREL with flags
// 0000 [MQTT-3.6.1-1]".
func (e *Error) Error() string { return fmt.Sprintf("%v: %s [%s]", e.Code, e.What, e.Clause) }

// Is says that an Error of another protocol version is ErrVersion.
func (e *Error) Is(target error) bool {
	return target == ErrVersion && e.Code == UnsupportedProtocolVersion
}
