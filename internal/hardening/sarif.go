package hardening

import (
	"cmp"
	"net/url"
	"path/filepath"
	"strings"
)

// SARIF is a report in the Static Analysis Results Interchange Format 2.1.0, which code
// hosts and editors show beside the lines. What is kept, or has nothing to do with what
// was given, is not in it.
type SARIF struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool        sarifTool         `json:"tool"`
	Invocations []sarifInvocation `json:"invocations"`
	Results     []sarifResult     `json:"results"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name           string      `json:"name"`
	Version        string      `json:"version,omitempty"`
	InformationURI string      `json:"informationUri"`
	Rules          []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID               string    `json:"id"`
	Name             string    `json:"name"`
	ShortDescription sarifText `json:"shortDescription"`
	FullDescription  sarifText `json:"fullDescription"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifInvocation struct {
	ExecutionSuccessful bool `json:"executionSuccessful"`
}

type sarifResult struct {
	RuleID    string          `json:"ruleId"`
	RuleIndex int             `json:"ruleIndex"`
	Kind      string          `json:"kind"`
	Level     string          `json:"level"`
	Message   sarifText       `json:"message"`
	Locations []sarifLocation `json:"locations"`
}

type sarifLocation struct {
	PhysicalLocation sarifPhysical `json:"physicalLocation"`
}

type sarifPhysical struct {
	ArtifactLocation sarifArtifact `json:"artifactLocation"`
	Region           *sarifRegion  `json:"region,omitempty"`
}

type sarifArtifact struct {
	URI string `json:"uri"`
}

type sarifRegion struct {
	StartLine int        `json:"startLine"`
	Snippet   *sarifText `json:"snippet,omitempty"`
}

// SARIF is the report in that format. version is the program's, and path what a finding is
// shown at that is of no file.
func (r Report) SARIF(version, path string) SARIF {
	driver := sarifDriver{Name: "fleetbus audit", Version: version, InformationURI: "https://github.com/fleetbus/fleetbus/blob/main/docs/audit.md"}
	index := map[string]int{}
	for i, rule := range Rules() {
		index[rule.ID] = i
		driver.Rules = append(driver.Rules, sarifRule{rule.ID, sarifName(rule), sarifText{rule.Title}, sarifText{rule.Help}})
	}
	results := []sarifResult{}
	for _, f := range r.Findings {
		kind, level := "fail", "error"
		switch f.Verdict {
		case Pass, NotApplicable:
			continue
		case Warn:
			level = "warning"
		case Unknown:
			kind, level = "open", "none"
		}
		text := f.Text
		if f.Fix != "" {
			text += "\nfix: " + f.Fix
		}
		region := &sarifRegion{StartLine: max(f.Line, 1)}
		if f.Evidence != "" && f.Line > 0 {
			region.Snippet = &sarifText{f.Evidence}
		}
		results = append(results, sarifResult{f.Rule, index[f.Rule], kind, level, sarifText{text},
			[]sarifLocation{{sarifPhysical{sarifArtifact{sarifURI(cmp.Or(f.File, path))}, region}}}})
	}
	return SARIF{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0",
		[]sarifRun{{sarifTool{driver}, []sarifInvocation{{r.Unread+r.Missing == 0}}, results}}}
}

// sarifName is a name of a rule without spaces, from its title.
func sarifName(rule Rule) string {
	var b strings.Builder
	for word := range strings.FieldsSeq(rule.Title) {
		word = strings.Map(func(r rune) rune {
			if r < 128 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') {
				return r
			}
			return -1
		}, word)
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// sarifURI is the address of a file: relative ones as they are, so that they are found in
// a repository.
func sarifURI(path string) string {
	if strings.Contains(path, "://") {
		return path
	}
	u := url.URL{Path: filepath.ToSlash(filepath.Clean(path))}
	if filepath.IsAbs(path) {
		u.Scheme = "file"
	}
	return u.String()
}
