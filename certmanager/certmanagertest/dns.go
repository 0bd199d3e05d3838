package certmanagertest

import (
	"crypto/rand"
	"encoding/base64"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	// serveTimeout bounds the start and the end of what a test runs.
	serveTimeout = 10 * time.Second
	// maxCNAMEs bounds what one question follows.
	maxCNAMEs = 8
	// ttl of records that do not say theirs.
	ttl = 1
)

// A DNS is an authoritative server for zones, on loopback over UDP and TCP: what the
// authority asks, what a DNS provider updates (RFC 2136, signed with TSIG), and what
// an issuer waits for. It follows CNAMEs within its zones, so that it does as a
// resolver, too. Wildcards are answered as in RFC 4592. Every name in its zones that
// has no address is at 127.0.0.1. It is safe for concurrent use.
type DNS struct {
	// Addr is where it listens.
	Addr string
	// Key is the name of the TSIG key, which is HMAC-SHA256, and Secret its secret in
	// base64. Only they may update and transfer zones.
	Key, Secret string

	mu      sync.Mutex
	zones   []string
	records map[string][]dns.RR // by lower-case name
	hidden  map[string]bool     // names whose TXT records are not told
	rcodes  map[string]int      // names that are answered with an error
	updates int
}

// NewDNS starts a server for zones. It ends with the test.
func NewDNS(t testing.TB, zones ...string) *DNS {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	d := &DNS{
		Key: "test-key.", Secret: base64.StdEncoding.EncodeToString(secret),
		records: map[string][]dns.RR{}, hidden: map[string]bool{}, rcodes: map[string]int{},
	}
	for _, z := range zones {
		d.AddZone(z)
	}
	tcp, udp := listenBoth(t)
	d.Addr = tcp.Addr().String()
	for _, s := range []*dns.Server{{Listener: tcp}, {PacketConn: udp}} {
		started := make(chan struct{})
		ended := make(chan error, 1)
		s.Handler = dns.HandlerFunc(d.serve)
		s.TsigSecret = map[string]string{d.Key: d.Secret}
		s.MsgAcceptFunc = acceptUpdates
		s.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- s.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatalf("serving DNS: %v", err)
		case <-time.After(serveTimeout):
			t.Fatalf("serving DNS: it did not start in %v", serveTimeout)
		}
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
	return d
}

// listenBoth returns listeners for one port.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	var err error
	for range 50 {
		var tcp net.Listener
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			continue
		}
		var udp net.PacketConn
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			return tcp, udp
		}
		tcp.Close()
	}
	t.Fatalf("listening for DNS: %v", err)
	return nil, nil
}

// acceptUpdates accepts what package dns accepts, and updates.
func acceptUpdates(h dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	if opcode := int(h.Bits>>11) & 0xf; opcode == dns.OpcodeUpdate && h.Bits&response == 0 {
		return dns.MsgAccept
	}
	return dns.DefaultMsgAcceptFunc(h)
}

func canonical(name string) string { return strings.ToLower(dns.Fqdn(name)) }

// AddZone makes the server authoritative for a zone, with itself as the nameserver.
func (d *DNS) AddZone(zone string) {
	zone = canonical(zone)
	d.mu.Lock()
	d.zones = append(d.zones, zone)
	d.mu.Unlock()
	ns := "ns." + strings.TrimPrefix(zone, ".")
	d.mustAdd(zone + " 1 IN SOA " + ns + " hostmaster." + strings.TrimPrefix(zone, ".") + " 1 60 60 60 1")
	d.mustAdd(zone + " 1 IN NS " + ns)
	d.mustAdd(ns + " 1 IN A 127.0.0.1")
}

func (d *DNS) mustAdd(rr string) {
	if err := d.Add(rr); err != nil {
		panic(err) // only if a test has written it wrong
	}
}

// Add adds a record as a zone file has it, such as
// "_acme-challenge.example.test CNAME example.other.test.". Names are absolute.
func (d *DNS) Add(record string) error {
	rr, err := dns.NewRR("$ORIGIN .\n$TTL 1\n" + record)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(rr)
	return nil
}

func (d *DNS) add(rr dns.RR) {
	name := canonical(rr.Header().Name)
	rr.Header().Name = name
	if !slices.ContainsFunc(d.records[name], func(other dns.RR) bool { return dns.IsDuplicate(rr, other) }) {
		d.records[name] = append(d.records[name], rr)
	}
}

// Remove removes the records of a name and a type, such as "TXT"; of every type if
// that is "ANY".
func (d *DNS) Remove(name, kind string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remove(canonical(name), dns.StringToType[strings.ToUpper(kind)])
}

func (d *DNS) remove(name string, kind uint16) {
	d.records[name] = slices.DeleteFunc(d.records[name], func(rr dns.RR) bool {
		return kind == dns.TypeANY || rr.Header().Rrtype == kind
	})
	if len(d.records[name]) == 0 {
		delete(d.records, name)
	}
}

// TXT returns the texts that stand at exactly name, whether they are told or not.
func (d *DNS) TXT(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var texts []string
	for _, rr := range d.records[canonical(name)] {
		if txt, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	return texts
}

// Texts is how many TXT records there are in all zones. A client that cleans up
// after itself leaves none.
func (d *DNS) Texts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, rrs := range d.records {
		for _, rr := range rrs {
			if rr.Header().Rrtype == dns.TypeTXT {
				n++
			}
		}
	}
	return n
}

// Updates is how many updates were accepted.
func (d *DNS) Updates() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.updates
}

// Hide keeps the TXT records of name from being told, while they can be updated: DNS
// that never propagates. Show ends that.
func (d *DNS) Hide(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hidden[canonical(name)] = true
}

