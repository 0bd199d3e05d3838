package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strings"
)

const (
	// hidden stands for what might be a secret.
	hidden = "(hidden)"
	// maxText bounds a text of a request or record, and maxRecord the whole.
	maxText, maxRecord = 512, 8 << 10
)

// secretNames are in the names of fields that are not told, in lower case.
var secretNames = []string{"password", "passwd", "secret", "seed", "bearer", "private", "sealed", "credential", "creds", "dsn", "master", "authorization", "cookie", "passphrase", "hmac", "jwt"}

// secretTexts are what is not told wherever it is: keys in PEM, seeds of nkeys, tokens
// of engine and fleet, and who has a password in an address.
var secretTexts = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY|\bS[UANOCXP][A-Z2-7]{54,}\b|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+|\bfbb?1[._][A-Za-z0-9]|\$argon2|AGE-SECRET-KEY-|://[^/\s:@]+:[^/\s@]+@|(?i)password\s*=`)

// Redact returns a document of JSON as it may be told: without what might be a secret,
// and no longer than is read. What is no JSON is not told at all.
func Redact(document []byte) json.RawMessage {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	if d.Decode(&v) != nil {
		v = hidden
	}
	told, err := json.Marshal(redact(v))
	if err != nil || len(told) > maxRecord {
		sum := sha256.Sum256(told)
		told, _ = json.Marshal(map[string]any{"bytes": len(told), "sha256": hex.EncodeToString(sum[:])}) // it is of strings and numbers
	}
	if string(told) == "{}" {
		return nil
	}
	return told
}

func redact(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if secret(name) && !empty(value) {
				v[name] = hidden
			} else {
				v[name] = redact(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = redact(v[i])
		}
	case string:
		return redactText(v)
	}
	return v
}

func redactText(s string) string {
	if secretTexts.MatchString(s) {
		return hidden
	}
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

func secret(name string) bool {
	name = strings.ToLower(name)
	for _, s := range secretNames {
		if strings.Contains(name, s) {
			return true
		}
	}
	return false
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil, bool, json.Number:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
