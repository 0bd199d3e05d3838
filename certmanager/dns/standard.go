package dns

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/libdns/cloudflare"
	"github.com/libdns/gandi"
	"github.com/libdns/ovh"
	"github.com/libdns/rfc2136"
)

// webTime bounds a request of a provider over HTTPS.
const webTime = 30 * time.Second

// standard are the providers of every program.
func standard() map[string]kind {
	return map[string]kind{
		"acmedns": {
			settings: []Setting{
				{Name: "server_url", Required: true, About: "the API of an acme-dns server, such as https://auth.example.org"},
				{Name: "username", Required: true, About: "what registering there gave"},
				{Name: "password", Required: true, Secret: true, About: "what registering there gave"},
				{Name: "subdomain", Required: true, About: "what registering there gave: the first label of the name that is delegated to"},
			},
			open: openACMEDNS, forgets: true,
		},
		"cloudflare": {
			settings: []Setting{
				{Name: "api_token", Required: true, Secret: true, About: "a token that may edit the DNS of the zone"},
				{Name: "zone_token", Secret: true, About: "a token that may read zones, if api_token may not"},
			},
			open: func(s map[string]string) (client, error) {
				return &cloudflare.Provider{APIToken: s["api_token"], ZoneToken: s["zone_token"], HTTPClient: &http.Client{Timeout: webTime}}, nil
			},
			lists: true,
		},
		"gandi": {
			settings: []Setting{{Name: "bearer_token", Required: true, Secret: true, About: "a personal access token that may manage domains"}},
			open:     openGandi, lists: true, ttl: 5 * time.Minute,
		},
		"ovh": {
			settings: []Setting{
				{Name: "endpoint", Required: true, About: "ovh-eu, ovh-ca or ovh-us"},
				{Name: "application_key", Required: true, Secret: true, About: "of the application that was registered"},
				{Name: "application_secret", Required: true, Secret: true, About: "of the application that was registered"},
				{Name: "consumer_key", Required: true, Secret: true, About: "that may GET, POST and DELETE /domain/zone/*"},
			},
			open: func(s map[string]string) (client, error) {
				return &ovh.Provider{Endpoint: s["endpoint"], ApplicationKey: s["application_key"], ApplicationSecret: s["application_secret"], ConsumerKey: s["consumer_key"]}, nil
			},
			lists: true,
		},
		"rfc2136": {
			settings: []Setting{
				{Name: "server", Required: true, About: "host or host:port of the primary nameserver"},
				{Name: "key_name", Required: true, About: "of the TSIG key"},
				{Name: "key", Required: true, Secret: true, About: "the secret of the TSIG key, in base64"},
				{Name: "key_alg", About: "hmac-sha256, hmac-sha224, hmac-sha384, hmac-sha512 or hmac-sha1; default hmac-sha256"},
			},
			open: openRFC2136,
		},
	}
}

func openRFC2136(s map[string]string) (client, error) {
	p := &rfc2136.Provider{KeyName: s["key_name"], Key: s["key"], KeyAlg: s["key_alg"], Server: s["server"]}
	if p.KeyAlg = strings.ToLower(strings.TrimSuffix(p.KeyAlg, ".")); p.KeyAlg == "" {
		p.KeyAlg = "hmac-sha256"
	}
	if algorithms := []string{"hmac-sha256", "hmac-sha224", "hmac-sha384", "hmac-sha512", "hmac-sha1"}; !slices.Contains(algorithms, p.KeyAlg) {
		return nil, fmt.Errorf("key_alg is none of %s", strings.Join(algorithms, ", "))
	}
	if _, err := base64.StdEncoding.DecodeString(p.Key); err != nil {
		return nil, errors.New("key is no base64")
	}
	if _, _, err := net.SplitHostPort(p.Server); err != nil {
		p.Server = net.JoinHostPort(strings.Trim(p.Server, "[]"), "53")
	}
	// The library looks for the key by the name as it is in the packet.
	p.KeyName = strings.ToLower(strings.TrimSuffix(p.KeyName, ".")) + "."
	return p, nil
}

func openACMEDNS(s map[string]string) (client, error) {
	u, err := url.Parse(s["server_url"])
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("server_url is no URL")
	}
	return &acmeDNS{
		server: strings.TrimSuffix(s["server_url"], "/"), username: s["username"], password: s["password"], subdomain: s["subdomain"],
		web: &http.Client{Timeout: webTime},
	}, nil
}

func openGandi(s map[string]string) (client, error) {
	return &gandiDNS{gandi.Provider{BearerToken: s["bearer_token"]}}, nil
}
