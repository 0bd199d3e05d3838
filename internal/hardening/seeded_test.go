package hardening

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// A seed is one fault in a set that keeps every rule.
type seed struct {
	file     string // of the set
	old, new string // what it has, and what it has in its place
	want     string
}

// conf, and so on, are files of the sets.
const (
	rabbitConf  = "etc/rabbitmq/rabbitmq.conf"
	rabbitEnv   = "etc/rabbitmq/rabbitmq-env.conf"
	rabbitDist  = "etc/rabbitmq/inter_node_tls.config"
	definitions = "etc/rabbitmq/definitions.json"
	plugins     = "etc/rabbitmq/enabled_plugins"
	classicConf = "etc/rabbitmq/rabbitmq.config"
	brokerUnit  = "usr/lib/systemd/system/rabbitmq-server.service"
	filter      = "etc/nftables.conf"
	qpidConf    = "etc/qpid/qpidd.conf"
	qpidACL     = "etc/qpid/qpidd.acl"
	qpidSASL    = "etc/sasl2/qpidd.conf"
	novaConf    = "cmp1/etc/nova/nova.conf"
	otherConf   = "ctl1/etc/neutron/neutron.conf"
	allLines    = "\x00" // in place of what a file has
)

func rabbitSeeds() []seed {
	return []seed{
		{rabbitConf, "listeners.tcp = none", "listeners.tcp.default = 5672", "1:fail"},
		{rabbitConf, "listeners.tcp = none", "listeners.tcp.1 = 10.20.0.11:5672", "1:fail"},
		{rabbitConf, "listeners.tcp = none", "listeners.tcp.1 = :::5672", "1:fail"},
		{rabbitConf, "listeners.tcp = none", "", "1:fail"},
		{rabbitConf, "listeners.tcp = none", "# listeners.tcp = none", "1:fail"},
		{rabbitConf, "listeners.tcp = none", "LISTENERS.TCP = none", "1:fail F2:warn"},
		{rabbitConf, "listeners.tcp = none", "listeners.tcp = NONE", ""},
		{rabbitConf, "listeners.tcp = none", "  listeners.tcp=none   # no clear text", ""},
		{rabbitConf, "listeners.tcp = none", "listeners.tcp.local = 127.0.0.1:5672", ""},
		{rabbitConf, "listeners.tcp = none", "listeners.tcp.local_v6 = ::1:5672", ""},
		{rabbitConf, "listeners.ssl.1 = 10.20.0.11:5671", "listeners.ssl.default = 5671", "2:fail"},
		{rabbitConf, "listeners.ssl.1 = 10.20.0.11:5671", "listeners.ssl.1 = 0.0.0.0:5671", "2:fail"},
		{rabbitConf, "listeners.ssl.1 = 10.20.0.11:5671", "listeners.ssl.1 = :::5671", "2:fail"},
		{rabbitConf, "listeners.ssl.1 = 10.20.0.11:5671", "listeners.ssl.1 = 172.16.9.9:5671", "2:fail"},
		{rabbitConf, "ssl_options.verify               = verify_peer", "ssl_options.verify = verify_none", "3:fail"},
		{rabbitConf, "ssl_options.verify               = verify_peer", "", "3:fail"},
		{rabbitConf, "ssl_options.verify               = verify_peer", "ssl_options.verfiy = verify_peer", "3:fail F2:warn"},
		{rabbitConf, "ssl_options.verify               = verify_peer", "ssl_options.verify = verify_peer\nssl_options.verify = verify_none", "3:fail"},
		{rabbitConf, "ssl_options.verify               = verify_peer", "ssl_options.verify = verify_none\nssl_options.verify = verify_peer", ""},
		{rabbitConf, "ssl_options.fail_if_no_peer_cert = true", "ssl_options.fail_if_no_peer_cert = false", "3:fail"},
		{rabbitConf, "ssl_options.fail_if_no_peer_cert = true", "#ssl_options.fail_if_no_peer_cert = true", "3:fail"},
		{rabbitConf, "ssl_options.cacertfile           = /etc/rabbitmq/tls/ca.pem", "ssl_options.cacertfile = /etc/ssl/certs/ca-certificates.crt", "4:fail"},
		{rabbitConf, "ssl_options.cacertfile           = /etc/rabbitmq/tls/ca.pem", "", "4:fail"},
		{"etc/rabbitmq/tls/ca.pem", allLines, "many", "4:fail"},
		{"etc/rabbitmq/tls/ca.pem", allLines, "mixed", "4:fail"},
		{"etc/rabbitmq/tls/ca.pem", allLines, "public", "4:fail"},
		{"etc/rabbitmq/tls/ca.pem", allLines, "-> /etc/pki/tls/certs/ca-bundle.crt", "4:fail"},
		{"etc/rabbitmq/tls/broker.key", allLines, "0640", "5:fail"},
		{"etc/rabbitmq/tls/broker.key", allLines, "0644", "5:fail"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "0644", "5:warn"},
		{rabbitConf, "tlsv1.2", "tlsv1.1", "6:fail"},
		{rabbitConf, "ssl_options.versions.1           = tlsv1.3\nssl_options.versions.2           = tlsv1.2\n", "", "6:fail"},
		{rabbitConf, "ssl_options.versions.2           = tlsv1.2", "ssl_options.versions.2 = tlsv1.2\nssl_options.versions.3 = tlsv1", "6:fail"},
		{rabbitConf, "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-RC4-SHA", "6:fail"},
		{rabbitConf, "ECDHE-ECDSA-AES256-GCM-SHA384", "DES-CBC3-SHA", "6:fail"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "elsewhere", ""},
		{"etc/rabbitmq/tls/broker.pem", allLines, "misplaced", "6:warn"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "nameless", "6:fail"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "service", "6:fail"},
		{rabbitEnv, "-proto_dist inet_tls \\\n", "\\\n", "7:fail"},
		{rabbitEnv, "-proto_dist inet_tls", "-setcookie QWERTYUIOPASDFGHJKLZ -proto_dist inet_tls", "7:fail"},
		{rabbitDist, "{fail_if_no_peer_cert, true}", "{fail_if_no_peer_cert, false}", "7:fail"},
		{rabbitDist, "verify_peer}\n ]}\n].", "verify_none}\n ]}\n].", "7:fail"},
		{"var/lib/rabbitmq/.erlang.cookie", allLines, "0600", "7:warn"},
		{"var/lib/rabbitmq/.erlang.cookie", allLines, "0444", "7:fail"},
		{"var/lib/rabbitmq/.erlang.cookie", "VJHQKPXWNCTRZLDBMEFG", "secret", "7:fail"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "soon", "9:warn"},
		{"etc/rabbitmq/tls/broker.pem", allLines, "ended", "9:fail"},
		{rabbitConf, "load_definitions = /etc/rabbitmq/definitions.json", "default_user = guest\ndefault_pass = guest", "11:fail"},
		{definitions, `"users": [`, `"users": [{"name": "guest", "password_hash": "", "tags": ["administrator"]},`, "11:fail"},
		{rabbitConf, "anonymous_login_user = none", "anonymous_login_user = guest", "11:fail"},
		{rabbitConf, "# auth_mechanisms.2 = PLAIN", "auth_mechanisms.2 = PLAIN", "13:warn"},
		{rabbitConf, "auth_mechanisms.1   = EXTERNAL", "auth_mechanisms.1 = ANONYMOUS", "13:fail 13:warn"},
		{rabbitConf, "auth_mechanisms.1   = EXTERNAL", "", "13:warn"},
		{rabbitConf, "heartbeat = 60", "default_user = ops\ndefault_pass = RABBIT_PASS", "14:fail"},
		{rabbitConf, "heartbeat = 60", "default_user = ops\ndefault_pass = short12", "14:fail"},
		{definitions, "3x7C0WnQeGm7Xk0X2m4XDQpTq3YkR2Wy5o1d7lq8a2u3N1hz", "AAAAAMbhKZQbMzAHpoD+UQRaQFlHM1aCUYbV4lmEMFT0hxsr", ""},
		{definitions, `"password_hash": "3x7C0WnQeGm7Xk0X2m4XDQpTq3YkR2Wy5o1d7lq8a2u3N1hz"`, `"password": "Welcome"`, "14:fail"},
		{definitions, `"write": "^$"`, `"write": ".*"`, "15:fail"},
		{definitions, `"read": "^$"}`, `"read": "^.*$"}`, "15:fail"},
		{definitions, `"read": "^(nova|compute.*|reply_.*)$"}`, `"read": "^(nova|conductor|compute.*|reply_.*)$"}`, "16:fail"},
		{definitions, `"policies": [`, `"policies": [], "x": [`, "19:warn"},
		{rabbitConf, "log.connection.level = info", "log.connection.level = none", "20:fail"},
		{rabbitConf, "log.connection.level = info", "log.connection.level = error", "20:fail"},
		{filter, "5671, 25672, 4369 } ip saddr 10.20.0.0/24 accept", "5671 } accept", "21:fail"},
		{filter, "policy drop;", "policy accept;", "21:fail"},
		{filter, "{ 5671, 25672, 4369 } ip", "{ 5671, 5672 } ip", "21:warn"},
		{filter, "policy drop;", "policy accept;\n\t\ttcp dport 5671 ip saddr != 10.20.0.0/24 drop", ""},
		{filter, "priority 0; policy drop;", "priority 0;\n\t\tpolicy drop;", ""},
		{rabbitConf, "heartbeat = 60", "verify = verify_peer", "F2:warn"},
		{rabbitConf, "heartbeat = 60", "ssl_option.verify = verify_peer", "F2:warn"},
		{brokerUnit, "User=rabbitmq", "User=root", "23:fail"},
		{brokerUnit, "NoNewPrivileges=true\n", "", "23:warn"},
		{brokerUnit, "ProtectSystem=strict", "ProtectSystem=no", "23:fail"},
		{brokerUnit, "CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_KILL", "23:fail"},
		{"etc/selinux/config", "SELINUX=enforcing", "SELINUX=permissive", "24:fail"},
		{rabbitConf, allLines, "0666", "24:fail"},
		{rabbitConf, "management.ssl.port       = 15671", "management.tcp.port = 15672", "25:fail"},
		{rabbitConf, "management.ssl.port       = 15671", "", "25:fail"},
		{rabbitConf, "prometheus.tcp.ip   = 127.0.0.1", "", "25:fail"},
		{rabbitConf, "prometheus.tcp.ip   = 127.0.0.1", "prometheus.tcp.ip = 0.0.0.0", "25:fail"},
		{rabbitConf, "channel_max = 2047", "channel_max = 0", "26:warn"},
		{rabbitConf, "heartbeat = 60", "heartbeat = 0", "26:warn"},
		{rabbitConf, "handshake_timeout = 10000", "handshake_timeout = infinity", "26:warn"},
		{rabbitConf, "loopback_users.guest = true", "loopback_users = none", "V1:fail"},
		{rabbitConf, "loopback_users.guest = true", "loopback_users.guest = false", "V1:fail"},
		{rabbitConf, "honor_cipher_order   = true", "honor_cipher_order = false", "V2:warn"},
		{rabbitConf, "client_renegotiation = false", "client_renegotiation = true", "V2:warn"},
		{rabbitConf, "ssl_options.depth                = 1", "ssl_options.depth = 100", "V2:warn"},
		{rabbitConf, "vm_memory_high_watermark.relative = 0.6", "vm_memory_high_watermark.relative = 0.99", "V3:warn"},
		{rabbitConf, "disk_free_limit.relative = 1.5", "disk_free_limit.absolute = 50MB", "V3:warn"},
		{rabbitConf, "consumer_timeout = 1800000", "consumer_timeout = 0", "V3:warn"},
		{rabbitConf, "cluster_partition_handling = pause_minority", "cluster_partition_handling = ignore", "V4:warn"},
		{rabbitConf, "cluster_partition_handling = pause_minority", "", "V4:warn"},
		{plugins, "rabbitmq_management,", "rabbitmq_management,rabbitmq_mqtt,", "V5:fail V5:warn"},
		{plugins, "rabbitmq_management,", "rabbitmq_management,rabbitmq_stomp,", "V5:fail"},
		{rabbitConf, "heartbeat = 60", "heartbeat = 60\nmqtt.listeners.tcp.default = 1883", ""},
		{rabbitConf, "rabbit_password_hashing_sha512", "rabbit_password_hashing_md5", "V6:fail"},
		{definitions, `rabbit_password_hashing_sha256`, "rabbit_password_hashing_md5", "V6:fail"},
		{definitions, allLines, "0644", "V7:fail"},
		{rabbitConf, "log.default.level = info", "log.default.level = debug", "V8:warn"},
		{plugins, ",rabbitmq_auth_mechanism_ssl", "", "V9:warn"},
		{classicConf, allLines, "[{rabbit, [{tcp_listeners, [5672]}, {cluster_nodes, {[a@b], disc}}]}].", "1:fail 13:warn 25:fail V4:warn V9:warn"},
	}
}

