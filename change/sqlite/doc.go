// Package sqlite tells of the changes of a SQLite database, whichever process
// makes them. It needs no server and no cgo.
//
// [New] makes a change.Source of a file. The source installs what it needs: the
// tables fleetbus_changes and fleetbus_state, and triggers on the chosen tables,
// which write the key of every changed row to fleetbus_changes in the transaction
// that changes it. With Options.NoInstall it installs nothing, and its error has
// the statements. [Remove] takes everything out again; a database must not lose
// fleetbus_changes alone, because the triggers would fail, and with them every
// write.
//
// One connection writes a SQLite database at a time, so that the numbers of the
// rows are in the order of the commits. They are the versions. The source looks
// at PRAGMA data_version, which tells of the commits of all processes, reads the
// new rows, announces them, and deletes them when the bus has recorded them. What
// was not recorded stays, so that a source that was away announces it, and no
// watcher has to look again. Run one source for a file: each takes out the
// triggers that it does not want.
//
// The source announces a Resync of a table that got its triggers anew, was
// created, dropped, renamed or altered, and of everything, with a new epoch, when
// the file is another one. An older copy that was written into the same file while
// no source ran looks like the same file. Delete from fleetbus_state after that, and
// the source begins anew.
//
// A key is the name of the table and the values of its primary key. Without a
// primary key it is the rowid, which VACUUM and a dump may change: then, and after
// every change of the schema, such a table has a Resync. A row whose key is NULL or
// longer than 1 kB is announced as a Resync of its table.
//
// INSERT OR REPLACE, and UPDATE OR REPLACE, delete the rows that are in the way
// without telling triggers. Rows that are in the way of a UNIQUE column are announced
// as updates; who reads finds none. Those in the way of a unique index on an
// expression, or with a WHERE, are announced only if the writer sets PRAGMA
// recursive_triggers = ON. The source warns of such an index.
//
// Writers should set a busy timeout, as with every second connection to a
// SQLite database: the source writes for a few milliseconds when it deletes.
package sqlite
