package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/fleetbus/fleetbus/admin"
)

const (
	// KeepRequest is the request that changes what is kept.
	KeepRequest = "audit.keep"
	// ResultOK is the result of what was done.
	ResultOK = "ok"
	// keepSubject stands for what is kept among the changes of an entry.
	keepSubject = "audit.keep"
	// maxLine bounds a line of an exported file.
	maxLine = 4 * maxBlock
)

// keepChange is a change of what is kept, for its entry.
func keepChange(before, after admin.AuditKeep) admin.AuditChange {
	b, _ := json.Marshal(before) // numbers
	a, _ := json.Marshal(after)
	return admin.AuditChange{Subject: keepSubject, Before: b, After: a}
}

func keepBefore(e admin.AuditEntry) (before admin.AuditKeep, ok bool) {
	for _, c := range e.Changes {
		if c.Subject == keepSubject && json.Unmarshal(c.Before, &before) == nil {
			return before, true
		}
	}
	return before, false
}

// exportLine is a line of an exported file: the first has State, the last Sum, and those
// between a Block each.
type exportLine struct {
	Format int               `json:"fleetbus_audit,omitempty"`
	State  *admin.AuditState `json:"state,omitempty"`
	Block  *admin.AuditBlock `json:"block,omitempty"`
	// Sum is the SHA-256 of all lines before, Blocks how many are in them.
	Sum    string `json:"sha256,omitempty"`
	Blocks int    `json:"blocks,omitempty"`
}

// An Exporter writes a file of blocks that Import reads. Make it with NewExporter.
type Exporter struct {
	w      *bufio.Writer
	hash   interface{ Sum(b []byte) []byte }
	out    io.Writer
	blocks int
}

// NewExporter begins a file that is verified against state.
func NewExporter(w io.Writer, state admin.AuditState) (*Exporter, error) {
	h := sha256.New()
	e := &Exporter{w: bufio.NewWriter(w), hash: h}
	e.out = io.MultiWriter(e.w, h)
	return e, e.line(exportLine{Format: 1, State: &state})
}

func (e *Exporter) line(l exportLine) error {
	data, err := json.Marshal(l)
	if err == nil {
		_, err = e.out.Write(append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	return nil
}

// Add writes a block.
func (e *Exporter) Add(b admin.AuditBlock) error {
	e.blocks++
	return e.line(exportLine{Block: &b})
}

// Close ends the file. What is under it stays open.
func (e *Exporter) Close() error {
	if err := e.line(exportLine{Sum: hex.EncodeToString(e.hash.Sum(nil)), Blocks: e.blocks}); err != nil {
		return err
	}
	if err := e.w.Flush(); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	return nil
}

// ErrExport says that a file is not, or no longer, what an Exporter wrote.
var ErrExport = errors.New("it is not a whole export of the audit")

// Import reads an exported file: begin is called first, and block with each block.
func Import(r io.Reader, begin func(admin.AuditState), block func(admin.AuditBlock)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	h := sha256.New()
	blocks := 0
	for n := 1; ; n++ {
		data, err := readLine(in)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: it ends after line %d, without its last one", ErrExport, n-1)
		}
		if err != nil {
			return fmt.Errorf("reading line %d: %w", n, err)
		}
		var l exportLine
		if err := json.Unmarshal(data, &l); err != nil {
			return fmt.Errorf("%w: line %d cannot be read: %w", ErrExport, n, err)
		}
		switch {
		case n == 1 && (l.Format != 1 || l.State == nil):
			return fmt.Errorf("%w: it does not begin as one of this version", ErrExport)
		case n == 1:
			begin(*l.State)
		case l.Block != nil:
			blocks++
			block(*l.Block)
		case l.Sum != "":
			if l.Sum != hex.EncodeToString(h.Sum(nil)) || l.Blocks != blocks {
				return fmt.Errorf("%w: its checksum is of other lines", ErrExport)
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: something follows its last line", ErrExport)
			}
			return nil
		default:
			return fmt.Errorf("%w: line %d says nothing", ErrExport, n)
		}
		h.Write(data)
	}
}

// readLine reads a line with its end, of bounded length.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line bytes.Buffer
	for {
		part, err := in.ReadSlice('\n')
		line.Write(part)
		switch {
		case err == nil:
			return line.Bytes(), nil
		case line.Len() > maxLine:
			return nil, fmt.Errorf("%w: a line is too long", ErrExport)
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// Fetch reads the whole audit: begin is called with what it is verified against, and then
// block with each block. What is written meanwhile may be left out.
func Fetch(ctx context.Context, c *admin.Client, begin func(admin.AuditState) error, block func(admin.AuditBlock) error) (admin.AuditState, error) {
	state, err := c.AuditState(ctx)
	if err == nil {
		err = begin(state)
	}
	if err != nil {
		return state, err
	}
	for from := max(state.First, 1); from > 0; {
		some, err := c.AuditBlocks(ctx, from)
		if err != nil {
			return state, err
		}
		for _, b := range some.Blocks {
			if err := block(b); err != nil {
				return state, err
			}
		}
		from = some.Next
	}
	return state, nil
}
