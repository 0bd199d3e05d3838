package fleetbus_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// secret is in everything that acme has and sends, planted in all that evil does.
	secret, planted = "secret-of-acme", "planted-by-evil"
	// vault is a stream and a bucket of acme, and evil knows the name.
	vault = "vault"
)

// An attack is of a user of account evil, who may do everything in it, on account
// acme. What crosses is noticed at both ends.
type attack struct {
	*fleetbustest.Server
	t            *testing.T
	victim, evil *nats.Conn
	acme         string // its public key
	creds        string // of evil
	password     map[string]string
	workers      *nats.Subscription
	// devices is the node where evil's connect by MQTT.
	devices *fleetbustest.Server

	mu      sync.Mutex
	crossed []string
}

// withMQTT gives a node a listener for MQTT.
func withMQTT(o *fleetbus.Options) {
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
}

func newAttack(t *testing.T, edit ...func(*fleetbus.Options)) *attack {
	s := fleetbustest.Start(t, append(edit, func(o *fleetbus.Options) {
		o.Grace = 100 * time.Millisecond
		withMQTT(o)
	})...)
	a := &attack{Server: s, devices: s, t: t, password: map[string]string{}}
	everything := identity.Rule{Allow: []string{">"}}
	addRole(t, s, identity.Role{Name: "everything", Permissions: identity.Permissions{Publish: everything, Subscribe: everything}})
	for _, name := range []string{"acme", "evil", "ops"} {
		a.password[name] = s.Password(admin.UserRequest{Name: name + "/user", Role: "everything"})
	}
	ctx := limited(t, 60*time.Second)
	info, err := s.Admin().Account(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	a.acme, a.creds = info.Public, s.Creds("evil", "user2")
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	for name, nc := range map[string]**nats.Conn{"acme": &a.victim, "evil": &a.evil} {
		if *nc, err = byPassword(s, name+"/user", a.password[name], quiet); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*nc).Close)
	}
	// All that happens in acme, what its protocols keep for themselves too.
	all := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	watch, err := s.Session(ctx, identity.Principal{Account: "acme", Name: "watch", Permissions: identity.Permissions{Publish: all, Subscribe: all}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Close)
	if _, err := watch.Subscribe(">", func(m *nats.Msg) { a.notice("acme", planted, m) }); err != nil {
		t.Fatal(err)
	}
	if err := watch.Flush(); err != nil {
		t.Fatal(err)
	}
	a.workers = hear(t, a.victim, "orders.>", "workers")
	if _, err := a.victim.Subscribe("time", func(m *nats.Msg) { _ = m.Respond([]byte(secret)) }); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(a.victim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: vault, Subjects: []string{"kept.>"}, AllowDirect: true, Description: secret}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: secret, Subjects: []string{"listed"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: vault, Description: secret}); err != nil {
		t.Fatal(err)
	}
	// What crosses by consent goes to ops, and no further.
	api := s.Admin()
	for _, e := range []admin.ExportRequest{
		{Account: "acme", Subject: "shared.>", To: []string{"ops"}}, {Account: "acme", Subject: "time", Service: true, To: []string{"ops"}},
	} {
		if _, err := api.AddExport(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []admin.ImportRequest{
		{Account: "ops", From: "acme", Subject: "shared.>", As: "fleet.acme.>"}, {Account: "ops", From: "acme", Subject: "time", As: "clock"},
	} {
		if _, err := api.AddImport(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.AddAdapter(ctx, admin.AdapterRequest{Name: "reg", From: []string{"acme"}, Subject: "registration.>", To: "ops", Stream: "REG"}); err != nil {
		t.Fatal(err)
	}
	return a
}

// notice keeps what of a message is not of the account that has it.
func (a *attack) notice(where, text string, m *nats.Msg) {
	all := fmt.Sprint(m.Subject, " ", m.Reply, " ", m.Header, " ", string(m.Data))
	if strings.Contains(all, text) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.crossed = append(a.crossed, where+" has "+all)
	}
}

func (a *attack) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.crossed = nil }()
	return a.crossed
}

