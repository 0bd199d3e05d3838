package openstack

import (
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/identity"
)

// rights are the names that a user has each of AMQP's rights to, as subjects are written.
type rights struct{ configure, write, read []string }

func (r *rights) all(names ...string) {
	r.configure, r.write, r.read = append(r.configure, names...), append(r.write, names...), append(r.read, names...)
}

// permissions are the subjects that the rights stand for.
func (r rights) permissions() identity.Permissions {
	subjects := func(right string, names []string) (all []string) {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
			all = append(all, "amqp."+right+"."+name)
		}
		return all
	}
	return identity.Permissions{
		Publish:   identity.Rule{Allow: append(subjects("configure", r.configure), subjects("write", r.write)...)},
		Subscribe: identity.Rule{Allow: subjects("read", r.read)},
	}
}

// words is a name of AMQP's as words of a subject. Those in the catalog have nothing else
// that would have to be written otherwise.
func words(name string) string { return strings.ReplaceAll(name, "_", ".") }

// itself is the user's own name, which is that of its host.
const itself = "{{name()}}"

// rights are those of a part.
func (q part) rights(s service) rights {
	var r rights
	r.write = []string{"amq.default"} // answers go there
	switch {
	case q.all && len(s.topics) == 0:
		return rights{configure: []string{">"}, write: []string{">"}, read: []string{">"}}
	case q.all:
		for _, topic := range s.topics {
			r.all(words(topic), words(topic)+".>")
		}
	}
	r.all(words(s.exchange), "reply.>")
	for _, topic := range q.serves {
		name := words(topic)
		if q.every {
			r.all(name, name+".>")
			continue
		}
		r.all(name, name+"."+itself, name+"."+itself+".>", name+".fanout", name+".fanout.>")
	}
	for _, topic := range q.fansOut {
		name := words(topic) + ".fanout"
		r.configure, r.write = append(r.configure, name), append(r.write, name)
	}
	return r
}

// notifierRights let a service send notifications. It makes the queue, too, so that nothing is
// lost before somebody reads.
func notifierRights(exchange string) rights {
	name := words(exchange)
	return rights{configure: []string{name, notifications + ".>"}, write: []string{name, notifications + ".>"}, read: []string{name}}
}

// readerRights let a service read notifications of all, and tell others of alarms.
func (p *planning) readerRights(name string, s service) rights {
	var r rights
	for _, topic := range s.reads {
		r.all(words(topic) + ".>")
	}
	r.all(words(name))
	if !slices.Contains(s.reads, notifications) {
		return r
	}
	for _, other := range p.Services {
		exchange := words(other)
		if k, ok := known()[other]; ok && k.exchange != "" {
			exchange = words(k.exchange)
		}
		r.configure, r.read = append(r.configure, exchange), append(r.read, exchange)
	}
	return r
}
