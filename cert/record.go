package cert

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"
)

// What the ledgers of certificates, and of the reports about them, are called on the bus.
const (
	Stream       = "CERTS"
	Prefix       = "$FLEETBUS.certs"
	ReportStream = "CERTREPORTS"
	ReportPrefix = "$FLEETBUS.certreports"
)

// The version of records that this package writes.
const version = 1

// Event says what happened last to a certificate.
type Event string

// What happens to certificates. Readers meet others, of later versions, too.
const (
	Requested  Event = "requested"   // somebody asked for it, or changed what is asked
	Leased     Event = "leased"      // a manager works on the next generation
	Ordered    Event = "ordered"     // it has an order at an issuer, which can be resumed
	Obtained   Event = "obtained"    // there is a new generation, for the targets of the first wave
	Advanced   Event = "advanced"    // the next wave of targets may have it, or all
	RolledBack Event = "rolled-back" // the new generation was taken back
	Failed     Event = "failed"      // an attempt came to nothing
	Scheduled  Event = "scheduled"   // the authority says when to renew
	Revoked    Event = "revoked"     // generations were revoked at the authority, or are to be
	Removed    Event = "removed"     // nobody shall serve it any more
)

// Reason says why a generation was obtained.
type Reason string

// Why generations are obtained.
const (
	ReasonNew     Reason = "new"
	ReasonRenewal Reason = "renewal"
	ReasonARI     Reason = "ari"     // its authority asked for it
	ReasonRevoked Reason = "revoked" // the one before was, or will be
	ReasonForced  Reason = "forced"
	ReasonImport  Reason = "import"
	ReasonRekey   Reason = "rekey" // a target that knows the key was removed
)

// A Record is a certificate over all its renewals, after its last event. Only
// managers write it.
type Record struct {
	Version int    `json:"v"`
	ID      string `json:"id"`
	Group   string `json:"group"`
	// Event is the last one, the Revision'th of this certificate, written by a
	// manager of that name. A reader takes no record of a revision that it is past.
	Event    Event     `json:"event"`
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at"`
	By       string    `json:"by"`

	Policy Policy `json:"policy"`
	// Current is what every target serves. Nil: nothing was obtained yet.
	Current *Bundle `json:"current,omitempty"`
	// Next is served by the targets of Wave instead. Nil: nothing is rolled out.
	Next *Bundle `json:"next,omitempty"`
	Wave *Wave   `json:"wave,omitempty"`
	// Refused are targets that had a generation taken back since the last one that went
	// to all: each does so once only, or one alone could keep all others from the next.
	Refused []string `json:"refused,omitempty"`
	// Withdrawn is the highest generation that was rolled back. A target that
	// serves that one, or less, goes back to Current.
	Withdrawn uint64 `json:"withdrawn,omitempty"`

	// Lease is who works on the next generation. Nil: nobody.
	Lease *Lease `json:"lease,omitempty"`
	// Failure is what came of the last attempt. Nil: it went well.
	Failure *Failure `json:"failure,omitempty"`
	// Renew is why the next generation is wanted before its time. Empty: it is not.
	Renew Reason `json:"renew,omitempty"`
	// Revoking are generations to be revoked once every target serves a newer one.
	Revoking []Revocation `json:"revoking,omitempty"`
	// Removed says that the certificate is no more. Current is nil then.
	Removed bool `json:"removed,omitempty"`
}

// A Policy is what is asked of a certificate.
type Policy struct {
	// Names are DNS names in lower case, A-labels, wildcards of one label, and IP
	// addresses. The first is what people call it.
	Names []string `json:"names"`
	// Issuers are tried in this order. Empty: those of the configuration.
	Issuers []string `json:"issuers,omitempty"`
	// Challenge is how control of the names is proved; Challenges is for names that
	// differ. Empty: what the configuration says.
	Challenge  Method            `json:"challenge,omitempty"`
	Challenges map[string]Method `json:"challenges,omitempty"`
	// Profile at the issuer. Empty: the issuer's default.
	Profile string `json:"profile,omitempty"`
	// KeyType is p256, p384, rsa2048, rsa3072 or rsa4096. Empty: p256.
	KeyType string `json:"key_type,omitempty"`
	// ReuseKey keeps the private key over renewals.
	ReuseKey bool `json:"reuse_key,omitempty"`
	// Waves is how a new generation reaches the targets: "waves" (one, a tenth, the
	// rest) or "all" (at once). Empty: waves.
	Waves string `json:"waves,omitempty"`
	// Imported certificates are not renewed here.
	Imported bool `json:"imported,omitempty"`
}

