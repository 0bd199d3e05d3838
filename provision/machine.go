package provision

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// defaultPort is that of listeners for machines that nobody knows.
	defaultPort = "4280"
	// stepTimeout bounds one question and its answer.
	stepTimeout = 10 * time.Second
	// firstPause is before the second attempt; it doubles, up to longestPause.
	firstPause, longestPause = 250 * time.Millisecond, 15 * time.Second
	// strikes is how often in a row a machine is answered by who is not to be believed,
	// before it gives up.
	strikes = 3
)

// Keys are the private keys of a machine, which never leave it. They are made before
// the first request, and kept until it has its identity: with them a request goes on
// where it was cut off. They print without the secrets.
type Keys struct {
	user nkeys.KeyPair
	tls  *ecdsa.PrivateKey
	seal *cert.SealKey
}

// NewKeys makes keys.
func NewKeys() (*Keys, error) {
	k := new(Keys)
	var err error
	if k.user, err = nkeys.CreateUser(); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if k.tls, err = identity.NewKey(); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if k.seal, err = cert.NewSealKey(); err != nil {
		return nil, err
	}
	return k, nil
}

// keysFile is what Keys are on disk.
type keysFile struct {
	Seed []byte `json:"seed"`
	Key  []byte `json:"key"` // PKCS #8
	Seal []byte `json:"seal"`
}

// Marshal is k for a file that only its owner reads.
func (k *Keys) Marshal() ([]byte, error) {
	seed, err1 := k.user.Seed()
	key, err2 := x509.MarshalPKCS8PrivateKey(k.tls)
	seal, err3 := k.seal.Bytes()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("encoding keys: %w", err)
	}
	return json.Marshal(keysFile{seed, key, seal})
}

// ParseKeys reads what Marshal returned.
func ParseKeys(data []byte) (*Keys, error) {
	var f keysFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, errors.New("reading keys: they are damaged")
	}
	user, err := nkeys.FromSeed(f.Seed)
	if err != nil {
		return nil, errors.New("reading keys: they are damaged")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(f.Key)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("reading keys: they are damaged")
	}
	seal, err := cert.ParseSealKey(f.Seal)
	return &Keys{user, key, seal}, err
}

// String says which keys they are.
func (k *Keys) String() string {
	public, _ := k.user.PublicKey()
	return "keys of " + public
}

// Format writes String for every verb, so that none of them shows a secret.
func (k *Keys) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// A Machine is what asks for an identity. It is a plain value.
type Machine struct {
	// Server is host:port of a listener for machines that nobody knows, in clear, or
	// tls://host:port. Default port: 4280.
	Server string
	// Name that it would like in its account.
	Name string
	// Keys of the machine. Required.
	Keys *Keys
	// Pin of the fleet: 32 hexadecimal digits. Empty: that of Token.
	Pin string
	// Token or Claim is the proof, if it has one: the text of a token, or a JWT.
	Token, Claim string
	// Facts are what it says of itself, for who decides.
	Facts map[string]string
	// Progress, if it is set, is told what is in the way, when that changes.
	Progress func(Progress)
}

// Progress is why a machine has no identity yet.
type Progress struct {
	// Code of the request, for who approves it. Empty before it was made.
	Code string
	// Reason is what is in the way. Pending says that it came from a provisioner.
	Reason  string
	Pending bool
}

// Why a machine gets no identity. They are found with errors.Is in what Ask returns.
var (
	// ErrDenied is a request that was denied.
	ErrDenied = errors.New("the fleet denies this machine an identity")
	// ErrFleet is a fleet that is not the one of the pin.
	ErrFleet = errors.New("who answers is not a provisioner of the right fleet")
)

// An Identity is who a machine is from now on.
type Identity struct {
	Fleet   string `json:"fleet"`
	Account string `json:"account"`
	Name    string `json:"name"`
	Role    string `json:"role"`
	// Creds is a NATS credentials file, Cert and Key a client certificate and its key, CA
	// what servers are verified with; the last three in PEM.
	Creds []byte `json:"-"`
	Cert  []byte `json:"-"`
	Key   []byte `json:"-"`
	CA    []byte `json:"-"`
	// Servers are host:port of the NATS listeners of the fleet.
	Servers []string  `json:"servers"`
	Expires time.Time `json:"expires,omitzero"`
}

