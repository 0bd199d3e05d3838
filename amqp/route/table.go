package route

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// The types of exchanges.
const (
	Direct  = "direct"
	Fanout  = "fanout"
	Topic   = "topic"
	Headers = "headers"
)

// alternateKey is the argument that names an exchange's alternate.
const alternateKey = "alternate-exchange"

// reserved begins the names that only a server gives.
const reserved = "amq."

// An Exchange is where messages are published to.
type Exchange struct {
	Name, Type string
	// Durable ones stay when the server stops; AutoDelete ones go with their last binding;
	// only other exchanges publish to Internal ones.
	Durable, AutoDelete, Internal bool
	// Alternate is the exchange that has what this one has nowhere to send, "" for none.
	Alternate string
	// Arguments are those it was declared with.
	Arguments frame.Table
}

// A Binding has messages of an exchange go to a queue, or to another exchange.
type Binding struct {
	Source, Destination string
	ToExchange          bool
	Key                 string
	Arguments           frame.Table
}

// id tells bindings of one source apart.
func (b *Binding) id() string {
	kind := "q"
	if b.ToExchange {
		kind = "e"
	}
	arguments, _ := b.Arguments.Append(nil) // equal tables are equal bytes
	return kind + b.Destination + "\x00" + b.Key + "\x00" + string(arguments)
}

// target is where a binding leads.
type target struct {
	name       string
	isExchange bool
}

func (b *Binding) target() target { return target{b.Destination, b.ToExchange} }

// id tells targets apart.
func (t target) id() string {
	if t.isExchange {
		return "e" + t.name
	}
	return "q" + t.name
}

// exchange is one with what is bound to it. It is never changed.
type exchange struct {
	Exchange
	bindings dict[*Binding]
	rule     rule
}

// rule is how an exchange chooses among its bindings. It is never changed.
type rule interface {
	with(h hasher, b *Binding) rule
	without(h hasher, b *Binding) rule
	// match calls found with where a message goes. One may be found more than once.
	match(h hasher, key string, headers func() frame.Table, found func(target))
}

func newRule(kind string) rule {
	switch kind {
	case Direct:
		return directRule{}
	case Fanout:
		return fanoutRule{}
	case Topic:
		return topicRule{}
	case Headers:
		return headersRule{}
	}
	return nil
}

// A Table has the exchanges of a virtual host and what is bound to them. It is safe for
// concurrent use, and who routes waits for nobody: what the table has is replaced by each
// change and never changed itself. Errors are *frame.Error, with RabbitMQ's codes and
// texts.
type Table struct {
	vhost string
	hash  hasher

	mu     sync.Mutex // of changes
	at     atomic.Pointer[state]
	watch  string         // the exchange whose keys somebody wants to know
	keys   map[string]int // of watch: how many bindings have each; nil: nobody wants to know
	wanted func(key string, is bool)
}

// state is what a table has at a time.
type state struct {
	exchanges dict[*exchange]
	// to are the bindings that lead somewhere, by the ids of targets.
	to dict[dict[*Binding]]
}

// key tells bindings apart.
func (b *Binding) key() string { return b.Source + "\x00" + b.id() }

// NewTable is a table with the exchanges that are always there. vhost is what errors call
// it.
func NewTable(vhost string) *Table {
	t := &Table{vhost: vhost, hash: newHasher()}
	t.at.Store(t.empty())
	return t
}

// empty has the exchanges that are always there.
func (t *Table) empty() *state {
	s := &state{}
	for name, kind := range map[string]string{"": Direct, "amq.direct": Direct, "amq.fanout": Fanout, "amq.topic": Topic, "amq.headers": Headers, "amq.match": Headers} {
		s.exchanges = s.exchanges.with(t.hash, name, &exchange{Exchange: Exchange{Name: name, Type: kind, Durable: true}, rule: newRule(kind)})
	}
	return s
}

// change lets f change a copy of the state, which is the table's from then on unless f
// fails.
func (t *Table) change(f func(s *state) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := *t.at.Load()
	if err := f(&s); err != nil {
		return err
	}
	t.at.Store(&s)
	return nil
}

