package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/home"
)

const (
	// StagedDir is the directory in a home where streams wait for the node to start.
	StagedDir = "restore"
	// partial is where they are until all of the backup was read.
	partial = "restore.partial"
	// replicasKey is what a stream's metadata say of its copies.
	replicasKey = "fleetbus.replicas"
)

// Restored is what Stage made.
type Restored struct {
	Manifest
	End
	// Removed are the nodes that are none any more.
	Removed []string
}

// Stage makes dir the home of node, the first of a fleet that has the state of the backup
// in r. The streams wait in it for the node to start. Unless all of it was read, dir is no
// home, and the next attempt begins anew.
func Stage(dir string, r io.Reader, node identity.Node, identities ...age.Identity) (*Restored, error) {
	h, err := home.Lock(dir)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if there, err := home.Initialized(dir); err != nil || there {
		if err == nil {
			err = fmt.Errorf("%w: %q", home.ErrInitialized, dir)
		}
		return nil, err
	}
	for _, name := range []string{"store", "local", "accounts"} {
		if _, err := os.Stat(h.Path(name)); err == nil {
			return nil, fmt.Errorf("%w: %q", ErrNotEmpty, h.Path(name))
		}
	}
	if err := errors.Join(os.RemoveAll(h.Path(partial)), os.RemoveAll(h.Path(StagedDir))); err != nil {
		return nil, fmt.Errorf("removing what an earlier attempt left: %w", err)
	}
	s := &stage{home: h, node: node}
	end, err := Read(r, Sink{Begin: s.begin, Stream: s.stream, Data: s.data}, identities...)
	err = errors.Join(err, s.closeFile())
	if err == nil {
		err = os.Rename(h.Path(partial), h.Path(StagedDir))
	}
	if err == nil {
		err = s.finish()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(h.Path(partial)))
	}
	return &Restored{Manifest: s.manifest, End: end, Removed: s.removed}, nil
}

// ErrNotEmpty says that a directory is no home, and has something of one.
var ErrNotEmpty = errors.New("the data directory is not empty")

type stage struct {
	home      *home.Home
	node      identity.Node
	manifest  Manifest
	authority *identity.Authority
	directory []byte
	removed   []string
	file      *os.File
}

func (s *stage) begin(m Manifest, authority, directory []byte) error {
	s.manifest, s.authority = m, new(identity.Authority)
	if err := s.authority.Unmarshal(authority); err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	var err error
	if s.directory, err = s.founded(directory); err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return home.WriteJSON(s.home.Path(partial, manifestName), m)
}

// founded is a directory in which the nodes of before are gone, with their local
// administrators, and the new one is the only one.
func (s *stage) founded(directory []byte) ([]byte, error) {
	var d struct {
		Seq     uint64 `json:"seq"`
		Records []struct {
			Subject string          `json:"subject"`
			Version uint64          `json:"version"`
			Data    json.RawMessage `json:"data,omitempty"`
		} `json:"records"`
		Withdrawn []map[string]any `json:"withdrawn,omitempty"`
	}
	if err := json.Unmarshal(directory, &d); err != nil {
		return nil, fmt.Errorf("reading its directory: %w", err)
	}
	old := identity.NewDirectory()
	if err := old.Unmarshal(directory); err != nil {
		return nil, err
	}
	gone := map[string][]byte{}
	for _, n := range old.AllNodes() {
		if n.Name == s.node.Name {
			s.node.Incarnation = max(n.Incarnation, 1) + 1
			s.node.Audit, s.node.AuditBefore = n.Audit, n.AuditBefore
		}
		if !n.Removed {
			s.removed = append(s.removed, n.Name)
			n.Removed, n.RemovedAt = true, time.Now()
		}
		data, err := json.Marshal(n)
		if err != nil {
			return nil, err
		}
		gone["node."+n.Name] = data
		local := "admin-" + n.Name
		if u, ok := old.User(identity.FleetName, local); ok {
			gone["user."+identity.FleetName+"."+local] = nil
			for _, k := range u.Keys {
				d.Withdrawn = append(d.Withdrawn, map[string]any{"account": u.Account, "public": k.Public, "expires": k.Expires})
			}
		}
	}
	own, err := json.Marshal(s.node)
	if err != nil {
		return nil, err
	}
	gone["node."+s.node.Name] = own
	for i, r := range d.Records {
		if data, ok := gone[r.Subject]; ok {
			d.Records[i].Data = data
			delete(gone, r.Subject)
		}
	}
	for subject, data := range gone { // the new node's
		d.Records = append(d.Records, struct {
			Subject string          `json:"subject"`
			Version uint64          `json:"version"`
			Data    json.RawMessage `json:"data,omitempty"`
		}{Subject: subject, Data: data})
	}
	made, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if check := identity.NewDirectory(); check.Unmarshal(made) != nil || len(check.Nodes()) != 1 {
		return nil, errors.New("its directory cannot be read")
	}
	return made, nil
}

