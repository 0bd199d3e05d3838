package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
)

// logger turns the engine's lines into the operator's. The engine reports a
// failed start only here, so the first fatal line is kept.
type logger struct {
	slog  *slog.Logger
	first atomic.Pointer[string]
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

func (l *logger) line(level slog.Level, format string, v []any) {
	l.slog.Log(nil, level, "engine", "error", fmt.Sprintf(format, v...))
}

// fatal is the error that kept the engine from starting, or nil.
func (l *logger) fatal() error {
	if text := l.first.Load(); text != nil {
		return errors.New(*text)
	}
	return nil
}
