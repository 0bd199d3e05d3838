package admin

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go"
)

// BackupRequest asks a node for a backup.
type BackupRequest struct {
	// Recipient is the public age key that it is encrypted to.
	Recipient string `json:"recipient"`
	// Accounts whose streams are in it. Nil: all.
	Accounts []string `json:"accounts,omitempty"`
	// NoStreams leaves the streams of all accounts out; the fleet's own are always in it.
	NoStreams bool `json:"no_streams,omitempty"`
}

// BackupBegun is the answer.
type BackupBegun struct {
	// ID is what the parts are asked for with.
	ID   string `json:"id"`
	Node string `json:"node"`
}

// BackupPart is a part of it. Parts are asked for one after another; Number counts them
// from 1.
type BackupPart struct {
	Data []byte `json:"data,omitempty"`
	End  bool   `json:"end,omitempty"`
}

// BackupNext asks for a part.
type BackupNext struct {
	Number int `json:"number"`
}

// Backup has a node make a backup, and writes it, encrypted to the request's recipient,
// to w.
func (c *Client) Backup(ctx context.Context, r BackupRequest, w io.Writer) error {
	begun, err := call[BackupBegun](ctx, c, "backup.begin", r)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		part, err := ask[BackupPart](ctx, c.nc, RequestSubject(c.nc, BackupParts+begun.ID), BackupNext{n})
		if errors.Is(err, nats.ErrNoResponders) {
			return fmt.Errorf("reading a backup: node %s is gone", begun.Node)
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(part.Data); err != nil {
			return fmt.Errorf("writing a backup: %w", err)
		}
		if part.End {
			return nil
		}
	}
}

// BackupParts begins the name of the request for a part; the backup's ID follows.
const BackupParts = "backup.next."
