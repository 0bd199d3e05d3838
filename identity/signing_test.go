package identity

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSigningPermissions holds what the engine enforces to what the account demands.
func TestSigningPermissions(t *testing.T) {
	everything := Permissions{Publish: Rule{Allow: []string{">"}, Deny: []string{"secret.>"}}, Subscribe: Rule{Allow: []string{">"}}}
	machine := Permissions{
		Publish: Rule{Allow: []string{"machine.m1.out.>"}}, Subscribe: Rule{Allow: []string{"machine.m1.in.>", "_INBOX.m1.>"}}, Replies: &Replies{Max: 1},
	}
	manager := Permissions{Publish: Rule{Allow: []string{Private + "certs.>", "$JS.API.>"}}, Subscribe: Rule{Allow: []string{Private + "certs.>"}}}
	for _, row := range []struct {
		name      string
		p         Permissions
		may, not  []string // of signing required
		mayBefore []string // and of optional
	}{
		{
			"everything", everything,
			[]string{"$SIGNED.orders.new", "$SIGNED.a", "_INBOX.x.1", "$JS.ACK.S.C.1", "$JS.API.CONSUMER.MSG.NEXT.S.C", "$JS.API.STREAM.INFO.S", SigningKeys},
			[]string{"orders.new", "a", "$JS.API.STREAM.CREATE.S", "$JS.API.STREAM.UPDATE.S", "$JS.hub.API.STREAM.CREATE.S", "$KV.b.k", "$O.b.x", Private + "signing.check", Private + "mqtt.x", "secret.a"},
			[]string{"orders.new", "$JS.API.STREAM.CREATE.S", "$SIGNED.orders.new"},
		},
		{
			"a machine", machine,
			[]string{"$SIGNED.machine.m1.out.x", "_INBOX.bob.1", SigningKeys},
			[]string{"machine.m1.out.x", "$SIGNED.machine.m2.out.x", "$SIGNED.x", "$JS.API.INFO"},
			[]string{"machine.m1.out.x", "$SIGNED.machine.m1.out.x"},
		},
		{
			"what protects itself", manager,
			[]string{Private + "certs.x", "$JS.API.CONSUMER.CREATE.CERTS"},
			[]string{"$JS.API.STREAM.CREATE.S", "$SIGNED." + Private + "certs.x", "orders"},
			[]string{Private + "certs.x", "$JS.API.STREAM.CREATE.S"},
		},
		{"nothing", Permissions{}, nil, []string{"a", "$SIGNED.a", "_INBOX.a", SigningKeys}, nil},
	} {
		required, optional := SigningRequired.permissions(row.p), SigningOptional.permissions(row.p)
		for _, subject := range row.may {
			if !required.Publish.Allows(subject) {
				t.Errorf("%s: %s is not allowed where signatures are required", row.name, subject)
			}
		}
		for _, subject := range row.not {
			if required.Publish.Allows(subject) {
				t.Errorf("%s: %s is allowed where signatures are required", row.name, subject)
			}
		}
		for _, subject := range row.mayBefore {
			if !optional.Publish.Allows(subject) {
				t.Errorf("%s: %s is not allowed where signatures are optional", row.name, subject)
			}
		}
		if required.Replies != nil {
			t.Errorf("%s: who asks itself may publish anywhere", row.name)
		}
		for _, p := range []Permissions{required, optional} {
			if err := p.Validate(); err != nil || p.Subscribe.Allows(SignedPrefix+"a") || p.Subscribe.Allows(">") != row.p.Subscribe.Allows(">") {
				t.Errorf("%s: it hears what is not verified, or nothing: %+v, %v", row.name, p.Subscribe, err)
			}
		}
		if off := SigningOff.permissions(row.p); !slices.Equal(off.Publish.Allow, row.p.Publish.Allow) {
			t.Errorf("%s: off changes %v", row.name, off.Publish.Allow)
		}
	}
	for _, subject := range []string{"orders", "$KV.a.b", "$SIGNED.a", "$JS.API.STREAM.CREATE.a"} {
		if Unsigned(subject) {
			t.Errorf("%s needs no signature", subject)
		}
	}
	for _, subject := range []string{"_INBOX.a.b", Private + "x", "$JS.API.INFO"} {
		if !Unsigned(subject) {
			t.Errorf("%s needs a signature", subject)
		}
	}
}

// TestKeySigner finds users by their keys, and nobody by keys that are good no more.
func TestKeySigner(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	d := NewDirectory()
	seq := uint64(0)
	put := func(subject, data string) {
		t.Helper()
		seq++
		if err := d.Apply(seq, subject, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	hash := strings.Repeat("ab", 32)
	put("account.acme", `{"id":"a1"}`)
	put("user.acme.alice", `{"role":"client","keys":[{"public":"UA","expires":"2030-01-01T01:00:00Z"},{"public":"UOLD","expires":"2029-01-01T00:00:00Z"}],"certificates":[{"sha256":"`+hash+`","not_after":"2029-06-01T00:00:00Z"},{"sha256":"`+hash+`","not_after":"2030-06-01T00:00:00Z"}]}`)
	find := func(account, key string) string {
		p, _, err := d.KeySigner(account, key, now)
		if err != nil && !errors.Is(err, ErrNoSigner) {
			t.Errorf("%s: %v", key, err)
		}
		return p.Name
	}
	for key, want := range map[string]string{"UA": "alice", "UOLD": "", hash: "alice", "UNONE": "", "": ""} {
		if got := find("acme", key); got != want {
			t.Errorf("%s is of %q, not %q", key, got, want)
		}
	}
	if got := find("other", "UA"); got != "" {
		t.Errorf("in another account it is of %q", got)
	}
	put("user.acme.bob", `{"role":"client","certificates":[{"sha256":"`+hash+`","registered":true}]}`)
	put("user.acme.carol", `{"role":"client","certificates":[{"sha256":"`+hash+`","registered":true}]}`)
	if got := find("acme", hash); got != "" {
		t.Errorf("a key of several is of %q", got)
	}
	put("user.acme.alice", `{"role":"client","denied":true,"keys":[{"public":"UA"}]}`)
	if got := find("acme", "UA"); got != "" {
		t.Errorf("a denied user signs: %q", got)
	}
	put("user.acme.alice", "")
	if got := find("acme", "UA"); got != "" {
		t.Errorf("a removed user signs: %q", got)
	}
	if _, err := ParseSigning("sometimes"); err == nil {
		t.Error("a setting that is none is taken")
	}
	for _, s := range []Signing{SigningOff, SigningOptional, SigningRequired} {
		if again, err := ParseSigning(s.String()); err != nil || again != s {
			t.Errorf("%q is read as %q, %v", s, again, err)
		}
	}
}
