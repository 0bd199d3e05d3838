package certmanager

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/doctor"
)

// ImportRequest brings a certificate that was bought elsewhere.
type ImportRequest struct {
	// Group of targets. Default: DefaultGroup.
	Group string `json:"group,omitempty"`
	// ID of an imported certificate that this one takes the place of. Empty: it is a
	// new one.
	ID string `json:"id,omitempty"`
	// Chain is PEM, the leaf first; Key is its private key, in PEM.
	Chain string `json:"chain"`
	Key   string `json:"key"`
	// Waves as in cert.Policy.
	Waves string `json:"waves,omitempty"`
}

func (s *session) importBundle(ctx context.Context, in ImportRequest, progress func(string)) (*cert.Record, error) {
	b, pkcs8, err := readImport(in, s.now())
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "give the chain with the leaf first, and the private key of the leaf", "the certificate cannot be imported: %v", err)
	}
	b.Reason = cert.ReasonImport
	group := cmp.Or(in.Group, DefaultGroup)
	var wrong Problems
	wrong.checkWaves("waves", in.Waves)
	if !cert.IsToken(group) {
		wrong.add("group: %q is no name", group)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	if in.ID != "" {
		seen, err := s.find(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return s.importNext(ctx, seen, b, pkcs8)
	}
	if err := s.ensureKey(ctx, group); err != nil {
		return nil, err
	}
	progress("sealing it to group " + group)
	r := &cert.Record{
		Version: recordVersion, ID: s.idFor(group, b.Names), Group: group, Event: cert.Obtained, Revision: 1, At: s.now().UTC(), By: s.m.o.Name,
		Policy: cert.Policy{Names: b.Names, Imported: true, Waves: in.Waves},
	}
	b.Generation = 1
	if err := s.sealBundle(r, b, pkcs8); err != nil {
		return nil, err
	}
	r.Current = b
	if err := s.create(ctx, r, false); err != nil {
		return nil, err
	}
	return r, nil
}

// importNext imports the next generation of a certificate.
func (s *session) importNext(ctx context.Context, seen *cert.Record, b *cert.Bundle, pkcs8 []byte) (*cert.Record, error) {
	w := s.watcher(ctx, seen.Group)
	w.seen = s.reports(seen.Group, seen.ID)
	return s.amend(ctx, seen.Group, seen.ID, cert.Obtained, func(r *cert.Record) error {
		switch {
		case r.Removed || !r.Policy.Imported:
			return admin.Errorf(admin.Conflict, "import it without --id", "certificate %s is none that was imported", r.ID)
		case r.Next != nil:
			return admin.Errorf(admin.Conflict, "fleetbus cert status "+r.ID, "generation %d of certificate %s is being rolled out", r.Next.Generation, r.ID)
		case r.Current != nil && r.Current.Leaf == b.Leaf:
			return errUnchanged
		}
		b.Generation = nextGeneration(r)
		if err := s.sealBundle(r, b, pkcs8); err != nil {
			return err
		}
		r.Policy.Names = b.Names
		stage(r, b, firstWave(r, cmp.Or(r.Policy.Waves, "waves"), w), s.now())
		r.Failure, r.Renew = nil, ""
		return nil
	})
}

// readImport verifies a certificate that somebody brought.
func readImport(in ImportRequest, now time.Time) (*cert.Bundle, []byte, error) {
	chain, err := parseChain(in.Chain)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := parsePEMKey(in.Key)
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(pkcs8)
	if err != nil {
		return nil, nil, err
	}
	var ders [][]byte
	for _, c := range chain {
		ders = append(ders, c.Raw)
	}
	certs, err := verifyChain(ders, key.Public(), nil, now)
	if err != nil {
		return nil, nil, err
	}
	names := LeafNames(certs[0])
	if len(names) == 0 {
		return nil, nil, errors.New("the certificate has no names")
	}
	return newBundle(certs, names), pkcs8, nil
}

// parsePEMKey returns a private key as PKCS #8. The error never quotes it.
func parsePEMKey(text string) ([]byte, error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("there is no private key in PEM")
		}
		switch block.Type {
		case "PRIVATE KEY":
			return block.Bytes, nil
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the private key cannot be read")
			}
			return x509.MarshalPKCS8PrivateKey(key)
		case "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the private key cannot be read")
			}
			return x509.MarshalPKCS8PrivateKey(key)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: decrypt it first")
		}
	}
}

