package mqtt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// subscribe takes a SUBSCRIBE. Where much is retained that this node has not read yet, it
// takes as long as opening an account.
func (s *session) subscribe(p *packet.Subscribe) error {
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	defer cancel()
	suback := &packet.Suback{ID: p.ID} // [MQTT-3.8.4-1] [MQTT-3.8.4-2]
	type wanted struct {
		filter string
		sub    subscription
		found  []message
	}
	var kept []wanted
	var names, begun []string
	s.mu.Lock()
	s.asking = true
	s.mu.Unlock()
	for _, asked := range p.Subscriptions { // [MQTT-3.8.4-5]
		names = append(names, asked.Filter)
		group, filter, err := packet.CheckFilter(asked.Filter)
		if err != nil {
			return err
		}
		sub := subscription{
			QoS: asked.QoS, ID: p.SubscriptionID, Local: asked.NoLocal, Retain: asked.RetainAsPublished, Group: group, handle: asked.RetainHandling,
		}
		isNew, begins, code := s.addSubscription(ctx, asked.Filter, filter, sub)
		if begins {
			begun = append(begun, filter)
		}
		if code.Failed() {
			s.log("MQTT client may not subscribe", "filter", clip(asked.Filter), "code", code.String())
			if s.v == packet.V311 { // [MQTT311-3.9.3-2]
				code = packet.UnspecifiedError
			}
		} else if group == "" && (sub.handle == packet.RetainAlways || sub.handle == packet.RetainIfNew && isNew) { // [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
			kept = append(kept, wanted{filter: filter, sub: sub})
		}
		suback.Codes = append(suback.Codes, code) // [MQTT-3.9.3-1]
	}
	if err := s.a.listen(ctx, s, names...); err != nil {
		return err
	}
	// What is retained from now on it hears anyway.
	var end ends
	var found []message
	if len(kept) > 0 || len(begun) > 0 {
		var err error
		if end, err = s.a.ends(ctx); err == nil && len(kept) > 0 {
			err = s.a.knowKept(ctx, end.kept)
		}
		if err != nil {
			s.kick(packet.ServerBusy, "where its subscriptions begin cannot be read")
			return err
		}
	}
	for i := range kept {
		kept[i].found = s.a.matching(kept[i].filter)
		found = append(found, kept[i].found...)
	}
	s.start(ctx, begun, end.stored, found)
	s.mu.Lock()
	stored := make(chan struct{})
	s.persist(func() {
		s.out.send(suback)
		for _, w := range kept {
			s.sendRetained(w.found, w.sub)
		}
		close(stored)
	})
	s.mu.Unlock()
	select {
	case <-stored:
		s.drained()
	case <-s.ctx.Done():
	case <-time.After(requestTimeout):
		s.log("the subscriptions of an MQTT client were not stored in time")
		s.kick(packet.ServerBusy, "its subscriptions could not be stored")
	}
	return nil
}

// sendRetained sends those of the retained messages that a subscription takes, before
// anything that is published later; mu is held.
func (s *session) sendRetained(found []message, sub subscription) {
	var first []message
	for _, m := range found {
		if reserved(m.topic) || !s.login.Principal.Permissions.Subscribe.Allows(mapping.Subject(m.topic)) || sub.Local && m.client == s.key {
			continue
		}
		m.kept, m.retain, m.sub, m.grant = true, true, sub.ID, sub.QoS // [MQTT-3.3.1-8]
		first = append(first, m)
	}
	// What was held back meanwhile is newer.
	s.queue = append(first, s.queue...)
	s.queued += size(first)
	s.pump()
}

// addSubscription makes a subscription, or replaces the one with its filter. It
// begins if it had no stored messages before.
// [MQTT-3.8.4-3]
func (s *session) addSubscription(ctx context.Context, full, filter string, sub subscription) (isNew, begins bool, code packet.Code) {
	code = packet.Code(sub.QoS) // [MQTT-3.8.4-7]
	subjects := mapping.Subjects(filter)
	if reserved(filter) {
		return false, false, packet.NotAuthorized
	}
	if slices.ContainsFunc(subjects, func(subject string) bool { return len(subject) > maxSubject }) {
		return false, false, packet.TopicFilterInvalid
	}
	if !s.maySubscribe(subjects) {
		return false, false, packet.NotAuthorized
	}
	key := filter
	if sub.Group != "" {
		key = full
	}
	s.mu.Lock()
	old, had := s.rec.Subs[key]
	tooMany := !had && len(s.rec.Subs) >= maxSubscriptions
	s.mu.Unlock()
	if tooMany {
		return false, false, packet.QuotaExceeded
	}
	if had { // [MQTT-3.8.4-4]
		sub.share, sub.From, sub.made = old.share, old.From, old.made
	}
	if !had || old.QoS == 0 {
		sub.From = s.a.last.Load()
		begins = sub.QoS > 0 && sub.Group == ""
	}
	if err := s.open(ctx, key, filter, &sub); err != nil {
		s.log("MQTT client could not subscribe", "error", err)
		return false, false, packet.UnspecifiedError
	}
	return !had, begins, code
}

