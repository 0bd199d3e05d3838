// Package hardening judges files of message brokers, and of the services that use them, by
// the rules of OpenStack's security guide for message queues and of the vendors' own. It
// reads files and nothing else, and never tells a secret that stands there.
package hardening

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Kind says whose files are judged.
type Kind string

// The kinds.
const (
	RabbitMQ  Kind = "rabbitmq"
	Qpid      Kind = "qpid"
	OpenStack Kind = "openstack"
)

// A Verdict is what became of a rule.
type Verdict string

// The verdicts, the worst first.
const (
	Fail          Verdict = "fail"
	Warn          Verdict = "warn"
	Unknown       Verdict = "unknown"
	Pass          Verdict = "pass"
	NotApplicable Verdict = "not applicable"
)

// Verdicts are all, the worst first.
func Verdicts() []Verdict { return []Verdict{Fail, Warn, Unknown, Pass, NotApplicable} }

// A Finding is a verdict on a rule, with the evidence for it.
type Finding struct {
	// Rule is a number of the guide's rules, or a letter and a number of others.
	Rule string `json:"rule"`
	// Title is the rule in a few words.
	Title   string  `json:"title"`
	Verdict Verdict `json:"verdict"`
	// Text says what was found.
	Text string `json:"text"`
	// File, Line and Evidence are where, and what stands there, without secrets. Line is 0
	// if it is the file, or something that is missing in it.
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Evidence string `json:"evidence,omitempty"`
	// Fix is what mends it.
	Fix string `json:"fix,omitempty"`
}

