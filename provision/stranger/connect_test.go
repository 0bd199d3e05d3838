package stranger

import (
	"strings"
	"testing"
)

// FuzzConnect has a client say anything first.
func FuzzConnect(f *testing.F) {
	f.Add([]byte(`CONNECT {"user":"abcdefghijklmnop","jwt":"x","sig":"y"}` + "\r\n"))
	f.Add([]byte("CONNECT \r\n"))
	f.Add([]byte("PING\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := parseConnect(line)
		if err != nil {
			return
		}
		if c.JWT != "" || c.Signature != "" || !strings.EqualFold(string(line[:7]), "CONNECT") {
			t.Errorf("%q is %+v", line, c)
		}
	})
}
