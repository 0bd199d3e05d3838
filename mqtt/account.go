package mqtt

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/wire"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// The streams of an account: what QoS 1 and 2 was published, the sessions that
// outlive a connection, and the retained messages.
const (
	messagesStream = "MQTT5_MESSAGES"
	sessionsStream = "MQTT5_SESSIONS"
	retainedStream = "MQTT5_RETAINED"

	requestTimeout  = 5 * time.Second
	openTimeout     = 30 * time.Second
	sessionsBytes   = 256 << 20
	maxExpiry       = 7 * 24 * time.Hour
	notEnoughNodes  = jetstream.ErrorCode(10005)
	needsCluster    = jetstream.ErrorCode(10074)
	noResources     = jetstream.ErrorCode(10023)
	noStorage       = jetstream.ErrorCode(10047)
	notAvailable    = jetstream.ErrorCode(10008)
	notLeader       = jetstream.ErrorCode(10009)
	wrongLast       = jetstream.ErrorCode(10071)
	inProcess       = jetstream.ErrorCode(10158) // a message of that identifier is
	lastInProcess   = jetstream.ErrorCode(10164)
	tooMany         = jetstream.ErrorCode(10167)
	filtersOverlap  = jetstream.ErrorCode(10138)
	sweepEvery      = 250 * time.Millisecond
	beatEvery       = 2 * time.Second
	deadAfter       = 10 * time.Second
	othersWait      = 3 * time.Second
	cleanEvery      = time.Minute
	weighEvery      = time.Second
	fullEvery       = time.Second
	overhead        = 200 // of a stored message, in bytes
	holdsBackAtMost = 10_000
	// heartbeat is how often the engine says that a consumer is there: after two
	// that did not come it is made anew, on another node.
	heartbeat = time.Second
)

// digest is the name of a client identifier, or of a group, in subjects.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:15])
}

// account is what this package keeps of one account on one node: a connection of
// its own, and what goes on in its streams.
type account struct {
	p    *Protocol
	name string
	at   places
	conn *fleetbus.Session
	js   jetstream.JetStream

	messages, retained, registry bounded
	keptBefore                   uint64 // the last that was retained when it was opened

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	// feed is what of the messages comes to this node.
	feed struct {
		sync.Mutex
		tree  tree[*session]
		local map[string]*session // by key
	}

	live     live
	asking   asking
	keep     keeper
	index    register
	forwards forwards
	last     atomic.Uint64 // the stored message that the sessions here were offered last
	heard    follower      // the same, for who waits for it
	grown    atomic.Int64  // bytes since it was cleaned
	takes    chan *nats.Msg

	cleaning  sync.Mutex // held, also for what follows
	removed   uint64     // nothing stored is left up to here
	sifted    time.Time
	siftAgain time.Duration // after sifted
	blamed    atomic.Pointer[doctor.Finding]

	// groups are the subjects in the stream of messages of which groups are given
	// something, as far as is known; nil: it is not.
	groups atomic.Pointer[identity.Rule]
}

// openAccount opens the account of s for the protocol.
func openAccount(ctx context.Context, p *Protocol, s *fleetbus.Session) (*account, error) {
	every := identity.Rule{Allow: []string{">", house + ">"}}
	conn, err := s.Account("mqtt", identity.Permissions{Publish: every, Subscribe: every})
	if err != nil {
		return nil, err
	}
	a := &account{p: p, name: s.Principal.Account, conn: conn}
	a.live.wire = wire.NewListener(liveQueue)
	if a.live.conn, err = s.Account("mqtt", identity.Permissions{Publish: every, Subscribe: every}, nats.NoEcho(), a.live.wire.Option()); err != nil {
		conn.Close()
		return nil, err
	}
	region, first, _ := conn.Regions()
	a.at = placesOf(region, first)
	a.ctx, a.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := a.open(ctx); err != nil {
		a.close()
		return nil, fmt.Errorf("opening account %q for MQTT: %w", a.name, err)
	}
	return a, nil
}

func (a *account) close() {
	a.stop()
	_ = a.conn.Publish(a.at.alive+a.p.run(), []byte(gone))
	a.conn.Close()
	a.live.conn.Close()
	a.running.Wait()
}

