package frame

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Code is a reply code.
type Code uint16

// The reply codes, with the names that RabbitMQ begins its texts with.
const (
	Success            Code = 200
	ContentTooLarge    Code = 311
	NoRoute            Code = 312
	NoConsumers        Code = 313
	ConnectionForced   Code = 320
	InvalidPath        Code = 402
	AccessRefused      Code = 403
	NotFound           Code = 404
	ResourceLocked     Code = 405
	PreconditionFailed Code = 406
	FrameError         Code = 501
	SyntaxError        Code = 502
	CommandInvalid     Code = 503
	ChannelFault       Code = 504 // CHANNEL_ERROR
	UnexpectedFrame    Code = 505
	ResourceError      Code = 506
	NotAllowed         Code = 530
	NotImplemented     Code = 540
	InternalError      Code = 541
)

// String is the code's name, such as "NOT_FOUND".
func (c Code) String() string {
	switch c {
	case Success:
		return "OK"
	case ContentTooLarge:
		return "CONTENT_TOO_LARGE"
	case NoRoute:
		return "NO_ROUTE"
	case NoConsumers:
		return "NO_CONSUMERS"
	case ConnectionForced:
		return "CONNECTION_FORCED"
	case InvalidPath:
		return "INVALID_PATH"
	case AccessRefused:
		return "ACCESS_REFUSED"
	case NotFound:
		return "NOT_FOUND"
	case ResourceLocked:
		return "RESOURCE_LOCKED"
	case PreconditionFailed:
		return "PRECONDITION_FAILED"
	case FrameError:
		return "FRAME_ERROR"
	case SyntaxError:
		return "SYNTAX_ERROR"
	case CommandInvalid:
		return "COMMAND_INVALID"
	case ChannelFault:
		return "CHANNEL_ERROR"
	case UnexpectedFrame:
		return "UNEXPECTED_FRAME"
	case ResourceError:
		return "RESOURCE_ERROR"
	case NotAllowed:
		return "NOT_ALLOWED"
	case NotImplemented:
		return "NOT_IMPLEMENTED"
	case InternalError:
		return "INTERNAL_ERROR"
	}
	return fmt.Sprintf("CODE_%d", uint16(c))
}

// Scope is what an Error ends.
type Scope byte

// The scopes.
const (
	OfChannel Scope = iota
	OfConnection
)

// String is "channel" or "connection".
func (s Scope) String() string {
	if s == OfConnection {
		return "connection"
	}
	return "channel"
}

// An Error is why a channel or a connection cannot go on. A peer is told all of it.
type Error struct {
	// Code is what to answer with.
	Code Code
	// Text are the particulars, such as "no queue 'q' in vhost '/'".
	Text string
	// Class and Method are of the method that brought it about; 0: of none.
	Class, Method uint16
	// Scope is what it ends.
	Scope Scope
}

// ChannelError is an Error that ends a channel.
func ChannelError(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// ConnectionError is an Error that ends a connection.
func ConnectionError(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Scope: OfConnection}
}

// Of returns e with the class and method of m, unless it has others.
func (e *Error) Of(m Method) *Error {
	if e.Class != 0 || m == nil {
		return e
	}
	of := *e
	of.Class, of.Method = m.ID().Class(), m.ID().Method()
	return &of
}

// Reply is the text that a peer is sent: the name of the code and the particulars,
// as RabbitMQ writes them, in at most 255 bytes.
func (e *Error) Reply() string {
	text := e.Code.String()
	if e.Text != "" {
		text += " - " + e.Text
	}
	return Clip(text)
}

// Error is the reply and what it ends.
func (e *Error) Error() string {
	return fmt.Sprintf("%d %s (%s)", uint16(e.Code), e.Reply(), e.Scope)
}

// Clip is s as a text of at most 255 bytes, cut between two characters.
func Clip(s string) string {
	if len(s) <= maxShort {
		return s
	}
	cut := maxShort - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strings.Clone(s[:cut]) + "..."
}