func classicSeeds() []seed {
	return []seed{
		{classicConf, "{tcp_listeners, []}", "{tcp_listeners, [5672]}", "1:fail"},
		{classicConf, "{tcp_listeners, []}", `{tcp_listeners, [{"127.0.0.1", 5672}, {"::1", 5672}]}`, ""},
		{classicConf, "{tcp_listeners, []},", "%% {tcp_listeners, []},", "1:fail"},
		{classicConf, `[{"10.20.0.11", 5671}]`, "[5671]", "2:fail"},
		{classicConf, `[{"10.20.0.11", 5671}]`, `[{"::", 5671}]`, "2:fail"},
		{classicConf, "{verify, verify_peer}", "{verify, verify_none}", "3:fail"},
		{classicConf, "{fail_if_no_peer_cert, true}", "{fail_if_no_peer_cert,false}", "3:fail"},
		{classicConf, "{verify, verify_peer}", "{verfiy, verify_peer}", "3:fail F2:warn"},
		{classicConf, "                  {versions, ['tlsv1.2', 'tlsv1.3']},", "{versions, ['tlsv1.2', 'tlsv1.1', tlsv1]},", "6:fail"},
		{classicConf, `<<"ops">>`, `<<"guest">>`, "11:fail"},
		{classicConf, `<<"b6d1f0c9a3e84f27b5">>`, `<<"guest">>`, "11:fail"},
		{classicConf, `<<"b6d1f0c9a3e84f27b5">>`, `<<"openstack">>`, "14:fail"},
		{classicConf, "['EXTERNAL']", "['PLAIN', 'AMQPLAIN', 'EXTERNAL']", "13:warn"},
		{classicConf, `[<<"^$">>, <<"^$">>, <<"^$">>]`, `[<<".*">>, <<".*">>, <<".*">>]`, "15:fail"},
		{classicConf, `[<<"guest">>]`, "[]", "V1:fail"},
		{classicConf, "{connection, info}", "{connection, error}", "20:fail"},
		{classicConf, "{port, 15671}, {ssl, true}", "{port, 15672}", "25:fail"},
		{classicConf, "{vm_memory_high_watermark, 0.6}", "{vm_memory_high_watermark, 0.95}", "V3:warn"},
		{classicConf, "{channel_max, 2047}", "{cluster_nodes, {['rabbit@a', 'rabbit@b'], disc}}", "7:fail V4:warn"},
		{classicConf, "{rabbit, [", "{rabit, [", "1:fail 13:warn F2:warn"},
		{classicConf, allLines, "0644", "14:fail"},
	}
}

