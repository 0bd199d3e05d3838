package erlang

import (
	"encoding/base64"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// write is a term in the words of the test.
func write(t Term) string {
	parts := func(open, end string) string {
		var all []string
		for _, i := range t.Items {
			all = append(all, write(i))
		}
		return open + strings.Join(all, " ") + end
	}
	switch t.Kind {
	case Tuple:
		return parts("{", "}")
	case List:
		return parts("[", "]")
	case Map:
		return parts("#{", "}")
	case String:
		return `"` + t.Text + `"`
	case Binary:
		return "<" + t.Text + ">"
	}
	return t.Text
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"% only a comment":                "",
		"[].":                             "[]",
		"[]. % comment\n{a}.":             "[];{a}",
		"\ufeff[a].\r\n":                  "[a]",
		"[{rabbit, [{x, 1}]}].":           "[{rabbit [{x 1}]}]",
		`['PLAIN', 'a b', a@b_1].`:        "[PLAIN a b a@b_1]",
		`<<"guest">>.`:                    "<guest>",
		`<<"a", 98, $c, "d"/utf8>>.`:      "<abcd>",
		`<<>>.`:                           "<>",
		`"a\"b\\\x41\x{42}\103\s\^A".`:    "\"a\"b\\ABC \x01\"",
		`"one" "two".`:                    `"onetwo"`,
		"16#fF. 2#101. 1_000. -5. +7.":    "255;5;1000;-5;7",
		"0.6. 1.5e3. 2.0E-1.":             "0.6;1.5e3;2.0e-1",
		`[$a, $\n, $ ].`:                  "[97 10 32]",
		`#{a => 1, "b" => [x]}.`:          `#{a 1 "b" [x]}`,
		"[a|[b, c]].":                     "[a b c]",
		"[1 % one\n , %% two\n 2].":       "[1 2]",
		"123456789012345678901234567890.": "123456789012345678901234567890",
		"[{tcp_listeners, [{\"::1\", 5672}, 5673]}\n].": `[{tcp_listeners [{"::1" 5672} 5673]}]`,
	} {
		terms, err := Parse([]byte(in))
		var all []string
		for _, term := range terms {
			all = append(all, write(term))
		}
		if got := strings.Join(all, ";"); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for in, line := range map[string]int{
		"[a":                 1,
		"[a]":                1,
		"[a,].":              1,
		"\n\n[a b].":         3,
		"{a, \"no end":       1,
		"<<\"a\" 1>>.":       1,
		"<<256>>.":           1,
		"Variable.":          1,
		"1#0.":               1,
		"40#1.":              1,
		"-.":                 1,
		"#{a 1}.":            1,
		"[a|b].":             1,
		"\"\\x{110000}\".":   1,
		"a.b.":               1,
		"[\n{x, \n(1)}\n].":  3,
		"fun() -> ok end.":   1,
		"1.0e999.":           1,
		`"\`:                 1,
		"$":                  1,
		"[{default_pass, <<": 1,
	} {
		_, err := Parse([]byte(in))
		var e *Error
		if !errors.As(err, &e) || e.Line != line {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, err := Parse([]byte(strings.Repeat("[", 10_000))); err == nil || !strings.Contains(err.Error(), "within one another") {
		t.Errorf("too deep: %v", err)
	}
	if _, err := Parse([]byte("[" + strings.Repeat("a,", MaxTerms) + "a].")); err == nil {
		t.Error("too many terms are taken")
	}
	if _, err := Parse(make([]byte, MaxSize+1)); err == nil {
		t.Error("too many bytes are taken")
	}
}

func TestLines(t *testing.T) {
	terms, err := Parse([]byte("[\n {rabbit, [\n  {a,\n   1},\n  {b, \"x\ny\"},\n  {c, 2}]}].\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := terms[0].Items[0].Pair()
	for i, line := range []int{3, 5, 7} {
		if got := section.Items[i].Line; got != line {
			t.Errorf("item %d is on line %d, not %d", i, got, line)
		}
	}
}

// TestAgainstErlang holds the reader against Erlang's own.
func TestAgainstErlang(t *testing.T) {
	erl, err := exec.LookPath("erl")
	if err != nil {
		t.Skip("erl is missing, whose reader is what this one follows")
	}
	all := []string{"[].", "[a,].", "[{a,1}].", `<<"x">>.`, "[a|[b]].", "16#ff.", "1#0.", "Variable.", "[$a,$\\n].", `"a" "b".`, "#{a=>1}.", "[a b].", "{a.", "1.5e3.", "'a b'.", "a.b."}
	program := `lists:foreach(fun(A) -> R = case erl_scan:string(binary_to_list(base64:decode(A))) of {ok,T,_} -> case erl_parse:parse_term(T) of {ok,_} -> "y"; _ -> "n" end; _ -> "n" end, io:put_chars(R) end, init:get_plain_arguments()), halt().`
	args := []string{"-noshell", "-eval", program, "-extra"}
	for _, in := range all {
		args = append(args, base64.StdEncoding.EncodeToString([]byte(in)))
	}
	out, err := exec.CommandContext(t.Context(), erl, args...).Output()
	if err != nil || len(out) != len(all) {
		t.Fatalf("%q, %v", out, err)
	}
	for i, in := range all {
		if _, ours := Parse([]byte(in)); (ours == nil) != (out[i] == 'y') {
			t.Errorf("%q: Erlang says %c, and we %v", in, out[i], ours)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"[].", `[{rabbit, [{ssl_options, [{verify, verify_peer}]}]}].`, `<<"a",1>>.`, "16#fF.", "#{a => $b}.", `"\x{41}".`, "[a|[b]].", "'q a'. 1.5e-3."} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		terms, err := Parse(data)
		lines := strings.Count(string(data), "\n") + 1
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Line < 1 || e.Line > lines) {
			t.Fatalf("%v", err)
		}
		for _, term := range terms {
			if term.Line < 1 || term.Line > lines {
				t.Fatalf("line %d of %d", term.Line, lines)
			}
			_ = term.Plain()
		}
	})
}
