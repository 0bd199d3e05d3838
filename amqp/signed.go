package amqp

import (
	"context"
	"errors"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/amqp/route"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/signed"
	"github.com/fleetbus/fleetbus/signing"
)

// verify refuses a message that is not signed by somebody who may publish it, where that
// is required. It is asked once, before the message is in a queue or on the bus. o is where
// it goes there.
func (h *attached) verify(ctx context.Context, q *queue.Message, to *route.Message, o *outgoing) error {
	if h.who.principal.Signing != identity.SigningRequired || o.isAnswer() || to.Exchange == "" && strings.HasPrefix(to.Key, replyTo+".") {
		return nil
	}
	refuse := func(why string) error {
		return frame.ChannelError(frame.AccessRefused, "write access to exchange '%s' in vhost '%s' refused for user '%s': %s", frame.Clip(to.Exchange), h.who.vhost, h.who.principal.Name, why)
	}
	subject, needed := signing.Exchange(to.Exchange, to.Key), "amqp.write."+right.Words(to.Exchange)
	if o != nil && to.Exchange == topicExchange {
		subject, needed = o.subjects[0], o.subjects[0]
	}
	if len(to.Copies) > 0 {
		return refuse("a signed message goes by one key, and has no CC or BCC")
	}
	text := ""
	if to.Headers != nil {
		text, _ = to.Headers()[signing.Header].(string)
	}
	err := signed.Ask(ctx, h.bus.owner.Conn, subject, needed, text, q.Body)
	if errors.Is(err, signed.ErrUnavailable) {
		h.log.Warn("the signature of a message could not be verified", "account", h.account.name, "error", err)
		return refuse(signed.ErrUnavailable.Error())
	}
	if err != nil {
		return refuse(err.Error())
	}
	return nil
}
