package mysql

import (
	"fmt"
	"strings"
	"testing"
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
