package provision

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A Question is what a hook is asked, in JSON.
type Question struct {
	// ID of the request, and Code, which the machine shows.
	ID   string `json:"id"`
	Code string `json:"code"`
	Name string `json:"name"`
	// Address that the machine asks from. Facts are what it says of itself, and nobody
	// vouches for them.
	Address string            `json:"address"`
	Facts   map[string]string `json:"facts,omitempty"`
	// Proof is "token", "claim" or "none"; Token its label, Key who signed the claim,
	// and Claims what it says.
	Proof  string         `json:"proof"`
	Token  string         `json:"token,omitempty"`
	Key    string         `json:"key,omitempty"`
	Claims map[string]any `json:"claims,omitempty"`
	// Rule that has the hook decide, and what it would give.
	Rule    string `json:"rule"`
	Account string `json:"account,omitempty"`
	Role    string `json:"role,omitempty"`
}

// A Decision is what a hook answers, in JSON.
type Decision struct {
	// Decision is Approve, Deny or Wait.
	Decision string `json:"decision"`
	// Account and Role of the machine. Default: those of the rule.
	Account string `json:"account,omitempty"`
	Role    string `json:"role,omitempty"`
	// Reason is what a machine is told that is denied.
	Reason string `json:"reason,omitempty"`
}

// A Hook decides on requests. An error leaves a request undecided: it is asked about
// again when the machine asks again.
type Hook func(context.Context, Question) (Decision, error)

// maxHookOutput bounds what a hook answers, in bytes.
const maxHookOutput = 64 << 10

// hookRest is how long a hook that was killed may hold its output open.
const hookRest = time.Second

// Exec is a hook that runs a program for each question: it reads the question from
// its standard input, and writes the decision to its standard output. A program that
// runs longer than timeout is killed, with its children; one that exits with another
// code than 0, or answers anything but a decision, has decided nothing.
func Exec(command []string, timeout time.Duration) Hook {
	return func(ctx context.Context, q Question) (Decision, error) {
		var d Decision
		input, err := json.Marshal(q)
		if err != nil {
			return d, fmt.Errorf("asking the hook: %w", err)
		}
		ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it gave no answer within %v", timeout))
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		var out, problem bounded
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &problem
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = hookRest
		err = cmd.Run()
		switch {
		case ctx.Err() != nil:
			return d, fmt.Errorf("asking the hook: %w", context.Cause(ctx))
		case err != nil && problem.text() != "":
			return d, fmt.Errorf("asking the hook: %w: it said %q", err, problem.text())
		case err != nil:
			return d, fmt.Errorf("asking the hook: %w", err)
		case out.over:
			return d, fmt.Errorf("asking the hook: it answered more than %d bytes", maxHookOutput)
		}
		decoder := json.NewDecoder(bytes.NewReader(out.begin))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&d); err != nil {
			return d, fmt.Errorf("asking the hook: its answer is no decision: %w", err)
		}
		if decoder.Decode(new(json.RawMessage)) != io.EOF {
			return d, errors.New("asking the hook: there is more in its answer than one decision")
		}
		return d, nil
	}
}

// bounded keeps the beginning of what is written. It is no bytes.Buffer, which would
// read by itself.
type bounded struct {
	begin []byte
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := maxHookOutput - len(b.begin)
	b.over = b.over || len(p) > room
	b.begin = append(b.begin, p[:min(len(p), room)]...)
	return len(p), nil
}

// text is the first line, for people.
func (b *bounded) text() string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b.begin)), "\n")
	return line[:min(len(line), 200)]
}
