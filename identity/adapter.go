package identity

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/jwt/v2"
)

const (
	// adapterPrefix is before the name of the adapter, the public key of the account
	// that a message comes from, and its subject there, in the fleet's account, where
	// the engine puts them.
	adapterPrefix = "adapter."
	// AdapterRequests are the messages for all adapters as the fleet's account sees
	// them.
	AdapterRequests = adapterPrefix + "*.*.>"
)

// adapterExport lets every account send, under its own key alone.
func adapterExport() *jwt.Export {
	return &jwt.Export{
		Name: "adapter", Subject: AdapterRequests, Type: jwt.Service, ResponseType: jwt.ResponseTypeSingleton,
		AccountTokenPosition: uint(strings.Count(adapterPrefix, ".") + 2),
	}
}

// flow makes what p publishes under the adapter's subject a request to the fleet.
func (a Adapter) flow(p Party) Flow {
	return Flow{adapter: a.Name, Import: Import{
		Party: p, ID: ImportID(a.Subject), From: Party{Account: FleetName}, Service: true,
		Subject: adapterPrefix + a.Name + "." + p.Public + "." + a.Subject, As: a.Subject,
	}}
}

// AdapterMessage returns the name of the adapter that a message is for, the public
// key of the account that it comes from, and its subject there, by its subject in
// the fleet's account. They are the engine's word.
func AdapterMessage(subject string) (adapter, account, original string, err error) {
	parts := strings.SplitN(subject, ".", 4)
	if len(parts) != 4 || parts[0]+"." != adapterPrefix {
		return "", "", "", fmt.Errorf("reading what a message is for: %s is of no adapter", quote(subject))
	}
	return parts[1], parts[2], parts[3], nil
}

// A Sender is who sent a message by a shared import, as the engine says it.
type Sender struct {
	// Account and Key are the public keys of the account and of the user; the key is
	// that of a session if no creds file was shown.
	Account, Key string
	// Name is the user's within the account; of a leaf link it is the link's.
	Name string
}

// ParseSender reads the content of RenewInfoHeader. It is the engine's word if the
// engine's header is told apart from what a client sent: the connection has to be
// one that broker.Broker.ConnectExact made.
func ParseSender(info string) (Sender, error) {
	var from struct {
		Account string   `json:"acc"`
		User    string   `json:"user"`
		JWT     string   `json:"jwt"`
		Tags    []string `json:"tags"`
	}
	if err := json.Unmarshal([]byte(info), &from); err != nil {
		return Sender{}, fmt.Errorf("reading who sent a message: %w", err)
	}
	s := Sender{Account: from.Account, Key: from.User, Name: from.User}
	if from.JWT != "" {
		// Whom the callout let in has a name in place of a key, and no JWT.
		s.Name = ""
		for _, tag := range from.Tags {
			if name, ok := strings.CutPrefix(tag, NameTag); ok {
				s.Name = name
			}
		}
	}
	if s.Account == "" || CheckName(s.Name) != nil {
		return Sender{}, fmt.Errorf("reading who sent a message: account %s and user %s are none", quote(s.Account), quote(s.Name))
	}
	return s, nil
}
