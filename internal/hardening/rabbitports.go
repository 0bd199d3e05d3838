package hardening

import (
	"cmp"
	"strconv"
	"strings"
)

// A web listener of RabbitMQ is one of its plug-ins that speaks HTTP.
type web struct {
	plugin, name string
	port         string
	// tcp and ssl are where its settings are.
	tcp, ssl []string
	login    bool // it asks for a user and a password
}

// rabbitManagement judges rule 25.
func (a *audit) rabbitManagement(n *node) {
	for _, w := range []web{
		{"rabbitmq_management", "management", "15672", []string{"management.tcp", "management.listener"}, []string{"management.ssl"}, true},
		{"rabbitmq_prometheus", "prometheus", "15692", []string{"prometheus.tcp"}, []string{"prometheus.ssl"}, false},
	} {
		enabled, known := n.has(w.plugin)
		set := n.below(w.name)
		switch {
		case known && !enabled:
			if len(set) > 0 {
				a.add("25", Pass, set[0].at, "", "%s has settings, and the plug-in is not enabled", w.name)
			} else {
				a.add("25", Pass, in(n.plugins), "", "%s is not enabled", w.plugin)
			}
			continue
		case !known && len(set) == 0:
			continue
		}
		a.web(n, w, enabled)
	}
	for _, key := range []string{"kernel.inet_dist_use_interface", "distribution.listener.interface"} {
		if v, ok := n.get(key); ok && !everywhere(strings.NewReplacer("{", "", "}", "", ", ", ".").Replace(v.value)) {
			a.add("25", Pass, v.at, "", "brokers listen for one another at one address")
		}
	}
	if v, ok := n.variables.get("ERL_EPMD_ADDRESS"); ok && everywhere(v.value) {
		a.warn("25", v.at, "ERL_EPMD_ADDRESS=127.0.0.1, or that of the network between brokers", "epmd listens on all interfaces")
	}
}

// web judges one listener of HTTP.
func (a *audit) web(n *node, w web, enabled bool) {
	fix := w.name + ".tcp.ip = 127.0.0.1, or " + w.name + ".ssl.port with a certificate"
	plain, tls := []setting{}, []setting{}
	classic := n.is(w.name+".listener.ssl", "true")
	for _, prefix := range w.tcp {
		for _, key := range []string{"port", "ip"} {
			if v, ok := n.get(prefix + "." + key); ok {
				if classic && strings.HasSuffix(prefix, ".listener") {
					tls = append(tls, v)
				} else {
					plain = append(plain, v)
				}
			}
		}
		if n.is(prefix+".listener", "none") {
			return
		}
	}
	for _, prefix := range w.ssl {
		if v, ok := n.get(prefix + ".port"); ok {
			tls = append(tls, v)
		}
	}
	if len(plain) == 0 && len(tls) == 0 {
		if !enabled {
			a.unknown("25", in(n.main), "give enabled_plugins", "whether %s is enabled is not known; if it is, it speaks without TLS on port %s of all interfaces", w.plugin, w.port)
			return
		}
		a.fail("25", in(cmp.Or(n.plugins, n.main)), fix, "%s is enabled and has no listener set: it speaks without TLS on port %s of all interfaces by default", w.plugin, w.port)
		return
	}
	if len(plain) > 0 {
		host, at := "", plain[0].at
		for _, prefix := range w.tcp {
			if v, ok := n.get(prefix + ".ip"); ok {
				host, at = v.value, v.at
			}
		}
		if local(host) {
			a.add("25", Pass, at, "", "%s without TLS is on loopback", w.name)
		} else {
			where := "all interfaces"
			if !everywhere(host) {
				where = host
			}
			a.fail("25", at, fix, "%s speaks without TLS on %s", w.name, where)
		}
	}
	if len(tls) > 0 {
		verified := n.is(w.name+".ssl.verify", "verify_peer") && n.is(w.name+".ssl.fail_if_no_peer_cert", "true")
		ip, _ := n.get(w.name + ".ssl.ip")
		if w.login || verified || n.is(w.name+".authentication.enabled", "true") || local(ip.value) {
			a.add("25", Pass, tls[0].at, "", "%s speaks TLS, and asks who it is", w.name)
		} else {
			a.warn("25", tls[0].at, w.name+".ssl.verify = verify_peer and "+w.name+".ssl.fail_if_no_peer_cert = true, or "+w.name+".authentication.enabled = true", "%s speaks TLS, and asks nobody who it is", w.name)
		}
	}
}

