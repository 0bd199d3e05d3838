package proxy

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// nginxMap is the file that maps names to certificates.
const nginxMap = "map.conf"

func (d *directory) nginx() {
	d.Layout = Layout{PEM: pemLayout}
	d.files, d.advise = d.nginxFiles, d.nginxSnippet
	d.test = append(d.nginxCommand(), "-t", "-q")
}

func (d *directory) nginxCommand() []string {
	if d.Config == "" {
		return []string{d.Binary}
	}
	return []string{d.Binary, "-c", d.Config}
}

// nginxFiles are a file for each certificate, and a map for servers that serve all.
// nginx reads those of a map in each handshake, chain and key one after the other: so
// the map names the files of one version, which never change, and not the current one.
func (d *directory) nginxFiles(all []certificate) files {
	pems := d.layout(all)
	return func(dir string) map[string][]byte {
		out := pems(dir)
		var b strings.Builder
		b.WriteString("map $ssl_server_name $fleetbus_certificate {\n\thostnames;\n")
		if len(all) > 0 {
			fmt.Fprintf(&b, "\tdefault %s/%s.pem;\n", dir, all[0].id)
		}
		index := byName(all)
		for _, name := range slices.Sorted(maps.Keys(index)) {
			// Quoted, a name is none of the map's own words.
			fmt.Fprintf(&b, "\t%q %s/%s.pem;\n", name, dir, index[name].id)
		}
		b.WriteString("}\n")
		out[nginxMap] = []byte(b.String())
		return out
	}
}

func (d *directory) nginxSnippet(all []certificate) string {
	var b strings.Builder
	for _, c := range all {
		path := filepath.Join(d.tree.path(current), c.id+".pem")
		fmt.Fprintf(&b, "# In the server block of %s:\nssl_certificate %s;\nssl_certificate_key %s;\n\n", strings.Join(c.names, " "), path, path)
	}
	if d.tree.gid < 0 { // its workers may be of the same user
		b.WriteString("# Workers read the files of the map: those of another user need their group set.\n")
	}
	fmt.Fprintf(&b, "# For all names, also those that come later. In the http block:\ninclude %s;\n# In the server block:\nssl_certificate $fleetbus_certificate;\nssl_certificate_key $fleetbus_certificate;\n", d.tree.path(current+"/"+nginxMap))
	return b.String()
}
