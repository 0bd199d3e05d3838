package conf

import (
	"slices"
	"strconv"
	"strings"
)

// A Rule is a line of a Qpid access list: "acl allow user action object properties".
type Rule struct {
	// Permission is allow, allow-log, deny or deny-log.
	Permission string
	// Who is a user, a group or "all", Action what they do, and Object what with; Object
	// is empty if the line does not say.
	Who, Action, Object string
	// Properties are name=value.
	Properties []string
	Line       int
}

// A Quota is "quota connections N who…" or "quota queues N who…".
type Quota struct {
	Of   string
	Most int
	Who  []string
	Line int
}

// An ACL is a Qpid access list.
type ACL struct {
	Rules  []Rule
	Quotas []Quota
	// Groups are the members of each.
	Groups map[string][]string
}

// Members are the users that who means, as far as the list has them.
func (a ACL) Members(who string) []string {
	seen := map[string]bool{who: true} // a group may be in many, and in itself
	next, all := []string{who}, []string(nil)
	for len(next) > 0 {
		who := next[0]
		next = next[1:]
		members, group := a.Groups[who]
		if !group {
			all = append(all, who)
			continue
		}
		for _, m := range slices.Backward(members) {
			if !seen[m] {
				seen[m] = true
				next = slices.Insert(next, 0, m)
			}
		}
	}
	return all
}

// ReadACL reads a Qpid access list. Only the lines of groups may go on after a backslash.
func ReadACL(data []byte) (a ACL, problems []Problem) {
	rows, problems := lines(data)
	a.Groups = map[string][]string{}
	group := "" // whose line goes on
	for i, line := range rows {
		text := strings.TrimSpace(line)
		if text == "" || strings.HasPrefix(text, "#") {
			group = ""
			continue
		}
		more := strings.HasSuffix(text, `\`)
		words := strings.Fields(strings.TrimSuffix(text, `\`))
		fail := func(why string) { problems = append(problems, Problem{i + 1, why}) }
		switch {
		case group != "":
			a.Groups[group] = append(a.Groups[group], words...)
			if !more {
				group = ""
			}
			continue
		case len(words) == 0:
			continue
		case words[0] == "group":
			if len(words) < 2 {
				fail("a group has no name")
				continue
			}
			a.Groups[words[1]] = append(a.Groups[words[1]], words[2:]...)
			if more {
				group = words[1]
			}
			continue
		case more:
			fail("only the line of a group may go on after a backslash")
		}
		switch words[0] {
		case "acl":
			if len(words) < 4 || !slices.Contains([]string{"allow", "allow-log", "deny", "deny-log"}, words[1]) {
				fail("a rule is not: acl, allow or deny, a user, and an action")
				continue
			}
			r := Rule{Permission: words[1], Who: words[2], Action: words[3], Line: i + 1}
			rest := words[4:]
			if len(rest) > 0 && !strings.Contains(rest[0], "=") {
				r.Object, rest = rest[0], rest[1:]
			}
			r.Properties = rest
			a.Rules = append(a.Rules, r)
		case "quota":
			n := -1
			if len(words) > 3 {
				if v, err := strconv.Atoi(words[2]); err == nil {
					n = v
				}
			}
			if n < 0 || words[1] != "connections" && words[1] != "queues" {
				fail("a quota is not: quota, connections or queues, a number, and users")
				continue
			}
			a.Quotas = append(a.Quotas, Quota{words[1], n, words[3:], i + 1})
		default:
			fail("a line is neither acl, group, quota nor a comment")
		}
	}
	return a, problems
}
