package mysql

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestStatements(t *testing.T) {
	for statement, want := range map[string]string{
		"TRUNCATE a":                                                     "app.a",
		"truncate table `b`.`c`":                                         "b.c",
		"DROP TABLE `a`,x . `b` /* by hand */":                           "app.a x.b",
		"DROP TABLE IF EXISTS a CASCADE":                                 "app.a",
		"DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `a`":                 "",
		"RENAME TABLE a TO b, c.d WAIT 3 TO `c`.`e``f`":                  "app.a app.b c.d c.e`f",
		"ALTER TABLE a ADD COLUMN `rename` int COMMENT 'RENAME TO x'":    "app.a",
		"ALTER ONLINE IGNORE TABLE IF EXISTS a RENAME COLUMN b TO c":     "app.a",
		"ALTER TABLE a RENAME b":                                         "app.a app.b",
		"ALTER TABLE a RENAME AS x.b, ADD KEY (c)":                       "app.a x.b",
		"ALTER TABLE a EXCHANGE PARTITION p WITH TABLE b":                "app.a app.b",
		"ALTER TABLE a CONVERT PARTITION p TO TABLE b":                   "app.a",
		"/*!40000 ALTER TABLE `a` DISABLE KEYS */":                       "app.a",
		"CREATE OR REPLACE TABLE IF NOT EXISTS a (id int)":               "app.a",
		"CREATE TEMPORARY TABLE a (id int)":                              "",
		"CREATE UNIQUE INDEX i ON a (b)":                                 "app.a",
		"DROP INDEX `PRIMARY` ON b.a":                                    "b.a",
		"CREATE DEFINER=`table`@`%` TRIGGER t AFTER INSERT ON a DO x":    "",
		"CREATE DEFINER=root@localhost VIEW v AS SELECT * FROM a":        "",
		"CREATE DATABASE x":                                              "",
		"DROP DATABASE x":                                                "*",
		"SET STATEMENT max_statement_time=1 FOR ALTER TABLE a ADD b int": "app.a",
		"-- why\nTRUNCATE a":                                             "app.a",
		"# Dummy event replacing event":                                  "",
		"BEGIN":                                                          "",
		"SAVEPOINT `a`":                                                  "",
		"GRANT SELECT ON app.* TO x":                                     "",
		"XA PREPARE 'a'":                                                 "",
		"XA COMMIT 'a'":                                                  "*",
		"INSERT INTO a VALUES (1)":                                       "*",
		"LOAD DATA INFILE 'x' INTO TABLE a":                              "*",
		"ALTER TABLE":                                                    "*",
		"DROP TABLE a, ":                                                 "app.a *",
		"":                                                               "",
	} {
		out := read(statement, "app")
		var got []string
		for _, at := range out.tables {
			got = append(got, at[0]+"."+at[1])
		}
		if out.all {
			got = append(got, "*")
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %q, want %q", statement, text, want)
		}
	}
}

// FuzzStatement has what any user of the database can write in its log.
func FuzzStatement(f *testing.F) {
	for _, s := range []string{"ALTER TABLE `a` RENAME `b`.c", "/*!40000 DROP TABLE a */", "RENAME TABLE a TO b, c TO d", "SET STATEMENT a=1 FOR TRUNCATE x", "-- x", "`", "/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { _ = fmt.Sprint(read(s, "app")) })
}

// TestPositionOfMySQL has sets of GTIDs, in which there may be holes.
func TestPositionOfMySQL(t *testing.T) {
	const server = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
	p, err := parsePosition(false, server+":1-5:7,\n00000000-0000-0000-0000-000000000001:1-3")
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.MustParse(server)
	for number, there := range map[uint64]bool{1: true, 5: true, 6: false, 7: true, 8: false} {
		if got := p.has(gtid{server: id, number: number}); got != there {
			t.Errorf("transaction %d: %v", number, got)
		}
	}
	p.add(gtid{server: id, number: 6})
	p.add(gtid{server: id, number: 8})
	if g := p.last(id); g.number != 8 || g.text(false) != server+":8" || g.epoch(false) != server {
		t.Errorf("the last is %+v", g)
	}
	if !strings.Contains(p.String(), server+":1-8") {
		t.Errorf("the set is %s", p)
	}
	if _, err := parsePosition(false, server+":tag:1-5"); err == nil {
		t.Error("a tag was taken")
	}
	path := filepath.Join(t.TempDir(), "p")
	if err := save(path, false, p.String()); err != nil {
		t.Fatal(err)
	}
	if back, err := load(path, false); err != nil || back.String() != p.String() {
		t.Errorf("%v, %v", back, err)
	}
	if back, err := load(path, true); back != nil || err != nil {
		t.Errorf("the position of another kind of server was taken: %v, %v", back, err)
	}
}
