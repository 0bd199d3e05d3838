package acme

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// answerTime bounds one question to one server.
	answerTime = 5 * time.Second
	// udpSize is what fits in a packet everywhere.
	udpSize = 1232
	// maxAliases bounds a chain of CNAMEs, and maxServers the nameservers of a zone.
	maxAliases = 8
	maxServers = 16
	// resolvConf has the resolvers of the system.
	resolvConf = "/etc/resolv.conf"
)

// A resolver asks DNS: resolvers for where zones and their nameservers are, and the
// nameservers themselves for records, because these have not cached that there is
// none.
type resolver struct {
	servers  []string // recursive
	fixed    []string // in place of the authoritative servers
	port     string   // of authoritative servers
	interval time.Duration
}

func fqdn(name string) string { return strings.ToLower(dns.Fqdn(name)) }

func (r *resolver) recursive() ([]string, error) {
	if len(r.servers) > 0 {
		return r.servers, nil
	}
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil || len(conf.Servers) == 0 {
		return nil, fmt.Errorf("no resolver is configured, and %s has none", resolvConf)
	}
	var all []string
	for _, s := range conf.Servers {
		all = append(all, net.JoinHostPort(s, conf.Port))
	}
	return all, nil
}

// exchange asks one server, over TCP if the answer does not fit.
func (r *resolver) exchange(ctx context.Context, server, name string, kind uint16, recurse bool) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.RecursionDesired = recurse
	m.SetEdns0(udpSize, false)
	for _, network := range []string{"udp", "tcp"} {
		client := dns.Client{Net: network, Timeout: answerTime}
		bounded, cancel := context.WithTimeout(ctx, answerTime)
		answer, _, err := client.ExchangeContext(bounded, m, server)
		cancel()
		if err != nil {
			return nil, err
		}
		if !answer.Truncated {
			return answer, nil
		}
	}
	return nil, errors.New("the answer is cut off")
}

// ask returns the answer of the first server that has one.
func (r *resolver) ask(ctx context.Context, servers []string, name string, kind uint16, recurse bool) (*dns.Msg, error) {
	var problems []error
	for range 2 {
		for _, server := range servers {
			answer, err := r.exchange(ctx, server, name, kind, recurse)
			if err == nil && answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
				err = fmt.Errorf("%s answers %s", server, dns.RcodeToString[answer.Rcode])
			}
			if err == nil {
				return answer, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			problems = append(problems, err)
		}
	}
	return nil, fmt.Errorf("asking DNS for %s %s: %w", name, dns.TypeToString[kind], problems[0])
}

// zone is the zone that a name is in: the nearest name above it that has a SOA record.
func (r *resolver) zone(ctx context.Context, name string) (string, error) {
	servers, err := r.recursive()
	if err != nil {
		return "", err
	}
	for at := name; at != ""; {
		answer, err := r.ask(ctx, servers, at, dns.TypeSOA, true)
		if err != nil {
			return "", fmt.Errorf("looking for the zone of %s: %w", name, err)
		}
		for _, rr := range answer.Answer {
			if rr.Header().Rrtype == dns.TypeSOA && fqdn(rr.Header().Name) == at {
				return at, nil
			}
		}
		next, end := dns.NextLabel(at, 0)
		if end {
			break
		}
		at = at[next:]
	}
	return "", fmt.Errorf("looking for the zone of %s: DNS knows none", name)
}

// nameservers are the addresses of those of a zone.
func (r *resolver) nameservers(ctx context.Context, zone string) ([]string, error) {
	if len(r.fixed) > 0 {
		return r.fixed, nil
	}
	servers, err := r.recursive()
	if err != nil {
		return nil, err
	}
	answer, err := r.ask(ctx, servers, zone, dns.TypeNS, true)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, rr := range answer.Answer {
		ns, ok := rr.(*dns.NS)
		if !ok {
			continue
		}
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			answer, err := r.ask(ctx, servers, fqdn(ns.Ns), kind, true)
			if err != nil {
				continue // others may be known
			}
			for _, rr := range answer.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					addrs = append(addrs, net.JoinHostPort(rr.A.String(), r.port))
				case *dns.AAAA:
					addrs = append(addrs, net.JoinHostPort(rr.AAAA.String(), r.port))
				}
			}
		}
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("looking for the nameservers of %s: DNS knows none", zone)
	}
	return addrs[:min(len(addrs), maxServers)], nil
}

// alias follows the CNAMEs of a name, each at its own nameservers, to their end.
func (r *resolver) alias(ctx context.Context, name string) (string, error) {
	end := name
	for range maxAliases {
		zone, err := r.zone(ctx, end)
		if err != nil {
			return "", err
		}
		servers, err := r.nameservers(ctx, zone)
		if err != nil {
			return "", err
		}
		answer, err := r.ask(ctx, servers, end, dns.TypeCNAME, false)
		if err != nil {
			return "", err
		}
		next := ""
		for _, rr := range answer.Answer {
			if c, ok := rr.(*dns.CNAME); ok && fqdn(c.Hdr.Name) == end {
				next = fqdn(c.Target)
			}
		}
		if next == "" {
			return end, nil
		}
		end = next
	}
	return "", fmt.Errorf("%s leads through more than %d CNAMEs", name, maxAliases)
}

// texts are the TXT records of a name, after its CNAMEs.
func (r *resolver) texts(ctx context.Context, name string) ([]string, error) {
	end, err := r.alias(ctx, name)
	if err != nil {
		return nil, err
	}
	zone, err := r.zone(ctx, end)
	if err != nil {
		return nil, err
	}
	servers, err := r.nameservers(ctx, zone)
	if err != nil {
		return nil, err
	}
	answer, err := r.ask(ctx, servers, end, dns.TypeTXT, false)
	if err != nil {
		return nil, err
	}
	return textsOf(answer), nil
}

func textsOf(answer *dns.Msg) []string {
	var texts []string
	for _, rr := range answer.Answer {
		if t, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(t.Txt, ""))
		}
	}
	return texts
}

// wait waits until every nameserver of a zone has a text. One that cannot be reached
// at all, as over IPv6 from where there is none, is not waited for if others can.
func (r *resolver) wait(ctx context.Context, zone, name, text string) error {
	servers, err := r.nameservers(ctx, zone)
	if err != nil {
		return err
	}
	missing := servers
	reached := 0
	var last error
	for {
		var without, silent []string
		for _, server := range missing {
			answer, err := r.exchange(ctx, server, name, dns.TypeTXT, false)
			switch {
			case ctx.Err() != nil:
				without = append(without, server)
			case err != nil:
				silent, last = append(silent, server), err
			case !slices.Contains(textsOf(answer), text):
				without = append(without, server)
			default:
				reached++
			}
		}
		if len(without) == 0 && reached > 0 {
			return nil
		}
		missing = append(without, silent...)
		if err := sleep(ctx, r.interval); err != nil {
			err = fmt.Errorf("%d of %d nameservers do not have it: %s", len(missing), len(servers), strings.Join(missing, ", "))
			if len(without) == 0 && last != nil {
				err = fmt.Errorf("%w: %w", err, last)
			}
			return err
		}
	}
}
