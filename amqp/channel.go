package amqp

import (
	"crypto/rand"
	"slices"
	"strings"
	"sync"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// channel is a channel of a connection. Its fields are those of the goroutine that reads,
// but for what mu guards.
type channel struct {
	c  *conn
	id uint16

	state   state
	content content
	last    string // the queue that was declared last
	mode    mode
	tag     uint64 // of the last publish that is confirmed
	tx      transaction

	mu        sync.Mutex
	ended     bool
	next      uint64 // delivery tag
	unacked   unacked
	prefetch  int // of the channel, 0: any number
	each      int // of consumers that start
	consumers map[string]*subscriber
	confirmed confirms
}

// state is how far a channel is.
type state byte

const (
	isOpen    state = iota
	isClosing       // the client is told to close it: all but close and close-ok is discarded
	isCrossed       // and has closed it itself meanwhile
)

// mode is what becomes of what is published.
type mode byte

const (
	direct mode = iota
	confirming
	transactional
)

// openChannel takes the first frame on a channel that is not open.
func (c *conn) openChannel(f frame.Frame) error {
	if f.Kind != frame.KindMethod {
		return frame.ConnectionError(frame.UnexpectedFrame, "a %v frame on channel %d, which is not open", f.Kind, f.Channel)
	}
	m, err := c.r.Method(f)
	if err != nil {
		return err
	}
	if _, ok := m.(*frame.ChannelOpen); !ok {
		return frame.ConnectionError(frame.ChannelFault, "expected 'channel.open' on channel %d, which is not open", f.Channel).Of(m)
	}
	if int(f.Channel) > c.channelMax {
		return frame.ConnectionError(frame.ChannelFault, "channel %d is higher than the negotiated channel_max (%d)", f.Channel, c.channelMax).Of(m)
	}
	ch := &channel{c: c, id: f.Channel}
	c.channels[f.Channel] = ch
	c.mu.Lock()
	c.open[f.Channel] = ch
	c.mu.Unlock()
	return c.send(f.Channel, &frame.ChannelOpenOk{})
}

// closeChannel tells the client that a channel is closed, and why.
func (c *conn) closeChannel(ch *channel, why *frame.Error) error {
	if c.may(why.Code) {
		c.p.log().Info("AMQP channel closed", "remote", c.remote, "principal", c.who, "code", why.Code.String(), "error", why.Text)
	}
	ch.end()
	ch.flushConfirms(true)
	ch.state = isClosing
	return c.send(ch.id, &frame.ChannelClose{ReplyCode: why.Code, ReplyText: why.Reply(), ClassID: why.Class, MethodID: why.Method})
}

// take does what a frame on the channel asks for. An error of the channel closes it.
func (ch *channel) take(f frame.Frame) error {
	if ch.state != isOpen {
		return ch.takeClosing(f)
	}
	if ch.content.m != nil {
		whole, err := ch.contentFrame(f)
		if err != nil || whole == nil {
			return err
		}
		return ch.publish(whole)
	}
	if f.Kind != frame.KindMethod {
		return frame.ConnectionError(frame.UnexpectedFrame, "a %v frame on channel %d, where a method frame is expected", f.Kind, f.Channel)
	}
	m, err := ch.c.r.Method(f)
	if err != nil {
		return err
	}
	return ch.method(m)
}

// takeClosing takes a frame on a channel that the client is told to close.
func (ch *channel) takeClosing(f frame.Frame) error {
	if f.Kind != frame.KindMethod {
		return nil
	}
	m, err := ch.c.r.Method(f)
	if err != nil {
		return err
	}
	switch m.(type) {
	case *frame.ChannelCloseOk:
		ch.c.forget(ch.id)
	case *frame.ChannelClose:
		ch.state = isCrossed
		return ch.c.send(ch.id, &frame.ChannelCloseOk{})
	case *frame.ChannelOpen:
		if ch.state == isCrossed { // it forgot to say close-ok
			ch.c.forget(ch.id)
			return ch.c.openChannel(f)
		}
	}
	return nil
}

// method does what a method asks for.
func (ch *channel) method(m frame.Method) error {
	switch m.ID().Class() {
	case frame.ClassBasic:
		return ch.basic(m)
	case frame.ClassExchange, frame.ClassQueue:
		return ch.topology(m)
	}
	switch m := m.(type) {
	case *frame.ChannelClose:
		ch.end()
		ch.flushConfirms(true)
		ch.c.forget(ch.id)
		return ch.send(&frame.ChannelCloseOk{})
	case *frame.ChannelCloseOk, *frame.ChannelFlowOk:
		return nil
	case *frame.ChannelOpen:
		return frame.ConnectionError(frame.ChannelFault, "second 'channel.open' seen").Of(m)
	case *frame.ChannelFlow:
		if !m.Active {
			return frame.ConnectionError(frame.NotImplemented, "active=false").Of(m)
		}
		return ch.send(&frame.ChannelFlowOk{Active: true})
	case *frame.ConfirmSelect:
		if ch.mode == transactional {
			return frame.ChannelError(frame.PreconditionFailed, "cannot switch from tx to confirm mode").Of(m)
		}
		ch.mode = confirming
		return ch.answer(m.NoWait, &frame.ConfirmSelectOk{})
	case *frame.TxSelect, *frame.TxCommit, *frame.TxRollback:
		return ch.transact(m)
	}
	return unexpected(m)
}

func unexpected(m frame.Method) error {
	return frame.ConnectionError(frame.CommandInvalid, "%v is not expected here", m.ID()).Of(m)
}

func (ch *channel) send(m frame.Method) error { return ch.c.send(ch.id, m) }

// answer sends m unless the client does not wait for it.
func (ch *channel) answer(noWait bool, m frame.Method) error {
	if noWait {
		return nil
	}
	return ch.send(m)
}

// topology does what a method of exchanges or queues asks for.
func (ch *channel) topology(m frame.Method) error {
	noWait := false
	var err error
	switch m := m.(type) {
	case *frame.ExchangeDeclare:
		noWait = m.NoWait
	case *frame.ExchangeDelete:
		noWait = m.NoWait
	case *frame.ExchangeBind:
		noWait = m.NoWait
	case *frame.ExchangeUnbind:
		noWait = m.NoWait
	case *frame.QueueDeclare:
		noWait = m.NoWait
		if m.Queue == "" && m.Passive {
			m.Queue, err = ch.queue("", m)
		}
	case *frame.QueueBind:
		noWait = m.NoWait
		if m.Queue == "" && m.RoutingKey == "" {
			m.RoutingKey = ch.last
		}
		m.Queue, err = ch.queue(m.Queue, m)
	case *frame.QueueUnbind:
		if m.Queue == "" && m.RoutingKey == "" {
			m.RoutingKey = ch.last
		}
		m.Queue, err = ch.queue(m.Queue, m)
	case *frame.QueuePurge:
		noWait = m.NoWait
		m.Queue, err = ch.queue(m.Queue, m)
	case *frame.QueueDelete:
		noWait = m.NoWait
		m.Queue, err = ch.queue(m.Queue, m)
	default:
		return unexpected(m)
	}
	if err != nil {
		return err
	}
	answer, err := ch.c.host.do(ch.c.ctx, m)
	if err != nil {
		return ch.c.ofHost(err, m)
	}
	if ok, is := answer.(*frame.QueueDeclareOk); is {
		ch.last = ok.Queue
	}
	return ch.answer(noWait, answer)
}

// queue is the queue that m means by name: by none, the one that was declared last.
func (ch *channel) queue(name string, m frame.Method) (string, error) {
	if name != "" {
		return name, nil
	}
	if ch.last == "" {
		return "", frame.ChannelError(frame.NotFound, "no previously declared queue").Of(m)
	}
	return ch.last, nil
}

// basic does what a method of the class basic asks for.
func (ch *channel) basic(m frame.Method) error {
	switch m := m.(type) {
	case *frame.BasicPublish:
		if m.Immediate {
			return frame.ConnectionError(frame.NotImplemented, "immediate=true").Of(m)
		}
		ch.content.begin(m, ch.id)
		return nil
	case *frame.BasicAck:
		return ch.settle(m, m.DeliveryTag, m.Multiple, settleAck)
	case *frame.BasicNack:
		return ch.settle(m, m.DeliveryTag, m.Multiple, refused(m.Requeue))
	case *frame.BasicReject:
		return ch.settle(m, m.DeliveryTag, false, refused(m.Requeue))
	case *frame.BasicGet:
		return ch.get(m)
	case *frame.BasicConsume:
		return ch.consume(m)
	case *frame.BasicCancel:
		return ch.cancel(m)
	case *frame.BasicCancelOk:
		return nil
	case *frame.BasicQos:
		return ch.qos(m)
	case *frame.BasicRecover:
		return ch.recoverAll(m, m.Requeue, &frame.BasicRecoverOk{})
	case *frame.BasicRecoverAsync:
		return ch.recoverAll(m, m.Requeue, nil)
	}
	return unexpected(m)
}

func refused(requeue bool) settlement {
	if requeue {
		return settleRequeue
	}
	return settleReject
}

// get hands out one message.
func (ch *channel) get(m *frame.BasicGet) error {
	queue, err := ch.queue(m.Queue, m)
	if err != nil {
		return err
	}
	d, left, err := ch.c.host.get(ch.c.ctx, queue, m.NoAck)
	if err != nil {
		return ch.c.ofHost(err, m)
	}
	if d == nil {
		return ch.send(&frame.BasicGetEmpty{})
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	tag := ch.tagged(d, nil, m.NoAck)
	ok := &frame.BasicGetOk{DeliveryTag: tag, Redelivered: d.redelivered, Exchange: d.exchange, RoutingKey: d.key, MessageCount: left}
	return ch.c.out.message(ch.id, ok, d.properties, d.body)
}

// consume starts a consumer.
func (ch *channel) consume(m *frame.BasicConsume) error {
	var err error
	if m.Queue, err = ch.queue(m.Queue, m); err != nil {
		return err
	}
	if m.ConsumerTag == "" {
		m.ConsumerTag = "amq.ctag-" + rand.Text()
	}
	s := &subscriber{ch: ch, tag: m.ConsumerTag, noAck: m.NoAck}
	ch.mu.Lock()
	_, used := ch.consumers[s.tag]
	if !used {
		if ch.consumers == nil {
			ch.consumers = map[string]*subscriber{}
		}
		s.prefetch = ch.each
		ch.consumers[s.tag] = s
	}
	ch.mu.Unlock()
	if used {
		return frame.ConnectionError(frame.NotAllowed, "attempt to reuse consumer tag '%s'", s.tag).Of(m)
	}
	sub, err := ch.c.host.consume(ch.c.ctx, m, s)
	if err != nil {
		ch.mu.Lock()
		delete(ch.consumers, s.tag)
		ch.mu.Unlock()
		return ch.c.ofHost(err, m)
	}
	if err := ch.answer(m.NoWait, &frame.BasicConsumeOk{ConsumerTag: s.tag}); err != nil {
		return err
	}
	s.start(sub)
	return nil
}

// cancel ends a consumer. There need not be one.
func (ch *channel) cancel(m *frame.BasicCancel) error {
	ch.mu.Lock()
	s := ch.consumers[m.ConsumerTag]
	delete(ch.consumers, m.ConsumerTag)
	ch.mu.Unlock()
	if s != nil {
		s.cancel()
	}
	return ch.answer(m.NoWait, &frame.BasicCancelOk{ConsumerTag: m.ConsumerTag})
}

// qos sets how much is handed out before it is acknowledged. Clients of py-amqp expect
// of a server that is not called RabbitMQ that consumers which are there are meant too.
func (ch *channel) qos(m *frame.BasicQos) error {
	if m.PrefetchSize != 0 {
		return frame.ConnectionError(frame.NotImplemented, "prefetch_size!=0 (%d)", m.PrefetchSize).Of(m)
	}
	n := int(m.PrefetchCount)
	ch.mu.Lock()
	if m.Global {
		ch.prefetch = n
	} else {
		ch.each = n
		if ch.c.client.product == "py-amqp" {
			for _, s := range ch.consumers {
				s.prefetch = n
			}
		}
	}
	ch.mu.Unlock()
	ch.resume()
	return ch.send(&frame.BasicQosOk{})
}

// recoverAll gives back what is not acknowledged.
func (ch *channel) recoverAll(m frame.Method, requeue bool, ok frame.Method) error {
	if !requeue {
		return frame.ConnectionError(frame.NotImplemented, "requeue=false").Of(m)
	}
	ch.mu.Lock()
	all := ch.unacked.takeAll()
	ch.mu.Unlock()
	settled(all, settleRequeue)
	ch.resume()
	if ok == nil {
		return nil
	}
	return ch.send(ok)
}

// settle settles a message, or all up to it.
func (ch *channel) settle(m frame.Method, tag uint64, multiple bool, how settlement) error {
	ch.mu.Lock()
	given, ok := ch.unacked.take(tag, multiple)
	if ok && ch.mode == transactional {
		ch.unacked.countAll(given, 1) // until the commit
	}
	ch.mu.Unlock()
	if !ok {
		return frame.ChannelError(frame.PreconditionFailed, "unknown delivery tag %d", tag).Of(m)
	}
	if ch.mode == transactional {
		ch.tx.settle(given, how)
		return nil
	}
	settled(given, how)
	ch.resume()
	return nil
}

// resume has consumers go on that found no room or no credit.
func (ch *channel) resume() {
	ch.mu.Lock()
	var subs []subscription
	for _, s := range ch.consumers {
		if s.stopped && s.sub != nil {
			s.stopped = false
			subs = append(subs, s.sub)
		}
	}
	ch.mu.Unlock()
	for _, sub := range subs {
		sub.resume()
	}
}

// end gives back all that the channel has.
func (ch *channel) end() {
	ch.mu.Lock()
	ch.ended = true
	subs := make([]*subscriber, 0, len(ch.consumers))
	for _, s := range ch.consumers {
		subs = append(subs, s)
	}
	clear(ch.consumers)
	ch.mu.Unlock()
	for _, s := range subs {
		s.cancel()
	}
	ch.mu.Lock()
	all := ch.unacked.takeAll()
	ch.mu.Unlock()
	all = append(all, ch.tx.rollback()...)
	slices.SortFunc(all, byTag)
	settled(all, settleRequeue)
	ch.c.partial -= ch.content.size()
	ch.content = content{}
}

// publish hands a message to the virtual host.
func (ch *channel) publish(m *message) error {
	of := (*frame.BasicPublish)(nil)
	if err := ch.c.judgeUser(m); err != nil {
		return err.Of(of)
	}
	switch ch.mode {
	case transactional:
		return ch.tx.publish(m, ch.c.p.maxMessage())
	case confirming:
		ch.tag++
		m.tag = ch.tag
	}
	var c confirmer
	if ch.mode == confirming {
		c = ch
	}
	routed, err := ch.c.host.publish(ch.c.ctx, m, c)
	if err != nil {
		return ch.c.ofHost(err, of)
	}
	if routed {
		return nil
	}
	if err := ch.giveBack(m); err != nil {
		return err
	}
	if c != nil {
		ch.confirm(m.tag, true)
	}
	return nil
}

// giveBack returns a message that no queue takes, if it wants that.
func (ch *channel) giveBack(m *message) error {
	if !m.mandatory {
		return nil
	}
	r := &frame.BasicReturn{ReplyCode: frame.NoRoute, ReplyText: frame.NoRoute.String(), Exchange: m.exchange, RoutingKey: m.key}
	return ch.c.out.message(ch.id, r, m.properties, m.body)
}

// judgeUser refuses a message that says it is of another user.
func (c *conn) judgeUser(m *message) *frame.Error {
	if len(m.properties) < 2 || m.properties[1]&frame.HasUserID == 0 {
		return nil
	}
	var p frame.Properties
	if err := p.Decode(m.properties); err != nil {
		return frame.ConnectionError(frame.SyntaxError, "properties that cannot be read")
	}
	who := c.who
	_, given, _ := strings.Cut(c.with.Username, "/")
	if p.UserID == who.Name || p.UserID == who.String() || p.UserID != "" && (p.UserID == c.with.Username || p.UserID == given) {
		return nil
	}
	return frame.ChannelError(frame.PreconditionFailed, "user_id property set to '%s' but authenticated user was '%s'", p.UserID, who.Name)
}

// transact does what a method of the class tx asks for.
func (ch *channel) transact(m frame.Method) error {
	if _, is := m.(*frame.TxSelect); is {
		if ch.mode == confirming {
			return frame.ChannelError(frame.PreconditionFailed, "cannot switch from confirm to tx mode").Of(m)
		}
		ch.mode = transactional
		return ch.send(&frame.TxSelectOk{})
	}
	if ch.mode != transactional {
		return frame.ChannelError(frame.PreconditionFailed, "channel is not transactional").Of(m)
	}
	switch m.(type) {
	case *frame.TxCommit:
		return ch.commit(m)
	case *frame.TxRollback:
		ch.restore(&ch.tx)
		return ch.send(&frame.TxRollbackOk{})
	}
	return unexpected(m)
}

// commit does what the transaction has, publishes first.
func (ch *channel) commit(m frame.Method) error {
	tx := ch.tx
	ch.tx = transaction{}
	if len(tx.messages) > 0 {
		unrouted, err := ch.c.host.commit(ch.c.ctx, tx.messages)
		if err != nil {
			ch.restore(&tx)
			return ch.c.ofHost(err, m)
		}
		for _, i := range unrouted {
			if err := ch.giveBack(tx.messages[i]); err != nil {
				return err
			}
		}
	}
	for _, s := range tx.settlements {
		ch.mu.Lock()
		ch.unacked.countAll(s.given, -1)
		ch.mu.Unlock()
		settled(s.given, s.how)
	}
	ch.resume()
	return ch.send(&frame.TxCommitOk{})
}

// restore drops tx: what it settled is not.
func (ch *channel) restore(tx *transaction) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.unacked.putBack(tx.rollback())
}
