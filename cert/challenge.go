package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ALPNProto is the protocol by which an authority that looks for a tls-alpn-01
// challenge says hello (RFC 8737). It has to be among the NextProtos of a server that
// is to answer, unless its configuration is made by [Store.TLSConfig].
const ALPNProto = "acme-tls/1"

const (
	// challengePath is where an authority looks for http-01 challenges (RFC 8555, 8.3).
	challengePath = "/.well-known/acme-challenge/"

	httpChallenge = "http-01"
	alpnChallenge = "tls-alpn-01"

	// maxWaiting is how many questions for a challenge are kept until it is here, and
	// waitingTime for how long: nobody listens to a later answer.
	maxWaiting  = 256
	waitingTime = time.Minute
	// maxToken bounds a question.
	maxToken = 1 << 10
)

// answers are what authorities are answered. They do not change once they are made.
type answers struct {
	tokens map[string]bool   // whether it is by HTTP
	http   map[string]answer // by token
	alpn   map[string]answer // by name
}

type answer struct {
	keyAuth string
	until   int64 // Unix seconds
	tls     *tls.Certificate
}

// certificate answers a tls-alpn-01 challenge; nil if there is none for that name.
func (a *answers) certificate(name string, now int64) *tls.Certificate {
	if len(name) > maxName {
		return nil
	}
	if found, ok := a.alpn[strings.ToLower(strings.TrimSuffix(name, "."))]; ok && now < found.until {
		return found.tls
	}
	return nil
}

// answer makes the answers to the challenges that there are now, and tells managers who
// asked for one.
func (s *Store) answer() {
	s.answering.Lock()
	defer s.answering.Unlock()
	before, now := s.answers.Load(), s.o.Now().Unix()
	next := &answers{tokens: map[string]bool{}, http: map[string]answer{}, alpn: map[string]answer{}}
	for _, g := range s.groups {
		for _, c := range g.state.Challenges(g.name) {
			a := answer{keyAuth: c.KeyAuth, until: c.Until.Unix()}
			switch {
			case a.until <= now: // of the past of the ledger
				continue
			case c.Type == httpChallenge && c.Token != "":
				next.http[c.Token] = a
			case c.Type == alpnChallenge && s.o.Program == nil:
				name := challengeName(c.Name)
				if old := before.alpn[name]; old.keyAuth == a.keyAuth {
					a.tls = old.tls
				} else {
					var err error
					if a.tls, err = alpnCertificate(c.Name, c.KeyAuth); err != nil {
						s.log.Error("challenge cannot be answered", "group", g.name, "id", c.ID, "error", err)
						continue
					}
				}
				if a.until < next.alpn[name].until {
					continue // of two for a name, the later one is looked for
				}
				next.alpn[name] = a
			default:
				continue
			}
			next.tokens[c.Token] = c.Type == httpChallenge
		}
	}
	s.answers.Store(next)
	s.respond()
}

// challengeName is the name by which an authority asks for the certificate of a
// tls-alpn-01 challenge: for an address, RFC 8738 has a name in the reverse zone.
func challengeName(name string) string {
	ip, err := netip.ParseAddr(name)
	if err != nil {
		name, _ = aLabels(name)
		return name
	}
	var labels []string
	zone := "in-addr.arpa"
	if ip = ip.Unmap(); ip.Is4() {
		for _, b := range ip.AsSlice() {
			labels = append([]string{fmt.Sprint(b)}, labels...)
		}
	} else {
		zone = "ip6.arpa"
		for _, b := range ip.AsSlice() {
			labels = append([]string{fmt.Sprintf("%x.%x", b&15, b>>4)}, labels...)
		}
	}
	return strings.Join(append(labels, zone), ".")
}

// alpnCertificate is the certificate of RFC 8737, 3.
func alpnCertificate(name, keyAuth string) (*tls.Certificate, error) {
	sum := sha256.Sum256([]byte(keyAuth))
	value, err := asn1.Marshal(sum[:])
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "ACME challenge"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(7 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}, Critical: true, Value: value}},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// ChallengeHandler answers the http-01 challenges of authorities, which ask at port 80
// for /.well-known/acme-challenge/<token>. Whoever gets it has to serve it there: the
// store tells managers from then on that it answers.
func (s *Store) ChallengeHandler() http.Handler {
	s.answersHTTP.Store(true)
	s.respond()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.URL.Path, challengePath)
		found, known := s.answers.Load().http[token]
		switch {
		case !ok || !known || s.o.Now().Unix() >= found.until:
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Cache-Control", "no-store")
			_, _ = io.WriteString(w, found.keyAuth) // the authority asks again
		}
	})
}

// A question of a manager is for a challenge that is not here yet.
type question struct {
	token string
	msg   *nats.Msg
	asked time.Time
}

// listen answers managers who ask who is there, and who has a challenge, until stop is
// called.
func (s *Store) listen(nc *nats.Conn) (stop func(), err error) {
	var all []*nats.Subscription
	stop = func() {
		for _, sub := range all {
			_ = sub.Unsubscribe() // the connection may be gone
		}
	}
	for name := range s.groups {
		sub, err := nc.Subscribe(AskSubject(name), s.hear)
		if err != nil {
			stop()
			return nil, fmt.Errorf("subscribing to %q: %w", AskSubject(name), err)
		}
		all = append(all, sub)
	}
	return stop, nil
}

// hear answers one question, now or when its challenge is here.
func (s *Store) hear(msg *nats.Msg) {
	if msg.Reply == "" {
		return
	}
	if len(msg.Data) == 0 {
		s.say(msg)
		return
	}
	if len(msg.Data) > maxToken {
		return
	}
	s.mu.Lock()
	if len(s.waiting) == maxWaiting {
		s.waiting = s.waiting[1:]
	}
	s.waiting = append(s.waiting, question{string(msg.Data), msg, time.Now()})
	s.mu.Unlock()
	s.respond()
}

// respond answers the questions for challenges that are here.
func (s *Store) respond() {
	s.mu.Lock()
	var ready []question
	kept := s.waiting[:0]
	for _, q := range s.waiting {
		switch {
		case s.wouldAnswer(q.token):
			ready = append(ready, q)
		case time.Since(q.asked) < waitingTime:
			kept = append(kept, q)
		}
	}
	clear(s.waiting[len(kept):])
	s.waiting = kept
	s.mu.Unlock()
	for _, q := range ready {
		s.say(q.msg)
	}
}

// wouldAnswer reports whether an authority that asked now would be answered.
func (s *Store) wouldAnswer(token string) bool {
	a := s.answers.Load()
	byHTTP, known := a.tokens[token]
	return known && (!byHTTP || s.answersHTTP.Load())
}

func (s *Store) say(msg *nats.Msg) {
	if err := msg.Respond([]byte(s.o.Key.Name)); err != nil {
		s.log.Warn("a manager was not answered", "error", err)
	}
}
