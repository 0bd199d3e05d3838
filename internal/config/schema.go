package config

import (
	"encoding/json"
	"strconv"
)

// A schema is the part of JSON Schema, draft 2020-12, that the table needs.
type schema struct {
	Schema               string             `json:"$schema,omitempty"`
	Title                string             `json:"title,omitempty"`
	Description          string             `json:"description,omitempty"`
	Type                 any                `json:"type"`
	Enum                 []string           `json:"enum,omitempty"`
	Pattern              string             `json:"pattern,omitempty"`
	Minimum              int                `json:"minimum,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	PropertyNames        *schema            `json:"propertyNames,omitempty"`
	AdditionalProperties any                `json:"additionalProperties,omitempty"` // false or a *schema
	Default              any                `json:"default,omitempty"`
	Examples             []any              `json:"examples,omitempty"`
}

const (
	durationPattern = `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
	sizePattern     = `^[0-9]+([KMGT]i?)?B$`
	namePattern     = `^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`
)

// Schema returns a JSON Schema, draft 2020-12, of the file, for editors. Load
// alone decides what is valid.
func Schema() []byte {
	root := sectionSchema("")
	root.Schema = "https://json-schema.org/draft/2020-12/schema"
	root.Title = "Configuration of a fleetbus node"
	sections := map[string]*schema{"": root}
	for _, k := range Keys() {
		in := sections[k.section()]
		s := keySchema(k)
		if k.Type == Section {
			s = sectionSchema(k.Doc)
			sections[k.Path] = s
		}
		if k.name() == "*" {
			in.PropertyNames = &schema{Type: "string", Pattern: namePattern}
			in.AdditionalProperties = s
			continue
		}
		in.Properties[k.name()] = s
	}
	out, _ := json.MarshalIndent(root, "", "  ") // it holds nothing that JSON cannot
	return append(out, '\n')
}

func sectionSchema(doc string) *schema {
	return &schema{
		Description: doc, Type: []string{"object", "null"},
		Properties: map[string]*schema{}, AdditionalProperties: false,
	}
}

func keySchema(k Key) *schema {
	s := &schema{Description: k.Doc, Type: "string", Default: k.json(k.Default)}
	if k.Otherwise != "" {
		s.Description += " Default: " + k.Otherwise + "."
	}
	if k.Example != "" {
		s.Examples = []any{k.json(k.Example)}
	}
	switch k.Type {
	case Choice:
		s.Enum = k.Choices
	case Bool:
		s.Type = "boolean"
	case Number:
		s.Type, s.Minimum = "integer", 1
	case Duration:
		s.Pattern = durationPattern
	case Size:
		s.Pattern = sizePattern
	case List:
		s.Type, s.Items = "array", &schema{Type: "string"}
	}
	return s
}

// json is text, a value as in a flag, as a value in JSON; nil if it is empty.
func (k Key) json(text string) any {
	if text == "" {
		return nil
	}
	switch k.Type {
	case Bool:
		return text == "true"
	case Number:
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	case List:
		return value(k, text, Place{}).texts()
	}
	return text
}
