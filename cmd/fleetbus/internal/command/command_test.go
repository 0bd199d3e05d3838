package command

import (
	"bytes"
	"strings"
)

// testApp is an app that is no terminal.
func testApp(stdin string) (a *App, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	return &App{Stdin: strings.NewReader(stdin), Stdout: stdout, Stderr: stderr, Terminal: func(any) bool { return false }}, stdout, stderr
}
