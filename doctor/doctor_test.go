package doctor

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func found(findings ...Finding) Checker {
	return CheckerFunc(func(context.Context) []Finding { return findings })
}

func codes(findings []Finding) string {
	var out []string
	for _, f := range findings {
		out = append(out, f.Code+"/"+f.Subject)
	}
	return strings.Join(out, " ")
}

func TestRunSortsWorstFirst(t *testing.T) {
	got := Run(t.Context(),
		found(Finding{Code: "b", Severity: Info}, Finding{Code: "a", Severity: Warning, Subject: "2"}),
		found(Finding{Code: "z", Severity: Problem}, Finding{Code: "a", Severity: Warning, Subject: "1"}),
		found(),
	)
	if want := "z/ a/1 a/2 b/"; codes(got) != want {
		t.Errorf("got %q, want %q", codes(got), want)
	}
	if got := Run(t.Context()); got != nil {
		t.Errorf("without checkers: got %v", got)
	}
}

func TestRunLeavesOutWhatIsExplained(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []Finding
		want string
	}{
		{"the cause is absent", []Finding{{Code: "a", Because: []string{"x"}}}, "a/"},
		{"the cause is present", []Finding{{Code: "a", Because: []string{"x"}}, {Code: "x"}}, "x/"},
		{"a chain", []Finding{{Code: "a", Because: []string{"b"}}, {Code: "b", Because: []string{"c"}}, {Code: "c"}}, "c/"},
		{"its own cause", []Finding{{Code: "a", Because: []string{"a"}}}, "a/"},
		{"a circle", []Finding{{Code: "a", Because: []string{"b"}}, {Code: "b", Because: []string{"a"}}}, "a/ b/"},
		{"a circle with a cause", []Finding{{Code: "a", Because: []string{"b"}}, {Code: "b", Because: []string{"a", "c"}}, {Code: "c"}}, "c/"},
		{"two of one code", []Finding{{Code: "a", Subject: "1", Because: []string{"x"}}, {Code: "a", Subject: "2"}, {Code: "x"}}, "a/2 x/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := codes(Run(t.Context(), found(tt.in...))); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRunSurvivesPanic(t *testing.T) {
	got := Run(t.Context(), CheckerFunc(func(context.Context) []Finding {
		var m map[string]int
		//lint:ignore SA5000 the panic is wanted
		m["x"] = 1
		return nil
	}), found(Finding{Code: "other", Severity: Problem}))
	if len(got) != 2 || got[0].Code != "other" || got[1].Code != CodeCheckerFailed {
		t.Fatalf("got %v", got)
	}
	if !strings.Contains(got[1].Text, "nil map") || !strings.Contains(got[1].Subject, "TestRunSurvivesPanic") {
		t.Errorf("the finding does not say what failed and where: %+v", got[1])
	}
}

type stuck struct{ release chan struct{} }

func (s stuck) Check(context.Context) []Finding { <-s.release; return nil }

func TestRunDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := stuck{make(chan struct{})}
		defer close(s.release)
		obedient := CheckerFunc(func(ctx context.Context) []Finding {
			<-ctx.Done()
			return []Finding{{Code: "partial", Severity: Info}}
		})
		start := time.Now()
		got := Run(ctx, s, obedient)
		if want := CodeCheckerSlow + "/doctor.stuck partial/"; codes(got) != want {
			t.Errorf("got %q, want %q", codes(got), want)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestFindingJSON(t *testing.T) {
	in := Finding{Code: "CERTIFICATE-EXPIRES", Severity: Warning, Subject: "www", Text: "expires tomorrow", Because: []string{"ISSUER-DOWN"}}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"code":"CERTIFICATE-EXPIRES","severity":"warning","subject":"www","text":"expires tomorrow","because":["ISSUER-DOWN"]}`; string(data) != want {
		t.Errorf("got %s\nwant %s", data, want)
	}
	var out Finding
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	if out.Severity != in.Severity || !slices.Equal(out.Because, in.Because) {
		t.Errorf("decoded %+v", out)
	}
}

func TestSeverityText(t *testing.T) {
	for _, s := range []Severity{Info, Warning, Problem} {
		text, _ := s.MarshalText()
		var back Severity
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%v became %v, %v", s, back, err)
		}
	}
	var s Severity
	if err := s.UnmarshalText([]byte("disaster")); err != nil || s != Problem {
		t.Errorf("an unknown word became %v, %v", s, err)
	}
}
