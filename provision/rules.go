package provision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// What a rule says of a request that it fits.
const (
	Approve = "approve"
	Deny    = "deny"
	// Wait has a person decide.
	Wait = "wait"
	// AskHook has the hook decide.
	AskHook = "hook"
)

// The proofs that a rule may demand.
const (
	ProofNone  = "none"
	ProofToken = "token"
	ProofClaim = "claim"
)

// Rules say who gets an identity, and which. ParseRules makes one.
type Rules struct {
	// Keys are those of who signs claims, by name: PEM, or the 32 bytes of an Ed25519
	// key in base64.
	Keys map[string]string `json:"keys,omitempty"`
	// Rules are looked at in their order; the first that fits decides. A request that
	// none fits is denied.
	Rules []Rule `json:"rules"`

	keys map[string]any
}

// A Rule fits a request if all holds that it names.
type Rule struct {
	// Name of the rule, for people.
	Name string `json:"name"`
	// Names are patterns of names, such as web-*; one has to fit. Empty: any.
	Names []string `json:"names,omitempty"`
	// Networks that the machine asks from, such as 10.0.0.0/8; one has to hold it.
	// Empty: any.
	Networks []string `json:"networks,omitempty"`
	// Proof that is needed: ProofToken, ProofClaim or ProofNone. Required.
	Proof string `json:"proof"`
	// Token is the label of the token. Empty: any.
	Token string `json:"token,omitempty"`
	// Key is the name of the key of the claim. Empty: any. Claims are what it has to
	// say: a text, or a list of texts that has it.
	Key    string            `json:"key,omitempty"`
	Claims map[string]string `json:"claims,omitempty"`
	// PerMinute is how many requests are decided by this rule in a minute; what comes
	// beyond waits its turn. 0: any number.
	PerMinute int `json:"per_minute,omitempty"`
	// Decide is Approve, Deny, Wait or AskHook. Default: Approve if the proof is a token or a
	// claim, and else Wait.
	Decide string `json:"decide,omitempty"`
	// Account that the machine gets an identity in, and its Role there. The hook, and who
	// approves, may choose others. Default of Role: "machine".
	Account string `json:"account,omitempty"`
	Role    string `json:"role,omitempty"`
	// Reason is what a machine is told that is denied.
	Reason string `json:"reason,omitempty"`

	networks []netip.Prefix
	turns    *rate.Limiter
}

// maxRules bounds a file of rules, in bytes.
const maxRules = 1 << 20

// ParseRules reads rules in JSON. The error joins every problem, each with the rule
// that has it.
func ParseRules(r io.Reader) (*Rules, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxRules+1))
	if err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	if len(data) > maxRules {
		return nil, fmt.Errorf("reading rules: they have more than %d bytes", maxRules)
	}
	rules := new(Rules)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(rules); err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	return rules, rules.prepare()
}

