// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
)

// Change is an update of one record by field paths: what it does not name stays as
// it is, also what others write at the same time. Zero changes nothing.
type Change struct {
	id         string
	labels     map[string]string
	extensions map[string]typeurl.Any
	paths      []string
}

// Paths are the field paths, in containerd's notation, sorted.
func (ch Change) Paths() []string { return slices.Clone(ch.paths) }

// Container makes the change in a store and returns the record as it is then.
func (ch Change) Container(ctx context.Context, store containers.Store) (containers.Container, error) {
	if len(ch.paths) == 0 { // for the store, no paths means to replace the record
		return store.Get(ctx, ch.id)
	}
	c := containers.Container{ID: ch.id, Labels: ch.labels, Extensions: ch.extensions}
	c, err := store.Update(ctx, c, ch.paths...)
	if err != nil {
		return c, fmt.Errorf("update container %s: %w", ch.id, err)
	}
	return c, nil
}

// Sandbox makes the change in a store and returns the record as it is then.
func (ch Change) Sandbox(ctx context.Context, store sandbox.Store) (sandbox.Sandbox, error) {
	if len(ch.paths) == 0 {
		return store.Get(ctx, ch.id)
	}
	s := sandbox.Sandbox{ID: ch.id, Labels: ch.labels, Extensions: ch.extensions}
	s, err := store.Update(ctx, s, ch.paths...)
	if err != nil {
		return s, fmt.Errorf("update sandbox %s: %w", ch.id, err)
	}
	return s, nil
}

// Update returns what turns the record of a container, just read, into m: only the
// labels in which it differs, and the document only for what no label holds. So
// writers of different fields do not undo each other. It returns ErrForeign,
// ErrNewerSchema or ErrUndecodable for the record, InvalidArgument for m.
func (m Metadata) Update(c containers.Container) (Change, error) {
	r := recordOf(&c)
	ch, err := m.change(r, differences)
	return ch, r.wrap(err)
}

// UpdateSandbox is Update for the sandbox record of a pod.
func (m Metadata) UpdateSandbox(s sandbox.Sandbox) (Change, error) {
	r := recordOfSandbox(&s)
	ch, err := m.change(r, differences)
	return ch, r.wrap(err)
}

// Replace returns what makes m of the record of a container whatever berth wrote
// there: every label of the schema, those turned empty too, and the document. The
// last writer wins. It also mends a record that cannot be decoded. It returns
// ErrForeign or ErrNewerSchema for the record, InvalidArgument for m.
func (m Metadata) Replace(c containers.Container) (Change, error) {
	r := recordOf(&c)
	ch, err := m.change(r, everything)
	return ch, r.wrap(err)
}

// ReplaceSandbox is Replace for the sandbox record of a pod.
func (m Metadata) ReplaceSandbox(s sandbox.Sandbox) (Change, error) {
	r := recordOfSandbox(&s)
	ch, err := m.change(r, everything)
	return ch, r.wrap(err)
}

// extent is how much of a record a change covers.
type extent uint8

const (
	differences extent = iota
	everything
)

func (m Metadata) change(r record, what extent) (Change, error) {
	before, err := r.decode()
	switch {
	case before.Schema > Version:
		return Change{}, fmt.Errorf("schema %d: %w", before.Schema, ErrNewerSchema)
	case !r.ours(), err != nil && what == differences:
		return Change{}, err
	}
	f, err := m.encode(r)
	if err != nil {
		return Change{}, err
	}
	d, ids, _ := r.documents() // zero if undecodable: it is replaced
	ch := Change{id: r.id, labels: make(map[string]string), extensions: make(map[string]typeurl.Any)}
	for _, key := range append([]string{keyManaged}, schemaKeys...) {
		if what == everything || f.labels[key] != r.labels[key] {
			ch.label(key, f.labels[key])
		}
	}
	ch.userLabels(d.Labels, f, what)
	if err := ch.documents(r, f, d, ids, what); err != nil {
		return Change{}, err
	}
	slices.Sort(ch.paths)
	return ch, nil
}

// label sets one; the empty value removes it.
func (ch *Change) label(key, value string) {
	ch.labels[key] = value
	ch.paths = append(ch.paths, "labels."+key)
}

func (ch *Change) extension(name string, value typeurl.Any) {
	ch.extensions[name] = value
	ch.paths = append(ch.paths, "extensions."+name)
}

// userLabels compares with what the user had said before, not with the record's
// labels: somebody may have changed those since.
func (ch *Change) userLabels(before map[string]string, f form, what extent) {
	for key, value := range before {
		_, kept := f.document.Labels[key]
		if asLabel(key, value) && !kept {
			ch.label(key, "")
		}
	}
	for key, value := range f.document.Labels {
		old, had := before[key]
		if ofSchema(key) || what == differences && had && old == value {
			continue
		}
		if asLabel(key, value) || asLabel(key, old) {
			ch.label(key, f.labels[key])
		}
	}
}

// documents writes the extensions that are needed or there already: a store cannot
// delete one.
func (ch *Change) documents(r record, f form, d document, ids idMapDocument, what extent) error {
	old := r.extensions[extMetadata]
	stale := what == everything && (old != nil || f.document.needed())
	if stale || !f.document.sameContent(&d) {
		ext, err := extension(documentType, &f.document, old)
		if err != nil {
			return err
		}
		ch.extension(extMetadata, ext)
	}
	old = r.extensions[extIDMap]
	stale = what == everything && (old != nil || !f.idMap.empty())
	if stale || !f.idMap.equal(ids.IDMap) {
		ext, err := extension(idMapType, &f.idMap, old)
		if err != nil {
			return err
		}
		ch.extension(extIDMap, ext)
	}
	return nil
}
