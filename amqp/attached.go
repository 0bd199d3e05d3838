package amqp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/amqp/route"
)

// attached is an account for one connection. It implements host.
type attached struct {
	*account
	who peer

	// mine are the exchange and the key of the last message that it may publish by its
	// right to the exchange: the next one's often are the same.
	mine struct {
		exchange, key string
		known         bool
	}

	names []string // of the queues that the last message goes to
	found []*queue.Queue

	own     []*queue.Queue          // exclusive ones
	tidy    int                     // of how many own those are taken out that ended
	answers map[uint16]*queue.Queue // what channels consume answers from
}

// do implements host.
func (h *attached) do(ctx context.Context, m frame.Method) (frame.Method, error) {
	switch m := m.(type) {
	case *frame.ExchangeDeclare:
		return &frame.ExchangeDeclareOk{}, h.declareExchange(ctx, m)
	case *frame.ExchangeDelete:
		if err := h.mayExchange(configure, m.Exchange); err != nil {
			return nil, err
		}
		return &frame.ExchangeDeleteOk{}, h.change(ctx, route.Change{Kind: route.DeleteExchange, Name: route.Name(m.Exchange), IfUnused: m.IfUnused}, h.lasting(m.Exchange))
	case *frame.ExchangeBind:
		b := route.Binding{Source: m.Source, Destination: m.Destination, ToExchange: true, Key: m.RoutingKey, Arguments: m.Arguments}
		return &frame.ExchangeBindOk{}, h.bindExchanges(ctx, route.BindTo, b)
	case *frame.ExchangeUnbind:
		b := route.Binding{Source: m.Source, Destination: m.Destination, ToExchange: true, Key: m.RoutingKey, Arguments: m.Arguments}
		return &frame.ExchangeUnbindOk{}, h.bindExchanges(ctx, route.UnbindFrom, b)
	case *frame.QueueDeclare:
		return h.declareQueue(ctx, m)
	case *frame.QueueBind:
		return &frame.QueueBindOk{}, h.bindQueue(ctx, m)
	case *frame.QueueUnbind:
		return &frame.QueueUnbindOk{}, h.unbindQueue(ctx, m)
	case *frame.QueuePurge:
		q, err := h.queueFor(read, m.Queue)
		if err != nil {
			return nil, err
		}
		h.flush(ctx, q)
		n, err := q.Purge()
		return &frame.QueuePurgeOk{MessageCount: uint32(n)}, h.gone(err, m.Queue)
	case *frame.QueueDelete:
		return h.deleteQueue(ctx, m)
	}
	return nil, frame.ConnectionError(frame.NotImplemented, "%v", m.ID())
}

func (h *attached) declareExchange(ctx context.Context, m *frame.ExchangeDeclare) error {
	if m.Passive {
		_, err := h.table.Known(m.Exchange)
		return err
	}
	if err := h.mayExchange(configure, m.Exchange); err != nil {
		return err
	}
	e, err := route.New(m)
	if err == nil && e.Alternate != "" {
		err = errors.Join(h.mayExchange(read, m.Exchange), h.mayExchange(write, e.Alternate), onlyPublished(e.Alternate))
	}
	if err != nil {
		return err
	}
	return h.change(ctx, route.Change{Kind: route.DeclareExchange, Exchange: &e}, e.Durable)
}

func (h *attached) bindExchanges(ctx context.Context, kind route.Kind, b route.Binding) error {
	if err := errors.Join(h.mayExchange(write, b.Destination), h.mayBind(b.Source, b.Key), h.mayHear(&b), onlyPublished(b.Destination)); err != nil {
		return err
	}
	return h.change(ctx, route.Change{Kind: kind, Binding: &b}, h.lasting(b.Source) && h.lasting(b.Destination))
}

// onlyPublished refuses that amq.topic has messages in another way than that a client
// publishes them, because its rights say which.
func onlyPublished(exchange string) error {
	if exchange != topicExchange {
		return nil
	}
	return frame.ChannelError(frame.PreconditionFailed, "exchange '%s' has only what clients publish to it: no exchange or queue leads there", topicExchange)
}

// The names of queues that are special.
const (
	reservedPrefix = "amq."
	generated      = "amq.gen-"
	// replyTo is consumed from to have answers without a queue of one's own.
	replyTo = "amq.rabbitmq.reply-to"
)

