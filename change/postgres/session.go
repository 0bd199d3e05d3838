package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// session is an ordinary connection. It asks and reads in text, which is all that
// a Source needs, and has none of the hundred types of the client's larger half.
// It is not safe for concurrent use.
type session struct{ *pgconn.PgConn }

// errNoRow says that a query found nothing.
var errNoRow = errors.New("the query has no row")

// exec runs one statement.
func (s session) exec(ctx context.Context, sql string, args ...string) error {
	_, err := s.query(ctx, sql, args...)
	return err
}

// query returns the rows of one statement. A value that is nil is NULL.
func (s session) query(ctx context.Context, sql string, args ...string) ([][][]byte, error) {
	params := make([][]byte, len(args))
	for i, arg := range args {
		params[i] = []byte(arg)
	}
	result := s.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	return result.Rows, result.Err
}

// row reads the first row of one statement into dest, as scan does, or returns
// errNoRow.
func (s session) row(ctx context.Context, sql string, args []string, dest ...any) error {
	rows, err := s.query(ctx, sql, args...)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return errNoRow
	}
	return scan(rows[0], dest...)
}

// scan reads the values of a row. Only a pointer to a pointer takes
// NULL, and stays as it is.
func scan(row [][]byte, dest ...any) error {
	if len(row) != len(dest) {
		return fmt.Errorf("reading a row: it has %d values, and not %d", len(row), len(dest))
	}
	for i, value := range row {
		if err := scanValue(value, dest[i]); err != nil {
			return fmt.Errorf("reading value %d of a row: %w", i+1, err)
		}
	}
	return nil
}

func scanValue(value []byte, dest any) (err error) {
	text := string(value)
	if d, ok := dest.(**int64); ok {
		if value != nil {
			*d = new(int64)
			**d, err = strconv.ParseInt(text, 10, 64)
		}
		return err
	}
	if value == nil {
		return errors.New("it is NULL")
	}
	switch d := dest.(type) {
	case *string:
		*d = text
	case *bool:
		*d = text == "t"
	case *int:
		*d, err = strconv.Atoi(text)
	case *int64:
		*d, err = strconv.ParseInt(text, 10, 64)
	case *uint64:
		*d, err = strconv.ParseUint(text, 10, 64)
	case *uint32:
		var n uint64
		n, err = strconv.ParseUint(text, 10, 32)
		*d = uint32(n)
	default:
		err = fmt.Errorf("%T is not read", dest)
	}
	return err
}

// quote makes an identifier of names: name, or schema and name.
func quote(names ...string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = `"` + strings.ReplaceAll(strings.ReplaceAll(name, "\x00", ""), `"`, `""`) + `"`
	}
	return strings.Join(quoted, ".")
}
