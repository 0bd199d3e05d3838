package attack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/strangers"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// stay asks once for what anybody may ask, and leaves the connection as it is.
func stay(l Listener, conn net.Conn) error {
	secure, err := secured(l, conn)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(secure, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = secure.Read(make([]byte, 1))
	return err
}

// crowdAt has so many connect to a listener, who do that and stay, and returns those that were
// let so far, and what ends them.
func crowdAt(addr string, l Listener, many int, do func(Listener, net.Conn) error) (conns []net.Conn, end func()) {
	var mu sync.Mutex
	var all sync.WaitGroup
	places := make(chan struct{}, 50)
	for range many {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if err := do(l, conn); err != nil {
				conn.Close()
				return
			}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
		})
	}
	all.Wait()
	return conns, func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
}

// standing counts those that the node has not ended.
func standing(conns []net.Conn) int {
	var all sync.WaitGroup
	var n atomic.Int32
	for _, conn := range conns {
		all.Go(func() {
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
				n.Add(1)
			}
		})
	}
	all.Wait()
	return int(n.Load())
}

// visit logs a browser in to the console, and says how long it took.
func visit(ctx context.Context, s node, client *http.Client, user, password string) (time.Duration, error) {
	body, err := json.Marshal(map[string]string{"user": user, "password": password})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	base := "https://" + s.Addr("console").String()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/api/login", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return 0, fmt.Errorf("the login is answered %d: %s", answer.StatusCode, text)
	}
	return time.Since(began), nil
}

// TestAttackWebCrowd has thousands connect to each listener of HTTPS, who ask for something and
// stay: so many stay as may, the operator hears of it once, who was logged in before does not
// notice, and who comes meanwhile, from the same address, logs in.
func TestAttackWebCrowd(t *testing.T) {
	const many = strangers.Most * 3 / 2
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withEverything, func(o *fleetbus.Options) { o.Limits.HandshakeRate = 5000 })
	ctx := within(t, 4*time.Minute)
	user := "acme/alice"
	password := s.Password(admin.UserRequest{Name: user})
	watcher := identity.FleetName + "/prometheus"
	watch := s.Password(admin.UserRequest{Name: watcher, Role: identity.RoleMetrics})
	browser := func() *http.Client {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: s.TLS()}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Jar: jar}
	}
	// A stream of changes that began before.
	before := browser()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.Addr("sse").String()+"/changes/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(user, password)
	stream, err := before.Do(r)
	if err != nil || stream.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", stream, err)
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	lines.Scan()
	if _, err := visit(ctx, s, before, user, password); err != nil {
		t.Fatal(err)
	}
	for _, l := range Listeners() {
		if l.Name != "console" && l.Name != "sse" && l.Name != "metrics" {
			continue
		}
		conns, end := crowdAt(s.Addr(l.Name).String(), l, many, stay)
		defer end()
		if len(conns) < many*9/10 {
			t.Errorf("%s: only %d of %d came in, and the test proves little", l.Name, len(conns), many)
		}
		// The crowd goes on to come while somebody logs in.
		coming, stop := context.WithCancel(ctx)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for coming.Err() == nil {
					_, end := crowdAt(s.Addr(l.Name).String(), l, 20, stay)
					end()
				}
			})
		}
		began := time.Now()
		enter := map[string]func() error{
			"console": func() error { _, err := visit(ctx, s, browser(), user, password); return err },
			"sse":     func() error { return enterWeb("sse", "/changes/x")(ctx, s, shown{user: user, password: password}) },
			"metrics": func() error { return enterWeb("metrics", "/metrics")(ctx, s, shown{user: watcher, password: watch}) },
		}[l.Name]
		tries := 0
		var err error
		await.True(time.Minute, func() bool { // who is so slow that many have come meanwhile has to come again
			tries++
			err = enter()
			return err == nil
		})
		took := time.Since(began)
		stop()
		all.Wait()
		if err != nil {
			t.Errorf("%s: who has a password is not let in: %v", l.Name, err)
		}
		stayed := judgeCrowd(t, l, conns, j)
		t.Logf("figure: %s | a crowd that stays | %d came and %d stand there; who has a password was in after %.1f s, at try %d", l.Name, len(conns), stayed, took.Seconds(), tries)
	}
	// Who was there before is still there.
	js, err := json.Marshal(map[string]string{"key": "customers.42", "kind": "update"})
	if err != nil {
		t.Fatal(err)
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.Addr("sse").String()+"/changes/x", bytes.NewReader(js))
	if err != nil {
		t.Fatal(err)
	}
	post.SetBasicAuth(user, password)
	answer, err := browser().Do(post)
	if err != nil || answer.StatusCode != http.StatusNoContent {
		t.Fatalf("%v %v", answer, err)
	}
	answer.Body.Close()
	for lines.Scan() && !strings.Contains(lines.Text(), "customers.42") {
	}
	if err := lines.Err(); err != nil || !strings.Contains(lines.Text(), "customers.42") {
		t.Errorf("the stream that was there before ended: %q %v", lines.Text(), err)
	}
	me, err := before.Get("https://" + s.Addr("console").String() + "/api/me")
	if err != nil || me.StatusCode != http.StatusOK {
		t.Errorf("who was logged in before is not any more: %v %v", me, err)
	}
	if err == nil {
		me.Body.Close()
	}
}

// judgeCrowd has no more strangers stand at a listener than may, and the operator have been told
// of those who went. It returns how many stand there.
func judgeCrowd(t *testing.T, l Listener, conns []net.Conn, j *journal) (stayed int) {
	t.Helper()
	if stayed = standing(conns); stayed > strangers.Most {
		t.Errorf("%s: %d of %d strangers stand there, and may be %d", l.Name, stayed, len(conns), strangers.Most)
	}
	told := 0
	for line := range strings.Lines(j.content()) {
		if strings.Contains(line, "connections of strangers ended") && strings.Contains(line, "listener="+l.Name+" ") {
			told++
		}
	}
	if told < 1 || told > 3 { // one a minute
		t.Errorf("%s: the operator was told %d times", l.Name, told)
	}
	return stayed
}