// hear listens as evil.
func (a *attack) hear(queue string, subjects ...string) {
	for _, subject := range subjects {
		sub, err := a.evil.QueueSubscribe(subject, queue, func(m *nats.Msg) { a.notice("evil", secret, m) })
		if err != nil {
			continue // the library lets nobody ask
		}
		a.t.Cleanup(func() { _ = sub.Unsubscribe() })
	}
	a.flush(a.evil)
}

// tell publishes as evil, with a reply for what may answer.
func (a *attack) tell(header nats.Header, subjects ...string) {
	for _, subject := range subjects {
		_ = a.evil.PublishMsg(&nats.Msg{Subject: subject, Reply: "evil.answer", Header: header, Data: []byte(planted)})
	}
	a.flush(a.evil)
}

// ask requests as evil, and notices what the answer has.
func (a *attack) ask(body string, subjects ...string) {
	for _, subject := range subjects {
		if m, err := a.evil.Request(subject, []byte(body), 300*time.Millisecond); err == nil {
			a.notice("evil", secret, m)
		}
	}
}

func (a *attack) flush(nc *nats.Conn) {
	a.t.Helper()
	if err := nc.Flush(); err != nil {
		a.t.Fatal(err)
	}
}

// live has acme do what it does.
func (a *attack) live() {
	a.t.Helper()
	for _, subject := range []string{"orders.new", "kept.x", "shared.x", "registration.x", "a", "_INBOX.x.y", "$KV." + vault + ".k", "$SRV.PING.x", "announce.orders.x", "fleet.acme.x"} {
		if err := a.victim.Publish(subject, []byte(secret)); err != nil {
			a.t.Fatal(err)
		}
	}
	if m, err := a.victim.Request("time", nil, 5*time.Second); err != nil || string(m.Data) != secret {
		a.t.Fatalf("acme asks itself: %v, %v", m, err)
	}
	a.flush(a.victim)
	a.flush(a.evil)
}

// device connects to the listener of MQTT.
func (a *attack) device(account, id string, will *packet.Will) *device {
	a.t.Helper()
	at := a.Server
	if account == "evil" {
		at = a.devices
	}
	conn, err := tls.Dial("tcp", at.Addr("mqtt").String(), at.TLS())
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	d := &device{a: a, conn: conn, in: packet.NewReader(conn, packet.Server, 4096)}
	d.in.Version, d.in.Maximum = packet.V5, 1<<20
	user := account + "/user"
	d.send(&packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id, Username: &user, Password: packet.Secret(a.password[account]), Will: will})
	d.settle(packet.CONNACK)
	return d
}

// device is a client of MQTT, judged packet by packet.
type device struct {
	a    *attack
	conn *tls.Conn
	in   *packet.Reader
}

func (d *device) send(all ...packet.Packet) {
	d.a.t.Helper()
	var out []byte
	for _, p := range all {
		var err error
		if out, err = p.Append(out, packet.V5, 0); err != nil {
			d.a.t.Fatal(err)
		}
	}
	if _, err := d.conn.Write(out); err != nil {
		d.a.t.Fatal(err)
	}
}

// settle reads until a packet of that type, and notices what comes up to it.
func (d *device) settle(until packet.Type) {
	d.a.t.Helper()
	if err := d.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		d.a.t.Fatal(err)
	}
	for {
		p, err := d.in.Next()
		if err != nil {
			d.a.t.Fatal(err)
		}
		if m, ok := p.(*packet.Publish); ok {
			d.a.notice("evil by MQTT", secret, &nats.Msg{Subject: string(m.Topic), Data: m.Payload})
		}
		if p.Type() == until {
			return
		}
	}
}

func (d *device) hear(filters ...string) {
	d.a.t.Helper()
	for i, filter := range filters {
		d.send(&packet.Subscribe{ID: uint16(i + 1), Subscriptions: []packet.Subscription{{Filter: filter}}})
		d.settle(packet.SUBACK)
	}
}