func qpidSeeds() []seed {
	return []seed{
		{qpidConf, "require-encryption=yes", "require-encryption=no", "1:fail"},
		{qpidConf, "require-encryption=yes", "", "1:fail"},
		{qpidConf, "require-encryption=yes", "require-encryption = TRUE", ""},
		{qpidConf, "require-encryption=yes", "require-encryption=0", "1:fail"},
		{qpidConf, "require-encryption=yes", "require-encription=yes", "1:fail F2:warn"},
		{qpidConf, "ssl-cert-db=/etc/qpid/nss\n", "", "1:fail"},
		{qpidConf, "interface=10.20.0.11", "", "2:fail"},
		{qpidConf, "interface=10.20.0.11", "interface=0.0.0.0", "2:fail"},
		{qpidConf, "interface=10.20.0.11", "interface=[::]", "2:fail"},
		{qpidConf, "ssl-require-client-authentication=yes", "ssl-require-client-authentication=no", "3:fail"},
		{qpidConf, "ssl-require-client-authentication=yes", "", "3:fail"},
		{"etc/qpid/nss/password", allLines, "0644", "5:fail"},
		{"etc/qpid/nss/key4.db", allLines, "0640", "5:fail"},
		{qpidConf, "log-to-syslog=yes", "ssl-use-export-policy=yes", "6:fail"},
		{qpidConf, "amqp:ssl:ctl1.example.net:5671,ssl:ctl2", "ctl1.example.net:5672,ctl2", "7:fail"},
		{qpidConf, "ha-username=ha\n", "", "7:fail"},
		{qpidConf, "ha-mechanism=PLAIN", "ha-mechanism=ANONYMOUS", "7:fail"},
		{"var/lib/qpidd/qpidd.sasldb", "ha QPID", "guest QPID userPassword ha QPID", "11:fail"},
		{qpidSASL, "mech_list: EXTERNAL", "mech_list: ANONYMOUS EXTERNAL", "13:fail"},
		{qpidSASL, "mech_list: EXTERNAL", "mech_list: PLAIN DIGEST-MD5 EXTERNAL", "13:warn"},
		{qpidSASL, "mech_list: EXTERNAL", "# mech_list: EXTERNAL", "13:fail"},
		{"var/lib/qpidd/qpidd.sasldb", allLines, "0644", "14:fail"},
		{qpidConf, "ha-password=f0b5c2c1d0a94be28f", "ha-password=QPID_PASS", "14:fail"},
		{"etc/qpid/nss/password", "a0c4be9e1f6d43c29c", "password", "14:fail"},
		{qpidACL, "acl allow nova-computes consume queue name=compute*", "acl allow nova-computes all all", "15:fail 16:fail"},
		{qpidACL, "acl allow nova-computes consume queue name=compute*", "acl allow nova-computes consume queue", "16:fail"},
		{qpidConf, "auth=yes", "auth=no", "18:fail"},
		{qpidConf, "auth=yes", "auth=0", "18:fail"},
		{qpidConf, "acl-file=/etc/qpid/qpidd.acl", "#acl-file=/etc/qpid/qpidd.acl", "18:fail"},
		{qpidACL, "acl deny-log all all", "acl allow all all", "18:fail"},
		{qpidACL, "acl deny-log all all", "", "18:fail"},
		{qpidACL, "acl deny-log all all", "acl deny all all", ""},
		{qpidACL, "acl allow admins all all", "acl allow all all", "18:fail 18:warn"},
		{qpidACL, "acl allow admins all all", "acl allow guest@QPID consume queue name=x", "11:fail"},
		{qpidConf, "log-enable=info+", "log-enable=error+", "20:fail"},
		{qpidConf, "log-enable=info+", "log-enable=trace+", "V8:warn"},
		{"etc/iptables/rules.v4", "-A INPUT -s 10.20.0.0/24 -p", "-A INPUT -p", "21:fail"},
		{"etc/iptables/rules.v4", ":INPUT DROP", ":INPUT ACCEPT", "21:fail"},
		{"etc/systemd/system/qpidd.service.d/hardening.conf", "PrivateTmp=yes\n", "", "23:warn"},
		{qpidConf, "max-connections=500", "max-connections=0", "26:warn"},
		{qpidConf, "ssl-sasl-no-dict=yes", "ssl-sasl-no-dict=off", "V2:warn"},
	}
}

