//go:build googleclouddns

package dns

import "github.com/libdns/googleclouddns"

func googleKind() (kind, bool) {
	return kind{
		settings: []Setting{
			{Name: "gcp_project", Required: true, About: "the project that has the zones"},
			{Name: "gcp_application_default", About: "the path of a service account's JSON file; default: what the machine is"},
		},
		open: func(s map[string]string) (client, error) {
			return &googleclouddns.Provider{Project: s["gcp_project"], ServiceAccountJSON: s["gcp_application_default"]}, nil
		},
		lists: true,
	}, true
}
