package demo

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	target = "lb-1"
	site   = "shop.fleetbus.test"
)

// A balancer is the load balancer of the demonstration: a process of its own, which
// serves what is delivered to it.
type balancer struct {
	dir               string
	serve, challenges string // host:port
	process           *process
	authority         *authority
	roots             *x509.CertPool // of the authority
}

// A authority is who issues the certificate of the demonstration.
type authority struct {
	name     string
	settings certmanager.IssuerSettings
	// roots may be had once something was issued.
	roots func(context.Context, *certmanager.Client) (*x509.CertPool, error)
	close func() error
}

func (b *balancer) close() {
	if b == nil {
		return
	}
	b.kill()
	if b.authority != nil {
		_ = b.authority.close() // the process ends
	}
}

func (b *balancer) kill() {
	b.process.end()
	b.process = nil
}

// certify obtains a certificate from an authority, has it delivered to a load balancer
// that a client sees serving it, and renews it under handshakes.
func (d *Demo) certify(ctx context.Context) (finding measured, err error) {
	addrs, err := freeAddrs(2)
	if err != nil {
		return finding, err
	}
	d.lb = &balancer{dir: filepath.Join(d.dir, target), serve: addrs[0], challenges: addrs[1]}
	if d.lb.authority, err = startAuthority(d.lb.challenges); err != nil {
		return finding, err
	}
	managers := certmanager.NewAdminClient(d.apiConn, account)
	config, err := json.Marshal(certmanager.Settings{
		Issuers:  []certmanager.IssuerSettings{d.lb.authority.settings},
		Defaults: certmanager.Defaults{Challenge: cert.Method{Type: "http-01"}},
	})
	if err != nil {
		return finding, err
	}
	if _, err := managers.UpdateConfig(ctx, config); err != nil {
		return finding, fmt.Errorf("configuring the managers: %w", err)
	}
	if _, err := managers.AddTarget(ctx, "", target); err != nil {
		return finding, fmt.Errorf("inviting the load balancer: %w", err)
	}
	token, err := d.api.AddToken(ctx, admin.TokenRequest{Kind: identity.KindTarget, Account: account, Name: target})
	if err != nil {
		return finding, err
	}
	join, err := d.command(ctx, "join", d.nodes[0].Clients, "--as", "target", "--target-dir", d.lb.dir, "--proxy", "none")
	if err != nil {
		return finding, fmt.Errorf("joining the load balancer: %w", err)
	}
	join.Env = append(join.Env, "FLEETBUS_TOKEN="+token.Text)
	if out, err := join.CombinedOutput(); err != nil {
		return finding, fmt.Errorf("joining the load balancer: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := d.startBalancer(); err != nil {
		return finding, err
	}
	err = retry(ctx, "waiting for the load balancer to be there", func(ctx context.Context) error {
		targets, err := managers.Targets(ctx, "")
		if err == nil && !slices.ContainsFunc(targets, func(t certmanager.TargetInfo) bool { return t.Present }) {
			err = errors.New("it does not answer")
		}
		return err
	})
	if err != nil {
		return finding, err
	}
	began := time.Now()
	made, err := managers.Make(ctx, certmanager.MakeRequest{Policy: cert.Policy{Names: []string{site}}, Wait: true})
	if err != nil {
		return finding, err
	}
	if d.lb.roots, err = d.lb.authority.roots(ctx, managers); err != nil {
		return finding, err
	}
	if err := d.lb.serves(ctx, made.Current); err != nil {
		return finding, err
	}
	took := time.Since(began)
	handshakes, err := d.renewServed(ctx, managers, made)
	if err != nil {
		return finding, err
	}
	return measured{took: took, detail: fmt.Sprintf("issued by %s, sealed, and seen serving; renewed under %d handshakes, 0 failed", d.lb.authority.name, handshakes)}, nil
}

// startBalancer starts the load balancer's process.
func (d *Demo) startBalancer() (err error) {
	d.lb.process, err = d.spawn("the load balancer", d.lb.dir+".log", "target", "run", d.lb.dir, "--serve", d.lb.serve, "--challenges", d.lb.challenges)
	return err
}

// leaf is what the load balancer serves to a stranger who trusts the authority.
func (b *balancer) leaf(ctx context.Context) (*x509.Certificate, error) {
	dialer := tls.Dialer{Config: &tls.Config{ServerName: site, RootCAs: b.roots, MinVersion: tls.VersionTLS13}}
	conn, err := dialer.DialContext(ctx, "tcp", b.serve)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// serves returns when the load balancer serves a generation.
func (b *balancer) serves(ctx context.Context, want *cert.Bundle) error {
	return retry(ctx, "waiting for the load balancer", func(ctx context.Context) error {
		leaf, err := b.leaf(ctx)
		if err != nil {
			return err
		}
		if serial := leaf.SerialNumber.Text(16); serial != want.Serial {
			return fmt.Errorf("it serves %s, not %s", serial, want.Serial)
		}
		return nil
	})
}

// renewServed renews the certificate while clients shake hands, and one stays
// connected.
func (d *Demo) renewServed(ctx context.Context, managers *certmanager.Client, made *cert.Record) (handshakes int64, err error) {
	dialer := tls.Dialer{Config: &tls.Config{ServerName: site, RootCAs: d.lb.roots, MinVersion: tls.VersionTLS13}}
	stays, err := dialer.DialContext(ctx, "tcp", d.lb.serve)
	if err != nil {
		return 0, err
	}
	defer stays.Close()
	var count atomic.Int64
	load, stop := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for load.Err() == nil {
			if _, err := d.lb.leaf(ctx); err != nil && load.Err() == nil {
				failed <- err
				return
			}
			count.Add(1)
		}
	}()
	renewed, err := managers.Renew(ctx, certmanager.RenewRequest{ID: made.ID, Wait: true})
	if err == nil {
		err = d.lb.serves(ctx, cmp.Or(renewed.Next, renewed.Current))
	}
	stop()
	if err := errors.Join(err, <-failed); err != nil {
		return 0, fmt.Errorf("renewing the certificate: %w", err)
	}
	if err := answers(stays); err != nil {
		return 0, fmt.Errorf("using a connection from before the renewal: %w", err)
	}
	return count.Load(), nil
}

// answers makes a request over a connection.
func answers(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(tryTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", site); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// without stops every node, restarts the load balancer, sees it serving, and starts
// the nodes again.
func (d *Demo) without(ctx context.Context) (finding measured, err error) {
	if d.lb == nil || d.lb.process == nil {
		return finding, errors.New("there is no load balancer")
	}
	before, err := d.lb.leaf(ctx)
	if err != nil {
		return finding, err
	}
	for _, n := range d.nodes {
		n.kill()
	}
	d.stopEmbedded()
	d.lb.kill()
	began := time.Now()
	err = d.startBalancer()
	if err == nil {
		err = d.lb.serves(ctx, &cert.Bundle{Serial: before.SerialNumber.Text(16)})
	}
	took := time.Since(began)
	for i, n := range d.nodes {
		if i == embeddedNode {
			err = errors.Join(err, d.embed(n, d.options))
			continue
		}
		err = errors.Join(err, d.launch(n))
	}
	if err != nil {
		return finding, err
	}
	for _, n := range d.nodes {
		if err := d.ready(ctx, n); err != nil {
			return finding, err
		}
	}
	if _, err := d.whole(ctx); err != nil {
		return finding, err
	}
	return measured{took: took, detail: "from its own snapshot, the bus away; all nodes are back"}, nil
}