// rabbitProtocols judges the listeners of other protocols.
func (a *audit) rabbitProtocols(n *node) {
	before0 := len(a.r.Findings)
	for _, p := range []struct{ plugin, name, port string }{{"rabbitmq_mqtt", "mqtt", "1883"}, {"rabbitmq_stomp", "stomp", "61613"}, {"rabbitmq_stream", "stream", "5552"}} {
		enabled, known := n.has(p.plugin)
		if known && !enabled {
			continue
		}
		fix := p.name + ".listeners.tcp = none, and " + p.name + ".listeners.ssl.1"
		for _, v := range n.below(p.name + ".listeners.tcp") {
			if n.is(p.name+".listeners.tcp", "none") {
				break
			}
			if host, port, ok := splitAddress(v.value); !ok || !local(host) {
				a.fail(ruleListeners, v.at, fix, "%s speaks without TLS on port %d", p.name, port)
			}
		}
		if enabled && len(n.below(p.name+".listeners.tcp")) == 0 && !n.is(p.name+".listeners.tcp", "none") {
			a.fail(ruleListeners, in(n.plugins), fix, "%s is enabled and has no listener set: it speaks without TLS on port %s of all interfaces by default", p.plugin, p.port)
		}
		if p.name == "mqtt" && (enabled || len(n.below("mqtt")) > 0) {
			old, versionKnown := before(a.version(n), 4, 0)
			switch v, ok := n.get("mqtt.allow_anonymous"); {
			case ok && strings.EqualFold(v.value, "true"):
				a.fail(ruleListeners, v.at, "mqtt.allow_anonymous = false", "MQTT lets in who shows nothing")
			case !ok && enabled && (old || !versionKnown):
				a.warn(ruleListeners, in(n.plugins), "mqtt.allow_anonymous = false", "mqtt.allow_anonymous is not set: before RabbitMQ 4.0, MQTT lets in who shows nothing")
			}
		}
	}
	for _, p := range []struct{ plugin, name, port string }{{"rabbitmq_web_mqtt", "web_mqtt", "15675"}, {"rabbitmq_web_stomp", "web_stomp", "15674"}} {
		enabled, known := n.has(p.plugin)
		v, set := n.get(p.name + ".tcp.port")
		ip, _ := n.get(p.name + ".tcp.ip")
		if known && !enabled || local(ip.value) || n.is(p.name+".tcp.listener", "none") {
			continue
		}
		if set || enabled {
			at := v.at
			if !set {
				at = in(n.plugins)
			}
			a.fail(ruleListeners, at, p.name+".tcp.listener = none, and "+p.name+".ssl.port", "%s speaks without TLS on port %s", p.name, cmp.Or(v.value, p.port))
		}
	}
	if len(a.r.Findings) == before0 {
		a.pass(ruleListeners, in(n.main), "no other protocol is known to speak without TLS")
	}
}

