package amqp

import (
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/amqp/route"
)

// The rights, as they are called here.
const (
	configure = right.Configure
	write     = right.Write
	read      = right.Read

	defaultExchange = right.DefaultExchange
)

// may returns why the connection may not do something to an exchange or a queue, nil if
// it may.
func (h *attached) may(r right.Right, what, name string) error {
	if right.Allowed(&h.who.principal.Permissions, r, name) {
		return nil
	}
	return h.refused(r, what, name)
}

func (h *attached) refused(r right.Right, what, name string) error {
	if name == "" {
		name = defaultExchange
	}
	return frame.ChannelError(frame.AccessRefused, "%s access to %s '%s' in vhost '%s' refused for user '%s'", r, what, name, h.who.vhost, h.who.principal.Name)
}

func (h *attached) mayExchange(r right.Right, name string) error {
	if name == topicExchange && r != configure {
		return nil // each key is judged by its subject
	}
	if r == write && right.Denied(&h.who.principal.Permissions.Publish, right.EveryKey(name)) {
		return h.refused(r, "exchange", name) // what leads there has any key
	}
	return h.may(r, "exchange", name)
}

// mayPublish judges a message by its exchange or, where keys say who gets it, by its key.
func (h *attached) mayPublish(exchange, key string) error {
	if exchange == topicExchange {
		return nil // the key is judged as a subject
	}
	if h.mine.known && h.mine.exchange == exchange && h.mine.key == key {
		return nil
	}
	may := &h.who.principal.Permissions.Publish
	if right.Allowed(&h.who.principal.Permissions, write, exchange) && (len(may.Deny) == 0 || !right.Denied(may, right.Keyed(exchange, key))) {
		h.mine.exchange, h.mine.key, h.mine.known = exchange, key, true
		return nil
	}
	if h.byKey(exchange) && may.Allows(right.Keyed(exchange, key)) {
		return nil
	}
	return h.refused(write, "exchange", exchange)
}

// mayBind judges that an exchange's messages are had by a binding with the key.
func (h *attached) mayBind(exchange, key string) error {
	if exchange == topicExchange {
		return nil // mayHear judges it
	}
	may := &h.who.principal.Permissions.Subscribe
	all := right.Bound(exchange, key)
	if slices.ContainsFunc(all, func(one string) bool { return right.Denied(may, one) }) {
		return h.refused(read, "exchange", exchange)
	}
	if right.Allowed(&h.who.principal.Permissions, read, exchange) {
		return nil
	}
	if h.byKey(exchange) && !slices.ContainsFunc(all, func(one string) bool { return !may.Allows(one) }) {
		return nil
	}
	return h.refused(read, "exchange", exchange)
}

// byKey reports whether routing keys say who gets an exchange's messages.
func (h *attached) byKey(exchange string) bool {
	e, err := h.table.Known(exchange)
	return err == nil && (e.Type == route.Topic || e.Type == route.Direct)
}

// mayQueue is may, but for what the connection alone can use, under a name that it was given.
func (h *attached) mayQueue(r right.Right, name string) error {
	if strings.HasPrefix(name, generated) {
		if q := h.queue(name); q != nil && q.Settings().Owner == h.who.id {
			return nil
		}
	}
	return h.may(r, "queue", name)
}
