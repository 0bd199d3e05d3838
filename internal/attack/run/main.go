// Command run tries every attack of package attack, or fuzzes every parser, and prints what
// became of each.
//
// usage: run attack | fuzz [EXECUTIONS | TIME]
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/internal/attack"
)

func main() {
	args := append(os.Args[1:], "", "")
	var err error
	switch args[0] {
	case "attack":
		err = attacks()
	case "fuzz":
		err = fuzz(cmp.Or(args[1], "30s"))
	default:
		err = errors.New("usage: run attack | fuzz [EXECUTIONS | TIME]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// An event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// A result is what became of a test.
type result struct {
	verdict string
	elapsed float64
	figures []string
	said    []string // if it did not hold
}

// attacks runs the tests of all rows, those of each package together.
func attacks() error {
	byPackage := map[string][]string{}
	var order []string
	for _, r := range attack.Rows() {
		if byPackage[r.Package] == nil {
			order = append(order, r.Package)
		}
		byPackage[r.Package] = append(byPackage[r.Package], r.Test)
	}
	began := time.Now()
	results := map[string]*result{}
	var mu sync.Mutex
	var problems []error
	one := func(p string) {
		mu.Lock()
		fmt.Fprintf(os.Stderr, "%5.0f s  %s: %d tests\n", time.Since(began).Seconds(), cmp.Or(p, "fleetbus"), len(byPackage[p]))
		mu.Unlock()
		got, err := test(p, byPackage[p])
		mu.Lock()
		defer mu.Unlock()
		maps.Copy(results, got)
		problems = append(problems, err)
	}
	// The first weighs a node and looks at the clock. The others wait for elections and
	// deadlines more than for a processor.
	one(order[0])
	var running sync.WaitGroup
	places := make(chan struct{}, 2*runtime.NumCPU())
	for _, p := range order[1:] {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			one(p)
		})
	}
	running.Wait()
	if err := errors.Join(problems...); err != nil {
		return err
	}
	breaches, skipped, figures := 0, 0, 0
	on := ""
	for _, r := range attack.Rows() {
		got := results[r.Package+" "+r.Test]
		if got == nil {
			got = &result{verdict: "BREACH", said: []string{"it did not run"}}
		}
		if r.On != on {
			on = r.On
			fmt.Printf("\n%s\n", on)
		}
		fmt.Printf("  %-8s %-58s %6.1f s  %s\n", got.verdict, r.Attack, got.elapsed, strings.TrimPrefix(r.Package+"."+r.Test, "."))
		for _, f := range got.figures {
			figures++
			fmt.Printf("             %s\n", f)
		}
		switch got.verdict {
		case "held":
		case "skipped":
			skipped++
		default:
			breaches++
			for _, line := range got.said {
				fmt.Printf("             %s\n", line)
			}
		}
	}
	fmt.Printf("\n%d attacks, %d figures, %d breaches, %d skipped, in %.0f s\n", len(attack.Rows()), figures, breaches, skipped, time.Since(began).Seconds())
	if breaches > 0 {
		return fmt.Errorf("%d attacks did what they must not", breaches)
	}
	return nil
}

// test runs tests of one package, and says what became of each.
func test(pkg string, names []string) (map[string]*result, error) {
	results := map[string]*result{}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	cmd := exec.Command("go", "test", "-json", "-vet=off", "-count=1", "-timeout", "20m", "-run", "^("+strings.Join(names, "|")+")$", "./"+pkg)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var problem strings.Builder
	cmd.Stderr = &problem
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("running the tests of %q: %w", pkg, err)
	}
	lines := bufio.NewReader(out)
	said := map[string][]string{}
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil {
			note(pkg, e, said, results)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the results of %q: %w", pkg, err)
		}
	}
	// What did not hold is in the results; only what did not run is not.
	if err := cmd.Wait(); err != nil && len(results) == 0 {
		return nil, fmt.Errorf("running the tests of %q: %w\n%s", pkg, err, &problem)
	}
	return results, nil
}

// note takes up one line.
func note(pkg string, e event, said map[string][]string, results map[string]*result) {
	top, _, below := strings.Cut(e.Test, "/")
	if top == "" {
		return
	}
	key := pkg + " " + top
	r := results[key]
	if r == nil {
		r = &result{verdict: "BREACH"}
		results[key] = r
	}
	switch e.Action {
	case "output":
		text := strings.TrimSpace(e.Output)
		if _, figure, ok := strings.Cut(text, "figure: "); ok {
			r.figures = append(r.figures, figure)
		} else if regexp.MustCompile(`^[a-z_0-9]+_test\.go:\d+: `).MatchString(text) || strings.HasPrefix(text, "panic") {
			said[e.Test] = append(said[e.Test], text)
		}
	case "fail":
		r.said = append(r.said, said[e.Test]...)
		if !below {
			r.elapsed = e.Elapsed
		}
	case "pass", "skip":
		if !below {
			r.verdict, r.elapsed = map[string]string{"pass": "held", "skip": "skipped"}[e.Action], e.Elapsed
		}
	}
}

// fuzz runs every target, one after the other, for so many executions (10000000x) or so
// long (30s) each, as FUZZ has it.
func fuzz(bound string) error {
	if regexp.MustCompile(`^\d+$`).MatchString(bound) {
		bound += "x"
	}
	workers := cmp.Or(os.Getenv("FUZZWORKERS"), "1")
	progress := regexp.MustCompile(`execs: (\d+)`)
	failed := 0
	for _, p := range attack.Parsers() {
		for _, target := range p.Fuzz {
			began := time.Now()
			out, err := exec.Command("go", "test", "-vet=off", "-run", "^$", "-fuzz", "^"+target+"$", "-fuzztime", bound, "-parallel", workers, "./"+p.Package).CombinedOutput()
			executions := "0"
			if all := progress.FindAllStringSubmatch(string(out), -1); len(all) > 0 {
				executions = all[len(all)-1][1]
			}
			verdict := "held"
			if err != nil {
				verdict = "BREACH"
				failed++
			}
			fmt.Printf("%-8s %-20s %-18s %12s executions %6.0f s\n", verdict, p.Package, target, executions, time.Since(began).Seconds())
			if err != nil {
				fmt.Println(string(out))
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d targets failed: what they found is in testdata/fuzz of each package, and stays there", failed)
	}
	return nil
}
