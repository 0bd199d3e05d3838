package identity

import "testing"

func TestRuleAllows(t *testing.T) {
	rule := Rule{Allow: []string{"a.>", "b.*.c", "x"}, Deny: []string{"a.secret.>", "b.no.c"}}
	for subject, want := range map[string]bool{
		"a.b": true, "a.b.c": true, "a": false, "a.>": true, "a.*": true, "a.secret": true, "a.secret.x": false, "a.secret.>": false, "a.secret.*": false,
		"b.x.c": true, "b.*.c": true, "b.no.c": false, "b.x": false, "b.x.c.d": false, "b.>": false, "x": true, "*": false, ">": false, "y": false, "x.y": false,
	} {
		if got := rule.Allows(subject); got != want {
			t.Errorf("%q: %v", subject, got)
		}
	}
	if (Rule{}).Allows("a") || !(Rule{Allow: []string{">"}}).Allows(">") {
		t.Error("nothing allows, or everything does not")
	}
	all := Rule{Allow: []string{">"}}
	if all.Allows(Private+"a") || all.Allows(Private+">") || !(Rule{Allow: []string{">", Private + "a.>"}}).Allows(Private+"a.b") {
		t.Error("private subjects are to be named")
	}
}
