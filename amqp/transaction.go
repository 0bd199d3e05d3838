package amqp

import "github.com/fleetbus/fleetbus/amqp/frame"

// transaction is what a channel does at its commit.
type transaction struct {
	messages    []*message
	size        int // of them, in bytes
	settlements []settlements
}

type settlements struct {
	given []given
	how   settlement
}

// maxTransaction is how many messages a transaction has at most, and their size in
// multiples of that of the largest message.
const maxTransaction = 10_000

func (t *transaction) publish(m *message, largest int) error {
	t.size += len(m.body) + len(m.properties)
	if len(t.messages) == maxTransaction || t.size > 4*largest {
		return frame.ChannelError(frame.PreconditionFailed, "a transaction of more than %d messages, or %d bytes", maxTransaction, 4*largest).Of((*frame.BasicPublish)(nil))
	}
	t.messages = append(t.messages, m)
	return nil
}

func (t *transaction) settle(given []given, how settlement) {
	t.settlements = append(t.settlements, settlements{given, how})
}

// rollback drops it, and returns what is not settled after all.
func (t *transaction) rollback() (all []given) {
	for _, s := range t.settlements {
		all = append(all, s.given...)
	}
	*t = transaction{}
	return all
}
