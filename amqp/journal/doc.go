// Package journal keeps what is durable of a virtual host in one stream of the engine:
// its exchanges, queues and bindings, the messages of its queues, and which of them are
// done with.
//
// Everything that is written says which message of the stream has to be the last before
// it. So nothing is stored twice, whatever answer was lost, and a journal that another
// one was opened after can write no more: not by a clock, but because the other has
// written. What a Journal says is stored is on the disks of most nodes of the stream.
package journal