func (h *attached) declareQueue(ctx context.Context, m *frame.QueueDeclare) (frame.Method, error) {
	if m.Passive {
		if m.Queue == replyTo {
			return &frame.QueueDeclareOk{Queue: m.Queue}, nil
		}
		q, err := h.known(m.Queue)
		if err == nil && !strings.HasPrefix(m.Queue, replyTo+".") {
			err = q.Settings().Access(h.who.id)
		}
		if err != nil {
			return nil, err
		}
		h.flush(ctx, q)
		return declared(q), nil
	}
	named := *m
	own := m.Queue == "" && m.Exclusive // nobody else can use it
	switch {
	case m.Queue == "":
		named.Queue = generated + rand.Text()
	case strings.HasPrefix(m.Queue, reservedPrefix):
		if q := h.queue(m.Queue); q != nil && q.Settings().Owner != "" && q.Settings().Access(h.who.id) == nil {
			break // a name that it was given
		}
		return nil, frame.ChannelError(frame.AccessRefused, "queue name '%s' contains reserved prefix 'amq.*'", m.Queue)
	}
	if !own {
		if err := h.mayQueue(configure, named.Queue); err != nil {
			return nil, err
		}
	}
	s, err := queue.Parse(h.who.vhost, &named, h.who.id)
	if err != nil {
		return nil, err
	}
	if s.DeadLetters {
		if err := errors.Join(h.may(read, "queue", s.Name), h.mayExchange(write, s.DeadLetterExchange), onlyPublished(s.DeadLetterExchange)); err != nil {
			return nil, err
		}
	}
	q, made, err := h.declare(ctx, s)
	if err != nil {
		return nil, err
	}
	if made {
		h.owns(q)
	}
	h.flush(ctx, q)
	q.Touch()
	return declared(q), nil
}

// owns has an exclusive queue end with the connection.
func (h *attached) owns(q *queue.Queue) {
	if q.Settings().Owner == "" {
		return
	}
	if len(h.own) >= h.tidy {
		h.own = slices.DeleteFunc(h.own, func(q *queue.Queue) bool { return h.queue(q.Settings().Name) != q })
		h.tidy = 2*len(h.own) + 16
	}
	h.own = append(h.own, q)
}

// flush returns when a queue has what was published to it before, also by this connection,
// unless nothing can be stored.
func (h *attached) flush(ctx context.Context, q *queue.Queue) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := q.Flush(ctx); err != nil {
		h.log.Debug("messages of AMQP are not stored yet", "error", err)
	}
}

func declared(q *queue.Queue) *frame.QueueDeclareOk {
	n := q.Counts()
	return &frame.QueueDeclareOk{Queue: q.Settings().Name, MessageCount: uint32(n.Ready), ConsumerCount: uint32(n.Consumers)}
}

// known is a queue of a name, or the error that there is none.
func (h *attached) known(name string) (*queue.Queue, error) {
	if q := h.queue(name); q != nil {
		return q, nil
	}
	return nil, h.noQueue(name)
}

func (h *attached) noQueue(name string) error {
	return frame.ChannelError(frame.NotFound, "no queue '%s' in vhost '%s'", name, h.who.vhost)
}

// gone is err, but for a queue that ended meanwhile.
func (h *attached) gone(err error, name string) error {
	if errors.Is(err, queue.ErrGone) {
		return h.noQueue(name)
	}
	return err
}

// queueFor is the queue of a name, if the connection may do something to it.
func (h *attached) queueFor(r right.Right, name string) (*queue.Queue, error) {
	if err := h.mayQueue(r, name); err != nil {
		return nil, err
	}
	q, err := h.known(name)
	if err == nil {
		err = q.Settings().Access(h.who.id)
	}
	return q, err
}

func (h *attached) bindQueue(ctx context.Context, m *frame.QueueBind) error {
	q, err := h.queueFor(write, m.Queue)
	if err == nil {
		err = h.mayBind(m.Exchange, m.RoutingKey)
	}
	if err != nil {
		return err
	}
	b := route.Binding{Source: m.Exchange, Destination: m.Queue, Key: m.RoutingKey, Arguments: m.Arguments}
	if err := h.mayHear(&b); err != nil {
		return err
	}
	return h.gone(h.bind(ctx, q, b), m.Queue)
}

func (h *attached) unbindQueue(ctx context.Context, m *frame.QueueUnbind) error {
	q, err := h.queueFor(write, m.Queue)
	if err == nil {
		err = h.mayBind(m.Exchange, m.RoutingKey)
	}
	if fault, ok := errors.AsType[*frame.Error](err); ok && fault.Code == frame.NotFound {
		return nil // what is not there is not bound
	}
	if err != nil {
		return err
	}
	b := route.Binding{Source: m.Exchange, Destination: m.Queue, Key: m.RoutingKey, Arguments: m.Arguments}
	return h.change(ctx, route.Change{Kind: route.UnbindFrom, Binding: &b}, durable(q.Settings()) && h.lasting(m.Exchange))
}

