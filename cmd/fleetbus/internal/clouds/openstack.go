//go:build !lean

package clouds

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
	"github.com/fleetbus/fleetbus/internal/openstack"
)

func verbs(a *command.App) []*cobra.Command {
	return []*cobra.Command{newPlan(a), newApply(a)}
}

// planFlags say what a deployment has.
type planFlags struct {
	r     openstack.Request
	hosts string
}

func (f *planFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.r.Services, "services", nil, "projects of the deployment, such as nova,neutron,cinder")
	flags.StringVar(&f.hosts, "hosts", "", "`file` of hosts: a line for each, with its name and then its roles ("+command.Words(openstack.HostRoles())+")")
	flags.StringSliceVar(&f.r.Servers, "amqp", nil, "host:port of the AMQP listeners, as services reach them")
	flags.BoolVar(&f.r.Passwords, "passwords", false, "services log in by a password each, and not by a certificate")
	flags.BoolVar(&f.r.Notifications, "notifications", false, "send notifications, also if none of the services reads them")
	flags.BoolVar(&f.r.Transient, "transient", false, "leave queues in memory, and not on the disks of the nodes")
	flags.StringVar(&f.r.Prefix, "prefix", "", "`text` that the names of accounts begin with, for one of several deployments or cells")
	flags.StringVar(&f.r.At, "at", "/etc/{service}/fleetbus", "`directory` in which a service has its files on its host")
	flags.StringSliceVar(&f.r.Networks, "network", nil, "networks that users may come from, such as 10.0.0.0/24 (default: any)")
	flags.StringVar(&f.r.Listener, "listener", "amqp", "`name` of the listener that users may come in by; empty: any")
}

// plan reads the hosts and plans.
func (f *planFlags) plan(cmd *cobra.Command) (openstack.Plan, error) {
	const what = "planning the deployment"
	if f.hosts == "" || len(f.r.Services) == 0 || len(f.r.Servers) == 0 {
		return openstack.Plan{}, command.Fail(command.ExitUsage, cmd.CommandPath()+" --help", "%s: --services, --hosts and --amqp are needed", what)
	}
	data, err := os.ReadFile(f.hosts)
	if err != nil {
		return openstack.Plan{}, fmt.Errorf("%s: reading the hosts: %w", what, err)
	}
	if f.r.Hosts, err = openstack.ParseHosts(f.hosts, data); err != nil {
		return openstack.Plan{}, command.Fail(command.ExitUsage, "write a host a line: its name, then its roles", "%s: reading the hosts:\n%v", what, err)
	}
	p, err := openstack.New(f.r)
	if err != nil {
		return openstack.Plan{}, command.Fail(command.ExitUsage, cmd.CommandPath()+" --help", "%s: %v", what, err)
	}
	return p, nil
}

func newPlan(a *command.App) *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use: "plan", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Say which accounts, roles and users a deployment needs",
		Long: `Say which accounts, roles, users and files the services of an OpenStack deployment
need to call each other over AMQP: an account for each project, and one for all
notifications; a role for what runs on each kind of host; a user for each service
on each host. Nothing is done, and no fleet is asked.`,
		Example: `  fleetbus openstack plan --services nova,neutron,glance,ceilometer --hosts hosts.txt --amqp 10.0.0.11:5671,10.0.0.12:5671,10.0.0.13:5671`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := f.plan(cmd)
			if err != nil {
				return err
			}
			return show(a, p, p.Steps())
		},
	}
	f.add(cmd)
	return a.Output(cmd)
}

// show prints the steps, and says on stderr what is to be known.
func show(a *command.App, p openstack.Plan, steps []openstack.Step) error {
	for _, w := range p.Warnings {
		a.Hint("warning: %s", w)
	}
	return a.Show(command.List(steps,
		command.Col("KIND", func(s openstack.Step) string { return s.Kind }),
		command.Col("NAME", func(s openstack.Step) string { return s.Name }),
		command.Col("DETAIL", detail),
		command.Col("STATE", func(s openstack.Step) string { return s.State }),
	))
}

// detail says more of a step, on a line.
func detail(s openstack.Step) string {
	if s.Kind == "role" {
		return human.Count(len(s.Publish), "subject") + " to publish, " + human.Count(len(s.Subscribe), "subject") + " to subscribe"
	}
	return strings.TrimSpace(s.Role + " " + s.Mode)
}
