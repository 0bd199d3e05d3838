package rules_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/rules"
)

// lines is where a log goes.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.String(), text)
}

// TestFile has rules change, for better and for worse.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := new(lines)
	if _, err := rules.Open(path, slog.New(slog.NewTextHandler(log, nil))); err == nil {
		t.Error("there are rules without a file")
	}
	for want, text := range map[string]string{"there is no rule": "rules: []", "reading the rules": "rules: [", "unknown field": "rools: []"} {
		write(text)
		if _, err := rules.Open(path, slog.New(slog.NewTextHandler(log, nil))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	write("rules:\n  - {name: a, proof: none}\n")
	f, err := rules.Open(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Follow(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	for _, step := range []struct{ text, want string }{
		{"rules: nonsense", "the last good ones hold"},
		{`{"rules": [{"name": "b", "proof": "none"}]}`, "the rules have changed"},
	} {
		write(step.text)
		if !await.True(2*time.Minute, func() bool { return log.has(step.want) }) {
			t.Fatalf("it is never said that %s", step.want)
		}
	}
}