// Ask asks for an identity until m has one, is denied, or ctx is done. Whoever is on
// the way can keep it from getting one, and can neither have it nor give m another.
func Ask(ctx context.Context, m Machine) (*Identity, error) {
	c, err := newAsker(m)
	if err != nil {
		return nil, err
	}
	pause, struck := firstPause, 0
	for {
		v, err := c.once(ctx)
		wait := pause
		var unknown *UnknownFleetError
		switch {
		case err == nil && v.State == Granted:
			return c.accept(v.Grant, time.Now())
		case err == nil && v.State == Denied:
			return nil, fmt.Errorf("%w: %s", ErrDenied, v.Reason)
		case err == nil:
			c.progress(Progress{Code: Code(c.id), Reason: v.Reason, Pending: true})
			pause, struck = firstPause, 0
			wait = min(max(v.Again, firstPause), 10*time.Minute)
		case ctx.Err() != nil:
			return nil, c.gaveUp(ctx)
		case errors.As(err, &unknown):
			return nil, fmt.Errorf("asking for an identity: %w", err)
		default:
			c.progress(Progress{Code: Code(c.id), Reason: err.Error()})
			if errors.Is(err, identity.ErrProvisioner) || errors.Is(err, identity.ErrProvisionerClock) {
				if struck++; struck == strikes {
					return nil, fmt.Errorf("%w: %w", ErrFleet, err)
				}
			}
			pause = min(2*pause, longestPause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, c.gaveUp(ctx)
		}
	}
}

// asker is a request that goes on.
type asker struct {
	Machine
	url, pin string
	token    *TokenText
	csr      string
	ca       *x509.Certificate // of the fleet that answered, which has the pin
	id       string
	last     Progress
}

func newAsker(m Machine) (*asker, error) {
	c := &asker{Machine: m, pin: m.Pin}
	scheme, addr, ok := strings.Cut(m.Server, "://")
	if !ok {
		scheme, addr = "nats", m.Server
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), defaultPort)
	}
	if scheme != "nats" && scheme != "tls" {
		return nil, fmt.Errorf("asking for an identity: %q is neither host:port nor tls://host:port", m.Server)
	}
	c.url = scheme + "://" + addr
	if m.Token != "" {
		t, err := ParseToken(m.Token)
		if err != nil {
			return nil, err
		}
		if c.token = &t; c.pin == "" {
			c.pin = t.Pin
		} else if c.pin != t.Pin {
			return nil, errors.New("asking for an identity: the token is of another fleet than the pin")
		}
	}
	if c.pin != "" {
		if err := identity.CheckPin(c.pin); err != nil {
			return nil, fmt.Errorf("asking for an identity: %w", err)
		}
	}
	if err := identity.CheckName(m.Name); err != nil {
		return nil, fmt.Errorf("asking for an identity: %w", err)
	}
	csr, err := identity.NewCSR(m.Keys.tls)
	if err != nil {
		return nil, err
	}
	key, err := m.Keys.user.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("asking for an identity: %w", err)
	}
	c.csr, c.id = pemCSR(csr), requestID(m.Name, key, csr.RawSubjectPublicKeyInfo)
	return c, nil
}

// progress tells what is news.
func (c *asker) progress(p Progress) {
	if c.Progress != nil && p != c.last {
		c.last = p
		c.Progress(p)
	}
}

func (c *asker) gaveUp(ctx context.Context) error {
	if c.last.Reason == "" {
		return fmt.Errorf("asking for an identity: %w", context.Cause(ctx))
	}
	return fmt.Errorf("asking for an identity: %w: %s", context.Cause(ctx), c.last.Reason)
}

// once connects, and asks once.
func (c *asker) once(ctx context.Context) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*stepTimeout)
	defer cancel()
	name := "m" + strings.ToLower(rand.Text()[:20])
	d := &dialer{ctx: ctx}
	opts := []nats.Option{
		nats.Name("fleetbus provision"), nats.UserInfo(name, ""), nats.CustomInboxPrefix(identity.Inbox(name)),
		nats.NoReconnect(), nats.Timeout(stepTimeout), nats.SetCustomDialer(d),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // the default prints
	}
	if strings.HasPrefix(c.url, "tls://") {
		opts = append(opts, nats.Secure(c.tls()))
	}
	nc, err := nats.Connect(c.url, opts...)
	if err != nil {
		if d.err != nil {
			err = d.err
		}
		return verdict{}, fmt.Errorf("connecting to %s: %w", c.url, err)
	}
	defer nc.Close()
	ip, err := nc.GetClientIP()
	if err != nil {
		return verdict{}, fmt.Errorf("connecting to %s: it does not say where this machine is: is it a listener for provisioning?", c.url)
	}
	where, err := identity.Whereabouts(ip.String())
	if err != nil {
		return verdict{}, err
	}
	k, err := c.hello(ctx, nc, where)
	if err != nil {
		return verdict{}, err
	}
	c.ca = k.ca
	request, err := c.request(k)
	if err != nil {
		return verdict{}, err
	}
	reply, err := question(ctx, nc, identity.ProvisionAsk+k.Instance+"."+where, request)
	if err != nil {
		return verdict{}, err
	}
	return k.openAnswer(reply, request, c.Keys.seal)
}

// tls verifies a node of the fleet, where there is a pin. What is said is secret and
// signed without.
func (c *asker) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// So that it shows the certificate of the fleet's authority.
		ServerName:         "enroll.fleetbus.invalid",
		InsecureSkipVerify: true, // VerifyConnection does all of the work
		VerifyConnection: func(state tls.ConnectionState) error {
			if c.pin == "" {
				return nil
			}
			return identity.TokenText{AuthorityHash: c.pin}.VerifyServer(state.PeerCertificates, time.Now())
		},
	}
}

