package change

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Heard is the pattern of the subjects on which watchers hear notices.
const Heard = heardSubject + ">"

// OpenHistory makes the history of nc's account if there is none. It is for who
// hands on notices of another bus with KeptAt; a Publisher does it by itself.
func OpenHistory(ctx context.Context, nc *nats.Conn) error {
	_, err := openHistory(ctx, nc)
	return err
}

// KeptAt is where the history keeps a notice that is heard on subject. Who hands on
// a notice of another bus publishes it there too, so that watchers which were away
// find it. The error wraps ErrMalformed; watchers make a Resync of such a message.
func KeptAt(subject string, payload []byte) (string, error) {
	n, err := read(subject, payload, new(words))
	if err != nil {
		return "", err
	}
	_, kept := n.subjects()
	return kept, nil
}

// HeardAt is where watchers hear a notice that the history has on subject.
func HeardAt(subject string) string {
	_, rest, _ := strings.Cut(subject, ".")
	source, key, _ := strings.Cut(rest, ".")
	if key == anyKey || strings.HasPrefix(key, anyKey+".") {
		key = ""
	}
	return heardAt(source, key)
}

// ResyncAt is a Resync of all of a source, as who lost notices of another bus tells
// it: the subjects where watchers hear it and where the history keeps it, and its
// payload. source is a valid name.
func ResyncAt(source string) (heard, kept string, payload []byte) {
	n := Notice{Source: source, Kind: Resync, Time: time.Now()}
	heard, kept = n.subjects()
	return heard, kept, n.encode()
}
