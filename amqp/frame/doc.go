// Package frame reads and writes the frames of AMQP 0-9-1 with RabbitMQ's
// extensions, and what is in them: methods, tables and the properties of messages.
// It is pure: it has no socket, no goroutine and no clock.
//
// A Reader takes frames out of a stream, many out of one read, and without
// allocating for those that there are most of. A Method is a pointer to a struct of
// its name, such as *QueueDeclare. Appending writes; it is the caller's to send what
// is written.
//
// Everything that comes from a peer is bounded before there is memory for it: a
// frame by the size that was agreed on, a table by the number of its entries and by
// how deep tables are in one another. A length that was declared is never allocated
// before its bytes are there. What a peer did wrong is an *Error, which has the reply
// code to answer with.
package frame
