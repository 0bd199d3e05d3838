package amqp

import (
	"context"
	"net"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/identity"
)

// opener opens the virtual host of the account of a session. The machine of connections
// knows nothing of exchanges and queues but what is in this file.
type opener interface {
	// open finds it. If another node has it, the answer is a way to that node, which was
	// told hello.
	open(ctx context.Context, s *fleetbus.Session, hello func() ([]byte, error)) (here vhost, there net.Conn, err error)
}

// vhost is what an account has of exchanges and queues. It is safe for concurrent use.
type vhost interface {
	// attach has a connection take part.
	attach(ctx context.Context, who peer) (host, error)
	// holds reports whether it is here at this very moment, and nowhere else: nothing it
	// says reaches a client otherwise.
	holds() bool
}

// peer is a connection, as a vhost sees it.
type peer struct {
	principal identity.Principal
	id        string // of the connection, on this node
	vhost     string // as the client calls it
	remote    string
	leave     func() // ends the connection, which is to come again
}

// host is a vhost for one connection. Its errors that are *frame.Error are told to the
// client, and end what they say; for others the client is told that it is not its fault,
// and the operator the rest. Its methods are called for one channel after another, but
// for those of subscriptions and settlers, and may block.
type host interface {
	// do does what a method of the classes exchange and queue asks for, and returns its
	// answer. The name of a queue is empty in queue.declare only, which then makes one up.
	do(ctx context.Context, m frame.Method) (frame.Method, error)
	// publish routes a message, which is the host's from then on. routed is false, and c
	// is not told, if no queue takes it. If c is not nil it is told once, from any
	// goroutine, also before publish returns, whether all queues have the message. An
	// error is of the exchange.
	publish(ctx context.Context, m *message, c confirmer) (routed bool, err error)
	// get takes the first message of a queue, nil if there is none, and says how many are
	// left. With noAck it is gone.
	get(ctx context.Context, queue string, noAck bool) (d *delivery, left uint32, err error)
	// consume starts a consumer, which is offered messages from then on. It is told of no
	// more once cancel of the subscription has returned.
	consume(ctx context.Context, m *frame.BasicConsume, c consumer) (subscription, error)
	// commit publishes all of them or none, and returns when queues have them. unrouted are
	// the places in messages of those that no queue takes.
	commit(ctx context.Context, messages []*message) (unrouted []int, err error)
	// detach ends the connection's part: its exclusive queues go. What it had of messages
	// has been settled before.
	detach()
}

// consumer is whom a queue offers messages. It is safe for concurrent use, and calls
// nothing of its queue before it has returned.
type consumer interface {
	// offer hands out a message, and reports whether it was taken. If not, no more come
	// until the subscription is resumed.
	offer(d *delivery) bool
	// gone says that the queue is no more.
	gone()
	// via is the channel.
	via() uint16
}

// subscription is a consumer as its queue knows it.
type subscription interface {
	// resume says that the consumer takes messages again. It does not block, and may
	// come before the offer has returned that was not taken.
	resume()
	// cancel ends it. Messages that it has are not settled by it.
	cancel()
}

// confirmer is told of messages that were published.
type confirmer interface {
	// confirm says whether all queues have the message with this tag.
	confirm(tag uint64, taken bool)
}

// settlement is what becomes of a message that was handed out.
type settlement = queue.Settlement

const (
	settleAck     = queue.Ack
	settleReject  = queue.Reject
	settleRequeue = queue.Requeue
)

// settler is the queue that a delivery is of.
type settler interface {
	// settle settles messages, which are in the order in which they were handed out. It
	// does not block for long.
	settle(ids []uint64, how settlement)
}

// message is one on its way through.
type message struct {
	exchange, key string
	mandatory     bool
	// properties are as they are on the wire, and judged.
	properties, body []byte
	tag              uint64 // of the confirm
	channel          uint16 // that it came on
}

// delivery is a message that a queue hands out.
type delivery struct {
	*message
	redelivered bool
	from        settler
	id          uint64 // by which from knows it
}
