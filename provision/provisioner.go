package provision

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// workers look at requests side by side, and welcomers answer hellos.
	workers, welcomers = 16, 2
	// busyASecond bounds the answers to what is not even looked at.
	busyASecond = 200
	// judgeTimeout bounds the look at one request, but for the hook.
	judgeTimeout = 30 * time.Second
	// renewEvery is when a provisioner asks to be one for another hour.
	renewEvery = 20 * time.Minute
	sweepEvery = time.Minute
	// soon is when a machine asks again after what will pass by itself, and later after
	// what a person has to mend or to decide.
	soon, later = 2 * time.Second, 10 * time.Second
	// linesASecond bounds what is logged of refusals.
	linesASecond, linesAtOnce = 20, 200
	// unknownAgain is how often the book is read for tokens that nobody knows.
	unknownAgain = 50 * time.Millisecond
)

// A Station is a provisioner's place in an account: its name there, and its keys.
// Join makes one.
type Station struct {
	// Account that strangers come into, and the fleet's name and pin.
	Account, Fleet, Pin string
	// Replicas is on how many nodes to keep the book.
	Replicas int

	admin *admin.Client
	user  nkeys.KeyPair
	sign  ed25519.PrivateKey
	seal  *cert.SealKey

	mu       sync.Mutex
	token    string
	chain    string
	instance string
}

// Join makes who asks, a user of role admin or provisioner, a provisioner in an
// account.
func Join(ctx context.Context, c *admin.Client, account string) (*Station, error) {
	s := &Station{Account: account, admin: c}
	var err error
	if s.user, err = nkeys.CreateUser(); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if _, s.sign, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if s.seal, err = cert.NewSealKey(); err != nil {
		return nil, err
	}
	return s, s.renew(ctx)
}

// renew asks for another hour.
func (s *Station) renew(ctx context.Context) error {
	key, err := s.user.PublicKey()
	if err != nil {
		return fmt.Errorf("reading a key: %w", err)
	}
	csr, err := identity.NewCSR(s.sign)
	if err != nil {
		return err
	}
	reply, err := s.admin.Provisioner(ctx, admin.ProvisionerRequest{Account: s.Account, Key: key, CSR: pemCSR(csr)})
	if err != nil {
		return fmt.Errorf("becoming a provisioner: %w", err)
	}
	chain, err := parseChain(reply.Chain)
	if err != nil || len(chain) != 3 {
		return fmt.Errorf("becoming a provisioner: the fleet's certificates cannot be read: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Fleet, s.Pin, s.Replicas = reply.Fleet, identity.PinOf(chain), reply.Replicas
	s.token, s.chain, s.instance = reply.JWT, reply.Chain, reply.Name
	return nil
}

func pemCSR(csr *x509.CertificateRequest) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
}

// Options are what a connection of the station needs besides where the fleet is.
func (s *Station) Options() []nats.Option {
	return []nats.Option{
		nats.UserJWT(func() (string, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.token, nil
		}, s.user.Sign),
		nats.CustomInboxPrefix(identity.Principal{Kind: identity.KindService, Name: s.Instance()}.Inbox()),
	}
}

// Instance is the name of the provisioner in the account.
func (s *Station) Instance() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance
}

// A Provisioner answers machines that nobody knows. Any number of them share the
// work. Its fields are set before Run.
type Provisioner struct {
	Station *Station
	Rules   *Live
	// Hook is asked where a rule says so. Nil: such requests wait for a person.
	Hook Hook
	// Logger is told one line of each decision and of each refusal. Nil: nobody is.
	Logger *slog.Logger

	log   *slog.Logger
	lines *rate.Limiter
	book  *Book
	// hellos and asks are what strangers said.
	hellos, asks *queue[*nats.Msg]
	busy         *rate.Limiter
	sync         *rate.Limiter
	mu           sync.Mutex
	underway     map[string]bool // by the IDs of requests
}

// errAgain has the machine ask again.
type errAgain struct {
	after  time.Duration
	reason string
}

func (e *errAgain) Error() string { return e.reason }

// denial is a request that is denied.
type denial struct{ reason string }

func (e *denial) Error() string { return e.reason }