// maySubscribe reports whether the client may subscribe to a filter of those
// subjects. That of the level above "#" may be forbidden it alone.
func (s *session) maySubscribe(subjects []string) bool {
	allowed := s.login.Principal.Permissions.Subscribe
	if !allowed.Allows(subjects[0]) {
		return false
	}
	if slices.ContainsFunc(subjects[1:], func(subject string) bool { return !allowed.Allows(subject) }) {
		s.mu.Lock()
		s.judged = true
		s.mu.Unlock()
	}
	return true
}

// open hears what sub wants, and notes it.
func (s *session) open(ctx context.Context, key, filter string, sub *subscription) error {
	s.mu.Lock()
	if sub.made == 0 {
		s.made++
		sub.made = s.made
	}
	if sub.Local {
		s.local.Store(true)
	}
	s.mu.Unlock()
	if sub.Group != "" && sub.share == nil {
		var err error
		if sub.share, err = s.share(ctx, key, filter, sub.Group); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.rec.Subs[key] = *sub
	s.mu.Unlock()
	if err := s.a.want(s, key, filter, sub); err != nil {
		return err
	}
	if sub.Group == "" {
		s.a.feed.Lock()
		if sub.QoS > 0 {
			s.a.feed.tree.add(filter, s)
		} else {
			s.a.feed.tree.remove(filter, s)
		}
		s.a.feed.Unlock()
	}
	return nil
}

// restore hears again what the session had subscribed to.
func (s *session) restore(ctx context.Context) error {
	s.mu.Lock()
	subs := s.rec.Subs
	s.rec.Subs = make(map[string]subscription, len(subs))
	s.resumed = len(subs) > 0
	s.mu.Unlock()
	for full, sub := range subs {
		_, filter, err := packet.CheckFilter(full)
		if err != nil {
			continue
		}
		if !s.maySubscribe(mapping.Subjects(filter)) {
			s.mu.Lock()
			s.keepFlights(full)
			s.mu.Unlock()
			continue // what it may do has changed
		}
		sub.made = 0
		if err := s.open(ctx, full, filter, &sub); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			for full, sub := range subs { // they are still the session's
				if _, ok := s.rec.Subs[full]; !ok {
					s.rec.Subs[full] = sub
				}
			}
			return err
		}
	}
	return s.a.listen(ctx, s, slices.Collect(maps.Keys(subs))...)
}

// keepFlights has the messages stay that are not acknowledged, if a subscription has
// ended; mu is held.
func (s *session) keepFlights(full string) {
	_, filter, err := packet.CheckFilter(full)
	switch {
	case err != nil || len(s.order) == 0 || slices.Contains(s.rec.Ended, everything):
	case len(s.rec.Ended) >= maxSubscriptions:
		s.rec.Ended = []string{everything}
	case !slices.Contains(s.rec.Ended, filter):
		s.rec.Ended = append(slices.Clip(s.rec.Ended), filter)
	}
}

