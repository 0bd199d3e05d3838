package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrite has a page say what reports say, what the page before says, and what is missing.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"amqp.json": `{"figures":[{"figure":"call, p50","unit":"ms","ours":0.137,"peer":0.473,"ratio":0.29,"spread":[0.28,0.31],"target":"ratio 0.8 or less","verdict":"met"},
			{"figure":"a|b","unit":"msg/s","ours":17360.4,"target":"2","verdict":"not met"}],"conditions":[{"name":"machine","value":"2 CPUs"},{"name":"disk","value":"under /somewhere"}]}`,
		"libraries.txt": "BenchmarkGetCertificate-2 100 12 ns/op\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	if err := write(&b, dir, "# Performance\n\n## Certificates\n\nMany.\n\n| a | met |\n\n## Very many clients\n\nOthers.\n"); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{
		"2 are met and 1 are not",
		"| call, p50 | 0.137 ms | 0.473 | 0.29 | 0.28 to 0.31 | ratio 0.8 or less | met |\n",
		`| a\|b | 17360 msg/s |  |  |  | 2 | **not met** |` + "\n",
		"- machine: 2 CPUs\n", "BenchmarkGetCertificate-2 100 12 ns/op\n", "## Certificates\n\nMany.\n\n| a | met |\n\n## Very many", "the bare engine\n\nNot measured yet.\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "/somewhere") {
		t.Error("the page has a path of the machine")
	}
	if err := write(&b, t.TempDir(), page); err == nil {
		t.Error("there is a page of nothing")
	}
	if err := os.WriteFile(filepath.Join(dir, "house.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(&b, dir, page); err == nil || !strings.Contains(err.Error(), "house") {
		t.Errorf("half a report: %v", err)
	}
}
