package console

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/await"
)

// A nodeSpec is a node that runs in a process of its own.
type nodeSpec struct {
	Name, Dir, Advertise, Cluster, NATS, Console string
	// Watch has the process look at its own console, and print each link as it changes.
	Watch bool
}

func (s nodeSpec) options() fleetbus.Options {
	return fleetbus.Options{
		Mode: fleetbus.Mesh, Name: s.Name, Dir: s.Dir, Advertise: s.Advertise, Cluster: fleetbus.Cluster{Addr: s.Cluster}, Grace: 100 * time.Millisecond,
		Store:     fleetbus.Store{MaxFile: 1 << 30, MaxMemory: 256 << 20, Reserve: 1 << 20},
		Limits:    fleetbus.Limits{HandshakeTimeout: 15 * time.Second},
		Listeners: []fleetbus.Listener{{Name: "nats", Addr: s.NATS, Protocol: fleetbus.NATS()}, {Name: "console", Addr: s.Console, Protocol: &Protocol{}}},
	}
}

// nodeVariable is the environment's variable that makes a node of this program.
const nodeVariable = "FLEETBUS_TEST_NODE"

// TestMain runs a node in place of the tests, if a test has started it for that.
func TestMain(m *testing.M) {
	text := os.Getenv(nodeVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	if err := runNode(text); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

// runNode runs a node until its input ends. It prints a login link when it is ready, and
// one more for each line that it is given.
func runNode(text string) error {
	var spec nodeSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	srv, err := fleetbus.New(spec.options())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	asked := make(chan struct{})
	go func() {
		defer cancel()
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			select {
			case asked <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-srv.Ready():
	}
	link, err := srv.LoginLink("FLEET/admin")
	if err != nil {
		return err
	}
	if spec.Watch {
		go watchLinks(ctx, link.URL)
	} else {
		fmt.Println("ready", link.URL)
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-asked:
			link, err := srv.LoginLink("FLEET/admin")
			if err != nil {
				return err
			}
			fmt.Println("login", link.URL)
		}
	}
}

// watchLinks prints what a console says of links: "link A|B STATE WHY".
func watchLinks(ctx context.Context, link string) {
	lines, err := follow(ctx, link, "fleet")
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	fmt.Println("ready -")
	before := map[string]string{}
	for lines.Scan() {
		for key, l := range linksOf(lines.Text()) {
			if text := fmt.Sprintf("link %s|%s %s %s", l.A, l.B, l.State, l.Why); before[key] != text {
				before[key] = text
				fmt.Println(text)
			}
		}
	}
}

// linksOf are the links that a line of a stream has.
func linksOf(line string) map[string]linkRow {
	all := map[string]linkRow{}
	data, ok := strings.CutPrefix(line, "data: ")
	var d delta
	if !ok || json.Unmarshal([]byte(data), &d) != nil {
		return all
	}
	for key, row := range d.Set {
		var l linkRow
		if strings.HasPrefix(key, "link:") && json.Unmarshal(row, &l) == nil {
			all[key] = l
		}
	}
	return all
}

// follow logs in by a link, and reads a stream of events.
func follow(ctx context.Context, link, feeds string) (*bufio.Scanner, error) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}} //nolint:gosec // the test is its peer
	base, secret, _ := strings.Cut(link, "/#login=")
	cookie, err := logInBy(ctx, client, base, secret)
	if err != nil {
		return nil, err
	}
	return stream(ctx, client, base, cookie, feeds)
}

func logInBy(ctx context.Context, client *http.Client, base, secret string) (*http.Cookie, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/api/login", strings.NewReader(`{"link":"`+secret+`"}`))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK || len(answer.Cookies()) == 0 {
		return nil, fmt.Errorf("logging in: %s", answer.Status)
	}
	return answer.Cookies()[0], nil
}

func stream(ctx context.Context, client *http.Client, base string, cookie *http.Cookie, feeds string) (*bufio.Scanner, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/api/live?feeds="+feeds, nil)
	if err != nil {
		return nil, err
	}
	r.AddCookie(cookie)
	answer, err := client.Do(r) //nolint:bodyclose // it ends with the context
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("looking: %s", answer.Status)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 8<<20)
	return lines, nil
}

// A process is a node that runs by itself.
type process struct {
	*exec.Cmd
	in   io.Writer
	link string
	said chan said
}

// said is a line that a process printed.
type said struct {
	text string
	at   time.Time
}

// startNode starts the node in a process; before is what the program is run by.
func startNode(t testing.TB, spec nodeSpec, before ...string) *process {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	args := append(slices.Clone(before), os.Args[0])
	p := &process{Cmd: exec.Command(args[0], args[1:]...), said: make(chan said, 10_000)}
	p.Env = append(os.Environ(), nodeVariable+"="+string(text))
	p.Stderr = os.Stderr
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if os.Getenv("FLEETBUS_TEST_SAY") != "" {
				fmt.Println(time.Now().Format("05.000"), spec.Name, lines.Text())
			}
			p.said <- said{lines.Text(), time.Now()}
		}
		close(p.said)
	}()
	t.Cleanup(func() {
		_ = in.Close()
		for range p.said {
		}
		<-read
		_ = p.Wait()
	})
	return p
}

// waitReady waits until the node is.
func (p *process) waitReady(t testing.TB) {
	t.Helper()
	line := p.until(t, "ready ", 2*time.Minute)
	_, p.link, _ = strings.Cut(line.text, " ")
}

// login is a link by which an administrator logs in.
func (p *process) login(t testing.TB) string {
	t.Helper()
	if _, err := io.WriteString(p.in, "login\n"); err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(p.until(t, "login ", time.Minute).text, "login ")
}

// until returns the next line that begins so.
func (p *process) until(t testing.TB, prefix string, patience time.Duration) said {
	t.Helper()
	late := time.After(patience)
	var last string
	for {
		select {
		case line, ok := <-p.said:
			if !ok || strings.HasPrefix(line.text, "failed") {
				t.Fatalf("%s: it ended while %q was waited for: %s", p, prefix, line.text)
			}
			if strings.HasPrefix(line.text, prefix) {
				return line
			}
			last = line.text
		case <-late:
			t.Fatalf("it did not say %q in %v; the last was %q", prefix, patience, last)
		}
	}
}

// makeFleet makes the homes of nodes.
func makeFleet(t testing.TB, specs []nodeSpec) {
	t.Helper()
	all := make([]fleetbus.Options, len(specs))
	for i := range specs {
		specs[i].Dir = filepath.Join(t.TempDir(), "data")
		all[i] = specs[i].options()
	}
	if _, err := fleetbus.InitCluster(all); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	if !await.True(time.Minute, ask) {
		t.Fatalf("%s: not yet", what)
	}
}
