// SPDX-License-Identifier: Apache-2.0

// Package consumer owns the question who uses an image: the containers of a
// namespace, whoever made them, by the image they were made from and by the images
// that are mounted into them. It decides nothing about what may be removed.
package consumer

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/usage"
)

// Consumer is a container that uses an image.
type Consumer struct {
	Container string // its ID
	Running   bool   // it has a process, stopped or not by a signal
	Volume    bool   // the image is mounted into it, it was not made from it
	// Record is the image record that it was made from, empty if that cannot be
	// told: then any record of the image will do.
	Record string
	// Chain is the image's top snapshot below the container's, empty if it has none.
	Chain string
}

// Consumers are the users of images, by the digest of the target.
type Consumers map[digest.Digest][]Consumer

// refSnapshot is the label by which a container's snapshot keeps an image that
// berth has mounted into the container.
const refSnapshot = "containerd.io/gc.ref.snapshot."

// Find tells who uses the images of the records, all of those of the namespace of
// ctx. The inventory is to be as old as the records.
//
// A name may have moved since a container was made from it. So where a container's
// layers tell whose they are, they decide, and its image's name only chooses among
// images of the same layers.
func Find(ctx context.Context, c *client.Client, records []images.Image, inv *usage.Inventory) (Consumers, error) {
	all, err := c.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	running, err := runningTasks(ctx, c)
	if err != nil {
		return nil, err
	}
	f := finder{inventory: inv, names: newNames(records), chains: chainsOf(records, inv), found: Consumers{}}
	for i := range all {
		f.add(&all[i], running[all[i].ID])
	}
	return f.found, nil
}

func runningTasks(ctx context.Context, c *client.Client) (map[string]bool, error) {
	answer, err := c.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	running := map[string]bool{}
	for _, p := range answer.GetTasks() {
		if p.GetStatus() != task.Status_STOPPED {
			running[p.GetID()] = true // a shim that does not answer counts as well
		}
	}
	return running, nil
}

// finder holds what containers are compared with.
type finder struct {
	inventory *usage.Inventory
	names     names
	chains    map[string][]digest.Digest // targets by top snapshot
	found     Consumers
}

func chainsOf(records []images.Image, inv *usage.Inventory) map[string][]digest.Digest {
	chains := map[string][]digest.Digest{}
	seen := map[digest.Digest]bool{}
	for _, img := range records {
		target := img.Target.Digest
		if seen[target] {
			continue
		}
		seen[target] = true
		for _, chain := range inv.Chains(target) {
			chains[chain] = append(chains[chain], target)
		}
	}
	return chains
}

func (f *finder) add(c *containers.Container, running bool) {
	chain, byLayers := f.targetsOf(c.SnapshotKey)
	record, byName := f.names.find(c.Image)
	use := Consumer{Container: c.ID, Running: running, Chain: chain}
	switch {
	case len(byLayers) == 0 && byName != "", slices.Contains(byLayers, byName):
		use.Record = record
		f.note(byName, use)
	default:
		for _, target := range byLayers {
			f.note(target, use)
		}
	}
	use.Record, use.Volume = "", true
	for use.Chain = range f.volumes(c) {
		for _, target := range f.chains[use.Chain] {
			f.note(target, use)
		}
	}
}

func (f *finder) note(target digest.Digest, use Consumer) {
	f.found[target] = append(f.found[target], use)
}

// targetsOf returns the images of whose layers a container's snapshot consists. Below
// it may be others that are no image's, such as a remapped copy.
func (f *finder) targetsOf(key string) (chain string, targets []digest.Digest) {
	for name := range f.inventory.Ancestors(key) {
		if targets := f.chains[name]; len(targets) > 0 {
			return name, targets
		}
	}
	return "", nil
}

// volumes are the top snapshots of images that are mounted into a container: berth
// has the container's snapshot keep them, containerd's CRI plugin makes a snapshot
// whose key is the path of the mount.
func (f *finder) volumes(c *containers.Container) map[string]bool {
	chains := map[string]bool{}
	if own, ok := f.inventory.Snapshot(c.SnapshotKey); ok {
		for key, value := range own.Labels {
			if strings.HasPrefix(key, refSnapshot) {
				chains[value] = true
			}
		}
	}
	if c.Spec == nil {
		return chains
	}
	for info := range f.inventory.Active {
		if strings.HasPrefix(info.Name, "/") && bytes.Contains(c.Spec.GetValue(), []byte(`"`+info.Name)) {
			chains[info.Parent] = true
		}
	}
	return chains
}

// names find the record that a container says it was made from.
type names struct {
	targets map[string]digest.Digest // by the record's name
	records []images.Image
}

func newNames(records []images.Image) names {
	n := names{targets: map[string]digest.Digest{}, records: records}
	for _, img := range records {
		n.targets[img.Name] = img.Target.Digest
	}
	return n
}

// find returns "" for a name that nothing here has. The record is "" as well when
// only the content is certain.
func (n names) find(image string) (record string, target digest.Digest) {
	if image == "" {
		return "", ""
	}
	if target, ok := n.targets[image]; ok {
		return image, target
	}
	if named, err := reference.ParseNormalizedNamed(image); err == nil {
		if record, target := n.named(named); target != "" {
			return record, target
		}
	}
	return "", n.byID(image)
}

func (n names) named(named reference.Named) (record string, target digest.Digest) {
	digested, ok := named.(reference.Digested)
	if !ok {
		name := reference.TagNameOnly(named).String()
		return name, n.targets[name]
	}
	if tagged, ok := named.(reference.NamedTagged); ok {
		// "repo:tag@digest" is the record "repo:tag", as long as it has not moved.
		name := named.Name() + ":" + tagged.Tag()
		if n.targets[name] == digested.Digest() {
			return name, digested.Digest()
		}
	}
	return "", n.byID(digested.Digest().String())
}

// shortID is the length of an ID that moby's tools cut theirs to.
const shortID = 12

func (n names) byID(id string) digest.Digest {
	id = strings.TrimPrefix(id, digest.SHA256.String()+":")
	if len(id) < shortID {
		return ""
	}
	for _, img := range n.records {
		if strings.HasPrefix(img.Target.Digest.Encoded(), id) || strings.HasPrefix(img.Name, digest.SHA256.String()+":"+id) {
			return img.Target.Digest
		}
	}
	return ""
}
