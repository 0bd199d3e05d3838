package provision_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/provision"
)

// A line is what is between a machine and its listener: it records everything, and may
// alter it.
type line struct {
	net.Listener
	t      testing.TB
	server string
	// alter is given each piece that passes, and what there is to be played again, and
	// returns what goes on in its place.
	alter func(piece []byte, toServer bool) []byte

	open sync.WaitGroup
	mu   sync.Mutex
	// pieces that passed, each way, of all connections.
	up, down [][]byte
}

func newLine(t testing.TB, server string, alter func([]byte, bool) []byte) *line {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{Listener: ln, t: t, server: server, alter: alter}
	l.open.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			l.open.Go(func() { l.pass(client) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		l.open.Wait()
	})
	return l
}

func (l *line) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", l.server)
	if err != nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	copyTo := func(to, from net.Conn, up bool) {
		defer to.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				piece := slices.Clone(buf[:n])
				l.mu.Lock()
				if up {
					l.up = append(l.up, piece)
				} else {
					l.down = append(l.down, piece)
				}
				l.mu.Unlock()
				if l.alter != nil {
					piece = l.alter(slices.Clone(piece), up)
				}
				if _, err := to.Write(piece); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	both.Go(func() { copyTo(server, client, true) })
	both.Go(func() { copyTo(client, server, false) })
	both.Wait()
}

// recorded is all that passed, each way.
func (l *line) recorded() (up, down []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Join(l.up, nil), bytes.Join(l.down, nil)
}

// users are those of an account, with their keys.
func (p *place) users(account string) map[string][]string {
	p.t.Helper()
	all, err := p.admin.Users(soon(p.t), account)
	if err != nil {
		p.t.Fatal(err)
	}
	users := map[string][]string{}
	for _, u := range all {
		users[u.Name] = nil
		for _, k := range u.Keys {
			users[u.Name] = append(users[u.Name], k.Public)
		}
	}
	return users
}

// public is the machine's nkey.
func public(k *provision.Keys) string { return strings.TrimPrefix(k.String(), "keys of ") }

// TestRecorded has somebody record everything that is said while a machine gets an
// identity: no secret is in it, and played again, to either side, it is worth nothing.
func TestRecorded(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	l := newLine(t, p.addr(), nil)
	text := d.token(t, "tills", "", 5)
	m := p.machine("till-recorded", text)
	m.Server = l.Addr().String()
	id, err := provision.Ask(soon(t), m)
	if err != nil {
		t.Fatal(err)
	}
	isMember(t, id, "acme/till-recorded")
	up, down := l.recorded()
	keys, err := m.Keys.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{"the token": text[strings.LastIndexByte(text, '.')+1:], "the name": "till-recorded", "the account": "acme"}
	for i, part := range bytes.Fields(id.Creds) {
		if len(part) > 20 && !bytes.HasPrefix(part, []byte("---")) {
			secrets[fmt.Sprintf("part %d of the creds file", i)] = string(part)
		}
	}
	for _, row := range bytes.Split(id.Key, []byte("\n")) {
		if len(row) > 20 && !bytes.HasPrefix(row, []byte("---")) {
			secrets["a row of the private key: "+string(row)] = string(row)
		}
	}
	for _, part := range strings.Split(string(keys), `"`) {
		if len(part) > 20 {
			secrets["a key"] = part
		}
	}
	if len(secrets) < 6 {
		t.Fatalf("there are only %d secrets to look for", len(secrets))
	}
	for what, secret := range secrets {
		if bytes.Contains(up, []byte(secret)) || bytes.Contains(down, []byte(secret)) {
			t.Errorf("%s was said in clear", what)
		}
	}
	if len(up) < 3000 || len(down) < 3000 {
		t.Fatalf("only %d and %d bytes were recorded", len(up), len(down))
	}

	// The machine's words again, to the fleet: by chance to another instance of itself.
	before := p.users("acme")
	conn, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(up); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	var heard []byte
	buf := make([]byte, 64<<10)
	for !bytes.Contains(heard, []byte(`"sig"`)) || bytes.Count(heard, []byte(`"body"`)) < 2 {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("the words of a machine are not answered twice: %v\n%s", err, heard)
		}
		heard = append(heard, buf[:n]...)
	}
	for what, secret := range secrets {
		if bytes.Contains(heard, []byte(secret)) {
			t.Errorf("%s was said in clear to somebody else", what)
		}
	}
	if after := p.users("acme"); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the users were %v and are %v", before, after)
	}
	if all := d.book.Tokens(); all[0].Used != 1 {
		t.Errorf("the token has been used %d times", all[0].Used)
	}

	// The fleet's words again, to another machine.
	actor, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var playing sync.WaitGroup
	playing.Go(func() {
		for {
			conn, err := actor.Accept()
			if err != nil {
				return
			}
			playing.Go(func() {
				defer conn.Close()
				_, _ = conn.Write(down)
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				for one, err := make([]byte, 1), error(nil); err == nil; _, err = conn.Read(one) {
				}
			})
		}
	})
	defer playing.Wait()
	defer actor.Close()
	other := p.machine("till-recorded", text)
	other.Server = actor.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if id, err := provision.Ask(ctx, other); err == nil {
		t.Errorf("a machine took an answer to another: %+v", id)
	}
}

