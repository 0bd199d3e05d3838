package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

//go:embed ui
var files embed.FS

// An asset is a file of the page, as it is sent.
type asset struct {
	kind, tag    string
	plain, small []byte // small is nil if gzip makes nothing smaller
}

// assets are the files of the page, by their path below ui. What is reviewed is what
// is served: nothing makes them but an editor.
type assets map[string]asset

func (a *assets) load() {
	all := assets{}
	// An embedded file is always there.
	_ = fs.WalkDir(files, "ui", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		one := asset{kind: mime.TypeByExtension(path.Ext(name)), tag: `"` + base64.RawURLEncoding.EncodeToString(sum[:9]) + `"`, plain: data}
		switch path.Ext(name) { // whatever the machine's tables say
		case ".js":
			one.kind = "text/javascript; charset=utf-8"
		case ".css":
			one.kind = "text/css; charset=utf-8"
		case ".svg":
			one.kind = "image/svg+xml"
		case ".html":
			one.kind = "text/html; charset=utf-8"
		}
		var b bytes.Buffer
		// A bytes.Buffer takes everything.
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		_, _ = z.Write(data)
		_ = z.Close()
		if b.Len() < len(data) {
			one.small = b.Bytes()
		}
		all[strings.TrimPrefix(name, "ui/")] = one
		return nil
	})
	*a = all
}

func (h *Handler) page(w http.ResponseWriter, r *http.Request) { h.send(w, r, "index.html") }

func (h *Handler) asset(w http.ResponseWriter, r *http.Request) { h.send(w, r, r.PathValue("file")) }

func (h *Handler) send(w http.ResponseWriter, r *http.Request, name string) {
	one, ok := h.assets[name]
	if !ok {
		refuse(w, http.StatusNotFound, "there is nothing here", "open "+h.opts.Prefix)
		return
	}
	header := w.Header()
	header.Set("Content-Type", one.kind)
	header.Set("Cache-Control", "no-cache") // ask each time, and be told that it is the same
	header.Set("Vary", "Accept-Encoding")
	header.Set("ETag", one.tag)
	if strings.Contains(r.Header.Get("If-None-Match"), one.tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := one.plain
	if one.small != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		header.Set("Content-Encoding", "gzip")
		body = one.small
	}
	_, _ = w.Write(body)
}