// TestAttackCrowd has hundreds connect to the listeners of MQTT and AMQP who do not log in: so
// many stand there as may, the operator hears of it once, who was there before does not notice,
// and who comes meanwhile, from the same address, logs in at once.
func TestAttackCrowd(t *testing.T) {
	const many = strangers.Most * 3 / 2
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withEverything)
	ctx := within(t, 4*time.Minute)
	with := shown{user: "acme/alice", password: s.Password(admin.UserRequest{Name: "acme/alice"})}
	cert := s.Certificate(admin.UserRequest{Name: "acme/bob"})
	before, _, err := dialMQTT(s, with, "before")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	queues, err := dialAMQP(s, with)
	if err != nil {
		t.Fatal(err)
	}
	defer queues.Close()
	for _, l := range Listeners() {
		enter, first := enterMQTT, ""
		switch l.Name {
		default:
			continue
		case "mqtt":
		case "amqp":
			enter, first = enterAMQP, frame.ProtocolHeader
		}
		wait := said(func(Listener) []byte { return []byte(first) })
		out, err := tls.Dial("tcp", s.Addr(l.Name).String(), &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			_, err = io.WriteString(out, first)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		conns, end := crowdAt(s.Addr(l.Name).String(), l, many, wait)
		defer end()
		_ = out.SetDeadline(time.Now().Add(time.Minute))
		text, err := io.ReadAll(out)
		if err != nil || l.Name == "amqp" && !strings.Contains(string(text), "CONNECTION_FORCED - "+strangers.ErrTooMany.Error()+": connect again") {
			t.Errorf("%s: the first is told %q: %v", l.Name, text, err)
		}
		coming, stop := context.WithCancel(ctx)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for coming.Err() == nil {
					_, end := crowdAt(s.Addr(l.Name).String(), l, 20, wait)
					end()
				}
			})
		}
		for how, with := range map[string]shown{"a password": with, "a certificate": {cert: &cert}} {
			began := time.Now()
			var err error
			tries := 0
			await.True(time.Minute, func() bool { // who is so slow that many have come meanwhile has to come again
				tries++
				err = enter(ctx, s, with)
				return err == nil
			})
			if err != nil {
				t.Errorf("%s: who has %s is not let in: %v", l.Name, how, err)
			}
			t.Logf("figure: %s | a crowd that stays | who has %s was in after %.2f s, at try %d", l.Name, how, time.Since(began).Seconds(), tries)
		}
		stop()
		all.Wait()
		judgeCrowd(t, l, conns, j)
	}
	if _, err := queues.Channel(); err != nil {
		t.Errorf("who was there before, by AMQP: %v", err)
	}
	_ = before.SetDeadline(time.Now().Add(time.Minute))
	ping, err := (&packet.Pingreq{}).Append(nil, packet.V5, 0)
	if err == nil {
		_, err = before.Write(ping)
	}
	if n, err2 := io.ReadFull(before, make([]byte, 2)); err != nil || err2 != nil {
		t.Errorf("who was there before, by MQTT: %d %v %v", n, err, err2)
	}
}

// TestAttackGuessers has hundreds guess a password at once, by MQTT and by AMQP: those who are too
// many to wait are told to come again, and who knows it is let in.
func TestAttackGuessers(t *testing.T) {
	s := fleetbustest.Start(t, withEverything)
	ctx := within(t, 4*time.Minute)
	with := shown{user: "acme/alice", password: s.Password(admin.UserRequest{Name: "acme/alice"})}
	for _, w := range []struct {
		way
		told string
	}{{way{"mqtt", enterMQTT}, packet.ServerBusy.String()}, {way{"amqp", enterAMQP}, "too many log in: connect again"}} {
		var all sync.WaitGroup
		var busy atomic.Int32
		for range strangers.Most / 2 {
			all.Go(func() {
				err := w.enter(ctx, s, shown{user: "acme/alice", password: "guess"})
				if err == nil {
					t.Errorf("%s: a guesser got in", w.name)
				} else if strings.Contains(err.Error(), w.told) {
					busy.Add(1)
				}
			})
		}
		if !await.True(time.Minute, func() bool { return busy.Load() > 0 }) {
			t.Errorf("%s: nobody is told to come again", w.name)
		}
		var err error
		if !await.True(time.Minute, func() bool { err = w.enter(ctx, s, with); return err == nil }) {
			t.Errorf("%s: who knows the password: %v", w.name, err)
		}
		all.Wait()
		t.Logf("figure: %s | %d guess at once | %d are told to come again", w.name, strangers.Most/2, busy.Load())
	}
}

// TestAttackCrowdIsToldWhy reads what a stranger is told whose connection ends.
func TestAttackCrowdIsToldWhy(t *testing.T) {
	s := fleetbustest.Start(t, withEverything, func(o *fleetbus.Options) { o.Limits.HandshakeRate = 5000 })
	l := Listener{Name: "metrics"}
	conn, err := tls.Dial("tcp", s.Addr(l.Name).String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", answer, err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_, end := crowdAt(s.Addr(l.Name).String(), l, strangers.Most+50, stay)
	defer end()
	last, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(last.Body)
	if last.StatusCode != http.StatusRequestTimeout || !last.Close || !bytes.Contains(text, []byte("too many are connected here")) {
		t.Errorf("it was told %d %q: %v", last.StatusCode, text, err)
	}
}