// prepare reads what texts hold, and completes rules.
func (r *Rules) prepare() error {
	var errs []error
	r.keys = map[string]any{}
	for name, text := range r.Keys {
		key, err := parseKey(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("keys.%s: %w", name, err))
		}
		r.keys[name] = key
	}
	if len(r.Rules) == 0 {
		errs = append(errs, errors.New("there is no rule, so that nobody would get an identity: write one with proof and account"))
	}
	for i := range r.Rules {
		rule := &r.Rules[i]
		if rule.Name == "" {
			rule.Name = strconv.Itoa(i + 1)
		}
		for _, err := range rule.prepare(r.keys) {
			errs = append(errs, fmt.Errorf("rule %q: %w", rule.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (r *Rule) prepare(keys map[string]any) (errs []error) {
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, pattern := range r.Names {
		if _, err := path.Match(pattern, ""); err != nil {
			add("names: %q is not a pattern: write it like web-* or web-[0-9]", pattern)
		}
	}
	for _, text := range r.Networks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			add("networks: %q is not a network: write it like 10.0.0.0/8", text)
		}
		r.networks = append(r.networks, network.Masked())
	}
	switch r.Proof {
	case ProofToken, ProofClaim, ProofNone:
	default:
		add("proof: it is %q and has to be token, claim or none", r.Proof)
	}
	if r.Token != "" && r.Proof != ProofToken || (r.Key != "" || len(r.Claims) > 0) && r.Proof != ProofClaim {
		add("token is for proof token, and key and claims are for proof claim")
	}
	if _, known := keys[r.Key]; r.Key != "" && !known {
		add("key: there is no key %q under keys", r.Key)
	}
	if r.Proof == ProofClaim && len(keys) == 0 {
		add("proof: without keys nobody's claims are believed: add one under keys")
	}
	if r.Decide == "" {
		r.Decide = Approve
		if r.Proof == ProofNone {
			r.Decide = Wait
		}
	}
	switch {
	case !slices.Contains([]string{Approve, Deny, Wait, AskHook}, r.Decide):
		add("decide: it is %q and has to be approve, deny, wait or hook", r.Decide)
	case r.Decide == Approve && r.Proof == ProofNone:
		add("decide: whoever comes would get an identity: demand a proof, or have the rule wait or ask the hook")
	case r.Decide == Approve && r.Account == "":
		add("account: it is missing")
	}
	if r.Role == "" {
		r.Role = identity.RoleMachine
	}
	if r.Account != "" {
		if refusal := admin.Provisionable(r.Account, r.Role); refusal != nil {
			add("%v", refusal)
		}
	}
	if r.PerMinute < 0 {
		add("per_minute: it is negative")
	}
	r.turns = rate.NewLimiter(rate.Inf, 1)
	if r.PerMinute > 0 {
		r.turns = rate.NewLimiter(rate.Limit(float64(r.PerMinute)/60), max(1, r.PerMinute/60))
	}
	return errs
}

// A proof is what a request has proved.
type proof struct {
	kind  string
	token Token
	claim claim
}

// String is the proof in words, with the name of a token or key.
func (p proof) String() string {
	switch p.kind {
	case ProofToken:
		return strings.TrimSpace("token " + p.token.ID + " " + p.token.Label)
	case ProofClaim:
		return "claim of " + p.claim.By
	}
	return "no proof"
}

// match returns the first rule that fits, nil if none does.
func (r *Rules) match(name string, from netip.Addr, p proof) *Rule {
	for i := range r.Rules {
		if r.Rules[i].fits(name, from, p) {
			return &r.Rules[i]
		}
	}
	return nil
}

func (r *Rule) fits(name string, from netip.Addr, p proof) bool {
	named := len(r.Names) == 0 || slices.ContainsFunc(r.Names, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
	near := len(r.networks) == 0 || slices.ContainsFunc(r.networks, func(n netip.Prefix) bool { return n.Contains(from) })
	if !named || !near || r.Proof != ProofNone && r.Proof != p.kind {
		return false
	}
	switch r.Proof {
	case ProofToken:
		return r.Token == "" || r.Token == p.token.Label
	case ProofClaim:
		if r.Key != "" && r.Key != p.claim.By {
			return false
		}
		for name, want := range r.Claims {
			if !says(p.claim.All[name], want) {
				return false
			}
		}
	}
	return true
}

// says reports whether a claim is that text, or a list that has it.
func says(value any, want string) bool {
	if list, ok := value.([]any); ok {
		return slices.ContainsFunc(list, func(v any) bool { return says(v, want) })
	}
	switch v := value.(type) {
	case string:
		return v == want
	case bool, float64:
		return fmt.Sprint(v) == want
	}
	return false
}

// A Live holds rules that may be replaced while they are in use. The zero value
// denies everybody.
type Live struct {
	mu    sync.Mutex
	rules *Rules
}

// Set replaces the rules. What is unchanged keeps its turns.
func (l *Live) Set(rules *Rules) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rules != nil {
		for i := range rules.Rules {
			for _, old := range l.rules.Rules {
				turns := old.turns
				if old.turns = rules.Rules[i].turns; reflect.DeepEqual(old, rules.Rules[i]) {
					rules.Rules[i].turns = turns
				}
			}
		}
	}
	l.rules = rules
}

func (l *Live) get() *Rules {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rules == nil {
		return new(Rules)
	}
	return l.rules
}

// wait is how long a request has to wait for its turn by the rule; 0: it is its turn.
func (r *Rule) wait(now time.Time) time.Duration {
	turn := r.turns.ReserveN(now, 1)
	if d := turn.DelayFrom(now); d > 0 {
		turn.CancelAt(now) // it comes again
		return d
	}
	return 0
}
