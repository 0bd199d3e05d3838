// Package dns has the DNS providers that prove control of names for ACME: their
// settings, and how each adds and removes one text.
//
// Some are always there. Others bring a large client along, and are there in programs
// that are built with a tag of their name: azure, digitalocean, googleclouddns, hetzner,
// route53.
package dns

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
)

const (
	// callTime bounds one call of a provider.
	callTime = time.Minute
	// atOnce bounds the calls of one provider at the same time.
	atOnce = 4
	// defaultTTL of texts; some providers want longer ones.
	defaultTTL = time.Minute
	// maxSettings bounds what is read as settings.
	maxSettings = 64 << 10
)

// A client is what a provider is made of.
type client interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// A Setting is one that a provider has.
type Setting struct {
	Name string
	// Required settings have no default.
	Required bool
	// Secret settings are not shown.
	Secret bool
	// About it, for people.
	About string
}

// A kind is a provider that this program has.
type kind struct {
	settings []Setting
	open     func(map[string]string) (client, error)
	ttl      time.Duration // zero: defaultTTL
	lists    bool          // records can be listed
	forgets  bool          // texts need not, and cannot, be removed
}

// kinds are the providers of this program.
func kinds() map[string]kind {
	all := standard()
	for name, tagged := range optional() {
		if k, ok := tagged(); ok {
			all[name] = k
		}
	}
	return all
}

// optional are the providers that need a build tag.
func optional() map[string]func() (kind, bool) {
	return map[string]func() (kind, bool){
		"azure": azureKind, "digitalocean": digitaloceanKind, "googleclouddns": googleKind, "hetzner": hetznerKind, "route53": route53Kind,
	}
}

// Kinds are the providers of this program, sorted.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds())) }

// Settings are those of a provider.
func Settings(provider string) ([]Setting, error) {
	k, err := find(provider)
	return slices.Clone(k.settings), err
}

func find(provider string) (kind, error) {
	k, ok := kinds()[provider]
	if ok {
		return k, nil
	}
	there := strings.Join(Kinds(), ", ")
	if _, tagged := optional()[provider]; tagged {
		return kind{}, fmt.Errorf("this program is built without the DNS provider %q: build it with -tags %s; it has: %s", provider, provider, there)
	}
	return kind{}, fmt.Errorf("there is no DNS provider %q; there are: %s; and with a build tag: %s", provider, there, strings.Join(slices.Sorted(maps.Keys(optional())), ", "))
}

// A Provider adds and removes texts at a DNS provider. Make it with New. It is safe
// for concurrent use. It never shows its settings.
type Provider struct {
	name   string
	kind   kind
	client client
	places chan struct{}

	mu      sync.Mutex
	written map[string]libdns.Record // as the provider has them, by zone, name and text
}

// New makes a provider, and connects nothing. settings are a JSON object of texts,
// numbers and truth values; empty are none. A setting that the provider does not have
// is an error, which lists those that it has. No error quotes a value.
func New(provider string, settings json.RawMessage) (*Provider, error) {
	k, err := find(provider)
	if err != nil {
		return nil, err
	}
	values, err := decode(settings)
	if err == nil {
		err = k.check(values)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the settings of DNS provider %q: %w", provider, err)
	}
	c, err := k.open(values)
	if err != nil {
		return nil, fmt.Errorf("opening DNS provider %q: %w", provider, err)
	}
	k.ttl = cmp.Or(k.ttl, defaultTTL)
	return &Provider{name: provider, kind: k, client: c, places: make(chan struct{}, atOnce), written: map[string]libdns.Record{}}, nil
}

// decode reads settings. What is wrong with JSON is told without its text.
func decode(settings json.RawMessage) (map[string]string, error) {
	values := map[string]string{}
	if len(bytes.TrimSpace(settings)) == 0 {
		return values, nil
	}
	if len(settings) > maxSettings {
		return nil, fmt.Errorf("they have %d bytes, and %d are allowed", len(settings), maxSettings)
	}
	d := json.NewDecoder(bytes.NewReader(settings))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		return nil, errors.New("they are no JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	for name, value := range object {
		switch value := value.(type) {
		case string:
			values[name] = value
		case bool, json.Number:
			values[name] = fmt.Sprint(value)
		default:
			return nil, fmt.Errorf("%q is neither a text nor a number nor true or false", name)
		}
	}
	return values, nil
}

// check says which settings are unknown, and which are missing.
func (k kind) check(values map[string]string) error {
	var known []string
	var problems []error
	for _, s := range k.settings {
		known = append(known, s.Name)
		if s.Required && values[s.Name] == "" {
			problems = append(problems, fmt.Errorf("%s is missing: %s", s.Name, s.About))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, name) {
			problems = append(problems, fmt.Errorf("there is no setting %q; there are: %s", name, strings.Join(known, ", ")))
		}
	}
	return errors.Join(problems...)
}