func (d *device) tell(retain bool, topics ...string) {
	d.a.t.Helper()
	for _, topic := range topics {
		d.send(&packet.Publish{Message: packet.Message{Topic: []byte(topic), Payload: []byte(planted), Retain: retain, ResponseTopic: []byte("orders/answer")}})
	}
	d.send(&packet.Pingreq{})
	d.settle(packet.PINGRESP)
}

// An attackDoor is one way to try. crosses is for those that consent opens: the control.
type attackDoor struct {
	name    string
	try     func()
	crosses bool
}

// doors are the ways by the engine's own protocol.
func (a *attack) doors() []attackDoor {
	wide := []string{">", "*", "*.*", "*.>", "orders.>", "kept.>", "shared.>", "registration.>", "fleet.>", "time", "$SYS.>", "$JS.>", "$JS.API.>", "$KV.>", "$O.>",
		"$SRV.>", "_INBOX.>", "_R_.>", "$G.>", "$MQTT.>", "$FLEETBUS.>", "$FLEET.>", a.acme + ".>", "acme.>", "renew.>", "adapter.>", "admin.>", "ledger.>", "node.>"}
	stream := func(more string) string {
		return `{"name":"OWN","subjects":["own.>"],"storage":"memory","num_replicas":1` + more + `}`
	}
	create := func(more string) {
		a.ask("", "$JS.API.STREAM.DELETE.OWN")
		a.ask(stream(more), "$JS.API.STREAM.CREATE.OWN")
	}
	// What comes into a stream by itself may come in a while.
	mirrored := func(more string) {
		a.ask("", "$JS.API.STREAM.DELETE.OWN")
		a.ask(`{"name":"OWN","storage":"memory","num_replicas":1`+more+`}`, "$JS.API.STREAM.CREATE.OWN")
		a.live()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range 15 {
			<-tick.C
			a.ask(`{"seq":1}`, "$JS.API.STREAM.MSG.GET.OWN")
			a.ask("", "$JS.API.STREAM.INFO.OWN", "$JS.API.STREAM.NAMES")
		}
	}
	sysAccount := "$SYS.REQ.ACCOUNT." + a.acme + "."
	return []attackDoor{
		{name: "wildcards", try: func() { a.hear("", wide...); a.live() }},
		{name: "queue groups", try: func() { a.hear("workers", wide...); a.live() }},
		{name: "publishing", try: func() {
			a.tell(nil, "orders.new", "kept.x", "shared.x", "registration.x", "fleet.acme.x", "time", "$KV."+vault+".k", "$SRV.PING", "acme.orders.new", "acme/orders.new",
				a.acme+".orders.new", "$SYS.ACCOUNT."+a.acme+".CONNECT", "$SYS.ACCOUNT."+a.acme+".CLAIMS.UPDATE", "$FLEETBUS.x", "$FLEETBUS.adapter.reg.acme.x",
				"renew."+a.acme, "adapter.reg."+a.acme+".registration.x", "adapter.reg.acme.registration.x", "ledger.user.acme.user", "_R_.a.b", "_GR_.a.b.c", "$GNR.a")
		}},
		{name: "replies", try: func() {
			a.hear("", "_INBOX.>", "_R_.>")
			inbox := a.victim.NewRespInbox()
			waiting := hear(a.t, a.victim, inbox, "")
			a.tell(nil, inbox, "_INBOX.x.y", strings.TrimSuffix(inbox, "*"))
			a.live()
			silent(a.t, a.victim, waiting, "acme's inbox")
		}},
		{name: "requests", try: func() {
			a.ask("", "time", "clock", "shared.x", "admin.account.ls", "admin.user.ls", "admin.status", "node.info", "node.connections")
		}},
		{name: "the engine's own", try: func() {
			a.ask(`{"acc":"`+a.acme+`","account":"`+a.acme+`","auth":true,"subscriptions":true}`, sysAccount+"CONNZ", sysAccount+"INFO", sysAccount+"SUBSZ", sysAccount+"STATZ", sysAccount+"JSZ",
				sysAccount+"CONNS", sysAccount+"CLAIMS.LOOKUP", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.ACCOUNT.PING.STATZ", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.PING.SUBSZ", "$SYS.REQ.SERVER.PING.JSZ",
				"$SYS.REQ.SERVER.PING.ACCOUNTZ", "$SYS.REQ.USER.INFO", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.PACK", "$SYS.DEBUG.SUBSCRIBERS")
			a.tell(nil, "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.USER.AUTH")
		}},
		{name: "the streams of another", try: func() {
			for _, prefix := range []string{"$JS.API.", "$JS.acme.API.", "$JS." + a.acme + ".API.", a.acme + ".$JS.API."} {
				a.ask("", prefix+"STREAM.NAMES", prefix+"STREAM.LIST", prefix+"INFO", prefix+"STREAM.INFO."+vault, prefix+"STREAM.INFO.KV_"+vault, prefix+"CONSUMER.NAMES."+vault)
				a.ask(`{"seq":1}`, prefix+"STREAM.MSG.GET."+vault, prefix+"DIRECT.GET."+vault, prefix+"STREAM.MSG.DELETE."+vault)
				a.ask("{}", prefix+"STREAM.PURGE."+vault, prefix+"STREAM.DELETE."+vault, prefix+"STREAM.SNAPSHOT."+vault, prefix+"CONSUMER.MSG.NEXT."+vault+".c")
				a.ask(`{"stream_name":"`+vault+`","config":{"deliver_subject":"evil.loot","ack_policy":"none"}}`, prefix+"CONSUMER.CREATE."+vault)
			}
		}},
		{name: "a stream over everything", try: func() {
			a.ask("", "$JS.API.STREAM.DELETE.OWN")
			a.ask(`{"name":"OWN","subjects":[">"],"no_ack":true,"storage":"memory","num_replicas":1}`, "$JS.API.STREAM.CREATE.OWN")
			a.live()
			for seq := 1; seq < 20; seq++ {
				a.ask(fmt.Sprintf(`{"seq":%d}`, seq), "$JS.API.STREAM.MSG.GET.OWN")
			}
			a.ask("", "$JS.API.STREAM.DELETE.OWN")
		}},
		{name: "a mirror of another's", try: func() { mirrored(`,"mirror":{"name":"` + vault + `"}`) }},
		{name: "a mirror by another API", try: func() {
			mirrored(`,"mirror":{"name":"` + vault + `","external":{"api":"$JS.acme.API","deliver":"evil.in"}}`)
			mirrored(`,"mirror":{"name":"` + vault + `","external":{"api":"` + a.acme + `.$JS.API","deliver":"orders.x"}}`)
		}},
		{name: "sources of another's", try: func() {
			mirrored(`,"sources":[{"name":"` + vault + `"},{"name":"KV_` + vault + `","external":{"api":"$JS.acme.API","deliver":"kept.x"}}]`)
		}},
		{name: "what a stream publishes", try: func() {
			create(`,"republish":{"src":"own.>","dest":"orders.>"}`)
			a.tell(nil, "own.new")
			create(`,"subject_transform":{"src":"own.>","dest":"kept.>"}`)
			a.tell(nil, "own.new")
		}},
		{name: "where a consumer delivers", try: func() {
			create("")
			a.tell(nil, "own.new")
			a.ask(`{"stream_name":"OWN","config":{"deliver_subject":"orders.new","ack_policy":"none"}}`, "$JS.API.CONSUMER.CREATE.OWN")
			a.ask(`{"stream_name":"OWN","config":{"deliver_subject":"`+a.acme+`.orders.new","ack_policy":"none"}}`, "$JS.API.CONSUMER.CREATE.OWN")
			a.tell(nil, "$JS.ACK."+vault+".c.1.1.1.1.1", "$JS.FC."+vault+".c.x")
		}},
		{name: "key-value buckets", try: func() {
			ctx, cancel := context.WithTimeout(a.t.Context(), 3*time.Second)
			defer cancel()
			js, err := jetstream.New(a.evil)
			if err != nil {
				a.t.Fatal(err)
			}
			if _, err := js.KeyValue(ctx, vault); err == nil {
				a.t.Error("evil opened the bucket of acme")
			}
			kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: vault})
			if err != nil {
				a.t.Fatal(err)
			}
			a.live()
			if _, err := kv.Put(ctx, "k", []byte(planted)); err != nil {
				a.t.Fatal(err)
			}
			if e, err := kv.Get(ctx, "k"); err != nil || string(e.Value()) != planted || e.Revision() != 1 {
				a.t.Errorf("the bucket of evil has %v: %v", e, err)
			}
		}},
		{name: "headers that pretend", try: func() {
			info := fmt.Sprintf(`{"acc":%q,"svc":%q,"user":"user"}`, a.acme, a.acme)
			for _, h := range []nats.Header{
				{identity.RenewInfoHeader: {info}}, {identity.RenewInfoHeader: {info, info}}, {"Nats-Trace-Dest": {"orders.trace"}}, {"Nats-Schedule": {"@at 2020-01-01T00:00:00Z"}, "Nats-Schedule-Target": {"orders.new"}},
				{"Fleetbus-Account": {"acme"}}, {"Nats-Expected-Stream": {vault}},
			} {
				a.tell(h, "orders.new", "own.new", "registration.x", "$JS.API.STREAM.INFO."+vault)
				m := &nats.Msg{Subject: "$JS.API.STREAM.NAMES", Header: h}
				if answer, err := a.evil.RequestMsg(m, 300*time.Millisecond); err == nil {
					a.notice("evil", secret, answer)
				}
			}
			const key = identity.RenewInfoHeader
			forged := key + ": " + info
			for _, header := range []string{
				"NATS/1.0\r\n" + forged + "\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\nX: a\n" + forged + "\r\n\r\n", "NATS/1.0\n" + forged + "\n\n\r\n",
				"NATS/1.0\r\nX: a\n" + forged + "\nY: bXX", "NATS/1.0\r\nX: " + key + key + "\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\n" + forged + "XX", forged + "\r\n\r\n",
			} {
				raw := dialRaw(a.t, a.Server, a.creds)
				for _, subject := range []string{"$JS.API.STREAM.NAMES", "$JS.API.INFO"} {
					raw.send(a.t, fmt.Sprintf("HPUB %s evil.answer %d %d\r\n%s\r\nPING\r\n", subject, len(header), len(header), header))
					raw.pong(a.t)
				}
				raw.Close()
			}
		}},
		{name: "what others imported", try: func() {
			a.hear("", "fleet.>", "shared.>", "clock")
			a.tell(nil, "fleet.acme.x", "shared.x")
			a.ask("", "clock", "time")
			ctx := limited(a.t, 20*time.Second)
			for _, r := range []admin.ExportRequest{
				{Account: "ops", Subject: "fleet.>", To: []string{"evil"}}, {Account: "ops", Subject: "clock", Service: true, Everybody: true},
			} {
				if _, err := a.Admin().AddExport(ctx, r); err == nil {
					a.t.Errorf("ops passes on %s", r.Subject)
				}
			}
			for _, from := range []string{"shared.>", "shared.x", "time", "orders.>"} {
				if _, err := a.Admin().AddImport(ctx, admin.ImportRequest{Account: "evil", From: "acme", Subject: from, As: "loot.>"}); err == nil {
					a.t.Errorf("evil imports %s", from)
				}
			}
			a.live()
		}},
		{name: "credentials of one for another", try: func() {
			for _, opt := range [][]nats.Option{
				{nats.UserCredentials(a.creds), nats.UserInfo("acme/user", a.password["evil"])},
				{nats.UserInfo("acme/user", a.password["evil"])}, {nats.UserInfo("evil/user", a.password["acme"])},
			} {
				nc, err := nats.Connect(a.URL(), append(opt, nats.Secure(a.TLS()), nats.NoReconnect())...)
				if err != nil {
					continue
				}
				heard := hear(a.t, nc, ">", "")
				a.live()
				if m, err := heard.NextMsg(20 * time.Millisecond); err == nil {
					a.notice("evil", secret, m)
				}
				nc.Close()
			}
		}},
	}
}

