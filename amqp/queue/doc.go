// Package queue is a queue of AMQP 0-9-1 with RabbitMQ's extensions: who gets which
// message, in what order, and what becomes of it. It has no socket and no engine. A
// durable queue has a Log, which somebody else writes.
//
// A Queue is an actor without a goroutine: each call takes its lock, changes it, and
// hands out what can be handed out. What it then has to tell others, such as publishers
// and whoever routes dead letters, it tells without the lock, in order, from the
// goroutine of one of its callers. So a queue that nobody uses costs its memory only, and
// two queues may send one another dead letters.
//
// Messages are handed out in the order of their places, which they got when they came. One
// that comes back has its old place, and so goes before all that are behind it.
//
// Time comes from Timers, which all queues of a node share.
package queue
