//go:build !race

package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// A program is a node in a process of the program that is shipped, and its command line.
type program struct {
	t             *testing.T
	bin, dir, log string
	addrs         map[string]string
	serve         *exec.Cmd
	// said is all that commands said, and what was in them, by what was asked.
	said map[string]string
}

// Addr, URL and TLS are those of a fleetbustest.Server.
func (p *program) Addr(name string) net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", p.addrs[name])
	if err != nil {
		p.t.Fatal(err)
	}
	return addr
}

func (p *program) URL() string { return "tls://" + p.addrs["nats"] }

func (p *program) TLS() *tls.Config {
	pem, err := os.ReadFile(filepath.Join(p.dir, "data", "admin", "ca.pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots}
}

// run runs a command, and keeps what it says.
func (p *program) run(args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.bin, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "FLEETBUS_DATA_DIR="+filepath.Join(p.dir, "data"), "HOME="+p.dir)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err := cmd.Run()
	name := strings.Join(args, " ")
	p.said[name] = out.String() + problem.String()
	if err != nil && args[0] != "doctor" && args[0] != "status" && args[0] != "check" {
		p.t.Errorf("%s: %v: %s", name, err, &problem)
	}
	return out.String()
}

func (p *program) file(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *program) read(name string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func startProgram(t *testing.T) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir(), addrs: map[string]string{}, said: map[string]string{}}
	p.bin, p.log = filepath.Join(p.dir, "fleetbus"), filepath.Join(p.dir, "log")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", p.bin, "../../cmd/fleetbus").CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, out)
	}
	flags := []string{"--name", "n1", "--advertise", "127.0.0.1", "--cluster-addr", loopback.Addr(t)}
	for _, l := range []string{"nats", "mqtt", "amqp", "console", "sse", "metrics"} {
		p.addrs[l] = loopback.Addr(t)
		flags = append(flags, "--listeners-"+l+"-addr", p.addrs[l])
	}
	p.run(append([]string{"init", "--data-dir", "data"}, flags...)...)
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.serve = exec.Command(p.bin, "serve", "--data-dir", "data", "--log-level", "debug", "--log-format", "json", "--amqp-passwords")
	p.serve.Dir, p.serve.Stdout, p.serve.Stderr = p.dir, log, log
	if err := p.serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.serve.Process.Signal(os.Interrupt)
		_ = p.serve.Wait()
	})
	await.Nil(t, "the node is ready", func() error {
		if text := p.read("log"); !strings.Contains(text, "node is ready") {
			return fmt.Errorf("%s", text[max(0, len(text)-500):])
		}
		return nil
	})
	return p
}