// run tries doors, and counts what crossed that may not.
func (a *attack) run(t *testing.T, doors []attackDoor) (total int) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			a.t = t
			d.try()
			a.flush(a.evil)
			a.flush(a.victim)
			if d.crosses {
				fleetbustest.Eventually(t, "the crossing is seen", func() error {
					if len(a.take()) == 0 {
						return fmt.Errorf("nothing is")
					}
					return nil
				})
				return
			}
			crossed := a.take()
			total += len(crossed)
			for _, c := range crossed {
				t.Errorf("crossed: %.300s", c)
			}
		})
	}
	return total
}

// deviceDoors are the ways by MQTT.
func (a *attack) deviceDoors() []attackDoor {
	return []attackDoor{
		{name: "MQTT: filters", try: func() {
			d := a.device("evil", "d1", nil)
			d.hear("#", "+", "+/+", "orders/#", "/#", "$share/workers/orders/#", "$share/x/#", "shared/#", "fleet/#", "_INBOX/#", a.acme+"/#", "$SYS/#", "$KV/#", "$FLEETBUS/#")
			a.live()
			d.send(&packet.Publish{Message: packet.Message{Topic: []byte("evil/end")}})
			d.settle(packet.PUBLISH) // its own, after what came before
		}},
		{name: "MQTT: publishing", try: func() {
			d := a.device("evil", "d2", nil)
			d.tell(false, "orders/new", "kept/x", "shared/x", "registration/x", "acme/orders/new", a.acme+"/orders/new", "_INBOX/x/y", "evil/end")
			d.tell(true, "orders/new", "retained/x")
		}},
		{name: "MQTT: retained, wills and sessions", try: func() {
			mine := a.device("acme", "d3", nil)
			mine.send(&packet.Publish{Message: packet.Message{Topic: []byte("retained/y"), Payload: []byte(secret), Retain: true}})
			mine.hear("orders/#")
			theirs := a.device("evil", "d3", &packet.Will{Message: packet.Message{Topic: []byte("orders/new"), Payload: []byte(planted)}}) // the same client
			theirs.hear("#", "retained/#")
			theirs.tell(false, "evil/end")
			theirs.conn.Close() // the will
			a.device("evil", "d4", nil).hear("retained/#", "#")
			mine.send(&packet.Pingreq{})
			mine.settle(packet.PINGRESP) // it was not taken over
		}},
		{name: "MQTT: stored messages", try: func() {
			theirs := a.device("evil", "d6", nil)
			theirs.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "#", QoS: 1}, {Filter: "$share/workers/#", QoS: 1}}})
			theirs.settle(packet.SUBACK)
			mine := a.device("acme", "d6", nil)
			mine.send(&packet.Publish{ID: 1, Message: packet.Message{Topic: []byte("stored/x"), Payload: []byte(secret), QoS: 1}})
			mine.settle(packet.PUBACK)
			theirs.send(&packet.Publish{ID: 1, Message: packet.Message{Topic: []byte("evil/end"), Payload: []byte("end"), QoS: 1}})
			theirs.settle(packet.PUBACK)
			theirs.send(&packet.Pingreq{})
			theirs.settle(packet.PINGRESP)
		}},
	}
}

