package change

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// Kind says what happened to a key.
type Kind string

// The kinds. Resync says that everything at or below its key may have changed:
// look again.
const (
	Insert Kind = "insert"
	Update Kind = "update"
	Delete Kind = "delete"
	Resync Kind = "resync"
)

// A Notice says that something changed, and never what it is now: whoever hears
// it goes and reads. It has no field for a value.
type Notice struct {
	// Source is whose change it is: a name of letters, digits, "-" and "_".
	Source string
	// Key is what changed; of a Resync, the key at and below which all may have.
	Key Key
	// Kind is what happened. Several changes of a key that became one notice have
	// the last one's kind.
	Kind Kind
	// Version is the place of the change in its source's history: a log position,
	// a row number of an outbox, a row's version. Two of the same Epoch can be
	// compared, and the larger is the newer. 0: unknown.
	Version uint64
	// Epoch names the history that Version counts. It changes when the source was
	// replaced by another, as after a fail-over. 64 bytes at most of letters,
	// digits, "-", "_", ":" and ".".
	Epoch string
	// Origin is who announced it: a name and an id of its run. Of the same
	// characters as Epoch. A Publisher sets it.
	Origin string
	// Count numbers the notices of an origin, from 1. A Publisher sets it.
	Count uint64
	// Time is when the source says that it happened, or when it was announced, by
	// the origin's clock.
	Time time.Time

	// Reason says why a watcher made a Resync; it does not travel. See Reason.
	Reason Reason
	// Late says that it was not heard but found in the history afterwards; it does
	// not travel.
	Late bool
}

// maxNotice is the size of a notice on the bus, in bytes, subject and all.
const maxNotice = 1024

// maxKey is the longest text of a key that is announced as it is. A longer one is
// announced as a Resync of the part of it that fits.
const maxKey = 512

// ErrMalformed says that a message is not a notice.
var ErrMalformed = errors.New("not a notice")

// decode reads a payload into n, whose Source is set; key is that of the subject.
// An empty payload is an Update of which nothing else is known, and so is one
// without a kind, because a client that was written by hand may have little to
// say.
func (n *Notice) decode(key string, payload []byte, known *words) (err error) {
	if n.Key, err = ParseKey(key); err != nil {
		return errors.Join(ErrMalformed, err)
	}
	if len(payload) > maxNotice {
		return fmt.Errorf("%w: it has %d bytes, and %d are allowed", ErrMalformed, len(payload), maxNotice)
	}
	var w wire
	if len(payload) > 0 && !w.decode(payload, known) {
		return fmt.Errorf("%w: it is not JSON of the known fields", ErrMalformed)
	}
	n.Kind, n.Version, n.Epoch, n.Origin, n.Count, n.Time = w.Kind, w.Version, w.Epoch, w.Origin, w.Count, w.Time
	if n.Kind == "" {
		n.Kind = Update
	}
	if (n.Kind == Resync) != (w.Key != nil) || len(n.Key) > 0 && w.Key != nil {
		return fmt.Errorf("%w: a resync, and nothing else, names its key", ErrMalformed)
	}
	if w.Key != nil {
		if n.Key, err = ParseKey(*w.Key); err != nil {
			return errors.Join(ErrMalformed, err)
		}
	}
	if err := n.check(); err != nil {
		return errors.Join(ErrMalformed, err)
	}
	return nil
}

// ErrInvalid says that a notice cannot be announced as it is.
var ErrInvalid = errors.New("invalid notice")

// check says what is wrong with the fields but the key's text.
func (n *Notice) check() error {
	if err := identity.CheckName(n.Source); err != nil {
		return fmt.Errorf("%w: its source: %w", ErrInvalid, err)
	}
	switch n.Kind {
	case Insert, Update, Delete:
		if len(n.Key) == 0 {
			return fmt.Errorf("%w: it has no key", ErrInvalid)
		}
	case Resync:
	default:
		return fmt.Errorf("%w: its kind is not insert, update, delete or resync", ErrInvalid)
	}
	if !isWord(n.Epoch) || !isWord(n.Origin) {
		return fmt.Errorf("%w: epoch and origin are at most 64 bytes of letters, digits, -, _, : and dots", ErrInvalid)
	}
	return nil
}

func isWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; !unescaped(c) && c != ':' && c != '.' {
			return false
		}
	}
	return len(s) <= 64
}

// older reports whether n happened before m, of the same key. What cannot be
// compared did not.
func (n *Notice) older(m *Notice) bool {
	return n.Epoch == m.Epoch && n.Version != 0 && n.Version < m.Version
}

// The subjects. Watchers hear keys on change.<source>.<key>, and what concerns
// many keys on change.<source>. The history keeps, of every key, the last notice
// on announced.<source>.<key>, and of every resync that on
// announced.<source>.%any.<key>; "%any" is the text of no part. What a client
// publishes on announce.<source>.<key> is kept there, and heard by watchers.
const (
	heardSubject    = "change."
	announceSubject = "announce."
	keptSubject     = "announced."
	anyKey          = "%any"
)

func heardAt(source string, key string) string {
	if key == "" {
		return heardSubject + source
	}
	return heardSubject + source + "." + key
}

func (n *Notice) subjects() (heard, kept string) {
	key := n.Key.String()
	if n.Kind != Resync {
		return heardAt(n.Source, key), keptSubject + n.Source + "." + key
	}
	if key == "" {
		key = anyKey
	}
	return heardAt(n.Source, ""), keptSubject + n.Source + "." + anyKey + "." + key
}

// read makes a notice of a message on a subject that a watcher hears, or that the
// history keeps.
func read(subject string, payload []byte, known *words) (Notice, error) {
	_, rest, _ := strings.Cut(subject, ".")
	source, key, _ := strings.Cut(rest, ".")
	if strings.HasPrefix(key, anyKey+".") {
		key = ""
	}
	n := Notice{Source: source}
	err := n.decode(key, payload, known)
	return n, err
}