// Run answers over nc, a connection with the station's options, and with book, until
// ctx ends. ready, if it is not nil, is called when machines are answered.
func (p *Provisioner) Run(ctx context.Context, nc *nats.Conn, book *Book, ready func()) error {
	p.log = p.Logger
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.book, p.hellos, p.asks, p.underway = book, newQueue[*nats.Msg](), newQueue[*nats.Msg](), map[string]bool{}
	p.busy = rate.NewLimiter(busyASecond, busyASecond)
	p.lines = rate.NewLimiter(linesASecond, linesAtOnce)
	p.sync = rate.NewLimiter(rate.Every(unknownAgain), 1)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := func(n int, q *queue[*nats.Msg], do func(context.Context, *nats.Msg)) {
		for range n {
			running.Go(func() {
				for msg, ok := q.take(ctx); ok; msg, ok = q.take(ctx) {
					do(ctx, msg)
				}
			})
		}
	}
	work(welcomers, p.hellos, p.welcome)
	work(workers, p.asks, p.answer)
	hellos, err1 := nc.QueueSubscribe(identity.ProvisionHello+"*", "provisioners", func(msg *nats.Msg) { p.take(p.hellos, msg) })
	asks, err2 := nc.Subscribe(identity.ProvisionAsk+p.Station.Instance()+".*", func(msg *nats.Msg) { p.take(p.asks, msg) })
	if err := errors.Join(err1, err2, nc.FlushTimeout(judgeTimeout)); err != nil {
		return fmt.Errorf("answering machines: %w", err)
	}
	defer func() { _, _ = hellos.Unsubscribe(), asks.Unsubscribe() }()
	if ready != nil {
		ready()
	}
	renew, sweep := time.NewTicker(renewEvery), time.NewTicker(sweepEvery)
	defer renew.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-renew.C:
			p.tend(ctx, "becoming a provisioner again", p.Station.renew)
		case <-sweep.C:
			p.tend(ctx, "tidying up", func(ctx context.Context) error { return p.book.sweep(ctx, time.Now()) })
		}
	}
}

func (p *Provisioner) tend(ctx context.Context, what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	if err := do(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("provisioning is hindered", "service", what, "error", err)
	}
}

// refused logs what strangers did in vain, unless there is too much of it.
func (p *Provisioner) refused(where string, reason any) {
	if p.lines.Allow() {
		p.log.Warn("request refused", "remote", addressOf(where), "error", reason)
	}
}

// addressOf is the address in the last word of a subject.
func addressOf(where string) string {
	addr, err := identity.WhereaboutsAddr(where)
	if err != nil {
		return where
	}
	return addr.String()
}

// whereOf is the last word of a subject, in which the engine lets a stranger say where
// it is, and nothing else.
func whereOf(msg *nats.Msg) string { return msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:] }

// toStranger reports whether the answer to msg goes to a stranger. The engine lets one
// name any subject, and the provisioner may publish where strangers may not.
func toStranger(msg *nats.Msg) bool {
	own := identity.Principal{Kind: identity.KindService}.Inbox()
	return strings.HasPrefix(msg.Reply, identity.Inbox("")) && !strings.HasPrefix(msg.Reply, own)
}

// welcome answers a hello.
func (p *Provisioner) welcome(_ context.Context, msg *nats.Msg) {
	var h hello
	if err := decode(msg.Data, maxMessage, &h); err != nil || h.Version != version || len(h.Nonce) != nonceSize {
		p.refused(whereOf(msg), cmp.Or(err, errors.New("its hello is of another version, or has no nonce")))
		return
	}
	s := p.Station
	s.mu.Lock()
	instance, chain := s.instance, s.chain
	s.mu.Unlock()
	w, err := sign(s.sign, ofWelcome, welcome{Version: version, Nonce: h.Nonce, Instance: instance, Seal: s.seal.Public(), Fleet: s.Fleet})
	if err == nil {
		w.Chain = chain
		err = respond(msg, w)
	}
	if err != nil {
		p.log.Warn("a machine was not answered", "error", err)
	}
}

func respond(msg *nats.Msg, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	return msg.Respond(data)
}

// take puts what a stranger said into a queue.
func (p *Provisioner) take(q *queue[*nats.Msg], msg *nats.Msg) {
	switch {
	case !toStranger(msg):
		p.refused(whereOf(msg), errReply)
	case len(msg.Data) > maxMessage || !q.put(whereOf(msg), msg):
		p.refused(whereOf(msg), "too many messages wait, or it is too long")
		if q == p.asks && p.busy.Allow() { // who gets no answer asks again, too
			p.say(msg, nil, verdict{}, busy)
		}
	}
}

// errReply is why a message is not answered at all.
var errReply = errors.New("its answer is not for an inbox of a stranger")

// busy is what a machine is told that is to try again.
const busy = "the provisioner has too much to do: try again"

// say answers a request.
func (p *Provisioner) say(msg *nats.Msg, d *demand, v verdict, refused string) {
	data, err := answerTo(p.Station.sign, msg.Data, d, v, refused)
	if err == nil {
		err = msg.Respond(data)
	}
	if err != nil {
		p.log.Warn("a machine was not answered", "error", err)
	}
}

