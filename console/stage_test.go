package console

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

// A stage is what the feeds of a console have to show in a test.
type stage struct {
	mu      sync.Mutex
	feeds   map[string]rows
	changed chan struct{} // closed when there is something else
}

func newStage(feeds map[string]rows) *stage {
	return &stage{feeds: feeds, changed: make(chan struct{})}
}

// show has the feeds show something else.
func (s *stage) show(feeds map[string]rows) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feeds = feeds
	close(s.changed)
	s.changed = make(chan struct{})
}

// fleet has the feed of the fleet show a status.
func (s *stage) fleet(status admin.Status) { s.show(map[string]rows{"fleet": fleetScene(status)}) }

// poll makes pollers that answer at once when there is something else, and each second.
func (s *stage) poll(name string) func() poller {
	return func() poller {
		var seen chan struct{}
		return func(ctx context.Context, _ *nats.Conn) (rows, error) {
			s.mu.Lock()
			changed := s.changed
			s.mu.Unlock()
			if changed == seen {
				select {
				case <-changed:
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			seen = s.changed
			return s.feeds[name], nil
		}
	}
}

// fleetScene are the rows of a status whose links carry something, and whose nodes that
// are down have been for three minutes.
func fleetScene(s admin.Status) rows {
	silent, meters, now := map[string]int64{}, map[string]meter{}, time.Now()
	for i := range s.Nodes {
		if s.Nodes[i].State != "up" {
			silent[s.Nodes[i].Name] = now.Add(-3 * time.Minute).UnixMilli()
		}
	}
	fleetRows(s, silent, meters, now.Add(-time.Second))
	for i := range s.Nodes {
		for j := range s.Nodes[i].Links {
			s.Nodes[i].Links[j].Bytes += uint64(40_000 + 900*(i+j)%7)
		}
	}
	return fleetRows(s, silent, meters, now)
}

// everything is a fleet with one of each that a picture can have.
func everything() admin.Status {
	s := fleetOf(5)
	cut(&s, 0, 3, false)
	down(&s, 4)
	for i := range 6 {
		site := admin.Site{Account: "plant", Name: fmt.Sprintf("line-%d", i+1), State: admin.SiteLinked, Node: "eu-02", Remote: "192.0.2.7:51000", Since: time.Now().Add(-time.Hour), Current: true}
		if i == 4 {
			site.State, site.Node = admin.SiteAway, ""
		}
		if i == 5 {
			site.Name = "<img src=x onerror=alert(1)>"
		}
		s.Sites = append(s.Sites, site)
		if site.State == admin.SiteLinked {
			s.Nodes[1].Remotes = append(s.Nodes[1].Remotes, admin.Remote{Kind: admin.EventLeaf, Name: site.Name, Account: "plant", RoundTrip: 12 * time.Millisecond})
		}
	}
	s.Regions = []admin.Region{{RegionLink: admin.RegionLink{Name: "europe", State: admin.RegionHere}, Home: true}, {RegionLink: admin.RegionLink{Name: "asia", State: admin.RegionLinked, Current: true}, Nodes: []admin.NodeInfo{
		{Node: identity.Node{Name: "ap-01"}, State: "up", Connections: 12}, {Node: identity.Node{Name: "ap-02"}, State: "up", Connections: 9}, {Node: identity.Node{Name: "ap-03"}, State: "down"},
	}}}
	s.Nodes[2].Remotes = append(s.Nodes[2].Remotes, admin.Remote{Kind: admin.EventGateway, Name: "asia", RoundTrip: 180 * time.Millisecond})
	s.Findings = []doctor.Finding{
		{Code: "NODE-DOWN", Severity: doctor.Problem, Subject: "eu-05", Text: "node eu-05 does not answer", Fix: "start it, or remove it for good: fleetbus node rm eu-05"},
		{Code: "KEY-ENDS", Severity: doctor.Warning, Subject: "shop", Text: "the authority's key ends in 20 days", Fix: "fleetbus key rotate"},
		{Code: "STATE-COPYING", Severity: doctor.Info, Subject: "shop", Text: "what the fleet agrees on is on 2 of 3 nodes so far"},
	}
	return s
}

func many() admin.Status {
	s := fleetOf(60)
	for i := 10; i < 18; i++ {
		down(&s, i)
	}
	cut(&s, 20, 30, false)
	for i := range 900 {
		site := admin.Site{Account: []string{"plant", "shop"}[i%2], Name: fmt.Sprintf("site-%03d", i), State: admin.SiteLinked, Node: s.Nodes[i%9].Name, Current: true}
		if i%100 == 3 {
			site.State, site.Node = admin.SiteAway, ""
		} else {
			n := &s.Nodes[i%9]
			n.Remotes = append(n.Remotes, admin.Remote{Kind: admin.EventLeaf, Name: site.Name, Account: site.Account, RoundTrip: 9 * time.Millisecond})
		}
		s.Sites = append(s.Sites, site)
	}
	return s
}

func deafFleet() admin.Status {
	s := fleetOf(4)
	for i := 1; i < 4; i++ {
		down(&s, i)
		s.Nodes[i].Bus = admin.BusUnknown
	}
	return s
}

// hostile are names that a page must show and not obey.
func hostile() []string {
	return []string{"<script>alert(1)</script>", "\u202eevil\u202c-rtl", "שלום-עולם", strings.Repeat("long", 256), "${7*7}", "a b/c\"'><svg onload=alert(1)>"}
}

// crowded are the rows of feeds with n of everything, some with hostile names.
func crowded(n int) map[string]rows {
	name := func(i int) string {
		if bad := hostile(); i < len(bad) {
			return bad[i]
		}
		return fmt.Sprintf("thing-%05d", i)
	}
	now := time.Now()
	connections, top, accounts, certs := rows{}, rows{}, rows{}, rows{}
	connections.put("meta", metaRow{Missing: []string{}})
	top.put("meta", metaRow{Missing: []string{}})
	top.put("at", now.UnixMilli())
	certs.put("meta", metaRow{Missing: []string{}})
	found := admin.Streams{Missing: []string{}}
	if n > 0 {
		accounts.put("account:acme", accountRow{Name: "acme", Users: 3})
		top.put("rate:acme", admin.Rate{Name: "acme", Connections: 41, InMsgs: 812, OutMsgs: 1604, InBytes: 90_000, OutBytes: 190_000})
	}
	for i := range n {
		connections.put(fmt.Sprintf("connection:eu-01/Client/nats/%d", i), connectionRow{
			Node: "eu-01", ID: uint64(i), Account: "acme", Name: name(i), Kind: "Client/nats", Listener: []string{"nats", "mqtt", "console"}[i%3], Remote: "192.0.2.1:40000",
			Started: now.Add(-time.Hour).UnixMilli(), InRate: int64(i * 10), OutRate: int64(i * 7), InBytes: int64(i) * 9000, Pending: i % 5 * 1000, RoundTrip: 400,
		})
		accounts.put("account:"+name(i), accountRow{Name: name(i), Users: i})
		if i < 60 {
			top.put("rate:"+name(i), admin.Rate{Name: name(i), Connections: i, InMsgs: float64(i) * 3.7, OutMsgs: float64(i) * 9, InBytes: float64(i) * 900, OutBytes: float64(i) * 2000})
		}
		certRows(certs, "acme", certmanager.Status{Certificates: []certmanager.CertificateStatus{{
			ID: fmt.Sprint(i), Group: "web", Names: []string{name(i)}, NotAfter: now.Add(time.Duration(i%90) * 24 * time.Hour), Renews: now.Add(time.Duration(i%60) * 24 * time.Hour), Generation: 3, Targets: 4, Current: 4 - i%2, Failed: i % 2, Wave: &cert.Wave{},
			Details: []string{name(i) + ": its proxy refused the bundle"},
		}}}, []certmanager.TargetInfo{{Group: "web", Name: name(i), State: "enrolled", Present: i%4 != 0}})
		found.Streams = append(found.Streams, admin.StreamInfo{
			Account: "acme", Name: name(i), Subjects: []string{"orders.>"}, Storage: "file", Messages: uint64(i) * 100, Bytes: uint64(i) << 16, LastSeq: uint64(i) * 100, Replicas: 3, Leader: "eu-02", Consumers: 1, Last: now,
			Copies: []admin.Copy{{Node: "eu-01", Current: true}, {Node: "eu-03", Lag: uint64(i % 3)}}, Readers: []admin.ConsumerInfo{{Name: "reader", Pending: uint64(i % 7 * 100), AckPending: i % 3}},
		})
	}
	streams := streamRows(found, map[string]tally{})
	s := everything()
	if n == 0 {
		s = fleetOf(1)
	}
	for i := range min(n, 2000) {
		s.Sources = append(s.Sources, admin.SourceInfo{Source: admin.Source{Account: "acme", Name: name(i), Type: "postgres"}, State: []string{admin.SourceRunning, admin.SourceFailed}[i%2], Runner: "eu-01"})
		s.Nodes[0].Hubs = append(s.Nodes[0].Hubs, admin.Hub{Account: fmt.Sprint("a", i), Server: "mqtts://mqtt.example.net", State: []string{admin.HubConnected, admin.HubNotConnected}[i%2]})
	}
	drops := rows{}
	drops.put("meta", map[string]int64{"since": now.UnixMilli()})
	for i := range min(n, dropsKept) {
		drops.put("drop:"+name(i), dropRow{Kind: []string{"refused", "limit", "slow"}[i%3], Account: "acme", Listener: "mqtt", Reason: name(i), Count: i, Last: now.UnixMilli(), Who: "192.0.2.9:5000", Node: "eu-01"})
	}
	return map[string]rows{"fleet": fleetScene(s), "drops": drops, "connections": connections, "top": top, "accounts": accounts, "certs": certs, "streams": streams}
}