func (a *account) open(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if a.js, err = jetstream.New(a.conn.Conn); err != nil {
		return err
	}
	open := func(b *bounded, most int64, c jetstream.StreamConfig) {
		if err != nil {
			return
		}
		c.Storage, c.Metadata = jetstream.FileStorage, map[string]string{fleetbus.ReplicasKey: "auto"}
		if a.p.LazySync {
			c.PersistMode, c.Metadata[fleetbus.ReplicasKey] = jetstream.AsyncPersistMode, "1"
		}
		b.most = most
		b.Stream, err = a.stream(ctx, c)
	}
	open(&a.messages, a.p.maxStored(), jetstream.StreamConfig{
		Name: messagesStream, Subjects: []string{a.at.message + ">", a.at.mark + "*"}, Discard: jetstream.DiscardNew,
		MaxAge: maxExpiry, Duplicates: 5 * time.Minute,
	})
	open(&a.registry, sessionsBytes, jetstream.StreamConfig{
		Name: sessionsStream, Subjects: []string{a.at.session + "*"}, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, AllowMsgTTL: true,
		Duplicates: time.Minute,
	})
	// No session's. [MQTT311-3.1.2-7]
	open(&a.retained, a.p.maxRetained(), jetstream.StreamConfig{
		Name: retainedStream, Subjects: []string{a.at.retained + ">"}, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, AllowMsgTTL: true,
	})
	if err != nil {
		return err
	}
	for _, b := range a.streams() {
		if b.writer, err = newWriter(a.conn.Conn); err != nil {
			return err
		}
	}
	a.keptBefore = a.retained.CachedInfo().State.LastSeq
	a.feed.local = map[string]*session{}
	a.index.init(func() { _ = a.beat() })
	a.keep.init(a.at.retained, a.retainAgain)
	a.live.init()
	a.live.conn.SetClosedHandler(func(*nats.Conn) { a.fail() })
	if a.live.conn.IsClosed() { // before there was a handler
		return nats.ErrConnectionClosed
	}
	if _, err := a.conn.Subscribe(a.at.alive+"*", a.index.beat); err != nil {
		return err
	}
	a.takes = make(chan *nats.Msg, 1024)
	if _, err := a.conn.ChanSubscribe(a.at.take+a.p.run(), a.takes); err != nil {
		return err
	}
	a.running.Go(a.give)
	a.running.Go(a.hand)
	var info *jetstream.StreamInfo
	if err := again(ctx, func(ctx context.Context) (err error) {
		info, err = a.messages.Info(ctx)
		return err
	}); err != nil {
		return err
	}
	a.last.Store(info.State.LastSeq)
	a.heard.reach(info.State.LastSeq)
	if err := a.beat(); err != nil {
		return err
	}
	for _, f := range []struct {
		stream jetstream.Stream
		config jetstream.OrderedConsumerConfig
		take   func(jetstream.Msg)
	}{
		{a.messages.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: a.last.Load() + 1}, a.hear},
		{a.retained.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}, a.hearKept},
		{a.registry.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}, a.index.hear},
	} {
		if err := a.follow(ctx, f.stream, f.config, f.take); err != nil {
			return err
		}
	}
	if err := a.openForwards(ctx); err != nil {
		return err
	}
	a.running.Go(a.tick)
	return nil
}

// firstTry is how long the engine may take to answer before it is asked again; then twice
// as long, and so on.
const firstTry = 500 * time.Millisecond

// again asks the engine until it answers, or ctx is done. What is asked of a stream whose
// leader is gone is never answered, and the next one, who is there within seconds, does not
// know of it.
func again(ctx context.Context, ask func(context.Context) error) error {
	for limit := firstTry; ; limit *= 2 {
		try, cancel := context.WithTimeout(ctx, limit)
		err := ask(try)
		cancel()
		unanswered := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
			refused(err, notAvailable, notLeader)
		if !unanswered || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond): // who says no at once is asked soon
			limit = min(limit, requestTimeout/2)
		}
	}
}

