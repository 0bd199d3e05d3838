package proxy

import (
	"encoding/json"
	"fmt"
	"strings"
)

// envoyFiles are a discovery response for each certificate: Envoy takes one secret of
// a file. The PEM is in it, so that chain and key are read as one.
func envoyFiles(all []certificate) files {
	type inline struct {
		Text string `json:"inline_string"`
	}
	type secret struct {
		Type string `json:"@type"`
		Name string `json:"name"`
		TLS  struct {
			Chain inline `json:"certificate_chain"`
			Key   inline `json:"private_key"`
		} `json:"tls_certificate"`
	}
	return func(string) map[string][]byte {
		out := map[string][]byte{}
		for _, c := range all {
			s := secret{Type: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", Name: c.id}
			s.TLS.Chain.Text, s.TLS.Key.Text = string(c.chain), string(c.key)
			text, _ := json.Marshal(map[string][]secret{"resources": {s}}) // strings always can be
			out[c.id+".json"] = text
		}
		return out
	}
}

func (d *directory) envoySnippet(all []certificate) string {
	if len(all) == 0 { // what it will look like
		all = []certificate{{id: "ID", names: []string{"its names"}}}
	}
	var b strings.Builder
	for _, c := range all {
		fmt.Fprintf(&b, `# In the filter chain that matches %s:
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
    common_tls_context:
      tls_certificate_sds_secret_configs:
        - name: %s
          sds_config:
            resource_api_version: V3
            path_config_source:
              path: %s/%s.json
              watched_directory:
                path: %s
`, strings.Join(c.names, " "), c.id, d.tree.path(current), c.id, d.tree.dir)
	}
	return b.String()
}
