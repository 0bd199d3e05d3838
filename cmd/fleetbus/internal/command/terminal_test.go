package command

import (
	"context"
	"io"
	"strings"
	"testing"
)

func TestConfirm(t *testing.T) {
	for _, c := range []struct {
		name, typed string
		terminal    bool
		g           Guard
		code        ExitCode
	}{
		{"yes", "", false, Guard{Yes: true}, ExitOK},
		{"no terminal", "acme\n", false, Guard{}, ExitUsage},
		{"typed", "acme\n", true, Guard{}, ExitOK},
		{"typed something else", "acm\n", true, Guard{}, ExitFailed},
		{"typed nothing", "", true, Guard{}, ExitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _, _ := testApp(c.typed)
			a.Terminal = func(any) bool { return c.terminal }
			code := ExitOK
			if err := a.Confirm(t.Context(), c.g, "acme", "remove account acme"); err != nil {
				code = Explain(t.Context(), err).Code
			}
			if code != c.code {
				t.Errorf("exit code %d, not %d", code, c.code)
			}
		})
	}
}

// TestConfirmInterrupted checks that a question does not outlive an interrupt.
func TestConfirmInterrupted(t *testing.T) {
	a, _, _ := testApp("")
	stdin, silent := io.Pipe()
	defer silent.Close()
	a.Stdin, a.Terminal = stdin, func(any) bool { return true }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f := Explain(ctx, a.Confirm(ctx, Guard{}, "acme", "remove account acme")); f.Code != ExitInterrupted {
		t.Errorf("exit code %d", f.Code)
	}
}

// TestProgress waits for the line that a terminal shows after a second.
func TestProgress(t *testing.T) {
	r, w := io.Pipe()
	a := &App{Stderr: w, Terminal: func(any) bool { return true }}
	stop := a.Progress("asking\x1b[2J")
	buf := make([]byte, 256)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buf[:n]); got != "\rasking\\x1b[2J, 1 s " {
		t.Errorf("progress line %q", got)
	}
	go func() {
		stop()
		w.Close()
	}()
	rest, err := io.ReadAll(r)
	if err != nil || !strings.HasSuffix(string(rest), "\r\x1b[K") {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}
