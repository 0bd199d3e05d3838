package change

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
)

// ErrSecret says that a key looks like something that must not be on the bus. The
// error names what it looks like, and never the key.
var ErrSecret = errors.New("the key looks like a secret")

// The bounds of what looks random: runs shorter than randomRun, or hexRun of
// hexadecimal digits only, are not judged.
const (
	randomRun = 20
	hexRun    = 32
	// randomness is the entropy of a run, in parts of the most that a run of its
	// length could have.
	randomness = 0.84
)

var (
	jwtShape  = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}`)
	uuidShape = regexp.MustCompile(`^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$`)
	hexShape  = regexp.MustCompile(`^[0-9a-fA-F]+$`)
	runShape  = regexp.MustCompile(`[A-Za-z0-9+/_-]+`)
)

// checkSecret refuses a key that looks like a secret. opaque lets keys pass that
// are random by design, such as digests; it does not let a PEM block or a JWT
// pass.
func checkSecret(k Key, opaque bool) error {
	// A token may have come in parts.
	whole := strings.Join(k, ".")
	if strings.Contains(whole, "-----BEGIN ") {
		return fmt.Errorf("%w: a PEM block", ErrSecret)
	}
	if strings.Contains(whole, "eyJ") && jwtShape.MatchString(whole) {
		return fmt.Errorf("%w: a JWT", ErrSecret)
	}
	if opaque {
		return nil
	}
	for _, part := range k {
		if len(part) < randomRun || uuidShape.MatchString(part) {
			continue
		}
		for _, run := range runShape.FindAllString(part, -1) {
			if looksRandom(run) {
				return fmt.Errorf("%w: it is long and random; if keys are so by design, as digests are, set Opaque", ErrSecret)
			}
		}
	}
	return nil
}

// looksRandom reports whether nobody would write s by hand: it has all of upper
// case, lower case and digits, or hexadecimal digits only, and hardly repeats.
func looksRandom(s string) bool {
	if uuidShape.MatchString(s) {
		return false
	}
	if hexShape.MatchString(s) {
		digits := strings.ContainsAny(s, "0123456789")
		letters := strings.ContainsAny(s, "abcdefABCDEF")
		return len(s) >= hexRun && digits && letters && entropy(s) > 3
	}
	if len(s) < randomRun {
		return false
	}
	var upper, lower, digit bool
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z':
			upper = true
		case c >= 'a' && c <= 'z':
			lower = true
		case c >= '0' && c <= '9':
			digit = true
		}
	}
	return upper && lower && digit && entropy(s) > randomness*math.Log2(float64(min(len(s), 64)))
}

// entropy of the bytes of s, in bits a byte.
func entropy(s string) float64 {
	var counts [256]int
	for i := range len(s) {
		counts[s[i]]++
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(s))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}
