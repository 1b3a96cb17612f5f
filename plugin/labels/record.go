// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
)

// record is what container and sandbox records have in common.
type record struct {
	what       string // "container" or "sandbox", for errors
	id         string
	sandboxID  string
	labels     map[string]string
	extensions map[string]typeurl.Any
}

func recordOf(c *containers.Container) record {
	return record{kindContainer, c.ID, c.SandboxID, c.Labels, c.Extensions}
}

func recordOfSandbox(s *sandbox.Sandbox) record {
	return record{"sandbox", s.ID, "", s.Labels, s.Extensions}
}

func (r record) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", r.what, r.id, err)
}

// ours tells whether berth made the record; see the package's comment for why
// labels alone do not prove it.
func (r record) ours() bool {
	if r.labels[keyManaged] == "" || r.labels[criKind] != "" || r.extensions[criStoreExt] != nil {
		return false
	}
	if r.labels[keyKind] == kindInfra {
		return r.sandboxID == "" && r.labels[keyPodID] == r.id
	}
	return r.sandboxID != ""
}

// Encode validates m and writes it to a container that is about to be created: its
// labels, beside those that c has, its extensions and its SandboxID. The ID must
// be set. Errors are of class InvalidArgument.
func (m Metadata) Encode(c *containers.Container) error {
	r := recordOf(c)
	r.sandboxID = m.sandboxID()
	if err := m.fill(&r); err != nil {
		return err
	}
	c.SandboxID, c.Labels, c.Extensions = r.sandboxID, r.labels, r.extensions
	return nil
}

// EncodeSandbox is Encode for the sandbox record of a pod; m is of KindInfra.
func (m Metadata) EncodeSandbox(s *sandbox.Sandbox) error {
	r := recordOfSandbox(s)
	if err := m.fill(&r); err != nil {
		return err
	}
	s.Labels, s.Extensions = r.labels, r.extensions
	return nil
}

// Decode reads the record of a container. It returns ErrForeign for one that is
// not berth's, and ErrUndecodable naming the key for one that is damaged. Of a
// record with a newer schema it returns what it understands: Schema tells.
func Decode(c containers.Container) (Metadata, error) {
	r := recordOf(&c)
	m, err := r.decode()
	return m, r.wrap(err)
}

// DecodeSandbox is Decode for the sandbox record of a pod.
func DecodeSandbox(s sandbox.Sandbox) (Metadata, error) {
	r := recordOfSandbox(&s)
	m, err := r.decode()
	return m, r.wrap(err)
}

// sandboxID is the pod's ID for members; infra has none, as with CRI.
func (m *Metadata) sandboxID() string {
	if m.Kind == KindInfra {
		return ""
	}
	return m.Pod.ID
}

// fill encodes m into a new record.
func (m Metadata) fill(r *record) error {
	for key := range r.labels {
		if strings.HasPrefix(key, criPrefix) {
			return r.wrap(invalid("label %s: CRI would take the record for its own", key))
		}
	}
	f, err := m.encode(*r)
	if err != nil {
		return r.wrap(err)
	}
	labels := maps.Clone(r.labels)
	if labels == nil {
		labels = make(map[string]string, len(f.labels))
	}
	maps.DeleteFunc(labels, func(key, _ string) bool { return strings.HasPrefix(key, prefix) || ofSchema(key) })
	maps.Copy(labels, f.labels)
	extensions := maps.Clone(r.extensions)
	if extensions == nil {
		extensions = make(map[string]typeurl.Any)
	}
	if f.document.needed() {
		if extensions[extMetadata], err = extension(documentType, &f.document, nil); err != nil {
			return r.wrap(err)
		}
	}
	if !f.idMap.empty() {
		if extensions[extIDMap], err = extension(idMapType, &f.idMap, nil); err != nil {
			return r.wrap(err)
		}
	}
	r.labels, r.extensions = labels, extensions
	return nil
}

// form is Metadata in the shape of a record.
type form struct {
	labels   map[string]string
	document document
	idMap    idMapDocument
}

// encode validates m for its place, which is r.
func (m Metadata) encode(r record) (form, error) {
	if err := m.Validate(); err != nil {
		return form{}, err
	}
	if (m.Kind == KindInfra) != (m.Pod.ID == r.id) || m.sandboxID() != r.sandboxID {
		return form{}, invalid("%s in sandbox %q cannot be %s of pod %s", r.id, r.sandboxID, m.Kind, m.Pod.ID)
	}
	m.MetadataName = first(m.MetadataName, m.Name)
	f := form{
		labels: map[string]string{keyManaged: strconv.Itoa(Version)},
		document: document{
			Version: Version, Fields: make(map[string]string),
			Labels: m.Labels, Annotations: m.Annotations, Settings: m.Settings,
		},
		idMap: idMapDocument{Version, m.IDMap},
	}
	for _, field := range fields {
		value := field.get(&m)
		if value == "" {
			continue
		}
		f.document.Fields[field.key] = value
		if fits(field.key, value) {
			f.labels[field.key] = value
		} else {
			f.document.Overflow = append(f.document.Overflow, field.key)
		}
	}
	for key, value := range m.Labels {
		if asLabel(key, value) {
			f.labels[key] = value
		}
	}
	return f, nil
}

// asLabel tells whether a label of the user's becomes one of the record's.
func asLabel(key, value string) bool { return !ofSchema(key) && fits(key, value) }

// decode reads the record. The errors do not name it.
func (r record) decode() (Metadata, error) {
	if !r.ours() {
		return Metadata{}, ErrForeign
	}
	schema, err := schemaOf(r.labels)
	if err != nil {
		return Metadata{}, err
	}
	d, ids, err := r.documents()
	schema = max(schema, d.Version, ids.Version)
	m := Metadata{Schema: schema, IDMap: ids.IDMap, Labels: d.Labels, Annotations: d.Annotations, Settings: d.Settings}
	m.dropEmpty()
	faults := []error{err}
	overflow := d.overflowed()
	for _, f := range fields {
		value := r.labels[f.key]
		if value == "" {
			value = overflow[f.key]
		}
		faults = append(faults, f.decode(&m, value))
	}
	m.MetadataName = first(m.MetadataName, m.Name)
	if m.Kind == KindInfra {
		m.Pod.Attempt = m.Attempt
	} else {
		m.Pod.ID = r.sandboxID // no label is trusted more
	}
	if schema > Version {
		return m, nil // what cannot be understood need not be wrong
	}
	return m, errors.Join(faults...)
}

func (f field) decode(m *Metadata, value string) error {
	if value == "" {
		if f.mandatory {
			return fmt.Errorf("label %s: missing: %w", f.key, ErrUndecodable)
		}
		return nil
	}
	if err := f.set(m, value); err != nil {
		return fmt.Errorf("label %s: value %q: %s: %w", f.key, clip(value), err, ErrUndecodable)
	}
	return nil
}

// documents reads the extensions. With an error, their versions may be set.
func (r record) documents() (d document, ids idMapDocument, err error) {
	err = errors.Join(
		readExtension(r.extensions, extMetadata, documentType, &d),
		readExtension(r.extensions, extIDMap, idMapType, &ids))
	return d, ids, err
}