// TestAttacks has a user of one account try by every door to read or to write
// another, and sees that nothing crosses; and that it would have seen it.
func TestAttacks(t *testing.T) {
	a := newAttack(t)
	doors := append(append(a.doors(), a.deviceDoors()...), []attackDoor{
		// From here on acme consents.
		{name: "control: messages by consent", crosses: true, try: func() {
			a.consent(admin.ExportRequest{Account: "acme", Subject: "orders.>", To: []string{"evil"}}, admin.ImportRequest{Account: "evil", From: "acme", Subject: "orders.>", As: "from.acme.>"})
			a.hear("", "from.>")
			a.live()
		}},
		{name: "control: MQTT by consent", crosses: true, try: func() {
			d := a.device("evil", "d5", nil)
			d.hear("from/acme/#")
			a.live()
			d.settle(packet.PUBLISH)
		}},
		{name: "control: a service by consent", crosses: true, try: func() {
			a.consent(admin.ExportRequest{Account: "acme", Subject: "door", Service: true, Everybody: true}, admin.ImportRequest{Account: "evil", From: "acme", Subject: "door"})
			a.tell(nil, "door")
		}},
	}...)
	total := a.run(t, doors)
	t.Logf("%d doors, %d crossings", len(doors)-3, total)
	// The victim has lost nothing, and its workers were given all of their work.
	js, err := jetstream.New(a.victim)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(limited(t, 10*time.Second), vault)
	if err != nil {
		t.Fatal(err)
	}
	kept := s.CachedInfo().State.Msgs
	worked, _, err := a.workers.Pending()
	if err != nil || kept == 0 || uint64(worked) != kept {
		t.Errorf("acme kept %d messages, and its workers have %d: %v", kept, worked, err)
	}
}