// Method is how control of a name is proved.
type Method struct {
	// Type is dns-01, dns-persist-01, http-01 or tls-alpn-01.
	Type string `json:"type,omitempty"`
	// Provider is the DNS provider, by its name in the configuration.
	Provider string `json:"provider,omitempty"`
	// Delegated is the name that _acme-challenge.<name> is a CNAME of. Empty: none.
	Delegated string `json:"delegated,omitempty"`
}

// A Bundle is one generation of a certificate, with its sealed private key.
type Bundle struct {
	Generation uint64    `json:"generation"`
	Reason     Reason    `json:"reason"`
	Names      []string  `json:"names"`
	NotBefore  time.Time `json:"not_before"`
	NotAfter   time.Time `json:"not_after"`
	// Issuer and Profile that it is from.
	Issuer  string `json:"issuer"`
	Profile string `json:"profile,omitempty"`
	// Chain is PEM, the leaf first, without the root.
	Chain string `json:"chain"`
	// Serial of the leaf, and the SHA-256 of it and of its public key, in
	// hexadecimal.
	Serial string `json:"serial"`
	Leaf   string `json:"leaf_sha256"`
	SPKI   string `json:"spki_sha256"`
	// Key is the private key, PKCS #8, sealed to the group.
	Key Sealed `json:"key"`
	// Renewal is what the authority said of its renewal. Nil: nothing.
	Renewal *Renewal `json:"ari,omitempty"`
	// Replaces is the Leaf that this one takes the place of.
	Replaces string `json:"replaces,omitempty"`
}

// Renewal is when an authority wants a certificate to be renewed.
type Renewal struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// Selected is the moment within the window that was chosen, once.
	Selected time.Time `json:"selected"`
	// Explanation is a URL that says why. Empty: there is nothing to say.
	Explanation string `json:"explanation_url,omitempty"`
	// Again is when to ask the authority again.
	Again time.Time `json:"again"`
}

// A Wave is how far the next generation has come.
type Wave struct {
	// Number of the wave, from 1.
	Number int `json:"number"`
	// Targets that serve it. The last wave has no record: Next is Current then.
	Targets []string `json:"targets"`
	// Behind are those of Targets that were away, did not serve Current before they got
	// it, or are Refused: what becomes of it there says nothing of it.
	Behind []string  `json:"behind,omitempty"`
	Since  time.Time `json:"since"`
}

// A Lease says that a manager, and no other, works on a generation.
type Lease struct {
	Holder     string    `json:"holder"`
	Generation uint64    `json:"generation"`
	Until      time.Time `json:"until"`
	// Order is where it stands at the issuer. Nil: nothing was ordered.
	Order *Order `json:"order,omitempty"`
}

// An Order can be resumed by another manager.
type Order struct {
	Issuer string `json:"issuer"`
	// State is the issuer's own, such as the URL of the order. Empty: it was asked for,
	// and nobody knows yet whether it was placed.
	State string `json:"state,omitempty"`
	// Lost is how many were asked for before, for this generation, of which nobody will
	// know.
	Lost int `json:"lost,omitempty"`
	// Key is the private key of the certificate to be, sealed to the managers.
	Key Sealed `json:"key"`
	// Placed is when it was.
	Placed time.Time `json:"placed"`
}

// A Failure is an attempt that came to nothing.
type Failure struct {
	// Step that failed: lease, order, challenge, finalize, verify, deliver.
	Step   string `json:"step"`
	Issuer string `json:"issuer,omitempty"`
	// Problem is the type of an ACME problem; Detail is for people.
	Problem string `json:"problem,omitempty"`
	Detail  string `json:"detail"`
	// Attempts that failed in a row, the last one At, and when the Next may be.
	Attempts int       `json:"attempts"`
	At       time.Time `json:"at"`
	Next     time.Time `json:"next"`
}