// question asks, and waits for one answer.
func question(ctx context.Context, nc *nats.Conn, subject string, data []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	msg, err := nc.RequestWithContext(ctx, subject, data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, errors.New("no provisioner is there")
	case err != nil && ctx.Err() != nil:
		return nil, errors.New("no provisioner answers in time")
	case err != nil:
		return nil, fmt.Errorf("asking a provisioner: %w", err)
	}
	return msg.Data, nil
}

// hello finds a provisioner, and verifies it.
func (c *asker) hello(ctx context.Context, nc *nats.Conn, where string) (*provisionerKey, error) {
	h := hello{Version: version, Nonce: make([]byte, nonceSize)}
	rand.Read(h.Nonce) // never fails
	data, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding a hello: %w", err)
	}
	reply, err := question(ctx, nc, identity.ProvisionHello+where, data)
	if err != nil {
		return nil, err
	}
	return openWelcome(reply, c.pin, h.Nonce, time.Now())
}

// request makes the bytes of a request to k.
func (c *asker) request(k *provisionerKey) ([]byte, error) {
	key, err := c.Keys.user.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	p := petition{Claim: c.Claim}
	p.Ask, err = json.Marshal(ask{
		Version: version, Nonce: k.Nonce, Instance: k.Instance, Name: c.Name, Key: key, CSR: c.csr, Seal: c.Keys.seal.Public(), Facts: c.Facts,
	})
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	if p.Signature, err = c.Keys.user.Sign(signable(ofAsk, p.Ask)); err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	if c.token != nil {
		p.Token, p.TokenSignature = c.token.ID, ed25519.Sign(c.token.key, signable(ofToken, p.Ask))
	}
	plain, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	s, err := cert.SealMessage(k.Seal, toOpen+k.Instance, plain)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{Version: version, Sealed: s})
}

// accept verifies that what was granted is an identity of this machine, of the fleet
// that it asked.
func (c *asker) accept(g *grant, now time.Time) (*Identity, error) {
	bad := func(what string, err error) (*Identity, error) {
		return nil, fmt.Errorf("the identity that was granted is not good: %s: %w", what, err)
	}
	if g == nil {
		return bad("the grant", errors.New("there is none"))
	}
	if g.Name != c.Name || identity.CheckAccountName(g.Account) != nil {
		return bad("the name", fmt.Errorf("it is %q", shorten(g.Account+"/"+g.Name)))
	}
	chain, err := parseChain(g.Chain)
	if err != nil || len(chain) == 0 {
		return bad("the certificate", cmpErr(err))
	}
	if !c.Keys.tls.PublicKey.Equal(chain[0].PublicKey) {
		return bad("the certificate", errors.New("it is for another key"))
	}
	if err := identity.VerifyUser(chain[0], c.ca, g.Fleet, g.Account, g.Name, now); err != nil {
		return bad("the certificate", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(g.CA)) {
		return bad("the authority", errors.New("there is none"))
	}
	seed, err := c.Keys.user.Seed()
	if err != nil {
		return bad("the key", err)
	}
	creds, err := identity.RenewCreds(g.JWT, seed)
	if err != nil {
		return bad("the credentials", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.Keys.tls)
	if err != nil {
		return bad("the key", err)
	}
	return &Identity{
		Fleet: g.Fleet, Account: g.Account, Name: g.Name, Role: g.Role, Creds: creds, Cert: []byte(g.Chain), CA: []byte(g.CA),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), Servers: g.Servers, Expires: g.Expires,
	}, nil
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("there is none")
	}
	return err
}

// Connect comes in as the machine, at one of servers, or of those that the fleet named
// if there are none. Another node than the one that made the identity may learn of it a
// moment later: it is tried until ctx is done.
func (i *Identity) Connect(ctx context.Context, servers []string, opts ...nats.Option) (*nats.Conn, error) {
	if len(servers) == 0 {
		servers = i.Servers
	}
	if len(servers) == 0 {
		return nil, errors.New("connecting as the machine: the fleet has no NATS listener: name a server")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(i.CA)
	pair, err := tls.X509KeyPair(i.Cert, i.Key)
	if err != nil {
		return nil, fmt.Errorf("connecting as the machine: %w", err)
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		d := &dialer{ctx: ctx}
		nc, err := nats.Connect("tls://"+strings.Join(servers, ",tls://"), append([]nats.Option{
			nats.Name(i.Name), nats.CustomInboxPrefix(identity.Inbox(i.Name)), nats.UserCredentialBytes(i.Creds),
			nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}}),
			nats.SetCustomDialer(d), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
		}, opts...)...)
		if err == nil {
			return nc, nil
		}
		if d.err != nil {
			err = d.err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting as %s/%s to %s: %w", i.Account, i.Name, strings.Join(servers, ", "), err)
		case <-time.After(pause):
		}
	}
}

// A dialer ties the making of a connection to a context.
type dialer struct {
	ctx context.Context
	err error
}

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, addr string) (net.Conn, error) {
	var nd net.Dialer
	ctx, cancel := context.WithTimeout(d.ctx, stepTimeout)
	defer cancel()
	conn, err := nd.DialContext(ctx, network, addr)
	d.err = err
	return conn, err
}