// consent opens a door.
func (a *attack) consent(e admin.ExportRequest, i admin.ImportRequest) {
	a.t.Helper()
	ctx, api := limited(a.t, 20*time.Second), a.Admin()
	if _, err := api.AddExport(ctx, e); err != nil {
		a.t.Fatal(err)
	}
	if _, err := api.AddImport(ctx, i); err != nil {
		a.t.Fatal(err)
	}
}

// pong waits until the node has read everything.
func (c *rawClient) pong(t *testing.T) {
	t.Helper()
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "PONG\r\n" {
			return
		}
	}
}

// TestAttacksByLinks has evil try from beyond a gateway, and from a site of its own
// whose machine it has.
func TestAttacksByLinks(t *testing.T) {
	gate, leaf := newWire(t), newWire(t)
	a := newAttack(t, func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		withGateway(o, gate)
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "leaf", Addr: "127.0.0.1:0", Advertise: leaf.ln.Addr().String(), Protocol: fleetbus.Leaf()})
	})
	gate.join(a.Addr("gateway").String())
	leaf.join(a.Addr("leaf").String())
	there := newWire(t)
	us := addRegion(t, a.Server, "us", there, withMQTT)
	o, err := joinSite(t, a.Server, "mine", siteToken(t, a.Server, "evil", "mine"))
	if err != nil {
		t.Fatal(err)
	}
	site := launchSite(t, o)
	waitSite(t, a.Server, "mine", admin.SiteLinked)
	all := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	machine, err := site.Session(limited(t, 20*time.Second), identity.Principal{Account: "evil", Name: "machine", Permissions: identity.Permissions{Publish: all, Subscribe: all}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(machine.Close)
	local, total, tried := a.evil, 0, 0
	for _, from := range []struct {
		name string
		nc   *nats.Conn
	}{{"gateway", dial(t, us, a.creds, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))}, {"leaf", machine.Conn}} {
		// The way is open for what is evil's own.
		passes(t, from.nc, local, "evil.own")
		passes(t, local, from.nc, "evil.own")
		a.evil = from.nc
		t.Run(from.name, func(t *testing.T) {
			doors := a.doors()
			if from.name == "gateway" {
				a.devices = us
				doors = append(doors, a.deviceDoors()...)
			}
			tried += len(doors)
			total += a.run(t, doors)
		})
	}
	t.Logf("%d doors, %d crossings", tried, total)
}
