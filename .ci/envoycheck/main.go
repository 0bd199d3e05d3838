// Command envoycheck reads files by Envoy's own definitions: every field must be
// known, and hold what it may hold.
//
//	envoycheck secret FILE   a file of secrets, as a path_config_source names it
//	envoycheck socket FILE   a transport_socket of a filter chain, in YAML
package main

import (
	"fmt"
	"os"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: envoycheck secret|socket FILE")
		os.Exit(2)
	}
	if err := check(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A message can say what is wrong with it.
type message interface {
	proto.Message
	ValidateAll() error
}

func check(kind, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if data, err = yaml.YAMLToJSON(data); err != nil {
		return err
	}
	switch kind {
	case "secret":
		var response discovery.DiscoveryResponse
		if err := read(data, &response); err != nil {
			return err
		}
		for _, r := range response.Resources {
			var secret tls.Secret
			if err := unpack(r, &secret); err != nil {
				return err
			}
			fmt.Println(secret.Name)
		}
		return nil
	case "socket":
		var chain listener.FilterChain
		if err := read(data, &chain); err != nil {
			return err
		}
		var context tls.DownstreamTlsContext
		if err := unpack(chain.TransportSocket.GetTypedConfig(), &context); err != nil {
			return err
		}
		for _, s := range context.CommonTlsContext.TlsCertificateSdsSecretConfigs {
			source, ok := s.SdsConfig.ConfigSourceSpecifier.(*core.ConfigSource_PathConfigSource)
			if !ok {
				return fmt.Errorf("secret %q is not in a file", s.Name)
			}
			fmt.Println(s.Name, source.PathConfigSource.Path, source.PathConfigSource.WatchedDirectory.GetPath())
		}
		return nil
	}
	return fmt.Errorf("%q is neither secret nor socket", kind)
}

func read(data []byte, m message) error {
	if err := protojson.Unmarshal(data, m); err != nil {
		return err
	}
	return m.ValidateAll()
}

func unpack(any *anypb.Any, m message) error {
	if err := any.UnmarshalTo(m); err != nil {
		return err
	}
	return m.ValidateAll()
}
