package cert

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/ledger"
)

// history is how many events of a subject the ledger keeps: enough to see what
// happened to a certificate, and no more, because a fleet lives longer than a disk.
const history = 32

// OpenLedger opens the ledger of certificates of the account that js belongs to. It
// makes it if it is missing, on three nodes where there are three, which targets may not.
func OpenLedger(ctx context.Context, js jetstream.JetStream) (*ledger.Ledger, error) {
	return ledger.Open(ctx, js, ledgerOptions())
}

func ledgerOptions() ledger.Options {
	return ledger.Options{
		Stream: Stream, Prefix: Prefix, History: history, Replicas: 3, OrOne: true,
		Metadata: map[string]string{"fleetbus.replicas": "auto"},
	}
}
