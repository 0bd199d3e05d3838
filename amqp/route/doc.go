// Package route decides which queues of a virtual host a message goes to: exchanges and
// what is bound to them, as AMQP 0-9-1 and RabbitMQ's extensions have them. It knows
// queues by their names only, does no I/O and keeps nothing but memory.
//
// A Table is replaced by each change and never changed itself, so that those who route wait
// for nobody. Both tables share all but what is different: to bind costs the same beside
// ten bindings and beside a hundred thousand. A Change is one as a value, and all of a
// table is JSON, so that nodes can follow one another.
package route
