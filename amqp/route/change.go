package route

import (
	"encoding/json"
	"fmt"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// Kind is what a Change does.
type Kind string

// The kinds, which are Table's methods of these names.
const (
	DeclareExchange Kind = "declare"
	DeleteExchange  Kind = "delete"
	BindTo          Kind = "bind"
	UnbindFrom      Kind = "unbind"
	DropQueue       Kind = "drop-queue"
)

// A Change is one of a table, as a value. Tables that are equal are equal after the same
// changes in the same order, those that are refused among them. It can be written as
// JSON.
type Change struct {
	Kind Kind `json:"kind"`
	// Exchange is what is declared.
	Exchange *Exchange `json:"exchange,omitempty"`
	// Name is of the exchange that is deleted, or of the queue.
	Name     Name `json:"name,omitempty"`
	IfUnused bool `json:"ifUnused,omitempty"`
	// Binding is what is bound or unbound.
	Binding *Binding `json:"binding,omitempty"`
}

// A Name is any bytes, which not all are text in JSON.
type Name string

// MarshalJSON implements json.Marshaler.
func (n Name) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(n)) }

// UnmarshalJSON implements json.Unmarshaler.
func (n *Name) UnmarshalJSON(text []byte) error {
	var b []byte
	err := json.Unmarshal(text, &b)
	*n = Name(b)
	return err
}

// Apply does c. changed is false if nothing is different after it; also are the names of
// exchanges that went with what was asked for. Errors are those of the method, and one for
// a change of a kind that this version does not know.
func (t *Table) Apply(c Change) (changed bool, also []string, err error) {
	before := t.at.Load()
	switch {
	case c.Kind == DeclareExchange && c.Exchange != nil:
		changed, err = t.Declare(*c.Exchange)
		return changed, nil, err
	case c.Kind == BindTo && c.Binding != nil:
		changed, err = t.Bind(*c.Binding)
		return changed, nil, err
	case c.Kind == UnbindFrom && c.Binding != nil:
		also, err = t.Unbind(*c.Binding)
	case c.Kind == DeleteExchange:
		also, err = t.Delete(string(c.Name), c.IfUnused)
	case c.Kind == DropQueue:
		also = t.DropQueue(string(c.Name))
	default:
		return false, nil, fmt.Errorf("a change of the routing table is of the kind %q and cannot be applied: a newer version wrote it; upgrade this node", c.Kind)
	}
	after := t.at.Load()
	return err == nil && (before.exchanges.root != after.exchanges.root || before.to.root != after.to.root), also, err
}

// arguments are written as they are on the wire: numbers keep their types.
type arguments frame.Table

// MarshalJSON implements json.Marshaler.
func (a arguments) MarshalJSON() ([]byte, error) {
	b, err := frame.Table(a).Append(nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(b)
}

// UnmarshalJSON implements json.Unmarshaler.
func (a *arguments) UnmarshalJSON(text []byte) error {
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil || b == nil {
		return err
	}
	t, err := frame.DecodeTable(b)
	if err != nil {
		return err
	}
	*a = arguments(t)
	return nil
}

type exchangeJSON struct {
	Name       Name      `json:"name"`
	Type       string    `json:"type"`
	Durable    bool      `json:"durable,omitempty"`
	AutoDelete bool      `json:"autoDelete,omitempty"`
	Internal   bool      `json:"internal,omitempty"`
	Alternate  Name      `json:"alternate,omitempty"`
	Arguments  arguments `json:"arguments,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (e Exchange) MarshalJSON() ([]byte, error) {
	return json.Marshal(exchangeJSON{Name(e.Name), e.Type, e.Durable, e.AutoDelete, e.Internal, Name(e.Alternate), arguments(e.Arguments)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *Exchange) UnmarshalJSON(b []byte) error {
	var j exchangeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*e = Exchange{string(j.Name), j.Type, j.Durable, j.AutoDelete, j.Internal, string(j.Alternate), frame.Table(j.Arguments)}
	return nil
}

type bindingJSON struct {
	Source      Name      `json:"source"`
	Destination Name      `json:"destination"`
	ToExchange  bool      `json:"toExchange,omitempty"`
	Key         Name      `json:"key,omitempty"`
	Arguments   arguments `json:"arguments,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (b Binding) MarshalJSON() ([]byte, error) {
	return json.Marshal(bindingJSON{Name(b.Source), Name(b.Destination), b.ToExchange, Name(b.Key), arguments(b.Arguments)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *Binding) UnmarshalJSON(text []byte) error {
	var j bindingJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	*b = Binding{string(j.Source), string(j.Destination), j.ToExchange, string(j.Key), frame.Table(j.Arguments)}
	return nil
}

type tableJSON struct {
	Exchanges []Exchange `json:"exchanges"`
	Bindings  []Binding  `json:"bindings"`
}

// MarshalJSON implements json.Marshaler: all of the table but its vhost, at one time.
// Equal tables are equal bytes.
func (t *Table) MarshalJSON() ([]byte, error) {
	j := tableJSON{Exchanges: []Exchange{}, Bindings: []Binding{}}
	s := t.at.Load()
	always := t.empty()
	for _, name := range s.exchanges.names() {
		e, _ := s.exchanges.get(t.hash, name)
		if _, ok := always.exchanges.get(t.hash, name); !ok {
			j.Exchanges = append(j.Exchanges, e.Exchange)
		}
		for _, id := range e.bindings.names() {
			b, _ := e.bindings.get(t.hash, id)
			j.Bindings = append(j.Bindings, *b)
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON implements json.Unmarshaler. What the table has is replaced at once, or not
// at all if there is an error. The table is one of NewTable.
func (t *Table) UnmarshalJSON(text []byte) error {
	var j tableJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	other := &Table{vhost: t.vhost, hash: t.hash}
	other.at.Store(other.empty())
	for _, e := range j.Exchanges {
		if _, err := other.Declare(e); err != nil {
			return fmt.Errorf("restoring the exchange %q: %w", e.Name, err)
		}
	}
	for _, b := range j.Bindings {
		if _, err := other.Bind(b); err != nil {
			return fmt.Errorf("restoring a binding of %q: %w", b.Source, err)
		}
	}
	return t.change(func(s *state) error {
		*s = *other.at.Load()
		return nil
	})
}
