// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
)

// Target is where a container is to go on.
type Target struct {
	// PodID of the pod, "" for none. Namespaces that the container shared with its
	// old pod become the new one's.
	PodID string
	// Namespaces replaces namespaces by kind: the value is a path, or "" for one of
	// the container's own. It goes before what PodID says.
	Namespaces map[specs.LinuxNamespaceType]string
	// CgroupPath of the container. "" keeps the old one, which must be free.
	CgroupPath string
	// Sources replaces the sources of bind mounts, by destination. "" takes the
	// mount out: it must not have been there when the checkpoint was made.
	Sources map[string]string
	// Annotations are set besides those that the container had.
	Annotations map[string]string
}

// podNamespaces begins the paths of a pod's namespaces before berth's shim has put
// in the real ones.
const podNamespaces = "/proc/0/ns/"

// SpecFor returns the specification of a container that goes on at t. The
// checkpoint's is not changed. Bind mounts whose sources are not there are
// FailedPrecondition.
func (c *Checkpoint) SpecFor(t Target) (*specs.Spec, error) {
	s, err := clone(c.Spec)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", c.Config.ID, err)
	}
	t.joinNamespaces(s.Linux)
	if t.CgroupPath != "" {
		s.Linux.CgroupsPath = t.CgroupPath
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	delete(s.Annotations, labels.AnnotationContainerType)
	delete(s.Annotations, labels.AnnotationSandboxID)
	if t.PodID != "" {
		s.Annotations[labels.AnnotationContainerType], s.Annotations[labels.AnnotationSandboxID] = "container", t.PodID
	}
	maps.Copy(s.Annotations, t.Annotations)
	if err := t.bind(s); err != nil {
		return nil, fmt.Errorf("restore %s: %w", c.Config.ID, err)
	}
	return s, nil
}

func clone(s *specs.Spec) (*specs.Spec, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	var copied specs.Spec
	return &copied, json.Unmarshal(b, &copied)
}

func (t *Target) joinNamespaces(l *specs.Linux) {
	for i := range l.Namespaces {
		n := &l.Namespaces[i]
		if path, ok := t.Namespaces[n.Type]; ok {
			n.Path = path
		} else if n.Path != "" && t.PodID != "" {
			n.Path = podNamespaces + procName(n.Type)
		}
	}
}

// procName is what the kernel calls a namespace in /proc.
func procName(kind specs.LinuxNamespaceType) string {
	switch kind {
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	}
	return string(kind)
}

func (t *Target) bind(s *specs.Spec) error {
	var missing []error
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
		source, ok := t.Sources[m.Destination]
		return ok && source == ""
	})
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if source, ok := t.Sources[m.Destination]; ok {
			m.Source = source
		}
		if !isBind(m) {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			missing = append(missing, fmt.Errorf("mount at %s: %w", m.Destination, err))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return nil
}

// RestoreRequest asks that a container goes on from a checkpoint.
type RestoreRequest struct {
	// ID of the container: a record with a snapshot of the checkpoint's image, a
	// specification by SpecFor, and no task.
	ID string
	// IO makes the task's streams. The caller closes what it opens.
	IO cio.Creator
	// LogPath gets the log that the container had, unless there is one. "": none.
	LogPath string
}

// Restore has a container go on from c, in berth's shim or containerd's own, and
// returns its running task. A directory that holds no checkpoint is
// InvalidArgument and refused before anything is done; a machine that cannot is
// NotImplemented. After an error there is no task. containerd 2.1 is the oldest
// that can.
func (e *Engine) Restore(ctx context.Context, c *Checkpoint, r RestoreRequest) (_ client.Task, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore %s: %w", r.ID, err)
		}
	}()
	if r.ID == "" || r.IO == nil {
		return nil, fmt.Errorf("no container or streams: %w", errdefs.ErrInvalidArgument)
	}
	if err := inventory(c.Dir); err != nil {
		return nil, err
	}
	if err := e.Supported(ctx); err != nil {
		return nil, err
	}
	container, err := e.Client.LoadContainer(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	info, err := container.Info(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.runtimeSupports(ctx, &info); err != nil {
		return nil, err
	}
	if err := e.prepare(ctx, c, &info); err != nil {
		return nil, err
	}
	if err := copyLog(filepath.Join(c.Dir, logFile), r.LogPath); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	// containerd also unpacks rootfs-diff.tar, which is beside the images.
	if _, err := container.Restore(ctx, r.IO, filepath.Join(c.Dir, imagesDir)); err != nil {
		return nil, err
	}
	c.Config.Restored, c.Config.RestoredAt = true, time.Now()
	return container.Task(ctx, nil)
}

// prepare takes from the container's file system what the old one had deleted,
// and makes the places of its mounts, for those that were made by hand.
func (e *Engine) prepare(ctx context.Context, c *Checkpoint, info *containers.Container) error {
	var deleted []string
	if err := readJSON(filepath.Join(c.Dir, deletedFile), &deleted); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(deleted)+len(c.BindMounts) == 0 || info.SnapshotKey == "" {
		return nil
	}
	mounts, err := e.Client.SnapshotService(info.Snapshotter).Mounts(ctx, info.SnapshotKey)
	if err != nil {
		return err
	}
	return mount.WithTempMount(ctx, mounts, func(dir string) error {
		root, err := os.OpenRoot(dir) // the lists may be anybody's
		if err != nil {
			return err
		}
		defer root.Close()
		for _, path := range deleted {
			name := inRoot(path)
			if name == "" {
				continue
			}
			if err := root.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("deleted file: %w", err)
			}
		}
		for _, b := range c.BindMounts {
			if err := makePlace(root, b); err != nil {
				return fmt.Errorf("place of a mount: %w", err)
			}
		}
		return nil
	})
}

// inRoot is a path of a container as os.Root takes it.
func inRoot(path string) string {
	return strings.TrimPrefix(filepath.Join("/", path), "/")
}

// makePlace makes what a mount covers, by its kind, if it is not there. A
// destination that leads through links out of the root, as /var/run to /run does,
// is left to the runtime, which follows them inside.
func makePlace(root *os.Root, b BindMount) error {
	name := inRoot(b.Destination)
	if name == "" {
		return nil
	}
	if _, err := root.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return nil //nolint:nilerr // it is there, or the runtime's to find
	}
	dir := name
	if b.FileType != typeDirectory {
		dir = filepath.Dir(name)
	}
	if err := root.MkdirAll(dir, 0o755); err != nil || dir == name {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