// TestSecrets plants passwords, tokens, seeds and private keys, has them shown at every
// listener, rightly and wrongly, and looks for them in all that the program then has written,
// logged, printed, counted and exported, and in what other users of the machine see.
func TestSecrets(t *testing.T) {
	p := startProgram(t)
	p.run("account", "add", "acme")
	planted := map[string]string{"password": "canary-password-5k2j", "wrong password": "canary-wrong-8h3d", "passphrase": "canary-passphrase-long-9x"}
	p.file("password", planted["password"]+"\n")
	p.file("passphrase", planted["passphrase"]+"\n")
	p.run("user", "add", "acme/alice", "--password-file", "password", "--bearer-out", "alice.bearer", "--out", "alice.creds", "--cert", "alice")
	p.run("user", "add", "FLEET/ops", "--password-file", "password")
	planted["bearer token"] = p.read("alice.bearer")
	planted["seed"] = regexp.MustCompile(`SU[A-Z0-9]{50,}`).FindString(p.read("alice.creds"))
	for name, file := range map[string]string{"private key of a user": "alice.key"} {
		lines := strings.Split(p.read(file), "\n")
		planted[name] = lines[1]
	}
	// What is shown once is not looked for where it is shown.
	token := p.run("token", "add", "user", "--for", "acme/bob", "-o", "json")
	planted["enrollment token"] = regexp.MustCompile(`fb1\.[0-9a-z.]+`).FindString(token)
	planted["enrollment token"] = planted["enrollment token"][strings.LastIndexByte(planted["enrollment token"], '.')+1:]
	link := p.run("console", "login", "--user", "acme/alice")
	planted["login link"] = regexp.MustCompile(`#login=\S+`).FindString(link)[len("#login="):]
	shownOnce := []string{"token add user --for acme/bob -o json", "console login --user acme/alice"}
	for name, secret := range planted {
		if len(secret) < 15 {
			t.Fatalf("there is no %s: %q", name, secret)
		}
	}
	whole := regexp.MustCompile(`fb1\.\S+?"`).FindString(token)
	whole = strings.TrimSuffix(whole, `"`)

	ctx := within(t, 2*time.Minute)
	cert, err := tls.LoadX509KeyPair(filepath.Join(p.dir, "alice.crt"), filepath.Join(p.dir, "alice.key"))
	if err != nil {
		t.Fatal(err)
	}
	in, out := 0, 0
	for _, w := range ways() {
		for _, with := range []shown{
			{user: "acme/alice", password: planted["password"]}, {user: "acme/alice", bearer: planted["bearer token"]}, {bearer: planted["bearer token"]}, {cert: &cert}, {creds: filepath.Join(p.dir, "alice.creds")},
			{user: "acme/alice", password: planted["wrong password"]}, {user: "acme/nobody", password: planted["password"]}, {user: "nobody", password: planted["password"]},
			{user: "acme/alice", password: planted["password"] + planted["seed"]}, {user: "acme/alice", bearer: planted["bearer token"] + "x"},
			{token: whole}, {token: whole + "x"}, {user: "acme/bob", password: whole}, {user: "acme/alice", password: planted["login link"] + "x"}, {link: planted["login link"]}, {link: planted["login link"]},
		} {
			if with.creds != "" && w.name != "nats" {
				continue
			}
			if err := w.enter(ctx, p, with); err == nil {
				in++
			} else {
				out++
				p.said["error of "+w.name] += err.Error() + "\n"
			}
		}
	}
	if in < 12 || out < 50 {
		t.Errorf("%d came in, %d did not, and the test proves little", in, out)
	}
	// Everything that shows something.
	for _, args := range [][]string{
		{"status"}, {"status", "-o", "json"}, {"doctor"}, {"doctor", "-o", "json"}, {"config", "show", "--data-dir", "data"}, {"config", "show", "-o", "json", "--data-dir", "data"}, {"user", "ls", "-o", "json"}, {"user", "info", "acme/alice", "-o", "json"},
		{"token", "ls", "-o", "json"}, {"role", "ls", "-o", "json"}, {"account", "ls", "-o", "json"}, {"node", "ls", "-o", "json"}, {"key", "ls", "-o", "json"}, {"audit", "ls", "-o", "json"}, {"audit", "export", "audit.out"}, {"audit", "verify", "audit.out"},
		{"backup", "fleet.backup", "--passphrase-file", "passphrase"}, {"backup", "verify", "fleet.backup", "--passphrase-file", "passphrase"}, {"version", "-o", "json"}, {"check", "fleet"},
	} {
		p.run(args...)
	}
	for _, l := range []string{"metrics", "console", "sse"} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.addrs[l]+map[string]string{"metrics": "/metrics", "console": "/", "sse": "/changes/x"}[l], nil)
		if err != nil {
			t.Fatal(err)
		}
		if l == "metrics" {
			r.SetBasicAuth("FLEET/ops", planted["password"])
		}
		transport := &http.Transport{TLSClientConfig: p.TLS()}
		answer, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		transport.CloseIdleConnections()
		p.said["answer of "+l] = fmt.Sprint(answer.StatusCode, answer.Header, string(body))
	}
	if !strings.Contains(p.said["answer of metrics"], "fleetbus_") {
		t.Errorf("there are no metrics: %.200s", p.said["answer of metrics"])
	}
	for _, name := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.serve.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		p.said["/proc/PID/"+name] = string(data)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.serve.Process.Pid, p.serve.Process.Pid))
	for _, pid := range strings.Fields(string(children)) {
		data, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		p.said["a child's command line"] += string(data)
	}
	p.said["the log"] = p.read("log")
	// Secrets of the node itself, which are in files of its own and nowhere else.
	var authority map[string]json.RawMessage
	if err := json.Unmarshal([]byte(p.read("data/authority.json")), &authority); err != nil {
		t.Fatal(err)
	}
	own := map[string]string{"the master secret": strings.Trim(string(authority["master"]), `"`), "the operator's signing seed": strings.Trim(string(authority["signing_seed"]), `"`)}
	var issuers struct{ Key string }
	if err := json.Unmarshal(authority["clients"], &issuers); err != nil || len(issuers.Key) < 40 {
		t.Fatalf("the authority has no key: %v", err)
	}
	own["the key of the clients' authority"] = issuers.Key
	own["an administrator's seed"] = regexp.MustCompile(`SU[A-Z0-9]{50,}`).FindString(p.read("data/admin/admin.creds"))

	looked := 0
	for where, text := range p.said {
		for name, secret := range planted {
			if slices.Contains(shownOnce, where) && (name == "login link" || name == "enrollment token") {
				continue
			}
			find(t, where, name, secret, []byte(text))
		}
		for name, secret := range own {
			find(t, where, name, secret, []byte(text))
		}
		looked += len(text)
	}
	// What is where: a file of the node's may have a secret of the node's.
	mine := map[string][]string{"authority.json": {"the master secret", "the operator's signing seed", "the key of the clients' authority"}, "admin/admin.creds": {"an administrator's seed"}}
	files := 0
	err = filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it is gone
		}
		rel, _ := filepath.Rel(p.dir, path)
		inside, isData := strings.CutPrefix(rel, "data/")
		if !isData && rel != "fleet.backup" && rel != "audit.out" {
			return nil // what this test keeps
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		files++
		looked += len(data)
		for name, secret := range planted {
			find(t, rel, name, secret, data)
		}
		for name, secret := range own {
			if !slices.Contains(mine[inside], name) {
				find(t, rel, name, secret, data)
			}
		}
		if info, err := d.Info(); err == nil && slices.ContainsFunc(slices.Concat(slices.Collect(values(own)), []string{"$argon2id$"}), func(s string) bool { return bytes.Contains(data, []byte(s)) }) && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has secrets, and mode %v", rel, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The search finds what there is.
	if !strings.Contains(p.said["token add user --for acme/bob -o json"], planted["enrollment token"]) {
		t.Error("the search finds nothing")
	}
	t.Logf("figure: secrets | everywhere | %d secrets shown %d times at %d listeners and looked for, in five spellings, in %d texts and %d files, %d KiB: none found", len(planted)+len(own), in+out, len(ways()), len(p.said), files, looked>>10)
}

func values(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// find looks for a secret as it is, and in the spellings that something may have put it in.
func find(t *testing.T, where, name, secret string, text []byte) {
	t.Helper()
	whole := []byte(secret)
	var reversed []byte
	if raw, err := base64.StdEncoding.DecodeString(secret); err == nil && len(raw) >= 16 {
		reversed = raw
	}
	for spelling, s := range map[string][]byte{
		"as it is": whole, "in base64": []byte(base64.RawStdEncoding.EncodeToString(whole)), "in base64 for URLs": []byte(base64.RawURLEncoding.EncodeToString(whole)), "in hexadecimal": []byte(hex.EncodeToString(whole)), "decoded": reversed,
	} {
		if len(s) < 12 {
			continue
		}
		if i := bytes.Index(text, s); i >= 0 {
			t.Errorf("%s has the %s, %s: %q", where, name, spelling, text[max(0, i-60):min(len(text), i+60)])
		}
	}
}