// answer looks at a request and answers it.
func (p *Provisioner) answer(ctx context.Context, msg *nats.Msg) {
	d, err := openDemand(msg.Data, p.Station.Instance(), p.Station.seal)
	if err != nil {
		p.refused(whereOf(msg), err)
		p.say(msg, nil, verdict{}, err.Error())
		return
	}
	d.where = whereOf(msg)
	g, err := p.judge(ctx, d)
	var no *denial
	var again *errAgain
	switch {
	case err == nil:
		p.say(msg, d, verdict{State: Granted, Grant: g}, "")
	case errors.As(err, &no):
		p.say(msg, d, verdict{State: Denied, Reason: no.reason}, "")
	case errors.As(err, &again):
		p.say(msg, d, verdict{State: Pending, Reason: again.reason, Again: again.after}, "")
	case ctx.Err() == nil:
		p.log.Error("a request could not be decided", "principal", d.Name, "remote", addressOf(d.where), "error", err)
		p.say(msg, d, verdict{State: Pending, Reason: "the provisioner cannot decide now, and says why in its log", Again: later}, "")
	}
}

// judge decides on a request: what it is granted, a denial, or an errAgain.
func (p *Provisioner) judge(ctx context.Context, d *demand) (*grant, error) {
	// What is under way twice is decided once.
	p.mu.Lock()
	twice := p.underway[d.ID]
	p.underway[d.ID] = true
	p.mu.Unlock()
	if twice {
		return nil, &errAgain{soon, "your request is being decided"}
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.underway, d.ID)
	}()
	r, known := p.book.request(d.ID)
	if !known {
		proof, err := p.prove(ctx, d)
		if err != nil {
			return nil, p.deny(ctx, d, "", err.Error())
		}
		if r, err = p.decide(ctx, d, proof); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	switch r.State {
	case Waiting:
		n := locked(p.book, func() int { return p.book.waits })
		return nil, &errAgain{later + time.Duration(n)*10*time.Millisecond, "it waits for a person to approve it: fleetbus provision approve " + Code(d.ID)}
	case Denied:
		return nil, &denial{r.Reason}
	}
	return p.grant(ctx, d, r)
}

// deny says why, to the operator, to those who watch events, and to the machine.
func (p *Provisioner) deny(ctx context.Context, d *demand, rule, reason string) error {
	if p.lines.Allow() {
		p.log.Warn("machine denied", "principal", d.Name, "remote", addressOf(d.where), "rule", rule, "error", reason)
		p.tell(ctx, d, Denied, "", reason)
	}
	return &denial{reason}
}

// tell has the fleet tell of a request.
func (p *Provisioner) tell(ctx context.Context, d *demand, state State, account, reason string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	account = cmp.Or(account, p.Station.Account)
	err := p.Station.admin.TellProvision(ctx, admin.Event{
		Account: account, Principal: account + "/" + d.Name, Address: addressOf(d.where), State: string(state), Reason: reason,
	})
	if err != nil && ctx.Err() == nil {
		p.log.Debug("an event was not told", "error", err)
	}
}

// prove finds out what a request proves. Its error is why a proof is none.
func (p *Provisioner) prove(ctx context.Context, d *demand) (proof, error) {
	now := time.Now()
	switch {
	case d.Token != "" && d.Claim != "":
		return proof{}, errors.New("it has two proofs, and one is enough")
	case d.Token != "":
		t, ok := p.book.token(d.Token)
		if !ok && p.sync.Wait(ctx) == nil && p.book.sync(ctx) == nil { // it may be new
			t, ok = p.book.token(d.Token)
		}
		if !ok {
			return proof{}, errTokenUnknown
		}
		return proof{kind: ProofToken, token: t}, t.check(d, now)
	case d.Claim != "":
		c, err := openClaim(d.Claim, p.Rules.get().keys, d.Name, p.Station.Fleet, now)
		return proof{kind: ProofClaim, claim: c}, err
	}
	return proof{kind: ProofNone}, nil
}

