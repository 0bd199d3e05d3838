package hardening

import (
	"bytes"
	"crypto/md5" //nolint:gosec // such hashes are what is looked for
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// An item of definitions, and the line that it begins at.
type item struct {
	line int
	raw  json.RawMessage
}

// items reads the lists of a JSON object, with the lines of what is in them. Other values
// are lists of one.
func items(data []byte) (all map[string][]item, err error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	dec := json.NewDecoder(bytes.NewReader(data))
	line := func() int {
		at := int(dec.InputOffset())
		for at < len(data) && strings.IndexByte(" \t\r\n,:", data[at]) >= 0 {
			at++
		}
		return 1 + bytes.Count(data[:min(at, len(data))], []byte("\n"))
	}
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is no object of JSON")
	}
	all = map[string][]item{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return all, fmt.Errorf("line %d: it is no JSON", line())
		}
		name, _ := key.(string)
		at := line()
		var value json.RawMessage
		start := int(dec.InputOffset())
		if err := dec.Decode(&value); err != nil {
			return all, fmt.Errorf("line %d: it is no JSON", at)
		}
		if !bytes.HasPrefix(value, []byte("[")) {
			all[name] = append(all[name], item{at, value})
			continue
		}
		// The list again, item by item, for their lines.
		inner := json.NewDecoder(bytes.NewReader(value))
		_, _ = inner.Token()
		offset := start + bytes.Index(data[start:], value)
		for inner.More() {
			from := int(inner.InputOffset())
			var raw json.RawMessage
			if err := inner.Decode(&raw); err != nil {
				return all, fmt.Errorf("line %d: it is no JSON", at)
			}
			pos := offset + from + max(bytes.Index(value[from:], raw), 0)
			all[name] = append(all[name], item{1 + bytes.Count(data[:pos], []byte("\n")), raw})
		}
	}
	return all, nil
}

type user struct {
	Name      string          `json:"name"`
	Hash      *string         `json:"password_hash"`
	Password  *string         `json:"password"`
	Algorithm string          `json:"hashing_algorithm"`
	Tags      json.RawMessage `json:"tags"`
}

type permission struct {
	User, Vhost, Exchange, Configure, Write, Read string
}

type policy struct {
	Vhost, Pattern string
	Definition     map[string]json.RawMessage
}

type queue struct {
	Name, Vhost string
	Arguments   map[string]json.RawMessage
}

// define judges definitions that were exported: rules 11, 14, 15, 16 and 19, and the
// vendor's.
func (a *audit) define(n *node, f *file) {
	if f.used {
		return
	}
	f.used = true
	lists, err := items(f.Data)
	if err != nil {
		a.unread(f.Path, 0, "%v", err)
		return
	}
	for _, key := range []string{"rabbitmq_version", "rabbit_version"} {
		for _, v := range lists[key] {
			_ = json.Unmarshal(v.raw, &n.defined)
		}
	}
	var bad int
	decode := func(i item, into any) bool {
		if err := json.Unmarshal(i.raw, into); err != nil {
			bad++
			a.unread(f.Path, i.line, "an item has values of other types than RabbitMQ's")
			return false
		}
		return true
	}
	guest := false
	hashes := map[string]string{}
	for _, i := range lists["users"] {
		var u user
		if !decode(i, &u) {
			continue
		}
		at := place{f.Path, i.line, "user " + u.Name}
		if strings.EqualFold(u.Name, "guest") {
			guest = true
			a.fail("11", at, "rabbitmqctl delete_user guest", "the user guest is there")
		}
		a.hash(u, at, hashes)
	}
	if _, has := lists["users"]; has && !guest {
		a.pass("11", in(f), "there is no user guest")
	}
	a.permissions(f, lists, decode)
	a.queues(f, lists, decode)
	if bits := f.Mode.Perm() & 0o027; bits != 0 && len(lists["users"]) > 0 {
		a.fail(ruleDefinition, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "chmod 640 "+f.Abs+", of the broker's group", "the hashes of all passwords may be used by others: the mode is %04o", f.Mode.Perm())
	} else if len(lists["users"]) > 0 {
		a.pass(ruleDefinition, in(f), "the definitions are for the broker alone")
	}
}

// hash judges what is kept of a user's password.
func (a *audit) hash(u user, at place, seen map[string]string) {
	if u.Password != nil && *u.Password != "" {
		a.fail("14", at, "write its password_hash in its place: rabbitmqctl hash_password", "the password of %s stands there in clear", u.Name)
		a.password(u.Name, *u.Password, at)
	}
	if u.Hash == nil || *u.Hash == "" {
		if u.Password == nil || *u.Password == "" {
			a.pass("14", at, "%s has no password, and logs in by certificate", u.Name)
		}
		return
	}
	a.secret(*u.Hash)
	sum, err := base64.StdEncoding.DecodeString(*u.Hash)
	if err != nil || len(sum) < 8 {
		a.unread(at.file, at.line, "the hash of a password is none")
		return
	}
	algorithm := strings.TrimPrefix(u.Algorithm, "rabbit_password_hashing_")
	if algorithm == "" {
		algorithm = map[int]string{md5.Size + 4: "md5", sha256.Size + 4: "sha256", sha512.Size + 4: "sha512"}[len(sum)]
	}
	if algorithm == "md5" {
		a.fail(ruleHashes, at, "rabbitmqctl change_password "+u.Name, "the password of %s is hashed by MD5", u.Name)
	} else {
		a.pass(ruleHashes, at, "passwords are hashed by SHA-256 or SHA-512")
	}
	salt := sum[:4]
	for _, word := range append(publicPasswords(), u.Name, "") {
		data := append(slices.Clone(salt), word...)
		var got []byte
		switch algorithm {
		case "md5":
			h := md5.Sum(data)
			got = h[:]
		case "sha512":
			h := sha512.Sum512(data)
			got = h[:]
		default:
			h := sha256.Sum256(data)
			got = h[:]
		}
		if bytes.Equal(got, sum[4:]) {
			a.fail("14", at, "rabbitmqctl change_password "+u.Name, "the password of %s is empty, its name, or stands in manuals", u.Name)
			return
		}
	}
	if other, ok := seen[*u.Hash]; ok {
		a.fail("14", at, "rabbitmqctl change_password "+u.Name, "%s has the same password as %s", u.Name, other)
		return
	}
	seen[*u.Hash] = u.Name
	a.pass("14", at, "no password is one of manuals")
}

