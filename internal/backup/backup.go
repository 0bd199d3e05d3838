// Package backup puts the state of a fleet into a file, and makes a fleet of it: who may
// do what, the secrets that sign for it, and the streams of every account.
package backup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	format       = 1
	manifestName = "manifest.json"
	authorityAt  = "authority.json"
	directoryAt  = "directory.json"
	endName      = "end.json"
	// maxFile bounds a file of the archive: streams are in many.
	maxFile = 256 << 20
)

// A Manifest is the first file of a backup.
type Manifest struct {
	Format  int    `json:"format"`
	Fleet   string `json:"fleet"`
	Cluster string `json:"cluster"`
	// Hash identifies the fleet's authority, as identity.Authority.Hash does.
	Hash    string    `json:"hash"`
	Node    string    `json:"node"` // that made it
	Version string    `json:"version"`
	Began   time.Time `json:"began"`
	// Sequence is the last event of the ledger that the directory is of.
	Sequence uint64         `json:"sequence"`
	Accounts map[string]int `json:"accounts"` // number of users, by name
	// WithStreams is false if they were left out.
	WithStreams bool `json:"with_streams"`
}

// A Stream is the description of one, before its data.
type Stream struct {
	Account string          `json:"account"`
	Name    string          `json:"name"`
	Config  json.RawMessage `json:"config"`
	// State is the engine's; empty for a stream that is kept in memory, of which there
	// is nothing but the description.
	State    json.RawMessage `json:"state,omitempty"`
	Messages uint64          `json:"messages"`
	Bytes    uint64          `json:"bytes"`
}

// End is the last file: what is before it is whole.
type End struct {
	Streams  int    `json:"streams"`
	Messages uint64 `json:"messages"`
	Bytes    int64  `json:"bytes"` // of the streams' data as it is in the backup
}

// A Source is what a node makes a backup of.
type Source struct {
	Manifest  Manifest
	Authority []byte
	Directory []byte
	// Accounts are those whose streams are in it.
	Accounts []string
	// Connect connects to an account, with every right.
	Connect func(account string) (*nats.Conn, error)
	// Bare are streams whose consumers are none of the backup's business.
	Bare func(account, stream string) bool
}

// Write makes a backup of s that only the holder of the identity of recipient can read.
func Write(ctx context.Context, w io.Writer, s Source, recipient age.Recipient) (err error) {
	sealed, err := age.Encrypt(w, recipient)
	if err != nil {
		return fmt.Errorf("encrypting the backup: %w", err)
	}
	t := &writer{tar: tar.NewWriter(sealed), now: s.Manifest.Began}
	s.Manifest.Format = format
	err = errors.Join(t.document(manifestName, s.Manifest), t.file(authorityAt, s.Authority), t.file(directoryAt, s.Directory))
	for _, account := range s.Accounts {
		if err == nil {
			err = t.account(ctx, s, account)
		}
	}
	if err == nil {
		err = errors.Join(t.document(endName, t.end), t.tar.Close(), sealed.Close())
	}
	return err
}

type writer struct {
	tar *tar.Writer
	now time.Time
	end End
}

func (t *writer) file(name string, data []byte) error {
	err := t.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: t.now, Typeflag: tar.TypeReg})
	if err == nil {
		_, err = t.tar.Write(data)
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	return nil
}

func (t *writer) document(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %q: %w", name, err)
	}
	return t.file(name, data)
}

// account writes the streams of an account.
func (t *writer) account(ctx context.Context, s Source, account string) error {
	nc, err := s.Connect(account)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("reading the streams of account %q: %w", account, err)
	}
	var names []string
	list := js.StreamNames(ctx)
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("listing the streams of account %q: %w", account, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := t.stream(ctx, nc, js, account, name, s.Bare(account, name)); err != nil {
			return fmt.Errorf("reading stream %q of account %q: %w", name, account, err)
		}
	}
	return nil
}

func (t *writer) stream(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, account, name string, bare bool) error {
	at := "streams/" + account + "/" + name + "/"
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // it is gone since
	}
	if err != nil {
		return err
	}
	d := Stream{Account: account, Name: name}
	if info := stream.CachedInfo(); info.Config.Storage == jetstream.MemoryStorage {
		if d.Config, err = json.Marshal(info.Config); err != nil {
			return err
		}
		t.end.Streams++
		return t.document(at+"stream.json", d)
	}
	n := 0
	return snapshot(ctx, nc, name, bare, func(config, state json.RawMessage) error {
		d.Config, d.State = config, state
		var size struct{ Messages, Bytes uint64 }
		if err := json.Unmarshal(state, &size); err != nil {
			return err
		}
		d.Messages, d.Bytes = size.Messages, size.Bytes
		t.end.Streams++
		t.end.Messages += size.Messages
		return t.document(at+"stream.json", d)
	}, func(chunk []byte) error {
		n++
		t.end.Bytes += int64(len(chunk))
		return t.file(fmt.Sprintf("%s%08d", at, n), chunk)
	})
}

