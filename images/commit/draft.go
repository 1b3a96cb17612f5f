// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// refSnapshot begins the label by which a configuration keeps its unpacked layers.
const refSnapshot = "containerd.io/gc.ref.snapshot."

// draft is an image whose documents are not written yet.
type draft struct {
	types       mediaTypes
	layers      []v1.Descriptor
	diffIDs     []digest.Digest
	history     []v1.History
	created     time.Time
	author      string
	annotations map[string]string
	fields      map[string]json.RawMessage // of the configuration; those above replace theirs
	sources     map[string]string
	added       addition
}

// draft is a copy of the base, to be changed.
func (b base) draft() draft {
	d := draft{
		types:   b.types,
		layers:  slices.Clone(b.document.Layers),
		diffIDs: slices.Clone(b.image.RootFS.DiffIDs),
		history: slices.Clone(b.image.History),
		author:  b.image.Author,
		fields:  maps.Clone(b.fields),
		sources: b.sources,
	}
	if b.manifest == nil {
		d.fields["architecture"], _ = json.Marshal(b.image.Architecture) // a string
		d.fields["os"], _ = json.Marshal(b.image.OS)
	}
	return d
}

// add puts a layer on top; an empty one is only mentioned.
func (d *draft) add(a addition, h v1.History) {
	d.added = a
	h.EmptyLayer = a.empty()
	d.history = append(d.history, h)
	if !a.empty() {
		d.layers = append(d.layers, a.blob)
		d.diffIDs = append(d.diffIDs, a.diffID)
	}
}

// configure replaces the configuration of the containers. What Docker adds to it, such
// as a health check, is not part of the OCI form and stays.
func (d *draft) configure(config v1.ImageConfig) error {
	members := map[string]json.RawMessage{}
	if raw, ok := d.fields["config"]; ok {
		if err := json.Unmarshal(raw, &members); err != nil {
			return fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	for _, name := range []string{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped"} {
		delete(members, name)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if err := json.Unmarshal(raw, &members); err != nil {
		return fmt.Errorf("configuration: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	d.fields["config"], err = json.Marshal(members)
	return err
}

// config is the configuration's document.
func (d *draft) config() ([]byte, error) {
	fields := maps.Clone(d.fields)
	for name, value := range map[string]any{
		"created": d.created,
		"author":  d.author,
		"rootfs":  v1.RootFS{Type: "layers", DiffIDs: d.diffIDs},
		"history": d.history,
	} {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("configuration: %s: %w", name, err)
		}
		fields[name] = raw
	}
	if d.author == "" {
		delete(fields, "author")
	}
	return json.Marshal(fields)
}

// write writes a draft's documents.
func (m *Maker) write(ctx context.Context, d draft) (target, config v1.Descriptor, err error) {
	raw, err := d.config()
	if err != nil {
		return target, config, err
	}
	return m.writeAll(ctx, d, document{raw: raw, diffIDs: d.diffIDs})
}

// writeAll puts a configuration and the manifest of a draft's layers into the content
// store, with the labels that keep what they refer to.
func (m *Maker) writeAll(ctx context.Context, d draft, doc document) (target, config v1.Descriptor, err error) {
	labels := map[string]string{}
	if len(doc.diffIDs) > 0 {
		labels[refSnapshot+m.Layers.Snapshotter()] = identity.ChainID(doc.diffIDs).String()
	}
	if config, err = m.put(ctx, d.types.config, doc.raw, labels); err != nil {
		return target, config, err
	}
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: d.types.manifest,
		Config: config, Layers: append([]v1.Descriptor{}, d.layers...), Annotations: d.annotations,
	})
	if err != nil {
		return target, config, fmt.Errorf("manifest: %w", err)
	}
	if target, err = m.put(ctx, d.types.manifest, raw, d.sources); err != nil {
		return target, config, err
	}
	cs := m.Client.ContentStore()
	if _, err := images.SetChildrenLabels(cs, images.ChildrenHandler(cs))(ctx, target); err != nil {
		return target, config, fmt.Errorf("labels of manifest %s: %w", target.Digest, err)
	}
	return target, config, nil
}

// put writes a blob that may be there already.
func (m *Maker) put(ctx context.Context, mediaType string, data []byte, labels map[string]string) (v1.Descriptor, error) {
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	cs := m.Client.ContentStore()
	ref := "berth-commit-" + desc.Digest.String()
	if err := content.WriteBlob(ctx, cs, ref, bytes.NewReader(data), desc, content.WithLabels(labels)); err != nil {
		return desc, fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	if len(labels) == 0 {
		return desc, nil
	}
	var paths []string
	for key := range labels {
		paths = append(paths, "labels."+key)
	}
	if _, err := cs.Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, paths...); err != nil {
		return desc, fmt.Errorf("labels of blob %s: %w", desc.Digest, err)
	}
	return desc, nil
}