// Show undoes Hide.
func (d *DNS) Show(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.hidden, canonical(name))
}

// Fail answers every question for name with a code, such as dns.RcodeServerFailure.
// dns.RcodeSuccess ends that.
func (d *DNS) Fail(name string, rcode int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rcodes[canonical(name)] = rcode; rcode == dns.RcodeSuccess {
		delete(d.rcodes, canonical(name))
	}
}

func (d *DNS) serve(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	signed := r.IsTsig() != nil && w.TsigStatus() == nil
	switch {
	case len(r.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case r.IsTsig() != nil && !signed:
		m.Rcode = dns.RcodeNotAuth
	case r.Opcode == dns.OpcodeUpdate && !signed, r.Question[0].Qtype == dns.TypeAXFR && !signed:
		m.Rcode = dns.RcodeRefused
	case r.Opcode == dns.OpcodeUpdate:
		m.Rcode = d.update(r)
	case r.Question[0].Qtype == dns.TypeAXFR:
		m.Authoritative = true
		m.Rcode, m.Answer = d.transfer(canonical(r.Question[0].Name))
	default:
		d.answer(m, r.Question[0])
	}
	if signed {
		m.SetTsig(d.Key, r.IsTsig().Algorithm, 300, time.Now().Unix())
	}
	_ = w.WriteMsg(m)
}

// update does as RFC 2136, without prerequisites.
func (d *DNS) update(r *dns.Msg) int {
	zone := canonical(r.Question[0].Name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.zones, zone) {
		return dns.RcodeNotAuth
	}
	if len(r.Answer) > 0 {
		return dns.RcodeNotImplemented
	}
	for _, rr := range r.Ns {
		if d.zoneOf(canonical(rr.Header().Name)) != zone {
			return dns.RcodeNotZone
		}
	}
	for _, rr := range r.Ns {
		h := rr.Header()
		name := canonical(h.Name)
		switch h.Class {
		case dns.ClassANY:
			d.remove(name, h.Rrtype)
		case dns.ClassNONE:
			gone := dns.Copy(rr)
			gone.Header().Class, gone.Header().Name = dns.ClassINET, name
			d.records[name] = slices.DeleteFunc(d.records[name], func(other dns.RR) bool { return dns.IsDuplicate(gone, other) })
			if len(d.records[name]) == 0 {
				delete(d.records, name)
			}
		default:
			d.add(dns.Copy(rr))
		}
	}
	d.updates++
	return dns.RcodeSuccess
}

func (d *DNS) transfer(zone string) (int, []dns.RR) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.zones, zone) {
		return dns.RcodeNotAuth, nil
	}
	soa := d.of(zone, dns.TypeSOA)
	all := slices.Clone(soa)
	for name, rrs := range d.records {
		for _, rr := range rrs {
			if d.zoneOf(name) == zone && rr.Header().Rrtype != dns.TypeSOA {
				all = append(all, dns.Copy(rr))
			}
		}
	}
	return dns.RcodeSuccess, append(all, soa...)
}

// zoneOf is the innermost zone that a name is in; empty: none of ours.
func (d *DNS) zoneOf(name string) string {
	found := ""
	for _, z := range d.zones {
		if dns.IsSubDomain(z, name) && len(z) > len(found) {
			found = z
		}
	}
	return found
}

func (d *DNS) answer(m *dns.Msg, q dns.Question) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.RecursionAvailable, m.Authoritative = true, true
	name := canonical(q.Name)
	for range maxCNAMEs {
		if rcode, ok := d.rcodes[name]; ok {
			m.Rcode = rcode
			return
		}
		zone := d.zoneOf(name)
		if zone == "" {
			if len(m.Answer) == 0 {
				m.Rcode, m.Authoritative = dns.RcodeRefused, false
			}
			return
		}
		found := d.of(name, q.Qtype)
		if alias := d.of(name, dns.TypeCNAME); len(alias) > 0 && q.Qtype != dns.TypeCNAME {
			m.Answer = append(m.Answer, alias[0])
			name = canonical(alias[0].(*dns.CNAME).Target)
			continue
		}
		if q.Qtype == dns.TypeTXT && d.hidden[name] {
			found = nil
		}
		m.Answer = append(m.Answer, found...)
		if len(found) == 0 {
			m.Ns = d.of(zone, dns.TypeSOA)
			if !d.exists(name) && q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
				m.Rcode = dns.RcodeNameError
			}
		}
		return
	}
	m.Rcode = dns.RcodeServerFailure
}

func (d *DNS) exists(name string) bool {
	for other := range d.records {
		if dns.IsSubDomain(name, other) {
			return true
		}
	}
	return false
}

// of are copies of the records of a type, from a wildcard if the name has none.
func (d *DNS) of(name string, kind uint16) []dns.RR {
	var found []dns.RR
	source := name
	for at := name; !d.exists(source); source = "*." + at {
		labels := dns.SplitDomainName(at)
		if len(labels) < 2 {
			break
		}
		at = dns.Fqdn(strings.Join(labels[1:], "."))
		if _, ok := d.records["*."+at]; !ok && d.exists(at) {
			break
		}
	}
	for _, rr := range d.records[source] {
		if rr.Header().Rrtype == kind {
			found = append(found, dns.Copy(rr))
			found[len(found)-1].Header().Name = name
		}
	}
	if len(found) == 0 && kind == dns.TypeA && len(d.of(name, dns.TypeCNAME)) == 0 {
		found = append(found, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(127, 0, 0, 1)})
	}
	return found
}
