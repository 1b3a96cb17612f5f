// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/layer"
	"github.com/berthd/berth/plugin/runtime/oci"
	"github.com/berthd/berth/plugin/runtime/record"
)

// spec makes the specification of a container that begins.
func (f *fresh) spec(ctx context.Context, m *newMember, c *record.Creation) (*specs.Spec, error) {
	mounts, err := f.s.mounts(ctx, m, c)
	if err != nil {
		return nil, err
	}
	return oci.Build(ctx, f.s.config.Client, &c.Container.Record, &oci.Request{
		Image: c.Config, Pod: m.podSpec, Command: m.Command, Args: m.Args, Env: m.Env, WorkDir: m.WorkDir,
		User: m.User, Groups: m.groups(), TTY: m.TTY, Mounts: mounts, Devices: m.devices(), Rlimits: m.rlimits(),
		Resources: m.Resources.oci(), OOMScoreAdj: m.Resources.OOMScoreAdj, Security: m.security(c), Annotations: m.annotations(c),
	})
}

// annotations are containerd's, the container's, and what directs the runtime of the
// pod's.
func (m *newMember) annotations(c *record.Creation) map[string]string {
	all := make(map[string]string, len(m.Annotations))
	for key, value := range m.pod.Metadata.Annotations {
		if handler.Directs(key) {
			all[key] = value
		}
	}
	maps.Copy(all, m.Annotations)
	maps.Copy(all, c.Container.Metadata.SpecAnnotations())
	return all
}

func (r *ContainerRequest) groups() (list []string) {
	for _, g := range r.Groups {
		list = append(list, strconv.FormatUint(uint64(g), 10))
	}
	return list
}

func (r *ContainerRequest) devices() (list []oci.Device) {
	for _, d := range r.Devices {
		list = append(list, oci.Device(d))
	}
	return list
}

func (r *ContainerRequest) rlimits() (list []specs.POSIXRlimit) {
	for _, l := range r.Ulimits {
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: l.Soft, Hard: l.Hard})
	}
	return list
}

func (r *Resources) oci() oci.Resources {
	return oci.Resources{
		CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPUShares: r.CPUShares, CPUs: r.CPUs, Mems: r.Mems,
		Memory: r.Memory, Swap: r.Swap, Pids: r.Pids, Hugepages: r.Hugepages, Unified: r.Unified,
	}
}

func (m *newMember) security(c *record.Creation) oci.Security {
	s := &m.Security
	seccomp := s.Seccomp
	if seccomp == "" {
		seccomp = m.handler.SeccompProfile
	}
	return oci.Security{
		Privileged: s.Privileged, PrivilegedWithoutDevices: m.handler.PrivilegedWithoutHostDevices,
		Add: s.AddCapabilities, Drop: s.DropCapabilities, NoNewPrivileges: s.NoNewPrivileges, ReadOnlyRootfs: s.ReadonlyRootfs,
		Seccomp: seccomp, AppArmor: s.AppArmor, ProcessLabel: c.ProcessLabel, MountLabel: c.MountLabel,
		MaskedPaths: s.MaskedPaths, ReadonlyPaths: s.ReadonlyPaths,
	}
}

// mounts are those that were asked for, and the handlers' time zone.
func (s *Service) mounts(ctx context.Context, m *newMember, c *record.Creation) ([]oci.Mount, error) {
	var list []oci.Mount
	zone, err := s.config.Handlers.Config().Localtime()
	if err != nil {
		return nil, err
	}
	if zone != "" {
		list = append(list, oci.Mount{Source: zone, Target: "/etc/localtime", ReadOnly: true})
	}
	for i := range m.Mounts {
		one, err := m.Mounts[i].oci()
		if err == nil && m.Mounts[i].Image != "" {
			err = s.mountImage(ctx, &m.Mounts[i], c, &one)
		}
		if err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.Mounts[i].Target, err)
		}
		list = append(list, one)
	}
	return list, nil
}