// unsubscribe takes an UNSUBSCRIBE.
func (s *session) unsubscribe(p *packet.Unsubscribe) {
	unsuback := &packet.Unsuback{ID: p.ID} // [MQTT-3.10.4-5]
	for _, full := range p.Filters {       // [MQTT-3.10.4-1] [MQTT-3.10.4-6]
		s.mu.Lock()
		sub, had := s.rec.Subs[full]
		delete(s.rec.Subs, full) // and no flight [MQTT-3.10.4-3]
		if had {
			s.keepFlights(full)
		}
		s.mu.Unlock()
		code := packet.Success
		if !had {
			code = packet.NoSubscriptionExisted
		}
		s.a.leave(s, full) // [MQTT-3.10.4-2]
		if sub.share != nil {
			sub.share.end()
			s.mu.Lock()
			sub.share.giveBack(s.order)
			s.mu.Unlock()
		}
		s.a.feed.Lock()
		s.a.feed.tree.remove(full, s)
		s.a.feed.Unlock()
		unsuback.Codes = append(unsuback.Codes, code) // [MQTT-3.11.3-1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.persist(func() { s.out.send(unsuback) }) // [MQTT-3.10.4-4]
}

const (
	// groupKey and filterKey are where such a consumer says of which group it is.
	groupKey, filterKey = "mqtt-group", "mqtt-filter"
	// sharedWait is how long a message of QoS 1 stays with a client of a group that
	// is gone without a word; a client that is there has it as long as it likes.
	sharedWait = 30 * time.Second
	// sharedAhead is how many messages a client of a group has at once.
	sharedAhead = 16
)

// share takes a share of what a group is sent of stored messages.
func (s *session) share(ctx context.Context, key, filter, group string) (*holding, error) {
	subjects := mapping.Subjects(filter)
	for i := range subjects {
		subjects[i] = s.a.at.message + subjects[i]
	}
	consumer, err := s.a.messages.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: s.a.at.share + digest(group, filter), FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverNewPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: sharedWait, MaxAckPending: 10_000, InactiveThreshold: maxExpiry,
		Metadata: map[string]string{groupKey: group, filterKey: filter},
	})
	if err != nil {
		return nil, fmt.Errorf("sharing a subscription: %w", err)
	}
	s.a.groups.Store(nil)
	s.a.messages.written.Store(true) // it is looked again
	h := &holding{msgs: map[jetstream.Msg]struct{}{}}
	// The library's iterator would drop what comes while as many wait as it asks for, and
	// what is dropped waits for sharedWait.
	h.consuming, err = consumer.Consume(func(msg jetstream.Msg) { s.takeShared(key, msg, h) },
		jetstream.PullMaxMessagesWithBytesLimit(sharedAhead, s.p.window()), jetstream.PullHeartbeat(heartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			if errors.Is(err, jetstream.ErrConsumerDeleted) {
				s.kick(packet.ServerBusy, "its shared subscription is gone")
			}
			// Others are of a node that died: another one is asked.
		}))
	if err != nil {
		return nil, fmt.Errorf("sharing a subscription: %w", err)
	}
	h.done = h.consuming.Closed()
	go h.beat()
	return h, nil
}

// takeShared takes a message of a group.
func (s *session) takeShared(key string, msg jetstream.Msg, h *holding) {
	meta, err := msg.Metadata()
	if err != nil {
		return
	}
	ms := unpack(strings.TrimPrefix(msg.Subject(), s.a.at.message), meta.Sequence.Stream, &nats.Msg{Data: msg.Data(), Header: msg.Headers()})
	if len(ms) == 0 {
		_ = msg.Ack()
		return
	}
	h.add(msg)
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, ok := s.rec.Subs[key]
	if !ok || s.closed {
		return // the end of the share gives it back
	}
	left := len(ms)
	finished := func() {
		if left--; left == 0 {
			h.remove(msg)
			_ = msg.Ack() // [MQTT-4.8.2-6]
		}
	}
	if min(ms[0].qos, sub.QoS) == 2 { // it is no pack
		// Its record has it, and nobody else must.
		finished = func() {
			s.a.running.Go(func() {
				s.a.claim(msg.Reply())
				h.remove(msg)
			})
		}
		for _, f := range s.order {
			if f.Seq == ms[0].seq && strings.Contains(f.Share, "."+meta.Consumer+".") {
				finished()
				return
			}
		}
	}
	for i := range ms {
		m := &ms[i]
		m.retain = m.retain && sub.Retain
		m.grant, m.sub, m.share, m.reply, m.shared = sub.QoS, sub.ID, h, msg.Reply(), finished // [MQTT-4.8.2-3]
	}
	s.push(ms...)
	s.pump()
}

// claim tells a group that one of its clients has a message for good.
func (a *account) claim(share string) {
	for deadline := time.Now().Add(sharedWait); time.Now().Before(deadline) && a.ctx.Err() == nil; {
		ctx, cancel := context.WithTimeout(a.ctx, requestTimeout)
		_, err := a.conn.RequestWithContext(ctx, share, []byte("+ACK"))
		cancel()
		if err == nil {
			return
		}
		select { // there is no leader, but there will be
		case <-a.ctx.Done():
		case <-time.After(sweepEvery):
		}
	}
}
