// Package audit keeps a journal of each node: who changed what, who came in and who
// was refused. The journals are in one stream of the fleet's, and each is a chain that
// its node signs, so that what is taken out of it or altered shows.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
)

const (
	// Stream has the journals, in the fleet's account.
	Stream = "AUDIT"
	// Prefix, a dot and the public key of a journal are the subject of its blocks.
	Prefix = "audit"
	// maxBlock bounds the data of one message, and maxEntries the entries in it.
	maxBlock   = 256 << 10
	maxEntries = 512
	// maxAnchors bounds the other journals that a block tells of.
	maxAnchors = 1024
)

// A Block is one message of the stream: some entries of a journal, with the hash of the
// block before. Its data is the JSON of it, a line feed, and the signature of the JSON
// by the journal's key.
type Block struct {
	Version int `json:"v"`
	// Journal is the public key of the chain, Node whose it is, Number its place, from 1.
	Journal string `json:"journal"`
	Node    string `json:"node"`
	Number  uint64 `json:"block"`
	// Previous is the Hash of the block before; empty in the first one. PreviousTime is
	// its Time: how old what is gone may be is told by the oldest that is left.
	Previous     string    `json:"previous,omitempty"`
	PreviousTime time.Time `json:"previous_time,omitzero"`
	Time         time.Time `json:"time"`
	// First is the Number of the first entry.
	First   uint64             `json:"first"`
	Entries []admin.AuditEntry `json:"entries,omitempty"`
	// Anchors are the last blocks of other journals, as this node saw them, by key.
	Anchors map[string]admin.AuditHead `json:"anchors,omitempty"`
}

// Next is the Number of the entry after the last one of b.
func (b *Block) Next() uint64 { return b.First + uint64(len(b.Entries)) }

// seal returns the data of b, and its hash.
func seal(b *Block, key nkeys.KeyPair) (data []byte, hash string, err error) {
	body, err := json.Marshal(b)
	if err != nil {
		return nil, "", fmt.Errorf("encoding a block: %w", err)
	}
	signature, err := key.Sign(body)
	if err != nil {
		return nil, "", fmt.Errorf("signing a block: %w", err)
	}
	data = append(body, '\n')
	return base64.StdEncoding.AppendEncode(data, signature), hashOf(body), nil
}

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// errSignature says that the key of the journal did not sign a block.
var errSignature = errors.New("it is not signed by the key of its journal")

// open reads what seal made, of the journal with that public key.
func open(journal string, data []byte) (b *Block, hash string, err error) {
	if len(data) > 2*maxBlock {
		return nil, "", fmt.Errorf("it has %d bytes, more than a node writes", len(data))
	}
	body, line, found := bytes.Cut(data, []byte("\n"))
	signature, err := base64.StdEncoding.AppendDecode(nil, line)
	if !found || err != nil {
		return nil, "", errSignature
	}
	key, err := nkeys.FromPublicKey(journal)
	if err != nil || !nkeys.IsValidPublicServerKey(journal) {
		return nil, "", errors.New("its subject has no key of a journal")
	}
	if key.Verify(body, signature) != nil {
		return nil, "", errSignature
	}
	b = new(Block)
	if err := json.Unmarshal(body, b); err != nil {
		return nil, "", fmt.Errorf("it cannot be read: %w", err)
	}
	if b.Journal != journal {
		return nil, "", errors.New("it is of another journal")
	}
	for i := range b.Entries {
		b.Entries[i].Node, b.Entries[i].Number = b.Node, b.First+uint64(i)
	}
	return b, hashOf(body), nil
}

// Entries are those of a stored block, whatever else is wrong with it than that it
// cannot be read: to list is not to verify.
func Entries(stored admin.AuditBlock) ([]admin.AuditEntry, time.Time, error) {
	body, _, _ := bytes.Cut(stored.Data, []byte("\n"))
	var b Block
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, time.Time{}, fmt.Errorf("reading message %d of the audit: %w", stored.Sequence, err)
	}
	for i := range b.Entries {
		b.Entries[i].Node, b.Entries[i].Number, b.Entries[i].Sequence = b.Node, b.First+uint64(i), stored.Sequence
	}
	return b.Entries, b.Time, nil
}
