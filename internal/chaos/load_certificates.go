//go:build linux

package chaos

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/private"
)

const (
	issuerName = "office"
	// certCount certificates are valid for certLife, by a clock that is hurry times as fast
	// as others, and so renewed all the time.
	certCount = 8
	certLife  = 23 * time.Hour
	hurry     = 1200
	managers  = 2
)

// An office is an authority with orders, as those of ACME have: one that was placed can be
// found again and resumed.
type office struct {
	*private.Authority

	mu     sync.Mutex
	orders []*paper
}

// A paper is an order.
type paper struct {
	names  string
	issued *certmanager.Issued // nil: it is pending
}

func (o *office) open(context.Context, certmanager.IssuerOptions) (certmanager.Issuer, error) {
	return o, nil
}

// Issue resumes an order, or places one.
func (o *office) Issue(ctx context.Context, order certmanager.Order) (certmanager.Issued, error) {
	if order.State == "" {
		state := ""
		if order.Unanswered {
			state = o.pending(order)
		}
		if state == "" {
			if err := order.Placing(ctx, false); err != nil {
				return certmanager.Issued{}, fmt.Errorf("saying that an order is placed: %w", err)
			}
			state = o.place(order)
		}
		if err := order.Save(ctx, state); err != nil {
			return certmanager.Issued{}, fmt.Errorf("saving an order: %w", err)
		}
		order.State = state
	}
	return o.finalize(ctx, order)
}

func (o *office) place(order certmanager.Order) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.orders = append(o.orders, &paper{names: strings.Join(order.Names, ",")})
	return strconv.Itoa(len(o.orders))
}

// pending finds an order for the same names.
func (o *office) pending(order certmanager.Order) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, p := range o.orders {
		if p.issued == nil && p.names == strings.Join(order.Names, ",") {
			return strconv.Itoa(i + 1)
		}
	}
	return ""
}

// finalize signs the certificate of an order, once.
func (o *office) finalize(ctx context.Context, order certmanager.Order) (certmanager.Issued, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, err := strconv.Atoi(order.State)
	if err != nil || i < 1 || i > len(o.orders) {
		return certmanager.Issued{}, fmt.Errorf("finalizing order %q: there is none", order.State)
	}
	p := o.orders[i-1]
	if p.issued == nil {
		issued, err := o.Authority.Issue(ctx, order)
		if err != nil {
			return issued, err
		}
		p.issued = &issued
	}
	return *p.issued, nil
}

// count is how many orders were placed, and how many led to a certificate, by name.
func (o *office) count() (placed, signed map[string]int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	placed, signed = map[string]int{}, map[string]int{}
	for _, p := range o.orders {
		placed[p.names]++
		if p.issued != nil {
			signed[p.names]++
		}
	}
	return placed, signed
}

// renewals are certificates of an account that are renewed again and again.
type renewals struct {
	office *office
	client *certmanager.Client
	stop   func()
}

// renew runs managers in the account, until it is stopped.
func renew(ctx context.Context, a *account) (*renewals, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	key, err := cert.NewManagerKey(a.name, secret)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	now := func() time.Time { return began.Add(hurry * time.Since(began)) }
	authority, err := private.New(private.Options{Life: certLife, Now: now})
	if err != nil {
		return nil, err
	}
	r := &renewals{office: &office{Authority: authority}}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	r.stop = func() {
		cancel()
		all.Wait()
	}
	var nc *nats.Conn
	for i := range managers {
		m, err := certmanager.New(certmanager.Options{
			Name: "manager" + strconv.Itoa(i), Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil },
			Issuers: map[string]certmanager.OpenIssuer{issuerName: r.office.open}, Every: time.Second, Lease: 20 * time.Second, Now: now,
		})
		if err == nil {
			nc, err = a.fleet.cluster.dial(ctx, a.name+"-manager", i, a.manager)
		}
		if err != nil {
			r.stop()
			return nil, err
		}
		conn := nc
		all.Go(func() {
			defer conn.Close()
			for ctx.Err() == nil { // as a node does
				_ = m.Run(ctx, conn)
				_ = pause(ctx, time.Second)
			}
		})
	}
	settings, err := json.Marshal(certmanager.Settings{Issuers: []certmanager.IssuerSettings{{Name: issuerName, Type: issuerName, PerHour: 1_000_000}}})
	if err != nil {
		r.stop()
		return nil, err
	}
	r.client = certmanager.NewClient(nc)
	r.client.Signer = key.Signer()
	err = until(ctx, patience, "managers are configured", func(ctx context.Context) error {
		_, err := r.client.UpdateConfig(ctx, settings)
		return err
	})
	for i := 0; i < certCount && err == nil; i++ {
		err = until(ctx, patience, "a certificate is asked for", func(ctx context.Context) error {
			_, err := r.client.Make(ctx, certmanager.MakeRequest{Policy: cert.Policy{Names: []string{fmt.Sprintf("s%d.example.test", i)}, Waves: "all"}})
			return err
		})
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// judge waits until every order that was placed led to a certificate that is kept, and says
// which did not, or was not the only one.
func (r *renewals) judge(ctx context.Context) (wrong []string, renewed int) {
	err := until(ctx, 2*patience, "every order has led to one generation", func(ctx context.Context) error {
		all, err := r.client.Certificates(ctx, "")
		if err != nil {
			return err
		}
		if len(all) != certCount {
			return fmt.Errorf("there are %d certificates", len(all))
		}
		placed, signed := r.office.count()
		var errs []error
		renewed = 0
		for _, c := range all {
			name := c.Policy.Names[0]
			if c.Current == nil {
				errs = append(errs, fmt.Errorf("%s has none", name))
				continue
			}
			renewed += int(c.Current.Generation)
			if n := int(c.Current.Generation); placed[name] != n || signed[name] != n {
				errs = append(errs, fmt.Errorf("%s: %d orders, %d signed, generation %d", name, placed[name], signed[name], n))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong, renewed
}
