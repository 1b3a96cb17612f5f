// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// The types of the extensions: JSON, as typeurl's for what is no message.
const (
	documentType = "github.com/berthd/berth/plugin/labels/Metadata"
	idMapType    = "github.com/berthd/berth/plugin/labels/IDMap"
)

// document is the extension io.berth.metadata.
type document struct {
	Version uint32 `json:"version"`
	// Fields are those of the record, by their labels' keys. The label counts if
	// both are there.
	Fields map[string]string `json:"fields,omitempty"`
	// Overflow are the keys of Fields that have no label for being too long.
	Overflow    []string          `json:"overflow,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Settings    Settings          `json:"settings,omitzero"`
}

// idMapDocument is the extension io.berth.idmap.
type idMapDocument struct {
	Version uint32 `json:"version"`
	IDMap
}

// overflowed returns the fields that the document alone has.
func (d *document) overflowed() map[string]string {
	only := make(map[string]string, len(d.Overflow))
	for _, key := range d.Overflow {
		only[key] = d.Fields[key]
	}
	return only
}

// needed tells whether the document has what no label has.
func (d *document) needed() bool {
	return len(d.Overflow)+len(d.Labels)+len(d.Annotations) > 0 || !d.Settings.equal(Settings{})
}

// sameContent compares what the documents alone have: not their copy of labels.
func (d *document) sameContent(other *document) bool {
	return maps.Equal(d.overflowed(), other.overflowed()) &&
		maps.Equal(d.Labels, other.Labels) && maps.Equal(d.Annotations, other.Annotations) &&
		d.Settings.equal(other.Settings)
}

// readExtension decodes an extension into v, which is left alone if the record
// has none. A store cannot delete an extension: an empty one is none.
func readExtension(extensions map[string]typeurl.Any, name, kind string, v any) error {
	ext := extensions[name]
	if ext == nil || ext.GetTypeUrl() == "" {
		return nil
	}
	if ext.GetTypeUrl() != kind {
		return fmt.Errorf("extension %s: type %q: %w", name, clip(ext.GetTypeUrl()), ErrUndecodable)
	}
	if err := json.Unmarshal(ext.GetValue(), v); err != nil {
		return fmt.Errorf("extension %s: %s: %w", name, err, ErrUndecodable)
	}
	return nil
}

// extension encodes v, and carries over from the old extension what v's type does
// not know.
func extension(kind string, v any, old typeurl.Any) (typeurl.Any, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if old != nil && old.GetTypeUrl() == kind {
		value = carryOver(value, old.GetValue(), reflect.TypeOf(v).Elem())
	}
	return &anypb.Any{TypeUrl: kind, Value: value}, nil
}

// carryOver adds to a JSON object the members of an older one that are unknown to
// the struct type t, also within its structs. What cannot be read is dropped: the
// new object is complete without it.
func carryOver(value, old []byte, t reflect.Type) []byte {
	var now, before map[string]json.RawMessage
	if json.Unmarshal(value, &now) != nil || json.Unmarshal(old, &before) != nil {
		return value
	}
	known := members(t)
	for name, raw := range before {
		// encoding/json matches names whatever their case.
		i := slices.IndexFunc(known, func(m member) bool { return strings.EqualFold(m.name, name) })
		switch {
		case i < 0:
			now[name] = raw
		case known[i].kind.Kind() == reflect.Struct:
			inner := now[name]
			if inner == nil {
				inner = json.RawMessage("{}")
			}
			if inner = carryOver(inner, raw, known[i].kind); string(inner) != "{}" {
				now[name] = inner
			}
		}
	}
	merged, err := json.Marshal(now)
	if err != nil {
		return value
	}
	return merged
}

type member struct {
	name string
	kind reflect.Type
}

// members are the JSON members of a struct type, all of which have tags.
func members(t reflect.Type) []member {
	var all []member
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			all = append(all, member{name, f.Type})
		}
	}
	return all
}
