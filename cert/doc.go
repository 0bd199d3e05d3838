// Package cert is certificates as those see them who serve them.
//
// A manager obtains a certificate once, seals its private key to a group of
// targets, signs the record and appends it to a ledger. A target follows the
// records of its group, believes only what is signed by a manager, opens only what
// is sealed to it, and keeps a snapshot from which it starts and serves with the bus
// away. A Go server does so with a [Store]:
//
//	store, err := cert.Open(cert.Options{Key: key, Dir: dir})
//	go store.Run(ctx, nc) // made with nats.CustomInboxPrefix(key.Inbox())
//	tlsConfig.GetCertificate = store.GetCertificate
//
// # Records
//
// A ledger of certificates is a stream of an account. What is in it:
//
//	g.<group>.cert.<id>       a [Record]: a certificate, over all its renewals
//	g.<group>.key             a [GroupKey]
//	g.<group>.target.<name>   a [Target], with what it opens the group key by and signs by
//	g.<group>.challenge.<id>  a [Challenge] that every target has to answer
//	config                    the [Config] of the managers
//
// What targets report is a ledger, and a stream, of its own, so that a thousand targets
// that follow the records need not step over a thousand reports:
//
//	report.<group>.<target>.<id>  a [Seen]: what a target was seen serving
//
// [Ledgers] are both. No order holds between them: a report can be heard before the record
// that it is about, or that says whose it is. Reports of before, seen.<group>.<target>.<id>
// among the records, count until the target has reported anew.
//
// The target signs what it was seen serving, and managers sign all else. A record is
// always whole: the last of a subject is all there is to know. It is decoded leniently:
// what is unknown does no harm, and subjects that are unknown are left alone. A manager
// that writes a record anew drops the fields that it does not know, so that all managers
// are to be of the version that writes a field before it is relied on.
//
// A target uses no API of the engine: it reads by way of a [Relay], which nodes run.
package cert