// Watch has wanted told of each key that something is bound to an exchange with: at once of
// those that there are, and from then on when there is a first binding with a key, and no
// more. It is told in the order of the changes, and does not call the table. There is one
// Watch of a table, and nothing replaces what the table has after it.
func (t *Table) Watch(exchange string, wanted func(key string, is bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watch, t.keys, t.wanted = exchange, map[string]int{}, wanted
	e, ok := t.at.Load().exchanges.get(t.hash, exchange)
	if !ok {
		return
	}
	for _, b := range e.bindings.all() {
		t.count(b, 1)
	}
}

// count counts the bindings with the key of b, for who watches.
func (t *Table) count(b *Binding, by int) {
	if t.keys == nil || b.Source != t.watch {
		return
	}
	n := t.keys[b.Key] + by
	t.keys[b.Key] = n
	if n == 0 {
		delete(t.keys, b.Key)
	}
	if n == 0 || n == 1 && by > 0 {
		t.wanted(b.Key, n > 0)
	}
}

// New is what m declares.
func New(m *frame.ExchangeDeclare) (Exchange, error) {
	e := Exchange{Name: m.Exchange, Type: m.Type, Durable: m.Durable, AutoDelete: m.AutoDelete, Internal: m.Internal, Arguments: m.Arguments}
	switch alternate := m.Arguments[alternateKey].(type) {
	case nil:
	case string:
		e.Alternate = alternate
	default:
		return e, frame.ChannelError(frame.PreconditionFailed, "invalid arg '%s' for exchange '%s': it is no text", alternateKey, m.Exchange)
	}
	return e, nil
}

// Known returns an exchange, or an error that says that there is none.
func (t *Table) Known(name string) (Exchange, error) {
	e, err := t.find(t.at.Load(), name)
	if err != nil {
		return Exchange{}, err
	}
	return e.Exchange, nil
}

func (t *Table) find(s *state, name string) (*exchange, error) {
	if e, ok := s.exchanges.get(t.hash, name); ok {
		return e, nil
	}
	return nil, frame.ChannelError(frame.NotFound, "no exchange '%s' in vhost '%s'", name, t.vhost)
}

// Declare makes an exchange, and reports whether it is new. One that is there has to be
// the same.
func (t *Table) Declare(e Exchange) (made bool, err error) {
	err = t.change(func(s *state) error {
		rule := newRule(e.Type)
		old, _ := s.exchanges.get(t.hash, e.Name)
		switch {
		case e.Name == "":
			return onDefault()
		case rule == nil:
			return frame.ConnectionError(frame.CommandInvalid, "unknown exchange type '%s'", e.Type)
		case old != nil:
			return t.same(&old.Exchange, &e)
		case strings.HasPrefix(e.Name, reserved):
			return reservedName("exchange", e.Name)
		}
		made = true
		s.exchanges = s.exchanges.with(t.hash, e.Name, &exchange{Exchange: e, rule: rule})
		return nil
	})
	return made, err
}

// same says what is not as it was declared before.
func (t *Table) same(old, e *Exchange) error {
	for _, one := range []struct {
		name             string
		received, before string
	}{
		{"type", e.Type, old.Type},
		{"durable", text(e.Durable), text(old.Durable)},
		{"auto_delete", text(e.AutoDelete), text(old.AutoDelete)},
		{"internal", text(e.Internal), text(old.Internal)},
	} {
		if one.received != one.before {
			return frame.ChannelError(frame.PreconditionFailed, "inequivalent arg '%s' for exchange '%s' in vhost '%s': received '%s' but current is '%s'", one.name, e.Name, t.vhost, one.received, one.before)
		}
	}
	if e.Alternate != old.Alternate {
		return frame.ChannelError(frame.PreconditionFailed, "inequivalent arg '%s' for exchange '%s' in vhost '%s': received %s but current is %s", alternateKey, e.Name, t.vhost, orNone(e.Alternate), orNone(old.Alternate))
	}
	return nil
}

func text(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return "the value '" + s + "'"
}

func onDefault() error {
	return frame.ChannelError(frame.AccessRefused, "operation not permitted on the default exchange")
}

func reservedName(what, name string) error {
	return frame.ChannelError(frame.AccessRefused, "%s name '%s' contains reserved prefix 'amq.*'", what, name)
}

// Delete removes an exchange with all its bindings, and returns the names of the others
// that go with it. That there is none is no error.
func (t *Table) Delete(name string, ifUnused bool) (also []string, err error) {
	err = t.change(func(s *state) error {
		e, _ := s.exchanges.get(t.hash, name)
		switch {
		case name == "":
			return onDefault()
		case strings.HasPrefix(name, reserved):
			return reservedName("exchange", name)
		case e == nil:
			return nil
		case ifUnused && e.bindings.len() > 0:
			return frame.ChannelError(frame.PreconditionFailed, "exchange '%s' in vhost '%s' in use", name, t.vhost)
		}
		also = t.drop(s, e)
		return nil
	})
	return also, err
}

// drop removes an exchange, and those that are to go without it.
func (t *Table) drop(s *state, e *exchange) (also []string) {
	s.exchanges = s.exchanges.without(t.hash, e.Name)
	for _, b := range e.bindings.all() {
		t.count(b, -1)
		t.unlink(s, b)
	}
	return t.dropTo(s, target{e.Name, true})
}

// dropTo removes what leads to somewhere, and the exchanges that go with it.
func (t *Table) dropTo(s *state, to target) (also []string) {
	bound, _ := s.to.get(t.hash, to.id())
	s.to = s.to.without(t.hash, to.id())
	for _, key := range bound.names() {
		b, _ := bound.get(t.hash, key)
		also = append(also, t.remove(s, b)...)
	}
	return also
}

// remove removes a binding, and its source if that goes with its last one.
func (t *Table) remove(s *state, b *Binding) (also []string) {
	t.unlink(s, b)
	e, ok := s.exchanges.get(t.hash, b.Source)
	if !ok {
		return nil
	}
	if _, ok := e.bindings.get(t.hash, b.id()); !ok {
		return nil
	}
	t.count(b, -1)
	now := *e
	now.bindings, now.rule = e.bindings.without(t.hash, b.id()), e.rule.without(t.hash, b)
	s.exchanges = s.exchanges.with(t.hash, e.Name, &now)
	if e.AutoDelete && now.bindings.len() == 0 {
		also = append(t.drop(s, &now), e.Name)
	}
	return also
}

func (t *Table) unlink(s *state, b *Binding) {
	bound, _ := s.to.get(t.hash, b.target().id())
	if bound = bound.without(t.hash, b.key()); bound.len() > 0 {
		s.to = s.to.with(t.hash, b.target().id(), bound)
	} else {
		s.to = s.to.without(t.hash, b.target().id())
	}
}

// DropQueue removes the bindings of a queue, and returns the names of the exchanges that
// go with them.
func (t *Table) DropQueue(name string) (also []string) {
	_ = t.change(func(s *state) error {
		also = t.dropTo(s, target{name, false})
		return nil
	})
	return also
}

// Bind binds, and reports whether it was not bound so. That there is a queue is the
// caller's to know.
func (t *Table) Bind(b Binding) (made bool, err error) {
	err = t.change(func(s *state) error {
		e, err := t.judge(s, &b)
		if err != nil {
			return err
		}
		if e.Type == Headers {
			if _, err := matching(b.Arguments); err != nil {
				return err
			}
		}
		if _, ok := e.bindings.get(t.hash, b.id()); ok {
			return nil
		}
		made = true
		t.count(&b, 1)
		now := *e
		now.bindings, now.rule = e.bindings.with(t.hash, b.id(), &b), e.rule.with(t.hash, &b)
		s.exchanges = s.exchanges.with(t.hash, e.Name, &now)
		bound, _ := s.to.get(t.hash, b.target().id())
		s.to = s.to.with(t.hash, b.target().id(), bound.with(t.hash, b.key(), &b))
		return nil
	})
	return made, err
}

// judge looks whether the exchanges of b are there.
func (t *Table) judge(s *state, b *Binding) (*exchange, error) {
	if b.Source == "" || b.ToExchange && b.Destination == "" {
		return nil, onDefault()
	}
	e, err := t.find(s, b.Source)
	if err == nil && b.ToExchange {
		_, err = t.find(s, b.Destination)
	}
	return e, err
}

// Unbind removes a binding, and returns the names of the exchanges that go with it. That
// there is none is no error.
func (t *Table) Unbind(b Binding) (also []string, err error) {
	err = t.change(func(s *state) error {
		if b.Source == "" || b.ToExchange && b.Destination == "" {
			return onDefault()
		}
		if e, ok := s.exchanges.get(t.hash, b.Source); ok {
			if old, ok := e.bindings.get(t.hash, b.id()); ok {
				also = t.remove(s, old)
			}
		}
		return nil
	})
	return also, err
}

// Exchanges are all, in the order of their names.
func (t *Table) Exchanges() (all []Exchange) {
	s := t.at.Load()
	for _, name := range s.exchanges.names() {
		e, _ := s.exchanges.get(t.hash, name)
		all = append(all, e.Exchange)
	}
	return all
}

// Bindings are those of an exchange, in the order of where they lead.
func (t *Table) Bindings(exchange string) (all []Binding) {
	e, ok := t.at.Load().exchanges.get(t.hash, exchange)
	if !ok {
		return nil
	}
	for _, id := range e.bindings.names() {
		b, _ := e.bindings.get(t.hash, id)
		all = append(all, *b)
	}
	return all
}
