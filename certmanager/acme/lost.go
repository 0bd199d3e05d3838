package acme

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/mholt/acmez/v3/acme"
)

const (
	// maxPages and maxListed bound what is read of an account's list of orders.
	maxPages  = 100
	maxListed = 200
	// lostTries is how often an order is asked for in one attempt, if the list says that
	// the one before was not placed.
	lostTries = 3
)

// newOrder asks for an order. The client would ask again when the answer is lost, and
// have two then. So the order is looked for first, among those of the account, where the
// authority lists them; else the attempt has failed, and nobody knows.
func (j *job) newOrder(ctx context.Context, want acme.Order) (acme.Order, error) {
	for n := 1; ; n++ {
		t := j.Issuer.trace()
		t.once = j.dir.NewOrder
		order, err := j.client.NewOrder(t.with(ctx), j.account, want)
		f := t.fate()
		switch {
		case err == nil && f.location != "", f.answered && f.location == "":
			j.unanswered = false
			return order, err
		case f.lost == nil && f.location == "": // it was not asked for
			return order, err
		}
		j.unanswered = true
		location, listed := f.location, true
		if location == "" {
			err = fmt.Errorf("whether the order was placed is not known: %w", cmp.Or(err, f.lost))
			location, listed, _ = j.find(ctx)
		}
		if location != "" {
			j.unanswered = false
			if err := j.refresh(ctx, location); err != nil {
				return acme.Order{Location: location}, nil // it is there, and that is to be saved
			}
			return j.order, nil
		}
		if !listed || n == lostTries {
			return order, err
		}
	}
}

// find looks for an order that was asked for, and whose answer nobody has. It reports
// false if the authority does not tell which there are, and fails if it could not be
// asked.
func (j *job) find(ctx context.Context) (location string, listed bool, err error) {
	all, err := j.orders(ctx)
	for i, location := range slices.Backward(all) {
		if err == nil && len(all)-i > maxListed {
			return "", false, nil
		}
		if err == nil {
			err = j.refresh(ctx, location)
		}
		if err != nil {
			break
		}
		if (j.order.Status == acme.StatusPending || j.order.Status == acme.StatusReady) && j.same() {
			j.tell("an order that was placed before is found")
			j.o.State = location // if it is not ours, it is given up
			return location, true, nil
		}
	}
	if status, _ := j.last(); err != nil && status >= 400 && status < 500 {
		return "", false, nil
	}
	return "", err == nil && j.account.Orders != "", err
}

// orders are those of the account, the last ones last at most authorities: RFC 8555,
// section 7.1.2.1. There are none if the authority does not list them.
func (j *job) orders(ctx context.Context) (all []string, err error) {
	page := j.account.Orders
	for n := 0; page != ""; n++ {
		t := j.Issuer.trace()
		t.keep = page
		_, err := j.client.GetOrder(t.with(ctx), j.account, acme.Order{Location: page}) // it reads anything
		var list struct {
			Orders []string `json:"orders"`
		}
		if err == nil {
			err = json.Unmarshal(t.kept, &list)
		}
		if err == nil && n == maxPages {
			err = fmt.Errorf("it has more than %d pages", maxPages)
		}
		if err != nil {
			return nil, fmt.Errorf("listing orders: %w", err)
		}
		all, page = append(all, list.Orders...), t.next
	}
	return all, nil
}
