package admin

import (
	"context"

	"github.com/fleetbus/fleetbus/identity"
)

// ExportRequest asks that an account consent to others having a subject of it, or
// consent no more.
type ExportRequest struct {
	Account string `json:"account"`
	Subject string `json:"subject"`
	// Service says that the subject answers requests.
	Service bool `json:"service,omitempty"`
	// To names the accounts, Everybody is for all.
	To        []string `json:"to,omitempty"`
	Everybody bool     `json:"everybody,omitempty"`
}

// ExportInfo is an export, and who has it.
type ExportInfo struct {
	identity.Export
	// Importers are the accounts that import it now.
	Importers []string `json:"importers"`
}

// ImportRequest asks that an account have a subject of another.
type ImportRequest struct {
	Account string `json:"account"`
	// From is the other account, Subject what is taken of it.
	From    string `json:"from"`
	Subject string `json:"subject"`
	// As is the subject here. Empty: the same.
	As string `json:"as,omitempty"`
	// Service takes the service if messages are exported under that subject, too.
	Service bool `json:"service,omitempty"`
}

// How an import stands.
const (
	// ImportLive is in force.
	ImportLive = "live"
	// ImportWaiting has no consent, or no more.
	ImportWaiting = "waiting"
)

// ImportInfo is an import and how it stands.
type ImportInfo struct {
	identity.Import
	State string `json:"state"`
}

// AddExport consents, for the accounts that are named beside those that have the
// export already.
func (c *Client) AddExport(ctx context.Context, r ExportRequest) (Spread, error) {
	return call[Spread](ctx, c, "export.add", r)
}

// Exports lists the exports of an account, or of all if account is empty.
func (c *Client) Exports(ctx context.Context, account string) ([]ExportInfo, error) {
	return call[[]ExportInfo](ctx, c, "export.ls", Name{account})
}

// RemoveExport takes consent back from the accounts that are named, or from all if
// none is. When it returns nothing flows to them any more, on every node of the
// answer.
func (c *Client) RemoveExport(ctx context.Context, r ExportRequest) (Spread, error) {
	return call[Spread](ctx, c, "export.rm", r)
}

// AddImport makes an import. It is refused if the other account does not consent.
func (c *Client) AddImport(ctx context.Context, r ImportRequest) (Spread, error) {
	return call[Spread](ctx, c, "import.add", r)
}

// Imports lists the imports of an account, or of all if account is empty.
func (c *Client) Imports(ctx context.Context, account string) ([]ImportInfo, error) {
	return call[[]ImportInfo](ctx, c, "import.ls", Name{account})
}

// RemoveImport removes the import that an account has as a subject.
func (c *Client) RemoveImport(ctx context.Context, account, as string) (Spread, error) {
	return call[Spread](ctx, c, "import.rm", ImportRequest{Account: account, As: as})
}
