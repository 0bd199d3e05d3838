package definitions

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

const (
	// maxFile is the size of a file that is read, in bytes: a hundred thousand queues have
	// some 20 MB.
	maxFile = 64 << 20
	// maxDepth is how deep values may be within one another.
	maxDepth = 32
)

// Definitions are what RabbitMQ exports, of all its virtual hosts or of one. Parse makes
// them.
type Definitions struct {
	vhosts           []vhost
	users            []user
	permissions      []permission
	topicPermissions []topicPermission
	exchanges        []exchange
	queues           []queue
	bindings         []binding
	policies         []policy
	operator         []policy
	parameters       []parameter
	global           []parameter
	unknown          []string // keys that nobody knows
	version          string
}

type vhost struct {
	Name   string   `json:"name"`
	Limits settings `json:"limits"`
	// DefaultType is the type of queues that are declared without one.
	DefaultType string `json:"default_queue_type"`
}

type user struct {
	Name   string   `json:"name"`
	Hash   string   `json:"password_hash"`
	Tags   tags     `json:"tags"`
	Limits settings `json:"limits"`
}

// within is the virtual host that something is in. An export of one virtual host names
// none.
type within struct {
	VHost string `json:"vhost"`
}

type permission struct {
	within
	User      string `json:"user"`
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

type topicPermission struct {
	within
	User     string `json:"user"`
	Exchange string `json:"exchange"`
	Write    string `json:"write"`
	Read     string `json:"read"`
}

type exchange struct {
	within
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	Durable    bool     `json:"durable"`
	AutoDelete bool     `json:"auto_delete"`
	Internal   bool     `json:"internal"`
	Arguments  settings `json:"arguments"`
}

type queue struct {
	within
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	Durable    bool     `json:"durable"`
	AutoDelete bool     `json:"auto_delete"`
	Exclusive  bool     `json:"exclusive"`
	Arguments  settings `json:"arguments"`
}

type binding struct {
	within
	Source      string   `json:"source"`
	Destination string   `json:"destination"`
	Kind        string   `json:"destination_type"`
	Key         string   `json:"routing_key"`
	Arguments   settings `json:"arguments"`
}

type policy struct {
	within
	Name       string   `json:"name"`
	Pattern    string   `json:"pattern"`
	ApplyTo    string   `json:"apply-to"`
	Priority   int64    `json:"priority"`
	Definition settings `json:"definition"`
}

type parameter struct {
	within
	Component string          `json:"component"`
	Name      string          `json:"name"`
	Value     json.RawMessage `json:"value"`
}

// tags are in a list or, as older versions have it, in a text with commas.
type tags []string

// UnmarshalJSON reads either.
func (t *tags) UnmarshalJSON(data []byte) error {
	var list []string
	if err := json.Unmarshal(data, &list); err == nil {
		*t = list
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	*t = strings.FieldsFunc(text, func(c rune) bool { return c == ',' || c == ' ' })
	return nil
}

// settings are values by name: an object, or as some versions have it a list of pairs, or
// an empty list. Whole numbers are int64.
type settings map[string]any

// UnmarshalJSON reads either.
func (s *settings) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return err
	}
	*s = settings{}
	switch value := value.(type) {
	case nil:
	case map[string]any:
		for name, v := range value {
			(*s)[name] = plain(v)
		}
	case []any:
		for _, v := range value {
			pair, ok := v.([]any)
			if !ok || len(pair) != 2 {
				return errors.New("a list is not of pairs")
			}
			name, ok := pair[0].(string)
			if !ok {
				return errors.New("a list is not of pairs with a name")
			}
			(*s)[name] = plain(pair[1])
		}
	default:
		return errors.New("it is neither an object nor a list of pairs")
	}
	return nil
}

// plain is a value with the numbers that AMQP has.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 { // 6e4
			return int64(f)
		}
		return f
	case map[string]any:
		out := map[string]any{}
		for name, inner := range v {
			out[name] = plain(inner)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = plain(inner)
		}
		return out
	}
	return v
}

// sections are the lists of a file and where they go.
func (d *Definitions) sections() map[string]any {
	return map[string]any{
		"vhosts": &d.vhosts, "users": &d.users, "permissions": &d.permissions, "topic_permissions": &d.topicPermissions, "exchanges": &d.exchanges,
		"queues": &d.queues, "bindings": &d.bindings, "policies": &d.policies, "operator_policies": &d.operator, "parameters": &d.parameters, "global_parameters": &d.global,
	}
}

// described are keys of a file that say what it is, and nothing that is to be made.
func described() []string {
	return []string{"rabbit_version", "rabbitmq_version", "product_name", "product_version", "explanation", "original_cluster_name", "original_vhost_name", "vhost", "description", "metadata", "tags", "name", "limits", "default_queue_type"}
}

// Parse reads a file. An error says where in it, by line and byte.
func Parse(r io.Reader) (*Definitions, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if at := tooDeep(data); at >= 0 {
		return nil, fmt.Errorf("%s: values are more than %d deep in one another", position(data, at), maxDepth)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, located(data, 0, err)
	}
	d := &Definitions{}
	known := 0
	sections := d.sections()
	for name, raw := range all {
		to, ok := sections[name]
		switch {
		case ok:
			known++
			if err := json.Unmarshal(raw, to); err != nil {
				return nil, fmt.Errorf("%s: %w", name, located(data, bytes.Index(data, raw), err))
			}
		case name == "rabbitmq_version", name == "rabbit_version":
			_ = json.Unmarshal(raw, &d.version) // it is shown, and nothing else
		case !slices.Contains(described(), name):
			d.unknown = append(d.unknown, name)
		}
	}
	if known == 0 {
		return nil, errors.New("it has none of vhosts, users, queues, exchanges, bindings: it is no export of definitions")
	}
	slices.Sort(d.unknown)
	return d, d.sort()
}

// sort puts operator policies where they belong: some versions have them as parameters.
func (d *Definitions) sort() error {
	var rest []parameter
	for _, p := range d.parameters {
		if p.Component != "operator_policy" {
			rest = append(rest, p)
			continue
		}
		one := policy{}
		if err := json.Unmarshal(p.Value, &one); err != nil {
			return fmt.Errorf("parameters: operator policy %q: %w", p.Name, err)
		}
		one.VHost, one.Name = p.VHost, p.Name
		d.operator = append(d.operator, one)
	}
	d.parameters = rest
	return nil
}

// tooDeep is where values are too deep in one another, -1 if they are not.
func tooDeep(data []byte) int {
	depth, text := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{', c == '[':
			if depth++; depth > maxDepth {
				return i
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return -1
}

// located is err with its place. from is where in data what was read begins.
func located(data []byte, from int, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: %w", position(data, from+int(syntax.Offset)-1), err)
	case errors.As(err, &kind):
		return fmt.Errorf("%s: %s is where %s is expected", position(data, from+int(kind.Offset)-1), kind.Value, kind.Field)
	}
	return err
}

func position(data []byte, at int) string {
	at = min(max(at, 0), len(data))
	return fmt.Sprintf("line %d, byte %d", 1+bytes.Count(data[:at], []byte("\n")), at-bytes.LastIndexByte(data[:at], '\n'))
}
