package certmanager

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/fleetbus/fleetbus/cert"
)

// Settings are the configuration of an account's managers. It is kept on the bus,
// sealed to them and to those who recover it.
type Settings struct {
	// Issuers, in the order in which they are tried.
	Issuers []IssuerSettings `json:"issuers"`
	// Former are issuers that were left out, with their secrets, by which they are what
	// they were if they come back. They issue nothing. A configuration that does not say
	// keeps them; one with an empty list forgets them.
	Former []IssuerSettings `json:"former,omitempty"`
	// DNS are the providers that challenges are answered with.
	DNS []DNSSettings `json:"dns,omitempty"`
	// Defaults are for what a certificate's policy leaves out.
	Defaults Defaults `json:"defaults,omitzero"`
	// Recovery are age recipients (age1…), who can read the configuration when every
	// manager's key is lost.
	Recovery []string `json:"recovery,omitempty"`
	// DeadMan is told that a manager has run.
	DeadMan DeadMan `json:"dead_man,omitzero"`
	// AlertDays before its end a certificate that is still served is a finding, if
	// that is later than when it should have been renewed. Default 7.
	AlertDays int `json:"alert_days,omitempty"`
}

// IssuerSettings describe an authority.
type IssuerSettings struct {
	// Name in policies and records.
	Name string `json:"name"`
	// Type is acme, private, or another that the program knows.
	Type string `json:"type"`
	// Directory is the URL of an ACME directory.
	Directory string `json:"directory,omitempty"`
	// Email of the account at the authority. Empty: none is given.
	Email string `json:"email,omitempty"`
	// EAB binds the account to one that the authority knows.
	EAB *EAB `json:"eab,omitempty"`
	// Profile of certificates. Empty: the authority's default.
	Profile string `json:"profile,omitempty"`
	// CA are PEM certificates that the directory's server is verified with. Empty:
	// those of the system.
	CA string `json:"ca,omitempty"`
	// Life of certificates, such as 720h, of an authority of our own.
	Life string `json:"life,omitempty"`
	// PerHour is how many orders a manager places in an hour, in bursts of a tenth
	// of that. Default 600.
	PerHour int `json:"per_hour,omitempty"`
	// Secret is the account's key, or the private authority itself, in a form that
	// is the issuer's own. Empty: the issuer makes it, and it is kept here.
	Secret string `json:"secret,omitempty"`
}

// EAB is an external account binding: RFC 8555, section 7.3.4.
type EAB struct {
	KeyID   string `json:"kid"`
	HMACKey string `json:"hmac_key"`
}

// DNSSettings describe a DNS provider.
type DNSSettings struct {
	// Name in policies.
	Name string `json:"name"`
	// Provider is its type, such as rfc2136.
	Provider string `json:"provider"`
	// Settings are the provider's own.
	Settings json.RawMessage `json:"settings,omitempty"`
}

// Defaults are for what a certificate's policy leaves out.
type Defaults struct {
	Issuers   []string    `json:"issuers,omitempty"`
	Challenge cert.Method `json:"challenge,omitzero"`
	KeyType   string      `json:"key_type,omitempty"`
	Waves     string      `json:"waves,omitempty"`
}

// DeadMan is asked for once in a while by managers whose passes succeed. When it was
// not for too long, whoever runs it raises the alarm.
type DeadMan struct {
	URL string `json:"url,omitempty"`
	// Method is GET or POST. Default POST.
	Method string `json:"method,omitempty"`
	// Every is how often at most, such as 15m. Default 1h.
	Every string `json:"every,omitempty"`
}

// maxSettings bounds what is read as a configuration.
const maxSettings = 256 << 10

// Problems are all that is wrong with an input.
type Problems []string

// Error lists them, one a line.
func (p Problems) Error() string { return strings.Join(p, "\n") }

