package packet

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// CheckTopic returns an *Error if topic is no topic name: wildcards are for
// filters. It may have 128 levels.
func CheckTopic(topic string) error {
	if err := judgeString(topic, "topic name"); err != nil {
		return err
	}
	if err := judgeTopic([]byte(topic), "topic name", Limits{}.levels()); err != nil {
		return err
	}
	return nil
}

// CheckFilter takes a topic filter apart: a shared one, $share/group/filter, has a
// group, and the group of others is "". It returns an *Error if it is malformed.
// It may have 128 levels. MQTT 3.1.1 does not know of groups.
func CheckFilter(topicFilter string) (group, filter string, err error) {
	if e := judgeString(topicFilter, "topic filter"); e != nil {
		return "", "", e
	}
	group, filter, e := judgeFilter(topicFilter, Limits{}.levels())
	if e != nil {
		return "", "", e
	}
	return group, filter, nil
}

// judgeString judges what the cursor judges of every string that it reads.
func judgeString(s, what string) *Error {
	switch {
	case len(s) > maxString:
		return &Error{MalformedPacket, "MQTT-4.7.3-3", "a " + what + " of more than 65,535 bytes"} // [MQTT-4.7.3-3]
	case !utf8.ValidString(s):
		return &Error{MalformedPacket, "MQTT-1.5.4-1", "a " + what + " that is not UTF-8"} // [MQTT-1.5.4-1]
	case strings.IndexByte(s, 0) >= 0:
		return &Error{MalformedPacket, "MQTT-4.7.3-2", "U+0000 in a " + what} // [MQTT-4.7.3-2]
	}
	return nil
}

func judgeTopic(topic []byte, what string, levels int) *Error {
	switch {
	case len(topic) == 0:
		return &Error{MalformedPacket, "MQTT-4.7.3-1", "an empty " + what} // [MQTT-4.7.3-1]
	case bytes.IndexByte(topic, '#') >= 0 || bytes.IndexByte(topic, '+') >= 0:
		return &Error{MalformedPacket, "MQTT-4.7.0-1", "a wildcard in its " + what} // [MQTT-4.7.0-1]
	case bytes.Count(topic, []byte{'/'}) >= levels:
		return &Error{TopicNameInvalid, "MQTT 4.7.3", "a " + what + " of too many levels"} // [MQTT 4.7.3]
	}
	return nil
}

func judgeFilter(full string, levels int) (group, filter string, err *Error) {
	rest, shared := strings.CutPrefix(full, "$share/")
	if !shared {
		return "", full, judgeShape(full, levels)
	}
	group, filter, found := strings.Cut(rest, "/")
	switch {
	case group == "":
		return "", "", &Error{MalformedPacket, "MQTT-4.8.2-1", "a shared filter without a share name"} // [MQTT-4.8.2-1]
	case strings.ContainsAny(group, "+#"):
		return "", "", &Error{MalformedPacket, "MQTT-4.8.2-2", "a wildcard in a share name"} // [MQTT-4.8.2-2]
	case !found || filter == "":
		return "", "", &Error{MalformedPacket, "MQTT-4.8.2-2", "a share name without a filter"} // [MQTT-4.8.2-2]
	}
	return group, filter, judgeShape(filter, levels)
}

func judgeShape(filter string, levels int) *Error {
	if filter == "" {
		return &Error{MalformedPacket, "MQTT-4.7.3-1", "an empty topic filter"} // [MQTT-4.7.3-1]
	}
	n := 0
	for rest, more := filter, true; more; n++ {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case n == levels:
			return &Error{TopicFilterInvalid, "MQTT 4.7.3", "a topic filter of too many levels"} // [MQTT 4.7.3]
		case strings.Contains(level, "#") && (more || level != "#"):
			return &Error{MalformedPacket, "MQTT-4.7.1-1", "a # in its topic filter that is not the last level"} // [MQTT-4.7.1-1]
		case strings.Contains(level, "+") && level != "+":
			return &Error{MalformedPacket, "MQTT-4.7.1-2", "a + in its topic filter that is not a whole level"} // [MQTT-4.7.1-2]
		}
	}
	return nil
}