// stream opens a stream, and makes it if it is missing: on three nodes where there
// are three.
func (a *account) stream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	copies := []int{3, 1}
	if c.PersistMode == jetstream.AsyncPersistMode {
		copies = []int{1} // the engine has it for one
	}
	for {
		attempt, cancel := context.WithTimeout(ctx, requestTimeout/2)
		var s jetstream.Stream
		err := again(attempt, func(ctx context.Context) (err error) {
			s, err = a.js.Stream(ctx, c.Name)
			return err
		})
		for _, replicas := range copies {
			if errors.Is(err, jetstream.ErrStreamNotFound) || refused(err, notEnoughNodes, needsCluster) {
				c.Replicas = replicas
				s, err = a.js.CreateStream(attempt, c)
			}
		}
		cancel()
		if err == nil {
			return s, nil
		}
		early := errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) || errors.Is(err, jetstream.ErrStreamNotFound) ||
			errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders)
		var refusal *jetstream.APIError
		early = early || errors.As(err, &refusal) && refusal.Code >= 500 && !refused(err, noResources, noStorage)
		if !early {
			return nil, fmt.Errorf("opening stream %q: %w", c.Name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("opening stream %q: %w", c.Name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// bounded is a stream and how large it may become. The engine's own bound would be
// set aside on the disk for each account, whether it needs it or not; this one is
// looked at while there is something written, and may be passed by what is under
// way.
type bounded struct {
	jetstream.Stream
	writer        *writer
	most          int64 // bytes
	size          atomic.Int64
	written, full atomic.Bool
}

// grow notes that b has so many bytes more.
func (b *bounded) grow(n int64) {
	if b.size.Add(n) >= b.most {
		b.full.Store(true)
	}
}

// errFull says that a stream has reached its bound.
var errFull = errors.New("the account has no more room for it")

// weigh looks whether b is full, if that may have changed.
func (b *bounded) weigh(ctx context.Context) {
	if !b.written.Swap(false) && !b.full.Load() {
		return
	}
	info, err := b.Info(ctx)
	if err != nil {
		b.written.Store(true)
		return
	}
	b.size.Store(int64(info.State.Bytes))
	b.full.Store(int64(info.State.Bytes) >= b.most)
}

// refused reports whether the engine refused something for one of reasons.
func refused(err error, reasons ...jetstream.ErrorCode) bool {
	var refusal *jetstream.APIError
	return errors.As(err, &refusal) && slices.Contains(reasons, refusal.ErrorCode)
}

// overtaken reports whether a record was not written because somebody was faster.
func overtaken(err error) bool { return refused(err, wrongLast, lastInProcess) }

// follow calls take for what is in a stream and what comes, in order and without a
// gap, until the account is closed.
func (a *account) follow(ctx context.Context, s jetstream.Stream, c jetstream.OrderedConsumerConfig, take func(jetstream.Msg)) error {
	var consumer jetstream.Consumer
	if err := again(ctx, func(ctx context.Context) (err error) {
		consumer, err = s.OrderedConsumer(ctx, c)
		return err
	}); err != nil {
		return err
	}
	consuming, err := consumer.Consume(take, jetstream.PullMaxMessagesWithBytesLimit(500, 4*a.p.window()), jetstream.PullHeartbeat(heartbeat), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if a.ctx.Err() == nil && !errors.Is(err, jetstream.ErrNoHeartbeat) {
			a.p.log().Debug("following a stream of MQTT", "account", a.name, "error", err)
		}
	}))
	if err != nil {
		return err
	}
	a.running.Go(func() {
		select {
		case <-a.ctx.Done():
			consuming.Stop()
		case <-consuming.Closed():
			a.fail()
		}
	})
	return nil
}

// fail ends everything, unless that was asked for: it is done anew for who comes.
func (a *account) fail() {
	if a.ctx.Err() != nil {
		return
	}
	a.p.log().Error("the engine gives MQTT nothing any more", "account", a.name)
	a.stop()
	a.conn.Close()
	a.live.conn.Close()
	for _, s := range a.local() {
		s.kick(packet.ServerBusy, "the engine is not there")
	}
}

// store writes msg to b, which has its subject. done is called once, when it is
// there or is not; it must not block. owner is nil, or what has more on its way
// that must not overtake it.
func (a *account) store(b *bounded, msg *nats.Msg, owner any, done func(seq uint64, again bool, err error)) {
	b.written.Store(true)
	b.writer.write(msg, owner, done)
}

// storeMore is store for what is refused when there is too much already.
func (a *account) storeMore(b *bounded, msg *nats.Msg, owner any, done func(seq uint64, again bool, err error)) {
	if b.full.Load() {
		go done(0, false, errFull) // the caller may hold what done wants
		return
	}
	a.store(b, msg, owner, done)
}

// storeNow is store for who can wait.
func (a *account) storeNow(b *bounded, msg *nats.Msg) (seq uint64, err error) {
	answered := make(chan struct{})
	a.store(b, msg, nil, func(s uint64, _ bool, e error) {
		seq, err = s, e
		close(answered)
	})
	<-answered
	return seq, err
}

// ask has the other nodes give up the session of key, if one of them has it. Each
// is asked by its name: a client that hears everything would be taken for one that
// may still answer. Who does not answer is gone.
func (a *account) ask(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for _, run := range a.index.others(time.Now(), a.p.run()) {
		asked.Go(func() { _, _ = a.conn.RequestWithContext(ctx, a.at.take+run, []byte(key)) })
	}
	asked.Wait()
}

// headerServer is where clients reach the node whose beat it is.
const headerServer = "Mqtt-Server"

// beat tells the other nodes that this one is there, and what its sessions need
// that have no record.
func (a *account) beat() error {
	msg := &nats.Msg{Subject: a.at.alive + a.p.run(), Data: strconv.AppendUint(nil, a.floor(), 10)}
	if addr := a.p.advertised(); addr != "" {
		msg.Header = nats.Header{headerServer: []string{addr}}
	}
	return a.conn.PublishMsg(msg)
}

// give gives up sessions that other nodes ask for.
func (a *account) give() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case msg := <-a.takes:
			a.running.Go(func() {
				a.feed.Lock()
				s := a.feed.local[string(msg.Data)]
				here := s != nil && s.here
				a.feed.Unlock()
				if here {
					s.kick(packet.SessionTakenOver, "another client has its identifier") // [MQTT-3.1.4-3]
					select {
					case <-s.done:
					case <-a.ctx.Done():
					}
				}
				_ = msg.Respond(nil)
			})
		}
	}
}