func (p *Problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// ParseSettings reads a configuration that somebody wrote, strictly. types are those of
// issuers that are known. The error is Problems.
func ParseSettings(data []byte, types []string) (*Settings, error) {
	if len(data) > maxSettings {
		return nil, Problems{fmt.Sprintf("it has %d bytes, and %d are allowed", len(data), maxSettings)}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, Problems{"it is no JSON: " + err.Error()}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Problems{"something follows the configuration"}
	}
	var p Problems
	p.walk("", reflect.TypeFor[Settings](), tree)
	if len(p) > 0 {
		return nil, p
	}
	s := &Settings{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, Problems{err.Error()}
	}
	if p = s.problems(types); len(p) > 0 {
		return nil, p
	}
	return s, nil
}

// walk compares a JSON value with the type that it is for.
func (p *Problems) walk(path string, t reflect.Type, value any) {
	where := strings.TrimPrefix(path, ".")
	if where == "" {
		where = "configuration"
	}
	if value == nil || t == reflect.TypeFor[json.RawMessage]() {
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		p.walk(path, t.Elem(), value)
	case reflect.Struct:
		object, ok := value.(map[string]any)
		if !ok {
			p.add("%s: it must be an object", where)
			return
		}
		fields := map[string]reflect.Type{}
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			fields[name] = t.Field(i).Type
		}
		for _, key := range slices.Sorted(maps.Keys(object)) {
			if field, ok := fields[key]; ok {
				p.walk(path+"."+key, field, object[key])
			} else {
				p.add("%s: unknown key; these are known: %s", strings.TrimPrefix(path+"."+key, "."), strings.Join(slices.Sorted(maps.Keys(fields)), " "))
			}
		}
	case reflect.Slice:
		array, ok := value.([]any)
		if !ok {
			p.add("%s: it must be a list", where)
			return
		}
		for i, e := range array {
			p.walk(fmt.Sprintf("%s[%d]", path, i), t.Elem(), e)
		}
	case reflect.String:
		if _, ok := value.(string); !ok {
			p.add("%s: it must be a text", where)
		}
	case reflect.Int:
		if n, ok := value.(float64); !ok || n != float64(int(n)) {
			p.add("%s: it must be a whole number", where)
		}
	}
}

// problems are what is wrong with values.
func (s *Settings) problems(types []string) Problems {
	var p Problems
	if len(s.Issuers) == 0 {
		p.add("issuers: at least one is needed")
	}
	names := map[string]bool{}
	for i, issuer := range s.Issuers {
		where := fmt.Sprintf("issuers[%d]", i)
		if !cert.IsToken(issuer.Name) {
			p.add("%s.name: %q is no name: letters, digits, dashes and underscores make one", where, issuer.Name)
		} else if names[issuer.Name] {
			p.add("%s.name: there are two issuers %q", where, issuer.Name)
		}
		names[issuer.Name] = true
		if !slices.Contains(types, issuer.Type) {
			p.add("%s.type: %q is none; these are: %s", where, issuer.Type, strings.Join(types, " "))
		}
		if issuer.Type == "acme" {
			p.checkURL(where+".directory", issuer.Directory)
		}
		if e := issuer.EAB; e != nil && (e.KeyID == "" || e.HMACKey == "") {
			p.add("%s.eab: kid and hmac_key are both needed", where)
		}
		p.checkLength(where+".life", issuer.Life)
		if issuer.PerHour < 0 {
			p.add("%s.per_hour: it must not be negative", where)
		}
	}
	providers := map[string]bool{}
	for i, dns := range s.DNS {
		if dns.Name == "" || providers[dns.Name] {
			p.add("dns[%d].name: each provider needs a name of its own", i)
		}
		providers[dns.Name] = true
		if dns.Provider == "" {
			p.add("dns[%d].provider: it is missing", i)
		}
	}
	for i, name := range s.Defaults.Issuers {
		if !names[name] {
			p.add("defaults.issuers[%d]: there is no issuer %q", i, name)
		}
	}
	p.checkMethod("defaults.challenge", s.Defaults.Challenge)
	if name := s.Defaults.Challenge.Provider; name != "" && !providers[name] {
		p.add("defaults.challenge.provider: there is no DNS provider %q", name)
	}
	p.checkKeyType("defaults.key_type", s.Defaults.KeyType)
	p.checkWaves("defaults.waves", s.Defaults.Waves)
	p.checkRecovery(s.Recovery)
	if s.DeadMan.URL != "" {
		p.checkURL("dead_man.url", s.DeadMan.URL)
	}
	if !slices.Contains([]string{"", "GET", "POST"}, s.DeadMan.Method) {
		p.add("dead_man.method: %q is neither GET nor POST", s.DeadMan.Method)
	}
	p.checkLength("dead_man.every", s.DeadMan.Every)
	if s.AlertDays < 0 {
		p.add("alert_days: it must not be negative")
	}
	return p
}

func (p *Problems) checkURL(where, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		p.add("%s: %q is no URL", where, text)
	}
}

func (p *Problems) checkLength(where, text string) {
	if d, err := time.ParseDuration(text); text != "" && (err != nil || d <= 0) {
		p.add("%s: %q is no length of time, such as 90m", where, text)
	}
}

func (p *Problems) checkMethod(where string, m cert.Method) {
	if !slices.Contains([]string{"", "dns-01", "dns-persist-01", "http-01", "tls-alpn-01"}, m.Type) {
		p.add("%s.type: %q is none; these are: dns-01 dns-persist-01 http-01 tls-alpn-01", where, m.Type)
	}
}

func (p *Problems) checkKeyType(where, keyType string) {
	if _, known := keyTypes()[keyType]; !known && keyType != "" {
		p.add("%s: %q is none; these are: %s", where, keyType, strings.Join(slices.Sorted(maps.Keys(keyTypes())), " "))
	}
}

