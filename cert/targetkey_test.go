package cert

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testTargetKey(t testing.TB) *TargetKey {
	t.Helper()
	seal, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	manager, err := NewManagerKey("acme", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return &TargetKey{Account: "acme", Name: "lb1", Groups: []string{"web", "mail"}, Signers: []Signer{manager.Signer()}, Seal: seal}
}

func TestTargetKeyFile(t *testing.T) {
	k := testTargetKey(t)
	path := filepath.Join(t.TempDir(), "target.key")
	if err := WriteTargetKey(path, k); err != nil {
		t.Fatal(err)
	}
	read, err := ReadTargetKey(path)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := k.Text()
	if got, _ := read.Text(); got != want || got == "" {
		t.Error("another key was read than was written")
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadTargetKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := ReadTargetKey(t.TempDir()); err == nil {
		t.Error("a directory was read as a key")
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("there are %d files and not 1", len(files))
	}
}

func TestTargetKeyPrintsNoSecret(t *testing.T) {
	k := testTargetKey(t)
	text, err := k.Text()
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Fields(text)[5]
	encoded, _ := json.Marshal(k)
	pair := Pair{ID: "a", Key: []byte("SECRET")}
	for _, shown := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s %x", k, k, k, k), string(encoded), fmt.Sprintf("%v %+v %#v %s %x %q", pair, pair, pair, pair, pair, &pair)} {
		if strings.Contains(shown, secret) || strings.Contains(shown, "SECRET") || strings.Contains(shown, "534543524554") {
			t.Errorf("it shows its secret: %s", shown)
		}
	}
}

func TestTargetKeyRefusesOthers(t *testing.T) {
	k := testTargetKey(t)
	text, _ := k.Text()
	for _, bad := range []string{
		"", "x", text + " more", strings.Replace(text, "lb1", "l.b", 1), strings.Replace(text, "web,mail", "web,web", 1),
		strings.Replace(text, "web,mail", ",", 1), strings.Replace(text, string(k.Signers[0]), "ab", 1), text[:len(text)-9] + "\n",
		strings.Replace(text, "acme", "-x", 1), strings.Repeat("a", maxTargetKey+1),
	} {
		if got, err := ParseTargetKey(bad); err == nil {
			t.Errorf("%.80q was read as %v", bad, got)
		} else if secret := strings.Fields(text)[5]; strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
	broken := *k
	broken.Groups = nil
	if _, err := broken.Text(); err == nil {
		t.Error("a key without groups was written")
	}
}

func FuzzParseTargetKey(f *testing.F) {
	text, err := testTargetKey(f).Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(targetKeyPrefix + " a b c d e")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseTargetKey(text)
		if err != nil {
			return
		}
		again, err := k.Text()
		if err != nil || again != strings.Join(strings.Fields(text), " ")+"\n" {
			t.Errorf("what was read is written as something else: %v", err)
		}
	})
}
