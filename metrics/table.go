package metrics

import "slices"

// Families is the table of all families. The caller owns the result.
//
// What is bounded: an account's label is one of the first 200 accounts by name, a
// stream's of the first 500 of a node, a consumer's of the first 50 of its stream and of
// the first 1000 of a node; the others are summed up as Other, and fleetbus_metrics_folded
// says how many they are. A stream and its consumers are told of by the node that leads
// the stream.
func Families() []Family {
	return slices.Concat(nodeFamilies(), trafficFamilies(), linkFamilies(), streamFamilies(), queueFamilies(), certificateFamilies(), sourceFamilies())
}

func nodeFamilies() []Family {
	return []Family{
		{"fleetbus_build_info", "The program, as it was built; always 1.", Gauge, []string{"version", "revision", "goversion"}},
		{"fleetbus_node_info", "The node and its place; always 1.", Gauge, []string{"node", "cluster", "role"}},
		{"fleetbus_start_time_seconds", "When the node's listeners opened, since the epoch.", Gauge, nil},
		{"fleetbus_ready", "Whether a condition of readiness holds: 1, or 0.", Gauge, []string{"condition"}},
		{"fleetbus_findings", "What the node finds wrong with itself, by severity.", Gauge, []string{"severity"}},
		{"fleetbus_ledger_sequence", "The last event of the fleet's ledger that the node has applied.", Gauge, nil},
		{"fleetbus_ledger_stale", "Whether the node serves from its snapshot, because it has not caught up with the fleet: 1, or 0.", Gauge, nil},
		{"fleetbus_meta_leader", "Whether the node leads the group that agrees on streams: 1, or 0.", Gauge, nil},
		{"fleetbus_meta_leader_known", "Whether the node knows a leader of that group: 1, or 0, and then nothing durable can change.", Gauge, nil},
		{"fleetbus_meta_leader_changes_total", "How often the node saw another leader of that group than before.", Counter, nil},
		{"fleetbus_store_free_bytes", "What is free: of the disk of the data directory (disk), of what streams may have on it (file) and in memory (memory).", Gauge, []string{"kind"}},
		{"fleetbus_store_limit_bytes", "What streams may have on disk (file) and in memory (memory), and what of the disk is to stay free (reserve).", Gauge, []string{"kind"}},
		{"fleetbus_store_held", "Whether the node stores nothing more because its disk is short: 1, or 0.", Gauge, nil},
		{"fleetbus_node_certificate_not_after_timestamp_seconds", "When the first of the node's own certificates ends, since the epoch.", Gauge, nil},
		{"fleetbus_config_last_reload_successful", "Whether the last reload of the configuration took effect: 1, or 0.", Gauge, nil},
		{"fleetbus_config_last_reload_success_timestamp_seconds", "When the configuration was last loaded, since the epoch.", Gauge, nil},
		{"fleetbus_metrics_folded", "How many accounts, streams and consumers are summed up as other.", Gauge, []string{"kind"}},
		{"fleetbus_metrics_gather_seconds", "How long it took to gather what is told here.", Gauge, nil},
		{"fleetbus_process_goroutines", "Goroutines of the process.", Gauge, nil},
		{"fleetbus_process_cpu_seconds_total", "Time that the process had of processors.", Counter, nil},
		{"fleetbus_process_resident_memory_bytes", "Memory of the process.", Gauge, nil},
		{"fleetbus_process_open_fds", "Files and sockets that the process has open.", Gauge, nil},
		{"fleetbus_process_max_fds", "How many it may have open.", Gauge, nil},
		{"fleetbus_services_failed", "Services inside the node that fail and are tried again.", Gauge, nil},
	}
}

func trafficFamilies() []Family {
	account, both := []string{"account"}, []string{"listener", "account"}
	kind := []string{"account", "kind"}
	return []Family{
		{"fleetbus_connections", "Clients that are connected, by the listener that they came in by.", Gauge, both},
		{"fleetbus_connections_opened_total", "Clients that were let in.", Counter, both},
		{"fleetbus_connections_closed_total", "Clients whose connection ended, by reason.", Counter, []string{"listener", "account", "reason"}},
		{"fleetbus_auth_failures_total", "Clients that were not let in, by reason; what they claim to be is not told apart.", Counter, []string{"listener", "reason"}},
		{"fleetbus_messages_received_total", "Messages that came in from clients (kind client) and sites (kind leaf), not from nodes.", Counter, kind},
		{"fleetbus_messages_sent_total", "Messages that went out to clients and sites.", Counter, kind},
		{"fleetbus_message_received_bytes_total", "Bytes of the messages that came in from clients and sites.", Counter, kind},
		{"fleetbus_message_sent_bytes_total", "Bytes of the messages that went out to clients and sites.", Counter, kind},
		{"fleetbus_messages_dropped_total", "Messages that were not delivered although they came in, by reason.", Counter, []string{"listener", "reason"}},
		{"fleetbus_signed_messages_total", "Signed messages that this node verified: accepted, or refused by reason.", Counter, []string{"result"}},
		{"fleetbus_slow_consumers_total", "Clients that were cut off because they did not read.", Counter, both},
		{"fleetbus_denials_total", "Denials and removals that closed connections here.", Counter, account},
		{"fleetbus_events_dropped_total", "Events of fleetbus events that the node could not tell of.", Counter, nil},
	}
}