func (p *Problems) checkWaves(where, waves string) {
	if !slices.Contains([]string{"", "waves", "all"}, waves) {
		p.add("%s: %q is neither waves nor all", where, waves)
	}
}

func (p *Problems) checkRecovery(texts []string) {
	before := len(*p)
	for i, text := range texts {
		if _, err := parseRecipient(text); err != nil {
			p.add("recovery[%d]: it is no age recipient, which begins with age1", i)
		}
	}
	if len(texts) == 0 || len(*p) > before {
		return
	}
	if _, err := encryptTo(texts, nil); err != nil {
		p.add("recovery: age refuses these recipients together: %v", err)
	}
}

func parseRecipient(text string) (age.Recipient, error) {
	if strings.HasPrefix(text, "age1pq") {
		return age.ParseHybridRecipient(text)
	}
	return age.ParseX25519Recipient(text)
}

// encryptTo encrypts plaintext with age.
func encryptTo(texts []string, plaintext []byte) ([]byte, error) {
	var recipients []age.Recipient
	for _, text := range texts {
		r, err := parseRecipient(text)
		if err != nil {
			return nil, fmt.Errorf("reading a recipient: %w", err)
		}
		recipients = append(recipients, r)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return out.Bytes(), nil
}

// configPurpose is what the configuration is sealed as.
const configPurpose = "configuration"

// sealSettings makes the record that follows before, which is nil if there is none.
func sealSettings(key *cert.ManagerKey, before *cert.Config, s *Settings) (*cert.Config, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration: %w", err)
	}
	c := &cert.Config{Version: recordVersion, Revision: 1, Recipients: s.Recovery}
	if before != nil {
		c.Revision = before.Revision + 1
	}
	if c.Managers, err = key.Seal(configPurpose, text); err != nil {
		return nil, fmt.Errorf("sealing the configuration: %w", err)
	}
	if len(s.Recovery) > 0 {
		if c.Recovery, err = encryptTo(s.Recovery, text); err != nil {
			return nil, fmt.Errorf("sealing the configuration: %w", err)
		}
	}
	return c, nil
}

// openSettings reads a configuration that a manager wrote, leniently.
func openSettings(key *cert.ManagerKey, c *cert.Config) (*Settings, error) {
	text, err := key.Open(configPurpose, c.Managers)
	if err != nil {
		return nil, err
	}
	s := &Settings{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, errors.New("reading the configuration: it is damaged") // the error could quote a secret
	}
	return s, nil
}

// keepSecrets takes over the secrets of issuers that s does not give anew: who corrects
// an address, or leaves an issuer out for once, shall not lose the account, nor a root
// that clients trust.
func (s *Settings) keepSecrets(before *Settings) {
	if s.Former == nil {
		s.Former = before.Former
	}
	same := func(a IssuerSettings) func(IssuerSettings) bool {
		return func(b IssuerSettings) bool {
			return a.Name == b.Name && a.Type == b.Type && a.Directory == b.Directory
		}
	}
	former := slices.Clone(s.Former)
	for _, old := range before.Issuers {
		if former = slices.DeleteFunc(former, same(old)); old.Secret != "" {
			former = append(former, old)
		}
	}
	for i := range s.Issuers {
		issuer := &s.Issuers[i]
		if at := slices.IndexFunc(former, same(*issuer)); at >= 0 {
			issuer.Secret = cmp.Or(issuer.Secret, former[at].Secret)
			former = slices.Delete(former, at, at+1)
		}
	}
	s.Former = former
}

// issuer returns the settings of an issuer.
func (s *Settings) issuer(name string) (IssuerSettings, bool) {
	i := slices.IndexFunc(s.Issuers, func(issuer IssuerSettings) bool { return issuer.Name == name })
	if i < 0 {
		return IssuerSettings{}, false
	}
	return s.Issuers[i], true
}

// issuersFor are the names of the issuers of a certificate, in order.
func (s *Settings) issuersFor(p cert.Policy) []string {
	switch {
	case len(p.Issuers) > 0:
		return p.Issuers
	case len(s.Defaults.Issuers) > 0:
		return s.Defaults.Issuers
	}
	var names []string
	for _, issuer := range s.Issuers {
		names = append(names, issuer.Name)
	}
	return names
}

// methodsFor is how each name of a certificate is proved.
func (s *Settings) methodsFor(p cert.Policy) map[string]cert.Method {
	methods := map[string]cert.Method{}
	for _, name := range p.Names {
		m := p.Challenges[name]
		for _, further := range []cert.Method{p.Challenge, s.Defaults.Challenge, {Type: "dns-01"}} {
			m.Type = cmp.Or(m.Type, further.Type)
			m.Provider = cmp.Or(m.Provider, further.Provider)
		}
		if m.Provider == "" && strings.HasPrefix(m.Type, "dns-") && len(s.DNS) > 0 {
			m.Provider = s.DNS[0].Name
		}
		methods[name] = m
	}
	return methods
}
