// Package attack is the table of who attacks what, and how it is tried: every listener
// with the attacks on it, every parser of what others send with the target that fuzzes it,
// and the tests of all packages that hold the rest. `make attack` runs all of it, and
// `make fuzz` the targets.
package attack

// A Listener is a port of a node.
type Listener struct {
	// Name of it, in a node that has all.
	Name string
	// Setting is the protocol in the settings; empty: it is no listener of theirs.
	Setting string
	// Clear says that there is no TLS, and Greets that the node speaks first, in clear,
	// before TLS.
	Clear, Greets bool
	// Asks says whose certificate the other side has to show; empty: it need not.
	Asks string
}

// Listeners are all of them.
func Listeners() []Listener {
	return []Listener{
		{Name: "nats", Setting: "nats", Greets: true},
		{Name: "cluster", Asks: "node"},
		{Name: "gateway", Setting: "gateway", Asks: "gateway"},
		{Name: "leaf", Setting: "leaf"},
		{Name: "mqtt", Setting: "mqtt"},
		{Name: "amqp", Setting: "amqp"},
		{Name: "console", Setting: "console"},
		{Name: "sse", Setting: "sse"},
		{Name: "metrics", Setting: "metrics"},
		{Name: "provision", Setting: "provision", Clear: true},
		{Name: "open", Setting: "open", Clear: true},
		{Name: "monitor", Clear: true},
	}
}
