// Package change tells servers that something changed, and never what it is now.
//
// A [Publisher] announces: this key was inserted, updated or deleted, at this
// version. A [Watcher] hears of it in milliseconds, and goes and reads. What it
// may have missed, because a link broke or it was too slow, it is told of by one
// notice of kind [Resync]: look again. So a gap is never silent.
//
// A [Source] makes the announcements of a database; those are in the packages
// below this one.
//
// Notices travel twice. The first copy goes straight to the watchers that are
// connected, as fast as the engine routes. The second, merged by key, is kept in
// a stream, the history of the account, from which a watcher finds what it did
// not hear. Whoever knows when its own process is told apart from the others'
// needs nothing else: see [Watcher].
package change