// TestAltered has somebody flip, swap, repeat, drop and replay what passes, for many
// machines: each gets its own identity or none, and nobody gets another's.
func TestAltered(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	trials := 150
	if testing.Short() {
		trials = 30
	}
	text := d.token(t, "tills", "", 2*trials)
	// What others have said before is there to be played again.
	quiet := newLine(t, p.addr(), nil)
	first := p.machine("till-first", text)
	first.Server = quiet.Addr().String()
	if _, err := provision.Ask(soon(t), first); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	mine := map[string]string{"till-first": public(first.Keys)}
	granted, failed := 0, 0
	trial := func(n int) {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		altered := false
		var held []byte
		var lock sync.Mutex
		l := newLine(t, p.addr(), func(piece []byte, up bool) []byte {
			lock.Lock()
			defer lock.Unlock()
			// Of what says who it is, more is to be altered than of pings.
			if altered && n%3 != 0 || r.IntN(4) > 0 && len(piece) < 500 {
				return piece
			}
			altered = true
			switch n % 6 {
			case 0, 1:
				for range 1 + r.IntN(3) {
					piece[r.IntN(len(piece))] ^= 1 << r.IntN(8)
				}
			case 2: // another letter for one, which JSON and base64 take
				i := r.IntN(len(piece))
				piece[i] = "ABCabc0123"[r.IntN(10)]
			case 3:
				piece, held = append(slices.Clone(held), piece[len(piece)/2:]...), piece[:len(piece)/2]
			case 4:
				quiet.mu.Lock()
				old := quiet.down
				if up {
					old = quiet.up
				}
				again := old[r.IntN(len(old))]
				quiet.mu.Unlock()
				piece = append(slices.Clone(again), piece...)
			case 5:
				quiet.mu.Lock()
				old := quiet.down
				if up {
					old = quiet.up
				}
				piece = slices.Clone(old[r.IntN(len(old))])
				quiet.mu.Unlock()
			}
			return piece
		})
		m := provision.Machine{Server: l.Addr().String(), Name: fmt.Sprintf("till-%d", n), Keys: newKeys(t), Token: text}
		mu.Lock()
		mine[m.Name] = public(m.Keys)
		mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		id, err := provision.Ask(ctx, m)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if errors.Is(err, provision.ErrDenied) {
				t.Errorf("somebody on the line had %s denied: %v", m.Name, err)
			}
			failed++
			return
		}
		granted++
		if id.Account != "acme" || id.Name != m.Name || !bytes.Contains(id.CA, []byte("CERTIFICATE")) {
			t.Errorf("%s is %s/%s", m.Name, id.Account, id.Name)
		}
	}
	var running sync.WaitGroup
	next := make(chan int)
	for range 12 {
		running.Go(func() {
			for n := range next {
				trial(n)
			}
		})
	}
	for n := range trials {
		next <- n
	}
	close(next)
	running.Wait()
	t.Logf("of %d machines whose line was altered %d have their identity, and %d none yet", trials, granted, failed)
	if granted == 0 || failed == 0 {
		t.Errorf("%d machines have an identity and %d have none: nothing was altered, or everything", granted, failed)
	}
	await.Nil(t, "the users", func() error {
		for name, keys := range p.users("acme") {
			if len(keys) != 1 || keys[0] != mine[name] {
				return fmt.Errorf("%s has the keys %v and not %s", name, keys, mine[name])
			}
		}
		return nil
	})
	for _, r := range d.book.Requests() {
		if mine[r.Name] == "" {
			t.Errorf("somebody else asked: %+v", r)
		}
	}
}

// TestOtherFleet has a machine meet a fleet that is not its own, and a machine that
// knows none.
func TestOtherFleet(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	text := d.token(t, "tills", "", 1)
	pin := "0123456789abcdef0123456789abcdef"
	m := p.machine("till-1", strings.Replace(text, d.Pin, pin, 1))
	if _, err := provision.Ask(soon(t), m); !errors.Is(err, provision.ErrFleet) || !strings.Contains(err.Error(), d.Pin) {
		t.Errorf("another fleet is taken for its own: %v", err)
	}
	m = p.machine("till-1", "")
	var unknown *provision.UnknownFleetError
	if _, err := provision.Ask(soon(t), m); !errors.As(err, &unknown) || unknown.Pin != d.Pin {
		t.Errorf("a machine that knows no fleet takes any: %v", err)
	}
	m.Token, m.Pin = text, pin
	if _, err := provision.Ask(soon(t), m); err == nil || errors.Is(err, provision.ErrFleet) {
		t.Errorf("a token of another fleet than the pin is taken: %v", err)
	}
	if len(p.users("acme")) > 0 || d.book.Tokens()[0].Used > 0 {
		t.Error("something came of it")
	}
}
