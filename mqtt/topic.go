package mqtt

import "strings"

// matches reports whether a filter takes a topic. [MQTT-4.7.1-1] [MQTT-4.7.1-2]
func matches(filter, topic string) bool {
	if hidden(filter, topic) {
		return false
	}
	for {
		f, moreFilter, fOn := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, moreTopic, tOn := strings.Cut(topic, "/")
		if f != "+" && f != t { // [MQTT-4.7.3-4]
			return false
		}
		if !tOn {
			return !fOn || moreFilter == "#"
		}
		if !fOn {
			return false
		}
		filter, topic = moreFilter, moreTopic
	}
}

// hidden reports whether a filter does not see a topic because it begins with a
// wildcard and the topic with "$". [MQTT-4.7.2-1]
func hidden(filter, topic string) bool {
	return strings.HasPrefix(topic, "$") && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#"))
}

// reserved reports whether the first level of a topic or filter belongs to the
// engine or to this package.
func reserved(topic string) bool {
	first, _, _ := strings.Cut(topic, "/")
	switch first {
	case "$SYS", "$JS", "$KV", "$O", "$SRV", "$NRG", "$G", "$JSC", "$ACC", "$OBJ", "$MQTT", "$FLEETBUS", "$share":
		return true
	}
	return strings.HasPrefix(first, "_INBOX") || strings.HasPrefix(first, "_R_") || strings.HasPrefix(first, "$NRG")
}
