//go:build linux

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// skewVariable says to a program that is built with a clock of ours by how many seconds its
// wall clock is ahead.
const skewVariable = "CHAOS_SKEW"

// A set of binaries: those that are not there were not asked for, or cannot be built.
type binaries struct {
	Node, Skewed, Former, Peer string
	// Left says why one is left out, by its name.
	Left map[string]string
}

// build makes the programs in dir. Former is that of another commit, if there is one.
func build(ctx context.Context, o Options, dir string) (b binaries, err error) {
	b.Left = map[string]string{}
	compile := func(source, name string, more ...string) (string, error) {
		path := filepath.Join(dir, name)
		what := "./cmd/fleetbus"
		if name == "nats-server" {
			what = "github.com/nats-io/nats-server/v2"
		}
		args := append([]string{"build", "-tags", "lean", "-trimpath", "-o", path}, append(more, what)...)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = source, append(slices.Clone(o.Env), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", name, err, bytes.TrimSpace(out))
		}
		return path, nil
	}
	if b.Node, err = compile(o.Source, "fleetbus"); err != nil {
		return b, err
	}
	if o.Rounds > 0 {
		if b.Peer, err = compile(o.Source, "nats-server"); err != nil {
			return b, err
		}
	}
	if o.wants("clock") {
		if b.Skewed, err = buildSkewed(ctx, o, dir, compile); err != nil {
			b.Left["clock"] = err.Error()
		}
	}
	if o.wants("upgrade") {
		if b.Former, err = buildFormer(ctx, o, dir, compile); err != nil {
			b.Left["upgrade"] = err.Error()
		}
	}
	return b, nil
}

// buildSkewed builds the program with another clock: nothing else than time.Now of the
// standard library is changed, so that all that is in the program sees it, the engine too.
// Monotonic time, by which time-outs go, stays what it is.
func buildSkewed(ctx context.Context, o Options, dir string, compile func(source, name string, more ...string) (string, error)) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Dir, cmd.Env = o.Source, o.Env
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("looking for the standard library: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(out)), "src/time/time.go")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the clock: %w", err)
	}
	const before = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	after := before + "\tsec += skew()\n"
	changed := strings.Replace(string(text), before, after, 1)
	if changed == string(text) {
		return "", errors.New("replacing the clock: this version of Go has another one")
	}
	overlay := map[string]map[string]string{"Replace": {
		path: filepath.Join(dir, "time.go"), filepath.Join(filepath.Dir(path), "skew.go"): filepath.Join(dir, "skew.go"),
	}}
	data, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	skew := fmt.Sprintf(`package time

import (
	"sync"
	"syscall"
)

var skew = sync.OnceValue(func() (seconds int64) {
	text, _ := syscall.Getenv(%q)
	sign := int64(1)
	for _, c := range []byte(text) {
		if c == '-' {
			sign = -1
			continue
		}
		seconds = 10*seconds + int64(c-'0')
	}
	return sign * seconds
})
`, skewVariable)
	for name, content := range map[string][]byte{"time.go": []byte(changed), "skew.go": []byte(skew), "overlay.json": data} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", fmt.Errorf("writing a clock: %w", err)
		}
	}
	return compile(o.Source, "fleetbus-skewed", "-overlay", filepath.Join(dir, "overlay.json"))
}

// buildFormer builds the program as it was at another commit.
func buildFormer(ctx context.Context, o Options, dir string, compile func(source, name string, more ...string) (string, error)) (string, error) {
	tree := filepath.Join(dir, "former")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	archive := exec.CommandContext(ctx, "git", "archive", "--format=tar", o.From)
	archive.Dir, archive.Env = o.Source, o.Env
	out, err := archive.Output()
	if err != nil {
		return "", fmt.Errorf("reading commit %q: %w", o.From, err)
	}
	extract := exec.CommandContext(ctx, "tar", "-x", "-C", tree)
	extract.Stdin = bytes.NewReader(out)
	if out, err := extract.CombinedOutput(); err != nil {
		return "", fmt.Errorf("reading commit %q: %w: %s", o.From, err, bytes.TrimSpace(out))
	}
	return compile(tree, "fleetbus-former")
}
