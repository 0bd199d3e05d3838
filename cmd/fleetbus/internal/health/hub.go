package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/hub"
)

func newHubCommand(a *command.App) *cobra.Command {
	return command.Noun("hub", "Hubs: central MQTT brokers that link nodes, in place of the mesh", newHubCheck(a))
}

func newHubCheck(a *command.App) *cobra.Command {
	var o hub.Options
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "check URL", Args: command.Takes("URL"), Annotations: command.Reads(),
		Short: "Try whether a broker can be a hub: reachability, TLS, version, permissions",
		Long: `Try whether a broker can be a hub: whether it is reached, its TLS, its version of
MQTT, the login, its limits, and a message there and back below the prefix. It
leaves nothing there. URL is mqtts://host:port, or without TLS
mqtt://host:port.`,
		Example: `  fleetbus hub check mqtts://mqtt.example.net --ca ca.pem --cert node.crt --key node.key
  fleetbus hub check mqtts://mqtt.example.net --user eu-1 --password-file password`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Servers = args
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			checks, err := hub.Probe(ctx, o, func(c hub.Check) { a.ShowCheck(c.Name, c.OK, c.Detail, c.Fix) })
			if checks == nil && err != nil {
				return hubSettings(args[0], err)
			}
			if checks == nil {
				checks = []hub.Check{}
			}
			if err := a.Show(command.Report{Value: checks, Text: func(p *command.Page) {
				if err == nil {
					p.Line("ok: %s can be a hub", args[0])
				}
			}}); err != nil {
				return err
			}
			return hubFailure(args[0], err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.CA, "ca", "", "PEM file of the authorities that may have signed the broker's certificate (default: the system's)")
	flags.StringVar(&o.Cert, "cert", "", "PEM file of a certificate that the broker knows")
	flags.StringVar(&o.Key, "key", "", "PEM file of its private key")
	flags.StringVar(&o.ServerName, "server-name", "", "name that the broker's certificate must have (default: the host of URL)")
	flags.StringVar(&o.Pin, "pin", "", "digest of the broker's public key, as this command prints it")
	flags.StringVar(&o.User, "user", "", "user that the broker knows")
	flags.StringVar(&o.PasswordFile, "password-file", "", "file with the user's password")
	flags.StringVar(&o.ClientID, "client-id", "", "MQTT client identifier (default: a new one)")
	flags.StringVar(&o.Prefix, "prefix", "", "topic below which everything is (default: fleetbus)")
	flags.StringVar(&o.Account, "account", "", "account whose topics are tried (default: none, right below the prefix)")
	flags.DurationVar(&timeout, "timeout", 30*time.Second, "how long it may take")
	return a.Output(cmd)
}

// hubSettings is the failure of a flag or of the URL.
func hubSettings(url string, err error) error {
	var wrong *hub.FieldError
	if !errors.As(err, &wrong) {
		return err
	}
	if strings.HasPrefix(wrong.Field, "servers") {
		return command.Fail(command.ExitUsage, wrong.Hint, "checking the hub: %s", wrong.Problem)
	}
	return command.Fail(command.ExitUsage, wrong.Hint, "checking the hub at %s: %s: %s", url, strings.ReplaceAll(wrong.Field, "_", "-"), wrong.Problem)
}

// hubFailure is the failure of a check.
func hubFailure(url string, err error) error {
	var e *hub.Error
	if !errors.As(err, &e) {
		return err
	}
	code := command.ExitFailed
	switch e.Step {
	case hub.StepSettings:
		code = command.ExitUsage
	case hub.StepReach:
		code = command.ExitUnavailable
	case hub.StepLogin, hub.StepSubscribe, hub.StepPublish:
		if code = command.ExitDenied; !e.Code.Failed() {
			code = command.ExitUnavailable
		}
	case hub.StepRoundTrip:
		code = command.ExitDenied
	}
	return command.Fail(code, e.Fix, "checking the hub at %s: %v", url, e)
}

func hubTable(p *command.Page, nodes []admin.NodeInfo) {
	type row struct {
		node string
		admin.Hub
	}
	var all []row
	for _, n := range nodes {
		for _, h := range n.Hubs {
			all = append(all, row{n.Name, h})
		}
	}
	if len(all) == 0 {
		return
	}
	p.Line("")
	command.Table(p, all,
		command.Col("NODE", func(r row) string { return r.node }),
		command.Col("ACCOUNT", func(r row) string { return r.Account }),
		command.Col("HUB", func(r row) string { return r.Server }),
		command.Col("STATE", func(r row) string { return strings.ReplaceAll(r.State, "_", " ") }),
		command.Col("QUEUED", func(r row) string { return fmt.Sprint(r.Queued) }),
		command.Col("SENT", func(r row) string { return fmt.Sprint(r.Sent) }),
		command.Col("RECEIVED", func(r row) string { return fmt.Sprint(r.Received) }),
		command.Col("OTHER NODES", func(r row) string { return peerWords(r.Peers) }),
	)
	linkTable(p, nodes)
}

// linkTable shows links of queues, of the nodes that have them.
func linkTable(p *command.Page, nodes []admin.NodeInfo) {
	type row struct {
		node, account string
		admin.HubLink
	}
	var all []row
	for _, n := range nodes {
		for _, h := range n.Hubs {
			for _, l := range h.Links {
				if l.State != admin.HubStandby {
					all = append(all, row{n.Name, h.Account, l})
				}
			}
		}
	}
	if len(all) == 0 {
		return
	}
	p.Line("")
	command.Table(p, all,
		command.Col("NODE", func(r row) string { return r.node }),
		command.Col("ACCOUNT", func(r row) string { return r.account }),
		command.Col("LINK", func(r row) string { return r.Name }),
		command.Col("STATE", func(r row) string {
			if r.Blocked {
				return "waits for room"
			}
			return strings.ReplaceAll(r.State, "_", " ")
		}),
		command.Col("MOVED", func(r row) string { return fmt.Sprint(r.Moved) }),
		command.Col("AGAIN", func(r row) string { return fmt.Sprint(r.Again) }),
		command.Col("REFUSED", func(r row) string { return fmt.Sprint(r.Returned + r.Refused) }),
		command.Col("ASIDE", func(r row) string { return fmt.Sprint(r.Parked) }),
		command.Col("ERROR", func(r row) string { return r.Error }),
	)
}

// checkHubs fails if a hub is not connected.
func checkHubs(nodes []admin.NodeInfo) error {
	for _, n := range nodes {
		for _, h := range n.Hubs {
			if h.State == admin.HubNotConnected {
				return command.Fail(command.ExitFailed, "fleetbus doctor", "checking the fleet: node %s does not reach the hub of account %s: %s", n.Name, h.Account, cmp.Or(h.Error, "not yet"))
			}
		}
	}
	return nil
}

// peerWords say how the other nodes on a hub stand, each by its name.
func peerWords(peers []admin.HubPeer) string {
	var words []string
	for _, p := range peers {
		words = append(words, p.Node+" "+strings.ReplaceAll(p.State, "_", " "))
	}
	return strings.Join(words, ", ")
}