func (s *stage) closeFile() error {
	if s.file == nil {
		return nil
	}
	err := errors.Join(s.file.Sync(), s.file.Close())
	s.file = nil
	return err
}

func (s *stage) stream(d Stream) error {
	if err := s.closeFile(); err != nil {
		return err
	}
	at := s.home.Path(partial, d.Account, d.Name)
	if err := home.WriteJSON(at+".json", d); err != nil {
		return err
	}
	var err error
	s.file, err = os.OpenFile(at+".data", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	return err
}

func (s *stage) data(r io.Reader) error {
	if _, err := io.Copy(s.file, r); err != nil {
		return fmt.Errorf("writing %q: %w", s.file.Name(), err)
	}
	return nil
}

func (s *stage) finish() error {
	n := home.NodeFile{Fleet: s.authority.Fleet(), Cluster: s.manifest.Cluster, Node: s.node, Founder: true}
	return s.home.Write(n, s.authority, s.directory, s.manifest.Sequence)
}

// Waiting is what the streams are of that wait in dir, a home, for the node to start; false
// if none do.
func Waiting(dir string) (Manifest, bool) {
	var m Manifest
	err := home.ReadJSON(filepath.Join(dir, StagedDir, manifestName), &m)
	return m, err == nil
}

// Finish makes the streams that wait in a home, before anything else uses them: connect
// connects to an account with every right. What was begun and cut off is begun anew.
func Finish(ctx context.Context, h *home.Home, hash string, connect func(account string) (*nats.Conn, error), log *slog.Logger) error {
	dir := h.Path(StagedDir)
	var m Manifest
	if err := home.ReadJSON(filepath.Join(dir, manifestName), &m); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if m.Hash != hash {
		return fmt.Errorf("restoring streams: those in %q are of another fleet: remove the directory", dir)
	}
	files, err := fs.Glob(os.DirFS(dir), "*/*.json") // dir itself may have any name
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, name := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		var d Stream
		if err := home.ReadJSON(file, &d); err != nil {
			return err
		}
		if err := again(ctx, func(ctx context.Context) error {
			return finishOne(ctx, strings.TrimSuffix(file, ".json")+".data", d, connect)
		}); err != nil {
			var refused *apiError
			if errors.As(err, &refused) && strings.Contains(refused.Description, "insufficient storage") {
				err = fmt.Errorf("%w: %w", syscall.ENOSPC, err)
			}
			return fmt.Errorf("restoring stream %q of account %q: %w", d.Name, d.Account, err)
		}
		log.Info("stream is restored", "account", d.Account, "stream", d.Name, "count", d.Messages)
		if err := errors.Join(os.Remove(file), os.Remove(strings.TrimSuffix(file, ".json")+".data")); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// startTime is how long the engine may take until it takes streams.
const startTime = 60 * time.Second

// attempts are how often a stream is begun anew which the engine could not restore: one that
// an earlier attempt left may still be on its way out.
const attempts = 25

// again tries as long as the engine may not be ready.
func again(ctx context.Context, do func(context.Context) error) error {
	deadline := time.Now().Add(startTime)
	for n := 1; ; n++ {
		err := do(ctx)
		var refused *apiError
		passing := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) ||
			errors.As(err, &refused) && (refused.Code == 503 || refused.ErrCode == restoreFailed && n < attempts)
		if !passing || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func finishOne(ctx context.Context, path string, d Stream, connect func(account string) (*nats.Conn, error)) error {
	nc, err := connect(d.Account)
	if err != nil {
		return err
	}
	defer nc.Close()
	if d.Config, err = alone(d.Config); err != nil {
		return err
	}
	if len(d.State) == 0 {
		_, err := request[struct{}](ctx, nc, "$JS.API.STREAM.CREATE."+d.Name, d.Config)
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return restore(ctx, nc, d, f)
}

// alone is the configuration of a stream for the only node there is. It gets its copies
// back when there are others.
func alone(config json.RawMessage) (json.RawMessage, error) {
	var c map[string]any
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("reading the configuration of a stream: %w", err)
	}
	if n, ok := c["num_replicas"].(float64); ok && n > 1 {
		c["num_replicas"] = 1
		metadata, _ := c["metadata"].(map[string]any)
		if metadata == nil {
			metadata = map[string]any{}
		}
		metadata[replicasKey] = "auto"
		c["metadata"] = metadata
	}
	if p, ok := c["placement"].(map[string]any); ok {
		delete(p, "tags") // which other machines may not have
	}
	return json.Marshal(c)
}