// decide follows the rules, and writes down what it decides.
func (p *Provisioner) decide(ctx context.Context, d *demand, proof proof) (Request, error) {
	r := Request{ID: d.ID, Name: d.Name, Address: addressOf(d.where), Facts: d.Facts, Proof: proof.String(), Asked: time.Now()}
	addr, err := identity.WhereaboutsAddr(d.where)
	if err != nil {
		return r, p.deny(ctx, d, "", "nobody knows where it is")
	}
	rule := p.Rules.get().match(d.Name, addr, proof)
	if rule == nil {
		return r, p.deny(ctx, d, "", "no rule lets a machine of that name, from there, with "+proof.String()+" have an identity")
	}
	if wait := rule.wait(r.Asked); wait > 0 {
		return r, &errAgain{max(wait, soon), "too many machines come at once: wait for your turn"}
	}
	r.Rule, r.Account, r.Role, r.By = rule.Name, rule.Account, rule.Role, "rule "+rule.Name
	decision := Decision{Decision: rule.Decide, Reason: rule.Reason}
	if rule.Decide == AskHook {
		if decision, err = p.askHook(ctx, d, proof, rule, &r); err != nil {
			p.log.Error("the hook decided nothing", "principal", d.Name, "remote", r.Address, "rule", rule.Name, "error", err)
			return r, &errAgain{later, "who is to decide did not: it is asked again"}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	switch decision.Decision {
	case Deny:
		return r, p.deny(ctx, d, rule.Name, cmp.Or(decision.Reason, "its rule denies it"))
	case Wait:
		r.State = Waiting
	default:
		r.State, r.Decided = Approved, r.Asked
	}
	switch proof.kind {
	case ProofToken:
		err = p.book.spend(ctx, proof.token, d.ID)
	case ProofClaim:
		err = p.book.spendClaim(ctx, proof.claim, d.ID)
	}
	if errors.Is(err, errTokenUsed) || errors.Is(err, errClaimUsed) {
		return r, p.deny(ctx, d, rule.Name, err.Error())
	}
	if err == nil {
		r, err = p.book.enter(ctx, r)
	}
	switch {
	case errors.Is(err, errQueue):
		p.refused(d.where, err)
		return r, &errAgain{time.Minute, err.Error()}
	case err == nil && r.State == Waiting:
		p.log.Info("machine waits", "principal", d.Name, "remote", r.Address, "rule", rule.Name, "code", Code(d.ID))
		p.tell(ctx, d, Pending, r.Account, "it waits for a person to approve "+Code(d.ID))
	}
	return r, err
}

// askHook has the hook decide, and checks what it says. It sets account and role of r.
func (p *Provisioner) askHook(ctx context.Context, d *demand, proof proof, rule *Rule, r *Request) (Decision, error) {
	if p.Hook == nil {
		return Decision{Decision: Wait}, nil
	}
	q := Question{
		ID: d.ID, Code: Code(d.ID), Name: d.Name, Address: r.Address, Facts: d.Facts, Proof: proof.kind,
		Token: proof.token.Label, Key: proof.claim.By, Claims: proof.claim.All, Rule: rule.Name, Account: rule.Account, Role: rule.Role,
	}
	decision, err := p.Hook(ctx, q)
	if err != nil {
		return decision, err
	}
	r.Account, r.Role, r.By = cmp.Or(decision.Account, rule.Account), cmp.Or(decision.Role, rule.Role), "hook of rule "+rule.Name
	switch decision.Decision {
	case Deny, Wait:
		return decision, nil
	case Approve:
	default:
		return decision, fmt.Errorf("its decision is %q and has to be approve, deny or wait", shorten(decision.Decision))
	}
	if r.Account == "" {
		return decision, errors.New("it approves and names no account, nor does the rule")
	}
	if refusal := admin.Provisionable(r.Account, r.Role); refusal != nil {
		return decision, refusal
	}
	return decision, nil
}

// grant has the fleet make the identity. It may have made it already: then it is the
// same.
func (p *Provisioner) grant(ctx context.Context, d *demand, r Request) (*grant, error) {
	full := r.Account + "/" + r.Name
	reply, err := p.Station.admin.Provision(ctx, admin.ProvisionRequest{Name: full, Role: r.Role, Key: d.Key, CSR: d.CSR})
	if refusal := (*admin.Error)(nil); errors.As(err, &refusal) && refusal.Code == admin.Conflict {
		r.State, r.Reason, r.Decided = Denied, refusal.Text, time.Now()
		err := p.book.settle(ctx, r)
		if d.Token != "" {
			err = errors.Join(err, p.book.release(ctx, d.Token, d.ID))
		}
		return nil, errors.Join(p.deny(ctx, d, r.Rule, refusal.Text), err)
	}
	if err != nil {
		return nil, fmt.Errorf("making an identity for %q: %w", full, err)
	}
	if r.State != Granted {
		r.State, r.Decided = Granted, time.Now()
		if err := p.book.settle(ctx, r); err != nil {
			return nil, err
		}
		p.log.Info("machine has an identity", "principal", full, "role", r.Role, "remote", addressOf(d.where), "rule", r.Rule, "by", r.By)
		p.tell(ctx, d, Granted, r.Account, r.By)
	}
	return &grant{
		Fleet: p.Station.Fleet, Account: r.Account, Name: r.Name, Role: r.Role,
		JWT: reply.JWT, Chain: reply.Chain, CA: reply.CA, Servers: reply.Servers, Expires: reply.Expires,
	}, nil
}