// ErrBackup says that a file is not a whole backup, or that the key is not its own.
var ErrBackup = errors.New("it is not a whole backup")

// A Sink takes what Read finds. The data of a stream comes after it, in order.
type Sink struct {
	Begin  func(m Manifest, authority, directory []byte) error
	Stream func(Stream) error
	Data   func(io.Reader) error
}

// Read reads a whole backup, and says in its error if it is not one: cut off, altered, or
// sealed to somebody else.
func Read(r io.Reader, to Sink, identities ...age.Identity) (End, error) {
	var end End
	opened, err := age.Decrypt(r, identities...)
	if err != nil {
		var other *age.NoIdentityMatchError
		if errors.As(err, &other) {
			return end, fmt.Errorf("%w that this passphrase, or key, opens", ErrBackup)
		}
		return end, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return readPlain(opened, to)
}

// readPlain is Read of what is opened.
func readPlain(opened io.Reader, to Sink) (end End, err error) {
	in := &reader{tar: tar.NewReader(opened), to: to}
	if err := in.begin(); err != nil {
		return end, err
	}
	if end, err = in.streams(); err != nil {
		return end, err
	}
	// What authenticates the end of the file comes after the archive's own.
	if _, err := io.Copy(io.Discard, opened); err != nil {
		return end, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return end, nil
}

type reader struct {
	tar   *tar.Reader
	to    Sink
	found End
}

func (r *reader) next() (*tar.Header, error) {
	h, err := r.tar.Next()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it ends before its end", ErrBackup)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	// Of a sparse file there is more than the archive has.
	sparse := slices.ContainsFunc(slices.Collect(maps.Keys(h.PAXRecords)), func(key string) bool { return strings.HasPrefix(key, "GNU.sparse.") })
	if h.Typeflag != tar.TypeReg || sparse || h.Size < 0 || h.Size > maxFile {
		return nil, fmt.Errorf("%w: file %q is none that a node writes", ErrBackup, h.Name)
	}
	return h, nil
}

// named reads the next file, which has to have that name.
func (r *reader) named(name string) ([]byte, error) {
	h, err := r.next()
	if err != nil {
		return nil, err
	}
	if h.Name != name {
		return nil, fmt.Errorf("%w: %q is in the place of %q", ErrBackup, h.Name, name)
	}
	return r.data()
}

func (r *reader) data() ([]byte, error) {
	data, err := io.ReadAll(r.tar)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return data, nil
}

func (r *reader) begin() error {
	data, err := r.named(manifestName)
	if err != nil {
		return err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("%w: its manifest cannot be read: %w", ErrBackup, err)
	}
	if m.Format != format {
		return fmt.Errorf("%w of this version: it is of format %d, and format %d is known: restore it with the version that made it", ErrBackup, m.Format, format)
	}
	authority, err := r.named(authorityAt)
	if err != nil {
		return err
	}
	directory, err := r.named(directoryAt)
	if err != nil {
		return err
	}
	return r.to.Begin(m, authority, directory)
}

// streams reads everything up to the end.
func (r *reader) streams() (End, error) {
	var end End
	current, chunk := "", 0
	for {
		h, err := r.next()
		if err != nil {
			return end, err
		}
		if h.Name == endName {
			data, err := r.data()
			if err == nil {
				err = json.Unmarshal(data, &end)
			}
			if err != nil {
				return end, fmt.Errorf("%w: its end cannot be read: %w", ErrBackup, err)
			}
			if end != r.found {
				return end, fmt.Errorf("%w: %+v is in it, and it says %+v", ErrBackup, r.found, end)
			}
			return end, nil
		}
		if at, ok := strings.CutSuffix(h.Name, "stream.json"); ok {
			current, chunk = at, 0
			if err := r.stream(at); err != nil {
				return end, err
			}
			continue
		}
		if chunk++; current == "" || h.Name != fmt.Sprintf("%s%08d", current, chunk) {
			return end, fmt.Errorf("%w: file %q is out of order", ErrBackup, h.Name)
		}
		r.found.Bytes += h.Size
		if err := r.to.Data(r.tar); err != nil {
			return end, err
		}
	}
}

func (r *reader) stream(at string) error {
	data, err := r.data()
	if err != nil {
		return err
	}
	var d Stream
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("%w: %q cannot be read: %w", ErrBackup, at, err)
	}
	if at != "streams/"+d.Account+"/"+d.Name+"/" || !safe(d.Account) || !safe(d.Name) || strings.ContainsAny(d.Name, " .*>\t\r\n\f") {
		return fmt.Errorf("%w: %q is in the place of another stream", ErrBackup, at)
	}
	r.found.Streams++
	r.found.Messages += d.Messages
	return r.to.Stream(d)
}

// safe reports whether a name is one of a file, and leads nowhere else.
func safe(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\\\x00")
}
