package fleetbus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

func exportSubject(e identity.Export) string { return "export." + e.Account + "." + e.ID }
func importSubject(i identity.Import) string { return "import." + i.Account + "." + i.ID }

// actFlow gives the engine the new terms of those accounts that an export or an
// import of that account concerns.
func (f *fleet) actFlow(noun, account string) error {
	names := []string{account}
	if noun == "export" {
		// Whoever exports comes first: what its terms do not consent to, the engine
		// takes from nobody's.
		for _, i := range f.directory.Imports("") {
			if i.From.Account == account && !slices.Contains(names, i.Account) {
				names = append(names, i.Account)
			}
		}
	}
	return f.storeNamed(names)
}

// storeNamed stores those accounts that there are, in that order.
func (f *fleet) storeNamed(names []string) error {
	var accounts []identity.Account
	for _, name := range names {
		if a, ok := f.directory.Account(name); ok {
			accounts = append(accounts, a)
		}
	}
	return f.storeAccounts(accounts)
}

// flowError tells whoever asked what is wrong with a flow.
func flowError(err error) error {
	code := admin.Invalid
	if errors.Is(err, identity.ErrFlow) {
		code = admin.Conflict
	}
	return admin.Errorf(code, "", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// exportOf is the export that a request is about, as it is now.
func (s *Server) exportOf(r admin.ExportRequest) (e identity.Export, exists bool, err error) {
	a, err := s.wantAccount(r.Account)
	if err != nil {
		return e, false, err
	}
	fresh := identity.Export{Party: a.Party(), ID: identity.ExportID(r.Subject, r.Service), Subject: r.Subject, Service: r.Service, Created: time.Now()}
	for _, e := range s.fleet.directory.Exports(a.Name) {
		if e.ID == fresh.ID && e.Public == a.Public {
			return e, true, nil
		}
	}
	return fresh, false, nil
}

func (s *Server) addExport(ctx context.Context, r admin.ExportRequest) (any, error) {
	began := time.Now()
	if r.Everybody == (len(r.To) > 0) {
		return nil, admin.Errorf(admin.Invalid, "name the accounts, or everybody", "it is not said who may have the export")
	}
	e, _, err := s.exportOf(r)
	if err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, exportSubject(e), func() (any, error) {
		e, exists, err := s.exportOf(r)
		if err != nil {
			return nil, err
		}
		changed := !exists
		switch {
		case r.Everybody:
			changed = changed || !e.Everybody
			e.Everybody, e.To = true, nil
		case e.Everybody:
			return nil, admin.Errorf(admin.Conflict, "fleetbus account export rm "+e.Account+" '"+e.Subject+"'", "everybody may have it")
		}
		for _, name := range r.To {
			to, err := s.wantAccount(name)
			if err != nil {
				return nil, err
			}
			if to.Name == e.Account {
				return nil, admin.Errorf(admin.Invalid, "name other accounts", "an account has its own subjects")
			}
			changed = e.Grant(to.Party(), time.Now()) || changed
		}
		if !changed {
			return nil, errSame
		}
		if err := s.fleet.directory.CheckExport(e); err != nil {
			return nil, flowError(err)
		}
		return e, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) removeExport(ctx context.Context, r admin.ExportRequest) (any, error) {
	began := time.Now()
	e, exists, err := s.exportOf(r)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account export ls "+r.Account, "account %q does not export %q", r.Account, r.Subject)
	}
	seq, err := s.fleet.change(ctx, exportSubject(e), func() (any, error) {
		e, exists, err := s.exportOf(r)
		switch {
		case err != nil:
			return nil, err
		case !exists && len(r.To) > 0:
			return nil, errSame
		case len(r.To) == 0:
			return nil, nil
		case e.Everybody:
			return nil, admin.Errorf(admin.Conflict, "fleetbus account export rm "+e.Account+" '"+e.Subject+"'", "everybody may have it, and it cannot be taken from some")
		}
		changed := false
		for _, name := range r.To {
			to, err := s.wantAccount(name)
			if err != nil {
				return nil, err
			}
			changed = e.Revoke(to.Party(), time.Now()) || changed
		}
		if !changed {
			return nil, errSame
		}
		return e, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) listExports(_ context.Context, r admin.Name) (any, error) {
	if r.Name != "" {
		if _, err := s.wantAccount(r.Name); err != nil {
			return nil, err
		}
	}
	return s.fleet.exports(r.Name), nil
}

// exports are those of an account, or of all, with who has them.
func (f *fleet) exports(account string) []admin.ExportInfo {
	all := []admin.ExportInfo{}
	imports := f.imports("")
	for _, e := range f.directory.Exports(account) {
		info := admin.ExportInfo{Export: e, Importers: []string{}}
		for _, i := range imports {
			if i.State == admin.ImportLive && i.From == e.Party && i.Service == e.Service && e.Covers(i.Subject) && !slices.Contains(info.Importers, i.Account) {
				info.Importers = append(info.Importers, i.Account)
			}
		}
		all = append(all, info)
	}
	return all
}

func (s *Server) importOf(r admin.ImportRequest) (identity.Import, error) {
	a, err := s.wantAccount(r.Account)
	if err != nil {
		return identity.Import{}, err
	}
	from, err := s.wantAccount(r.From)
	if err != nil {
		return identity.Import{}, err
	}
	as := cmp.Or(r.As, r.Subject)
	i := identity.Import{
		Party: a.Party(), ID: identity.ImportID(as), From: from.Party(), Subject: r.Subject, As: as, Service: r.Service, Created: time.Now(),
	}
	if !i.Service && !s.fleet.directory.Consented(i) {
		service := i
		service.Service = true
		if s.fleet.directory.Consented(service) {
			return service, nil
		}
	}
	return i, nil
}

func (s *Server) addImport(ctx context.Context, r admin.ImportRequest) (any, error) {
	began := time.Now()
	i, err := s.importOf(r)
	if err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, importSubject(i), func() (any, error) {
		i, err := s.importOf(r)
		if err != nil {
			return nil, err
		}
		if err := s.fleet.directory.CheckImport(i); err != nil {
			return nil, flowError(err)
		}
		if !s.fleet.directory.Consented(i) {
			return nil, admin.Errorf(admin.Denied, "fleetbus account export "+i.From.Account+" '"+i.Subject+"' --to "+i.Account,
				"account %q does not let %q have %q", i.From.Account, i.Account, i.Subject)
		}
		for _, known := range s.fleet.directory.Imports(i.Account) {
			if known.ID != i.ID || known.Public != i.Public {
				continue
			}
			i.Created = known.Created
			if sameRecord(known, i) {
				return nil, errSame
			}
			return nil, admin.Errorf(admin.Conflict, "fleetbus account import rm "+i.Account+" '"+i.As+"'", "account %q has %q from %s:%s", i.Account, i.As, known.From.Account, known.Subject)
		}
		return i, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) removeImport(ctx context.Context, r admin.ImportRequest) (any, error) {
	began := time.Now()
	a, err := s.wantAccount(r.Account)
	if err != nil {
		return nil, err
	}
	id := identity.ImportID(r.As)
	if !slices.ContainsFunc(s.fleet.directory.Imports(a.Name), func(i identity.Import) bool { return i.ID == id }) {
		return nil, admin.Errorf(admin.NotFound, "fleetbus account import ls "+a.Name, "account %q imports nothing as %q", a.Name, r.As)
	}
	seq, err := s.fleet.change(ctx, importSubject(identity.Import{Party: a.Party(), ID: id}), func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) listImports(_ context.Context, r admin.Name) (any, error) {
	if r.Name != "" {
		if _, err := s.wantAccount(r.Name); err != nil {
			return nil, err
		}
	}
	return s.fleet.imports(r.Name), nil
}

// imports are those of an account, or of all, and how they stand.
func (f *fleet) imports(account string) []admin.ImportInfo {
	all := []admin.ImportInfo{}
	flows := map[string]identity.Flows{}
	for _, i := range f.directory.Imports(account) {
		if _, ok := flows[i.Account]; !ok {
			flows[i.Account] = f.directory.Flows(i.Account)
		}
		info := admin.ImportInfo{Import: i, State: admin.ImportWaiting}
		if flows[i.Account].Has(i.ID) {
			info.State = admin.ImportLive
		}
		all = append(all, info)
	}
	return all
}

// removeFlows ends everything that crosses the border of an account.
func (s *Server) removeFlows(ctx context.Context, account string) error {
	remove := func(subject string) error {
		_, err := s.fleet.change(ctx, subject, func() (any, error) { return nil, nil })
		return err
	}
	for _, i := range s.fleet.directory.Imports("") {
		if i.Account == account || i.From.Account == account {
			if err := remove(importSubject(i)); err != nil {
				return err
			}
		}
	}
	for _, e := range s.fleet.directory.Exports("") {
		edit := func() (any, error) { return nil, nil }
		if e.Account != account {
			if !slices.ContainsFunc(e.To, func(c identity.Consent) bool { return c.Account == account }) {
				continue
			}
			edit = func() (any, error) { return s.fleet.without(e, account) }
		}
		if _, err := s.fleet.change(ctx, exportSubject(e), edit); err != nil {
			return err
		}
	}
	return nil
}

// without is an export as it is now, less what an account was given of it.
func (f *fleet) without(e identity.Export, account string) (any, error) {
	for _, now := range f.directory.Exports(e.Account) {
		if now.ID == e.ID {
			now.To = slices.DeleteFunc(now.To, func(c identity.Consent) bool { return c.Account == account })
			return now, nil
		}
	}
	return nil, errSame
}
