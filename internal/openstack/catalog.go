package openstack

// A service is a project of OpenStack, as others see its messages.
type service struct {
	// exchange is the control exchange; empty: the service neither calls nor is called.
	exchange string
	// topics are all that are called within the project.
	topics []string
	// parts are what runs on hosts. The first that a host's roles fit is the host's: each
	// may do all that those after it may.
	parts []part
	// reads are the topics of notifications that it reads.
	reads []string
}

// A part of a service is what of it runs on hosts of a role, with the rights of one user.
type part struct {
	on HostRole
	// all says that it has all topics of the project.
	all bool
	// serves are the topics that it is called by, each as itself, as one of its host, and
	// as one of all.
	serves []string
	// every says that what it serves is also named after more than its host, such as
	// the back ends of volumes.
	every bool
	// fansOut are the topics whose servers it tells something all at once.
	fansOut []string
	// notifies says that it sends notifications.
	notifies bool
}

// notifications is the topic of notifications, and the account that they are in.
const notifications = "notifications"

// alarms is the topic by which telemetry tells of events that alarms are about.
const alarms = "alarm.all"

// known are the services whose topics are known. Each is as the service's own sources have it.
func known() map[string]service {
	leader := part{on: Controller, all: true, notifies: true}
	return map[string]service{
		"nova": {
			exchange: "nova", topics: []string{"compute", "conductor", "scheduler"},
			parts: []part{leader, {on: Compute, serves: []string{"compute"}, fansOut: []string{"scheduler"}, notifies: true}},
		},
		"neutron": {
			exchange: "neutron", topics: append(neutronServer(), neutronNetwork()...),
			parts: []part{
				leader,
				{on: Network, serves: neutronNetwork(), notifies: true},
				{on: Compute, serves: neutronCompute()},
			},
		},
		"cinder": {
			exchange: "cinder", topics: []string{"cinder-scheduler", "cinder-volume", "cinder-backup"},
			parts: []part{leader, {on: Storage, serves: []string{"cinder-volume", "cinder-backup"}, every: true, fansOut: []string{"cinder-scheduler"}, notifies: true}},
		},
		"heat":    {exchange: "heat", topics: []string{"engine", "engine_worker", "heat-engine-listener"}, parts: []part{leader}},
		"octavia": {exchange: "octavia", topics: []string{"octavia_provisioning_v1", "octavia_provisioning_v2"}, parts: []part{leader}},
		"ironic": {
			exchange: "ironic", topics: []string{"ironic.conductor_manager"},
			parts: []part{leader, {on: Baremetal, serves: []string{"ironic.conductor_manager"}, notifies: true}},
		},
		"glance":   {parts: []part{{on: Controller, notifies: true}}},
		"keystone": {parts: []part{{on: Controller, notifies: true}}},
		"ceilometer": {
			reads: []string{notifications, alarms},
			parts: []part{{on: Controller}, {on: Compute, notifies: true}},
		},
		"aodh": {reads: []string{alarms}, parts: []part{{on: Controller}}},
	}
}

// neutronServer are the topics of neutron's server, which agents call.
func neutronServer() []string {
	return []string{"q-plugin", "q-l3-plugin", "q-reports-plugin", "q-server-resource-versions", "q-metering-plugin", "q-dhcp-notifer"}
}

// neutronCompute are the topics of the agents on hypervisors.
func neutronCompute() []string {
	all := []string{"l3_agent"} // routers may be on hypervisors
	for _, about := range []string{
		"network-update", "network-delete", "port-update", "port-delete", "port_binding-activate", "port_binding-deactivate", "subnet-update",
		"security_group-update", "tunnel-update", "tunnel-delete", "l2population-update", "dvr-update",
	} {
		all = append(all, "q-agent-notifier-"+about)
	}
	// Objects that are pushed: the topic is named after the version of each, 1.4 or 1.10,
	// which a dot parts.
	for _, object := range []string{
		"Port", "Network", "Subnet", "SecurityGroup", "SecurityGroupRule", "AddressGroup", "QosPolicy", "Trunk", "SubPort",
		"Log", "PortForwarding", "ConntrackHelper", "NDPProxy",
	} {
		all = append(all, "neutron-vo-"+object+"-1.*")
	}
	return all
}

// neutronNetwork are the topics of all agents.
func neutronNetwork() []string { return append(neutronCompute(), "dhcp_agent", "metering_agent") }