// A Revocation is wanted, or done, at the authority.
type Revocation struct {
	Generation uint64 `json:"generation"`
	Issuer     string `json:"issuer"`
	Chain      string `json:"chain"`
	// Reason is RFC 5280's word, such as keyCompromise.
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// A GroupKey is what the private keys of a group are sealed with. It is secret:
// each target has it in its own record, and managers have it here.
type GroupKey struct {
	Version  int    `json:"v"`
	Group    string `json:"group"`
	Revision uint64 `json:"revision"`
	// Generation of the key that new certificates are sealed with.
	Generation uint64 `json:"generation"`
	// Keys are sealed to the managers, by its generation; old ones stay as long as a
	// certificate needs them.
	Keys map[uint64]Sealed `json:"keys"`
}

// A Target is a principal that serves certificates of a group.
type Target struct {
	Version int    `json:"v"`
	Group   string `json:"group"`
	Name    string `json:"name"`
	// Public is its sealing key, and Signer is who signs its reports. Empty: it was
	// invited and has not come yet.
	Public []byte `json:"public,omitempty"`
	Signer Signer `json:"signer,omitempty"`
	// Keys are the group's, sealed to it, by their generation.
	Keys map[uint64]Sealed `json:"keys,omitempty"`
	// Added is when it was invited, and Joined when its key came.
	Added  time.Time `json:"added"`
	Joined time.Time `json:"joined,omitzero"`
	// Removed says that it is none any more.
	Removed  bool   `json:"removed,omitempty"`
	Revision uint64 `json:"revision"`
}

// A Challenge is what an authority looks for at any target of a group.
type Challenge struct {
	Version  int    `json:"v"`
	Revision uint64 `json:"revision"`
	Group    string `json:"group"`
	ID       string `json:"id"`
	// Type is http-01 or tls-alpn-01.
	Type string `json:"type"`
	// Name that is to be proved.
	Name string `json:"name"`
	// Token and KeyAuth are RFC 8555's.
	Token   string `json:"token"`
	KeyAuth string `json:"key_authorization"`
	// At is when it was presented, and Until when it is of no use any more, even by a
	// clock that is a day off. Zero: it was taken back.
	At    time.Time `json:"at,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// A Config is what the managers know and nobody else: accounts at authorities, secrets
// of DNS providers.
type Config struct {
	Version  int    `json:"v"`
	Revision uint64 `json:"revision"`
	// Managers is the configuration, sealed to the managers.
	Managers Sealed `json:"managers"`
	// Recovery is the same, encrypted with age to Recipients, so that it can be had
	// when every manager's key is lost.
	Recovery   []byte   `json:"recovery,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
}

// A Seen is what a target was last seen serving, by a handshake of its own. The target
// signs it: others have ways to write in its place.
type Seen struct {
	Version    int       `json:"v"`
	Target     string    `json:"target"`
	ID         string    `json:"id"`
	Generation uint64    `json:"generation"` // what it has installed; 0: the certificate was removed
	Serial     string    `json:"serial"`     // what the handshake showed
	At         time.Time `json:"at"`         // later than that of the report before
	// Program that serves: go, nginx, haproxy, envoy, caddy, traefik or files.
	Program string `json:"program,omitempty"`
	// Error is why it does not serve Generation. Empty: it does.
	Error string `json:"error,omitempty"`
}

// CertSubject is the subject of a certificate's record. Like the others it is without
// the ledger's prefix, and group, target and id are one token each.
func CertSubject(group, id string) string { return "g." + group + ".cert." + id }

// KeySubject is the subject of a group's key.
func KeySubject(group string) string { return "g." + group + ".key" }

// TargetSubject is the subject of a target's record.
func TargetSubject(group, name string) string { return "g." + group + ".target." + name }

// ChallengeSubject is the subject of a challenge. When that is over, the next one has it:
// each subject keeps some events for good. So its id does not tell a challenge; its token
// does.
func ChallengeSubject(group, id string) string { return "g." + group + ".challenge." + id }

// SeenSubject is the subject of what a target was seen serving of a certificate, in the
// ledger of reports.
func SeenSubject(group, target, id string) string {
	return "report." + group + "." + target + "." + id
}

// formerSubject is where that was while reports were among the records.
func formerSubject(group, target, id string) string {
	return "seen." + group + "." + target + "." + id
}

// IsReport reports whether a subject is that of a report in the ledger of reports.
func IsReport(subject string) bool { return strings.HasPrefix(subject, "report.") }

// ConfigSubject is the subject of the managers' configuration.
const ConfigSubject = "config"

// requests begins the subjects of what is asked and not stored: the ledgers have all
// that begin with Prefix, or ReportPrefix.
const requests = "$FLEETBUS.cert."

// AskSubject is where a manager asks the targets of a group, on the bus, who has the
// challenge of a token. A target answers with its name once it would answer the authority.
func AskSubject(group string) string { return requests + "ask." + group }

// APISubject is where managers are asked to do something, on the bus.
func APISubject(verb string) string { return requests + "api." + verb }

// EnrollSubject is where a target of that name sends its sealing key, on the bus.
// Only the target may.
func EnrollSubject(target string) string { return requests + "enroll." + target }

// NewID returns the id of a new certificate: 11 characters that can be one token of
// a subject, and do not begin with a dash.
func NewID() string {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // it never fails
		if id := base64.RawURLEncoding.EncodeToString(b[:]); !strings.HasPrefix(id, "-") {
			return id
		}
	}
}