// String is the provider's name.
func (p *Provider) String() string { return "DNS provider " + p.name }

// Format writes String for every verb, so that none shows a secret.
func (p *Provider) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// LogValue is String.
func (p *Provider) LogValue() slog.Value { return slog.StringValue(p.String()) }

// call runs do, and returns when ctx is done even if do does not: the clients of some
// providers do not know contexts.
func (p *Provider) call(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTime, fmt.Errorf("%s did not answer in %v", p, callTime))
	defer cancel()
	select {
	case p.places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-p.places }()
		defer func() {
			// Some panic at what they do not expect, which must not end the program.
			if problem := recover(); problem != nil {
				done <- fmt.Errorf("the client of %s failed: %v", p, problem)
			}
		}()
		done <- do(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		select {
		case err := <-done:
			return err
		default:
			return context.Cause(ctx)
		}
	}
}

func (p *Provider) record(zone, name, text string) libdns.TXT {
	return libdns.TXT{Name: libdns.RelativeName(name, zone), TTL: p.kind.ttl, Text: text}
}

// Append adds a text to those of name, which is absolute and in zone. One that is
// there already is no error.
func (p *Provider) Append(ctx context.Context, zone, name, text string) error {
	zone, name = absolute(zone), absolute(name)
	return p.call(ctx, func(ctx context.Context) error {
		records, err := p.client.AppendRecords(ctx, zone, []libdns.Record{p.record(zone, name, text)})
		if err != nil {
			if there, listed := p.find(ctx, zone, name, text); listed == nil && there != nil {
				p.keep(zone, name, text, there)
				return nil
			}
			return err
		}
		if len(records) == 1 {
			p.keep(zone, name, text, records[0])
		}
		return nil
	})
}

// Delete removes a text of name, and no other. One that is not there is no error.
func (p *Provider) Delete(ctx context.Context, zone, name, text string) error {
	if p.kind.forgets {
		return nil
	}
	zone, name = absolute(zone), absolute(name)
	return p.call(ctx, func(ctx context.Context) error {
		record := p.keep(zone, name, text, nil)
		if record == nil && p.kind.lists {
			there, err := p.find(ctx, zone, name, text)
			if err != nil || there == nil {
				return err
			}
			record = there
		}
		if record == nil {
			record = p.record(zone, name, text)
		}
		_, err := p.client.DeleteRecords(ctx, zone, []libdns.Record{record})
		if err != nil {
			if there, listed := p.find(ctx, zone, name, text); p.kind.lists && listed == nil && there == nil {
				return nil
			}
		}
		return err
	})
}

// keep keeps a record as the provider has it, and returns the one before.
func (p *Provider) keep(zone, name, text string, record libdns.Record) libdns.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := zone + " " + name + " " + text
	before := p.written[key]
	if p.written[key] = record; record == nil {
		delete(p.written, key)
	}
	return before
}

// find returns the record that has a text; nil if there is none.
func (p *Provider) find(ctx context.Context, zone, name, text string) (libdns.Record, error) {
	getter, ok := p.client.(libdns.RecordGetter)
	if !ok || !p.kind.lists {
		return nil, nil
	}
	records, err := getter.GetRecords(ctx, zone)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		rr := r.RR()
		if rr.Type == "TXT" && absolute(libdns.AbsoluteName(rr.Name, zone)) == name && strings.Trim(rr.Data, `"`) == text {
			return r, nil
		}
	}
	return nil, nil
}

func absolute(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) + "." }

// Check says whether the provider does in zone what proving a name takes: it adds a
// text that nobody looks for, finds it in the list if the provider has one, and
// removes it.
func (p *Provider) Check(ctx context.Context, zone string) error {
	zone = absolute(zone)
	name, text := "_fleetbus-check."+zone, rand.Text()
	if err := p.Append(ctx, zone, name, text); err != nil {
		return fmt.Errorf("checking %s for the zone %s: adding a record: %w", p, zone, err)
	}
	var problems []error
	if p.kind.lists {
		err := p.call(ctx, func(ctx context.Context) error {
			there, err := p.find(ctx, zone, name, text)
			if err == nil && there == nil {
				err = errors.New("the record that was added is not there")
			}
			return err
		})
		if err != nil {
			problems = append(problems, fmt.Errorf("checking %s for the zone %s: listing records: %w", p, zone, err))
		}
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	if err := p.Delete(bounded, zone, name, text); err != nil {
		problems = append(problems, fmt.Errorf("checking %s for the zone %s: removing a record: %w", p, zone, err))
	}
	return errors.Join(problems...)
}
