package conf

import (
	"fmt"
	"strings"
	"testing"
)

// show is what was read, in one line.
func show(all []Entry, problems []Problem) string {
	var parts []string
	for _, e := range all {
		parts = append(parts, strings.TrimPrefix(e.Section+"/", "/")+fmt.Sprintf("%s=%s@%d", e.Key, strings.ReplaceAll(e.Value, "\n", "|"), e.Line))
	}
	for _, p := range problems {
		parts = append(parts, fmt.Sprintf("!%d", p.Line))
	}
	return strings.Join(parts, " ")
}

func TestReaders(t *testing.T) {
	for _, c := range []struct {
		name string
		read func([]byte) ([]Entry, []Problem)
		in   string
		want string
	}{
		{"rabbit", Rabbit, "\ufeff# c\r\nlisteners.tcp.1 = 5672 # why\r\n\r\n a.b='x # y'\r\nc = \"d e\"\nf=g=h", "listeners.tcp.1=5672@2 a.b=x # y@4 c=d e@5 f=g=h@6"},
		{"rabbit comments", Rabbit, "#listeners.tcp = none\n  # ssl_options.verify = verify_peer\n", ""},
		{"rabbit problems", Rabbit, "a\nb =\n= c\nd e = f\ng = 'h\ni = 1 ", "g=h@5 i=1@6 !1 !2 !3 !4 !5"},
		{"rabbit three quotes", Rabbit, "a = '''one\ntwo''' \nb = 2", "a=one|two@1 b=2@3"},
		{"rabbit zero", Rabbit, "a = 1\n\x00", "!2"},
		{"qpid", Qpid, "# c\nauth=yes\r\n require-encryption = no # c\nssl-port\n--port=0\nx y\n", "auth=yes@2 require-encryption=no@3 ssl-port=yes@4 port=0@5 !6"},
		{"sasl", SASL, "pwcheck_method: auxprop\n#mech_list: PLAIN\nmech_list: EXTERNAL\nbroken\n", "pwcheck_method=auxprop@1 mech_list=EXTERNAL@3 !4"},
		{"oslo", Oslo, "[DEFAULT]\ntransport_url = rabbit://a:b@c:5671,\n  a:b@d:5671/\n# x = y\n#z=1\nk: v # not a comment\n[s]\nq = \"x\"\n\n  lost\nbad\n[open\n", "DEFAULT/transport_url=rabbit://a:b@c:5671,|a:b@d:5671/@2 DEFAULT/k=v # not a comment@6 s/q=x@8 !10 !11 !12"},
		{"oslo before", Oslo, "a = 1\n[x]\na = 2\na = 3", "a=1@1 x/a=2@3 x/a=3@4 !1"},
		{"unit", Unit, "[Service]\n; c\nExecStart=a \\\n # c\n  b\nNoNewPrivileges = yes\nwhat\n", "Service/ExecStart=a b@3 Service/NoNewPrivileges=yes@6 !7"},
		{"variables", Variables, "# c\nexport A=\"x \\\ny\"\nB=1 # c\nif [ x = y ]; then\nC='q r'\nD=\"open\n", "A=x  y@2 B=1@4 C=q r@6 D=open@7 !7"},
	} {
		if got := show(c.read([]byte(c.in))); got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
	}
	if _, problems := Rabbit(make([]byte, MaxSize+1)); len(problems) != 1 {
		t.Errorf("too large: %v", problems)
	}
	if _, problems := Rabbit([]byte(strings.Repeat("\n", MaxLines))); len(problems) != 1 {
		t.Errorf("too many lines: %v", problems)
	}
}

func TestReadACL(t *testing.T) {
	a, problems := ReadACL([]byte("# c\ngroup computes c1@QPID c2@QPID \\\n  c3@QPID\ngroup all-of-them computes ctl@QPID\n\nacl allow-log all-of-them publish exchange name=nova routingkey=x\nacl allow c1 consume\nquota connections 10 all\nquota queues x all\nacl permit a b\nwhat\nacl deny all \\\nacl deny-log all all\n"))
	if got := fmt.Sprint(a.Members("all-of-them")); got != "[c1@QPID c2@QPID c3@QPID ctl@QPID]" {
		t.Errorf("members: %s", got)
	}
	if got := fmt.Sprintf("%+v", a.Rules); got != "[{Permission:allow-log Who:all-of-them Action:publish Object:exchange Properties:[name=nova routingkey=x] Line:6} {Permission:allow Who:c1 Action:consume Object: Properties:[] Line:7} {Permission:deny-log Who:all Action:all Object: Properties:[] Line:13}]" {
		t.Errorf("rules: %s", got)
	}
	if got := fmt.Sprintf("%+v %v", a.Quotas, problems); !strings.HasPrefix(got, "[{Of:connections Most:10 Who:[all] Line:8}] [line 9: ") || len(problems) != 5 {
		t.Errorf("quotas: %s", got)
	}
	loop, _ := ReadACL([]byte("group a b\ngroup b a\n"))
	if n := len(loop.Members("a")); n > 1 {
		t.Errorf("groups that have each other have %d members", n)
	}
}

func FuzzReaders(f *testing.F) {
	f.Add([]byte("listeners.ssl.1 = '10.0.0.1:5671' # c\n"))
	f.Add([]byte("[DEFAULT]\ntransport_url = rabbit://a:b@c/\n  more\n"))
	f.Add([]byte("group a b \\\n c\nacl deny all all\nquota connections 1 a\n"))
	f.Add([]byte("A=\"x\\\ny'"))
	f.Add([]byte("+=0"))
	f.Fuzz(func(t *testing.T, data []byte) {
		most := strings.Count(string(data), "\n") + 1
		for _, read := range []func([]byte) ([]Entry, []Problem){Rabbit, Qpid, SASL, Oslo, Unit, Variables} {
			all, problems := read(data)
			for _, e := range all {
				if e.Line < 1 || e.Line > most || e.Key == "" {
					t.Fatalf("%+v", e)
				}
			}
			for _, p := range problems {
				if p.Line < 1 || p.Line > most {
					t.Fatalf("%+v", p)
				}
			}
		}
		a, _ := ReadACL(data)
		for name := range a.Groups {
			_ = a.Members(name)
		}
	})
}
