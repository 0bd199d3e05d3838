package definitions

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/identity"
)

// Status is what becomes of one thing of an export.
type Status string

// The statuses. A plan has the first three; who carries it out finds the others.
const (
	Taken    Status = "taken"
	Changed  Status = "changed"   // taken, and not as it was
	NotTaken Status = "not_taken" // and Text says why
	There    Status = "there_already"
	Conflict Status = "conflict" // there is another of that name
	Failed   Status = "failed"
)

// A Line says what becomes of one thing.
type Line struct {
	Kind    string `json:"kind"`
	VHost   string `json:"vhost,omitempty"`
	Name    string `json:"name"`
	Account string `json:"account,omitempty"`
	Status  Status `json:"status"`
	Text    string `json:"text,omitempty"`
}

// A Step is a thing that is to be made, and the line about it. One of the pointers is set,
// or none if there is nothing to do.
type Step struct {
	Line     Line
	Account  *Account
	Role     *identity.Role
	User     *User
	Exchange *Exchange
	Queue    *Queue
	Binding  *Binding
}

// An Account is made of a virtual host.
type Account struct {
	Name string
	// Connections is how many there may be at once; 0: any number.
	Connections int64
}

// A User is made of a user and its permissions in one virtual host.
type User struct {
	Account, Name, Role string
}

// An Exchange is to be declared.
type Exchange struct {
	Name, Type                    string
	Durable, AutoDelete, Internal bool
	Arguments                     map[string]any
}

// A Queue is to be declared.
type Queue struct {
	Name                string
	Durable, AutoDelete bool
	Arguments           map[string]any
}

// A Binding is to be made: to a queue, or to an exchange.
type Binding struct {
	Source, Destination, Key string
	ToExchange               bool
	Arguments                map[string]any
}

// Options say how to plan.
type Options struct {
	// Accounts are the names of accounts for virtual hosts. Default: "/" is "default",
	// and others have their own.
	Accounts map[string]string
	// Narrow takes rights that are narrower than they were, where they cannot be said.
	// Otherwise they are left out.
	Narrow bool
	// NoPolicies leaves policies out.
	NoPolicies bool
}

const (
	topicExchange = "amq.topic"
	// roleLife is how long credentials of users live that were taken over.
	roleLife = 90 * 24 * time.Hour
)

// plan is a plan that is being made.
type plan struct {
	*Definitions
	o        Options
	accounts map[string]string // by virtual host
	steps    []*Step
	user     []*matcher
	operator []*matcher
	there    map[string]bool // exchanges and queues that are taken, by kind, account and name
	roles    map[string]bool
}

// Plan says what there can be here of d, in the order in which it is to be made.
func (d *Definitions) Plan(o Options) []*Step {
	p := &plan{Definitions: d, o: o, accounts: map[string]string{}, there: map[string]bool{}, roles: map[string]bool{}}
	p.takeAccounts()
	p.takeUsers()
	wrong := [2]map[int]error{{}, {}}
	if !o.NoPolicies {
		p.user, wrong[0] = matchers(d.policies, p.vhost)
		p.operator, wrong[1] = matchers(d.operator, p.vhost)
	}
	p.takeExchanges()
	p.takeQueues()
	p.takeBindings()
	p.tellPolicies(wrong)
	p.tellRest()
	return p.steps
}

// Version is that of the broker that wrote the export, empty if it does not say.
func (d *Definitions) Version() string { return d.version }

// vhost is the name of a virtual host, which an export of one does not say.
func (p *plan) vhost(name string) string {
	if name == "" {
		return "/"
	}
	return name
}

func (p *plan) add(kind, vhost, name string, status Status, format string, args ...any) *Step {
	s := &Step{Line: Line{Kind: kind, VHost: vhost, Name: name, Account: p.accounts[vhost], Status: status, Text: fmt.Sprintf(format, args...)}}
	p.steps = append(p.steps, s)
	return s
}

