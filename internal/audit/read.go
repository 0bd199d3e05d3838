package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
)

const (
	// pageDefault and pageMost are how many entries are on a page, looksMost how many
	// messages are read for one, and pageBytes about how long it is.
	pageDefault, pageMost, looksMost = 100, 1000, 2000
	pageBytes                        = 128 << 10
)

// read reads a message of the stream; false if there is none.
func read(ctx context.Context, stream jetstream.Stream, sequence uint64) (admin.AuditBlock, bool, error) {
	msg, err := stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return admin.AuditBlock{}, false, nil
	}
	if err != nil {
		return admin.AuditBlock{}, false, fmt.Errorf("reading message %d of the audit: %w", sequence, err)
	}
	return admin.AuditBlock{Sequence: sequence, Journal: strings.TrimPrefix(msg.Subject, Prefix+"."), Stored: msg.Time, Data: msg.Data}, true, nil
}

// Page reads the entries that q asks for, the newest first.
func Page(ctx context.Context, stream jetstream.Stream, q admin.AuditQuery) (admin.AuditPage, error) {
	page := admin.AuditPage{Entries: []admin.AuditEntry{}}
	if q.Limit <= 0 {
		q.Limit = pageDefault
	}
	q.Limit = min(q.Limit, pageMost)
	info, err := stream.Info(ctx)
	if err != nil {
		return page, fmt.Errorf("reading the audit: %w", err)
	}
	next := info.State.LastSeq
	if q.Before > 0 {
		next = min(next, q.Before-1)
	}
	size := 0
	for looks := 0; next >= max(info.State.FirstSeq, 1); next-- {
		// A page holds whole messages, so that the next one begins with a message.
		if looks++; looks > looksMost || len(page.Entries) >= q.Limit || size > pageBytes {
			page.Next = next + 1
			return page, nil
		}
		stored, ok, err := read(ctx, stream, next)
		if err != nil {
			return page, err
		}
		if !ok {
			continue
		}
		entries, made, err := Entries(stored)
		if err != nil {
			continue // verify says what is wrong with it
		}
		if !q.Since.IsZero() && made.Before(q.Since.Add(-slack)) && stored.Stored.Before(q.Since.Add(-slack)) {
			return page, nil
		}
		for _, e := range slices.Backward(entries) {
			if Matches(q, e) {
				page.Entries = append(page.Entries, e)
				size += sizeOf(e)
			}
		}
	}
	return page, nil
}

// Matches reports whether an entry is what q asks for.
func Matches(q admin.AuditQuery, e admin.AuditEntry) bool {
	word := func(want, is string) bool {
		if beginning, ok := strings.CutSuffix(want, "*"); ok {
			return strings.HasPrefix(is, beginning)
		}
		return want == "" || want == is
	}
	switch {
	case !word(q.Who, e.Who), !word(q.What, e.What), q.Node != "" && q.Node != e.Node, q.Account != "" && q.Account != e.Account,
		len(q.Kinds) > 0 && !slices.Contains(q.Kinds, e.Kind),
		!q.Since.IsZero() && e.Time.Before(q.Since), !q.Until.IsZero() && e.Time.After(q.Until):
		return false
	case q.Text == "":
		return true
	}
	text, err := json.Marshal(e)
	return err == nil && strings.Contains(strings.ToLower(string(text)), strings.ToLower(q.Text))
}

// Blocks reads messages from one on.
func Blocks(ctx context.Context, stream jetstream.Stream, from uint64) (admin.AuditBlocks, error) {
	all := admin.AuditBlocks{Blocks: []admin.AuditBlock{}}
	info, err := stream.Info(ctx)
	if err != nil {
		return all, fmt.Errorf("reading the audit: %w", err)
	}
	size := 0
	for next, looks := max(from, info.State.FirstSeq, 1), 0; next <= info.State.LastSeq; next++ {
		if looks++; looks > looksMost || size > pageBytes {
			all.Next = next
			return all, nil
		}
		stored, ok, err := read(ctx, stream, next)
		if err != nil {
			return all, err
		}
		if ok {
			all.Blocks = append(all.Blocks, stored)
			size += len(stored.Data) * 4 / 3
		}
	}
	return all, nil
}

// List reads as many entries as q asks for, the newest last.
func List(ctx context.Context, c *admin.Client, q admin.AuditQuery) ([]admin.AuditEntry, error) {
	all, most := []admin.AuditEntry{}, q.Limit
	for q.Limit = min(most, pageMost); len(all) < most; {
		page, err := c.Audit(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Entries...)
		if q.Before = page.Next; q.Before == 0 {
			break
		}
	}
	all = all[:min(len(all), most)]
	slices.Reverse(all)
	// Each journal is in order, and none waits for another.
	slices.SortStableFunc(all, func(a, b admin.AuditEntry) int { return a.Time.Compare(b.Time) })
	return all, nil
}

// About is what an entry is about, in a word or two: the record that changed, or the
// account.
func About(e admin.AuditEntry) string {
	switch n := len(e.Changes); {
	case n == 1:
		return e.Changes[0].Subject
	case n > 1:
		return fmt.Sprintf("%s and %d more", e.Changes[0].Subject, n-1)
	case e.Count > 0:
		return fmt.Sprintf("%d %s", e.Count, e.What)
	}
	var named struct{ Name string }
	if len(e.Request) > 0 && json.Unmarshal(e.Request, &named) == nil && named.Name != "" {
		return named.Name
	}
	return e.Account
}
