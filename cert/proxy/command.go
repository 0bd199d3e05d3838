package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What is kept of what a command says: its last lines.
const (
	maxSaid  = 4096
	maxLines = 4
)

// A tail keeps the end of what is written to it.
type tail struct {
	end []byte
	cut bool // the first line is no whole one
}

func (t *tail) Write(p []byte) (int, error) {
	t.end = append(t.end, p...)
	if over := len(t.end) - maxSaid; over > 0 {
		t.end, t.cut = append(t.end[:0], t.end[over:]...), true
	}
	return len(p), nil
}

// lines are the last ones, in one line. secrets are keys, of which no line is shown.
func (t *tail) lines(secrets [][]byte) string {
	text := t.end
	if t.cut { // half a line of a key would not be known as one
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	for _, key := range secrets {
		for line := range bytes.Lines(key) {
			if line = bytes.TrimSpace(line); len(line) >= 8 {
				text = bytes.ReplaceAll(text, line, []byte("[secret]"))
			}
		}
	}
	var kept []string
	for line := range strings.Lines(strings.ToValidUTF8(string(text), "?")) {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	if over := len(kept) - maxLines; over > 0 {
		kept = kept[over:]
	}
	return strings.Join(kept, "; ")
}

// run runs a command, and all that it starts, for as long as timeout. What it said is in
// the error.
func run(ctx context.Context, timeout time.Duration, secrets [][]byte, argv ...string) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var said tail
	cmd := exec.CommandContext(limited, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that it leaves behind may hold its output open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it took longer than %v", timeout)
	}
	if err == nil {
		return nil
	}
	if text := said.lines(secrets); text != "" {
		err = fmt.Errorf("%s (%w)", text, err)
	}
	return fmt.Errorf("%s: %w", command(argv), err)
}

// command is how a command is called in texts: as typed, without the program's path.
func command(argv []string) string {
	return strings.Join(append([]string{filepath.Base(argv[0])}, argv[1:]...), " ")
}

// signal sends a signal to the process that a file names.
func signal(pidFile string, sig syscall.Signal) error {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	// HAProxy's has a line for each process; the master is the last.
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return fmt.Errorf("%s has no process id", pidFile)
	}
	pid, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s has no process id", pidFile)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("signaling process %d of %s: %w", pid, pidFile, err)
	}
	return nil
}
