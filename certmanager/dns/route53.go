//go:build route53

package dns

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/libdns/libdns"
	"github.com/libdns/route53"
)

func route53Kind() (kind, bool) {
	return kind{
		settings: []Setting{
			{Name: "region", About: "default: what the machine is configured for"},
			{Name: "profile", About: "in the machine's AWS configuration; default: its default"},
			{Name: "access_key_id", About: "default: what the machine is"},
			{Name: "secret_access_key", Secret: true, About: "of the access key"},
			{Name: "session_token", Secret: true, About: "of temporary credentials"},
			{Name: "max_retries", About: "default 5"},
		},
		open: func(s map[string]string) (client, error) {
			p := &route53.Provider{
				Region: s["region"], Profile: s["profile"], AccessKeyId: s["access_key_id"],
				SecretAccessKey: s["secret_access_key"], SessionToken: s["session_token"],
			}
			if text := s["max_retries"]; text != "" {
				n, err := strconv.Atoi(text)
				if err != nil || n < 1 || n > 20 {
					return nil, fmt.Errorf("max_retries is %q, and 1 to 20 are allowed", text)
				}
				p.MaxRetries = n
			}
			return &route53DNS{p: p}, nil
		},
		lists: true,
	}, true
}

// A route53DNS is libdns's provider, which ends the program if the machine's AWS
// configuration cannot be loaded: that is tried before.
type route53DNS struct {
	p *route53.Provider

	mu    sync.Mutex
	tried bool
}

func (r *route53DNS) try(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tried {
		return nil
	}
	var options []func(*config.LoadOptions) error
	if r.p.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(r.p.Profile))
	}
	if r.p.Region != "" {
		options = append(options, config.WithRegion(r.p.Region))
	}
	if _, err := config.LoadDefaultConfig(ctx, options...); err != nil {
		return fmt.Errorf("loading the machine's AWS configuration: %w", err)
	}
	r.tried = true
	return nil
}

// AppendRecords is the provider's.
func (r *route53DNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if err := r.try(ctx); err != nil {
		return nil, err
	}
	return r.p.AppendRecords(ctx, zone, records)
}

// DeleteRecords is the provider's.
func (r *route53DNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if err := r.try(ctx); err != nil {
		return nil, err
	}
	return r.p.DeleteRecords(ctx, zone, records)
}

// GetRecords is the provider's.
func (r *route53DNS) GetRecords(ctx context.Context, zone string) ([]libdns.Record, error) {
	if err := r.try(ctx); err != nil {
		return nil, err
	}
	return r.p.GetRecords(ctx, zone)
}