func linkFamilies() []Family {
	link := []string{"peer", "kind"}
	return []Family{
		{"fleetbus_link_up", "Whether the link is up: 1, or 0. To a node, whether it answers over the bus.", Gauge, link},
		{"fleetbus_link_rtt_seconds", "The last measured way there and back.", Gauge, link},
		{"fleetbus_link_pending_bytes", "What waits to be sent.", Gauge, link},
		{"fleetbus_link_reconnects_total", "How often the link came up.", Counter, link},
		{"fleetbus_clock_skew_seconds", "The clock of another node less this one's, as good as half of the way there and back.", Gauge, []string{"peer"}},
		{"fleetbus_nodes", "Nodes of the fleet, those that are down among them.", Gauge, nil},
		{"fleetbus_nodes_answering", "Nodes that answer, this one among them.", Gauge, nil},
	}
}

func streamFamilies() []Family {
	stream, consumer := []string{"account", "stream"}, []string{"account", "stream", "consumer"}
	return []Family{
		{"fleetbus_stream_messages", "Messages that the stream has.", Gauge, stream},
		{"fleetbus_stream_bytes", "Bytes that the stream has.", Gauge, stream},
		{"fleetbus_stream_consumers", "Consumers that the stream has.", Gauge, stream},
		{"fleetbus_stream_replica_lag_messages", "Entries that a copy lacks.", Gauge, []string{"account", "stream", "peer"}},
		{"fleetbus_stream_replica_current", "Whether a copy has all entries and was heard lately: 1, or 0.", Gauge, []string{"account", "stream", "peer"}},
		{"fleetbus_consumer_pending_messages", "Messages that wait for the consumer.", Gauge, consumer},
		{"fleetbus_consumer_ack_pending_messages", "Messages that the consumer got and did not acknowledge yet.", Gauge, consumer},
		{"fleetbus_consumer_redelivered", "Messages that the consumer got more than once and has not acknowledged yet.", Gauge, consumer},
	}
}

// queueFamilies are of AMQP's accounts, of which the node tells that has them.
func queueFamilies() []Family {
	account := []string{"account"}
	return []Family{
		{"fleetbus_amqp_queues", "Queues of an account, durable or not.", Gauge, []string{"account", "durable"}},
		{"fleetbus_amqp_messages", "Messages in the account's queues, by state: ready, or unacknowledged by who has them.", Gauge, []string{"account", "state"}},
		{"fleetbus_amqp_consumers", "Consumers of the account's queues.", Gauge, account},
		{"fleetbus_amqp_connections", "AMQP clients of the account, at whatever node they are connected.", Gauge, account},
		{"fleetbus_amqp_idle_queues", "Queues with messages and no consumer.", Gauge, account},
		{"fleetbus_amqp_memory_bytes", "Messages that are in the node's memory.", Gauge, nil},
		{"fleetbus_amqp_memory_limit_bytes", "How many may be before publishers are blocked.", Gauge, nil},
		{"fleetbus_amqp_blocked", "Whether publishers are blocked on the node: 1, or 0.", Gauge, nil},
	}
}

func certificateFamilies() []Family {
	cert := []string{"id", "group", "name"}
	return []Family{
		{"fleetbus_certificate_not_after_timestamp_seconds", "When the latest generation of a certificate ends.", Gauge, cert},
		{"fleetbus_certificate_renews_timestamp_seconds", "When a certificate is to be renewed, or tried again.", Gauge, cert},
		{"fleetbus_certificate_failed_attempts", "Attempts to obtain a certificate that failed in a row.", Gauge, cert},
		{"fleetbus_certificate_targets", "Targets of a certificate, by what they were seen serving.", Gauge, []string{"id", "group", "name", "state"}},
		{"fleetbus_certificate_findings", "What is wrong, by its code.", Gauge, []string{"code"}},
	}
}

func sourceFamilies() []Family {
	source := []string{"account", "source"}
	return []Family{
		{"fleetbus_source_up", "Whether the source is run, by this node, without a failure: 1, or 0.", Gauge, source},
		{"fleetbus_source_changes_total", "Changes that were announced since this node runs the source.", Counter, source},
		{"fleetbus_source_refused_total", "Changes whose keys looked like secrets, and were not announced.", Counter, source},
		{"fleetbus_source_lag_seconds", "How long after its commit the last change was announced.", Gauge, source},
		{"fleetbus_source_seen_timestamp_seconds", "When the database was last heard of, since the epoch.", Gauge, source},
		{"fleetbus_source_retained_bytes", "What the database keeps for the source.", Gauge, source},
	}
}
