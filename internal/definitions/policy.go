package definitions

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// howPolicy is what becomes of a key of a policy.
type howPolicy struct {
	argument string
	least    bool   // the smaller of two numbers counts, else the argument itself
	exchange bool   // it is of exchanges
	why      string // there is no such argument
}

const (
	replicated = "a durable queue is on as many nodes as the account's stream"
	noStreams  = "queues of type stream are not here"
)

// policyKeys are the keys of policies that are known.
func policyKeys() map[string]howPolicy {
	keys := map[string]howPolicy{
		"message-ttl":             {argument: "x-message-ttl", least: true},
		"expires":                 {argument: "x-expires", least: true},
		"max-length":              {argument: "x-max-length", least: true},
		"max-length-bytes":        {argument: "x-max-length-bytes", least: true},
		"delivery-limit":          {argument: "x-delivery-limit", least: true},
		"overflow":                {argument: "x-overflow"},
		"dead-letter-exchange":    {argument: "x-dead-letter-exchange"},
		"dead-letter-routing-key": {argument: "x-dead-letter-routing-key"},
		"alternate-exchange":      {argument: "alternate-exchange", exchange: true},
		"dead-letter-strategy":    {why: "a dead letter stays until it is where it goes, always"},
		"consumer-timeout":        {why: "there is no such limit"},
		"federation-upstream":     {why: "there is no federation; a link of the node carries messages"},
		"federation-upstream-set": {why: "there is no federation; a link of the node carries messages"},
		"queue-version":           {why: "not needed"},
		"queue-mode":              {why: "not needed: bodies are on disk beyond a budget"},
		"max-in-memory-length":    {why: "not needed: bodies are on disk beyond a budget"},
		"max-in-memory-bytes":     {why: "not needed: bodies are on disk beyond a budget"},
		"max-age":                 {why: noStreams},
		"stream-max-segment-size": {why: "not needed: " + noStreams},
	}
	for _, name := range []string{"ha-mode", "ha-params", "ha-sync-mode", "ha-sync-batch-size", "ha-promote-on-shutdown", "ha-promote-on-failure", "queue-master-locator", "queue-leader-locator", "initial-cluster-size", "target-group-size"} {
		keys[name] = howPolicy{why: "not needed: " + replicated}
	}
	return keys
}

// matcher is a policy whose expression can be matched.
type matcher struct {
	*policy
	re *regexp.Regexp
	// queues and exchanges are how many it was applied to.
	queues, exchanges int
}

// matchers are policies in the order in which they count.
func matchers(all []policy, vhost func(string) string) (out []*matcher, wrong map[int]error) {
	wrong = map[int]error{}
	for i := range all {
		p := &all[i]
		re, err := regexp.Compile(p.Pattern)
		if err != nil {
			wrong[i] = err
			continue
		}
		p.VHost = vhost(p.VHost)
		out = append(out, &matcher{policy: p, re: re})
	}
	slices.SortStableFunc(out, func(a, b *matcher) int { return int(min(max(b.Priority-a.Priority, -1), 1)) })
	return out, wrong
}

// applies is the policy of something, nil if there is none: of all that match, one.
func applies(all []*matcher, vhost, name string, to ...string) *matcher {
	for _, m := range all {
		kind := m.ApplyTo
		if kind == "" {
			kind = "all"
		}
		if m.VHost == vhost && (kind == "all" || slices.Contains(to, kind)) && m.re.MatchString(name) {
			return m
		}
	}
	return nil
}

// apply adds to arguments what a policy and an operator's policy say, and returns words
// about it.
func apply(arguments settings, exchange bool, user, operator *matcher) (out settings, words []string) {
	out = maps.Clone(arguments)
	if out == nil {
		out = settings{}
	}
	keys := policyKeys()
	for _, m := range []*matcher{user, operator} {
		if m == nil {
			continue
		}
		var set []string
		for _, name := range slices.Sorted(maps.Keys(m.Definition)) {
			how, value := keys[name], m.Definition[name]
			if how.argument == "" || how.exchange != exchange {
				continue
			}
			before, is := out[how.argument]
			if is && !(how.least && less(value, before)) && !(m == operator && !how.least) {
				continue
			}
			out[how.argument] = value
			set = append(set, fmt.Sprintf("%s=%v", how.argument, value))
		}
		if len(set) > 0 {
			words = append(words, fmt.Sprintf("policy %q: %s", m.Name, strings.Join(set, ", ")))
			if exchange {
				m.exchanges++
			} else {
				m.queues++
			}
		}
	}
	if _, ok := out["x-dead-letter-exchange"]; !ok {
		if _, ok := arguments["x-dead-letter-routing-key"]; !ok {
			delete(out, "x-dead-letter-routing-key")
		}
	}
	return out, words
}

func less(a, b any) bool {
	x, ok := a.(int64)
	y, too := b.(int64)
	return ok && too && x < y
}

// told says what became of a policy.
func (m *matcher) told() (status Status, text string) {
	keys := policyKeys()
	var not []string
	some := false
	for _, name := range slices.Sorted(maps.Keys(m.Definition)) {
		how, known := keys[name]
		switch {
		case !known:
			not = append(not, name+" is not known here")
		case how.argument == "":
			not = append(not, name+": "+how.why)
		default:
			some = true
		}
	}
	status, text = NotTaken, "it matches nothing that is taken"
	if m.queues+m.exchanges > 0 {
		status = Changed
		text = fmt.Sprintf("arguments of %d queues and %d exchanges, which clients that declare them have to give as well", m.queues, m.exchanges)
	} else if !some && len(not) > 0 {
		text = ""
	}
	if len(not) > 0 {
		text = strings.TrimPrefix(text+"; "+strings.Join(not, "; "), "; ")
	}
	return status, text
}
