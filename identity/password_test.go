package identity

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// cheapHash hashes at a cost that tests can bear.
func cheapHash(password string) string {
	h := argonHash{memory: 8, time: 1, threads: 1, salt: []byte("saltsaltsaltsalt")}
	h.key = h.derive(password, argonKey)
	return h.String()
}

func TestPassword(t *testing.T) {
	encoded, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(encoded, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("the hash is %q", encoded)
	}
	if err := VerifyPassword(encoded, "correct horse"); err != nil {
		t.Error(err)
	}
	if err := VerifyPassword(encoded, "correct horse "); !errors.Is(err, ErrPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	again, err := HashPassword("correct horse")
	if err != nil || again == encoded {
		t.Errorf("two hashes have the same salt: %v", err)
	}
	for _, bad := range []string{"", strings.Repeat("x", 1025)} {
		_, err := HashPassword(bad)
		wantError(t, err, "not 1 to 1024")
	}
	if err := VerifyPassword(cheapHash("x"), strings.Repeat("x", 1025)); !errors.Is(err, ErrPassword) {
		t.Errorf("a long password: %v", err)
	}
}

// TestPasswordVector takes a hash from the tests of the reference implementation
// of argon2, for the password "password" and the salt "somesalt".
func TestPasswordVector(t *testing.T) {
	const encoded = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	if err := VerifyPassword(encoded, "password"); err != nil {
		t.Error(err)
	}
}

func TestDecoyCostsAsMuch(t *testing.T) {
	h, err := parseArgon(decoy)
	if err != nil {
		t.Fatal(err)
	}
	if h.memory != argonMemory || h.time != argonTime || h.threads != argonThreads || len(h.key) != argonKey || len(h.salt) != argonSalt {
		t.Errorf("the decoy costs %s", h.cost())
	}
}

func TestVerifyPasswordRefuses(t *testing.T) {
	good := cheapHash("x")
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in %q", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	parts := strings.Split(good, "$")
	for name, c := range map[string][2]string{
		"empty":        {"", "not of argon2id"},
		"plain":        {"x", "not of argon2id"},
		"bcrypt":       {"$2a$10$abcdefghijklmnopqrstuv", "not of argon2id"},
		"argon2i":      {with("argon2id", "argon2i"), "not of argon2id"},
		"old version":  {with("v=19", "v=16"), "not of argon2id"},
		"prefix":       {"x" + good, "not of argon2id"},
		"no cost":      {with("m=8,t=1,p=1", ""), "cannot be read"},
		"cost order":   {with("m=8,t=1,p=1", "t=1,m=8,p=1"), "cannot be read"},
		"cost tail":    {with("m=8,t=1,p=1", "m=8,t=1,p=1,x=2"), "cannot be read"},
		"cost sign":    {with("m=8,t=1,p=1", "m=+8,t=1,p=1"), "cannot be read"},
		"cost zero":    {with("m=8,t=1,p=1", "m=08,t=1,p=1"), "cannot be read"},
		"huge number":  {with("m=8,", "m=99999999999,"), "cannot be read"},
		"too many":     {with("p=1", "p=256"), "cannot be read"},
		"memory":       {with("m=8,", fmt.Sprintf("m=%d,", 256<<10+1)), "out of bounds"},
		"no passes":    {with("t=1", "t=0"), "out of bounds"},
		"passes":       {with("t=1", "t=17"), "out of bounds"},
		"no threads":   {with("p=1", "p=0"), "out of bounds"},
		"threads":      {with("p=1", "p=17"), "out of bounds"},
		"salt":         {with(parts[4], "!!!!"), "decoding the salt"},
		"key":          {with(parts[5], "!!!!"), "decoding the hash"},
		"short salt":   {with(parts[4], "AAAA"), "a part of 3 bytes"},
		"short key":    {with(parts[5], "AAAA"), "a part of 3 bytes"},
		"long key":     {with(parts[5], strings.Repeat("A", 100)), "a part of 75 bytes"},
		"padding bits": {with(parts[4], parts[4][:len(parts[4])-1]+"B"), "decoding the salt"},
	} {
		err := VerifyPassword(c[0], "x")
		if errors.Is(err, ErrPassword) {
			t.Errorf("%s: a damaged hash is taken for a wrong password", name)
		}
		wantError(t, err, c[1])
	}
}

func FuzzVerifyPassword(f *testing.F) {
	f.Add(cheapHash("x"), "x")
	f.Add(cheapHash("x"), "")
	f.Add("$argon2id$v=19$m=8,t=1,p=1$$", "")
	f.Add("$argon2id$v=19$m=4294967295,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "x")
	f.Fuzz(func(t *testing.T, encoded, password string) {
		if h, err := parseArgon(encoded); err == nil && (h.memory > 1<<10 || h.time > 2) {
			return // costly, and not different
		}
		if VerifyPassword(encoded, password) == nil && len(password) > maxPassword {
			t.Error("a password is accepted that cannot be set")
		}
	})
}
