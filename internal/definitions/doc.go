// Package definitions reads what RabbitMQ exports as its definitions, and says what of it
// there can be here: accounts, users, roles, exchanges, queues and bindings. It is pure:
// nothing is made by it. Rights are never wider than they were.
package definitions
