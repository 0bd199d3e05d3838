package cert

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"

	"github.com/nats-io/nats.go"
)

// wordHeader is the header of a request to managers with a word that who asks makes up
// for it. What is answered is signed for that word, so that no answer is one to another
// request.
const wordHeader = "Fleetbus-Word"

// maxWord bounds such a word.
const maxWord = 64

func answerPlace(word string) string { return "answer " + word }

// Answer answers a request to the managers with value in JSON, and signs it.
func (k *ManagerKey) Answer(request *nats.Msg, value any) error {
	word := request.Header.Get(wordHeader)
	if len(word) > maxWord {
		word = ""
	}
	data, err := k.Sign(answerPlace(word), value)
	if err != nil {
		return err
	}
	return request.Respond(data)
}

// Answers are those to one request to the managers. Ask makes them; it is not safe for
// concurrent use.
type Answers struct {
	sub     *nats.Subscription
	signers []Signer
	word    string
}

// Ask makes a request to the managers, of whom signers are believed. Without any, who
// else could hear the request could answer it: nothing is to depend on it then.
func Ask(nc *nats.Conn, signers []Signer, subject string, data []byte) (*Answers, error) {
	m := nats.NewMsg(subject)
	m.Reply, m.Data = nc.NewInbox(), data
	a := &Answers{signers: signers, word: rand.Text()}
	m.Header.Set(wordHeader, a.word)
	var err error
	if a.sub, err = nc.SubscribeSync(m.Reply); err != nil {
		return nil, fmt.Errorf("subscribing to %q: %w", m.Reply, err)
	}
	if err := nc.PublishMsg(m); err != nil {
		a.Close()
		return nil, fmt.Errorf("asking %q: %w", subject, err)
	}
	return a, nil
}

// Next returns the next answer, in JSON. What no manager signed is none. The error is
// nats.ErrNoResponders if nobody is there.
func (a *Answers) Next(ctx context.Context) ([]byte, error) {
	for {
		m, err := a.sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, err
		}
		if len(a.signers) == 0 {
			_, payload, signed := bytes.Cut(m.Data, []byte("\n"))
			if !signed || !bytes.HasPrefix(m.Data, []byte(signedPrefix)) {
				payload = m.Data
			}
			return payload, nil
		}
		if payload, err := Verify(a.signers, answerPlace(a.word), m.Data); err == nil {
			return payload, nil
		}
	}
}

// Close hears no more answers.
func (a *Answers) Close() { _ = a.sub.Unsubscribe() } // the connection may be gone
