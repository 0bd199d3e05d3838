//go:build azure

package dns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/libdns/azure"
	"github.com/libdns/libdns"
)

func azureKind() (kind, bool) {
	return kind{
		settings: []Setting{
			{Name: "subscription_id", Required: true, About: "the subscription that has the zones"},
			{Name: "resource_group_name", Required: true, About: "the resource group that has the zones"},
			{Name: "tenant_id", About: "of an application; without it, the machine's managed identity is taken"},
			{Name: "client_id", About: "of an application"},
			{Name: "client_secret", Secret: true, About: "of an application"},
		},
		open: func(s map[string]string) (client, error) {
			return &azureDNS{
				Provider: azure.Provider{
					SubscriptionId: s["subscription_id"], ResourceGroupName: s["resource_group_name"],
					TenantId: s["tenant_id"], ClientId: s["client_id"], ClientSecret: s["client_secret"],
				},
				texts: map[string]string{},
			}, nil
		},
	}, true
}

// An azureDNS is libdns's provider, which has one text at a name and removes all: it
// refuses a second one.
type azureDNS struct {
	azure.Provider

	mu    sync.Mutex
	texts map[string]string // by absolute name
}

// AppendRecords adds one text to a name that has none.
func (a *azureDNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if len(records) != 1 {
		return nil, errors.New("one record is added at a time")
	}
	rr := records[0].RR()
	name := strings.ToLower(libdns.AbsoluteName(rr.Name, zone))
	a.mu.Lock()
	defer a.mu.Unlock()
	if text, ok := a.texts[name]; ok && text != rr.Data {
		return nil, fmt.Errorf("%s has a text, and this provider has one at a name: delegate the wildcard, or the name below it, elsewhere, or order them one after the other", name)
	}
	// Set does not fail because of what an earlier run has left.
	if _, err := a.SetRecords(ctx, zone, records); err != nil {
		return nil, err
	}
	a.texts[name] = rr.Data
	return records, nil
}

// DeleteRecords removes a text that AppendRecords added, or that an earlier run did.
func (a *azureDNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, record := range records {
		rr := record.RR()
		name := strings.ToLower(libdns.AbsoluteName(rr.Name, zone))
		if text, ok := a.texts[name]; ok && text != rr.Data {
			continue
		}
		if _, err := a.Provider.DeleteRecords(ctx, zone, []libdns.Record{record}); err != nil {
			return nil, err
		}
		delete(a.texts, name)
	}
	return records, nil
}