// everything reports whether an expression takes every name. RabbitMQ's empty one takes none.
func everything(expression string) bool {
	if strings.TrimSpace(expression) == "" {
		return false
	}
	re, err := regexp.Compile(expression)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc([]string{"x", "Zq7.of_nobody", "amq.gen-93", "0", "reply-of nobody"}, func(name string) bool { return !re.MatchString(name) })
}

func takes(expression, name string) bool {
	re, err := regexp.Compile(expression)
	return err == nil && expression != "" && re.MatchString(name)
}

// permissions judges rules 15 and 16.
func (a *audit) permissions(f *file, lists map[string][]item, decode func(item, any) bool) {
	topics := map[string]bool{}
	for _, i := range lists["topic_permissions"] {
		var p permission
		if !decode(i, &p) {
			continue
		}
		topics[p.Vhost+"\x00"+p.User] = true
		at := place{f.Path, i.line, fmt.Sprintf("%s on exchange %q: write %q, read %q", p.User, p.Exchange, p.Write, p.Read)}
		if compute(p.User) && everything(p.Write) {
			a.warn("16", at, "write ^(compute|conductor|scheduler), read ^compute", "compute node %s may write every routing key of %s", p.User, p.Exchange)
		}
	}
	for _, i := range lists["permissions"] {
		var p permission
		if !decode(i, &p) {
			continue
		}
		at := place{f.Path, i.line, fmt.Sprintf("%s on %s: configure %q, write %q, read %q", p.User, p.Vhost, p.Configure, p.Write, p.Read)}
		var wide []string
		for _, right := range []struct{ name, expression string }{{"configure", p.Configure}, {"write", p.Write}, {"read", p.Read}} {
			if everything(right.expression) {
				wide = append(wide, right.name)
			}
		}
		fix := fmt.Sprintf("rabbitmqctl set_permissions -p %s %s '^(EXCHANGE|TOPIC.*|reply_.*)$' '^(EXCHANGE|TOPIC.*|reply_.*|amq\\.default)$' '^(EXCHANGE|TOPIC.*|reply_.*)$'", p.Vhost, p.User)
		if len(wide) > 0 {
			a.fail("15", at, fix, "%s may %s everything on virtual host %s", p.User, strings.Join(wide, ", "), p.Vhost)
		}
		switch {
		case compute(p.User) && (takes(p.Read, "conductor") || takes(p.Read, "scheduler")):
			a.fail("16", at, "read '^(compute.*|reply_.*)$', without conductor and scheduler", "compute node %s may read what is for the conductor", p.User)
		case compute(p.User):
			a.pass("16", at, "compute node %s may not read what is for the conductor", p.User)
		}
	}
	if len(lists["permissions"]) > 0 {
		a.pass("15", in(f), "nobody has a right to everything")
		if !a.judged["16"] {
			a.add("16", NotApplicable, in(f), "", "no user is called after a compute node")
		}
	}
}

// compute reports whether a user is called after a compute node.
func compute(name string) bool {
	lower := strings.ToLower(name)
	return strings.Contains(lower, "compute") || regexp.MustCompile(`(^|[-_.@])(cmp|hv|hypervisor)[-_.]?\d*`).MatchString(lower)
}

// queues judges rule 19.
func (a *audit) queues(f *file, lists map[string][]item, decode func(item, any) bool) {
	bounded := func(m map[string]json.RawMessage, keys ...string) bool {
		return slices.ContainsFunc(keys, func(k string) bool { _, ok := m[k]; return ok })
	}
	var policies []policy
	for _, kind := range []string{"policies", "operator_policies"} {
		for _, i := range lists[kind] {
			var p policy
			if decode(i, &p) && bounded(p.Definition, "message-ttl", "expires", "max-age") {
				policies = append(policies, p)
			}
		}
	}
	n := 0
	for _, i := range lists["queues"] {
		var q queue
		if !decode(i, &q) {
			continue
		}
		n++
		byPolicy := slices.ContainsFunc(policies, func(p policy) bool { return p.Vhost == q.Vhost && takes(p.Pattern, q.Name) })
		if byPolicy || bounded(q.Arguments, "x-message-ttl", "x-expires", "x-max-age") {
			continue
		}
		a.warn("19", place{f.Path, i.line, "queue " + q.Name}, "rabbitmqctl set_policy ttl '^"+regexp.QuoteMeta(q.Name)+"' '{\"message-ttl\":600000}' --apply-to queues",
			"what nobody fetches from queue %s stays for ever, and may be played again", q.Name)
	}
	if n > 0 {
		a.pass("19", in(f), "all queues have an end for their messages")
	}
}
