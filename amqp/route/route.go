package route

import "github.com/fleetbus/fleetbus/amqp/frame"

// The headers that name more routing keys.
const (
	carbonCopy = "CC"
	blindCopy  = "BCC"
)

// A Message is what routing has to know of one.
type Message struct {
	Exchange, Key string
	// Headers are asked for if an exchange wants them, once. nil: there are none.
	Headers func() frame.Table
	// Copies are the keys of CC and BCC beside Key.
	Copies []string
}

// Copies are the routing keys that CC and BCC name.
func Copies(headers frame.Table) (keys []string, err error) {
	for _, name := range []string{carbonCopy, blindCopy} {
		switch value := headers[name].(type) {
		case nil:
		case []any:
			for _, one := range value {
				key, ok := one.(string)
				if !ok {
					return nil, badCopies(name)
				}
				keys = append(keys, key)
			}
		default:
			return nil, badCopies(name)
		}
	}
	return keys, nil
}

// DropBlind removes BCC, which no consumer sees, and reports whether it was there.
func DropBlind(headers frame.Table) bool {
	_, was := headers[blindCopy]
	delete(headers, blindCopy)
	return was
}

func badCopies(name string) error {
	return frame.ChannelError(frame.PreconditionFailed, "invalid %s header: it is no array of texts", name)
}

// Route appends to queues the names of those that take a message, each once. The default
// exchange finds a queue of the name of each key; whether there is one is the caller's to
// know. A missing exchange is an error.
func (t *Table) Route(queues []string, m *Message) ([]string, error) {
	s := t.at.Load()
	first, err := t.find(s, m.Exchange)
	if err != nil {
		return queues, err
	}
	return t.route(s, first, queues, m)
}

// Publish is Route for what a client publishes: an internal exchange is an error.
func (t *Table) Publish(queues []string, m *Message) ([]string, error) {
	s := t.at.Load()
	first, err := t.find(s, m.Exchange)
	if err == nil && first.Internal {
		err = frame.ChannelError(frame.AccessRefused, "cannot publish to internal exchange '%s' in vhost '%s'", m.Exchange, t.vhost)
	}
	if err != nil {
		return queues, err
	}
	return t.route(s, first, queues, m)
}

func (t *Table) route(s *state, first *exchange, queues []string, m *Message) ([]string, error) {
	w := walk{t: t, s: s, m: m, queues: queues, from: len(queues)}
	w.visit(first)
	for len(w.next) > 0 {
		e := w.next[0]
		w.next = w.next[1:]
		w.visit(e)
	}
	return w.queues, nil
}

// walk goes from exchange to exchange.
type walk struct {
	t       *Table
	s       *state
	m       *Message
	headers frame.Table
	asked   bool
	queues  []string
	from    int                 // of queues, those of this walk
	seen    map[string]struct{} // of many queues, those that are in queues
	next    []*exchange
	visited []*exchange
}

// many is how many queues are looked through one by one.
const many = 16

func (w *walk) visit(e *exchange) {
	if e.Name == "" {
		w.queue(w.m.Key)
		for _, key := range w.m.Copies {
			w.queue(key)
		}
		return
	}
	w.visited = append(w.visited, e)
	found := false
	take := func(to target) {
		found = true
		if to.isExchange {
			w.exchange(to.name)
		} else {
			w.queue(to.name)
		}
	}
	e.rule.match(w.t.hash, w.m.Key, w.ask, take)
	for _, key := range w.m.Copies {
		e.rule.match(w.t.hash, key, w.ask, take)
	}
	if !found && e.Alternate != "" {
		w.exchange(e.Alternate)
	}
}

func (w *walk) ask() frame.Table {
	if !w.asked && w.m.Headers != nil {
		w.headers = w.m.Headers()
	}
	w.asked = true
	return w.headers
}

func (w *walk) exchange(name string) {
	e, ok := w.s.exchanges.get(w.t.hash, name)
	if !ok { // an alternate that is not there
		return
	}
	for _, known := range w.visited {
		if known == e {
			return
		}
	}
	for _, known := range w.next {
		if known == e {
			return
		}
	}
	w.next = append(w.next, e)
}

func (w *walk) queue(name string) {
	mine := w.queues[w.from:]
	if len(mine) < many {
		for _, known := range mine {
			if known == name {
				return
			}
		}
		w.queues = append(w.queues, name)
		return
	}
	if w.seen == nil {
		w.seen = make(map[string]struct{}, 4*many)
		for _, known := range mine {
			w.seen[known] = struct{}{}
		}
	}
	if _, known := w.seen[name]; !known {
		w.seen[name] = struct{}{}
		w.queues = append(w.queues, name)
	}
}
