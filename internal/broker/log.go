package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
)

// logger turns the engine's lines into the operator's. The engine reports a
// failed start only here, so the first fatal line is kept.
type logger struct {
	slog *slog.Logger
	// quiet makes a debug line of all that is not fatal.
	quiet bool
	// sentinel is the public key of the user that stands in for clients without
	// credentials: the callout, which refuses them, says why.
	sentinel string
	first    atomic.Pointer[string]
	// held says that the store is held, and full that the disk was full.
	held, full atomic.Bool
}

func (l *logger) Noticef(format string, v ...any) { l.line(slog.LevelDebug, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.line(slog.LevelWarn, format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.line(slog.LevelWarn, format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.line(slog.LevelDebug, format, v) }
func (l *logger) Tracef(string, ...any)           {}

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.first.CompareAndSwap(nil, &text)
	l.slog.Error("engine", "error", text)
}

// longest is how much of a line of the engine is logged, in bytes: a stranger's certificate
// is in one, with a name as long as the stranger likes.
const longest = 2000

func (l *logger) line(level slog.Level, format string, v []any) {
	text := fmt.Sprintf(format, v...)
	if len(text) > longest {
		text = text[:longest] + " …"
	}
	callout := l.sentinel != "" && strings.Contains(text, l.sentinel)
	if strings.Contains(text, errNoSpace) {
		l.full.Store(true)
	}
	// Whoever holds the store has said so.
	held := l.held.Load() && strings.Contains(text, "resource limits exceeded for server")
	if l.quiet || callout || held || slices.ContainsFunc(expected(), func(part string) bool { return strings.Contains(text, part) }) {
		level = slog.LevelDebug
	}
	switch level {
	case slog.LevelDebug:
		l.slog.Debug("engine", "error", text)
	default:
		l.slog.Warn("engine", "error", text)
	}
}

// expected are parts of warnings that are none: what they warn of is wanted or
// done elsewhere.
func expected() []string {
	return []string{
		// The mesh verifies chain and name in VerifyConnection.
		"hostname of solicited routes will not be verified",
		"hostname of solicited gateways will not be verified",
		// The callout has said it.
		"Auth callout service returned an error",
		// Each engine is told by its own node alone, and hears what the others are told.
		"delete accounts request by",
		// The gate before the listener says how many.
		"TLS handshake error: too many handshakes",
		// What every start looks like.
		"Waiting for routing to be established", "has not established contact with a meta leader",
		"Metalayer blocking snapshot",
	}
}

// fatal is the error that kept the engine from starting, or nil.
func (l *logger) fatal() error {
	if text := l.first.Load(); text != nil {
		return errors.New(*text)
	}
	return nil
}