// TargetRequest is about a target of a group.
type TargetRequest struct {
	// Group. Default: DefaultGroup; for a list, all.
	Group string `json:"group,omitempty"`
	Name  string `json:"name,omitempty"`
}

// TargetInfo is a target as managers see it.
type TargetInfo struct {
	Group string `json:"group"`
	Name  string `json:"name"`
	// State is invited, enrolled, or removed.
	State   string    `json:"state"`
	Added   time.Time `json:"added"`
	Joined  time.Time `json:"joined,omitzero"`
	Present bool      `json:"present"`
	// Rekeyed are how many certificates get another private key, because a target
	// that was removed knows the present one; Imported are those that only their
	// owner can replace.
	Rekeyed  int `json:"rekeyed,omitempty"`
	Imported int `json:"imported,omitempty"`
}

func targetInfo(t *cert.Target, present bool) TargetInfo {
	info := TargetInfo{Group: t.Group, Name: t.Name, State: "invited", Added: t.Added, Joined: t.Joined, Present: present}
	switch {
	case t.Removed:
		info.State = "removed"
	case len(t.Public) > 0:
		info.State = "enrolled"
	}
	return info
}

func (s *session) addTarget(ctx context.Context, in TargetRequest, _ func(string)) (TargetInfo, error) {
	group := cmp.Or(in.Group, DefaultGroup)
	if !cert.IsToken(in.Name) || !cert.IsToken(group) {
		return TargetInfo{}, admin.Errorf(admin.Invalid, "use letters, digits, dashes and underscores", "%q and %q do not name a target and a group", in.Name, group)
	}
	if t, ok := s.state.Target(group, in.Name); ok && t.Removed {
		if err := s.reconcile(ctx, group); err != nil { // its record remembers what is left to do
			return TargetInfo{}, err
		}
	}
	err := s.put(ctx, cert.TargetSubject(group, in.Name), func() (any, error) {
		t := &cert.Target{Version: recordVersion, Group: group, Name: in.Name, Revision: 1, Added: s.now().UTC()}
		if before, ok := s.state.Target(group, in.Name); ok {
			if !before.Removed {
				return nil, errUnchanged
			}
			t.Revision = before.Revision + 1
		}
		return t, nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return TargetInfo{}, err
	}
	t, _ := s.state.Target(group, in.Name)
	return targetInfo(t, false), nil
}

// removeTarget ends a target. Its record keeps what it had been given, so that what
// follows from that is done by whoever comes to it.
func (s *session) removeTarget(ctx context.Context, in TargetRequest, progress func(string)) (TargetInfo, error) {
	group := cmp.Or(in.Group, DefaultGroup)
	err := s.put(ctx, cert.TargetSubject(group, in.Name), func() (any, error) {
		before, ok := s.state.Target(group, in.Name)
		if !ok {
			return nil, admin.Errorf(admin.NotFound, "fleetbus cert target ls", "group %q has no target %q", group, in.Name)
		}
		if before.Removed {
			return nil, errUnchanged
		}
		t := *before
		t.Removed = true
		t.Revision++
		return &t, nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return TargetInfo{}, err
	}
	progress("making another key for group " + group)
	if err := s.reconcile(ctx, group); err != nil {
		return TargetInfo{}, err
	}
	t, ok := s.state.Target(group, in.Name)
	if !ok {
		return TargetInfo{}, errLost
	}
	info := targetInfo(t, false)
	for _, r := range s.state.Records(group) {
		for _, b := range []*cert.Bundle{r.Current, r.Next} {
			if b == nil {
				continue
			}
			if _, knows := t.Keys[b.KeyGeneration()]; knows && r.Policy.Imported {
				info.Imported++
				break
			} else if knows {
				info.Rekeyed++
				break
			}
		}
	}
	return info, nil
}

func (s *session) targets(ctx context.Context, in TargetRequest, _ func(string)) ([]TargetInfo, error) {
	all := []TargetInfo{}
	for _, t := range s.state.Targets(in.Group) {
		if in.Name == "" || t.Name == in.Name {
			all = append(all, targetInfo(t, s.presentTargets(ctx, t.Group)[t.Name]))
		}
	}
	return all, nil
}

// enrollTarget takes the keys of a target into every group that it was invited to.
func (s *session) enrollTarget(ctx context.Context, name string, own *targetKeys) (enrollment, error) {
	if _, err := cert.NewKey(name, 0).SealTo(name, own.Public); err != nil || own.Signer.Validate() != nil {
		return enrollment{}, admin.Errorf(admin.Invalid, "update the target", "target %q sent no key to seal to, or none to know its reports by", name)
	}
	e := enrollment{Groups: []string{}, Signers: []cert.Signer{s.key.Signer()}}
	for _, t := range s.state.Targets("") {
		if t.Name != name {
			continue
		}
		if err := s.ensureKey(ctx, t.Group); err != nil {
			return e, err
		}
		if err := s.wrap(ctx, t.Group, name, own); err != nil {
			if errors.Is(err, errOtherKey) {
				return e, admin.Errorf(admin.Conflict, fmt.Sprintf("fleetbus cert target rm --group %s %s, and add it again", t.Group, name),
					"target %q of group %q has enrolled with another key, which could have been stolen", name, t.Group)
			}
			return e, err
		}
		e.Groups = append(e.Groups, t.Group)
	}
	if len(e.Groups) == 0 {
		return e, admin.Errorf(admin.NotFound, "fleetbus cert target add "+name, "nobody invited a target %q", name)
	}
	return e, nil
}

// ConfigRequest brings another configuration.
type ConfigRequest struct {
	// Config is a Settings in JSON, read strictly. The secret of an issuer that it
	// leaves out stays what it is; that of an issuer that it leaves out altogether is
	// kept in Former.
	Config json.RawMessage `json:"config"`
}

// ConfigReply is the configuration.
type ConfigReply struct {
	// Settings have secrets in them.
	Settings *Settings `json:"settings,omitempty"`
	Revision uint64    `json:"revision"`
	// Warning is what is allowed, but not good.
	Warning string `json:"warning,omitempty"`
}

func (s *session) updateConfig(ctx context.Context, in ConfigRequest, _ func(string)) (ConfigReply, error) {
	settings, err := ParseSettings(in.Config, s.m.types())
	if err != nil {
		return ConfigReply{}, err
	}
	err = s.configure(ctx, func(before *Settings) (*Settings, error) {
		after := *settings // it may be decided again
		after.Issuers = slices.Clone(settings.Issuers)
		after.keepSecrets(before)
		return &after, nil
	})
	if err != nil {
		return ConfigReply{}, err
	}
	c, _ := s.state.Config()
	reply := ConfigReply{Revision: c.Revision}
	if len(settings.Recovery) == 0 {
		reply.Warning = "nobody but the managers can read it: it has no recovery recipients"
	}
	return reply, nil
}

func (s *session) displayConfig(ctx context.Context, _ struct{}, _ func(string)) (ConfigReply, error) {
	settings, err := s.configuredSoon(ctx)
	if err != nil {
		return ConfigReply{}, err
	}
	c, _ := s.state.Config()
	return ConfigReply{Settings: settings, Revision: c.Revision}, nil
}

// Status is how certificates stand.
type Status struct {
	// Manager that answered.
	Manager      string              `json:"manager"`
	Certificates []CertificateStatus `json:"certificates"`
	Findings     []doctor.Finding    `json:"findings"`
}

// CertificateStatus is how one stands.
type CertificateStatus struct {
	ID       string    `json:"id"`
	Group    string    `json:"group"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after,omitzero"`
	// Generation is the latest: that of Next, if there is one.
	Generation uint64     `json:"generation"`
	Wave       *cert.Wave `json:"wave,omitempty"`
	// Renews is when it is to be renewed, or tried again.
	Renews  time.Time     `json:"renews,omitzero"`
	Failure *cert.Failure `json:"failure,omitempty"`
	// Targets counts those of the group; Current serve what they should, Pending do
	// not yet, Failed cannot, and Away did not answer and do not serve it.
	Targets int `json:"targets"`
	Current int `json:"current"`
	Pending int `json:"pending"`
	Failed  int `json:"failed"`
	Away    int `json:"away"`
	// Details are a line for each target that failed.
	Details []string `json:"details,omitempty"`
}

// Line is the targets in a few words.
func (c CertificateStatus) Line() string {
	line := fmt.Sprintf("%d targets: %d current, %d pending, %d failed, %d away", c.Targets, c.Current, c.Pending, c.Failed, c.Away)
	if len(c.Details) > 0 {
		line += " (" + strings.Join(c.Details, "; ") + ")"
	}
	return line
}

// StatusRequest asks how certificates stand.
type StatusRequest struct {
	// ID of one. Empty: all.
	ID    string `json:"id,omitempty"`
	Group string `json:"group,omitempty"`
}

func (s *session) status(ctx context.Context, in StatusRequest, _ func(string)) (Status, error) {
	out := Status{Manager: s.m.o.Name, Certificates: []CertificateStatus{}, Findings: s.findings(ctx)}
	if in.ID != "" {
		if _, err := s.find(ctx, in.ID); err != nil {
			return out, err
		}
	}
	watcher := s.watchers(ctx)
	for _, r := range s.state.Records(in.Group) {
		if in.ID == "" || r.ID == in.ID {
			out.Certificates = append(out.Certificates, s.statusOf(r, watcher(r.Group)))
		}
	}
	return out, nil
}

// expected is what a target should serve of r.
func expected(r *cert.Record, target string) *cert.Bundle {
	if r.Next != nil && r.Wave != nil && slices.Contains(r.Wave.Targets, target) {
		return r.Next
	}
	return r.Current
}

func (s *session) statusOf(r *cert.Record, w watcher) CertificateStatus {
	c := CertificateStatus{ID: r.ID, Group: r.Group, Names: r.Policy.Names, Wave: r.Wave}
	if r.Next == nil { // else the attempt after it goes well so far
		c.Failure = r.Failure
	}
	for _, b := range []*cert.Bundle{r.Current, r.Next} {
		if b != nil {
			c.Generation, c.NotAfter = b.Generation, b.NotAfter
		}
	}
	if p, ok := planFor(r, s.now()); ok {
		c.Renews = p.At
	}
	c.Targets = len(w.targets)
	for _, name := range w.targets {
		b := expected(r, name)
		seen, ok := s.state.Seen(r.Group, name, r.ID)
		switch {
		case b == nil:
			c.Pending++
		case ok && serves(seen, b):
			c.Current++
		case ok && seen.Generation == b.Generation && seen.Error != "":
			c.Failed++
			c.Details = append(c.Details, fmt.Sprintf("%s: serves %s, latest %s; %s", name, short(seen.Serial), short(b.Serial), seen.Error))
		case w.present[name]:
			c.Pending++
		default:
			c.Away++
		}
	}
	return c
}

// short is enough of a serial number to know it again.
func short(serial string) string {
	switch {
	case serial == "":
		return "nothing"
	case len(serial) > 4:
		return serial[:4] + "…"
	}
	return serial
}

// RootRequest asks for the root of an issuer.
type RootRequest struct {
	// Issuer by its name. Empty: the only one that is an authority of our own.
	Issuer string `json:"issuer,omitempty"`
}

// RootReply is a root certificate in PEM, and what it has revoked.
type RootReply struct {
	Issuer string `json:"issuer"`
	Root   string `json:"root"`
	// CRL is the list of revoked certificates, in PEM; it is valid for a week.
	CRL string `json:"crl"`
}

// A rooted issuer has a root, and a list of what it has revoked in DER, that nobody
// knows unless it is told.
type rooted interface {
	Root() string
	CRL(context.Context) ([]byte, error)
}

func (s *session) root(ctx context.Context, in RootRequest, _ func(string)) (RootReply, error) {
	settings, err := s.configuredSoon(ctx)
	if err != nil {
		return RootReply{}, err
	}
	for _, is := range settings.Issuers {
		if in.Issuer != "" && in.Issuer != is.Name {
			continue
		}
		o, err := s.issuer(ctx, is.Name)
		if err != nil {
			return RootReply{}, err
		}
		if r, ok := o.issuer.(rooted); ok {
			list, err := r.CRL(ctx)
			if err != nil {
				return RootReply{}, err
			}
			return RootReply{is.Name, r.Root(), string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))}, nil
		}
	}
	if in.Issuer == "" {
		return RootReply{}, admin.Errorf(admin.NotFound, "fleetbus conf display", "no issuer in the configuration is an authority of our own")
	}
	return RootReply{}, admin.Errorf(admin.NotFound, "fleetbus conf display", "there is no issuer %q that is an authority of our own", in.Issuer)
}
