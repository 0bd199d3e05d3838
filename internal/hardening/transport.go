package hardening

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
)

// A transport is an address as oslo.messaging has it, with several hosts.
type transport struct {
	scheme, vhost string
	hosts         []transportHost
	query         url.Values
}

type transportHost struct {
	user, password string
	has            bool // a password, if only an empty one
	host           string
	port           int // 0 if it says none
}

// parseTransport reads driver://user:pass@host:port,…/vhost?query. An error never has any
// of the text.
func parseTransport(text string) (t transport, err error) {
	text = strings.Join(strings.Fields(text), "")
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || scheme == "" {
		return t, errors.New("it is not driver://user:password@host:port/vhost")
	}
	t.scheme, t.query = strings.ToLower(scheme), url.Values{}
	if before, query, has := strings.Cut(rest, "?"); has {
		rest = before
		if t.query, err = url.ParseQuery(query); err != nil {
			return t, errors.New("what stands behind ? cannot be read")
		}
	}
	hosts, vhost, _ := strings.Cut(rest, "/")
	if t.vhost, err = url.PathUnescape(vhost); err != nil {
		return t, errors.New("the virtual host cannot be read")
	}
	for part := range strings.SplitSeq(hosts, ",") {
		if part == "" {
			continue
		}
		var h transportHost
		if at := strings.LastIndex(part, "@"); at >= 0 {
			login := part[:at]
			part = part[at+1:]
			user, password, has := strings.Cut(login, ":")
			h.has = has
			if h.user, err = url.PathUnescape(user); err == nil {
				h.password, err = url.PathUnescape(password)
			}
			if err != nil {
				return t, errors.New("a user or a password has % and no number behind it")
			}
		}
		if strings.HasPrefix(part, "[") {
			end := strings.Index(part, "]")
			if end < 0 {
				return t, errors.New("an address of IPv6 has no end")
			}
			h.host, part = part[1:end], part[end+1:]
			part = strings.TrimPrefix(part, ":")
		} else {
			h.host, part, _ = strings.Cut(part, ":")
		}
		if part != "" {
			if h.port, err = strconv.Atoi(part); err != nil || h.port < 1 || h.port > 65535 {
				return t, errors.New("a port is no number")
			}
		}
		t.hosts = append(t.hosts, h)
	}
	return t, nil
}

// masked is the address without passwords.
func (t transport) masked() string {
	var parts []string
	for _, h := range t.hosts {
		part := h.host
		if strings.Contains(part, ":") {
			part = "[" + part + "]"
		}
		if h.port > 0 {
			part += ":" + strconv.Itoa(h.port)
		}
		switch {
		case h.has:
			part = h.user + ":" + hidden + "@" + part
		case h.user != "":
			part = h.user + "@" + part
		}
		parts = append(parts, part)
	}
	text := t.scheme + "://" + strings.Join(parts, ",") + "/" + t.vhost
	var query []string
	for k := range t.query {
		query = append(query, k+"="+hidden)
	}
	if len(query) > 0 {
		text += "?" + strings.Join(query, "&")
	}
	return text
}
