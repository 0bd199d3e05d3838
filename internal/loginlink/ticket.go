package loginlink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"
)

// TicketLife is how long a ticket is good at most.
const TicketLife = 15 * time.Minute

// ticketPrefix tells tickets from links, and this form of them from others.
const ticketPrefix = "t1."

// Ticket is a text that lets who in again until ends, at the node whose key it is,
// which may have been started anew meanwhile and remembers nobody.
func Ticket(key []byte, who string, ends, now time.Time) string {
	if latest := now.Add(TicketLife); ends.After(latest) {
		ends = latest
	}
	body := binary.BigEndian.AppendUint64(nil, uint64(max(ends.Unix(), 0)))
	body = append(body, who...)
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(append(sign(key, body), body...))
}

func sign(key, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	return mac.Sum(nil)
}

// Open says for whom a ticket is; "" if it is none, or good no more.
func Open(key []byte, text string, now time.Time) (who string) {
	encoded, ok := strings.CutPrefix(text, ticketPrefix)
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if !ok || err != nil || len(data) < sha256.Size+8 || len(key) == 0 {
		return ""
	}
	sum, body := data[:sha256.Size], data[sha256.Size:]
	if !hmac.Equal(sum, sign(key, body)) || now.Unix() >= int64(binary.BigEndian.Uint64(body)) {
		return ""
	}
	return string(body[8:])
}
