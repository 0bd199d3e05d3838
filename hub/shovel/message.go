package shovel

import (
	"maps"
	"slices"

	"github.com/rabbitmq/amqp091-go"
)

// The headers of a message that came through a link. headerHops is a list with a table for
// each link that it passed, the last one last.
const (
	headerHops = "x-fleetbus-links"
	// headerUser has a user-id that the other side would not take, because another user
	// hands the message on; headerCopies are the routing keys of a CC that the broker
	// before has obeyed.
	headerUser, headerCopies = "x-fleetbus-user-id", "x-fleetbus-cc"
	// headerReason and headerLink say why a message was put aside, and by whom.
	headerReason, headerLink = "x-fleetbus-reason", "x-fleetbus-link"

	hopLink, hopNumber, hopExchange, hopKey, hopAgain = "link", "number", "exchange", "routing-key", "redelivered"
)

// hopsOf are the links that a message has passed. Whatever else is there is none.
func hopsOf(headers amqp091.Table) (hops []amqp091.Table) {
	list, _ := headers[headerHops].([]any)
	for _, one := range list {
		if t, ok := one.(amqp091.Table); ok {
			hops = append(hops, t)
		}
	}
	return hops
}

// came reports whether a message came through the link of a name.
func came(hops []amqp091.Table, name string) bool {
	return slices.ContainsFunc(hops, func(t amqp091.Table) bool { return t[hopLink] == name })
}

// numberOf is the number that the last link has given a message, 0 if there is none.
func numberOf(headers amqp091.Table) int64 {
	hops := hopsOf(headers)
	if len(hops) == 0 {
		return 0
	}
	n, _ := hops[len(hops)-1][hopNumber].(int64)
	return n
}

// published is a message as it came, to be published.
func published(d amqp091.Delivery) amqp091.Publishing {
	headers := maps.Clone(d.Headers)
	if headers == nil {
		headers = amqp091.Table{}
	}
	if d.UserId != "" { // it has to be that of who publishes
		headers[headerUser] = d.UserId
	}
	if cc, ok := headers["CC"]; ok { // it was obeyed
		delete(headers, "CC")
		headers[headerCopies] = cc
	}
	return amqp091.Publishing{
		Headers: headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode, Priority: d.Priority,
		CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration, MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId, Body: d.Body,
	}
}

// message is a message for the other side.
func (p *passage) message(d amqp091.Delivery, hops []amqp091.Table, number int64) amqp091.Publishing {
	m := published(d)
	hop := amqp091.Table{hopLink: p.o.name(), hopNumber: number, hopExchange: d.Exchange, hopKey: d.RoutingKey}
	if d.Redelivered {
		hop[hopAgain] = true
	}
	list := make([]any, 0, len(hops)+1)
	for _, h := range hops {
		list = append(list, h)
	}
	m.Headers[headerHops] = append(list, hop)
	return m
}

// cut is a text as a header may have it.
func cut(text string) string { return text[:min(len(text), 250)] }
