//go:build digitalocean

package dns

import "github.com/libdns/digitalocean"

func digitaloceanKind() (kind, bool) {
	return kind{
		settings: []Setting{{Name: "auth_token", Required: true, Secret: true, About: "a token that may read and write domains"}},
		open: func(s map[string]string) (client, error) {
			return &digitalocean.Provider{APIToken: s["auth_token"]}, nil
		},
		lists: true,
	}, true
}
