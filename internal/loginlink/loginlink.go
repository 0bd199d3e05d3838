// Package loginlink keeps the login links that a node has made: each lets one person
// in, once, soon. They are in memory alone, so that a fleet without a quorum has
// some, too, and that they end with the node.
package loginlink

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"
)

const (
	// Life is how long a link is good.
	Life = 10 * time.Minute
	// most is how many there may be at once: one more ends the oldest.
	most = 64
	// secretBytes of randomness are in each.
	secretBytes = 24
)

// Links are the links of a node. The zero value has none. It is safe for concurrent
// use.
type Links struct {
	mu  sync.Mutex
	all map[[sha256.Size]byte]link
}

type link struct {
	who  string
	ends time.Time
}

// Add makes a link for who, and returns its secret, which is nowhere else.
func (l *Links) Add(who string, now time.Time) (secret string, ends time.Time) {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // it never fails
	secret, ends = base64.RawURLEncoding.EncodeToString(b), now.Add(Life)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[[sha256.Size]byte]link{}
	}
	for len(l.all) >= most {
		var oldest [sha256.Size]byte
		var at time.Time
		for key, one := range l.all {
			if at.IsZero() || one.ends.Before(at) {
				oldest, at = key, one.ends
			}
		}
		delete(l.all, oldest)
	}
	l.all[sha256.Sum256([]byte(secret))] = link{who, ends}
	return secret, ends
}

// Redeem says for whom the link with that secret is, and ends it; "" if there is none.
func (l *Links) Redeem(secret string, now time.Time) (who string) {
	key := sha256.Sum256([]byte(secret))
	l.mu.Lock()
	defer l.mu.Unlock()
	one, ok := l.all[key]
	delete(l.all, key)
	if !ok || !now.Before(one.ends) {
		return ""
	}
	return one.who
}
