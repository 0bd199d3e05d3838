//go:build hetzner

package dns

import "github.com/libdns/hetzner/v2"

func hetznerKind() (kind, bool) {
	return kind{
		settings: []Setting{{Name: "api_token", Required: true, Secret: true, About: "a token of a project at Hetzner Cloud, to read and write"}},
		open: func(s map[string]string) (client, error) {
			return hetzner.New(s["api_token"]), nil
		},
		lists: true,
	}, true
}