func openstackSeeds() []seed {
	const url = "rabbit://10.20.0.11:5671,10.20.0.12:5671/nova"
	return []seed{
		{novaConf, "ssl = true", "ssl = false", "1:fail 27:warn"},
		{novaConf, "ssl = true", "", "1:fail 27:warn"},
		{novaConf, "ssl = true", "rabbit_use_ssl = True", ""},
		{novaConf, "ssl = true", "ssl = 1", ""},
		{novaConf, url, url + "?ssl=0", "1:fail 27:warn"},
		{novaConf, "ssl_ca_file = /etc/nova/tls/ca.pem", "", "4:fail"},
		{novaConf, "ssl_ca_file = /etc/nova/tls/ca.pem", "kombu_ssl_ca_certs = /etc/nova/tls/ca.pem", ""},
		{novaConf, "ssl_ca_file = /etc/nova/tls/ca.pem", "ssl_ca_file = /etc/pki/tls/certs/ca-bundle.crt", "4:fail"},
		{"cmp1/etc/nova/tls/ca.pem", allLines, "many", "4:fail 27:warn"},
		{"cmp1/etc/nova/tls/ca.pem", allLines, "otherca", "27:warn"},
		{"cmp1/etc/nova/tls/service.key", allLines, "0644", "5:fail"},
		{novaConf, "rabbit_quorum_queue = true", "ssl_version = TLSv1", "6:fail"},
		{novaConf, "rabbit_quorum_queue = true", "kombu_ssl_version = SSLv23", "6:fail"},
		{novaConf, "ssl_enforce_hostname_verification = true", "ssl_enforce_hostname_verification = false", "8:fail"},
		{novaConf, "ssl_enforce_hostname_verification = true", "", "8:fail"},
		{novaConf, "ssl_enforce_hostname_verification = true", "ssl_enforce_hostname_verifcation = true", "8:fail F2:warn"},
		{"cmp1/etc/nova/tls/service.pem", allLines, "soon", "9:warn"},
		{novaConf, "transport_url = " + url, "transport_url = rabbit://guest:guest@10.20.0.11:5671,guest:guest@10.20.0.12:5671/nova", "11:fail 13:warn 14:fail"},
		{otherConf, "rabbit://10.20.0.11:5671,10.20.0.12:5671/neutron", "rabbit://u1:f00fc7c88d5e9a1b22@10.20.0.11:5671/neutron", "13:warn"},
		{novaConf, "rabbit_login_method = EXTERNAL", "rabbit_login_method = PLAIN", "13:warn 14:fail"},
		{novaConf, "rabbit_login_method = EXTERNAL", "", "13:warn 14:fail"},
		{novaConf, "ssl_cert_file = /etc/nova/tls/service.pem", "", "13:fail"},
		{novaConf, "transport_url = " + url, "transport_url = rabbit://cmp1:RABBIT_PASS@10.20.0.11:5671,cmp1:RABBIT_PASS@10.20.0.12:5671/nova", "13:warn 14:fail"},
		{novaConf, "transport_url = " + url, "transport_url = rabbit://cmp1:c0ffee11c0ffee22@10.20.0.11:5671,cmp2:c0ffee11c0ffee22@10.20.0.12:5671/nova", "13:warn 14:fail 27:warn"},
		{novaConf, "rabbit_transient_queues_ttl = 1800", "rabbit_transient_queues_ttl = 0", "19:warn"},
		{novaConf, url, "rabbit://10.20.0.11:5672,10.20.0.12:5671/nova", "27:fail 27:warn"},
		{novaConf, url, "rabbit://10.20.0.11,10.20.0.12:5671/nova", "27:fail 27:warn"},
		{novaConf, url, "rabbit://10.20.0.11:5671/nova", "27:warn"},
		{novaConf, "[oslo_messaging_rabbit]", "[oslo_messaging_rabit]", "1:fail 14:fail 27:warn F2:warn"},
		{novaConf, "control_exchange = nova", "ssl_enforce_hostname_verification = false", "F2:warn"},
		{"cmp1/usr/lib/systemd/system/nova-compute.service", "User=nova", "", "23:fail"},
		{novaConf, allLines, "0666", "24:fail"},
	}
}

