package sqlite

import (
	"encoding/hex"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/fleetbus/fleetbus/change"
)

// mostValue is how many bytes of a key column a trigger writes. What is as long is
// longer than what is announced, and may be cut.
const mostValue = 1024

// encoded is the expression for the value of a column in fleetbus_changes.key: the
// first letter of its type, and its bytes in hexadecimal. Every release of SQLite
// has these functions, they take any value, and they fail at none.
func encoded(column string) string {
	return "substr(typeof(" + column + "),1,1)||hex(substr(CAST(" + column + " AS BLOB),1," + strconv.Itoa(mostValue) + "))"
}

// encodeKey writes parts as triggers do.
func encodeKey(parts []string) string {
	var b strings.Builder
	for i, part := range parts {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteByte('b')
		b.WriteString(strings.ToUpper(hex.EncodeToString([]byte(part))))
	}
	return b.String()
}

// decodeKey reads what a trigger or Emit wrote. It is false if that names no row:
// a value is NULL, or was cut.
func decodeKey(table, text, encoding string) (change.Key, bool) {
	var key change.Key
	if table != "" {
		key = append(key, table)
	}
	for column := range strings.SplitSeq(text, ".") {
		if column == "" || strings.IndexByte("irtb", column[0]) < 0 {
			return nil, false
		}
		value, err := hex.DecodeString(column[1:])
		if err != nil || table != "" && len(value) >= mostValue {
			return nil, false
		}
		if column[0] != 'b' {
			value = utf8Of(value, encoding)
		}
		key = append(key, string(value))
	}
	return key, true
}

// utf8Of is text in the database's encoding as UTF-8.
func utf8Of(text []byte, encoding string) []byte {
	var high, low int
	switch encoding {
	case "UTF-16le":
		high, low = 1, 0
	case "UTF-16be":
		high, low = 0, 1
	default:
		return text
	}
	units := make([]uint16, 0, len(text)/2)
	for ; len(text) >= 2; text = text[2:] {
		units = append(units, uint16(text[high])<<8|uint16(text[low]))
	}
	return []byte(string(utf16.Decode(units)))
}