// rabbitLimits judges rule 26 and the vendor's on memory and disk.
func (a *audit) rabbitLimits(n *node) {
	number := func(key string) (v setting, x float64, ok bool) {
		v, ok = n.get(key)
		if !ok {
			return v, 0, false
		}
		x, err := strconv.ParseFloat(strings.TrimSpace(v.value), 64)
		if err != nil {
			x = -1
		}
		return v, x, true
	}
	unlimited := func(v setting, x float64) bool {
		return x == 0 || strings.EqualFold(v.value, "infinity") || strings.EqualFold(v.value, "unlimited")
	}
	if v, x, ok := number("channel_max"); ok && (unlimited(v, x) || x > 65535) {
		a.warn("26", v.at, "channel_max = 2047, or less", "a connection may have any number of channels")
	}
	for _, key := range []string{"handshake_timeout", "ssl_handshake_timeout"} {
		if v, x, ok := number(key); ok && (unlimited(v, x) || x > 60_000) {
			a.warn("26", v.at, key+" = 10000", "who does not finish a handshake keeps a connection for more than a minute")
		}
	}
	for _, key := range []string{"heartbeat"} {
		if v, x, ok := number(key); ok && x == 0 {
			a.warn("26", v.at, "heartbeat = 60", "a connection whose other end is gone is kept for ever")
		}
	}
	if v, x, ok := number("max_message_size"); ok && x > 134_217_728 {
		a.warn("26", v.at, "max_message_size = 16777216", "a message may have %.0f MiB", x/(1<<20))
	}
	if v, x, ok := number("connection_max"); ok && x == 0 {
		a.warn("26", v.at, "connection_max = 10000, or what the deployment needs", "no connection is allowed, or any number")
	}
	a.pass("26", in(n.main), "the limits are set, or RabbitMQ's defaults: 2047 channels, handshakes of 10 s")

	if v, x, ok := number("vm_memory_high_watermark.relative"); ok && (x > 0.8 || x < 0) {
		a.warn(ruleLimits, v.at, "vm_memory_high_watermark.relative = 0.6", "the alarm of memory comes at %s of it, when the machine has none left", v.value)
	}
	if v, x, ok := number("disk_free_limit.relative"); ok && x < 1 {
		a.warn(ruleLimits, v.at, "disk_free_limit.relative = 1.5", "the alarm of the disk comes when less is free than the memory has")
	}
	if v, ok := n.get("disk_free_limit.absolute"); ok {
		if size, known := byteSize(v.value); known && size <= 100<<20 {
			a.warn(ruleLimits, v.at, "disk_free_limit.relative = 1.5", "the alarm of the disk comes when %s are free, which one file of messages takes", v.value)
		}
	}
	if v, x, ok := number("consumer_timeout"); ok && (unlimited(v, x) || strings.EqualFold(v.value, "undefined") || strings.EqualFold(v.value, "false")) {
		a.warn(ruleLimits, v.at, "consumer_timeout = 1800000", "a consumer that acknowledges nothing keeps its messages for ever")
	}
	a.pass(ruleLimits, in(n.main), "memory, disk and consumers are bounded, by settings or by RabbitMQ's defaults; the disk's, 50 MB, is little for production")
}

// byteSize is a size as RabbitMQ has it: 50MB, 2GiB, 1000.
func byteSize(text string) (n float64, ok bool) {
	text = strings.ToLower(strings.TrimSpace(text))
	unit := strings.TrimLeft(text, "0123456789.")
	n, err := strconv.ParseFloat(strings.TrimSuffix(text, unit), 64)
	if err != nil {
		return 0, false
	}
	scale := map[string]float64{"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1e3, "m": 1 << 20, "mib": 1 << 20, "mb": 1e6, "g": 1 << 30, "gib": 1 << 30, "gb": 1e9, "t": 1 << 40, "tib": 1 << 40, "tb": 1e12}
	f, ok := scale[strings.TrimSpace(unit)]
	return n * f, ok
}

// rabbitLog judges rule 20 and the vendor's on debug.
func (a *audit) rabbitLog(n *node) {
	fix := "log.connection.level = info"
	for _, key := range n.keys {
		v := n.by[key]
		if !strings.HasPrefix(key, "log.") || !strings.HasSuffix(key, ".level") {
			continue
		}
		switch level := strings.ToLower(v.value); {
		case level == "debug":
			a.warn(ruleLog, v.at, "remove it, or info", "the log has what is for developers")
		case key == "log.connection.level" && level != "info" && level != "notice":
			a.fail("20", v.at, fix, "logins are not logged: they are at level info, and %s is kept", level)
		case key == "log.default.level" && level != "info" && level != "notice":
			if _, own := n.get("log.connection.level"); !own {
				a.fail("20", v.at, fix, "logins are not logged: they are at level info, and %s is kept", level)
			}
		case (key == "log.file.level" || key == "log.console.level" || key == "log.syslog.level") && level != "info" && level != "notice":
			a.warn("20", v.at, key+" = info", "logins do not reach this log: they are at level info, and %s is kept", level)
		}
	}
	if n.is("log.file", "false") && !n.is("log.console", "true") && !n.is("log.syslog", "true") && !n.is("log.journald", "true") && !n.is("log.exchange", "true") {
		a.fail("20", n.by["log.file"].at, "remove it, or log.console = true", "there is no log")
	}
	a.pass("20", in(n.main), "logins and refusals are logged, at level info")
	a.pass(ruleLog, in(n.main), "no level is debug")
}
