package mapping

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSubject(t *testing.T) {
	for topic, subject := range map[string]string{
		"a/b": "a.b", "/a": "/.a", "a/": "a./", "a//b": "a./.b", "//a": "/./.a", "a//": "a././", "/": "/./", "//": "/././",
		"a.b": "a//b", ".a": "//a", "a.": "a//", "a/.": "a.//", "a/./b": "a.//.b", "a./b": "a//.b", "..": "////", "$a/b": "$a.b",
		"a b": "a/20b", "*": "/2A", "a/>": "a./3E", "a\tb/c": "a/09b.c", "é/ü": "é.ü",
	} {
		got := Subject(topic)
		if got != subject {
			t.Errorf("%q has subject %q, want %q", topic, got, subject)
		}
		if back, ok := Topic(got); !ok || back != topic {
			t.Errorf("%q came back from %q as %q", topic, got, back)
		}
	}
	for _, subject := range []string{"foo/bar", "/foo", "foo/", "a./2a", "a./41", "a./2E", "a./2"} {
		if topic, ok := Topic(subject); ok {
			t.Errorf("%q is taken for topic %q", subject, topic)
		}
	}
}

func TestTopicsAndSubjects(t *testing.T) {
	level := rapid.StringOfN(rapid.SampledFrom([]rune("ab.*> \t$%é")), 0, 4, -1)
	rapid.Check(t, func(t *rapid.T) {
		topic := strings.Join(rapid.SliceOfN(level, 1, 5).Draw(t, "levels"), "/")
		if topic == "" {
			return
		}
		subject := Subject(topic)
		if strings.ContainsAny(subject, " \t*>") || strings.Contains("."+subject+".", "..") {
			t.Fatalf("%q has subject %q", topic, subject)
		}
		if back, ok := Topic(subject); !ok || back != topic {
			t.Fatalf("%q came back from %q as %q", topic, subject, back)
		}
	})
}

func FuzzTopic(f *testing.F) {
	f.Add("a./.b")
	f.Add("a/20b")
	f.Fuzz(func(t *testing.T, subject string) {
		if subject == "/" {
			return // the subject of an empty key of AMQP; no topic of MQTT is empty
		}
		if topic, ok := Topic(subject); ok && subject != "" && !strings.Contains("."+subject+".", "..") && isPlain(strings.ReplaceAll(subject, ".", "")) {
			if again := Subject(topic); again != subject {
				t.Errorf("%q became topic %q, which is %q", subject, topic, again)
			}
		}
	})
}

func TestFilter(t *testing.T) {
	for pattern, want := range map[string]string{"a.b": "a/b", "a.*": "a/+", "a.>": "a/#", ">": "#", "*.b": "+/b", "a./.b": "a//b", "a//b.*": "a.b/+", "a+": "", "a/b": ""} {
		if got, ok := Filter(pattern); got != want || ok != (want != "") {
			t.Errorf("pattern %q has filter %q, %v", pattern, got, ok)
		}
	}
}