// names are the virtual hosts of the file, those among them that only things in it name.
func (p *plan) names() []string {
	all := map[string]bool{}
	for _, v := range p.vhosts {
		all[v.Name] = true
	}
	for _, q := range p.queues {
		all[p.vhost(q.VHost)] = true
	}
	for _, e := range p.exchanges {
		all[p.vhost(e.VHost)] = true
	}
	for _, b := range p.bindings {
		all[p.vhost(b.VHost)] = true
	}
	for _, w := range p.permissions {
		all[p.vhost(w.VHost)] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func (p *plan) takeAccounts() {
	by := map[string]string{}
	for _, name := range p.names() {
		account, chosen := p.o.Accounts[name]
		if !chosen {
			account = name
			if name == "/" {
				account = "default"
			}
		}
		if err := identity.CheckName(account); err != nil {
			p.add("vhost", name, name, NotTaken, "it cannot be an account's name: %v; --account %s=NAME", err, name)
			continue
		}
		if other, twice := by[account]; twice {
			p.add("vhost", name, name, NotTaken, "account %s is for virtual host %q; --account %s=NAME", account, other, name)
			continue
		}
		by[account], p.accounts[name] = name, account
		s := p.add("vhost", name, name, Taken, "account %s", account)
		s.Account = &Account{Name: account}
		for _, v := range p.vhosts {
			if v.Name == name {
				s.limit(v.Limits, v.DefaultType)
			}
		}
	}
	for _, q := range p.parameters {
		if q.Component != "vhost-limits" {
			continue
		}
		var limits settings
		vhost := p.vhost(q.VHost)
		if json.Unmarshal(q.Value, &limits) == nil {
			for _, s := range p.steps {
				if s.Account != nil && s.Line.VHost == vhost {
					s.limit(limits, "")
				}
			}
		}
	}
}

// limit takes the limits of a virtual host.
func (s *Step) limit(limits settings, defaultType string) {
	say := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !strings.Contains(s.Line.Text, text) {
			s.Line.Text += "; " + text
		}
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		n, ok := limits[name].(int64)
		switch {
		case name == "max-connections" && ok && n > 0:
			s.Account.Connections = n
			say("with %d connections at most", n)
		case ok && n < 0: // no limit
		default:
			s.Line.Status = Changed
			say("%s is no limit of an account", name)
		}
	}
	if defaultType == "stream" {
		s.Line.Status = Changed
		say("queues without a type are classic ones, and not streams")
	}
}

// in is the account of something; if there is none it says so in a line.
func (p *plan) in(kind, vhost, name string) bool {
	if _, ok := p.accounts[vhost]; ok {
		return true
	}
	p.add(kind, vhost, name, NotTaken, "its virtual host has no account")
	return false
}

// takeUsers makes a user of each pair of user and virtual host that there are
// permissions for.
func (p *plan) takeUsers() {
	for _, u := range p.users {
		var in []string
		for _, w := range p.permissions {
			if w.User == u.Name {
				in = append(in, p.vhost(w.VHost))
			}
		}
		for _, tag := range u.Tags {
			text := "there is no management interface: fleetbus and the console have roles of their own"
			switch tag {
			case "administrator":
				text = "who was an administrator there is none here: fleetbus user add fleet/NAME --role admin"
			case "monitoring":
				text = "who may look is a user of role metrics: fleetbus user add fleet/NAME --role metrics"
			}
			p.add("tag", "", u.Name+" "+tag, NotTaken, "%s", text)
		}
		if len(in) == 0 {
			p.add("user", "", u.Name, NotTaken, "it has no permissions in any virtual host of the file")
		}
	}
	for i := range p.permissions {
		w := &p.permissions[i]
		w.VHost = p.vhost(w.VHost)
		if p.in("permission", w.VHost, w.User) {
			p.takeUser(w)
		}
	}
}

func (p *plan) takeUser(w *permission) {
	account := p.accounts[w.VHost]
	if err := identity.CheckName(w.User); err != nil {
		p.add("user", w.VHost, w.User, NotTaken, "it cannot be a user's name: %v", err)
		return
	}
	role := identity.Role{Name: p.roleName(account, w.User), Expires: roleLife}
	var notes []string
	status := Taken
	for _, c := range []struct {
		right      right.Right
		expression string
		to         *identity.Rule
	}{
		{right.Configure, w.Configure, &role.Permissions.Publish}, {right.Write, w.Write, &role.Permissions.Publish}, {right.Read, w.Read, &role.Permissions.Subscribe},
	} {
		t := Translate(c.right, c.expression)
		notes = append(notes, t.Spare...)
		switch {
		case t.Exact():
			c.to.Allow = append(c.to.Allow, t.Allow...)
		case p.o.Narrow && len(t.Allow) > 0:
			status = Changed
			c.to.Allow = append(c.to.Allow, t.Allow...)
			notes = append(notes, fmt.Sprintf("%s %q is narrower, without: %s", c.right, c.expression, strings.Join(t.Lost, "; ")))
		default:
			status = Changed
			way := "fleetbus role add says it by hand"
			if len(t.Allow) > 0 {
				way = "--narrow takes less, or fleetbus role add says it by hand"
			}
			notes = append(notes, fmt.Sprintf("%s %q is left out: %s; %s", c.right, c.expression, strings.Join(t.Lost, "; "), way))
		}
	}
	for _, t := range p.topicPermissions {
		if t.User == w.User && p.vhost(t.VHost) == w.VHost {
			p.takeTopics(t, &role)
		}
	}
	for _, u := range p.users {
		if n, ok := u.Limits["max-connections"].(int64); ok && n > 0 && u.Name == w.User {
			role.Limits.Connections = n
			notes = append(notes, fmt.Sprintf("%d connections at most", n))
		}
	}
	text := strings.Join(distinct(notes), "; ")
	if len(role.Permissions.Publish.Allow)+len(role.Permissions.Subscribe.Allow) == 0 {
		p.add("permission", w.VHost, w.User, NotTaken, "%s", strings.TrimSuffix("no right is left, and a user without any is not made; "+text, "; "))
		return
	}
	s := p.add("permission", w.VHost, w.User, status, "%s", strings.TrimSuffix(fmt.Sprintf("role %s; %s", role.Name, text), "; "))
	s.Role = &role
	s = p.add("user", w.VHost, w.User, Changed, "user %s/%s; its password cannot be taken, because only a hash of another kind is known", account, w.User)
	s.User = &User{Account: account, Name: w.User, Role: role.Name}
}

// takeTopics has the keys of a topic exchange that a user may use be what they were, or
// none.
func (p *plan) takeTopics(t topicPermission, role *identity.Role) {
	vhost := p.vhost(t.VHost)
	name := t.User + " " + t.Exchange
	if t.Exchange == topicExchange {
		write, read := Keys(t.Write), Keys(t.Read)
		role.Permissions.Publish.Allow = append(role.Permissions.Publish.Allow, write.Allow...)
		role.Permissions.Subscribe.Allow = append(role.Permissions.Subscribe.Allow, read.Allow...)
		if lost := distinct(append(write.Lost, read.Lost...)); len(lost) > 0 {
			p.add("topic permission", vhost, name, Changed, "without %s: keys of amq.topic are subjects, which fleetbus role add gives", strings.Join(lost, "; "))
			return
		}
		p.add("topic permission", vhost, name, Taken, "keys of amq.topic are subjects")
		return
	}
	var kept []string
	if !matchesAll(t.Write) {
		role.Permissions.Publish.Deny = append(role.Permissions.Publish.Deny, right.Named(right.Write, t.Exchange))
		kept = append(kept, "publish to it")
	}
	if !matchesAll(t.Read) {
		role.Permissions.Subscribe.Deny = append(role.Permissions.Subscribe.Deny, right.Named(right.Read, t.Exchange))
		kept = append(kept, "bind to it")
	}
	if len(kept) == 0 {
		p.add("topic permission", vhost, name, Taken, "it bounds nothing")
		return
	}
	p.add("topic permission", vhost, name, NotTaken, "rights are to exchanges and not to keys of them: the user may not %s at all, which fleetbus role add can change", strings.Join(kept, " and not "))
}

// roleName is a role's for a user of an account.
func (p *plan) roleName(account, user string) string {
	name := "amqp-" + account + "-" + user
	if identity.CheckName(name) != nil || p.roles[name] {
		sum := sha256.Sum256([]byte(account + "/" + user))
		name = "amqp-" + hex.EncodeToString(sum[:8])
	}
	p.roles[name] = true
	return name
}

func key(kind, account, name string) string { return kind + " " + account + " " + name }

func (p *plan) takeExchanges() {
	const kind = "exchange"
	for _, e := range p.exchanges {
		vhost := p.vhost(e.VHost)
		switch {
		case e.Name == "", strings.HasPrefix(e.Name, "amq."):
			continue // every account has them
		case !p.in(kind, vhost, e.Name):
			continue
		case !slices.Contains([]string{"direct", "fanout", "topic", "headers"}, e.Type):
			p.add(kind, vhost, e.Name, NotTaken, "exchanges of type %s are not here", e.Type)
			continue
		}
		if e.Name == topicExchange {
			continue
		}
		arguments, words := apply(e.Arguments, true, applies(p.user, vhost, e.Name, "exchanges"), applies(p.operator, vhost, e.Name, "exchanges"))
		s := p.add(kind, vhost, e.Name, status(words), "%s", strings.Join(words, "; "))
		s.Exchange = &Exchange{Name: e.Name, Type: e.Type, Durable: e.Durable, AutoDelete: e.AutoDelete, Internal: e.Internal, Arguments: arguments}
		p.there[key(kind, s.Line.Account, e.Name)] = true
	}
}

func status(words []string) Status {
	if len(words) > 0 {
		return Changed
	}
	return Taken
}

func (p *plan) takeQueues() {
	const kind = "queue"
	for _, q := range p.queues {
		vhost := p.vhost(q.VHost)
		if !p.in(kind, vhost, q.Name) {
			continue
		}
		sort, _ := q.Arguments["x-queue-type"].(string)
		if sort == "" {
			sort = q.Type
		}
		why := ""
		switch {
		case sort == "stream":
			why = "queues of type stream are not here: fleetbus stream add makes one for NATS and MQTT"
		case sort != "" && sort != "classic" && sort != "quorum":
			why = fmt.Sprintf("queues of type %s are not here", sort)
		case q.Exclusive:
			why = "it is of one connection, which declares it again"
		case strings.HasPrefix(q.Name, "amq."):
			why = "its name was chosen by a server for a connection, which declares it again"
		case q.Name == "":
			why = "it has no name"
		}
		if why != "" {
			p.add(kind, vhost, q.Name, NotTaken, "%s", why)
			continue
		}
		to := []string{"queues", "classic_queues"}
		if sort == "quorum" {
			to[1] = "quorum_queues"
		}
		arguments, words := apply(q.Arguments, false, applies(p.user, vhost, q.Name, to...), applies(p.operator, vhost, q.Name, to...))
		state := status(words)
		if !q.Durable {
			words = append(words, "it is not durable: it lasts as long as the node that has the account")
		}
		if q.AutoDelete {
			words = append(words, "it goes with its last consumer")
		}
		s := p.add(kind, vhost, q.Name, state, "%s", strings.Join(words, "; "))
		s.Queue = &Queue{Name: q.Name, Durable: q.Durable, AutoDelete: q.AutoDelete, Arguments: arguments}
		p.there[key(kind, s.Line.Account, q.Name)] = true
	}
}

func (p *plan) takeBindings() {
	const kind = "binding"
	for _, b := range p.bindings {
		vhost := p.vhost(b.VHost)
		name := fmt.Sprintf("%s -> %s", b.Source, b.Destination)
		if b.Key != "" {
			name = fmt.Sprintf("%s -> %s (%s)", b.Source, b.Destination, b.Key)
		}
		account, ok := p.accounts[vhost]
		if b.Source == "" { // the default exchange has every queue
			continue
		}
		has := func(kind, name string) bool {
			return kind == "exchange" && strings.HasPrefix(name, "amq.") || p.there[key(kind, account, name)]
		}
		why := ""
		switch {
		case !ok:
			why = "its virtual host has no account"
		case b.Kind != "queue" && b.Kind != "exchange":
			why = fmt.Sprintf("a binding leads to a queue or an exchange, and not to %q", b.Kind)
		case !has("exchange", b.Source):
			why = fmt.Sprintf("exchange %q is not taken", b.Source)
		case !has(b.Kind, b.Destination):
			why = fmt.Sprintf("%s %q is not taken", b.Kind, b.Destination)
		case b.Kind == "exchange" && b.Destination == topicExchange:
			why = "only clients publish to amq.topic, because its keys are judged as subjects"
		}
		if why != "" {
			p.add(kind, vhost, name, NotTaken, "%s", why)
			continue
		}
		s := p.add(kind, vhost, name, Taken, "")
		s.Binding = &Binding{Source: b.Source, Destination: b.Destination, Key: b.Key, ToExchange: b.Kind == "exchange", Arguments: b.Arguments}
	}
}

func (p *plan) tellPolicies(wrong [2]map[int]error) {
	for i, all := range [][]policy{p.policies, p.Definitions.operator} {
		kind := []string{"policy", "operator policy"}[i]
		for j := range all {
			one := &all[j]
			vhost := p.vhost(one.VHost)
			switch err := wrong[i][j]; {
			case p.o.NoPolicies:
				p.add(kind, vhost, one.Name, NotTaken, "policies are left out, as was asked for")
			case err != nil:
				p.add(kind, vhost, one.Name, NotTaken, "its expression cannot be read here: %v", err)
			default:
				known := [][]*matcher{p.user, p.operator}[i]
				m := known[slices.IndexFunc(known, func(m *matcher) bool { return m.policy == one })]
				state, text := m.told()
				p.add(kind, vhost, one.Name, state, "%s", text)
			}
		}
	}
}

// tellRest says why the rest is not taken.
func (p *plan) tellRest() {
	for _, q := range p.parameters {
		text := "it is not known here"
		switch q.Component {
		case "vhost-limits":
			continue // they are with the virtual host
		case "shovel":
			text = "a link of the node carries messages: hub.type amqp"
		case "federation-upstream", "federation-upstream-set", "federation":
			text = "there is no federation; a link of the node carries messages: hub.type amqp"
		}
		p.add("parameter", p.vhost(q.VHost), q.Component+" "+q.Name, NotTaken, "%s", text)
	}
	for _, q := range p.global {
		text := "it is not known here"
		switch q.Name {
		case "cluster_name", "internal_cluster_id", "cluster_tags":
			text = "not needed: a fleet has a name of its own"
		case "mqtt_default_vhosts", "mqtt_port_to_vhost_mapping":
			text = "a user of MQTT is in the account of its name: docs/mqtt.md"
		}
		p.add("global parameter", "", q.Name, NotTaken, "%s", text)
	}
	for _, name := range p.unknown {
		p.add("section", "", name, NotTaken, "it is not known here")
	}
}