func (m *Mount) oci() (oci.Mount, error) {
	propagation, ok := map[string]oci.Propagation{
		"": oci.Private, "private": oci.Private, "rprivate": oci.Private, "rslave": oci.FromHost, "rshared": oci.Bidirectional,
	}[m.Propagation]
	if !ok {
		return oci.Mount{}, fmt.Errorf("propagation %q: %w", m.Propagation, errdefs.ErrInvalidArgument)
	}
	return oci.Mount{
		Source: m.Source, Target: m.Target, Type: m.Type, Options: m.Options, ReadOnly: m.Readonly, RecursiveReadOnly: m.RecursiveReadonly,
		Propagation: propagation, Relabel: m.Relabel, Create: m.Create,
	}, nil
}

// mountImage has the runtime mount the layers of an image itself: nothing of it is
// on the host, and nothing to clean up. The container's snapshot keeps the layers as
// long as it is there.
func (s *Service) mountImage(ctx context.Context, m *Mount, c *record.Creation, to *oci.Mount) error {
	image, chain, err := s.unpacked(ctx, m.Image, c.Container.Record.Snapshotter)
	if err != nil {
		return fmt.Errorf("image %s: %w", m.Image, err)
	}
	sn := s.config.Client.SnapshotService(c.Container.Record.Snapshotter)
	key := c.Container.ID + "-" + image.Target().Digest.Encoded()
	layers, err := s.view(ctx, sn, c, key, chain)
	if err != nil {
		return fmt.Errorf("image %s: %w", m.Image, err)
	}
	if len(layers) != 1 {
		return fmt.Errorf("image %s: its snapshotter has %d mounts for one: %w", m.Image, len(layers), errdefs.ErrNotImplemented)
	}
	root := &layers[0]
	if m.SubPath != "" {
		if root, err = layer.Part(root, m.SubPath); err != nil {
			return fmt.Errorf("image %s: %w", m.Image, err)
		}
	}
	to.Type, to.Source, to.Options = root.Type, root.Source, root.Options
	// An image is nobody's to change.
	to.ReadOnly, to.RecursiveReadOnly, to.Propagation, to.Create = true, false, oci.Private, false
	return nil
}

// unpacked finds an image whose layers the snapshotter has, and the key of the last.
func (s *Service) unpacked(ctx context.Context, name, snapshotter string) (client.Image, string, error) {
	r := ContainerRequest{Image: name}
	found, err := r.image()
	if err != nil {
		return nil, "", err
	}
	image, err := s.config.Client.GetImage(ctx, found.Record)
	if err != nil {
		return nil, "", err
	}
	if ok, err := image.IsUnpacked(ctx, snapshotter); err != nil {
		return nil, "", err
	} else if !ok {
		if err := image.Unpack(ctx, snapshotter); err != nil {
			return nil, "", err
		}
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		return nil, "", err
	}
	return image, identity.ChainID(ids).String(), nil
}

// gcRef is the label by which a snapshot keeps another one: containerd's garbage
// collector follows it (docs/garbage-collection.md there).
const gcRef = "containerd.io/gc.ref.snapshot."

// view returns how a snapshot is mounted read-only, and has the container's keep it.
func (s *Service) view(ctx context.Context, sn snapshots.Snapshotter, c *record.Creation, key, chain string) ([]mount.Mount, error) {
	record := &c.Container.Record
	name := gcRef + record.Snapshotter + "/" + chain
	keep := snapshots.Info{Name: record.SnapshotKey, Labels: map[string]string{name: chain}}
	if _, err := sn.Update(ctx, keep, "labels."+name); err != nil {
		return nil, err
	}
	leased := leases.WithLease(ctx, record.SandboxID)
	mounts, err := sn.View(leased, key, chain)
	if err != nil {
		return nil, err
	}
	return mounts, sn.Remove(leased, key)
}