// Where is the file and the line.
func (f Finding) Where() string {
	if f.Line > 0 {
		return fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	return f.File
}

// A Report is what was found.
type Report struct {
	Kind Kind `json:"kind"`
	// Files are those that were judged.
	Files []string `json:"files"`
	// Findings are in the order of the rules, the worst first.
	Findings []Finding `json:"findings"`
	// Failed and Warned count findings, Unread what could not be read or understood, and
	// Missing paths that there are not.
	Failed  int `json:"failed"`
	Warned  int `json:"warned"`
	Unread  int `json:"unread"`
	Missing int `json:"missing"`
}

// Options say more of what is judged. All may be left out.
type Options struct {
	// Root is the directory that absolute paths in files are below: a copy of another
	// machine's files.
	Root string
	// Networks are those that management is on. Without any, every address is taken for
	// one of them that is not all interfaces.
	Networks []netip.Prefix
	// RabbitMQ and OsloMessaging are versions, such as 3.12, on which defaults depend.
	RabbitMQ, OsloMessaging string
	// Now is when certificates are judged; zero is the present.
	Now time.Time
}

// ErrNothing is that no path has anything of the kind.
var ErrNothing = errors.New("nothing there is a file of that kind")

// Audit reads the files of paths, which are files or directories, and judges them. What
// cannot be read is a finding; the error is that nothing could be judged at all.
func Audit(kind Kind, paths []string, o Options) (Report, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	a := &audit{kind: kind, o: o, disk: newDisk(o.Root), judged: map[string]bool{}}
	for _, path := range paths {
		a.disk.add(a, path)
	}
	a.disk.neighbors(a)
	known := 0
	switch kind {
	case RabbitMQ:
		known = a.rabbit()
	case Qpid:
		known = a.qpid()
	case OpenStack:
		known = a.openstack()
	}
	if known == 0 && a.r.Unread+a.r.Missing == 0 {
		return a.r, ErrNothing
	}
	if known > 0 {
		a.units()
		a.firewall()
		a.confinement()
		a.strayKeys()
		a.rest()
	}
	return a.finish(), nil
}

// Add adds findings that were made elsewhere, such as by probes, and takes the place of
// what could not be judged by files alone.
func (r *Report) Add(found []Finding) {
	for _, f := range found {
		r.Findings = slices.DeleteFunc(r.Findings, func(old Finding) bool {
			return old.Rule == f.Rule && old.Verdict == Unknown && old.Evidence == "" && old.File == ""
		})
	}
	r.Findings = append(r.Findings, found...)
	r.sort()
}

func (r *Report) sort() {
	order := map[string]int{}
	for i, rule := range Rules() {
		order[rule.ID] = i
	}
	slices.SortStableFunc(r.Findings, func(x, y Finding) int {
		return cmp.Or(order[x.Rule]-order[y.Rule], slices.Index(Verdicts(), x.Verdict)-slices.Index(Verdicts(), y.Verdict),
			strings.Compare(x.File, y.File), x.Line-y.Line)
	})
	r.Failed, r.Warned = 0, 0
	for _, f := range r.Findings {
		switch f.Verdict {
		case Fail:
			r.Failed++
		case Warn:
			r.Warned++
		}
	}
}

// audit is one run.
type audit struct {
	kind    Kind
	o       Options
	disk    *disk
	r       Report
	judged  map[string]bool // rules that have a verdict
	secrets []string        // never to be told
	daemon  []string        // users that the daemon may run as
}

// A place is where something stands. The zero place is nowhere.
type place struct {
	file string
	line int
	text string
}

// in is the place of a file as a whole.
func in(f *file) place {
	if f == nil {
		return place{}
	}
	return place{file: f.Path}
}

// add adds a finding.
func (a *audit) add(rule string, v Verdict, at place, fix, format string, args ...any) {
	a.judged[rule] = true
	same := 0
	for _, f := range a.r.Findings {
		if f.Rule == rule && f.Verdict == v {
			same++
		}
	}
	if same > maxEach {
		return
	}
	if same == maxEach {
		at, fix, format, args = place{}, "mend those, and look again", "there are more than %d of these", []any{maxEach}
	}
	if v == Pass || v == NotApplicable {
		fix = ""
	}
	f := Finding{Rule: rule, Title: TitleOf(rule), Verdict: v, File: at.file, Line: at.line, Fix: clip(fix),
		Text: clip(a.mask(fmt.Sprintf(format, args...))), Evidence: clip(a.mask(Mask(at.text)))}
	if slices.ContainsFunc(a.r.Findings, func(old Finding) bool { return old == f }) {
		return
	}
	a.r.Findings = append(a.r.Findings, f)
}

// maxEach is how many findings of a rule with the same verdict are told, and longest how much of
// each, in bytes: files may be made to have any number.
const maxEach, longest = 500, 1000

func clip(text string) string {
	if len(text) > longest {
		return strings.ToValidUTF8(text[:longest], "") + " …"
	}
	return text
}

func (a *audit) fail(rule string, at place, fix, format string, args ...any) {
	a.add(rule, Fail, at, fix, format, args...)
}

func (a *audit) warn(rule string, at place, fix, format string, args ...any) {
	a.add(rule, Warn, at, fix, format, args...)
}

func (a *audit) unknown(rule string, at place, fix, format string, args ...any) {
	a.add(rule, Unknown, at, fix, format, args...)
}

// pass adds that a rule is kept, unless something else was found of it.
func (a *audit) pass(rule string, at place, format string, args ...any) {
	if !a.bad(rule) {
		a.add(rule, Pass, at, "", format, args...)
	}
}

func (a *audit) bad(rule string) bool {
	return slices.ContainsFunc(a.r.Findings, func(f Finding) bool { return f.Rule == rule && (f.Verdict == Fail || f.Verdict == Warn) })
}

// unread adds that a file could not be read or understood.
func (a *audit) unread(path string, line int, format string, args ...any) {
	a.r.Unread++
	a.add(ruleRead, Unknown, place{file: path, line: line}, "have a user run it who may read the file, and mend what the line has", format, args...)
}

// missing adds that a path that was given is not there.
func (a *audit) missing(path string, err error) {
	a.r.Missing++
	a.add(ruleRead, Unknown, place{file: path}, "name a file or a directory that is there", "there is no such path: %v", cause(err))
}

// cause is what went wrong, without the name of the file, which stands beside it.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// secret has a text never told.
func (a *audit) secret(text string) {
	if len(text) >= 4 && !slices.Contains(publicPasswords(), strings.ToLower(text)) && !slices.Contains(a.secrets, text) {
		a.secrets = append(a.secrets, text)
	}
}

// hidden takes the place of secrets.
const hidden = "***"

func (a *audit) mask(text string) string {
	for _, s := range a.secrets {
		text = strings.ReplaceAll(text, s, hidden)
	}
	return text
}

// secretKey is what keys of secrets have in their names.
func secretKey() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(pass(word|wd|code|phrase)?|secret|cookie|token|credential|_hash|hash_|access_key)`)
}

// Mask hides the values of keys that are called like secrets, and the passwords of
// addresses, in a line of any file.
func Mask(line string) string {
	if at := strings.Index(line, "://"); at >= 0 {
		if end := strings.LastIndex(line, "@"); end > at {
			line = line[:at+3] + hidden + line[end:]
		}
	}
	for _, sign := range []string{"=", ":", ","} {
		key, value, ok := strings.Cut(line, sign)
		words := strings.FieldsFunc(key, func(r rune) bool { return r == '.' || r == ' ' || r == '{' || r == '"' || r == '[' })
		if !ok || len(words) == 0 || strings.TrimSpace(value) == "" || strings.Contains(value, "://") {
			continue
		}
		last := words[len(words)-1]
		names := strings.HasSuffix(last, "file") || strings.HasSuffix(last, "module") || strings.HasSuffix(last, "algorithm")
		if secretKey().MatchString(last) && !names {
			return key + sign + " " + hidden
		}
	}
	return setCookie().ReplaceAllString(line, "$1 "+hidden)
}

// setCookie is how a cookie is given on a command line.
func setCookie() *regexp.Regexp { return regexp.MustCompile(`(-setcookie)\s+\S+`) }

// rest says of each rule without a verdict why it has none.
func (a *audit) rest() {
	a.pass(ruleKeys, place{}, "all keys are known")
	if a.r.Unread+a.r.Missing == 0 {
		a.pass(ruleRead, place{}, "%d files were read", len(a.used()))
	}
	for _, rule := range Rules() {
		if a.judged[rule.ID] {
			continue
		}
		if why, ok := rule.never[a.kind]; ok {
			a.add(rule.ID, NotApplicable, place{}, "", "%s", why)
			continue
		}
		a.add(rule.ID, Unknown, place{}, rule.fix, "%s", cmp.Or(rule.unjudged[a.kind], rule.unjudged[""], "nothing that was given shows it"))
	}
}

// used are the paths of the files that were judged.
func (a *audit) used() (paths []string) {
	for _, f := range a.disk.files {
		if f.used {
			paths = append(paths, f.Path)
		}
	}
	slices.Sort(paths)
	return paths
}

func (a *audit) finish() Report {
	a.r.Files = a.used()
	a.r.Kind = a.kind
	a.r.sort()
	return a.r
}
