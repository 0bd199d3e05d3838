// Package identity decides who may connect to a fleet, and as whom.
//
// An [Authority] holds the secrets of a fleet: it signs accounts, users,
// sessions and certificates. A [Directory] holds what the fleet agreed on:
// accounts, roles, users, nodes and enrollment tokens, folded from the events of
// the ledger. [Directory.Authenticate] turns [Credentials] of any sort into a
// [Principal], and the Authority turns a Principal into what the engine
// understands.
//
// The package opens no socket and no file, reads no environment and logs
// nothing. Secrets that pass through its types are not printed by fmt or slog.
package identity