// TestSeeded puts one fault each into sets that keep every rule, and expects that rule.
func TestSeeded(t *testing.T) {
	made := pems(t)
	n := 0
	for _, of := range []struct {
		set   string
		kind  Kind
		seeds []seed
	}{{"rabbitmq.txtar", RabbitMQ, rabbitSeeds()}, {"classic.txtar", RabbitMQ, classicSeeds()}, {"qpid.txtar", Qpid, qpidSeeds()}, {"openstack.txtar", OpenStack, openstackSeeds()}} {
		for _, c := range of.seeds {
			n++
			s := load(t, of.set, made)
			old, there := s.files[c.file]
			switch data, isPEM := made[c.new]; {
			case c.old != allLines:
				if !strings.Contains(old, c.old) {
					t.Errorf("%s has no %q", c.file, c.old)
				}
				s.files[c.file] = strings.Replace(old, c.old, c.new, 1)
			case isPEM:
				s.files[c.file] = string(data)
			case there && len(c.new) == 4 && c.new[0] == '0':
				s.modes[c.file] = modeOf(c.new)
			default:
				s.files[c.file], s.modes[c.file] = c.new, 0o640
			}
			r := audited(t, of.kind, s, Options{Networks: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24")}})
			want := strings.Fields(c.want)
			got := verdicts(r)
			for _, w := range want {
				if !strings.Contains(" "+got+" ", " "+w+" ") {
					t.Errorf("%s: %q in place of %q: %s is missing in %q", c.file, c.new, c.old, w, got)
				}
			}
			if len(strings.Fields(got)) != len(want) {
				t.Errorf("%s: %q in place of %q: %q, want %q", c.file, c.new, c.old, got, c.want)
				show(t, r)
			}
		}
	}
	t.Logf("%d faults", n)
}

func modeOf(text string) os.FileMode {
	var n os.FileMode
	for _, c := range text {
		n = n*8 + os.FileMode(c-'0')
	}
	return n
}