// tick does what is due, until the account is closed.
func (a *account) tick() {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	var beaten, cleaned time.Time
	cleaned = time.Now()
	weighed := cleaned
	for {
		select {
		case <-a.ctx.Done():
			for _, b := range a.streams() {
				b.writer.close()
			}
			return
		case now := <-every.C:
			for _, b := range a.streams() {
				b.writer.tick(now)
			}
			a.sweep(now)
			a.keepForwards(now)
			if now.Sub(weighed) >= weighEvery {
				weighed = now
				a.running.Go(a.weigh)
			}
			full := a.grown.Load() > a.messages.most/8 && now.Sub(cleaned) >= fullEvery
			if full || now.Sub(beaten) >= beatEvery { // also what the others need to know who clean
				beaten = now
				_ = a.beat()
			}
			if full || now.Sub(cleaned) >= cleanEvery {
				cleaned = now
				a.grown.Store(0)
				a.running.Go(func() { a.clean(full) })
			}
		}
	}
}

func (a *account) streams() []*bounded { return []*bounded{&a.messages, &a.registry, &a.retained} }

func (a *account) weigh() {
	ctx, cancel := context.WithTimeout(a.ctx, requestTimeout)
	defer cancel()
	if a.messages.written.Load() {
		a.findGroups(ctx)
	}
	for _, b := range a.streams() {
		b.weigh(ctx)
	}
	if a.messages.full.Load() {
		a.grown.Store(a.messages.most) // it is to be cleaned at once
	} else {
		a.blamed.Store(nil)
	}
}

// findGroups looks what groups are given.
func (a *account) findGroups(ctx context.Context) {
	unknown := 0 // a consumer without a leader has a name and tells nothing
	names := a.messages.ConsumerNames(ctx)
	for name := range names.Name() {
		if strings.HasPrefix(name, a.at.share) {
			unknown++
		}
	}
	groups, err := &identity.Rule{}, names.Err()
	if unknown > 0 {
		consumers := a.messages.ListConsumers(ctx)
		for c := range consumers.Info() {
			if strings.HasPrefix(c.Name, a.at.share) {
				unknown--
				groups.Allow = append(append(groups.Allow, c.Config.FilterSubjects...), c.Config.FilterSubject)
			}
		}
		err = errors.Join(err, consumers.Err())
	}
	if unknown > 0 || err != nil {
		groups = nil
	}
	a.groups.Store(groups)
}

// hear hands a stored message to the sessions on this node that want it, in the
// order in which they were stored. [MQTT-4.5.0-1] [MQTT-4.6.0-5] [MQTT-4.6.0-6]
func (a *account) hear(msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		return
	}
	seq := meta.Sequence.Stream
	a.grown.Add(int64(len(msg.Data())) + overhead)
	a.messages.grow(int64(len(msg.Data())) + overhead)
	f := &a.feed
	f.Lock()
	defer f.Unlock()
	if subject, ok := strings.CutPrefix(msg.Subject(), a.at.message); ok {
		if ms := unpack(subject, seq, &nats.Msg{Data: msg.Data(), Header: msg.Headers()}); len(ms) > 0 {
			told := map[*session]bool{}
			f.tree.match(ms[0].topic, func(s *session) {
				if !told[s] {
					told[s] = true
					s.offer(ms)
				}
			})
		}
	}
	a.last.Store(seq)
	a.heard.reach(seq)
}

// hearKept takes what is retained, by other regions, too: then it may be too much. What
// was there when the account was opened is weighed as a whole.
func (a *account) hearKept(msg jetstream.Msg) {
	a.retained.written.Store(true)
	if seq, more := a.keep.hear(msg); seq > a.keptBefore {
		a.retained.grow(int64(more))
	}
}

// local are the sessions on this node.
func (a *account) local() []*session {
	a.feed.Lock()
	defer a.feed.Unlock()
	return slices.Collect(maps.Values(a.feed.local))
}

// floor is up to where no session on this node that has no record needs a stored
// message.
func (a *account) floor() uint64 {
	floor := a.last.Load()
	for _, s := range a.local() {
		s.mu.Lock()
		if !s.durable {
			seq, _ := s.floor()
			floor = min(floor, seq)
		}
		s.mu.Unlock()
	}
	return floor
}
