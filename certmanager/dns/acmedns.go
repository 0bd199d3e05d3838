package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/libdns/libdns"
)

// An acmeDNS writes to an acme-dns server, which has one name for an account and
// keeps its last two texts. (The provider of libdns for it has neither contexts nor an
// end to its connections.)
type acmeDNS struct {
	server, username, password, subdomain string
	web                                   *http.Client
}

// AppendRecords adds texts to the name of the account, whatever theirs is.
func (a *acmeDNS) AppendRecords(ctx context.Context, _ string, records []libdns.Record) ([]libdns.Record, error) {
	for _, record := range records {
		rr := record.RR()
		if rr.Type != "TXT" {
			return nil, errors.New("an acme-dns server has TXT records alone")
		}
		body, err := json.Marshal(map[string]string{"subdomain": a.subdomain, "txt": rr.Data})
		if err != nil {
			return nil, err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.server+"/update", bytes.NewReader(body))
		if err != nil {
			return nil, errors.New("making the request to the acme-dns server: the URL cannot be used")
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Api-User", a.username)
		r.Header.Set("X-Api-Key", a.password)
		answer, err := a.web.Do(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.CopyN(io.Discard, answer.Body, 1<<16) // so that the connection is used again
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the acme-dns server answers %s", answer.Status)
		}
	}
	return records, nil
}

// DeleteRecords does nothing: newer texts take the place of older ones.
func (a *acmeDNS) DeleteRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, nil
}