func (h *attached) deleteQueue(ctx context.Context, m *frame.QueueDelete) (frame.Method, error) {
	q, err := h.queueFor(configure, m.Queue)
	if fault, ok := errors.AsType[*frame.Error](err); ok && fault.Code == frame.NotFound {
		return &frame.QueueDeleteOk{}, nil
	}
	if err != nil {
		return nil, err
	}
	h.flush(ctx, q)
	n, err := h.remove(ctx, q, m.IfUnused, m.IfEmpty)
	if errors.Is(err, queue.ErrGone) {
		err = nil
	}
	return &frame.QueueDeleteOk{MessageCount: uint32(n)}, err
}

// prepare judges a message and makes it ready.
func (h *attached) prepare(m *message) (*queue.Message, *route.Message, error) {
	if err := h.mayPublish(m.exchange, m.key); err != nil {
		return nil, nil, err
	}
	var headers frame.Table
	properties := m.properties
	// Few messages have something that the server has to know.
	if has(properties, frame.HasHeaders) || has(properties, frame.HasReplyTo) && bytes.Contains(properties, []byte(replyTo)) {
		var p frame.Properties
		if err := p.Decode(properties); err != nil {
			return nil, nil, frame.ConnectionError(frame.SyntaxError, "properties that cannot be read")
		}
		headers = p.Headers
		changed := false
		if p.ReplyTo == replyTo {
			to, err := h.answerTo(m.channel)
			if err != nil {
				return nil, nil, err
			}
			p.ReplyTo, changed = to, true
		}
		to, err := routed(m.exchange, m.key, headers)
		if err != nil {
			return nil, nil, err
		}
		for _, key := range to.Copies {
			if err := h.mayPublish(m.exchange, key); err != nil {
				return nil, nil, err
			}
		}
		if route.DropBlind(headers) || changed {
			if properties, err = p.Append(nil); err != nil {
				return nil, nil, frame.ConnectionError(frame.SyntaxError, "properties that cannot be written")
			}
		}
		q, err := queue.NewMessage(m.exchange, m.key, properties, m.body)
		return q, to, err
	}
	q, err := queue.NewMessage(m.exchange, m.key, properties, m.body)
	return q, &route.Message{Exchange: m.exchange, Key: m.key}, err
}

// has reports whether properties have one of the flag.
func has(properties []byte, flag uint16) bool {
	return len(properties) >= 2 && (uint16(properties[0])<<8|uint16(properties[1]))&flag != 0
}

// outgoing is where on the bus a message goes, and as what. Most go nowhere there, and have
// none.
type outgoing struct {
	subjects []string
	reply    string // the subject of answers
	answers  bool   // it is one, which no queue takes
	p        frame.Properties
}

func (o *outgoing) isAnswer() bool { return o != nil && o.answers }

// publish implements host.
func (h *attached) publish(ctx context.Context, m *message, c confirmer) (bool, error) {
	q, o, err := h.route(ctx, m)
	if err != nil {
		return false, err
	}
	h.toBus(q, o)
	if len(h.found) == 0 && !o.isAnswer() {
		return false, nil
	}
	var done func(bool)
	if c != nil {
		tag := m.tag
		done = func(taken bool) { c.confirm(tag, taken) }
	}
	h.put(q, h.found, done)
	h.published()
	clear(h.found)
	return true, nil
}

// route judges a message, and has found be the queues that it goes to.
func (h *attached) route(ctx context.Context, m *message) (q *queue.Message, o *outgoing, err error) {
	q, to, err := h.prepare(m)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case m.exchange == topicExchange:
		o, err = h.judgeTopic(q, to)
	case m.exchange == "" && strings.HasPrefix(m.key, busAnswer):
		o, err = h.judgeAnswer(q)
	}
	if err == nil {
		err = h.verify(ctx, q, to, o)
	}
	if err != nil {
		return nil, nil, err
	}
	h.names, err = h.table.Publish(h.names[:0], to)
	h.found = h.find(h.found[:0], h.names)
	if err != nil {
		return nil, nil, err
	}
	return q, o, h.fits(q, h.found)
}

