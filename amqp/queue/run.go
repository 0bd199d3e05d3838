package queue

// news is something to be told without the lock. One of its parts is set.
type news struct {
	done   Done
	gone   Consumer
	wake   *Subscription
	dead   *Message // with reason; nil and a seq: it is to be read again
	seq    uint64
	reason Reason
	over   bool // the queue is deleted
	taken  bool // of done
}

func (n *news) tell(q *Queue) {
	switch {
	case n.done != nil:
		n.done.Done(n.taken)
	case n.gone != nil:
		n.gone.Gone()
	case n.wake != nil:
		n.wake.Resume()
	case n.over:
		q.env.Outlet.Gone(q)
	default:
		q.deadLetter(n)
	}
}

// kick has the queue look at what was left for it, without waiting for the lock: who has
// it looks again.
func (q *Queue) kick() {
	q.again.Store(true)
	if q.mu.TryLock() {
		q.unlock()
	}
}

// unlock does what can be done, and tells what there is to tell. It is how the lock is
// given back.
func (q *Queue) unlock() {
	for {
		q.work()
		if len(q.news) == 0 || q.telling {
			q.mu.Unlock()
		} else {
			q.tellAll()
		}
		if !q.again.Load() || !q.mu.TryLock() {
			return
		}
	}
}

// few is how much room for news an idle queue keeps.
const few = 8

// tellAll tells the news, one goroutine at a time, and gives the lock back.
func (q *Queue) tellAll() {
	q.telling = true
	for len(q.news) > 0 {
		all := q.news
		q.news, q.spare = q.spare, nil
		q.mu.Unlock()
		for i := range all {
			all[i].tell(q)
		}
		clear(all)
		q.mu.Lock()
		if cap(all) <= few {
			q.spare = all[:0]
		}
		q.work()
	}
	q.telling = false
	q.mu.Unlock()
}

// work brings the queue to where nothing can be done but by others.
func (q *Queue) work() {
	for q.again.Swap(false) {
		q.takeInbox()
	}
	if q.gone {
		q.grace = 0
		return
	}
	q.handOutAll()
	q.arm()
	q.flush()
}

// takeInbox takes up what was left while others had the lock.
func (q *Queue) takeInbox() {
	q.inbox.mu.Lock()
	resumed, all := q.inbox.resumed, q.inbox.stored
	for _, s := range resumed {
		s.resuming = false
	}
	q.inbox.resumed, q.inbox.stored = nil, nil
	if q.d != nil && len(all) > 0 {
		q.inbox.stored, q.d.spare = q.d.spare, nil
	}
	q.inbox.mu.Unlock()
	if q.gone {
		return
	}
	for _, s := range resumed {
		s.stalled = false
		q.link(s)
	}
	if len(all) > 0 {
		q.settleStored(all)
		if q.d != nil && cap(all) <= batch {
			q.d.spare = all[:0]
		}
	}
}

// handOutAll hands out what can be, and has what is too much or too old go.
func (q *Queue) handOutAll() {
	q.expire()
	for q.ready > 0 {
		s := q.turn()
		if s == nil {
			break
		}
		l := q.top()
		if l.front().m == nil {
			q.load(l)
			break
		}
		if q.d != nil {
			q.readAhead(l)
		}
		if s.credit.take(s) {
			q.ids++
			if s.to.Deliver(q.delivery(l.front(), q.ids)) {
				q.unlink(s)
				q.handOut(l, s, s.noAck)
				q.link(s)
				q.grace = 0
				q.expire()
				continue
			}
			q.ids--
			for _, other := range s.credit.give() {
				q.news = append(q.news, news{wake: other})
			}
		}
		s.stalled = true
		q.unlink(s)
	}
	q.grace = 0
	q.expire()
	q.shorten()
}

// expire has what is too old at the head go.
func (q *Queue) expire() {
	if q.ready == q.lasting {
		return
	}
	now := q.env.Timers.now()
	if q.lists == nil {
		q.expireHead(&q.list, now)
		return
	}
	for i := len(q.lists) - 1; i >= 0; i-- {
		q.expireHead(&q.lists[i], now)
	}
}

func (q *Queue) expireHead(l *list, now int64) {
	for l.len() > 0 {
		it := l.front()
		if it.expires == 0 || it.expires > now || it.place == q.grace {
			return
		}
		gone := q.pop(l)
		q.bury(&gone, Expired)
	}
}

// shorten has what is too much at the head go.
func (q *Queue) shorten() {
	for q.ready > 0 && (q.s.MaxLength != none && int64(q.ready) > q.s.MaxLength || q.s.MaxBytes != none && q.bytes > q.s.MaxBytes) {
		if q.s.Overflow != DropHead {
			return // what came back is not refused
		}
		it := q.pop(q.top())
		q.bury(&it, MaxLength)
		q.expire()
	}
}

// arm has the timer wake the queue when something is due. A timer that comes too early
// is set anew then, so that not each message sets it.
func (q *Queue) arm() {
	next := int64(0)
	sooner := func(at int64) {
		if next == 0 || at < next {
			next = at
		}
	}
	if q.s.Expires != none && len(q.subs) == 0 {
		sooner(q.used + q.s.Expires)
	}
	if q.ready > q.lasting {
		if q.lists == nil {
			if at := q.list.front().expires; at != 0 {
				sooner(at)
			}
		}
		for i := range q.lists {
			if l := &q.lists[i]; l.len() > 0 && l.front().expires != 0 {
				sooner(l.front().expires)
			}
		}
	}
	if q.d != nil && q.d.retry != 0 {
		sooner(q.d.retry)
	}
	if next != 0 && (q.armed == 0 || next < q.armed) {
		q.armed = next
		q.env.Timers.set(q, next)
	}
}

// tick is what the timer calls.
func (q *Queue) tick() {
	q.mu.Lock()
	defer q.unlock()
	q.armed = 0
	if q.gone {
		return
	}
	now := q.env.Timers.now()
	if q.d != nil && q.d.retry != 0 && q.d.retry <= now {
		q.d.retry = 0
	}
	if q.s.Expires != none && len(q.subs) == 0 && q.used+q.s.Expires <= now {
		q.end()
	}
}
