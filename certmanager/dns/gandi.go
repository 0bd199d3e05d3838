package dns

import (
	"context"

	"github.com/libdns/gandi"
	"github.com/libdns/libdns"
)

// A gandiDNS is libdns's provider, which compares texts as Gandi has them, in quotes,
// where a name has several, and without where it has one.
type gandiDNS struct{ gandi.Provider }

// DeleteRecords removes each record, in quotes or without.
func (g *gandiDNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	for _, record := range records {
		rr := record.RR()
		plain := unquoted(rr.Data)
		rr.Data = `"` + plain + `"`
		if _, err := g.Provider.DeleteRecords(ctx, zone, []libdns.Record{rr}); err == nil {
			continue
		}
		rr.Data = plain
		if _, err := g.Provider.DeleteRecords(ctx, zone, []libdns.Record{rr}); err != nil {
			return nil, err
		}
	}
	return records, nil
}

func unquoted(text string) string {
	if n := len(text); n >= 2 && text[0] == '"' && text[n-1] == '"' {
		return text[1 : n-1]
	}
	return text
}