// commit implements host.
func (h *attached) commit(ctx context.Context, messages []*message) (unrouted []int, err error) {
	type routed struct {
		m      *queue.Message
		bus    *outgoing
		queues []*queue.Queue
	}
	all := make([]routed, len(messages))
	for i, m := range messages {
		q, o, err := h.route(ctx, m)
		if err != nil {
			return nil, err
		}
		all[i] = routed{q, o, append([]*queue.Queue(nil), h.found...)}
		if len(h.found) == 0 && !o.isAnswer() {
			unrouted = append(unrouted, i)
		}
	}
	stored := make(chan struct{}, len(all))
	for _, one := range all {
		h.toBus(one.m, one.bus)
		h.put(one.m, one.queues, func(bool) { stored <- struct{}{} })
	}
	for range all {
		select {
		case <-stored:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return unrouted, nil
}

// ofQueue settles messages of a queue. It implements settler.
type ofQueue struct{ *queue.Queue }

func (q ofQueue) settle(ids []uint64, how settlement) {
	q.Settle(ids, how)
}

// of is d as the machine knows it.
func of(q *queue.Queue, d queue.Delivery) *delivery {
	m := d.Message
	return &delivery{
		message:     &message{exchange: m.Exchange, key: m.Key, properties: m.Properties, body: m.Body},
		redelivered: d.Redelivered, from: ofQueue{q}, id: d.ID,
	}
}

// get implements host.
func (h *attached) get(ctx context.Context, name string, noAck bool) (*delivery, uint32, error) {
	q, err := h.queueFor(read, name)
	if err != nil {
		return nil, 0, err
	}
	d, left, ok, err := q.Get(ctx, noAck)
	if err == nil && !ok { // what it published before may be on its way
		h.flush(ctx, q)
		d, left, ok, err = q.Get(ctx, noAck)
	}
	if err != nil || !ok {
		return nil, 0, h.gone(err, name)
	}
	return of(q, d), uint32(left), nil
}

// receiver is a consumer as its queue knows it. It implements queue.Consumer.
type receiver struct {
	consumer
	q *queue.Queue
}

func (r *receiver) Deliver(d queue.Delivery) bool { return r.offer(of(r.q, d)) }
func (r *receiver) Gone()                         { r.gone() }

// received is a subscription as the machine knows it.
type received struct{ *queue.Subscription }

func (s received) resume() { s.Resume() }
func (s received) cancel() { s.Cancel() }

// consume implements host.
func (h *attached) consume(ctx context.Context, m *frame.BasicConsume, c consumer) (subscription, error) {
	q, err := h.source(ctx, m, c)
	if err != nil {
		return nil, err
	}
	priority, err := queue.Priority(m.Arguments)
	if err != nil {
		return nil, err
	}
	s, err := q.Consume(&receiver{c, q}, queue.ConsumerOptions{NoAck: m.NoAck, Exclusive: m.Exclusive, Priority: priority})
	if err != nil {
		return nil, h.gone(err, m.Queue)
	}
	return received{s}, nil
}

// source is the queue that m consumes from.
func (h *attached) source(ctx context.Context, m *frame.BasicConsume, c consumer) (*queue.Queue, error) {
	if m.Queue != replyTo {
		return h.queueFor(read, m.Queue)
	}
	if !m.NoAck {
		return nil, frame.ChannelError(frame.PreconditionFailed, "reply consumer cannot acknowledge")
	}
	if h.answering(c.via()) != nil {
		return nil, frame.ChannelError(frame.PreconditionFailed, "reply consumer already set")
	}
	s, err := queue.Parse(h.who.vhost, &frame.QueueDeclare{Queue: replyTo + "." + rand.Text(), Exclusive: true, AutoDelete: true}, h.who.id)
	if err != nil {
		return nil, err
	}
	q, _, err := h.declare(ctx, s)
	if err != nil {
		return nil, err
	}
	h.owns(q)
	if h.answers == nil {
		h.answers = map[uint16]*queue.Queue{}
	}
	h.answers[c.via()] = q
	return q, nil
}

// answering is the queue that a channel consumes answers from, nil if there is none.
func (h *attached) answering(channel uint16) *queue.Queue {
	q := h.answers[channel]
	if q == nil || h.queue(q.Settings().Name) != q {
		return nil
	}
	return q
}

// answerTo is where the answers for a channel go.
func (h *attached) answerTo(channel uint16) (string, error) {
	if q := h.answering(channel); q != nil {
		return q.Settings().Name, nil
	}
	return "", frame.ChannelError(frame.PreconditionFailed, "fast reply consumer does not exist")
}

// detach implements host.
func (h *attached) detach() {
	h.account.mu.Lock()
	delete(h.account.leave, h)
	h.account.mu.Unlock()
	for _, q := range h.own {
		_, _ = q.Delete(false, false) // it may have ended before
	}
	h.own, h.answers = nil, nil
}
