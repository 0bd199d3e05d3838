package queue

import "errors"

// ErrUnknown is the error of a Log that ended before it knew: it may be stored all the same.
var ErrUnknown = errors.New("whether it is stored is not known")

// A Log has what a durable queue must not lose. Its methods are called in order, by one
// goroutine after another, and do not block for long: a queue waits for them. They call
// nothing of the queue but Stored, which they may call before they return. A log that
// belongs to another owner by now does nothing, and fails what is appended.
type Log interface {
	// Append stores a message behind all others, and tells the queue by Stored, with
	// the same place. The order of the calls is the order in the log.
	Append(r *Record, q *Queue, place uint64)
	// Note says what was done with messages. It may be gathered, and lost with the
	// power: messages then come once more, as redelivered.
	Note(n Note)
	// Read reads messages again, and gives them to done, in the order of seqs; nil
	// for one that is not there any more. done may be called from any goroutine, but
	// not before Read has returned.
	Read(seqs []uint64, done func([]*Message, error))
	// Replay calls each for all messages that are there and not done with, in their
	// order, until it returns an error. handed is the highest number of one that may
	// have been handed out.
	Replay(each func(*Record) error) (handed uint64, err error)
	// Drop removes the log: the queue is deleted.
	Drop()
}

// A Note is what was done with messages of a log.
type Note struct {
	// Done are those that need not be kept any more, in no order.
	Done []uint64
	// Handed is the highest that was handed out; 0: none since the last note.
	Handed uint64
}
