package mysql

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	library "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/uuid"
)

// gtid names a transaction. On MySQL it is server and number, on MariaDB domain,
// id and number.
type gtid struct {
	server     uuid.UUID
	domain, id uint32
	number     uint64
}

func (g gtid) epoch(mariadb bool) string {
	if mariadb {
		return fmt.Sprintf("%d-%d", g.domain, g.id)
	}
	return g.server.String()
}

func (g gtid) text(mariadb bool) string {
	if mariadb {
		return fmt.Sprintf("%d-%d-%d", g.domain, g.id, g.number)
	}
	return fmt.Sprintf("%s:%d", g.server, g.number)
}

// position is a place in a log: on MySQL the set of the transactions before it,
// on MariaDB the last one of each domain.
type position struct {
	set     *library.MysqlGTIDSet
	domains map[uint32]gtid
}

func parsePosition(mariadb bool, text string) (*position, error) {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "")
	if !mariadb {
		set, err := library.ParseMysqlGTIDSet(text)
		if err != nil {
			return nil, fmt.Errorf("reading a set of GTIDs: those with tags are not known: %w", err)
		}
		return &position{set: set.(*library.MysqlGTIDSet)}, nil
	}
	p := &position{domains: map[uint32]gtid{}}
	if text == "" {
		return p, nil
	}
	for one := range strings.SplitSeq(text, ",") {
		g, err := parseMariaDB(strings.TrimSpace(one))
		if err != nil {
			return nil, err
		}
		p.add(g)
	}
	return p, nil
}

func parseMariaDB(text string) (g gtid, err error) {
	parts := strings.Split(text, "-")
	if len(parts) != 3 {
		return g, fmt.Errorf("reading GTID %q: it is not domain-server-number", text)
	}
	domain, err1 := strconv.ParseUint(parts[0], 10, 32)
	id, err2 := strconv.ParseUint(parts[1], 10, 32)
	number, err3 := strconv.ParseUint(parts[2], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return g, fmt.Errorf("reading GTID %q: it is not domain-server-number", text)
	}
	return gtid{domain: uint32(domain), id: uint32(id), number: number}, nil
}

func (p *position) add(g gtid) {
	if p.set == nil {
		p.domains[g.domain] = g
		return
	}
	p.set.AddGTID(g.server, int64(g.number))
}

// has reports whether g is before p, on MySQL.
func (p *position) has(g gtid) bool {
	one := library.NewUUIDSet(g.server, library.Interval{Start: int64(g.number), Stop: int64(g.number) + 1})
	all, ok := p.set.Sets[g.server.String()]
	return ok && all.Contain(one)
}

// last is the newest transaction of the history of a server, or on MariaDB of the
// first domain.
func (p *position) last(server uuid.UUID) gtid {
	if p.set == nil {
		for _, domain := range slices.Sorted(maps.Keys(p.domains)) {
			return p.domains[domain]
		}
		return gtid{}
	}
	g := gtid{server: server}
	if all, ok := p.set.Sets[server.String()]; ok && len(all.Intervals) > 0 {
		g.number = uint64(all.Intervals[len(all.Intervals)-1].Stop - 1)
	}
	return g
}

func (p *position) String() string {
	if p.set != nil {
		return p.set.String()
	}
	var all []string
	for _, domain := range slices.Sorted(maps.Keys(p.domains)) {
		all = append(all, p.domains[domain].text(true))
	}
	return strings.Join(all, ",")
}

// saved is what a position file has.
type saved struct {
	MariaDB  bool   `json:"mariadb"`
	Position string `json:"position"`
}

// load reads a position file; nil if there is none, or none of such a server.
func load(path string, mariadb bool) (*position, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading position file %q: %w", path, err)
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil || s.MariaDB != mariadb {
		return nil, nil
	}
	p, err := parsePosition(mariadb, s.Position)
	if err != nil {
		return nil, nil
	}
	return p, nil
}

// save writes a position file: the new one or, whatever happens, the old one.
func save(path string, mariadb bool, position string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing position file %q: %w", path, err)
		}
	}()
	data, err := json.Marshal(saved{MariaDB: mariadb, Position: position})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
