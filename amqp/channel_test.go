package amqp

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// TestChannelErrors has clients do what closes a channel, or the connection, in the
// words and codes of RabbitMQ.
func TestChannelErrors(t *testing.T) {
	h := start(t)
	nothing := func(*amqp091.Channel) error { return nil }
	for what, c := range map[string]struct {
		do         func(*amqp091.Channel) error
		code       int
		reason     string
		connection bool
	}{
		"get of no queue": {func(ch *amqp091.Channel) error { _, _, err := ch.Get("none", true); return err }, 404, "NOT_FOUND - no queue 'none' in vhost '/'", false},
		"passive declare": {func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive("none", false, false, false, false, nil)
			return err
		}, 404, "NOT_FOUND - no queue 'none' in vhost '/'", false},
		"no queue declared": {func(ch *amqp091.Channel) error { _, _, err := ch.Get("", true); return err }, 404, "NOT_FOUND - no previously declared queue", false},
		"bind of nothing":   {func(ch *amqp091.Channel) error { return ch.QueueBind("", "", "fan", false, nil) }, 404, "NOT_FOUND - no previously declared queue", false},
		"publish to no exchange": {func(ch *amqp091.Channel) error {
			if err := ch.PublishWithContext(t.Context(), "none", "", false, false, amqp091.Publishing{}); err != nil {
				return err
			}
			return ch.Qos(1, 0, false)
		}, 404, "NOT_FOUND - no exchange 'none' in vhost '/'", false},
		"another user": {func(ch *amqp091.Channel) error {
			if err := ch.PublishWithContext(t.Context(), "", "none", false, false, amqp091.Publishing{UserId: "guest"}); err != nil {
				return err
			}
			return ch.Qos(1, 0, false)
		}, 406, "PRECONDITION_FAILED - user_id property set to 'guest' but authenticated user was 'device'", false},
		"unknown tag":      {func(ch *amqp091.Channel) error { return errors.Join(ch.Ack(42, false), ch.Qos(1, 0, false)) }, 406, "PRECONDITION_FAILED - unknown delivery tag 42", false},
		"unknown tags":     {func(ch *amqp091.Channel) error { return errors.Join(ch.Nack(42, true, true), ch.Qos(1, 0, false)) }, 406, "PRECONDITION_FAILED - unknown delivery tag 42", false},
		"rejected unknown": {func(ch *amqp091.Channel) error { return errors.Join(ch.Reject(7, true), ch.Qos(1, 0, false)) }, 406, "PRECONDITION_FAILED - unknown delivery tag 7", false},
		"commit":           {func(ch *amqp091.Channel) error { return ch.TxCommit() }, 406, "PRECONDITION_FAILED - channel is not transactional", false},
		"rollback":         {func(ch *amqp091.Channel) error { return ch.TxRollback() }, 406, "PRECONDITION_FAILED - channel is not transactional", false},
		"confirm and tx":   {func(ch *amqp091.Channel) error { return errors.Join(ch.Confirm(false), ch.Tx()) }, 406, "PRECONDITION_FAILED - cannot switch from confirm to tx mode", false},
		"tx and confirm":   {func(ch *amqp091.Channel) error { return errors.Join(ch.Tx(), ch.Confirm(false)) }, 406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode", false},
		"immediate": {func(ch *amqp091.Channel) error {
			return errors.Join(ch.PublishWithContext(t.Context(), "", "q", false, true, amqp091.Publishing{}), ch.Qos(1, 0, false))
		}, 540, "NOT_IMPLEMENTED - immediate=true", true},
		"flow":          {func(ch *amqp091.Channel) error { return ch.Flow(false) }, 540, "NOT_IMPLEMENTED - active=false", true},
		"prefetch size": {func(ch *amqp091.Channel) error { return ch.Qos(1, 10, false) }, 540, "NOT_IMPLEMENTED - prefetch_size!=0 (10)", true},
		"tag twice": {func(ch *amqp091.Channel) error {
			if _, err := ch.QueueDeclare("twice", false, false, false, false, nil); err != nil {
				return err
			}
			if _, err := ch.Consume("twice", "tag", true, false, false, false, nil); err != nil {
				return err
			}
			_, err := ch.Consume("twice", "tag", true, false, false, false, nil)
			return err
		}, 530, "NOT_ALLOWED - attempt to reuse consumer tag 'tag'", true},
		"nothing": {nothing, 0, "", false},
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := h.connect(t)
			if err != nil {
				t.Fatal(err)
			}
			ch, err := conn.Channel()
			if err != nil {
				t.Fatal(err)
			}
			ended, lost := ch.NotifyClose(make(chan *amqp091.Error, 1)), conn.NotifyClose(make(chan *amqp091.Error, 1))
			if err := c.do(ch); c.code == 0 && err != nil {
				t.Fatal(err)
			}
			if c.code > 0 {
				wants(t, next(t, ended), c.code, c.reason)
			}
			if c.connection {
				wants(t, next(t, lost), c.code, c.reason)
				return
			}
			again, err := conn.Channel()
			if err != nil {
				t.Fatalf("the connection does not go on: %v", err)
			}
			if err := again.Flow(true); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFramesOutOfPlace has what no client library does.
func TestFramesOutOfPlace(t *testing.T) {
	h := start(t, func(p *Protocol) { p.MaxMessage = 100_000 })
	publish := &frame.BasicPublish{RoutingKey: "q"}
	begun := must(frame.AppendMethod(nil, 1, publish))
	head := func(size uint64) []byte {
		return frame.AppendHeader(append([]byte{}, begun...), 1, frame.Header{Class: 60, Size: size, Properties: []byte{0, 0}})
	}
	qos := must(frame.AppendMethod(nil, 1, &frame.BasicQos{}))
	for what, c := range map[string]struct {
		b    []byte
		code frame.Code
	}{
		"channel not open":    {must(frame.AppendMethod(nil, 2, &frame.BasicQos{})), frame.ChannelFault},
		"body, not open":      {frame.AppendBody(nil, 2, []byte("x"), 0), frame.UnexpectedFrame},
		"too many channels":   {must(frame.AppendMethod(nil, 17, &frame.ChannelOpen{})), frame.ChannelFault},
		"open twice":          {must(frame.AppendMethod(nil, 1, &frame.ChannelOpen{})), frame.ChannelFault},
		"basic on channel 0":  {must(frame.AppendMethod(nil, 0, &frame.BasicQos{})), frame.CommandInvalid},
		"start again":         {must(frame.AppendMethod(nil, 0, &frame.ConnectionStartOk{})), frame.CommandInvalid},
		"close on channel 1":  {must(frame.AppendMethod(nil, 1, &frame.ConnectionClose{})), frame.CommandInvalid},
		"server's method":     {must(frame.AppendMethod(nil, 1, &frame.BasicDeliver{})), frame.CommandInvalid},
		"server's answer":     {must(frame.AppendMethod(nil, 1, &frame.QueueDeclareOk{})), frame.CommandInvalid},
		"unknown method":      {[]byte("\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x03\xe7\xce"), frame.CommandInvalid},
		"header alone":        {frame.AppendHeader(nil, 1, frame.Header{Class: 60, Properties: []byte{0, 0}}), frame.UnexpectedFrame},
		"body alone":          {frame.AppendBody(nil, 1, []byte("x"), 0), frame.UnexpectedFrame},
		"no header":           {append(begun[:len(begun):len(begun)], qos...), frame.UnexpectedFrame},
		"body for a header":   {frame.AppendBody(begun[:len(begun):len(begun)], 1, []byte("x"), 0), frame.UnexpectedFrame},
		"header of a class":   {frame.AppendHeader(begun[:len(begun):len(begun)], 1, frame.Header{Class: 50, Properties: []byte{0, 0}}), frame.UnexpectedFrame},
		"method for a body":   {append(head(5), qos...), frame.UnexpectedFrame},
		"more than it says":   {frame.AppendBody(head(5), 1, []byte("123456"), 0), frame.FrameError},
		"a large frame":       {[]byte("\x01\x00\x01\x00\x00\x10\x00"), frame.FrameError},
		"no end":              {[]byte("\x08\x00\x00\x00\x00\x00\x00\x00"), frame.FrameError},
		"heartbeat elsewhere": {[]byte("\x08\x00\x01\x00\x00\x00\x00\xce"), frame.FrameError},
		"recover":             {must(frame.AppendMethod(nil, 1, &frame.BasicRecover{})), frame.NotImplemented},
		"cut properties":      {frame.AppendHeader(begun[:len(begun):len(begun)], 1, frame.Header{Class: 60, Properties: []byte{0x80, 0}}), frame.SyntaxError},
	} {
		t.Run(what, func(t *testing.T) {
			r := h.raw(t).open()
			r.bytes(c.b)
			r.closed(c.code)
		})
	}
	t.Run("message too large", func(t *testing.T) {
		r := h.raw(t).open()
		r.bytes(head(100_001))
		m := is[*frame.ChannelClose](r)
		if m.ReplyCode != frame.PreconditionFailed || m.ReplyText != "PRECONDITION_FAILED - message size 100001 is larger than configured max size 100000" || m.ClassID != 60 || m.MethodID != 40 {
			t.Errorf("%+v", m)
		}
		// What is under way is discarded, and the connection goes on.
		r.bytes(frame.AppendBody(nil, 1, make([]byte, 50_000), frame.MinFrame))
		r.send(1, &frame.BasicAck{DeliveryTag: 9}, &frame.ChannelCloseOk{}, &frame.ChannelOpen{})
		is[*frame.ChannelOpenOk](r)
	})
	t.Run("many messages that are not whole", func(t *testing.T) {
		r := h.raw(t).open()
		for channel := uint16(2); channel < 7; channel++ {
			r.send(channel, &frame.ChannelOpen{}, publish)
			is[*frame.ChannelOpenOk](r)
			b := frame.AppendHeader(nil, channel, frame.Header{Class: 60, Size: 60_000, Properties: []byte{0, 0}})
			_, _ = r.Write(frame.AppendBody(b, channel, make([]byte, 50_000), frame.MinFrame))
		}
		if m := is[*frame.ConnectionClose](r); m.ReplyCode != frame.ResourceError {
			t.Errorf("%+v", m)
		}
	})
	t.Run("both close a channel", func(t *testing.T) {
		r := h.raw(t).open()
		r.send(1, &frame.BasicAck{DeliveryTag: 9}, &frame.ChannelClose{ReplyCode: frame.Success})
		is[*frame.ChannelClose](r)
		is[*frame.ChannelCloseOk](r)
		r.send(1, &frame.ChannelCloseOk{}, &frame.ChannelOpen{})
		is[*frame.ChannelOpenOk](r)
		r.send(1, &frame.BasicAck{DeliveryTag: 9}, &frame.ChannelClose{ReplyCode: frame.Success}, &frame.ChannelOpen{})
		is[*frame.ChannelClose](r)
		is[*frame.ChannelCloseOk](r)
		is[*frame.ChannelOpenOk](r)
	})
	t.Run("server's fault", func(t *testing.T) {
		h.f.mu.Lock()
		h.f.fail = errors.New("the disk of node n1 is full")
		h.f.mu.Unlock()
		r := h.raw(t).open()
		r.send(1, &frame.QueueDeclare{Queue: "q"})
		if text := r.closed(frame.InternalError); strings.Contains(text, "disk") {
			t.Error(text)
		}
	})
}

func TestChannelsAreReused(t *testing.T) {
	h := start(t)
	conn, err := h.connect(t, func(c *amqp091.Config) { c.ChannelMax = 10 })
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGetAndAcks(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	if _, ok, err := ch.Get("q", false); ok || err != nil {
		t.Error(ok, err)
	}
	publish(t, ch, "q", "1", "2", "3", "4", "5")
	var tags []uint64
	for i := range 4 {
		m, ok, err := ch.Get("q", false)
		if !ok || err != nil || m.DeliveryTag != uint64(i+1) || m.MessageCount != uint32(4-i) || m.Redelivered {
			t.Fatalf("%+v, %v, %v", m, ok, err)
		}
		tags = append(tags, m.DeliveryTag)
	}
	if m, ok, err := ch.Get("q", true); !ok || err != nil || string(m.Body) != "5" {
		t.Fatal(m, ok, err)
	}
	// 2 is acknowledged, and then all up to 3 go back, to their places.
	if err := errors.Join(ch.Ack(tags[1], false), ch.Nack(tags[2], true, true), ch.Qos(0, 0, false)); err != nil {
		t.Fatal(err)
	}
	if ready, given := h.f.waiting("q"); ready != 2 || given != 1 {
		t.Errorf("%d wait, %d are handed out", ready, given)
	}
	for _, want := range []string{"1", "3"} {
		m, _, err := ch.Get("q", false)
		if err != nil || string(m.Body) != want || !m.Redelivered {
			t.Errorf("%s: %s, %v, %v", want, m.Body, m.Redelivered, err)
		}
	}
	if err := errors.Join(ch.Ack(0, true), ch.Qos(0, 0, false)); err != nil {
		t.Fatal(err)
	}
	if ready, given := h.f.waiting("q"); ready != 0 || given != 0 {
		t.Errorf("%d wait, %d are handed out", ready, given)
	}
	// What was acknowledged is not known any more.
	closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
	if err := ch.Ack(tags[1], false); err != nil {
		t.Fatal(err)
	}
	wants(t, next(t, closed), 406, "PRECONDITION_FAILED - unknown delivery tag 2")
}

func TestCloseGivesBack(t *testing.T) {
	h := start(t)
	other := h.channel(t)
	declare(t, other, "q")
	publish(t, other, "q", "1", "2", "3", "4")
	conn, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	take := func() {
		t.Helper()
		if err := ch.Qos(3, 0, false); err != nil {
			t.Fatal(err)
		}
		out, err := ch.Consume("q", "", false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"1", "2", "3"} {
			if m := next(t, out); string(m.Body) != want {
				t.Fatalf("%s instead of %s", m.Body, want)
			}
		}
	}
	take()
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}
	if ready, given := h.f.waiting("q"); ready != 4 || given != 0 {
		t.Errorf("%d wait, %d are handed out", ready, given)
	}
	if ch, err = conn.Channel(); err != nil {
		t.Fatal(err)
	}
	take()
	if _, err := ch.QueueDeclare("mine", false, false, true, false, nil); err != nil {
		t.Fatal(err)
	}
	_, err = other.QueueDeclarePassive("mine", false, false, true, false, nil)
	wants(t, err, 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are back", func() bool { ready, given := h.f.waiting("q"); return ready == 4 && given == 0 })
	eventually(t, "its queue is gone", func() bool { ready, _ := h.f.waiting("mine"); return ready < 0 })
}

func TestPrefetch(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	for i := range 20 {
		publish(t, ch, "q", fmt.Sprint(i))
	}
	given := func(n int) {
		t.Helper()
		if err := ch.Flow(true); err != nil { // the server has done all before
			t.Fatal(err)
		}
		if _, got := h.f.waiting("q"); got != n {
			t.Errorf("%d are handed out, not %d", got, n)
		}
	}
	if err := ch.Qos(2, 0, false); err != nil {
		t.Fatal(err)
	}
	a, err := ch.Consume("q", "a", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	given(2)
	if err := ch.Qos(3, 0, false); err != nil { // for those that come after
		t.Fatal(err)
	}
	if _, err := ch.Consume("q", "b", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	given(5)
	m := next(t, a)
	if err := m.Ack(false); err != nil {
		t.Fatal(err)
	}
	given(5)
	if err := ch.Qos(7, 0, true); err != nil { // of the channel, and each keeps its own
		t.Fatal(err)
	}
	given(5)
	if _, err := ch.Consume("q", "c", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	given(7)
	if err := ch.Qos(0, 0, true); err != nil {
		t.Fatal(err)
	}
	given(8)
	if err := ch.Cancel("c", false); err != nil { // what it has stays
		t.Fatal(err)
	}
	given(8)
	if _, err := ch.Consume("q", "d", true, false, false, false, nil); err != nil { // without acknowledgements
		t.Fatal(err)
	}
	given(8)
	if ready, _ := h.f.waiting("q"); ready != 0 {
		t.Errorf("%d wait", ready)
	}
	if err := ch.Nack(0, true, true); err != nil {
		t.Fatal(err)
	}
	given(0)
}

func TestRecover(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	publish(t, ch, "q", "1", "2")
	if err := ch.Flow(true); err != nil {
		t.Fatal(err)
	}
	r := h.raw(t).open()
	take := func(redelivered bool) {
		t.Helper()
		r.send(1, &frame.BasicGet{Queue: "q"})
		if m := is[*frame.BasicGetOk](r); m.Redelivered != redelivered {
			t.Errorf("%+v", m)
		}
		for range 2 { // what it carries
			if _, err := r.r.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	take(false)
	take(false)
	r.send(1, &frame.BasicRecover{Requeue: true})
	is[*frame.BasicRecoverOk](r)
	take(true)
	r.send(1, &frame.BasicRecoverAsync{Requeue: true})
	take(true)
}

func TestConfirms(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	declare(t, ch, "refuse")
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	type told struct {
		what string
		tag  uint64
	}
	said := make(chan told, 100)
	returns := ch.NotifyReturn(make(chan amqp091.Return, 10))
	confirms := ch.NotifyPublish(make(chan amqp091.Confirmation, 100))
	publish(t, ch, "q", "1", "2")
	publish(t, ch, "refuse", "3")
	publish(t, ch, "q", "4")
	publish(t, ch, "nowhere", "5")
	for tag := uint64(1); tag <= 5; tag++ {
		if c := next(t, confirms); c.DeliveryTag != tag || c.Ack == (tag == 3) {
			t.Errorf("%+v", c)
		}
	}
	if err := ch.PublishWithContext(t.Context(), "", "nowhere", true, false, amqp091.Publishing{MessageId: "m", Body: []byte("6")}); err != nil {
		t.Fatal(err)
	}
	go func() {
		r := <-returns
		said <- told{"returned " + r.MessageId + string(r.Body) + r.ReplyText + r.RoutingKey, uint64(r.ReplyCode)}
		c := <-confirms
		said <- told{"confirmed", c.DeliveryTag}
	}()
	if got := next(t, said); got != (told{"returned m6NO_ROUTEnowhere", 312}) {
		t.Error(got)
	}
	if got := next(t, said); got != (told{"confirmed", 6}) {
		t.Error(got)
	}
	h.f.mu.Lock()
	h.f.later = true
	h.f.mu.Unlock()
	publish(t, ch, "q", "7", "8")
	publish(t, ch, "refuse", "9")
	publish(t, ch, "q", "10", "11")
	if err := ch.Flow(true); err != nil {
		t.Fatal(err)
	}
	h.f.confirmAll() // the last first
	for tag := uint64(7); tag <= 11; tag++ {
		if c := next(t, confirms); c.DeliveryTag != tag || c.Ack == (tag == 9) {
			t.Errorf("%+v", c)
		}
	}
}

// TestReturnComesBeforeConfirm looks at the frames.
func TestReturnComesBeforeConfirm(t *testing.T) {
	h := start(t)
	r := h.raw(t).open()
	r.send(1, &frame.ConfirmSelect{})
	is[*frame.ConfirmSelectOk](r)
	r.message(1, &frame.BasicPublish{RoutingKey: "nowhere", Mandatory: true}, "body")
	if m := is[*frame.BasicReturn](r); m.ReplyCode != frame.NoRoute || m.RoutingKey != "nowhere" {
		t.Errorf("%+v", m)
	}
	for _, kind := range []frame.Kind{frame.KindHeader, frame.KindBody} {
		if f, err := r.r.Next(); err != nil || f.Kind != kind {
			t.Fatalf("%+v, %v", f, err)
		}
	}
	if m := is[*frame.BasicAck](r); m.DeliveryTag != 1 || m.Multiple {
		t.Errorf("%+v", m)
	}
}

func TestTransactions(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	publish(t, ch, "q", "1", "2", "3")
	if err := ch.Tx(); err != nil {
		t.Fatal(err)
	}
	state := func(what string, ready, given int) {
		t.Helper()
		if err := ch.Flow(true); err != nil {
			t.Fatal(err)
		}
		if r, g := h.f.waiting("q"); r != ready || g != given {
			t.Errorf("%s: %d wait and %d are handed out", what, r, g)
		}
	}
	for range 3 {
		if _, _, err := ch.Get("q", false); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, ch, "q", "4")
	if err := ch.Ack(2, true); err != nil {
		t.Fatal(err)
	}
	state("before", 0, 3)
	if err := ch.TxRollback(); err != nil {
		t.Fatal(err)
	}
	state("rolled back", 0, 3)
	publish(t, ch, "q", "5", "6")
	if err := ch.Ack(2, true); err != nil {
		t.Fatal(err)
	}
	returns := ch.NotifyReturn(make(chan amqp091.Return, 10))
	if err := ch.PublishWithContext(t.Context(), "", "nowhere", true, false, amqp091.Publishing{}); err != nil {
		t.Fatal(err)
	}
	if err := ch.TxCommit(); err != nil {
		t.Fatal(err)
	}
	state("committed", 2, 1)
	if r := next(t, returns); r.RoutingKey != "nowhere" {
		t.Errorf("%+v", r)
	}
	if err := ch.Ack(3, false); err != nil { // and it is not committed
		t.Fatal(err)
	}
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}
	if r, g := h.f.waiting("q"); r != 3 || g != 0 {
		t.Errorf("closed: %d wait and %d are handed out", r, g)
	}
}

func TestNames(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	q, err := ch.QueueDeclare("", false, false, true, false, nil)
	if err != nil || !strings.HasPrefix(q.Name, "amq.gen-") {
		t.Fatal(q, err)
	}
	publish(t, ch, q.Name, "1")
	if m, ok, err := ch.Get("", true); !ok || err != nil || string(m.Body) != "1" {
		t.Errorf("%s, %v, %v", m.Body, ok, err)
	}
	if again, err := ch.QueueDeclarePassive("", false, false, true, false, nil); err != nil || again.Name != q.Name {
		t.Error(again, err)
	}
	if err := ch.QueueBind("", "", "fan", false, nil); err != nil {
		t.Error(err)
	}
	if _, err := ch.QueueDelete("", false, false, false); err != nil {
		t.Error(err)
	}
	if n, err := ch.QueueDelete("never there", false, false, false); n != 0 || err != nil {
		t.Error(n, err)
	}
	r := h.raw(t).open()
	r.send(1, &frame.QueueDeclare{Queue: "c"}, &frame.BasicConsume{Queue: "c"})
	is[*frame.QueueDeclareOk](r)
	if m := is[*frame.BasicConsumeOk](r); !strings.HasPrefix(m.ConsumerTag, "amq.ctag-") {
		t.Errorf("%+v", m)
	}
	// Nobody waits for an answer of these.
	r.send(1, &frame.QueueDeclare{Queue: "d", NoWait: true}, &frame.BasicConsume{Queue: "d", ConsumerTag: "t", NoWait: true}, &frame.BasicCancel{ConsumerTag: "t", NoWait: true},
		&frame.ConfirmSelect{NoWait: true}, &frame.BasicCancel{ConsumerTag: "never there"})
	if m := is[*frame.BasicCancelOk](r); m.ConsumerTag != "never there" {
		t.Errorf("%+v", m)
	}
}

func TestQueueGoes(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	if _, err := ch.Consume("q", "me", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	cancels := ch.NotifyCancel(make(chan string, 1))
	if _, err := ch.QueueDelete("q", false, false, false); err != nil {
		t.Fatal(err)
	}
	if tag := next(t, cancels); tag != "me" {
		t.Error(tag)
	}
}
