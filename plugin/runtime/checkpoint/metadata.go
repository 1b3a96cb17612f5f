// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Parts of a checkpoint. CRIU also writes stats-dump.
const (
	imagesDir   = "checkpoint"      // CRIU's images
	configFile  = "config.dump"     // Config
	specFile    = "spec.dump"       // the OCI specification
	bindsFile   = "bind.mounts"     // []BindMount
	diffFile    = "rootfs-diff.tar" // what was added to the image or changed
	deletedFile = "deleted.files"   // []string, what is gone from the image
	logFile     = "container.log"
	dumpLogFile = "dump.log" // CRIU's
	// inventoryFile is the first that CRIU reads of its images.
	inventoryFile = "inventory.img"
)

// Checkpoint is one in a directory.
type Checkpoint struct {
	Dir        string
	Config     Config
	Spec       *specs.Spec
	BindMounts []BindMount
}

// Config is config.dump: whose checkpoint it is. The JSON is that of checkpointctl
// with what berth and CRI-O keep in an image's annotations besides.
type Config struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// RootfsImage is what the user asked for, RootfsImageName a name of it,
	// RootfsImageRef its digest or id.
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`

	PodID        string `json:"podID,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
}

// BindMount is a mount that comes from outside of the container.
type BindMount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	FileType    string `json:"file_type"`   // "directory" or "file"
	Permissions uint32 `json:"permissions"` // of the source
}

const (
	typeDirectory = "directory"
	typeFile      = "file"
)

// Annotations of checkpoint images, checkpointctl's, and CRI-O's older one.
const (
	annotationEngine        = "org.criu.checkpoint.engine.name"
	annotationEngineVersion = "org.criu.checkpoint.engine.version"
	annotationName          = "org.criu.checkpoint.container.name"
	annotationPodName       = "org.criu.checkpoint.pod.name"
	annotationPodID         = "org.criu.checkpoint.pod.id"
	annotationPodNamespace  = "org.criu.checkpoint.pod.namespace"
	annotationPodUID        = "org.criu.checkpoint.pod.uid"
	annotationImageName     = "org.criu.checkpoint.rootfsImageName"
	annotationImageAsked    = "org.criu.checkpoint.rootfsImageUserRequested"
	annotationImageID       = "org.criu.checkpoint.rootfsImageID"
	annotationRuntime       = "org.criu.checkpoint.runtime.name"
	annotationArch          = "org.criu.checkpoint.host.arch"
	annotationCrioName      = "io.kubernetes.cri-o.annotations.checkpoint.name"

	engineName = "berth"
)

func (c *Config) annotations() map[string]string {
	all := map[string]string{}
	for key, value := range map[string]string{
		annotationName: c.Name, annotationCrioName: c.Name,
		annotationPodID: c.PodID, annotationPodName: c.PodName, annotationPodNamespace: c.PodNamespace, annotationPodUID: c.PodUID,
		annotationImageName: c.RootfsImageName, annotationImageAsked: c.RootfsImage, annotationImageID: c.RootfsImageRef,
		annotationRuntime: c.OCIRuntime,
	} {
		if value != "" {
			all[key] = value
		}
	}
	if c.Name == "" { // what tells a checkpoint from other images
		all[annotationName] = c.ID
	}
	return all
}

// save writes what is known about the container.
func (c *Checkpoint) save() error {
	for name, v := range map[string]any{configFile: &c.Config, specFile: c.Spec, bindsFile: c.BindMounts} {
		if err := writeJSON(filepath.Join(c.Dir, name), v); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// Load reads and checks a checkpoint in a directory. One that lacks a part without
// which nothing can be restored, CRIU's inventory above all, is InvalidArgument.
func Load(dir string) (*Checkpoint, error) {
	c := &Checkpoint{Dir: dir}
	err := inventory(dir)
	if err == nil {
		err = readJSON(filepath.Join(dir, configFile), &c.Config)
	}
	if err == nil {
		err = readJSON(filepath.Join(dir, specFile), &c.Spec)
	}
	if err == nil && (c.Spec == nil || c.Spec.Process == nil || c.Spec.Linux == nil) {
		err = fmt.Errorf("%s: not of a Linux container: %w", specFile, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		// Other engines have no such file.
		if err = readJSON(filepath.Join(dir, bindsFile), &c.BindMounts); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return c, nil
}

// inventory refuses a directory that holds no checkpoint, before any runtime is
// asked to restore it.
func inventory(dir string) error {
	st, err := os.Stat(filepath.Join(dir, imagesDir, inventoryFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no %s/%s: %w", imagesDir, inventoryFile, errdefs.ErrInvalidArgument)
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Size() == 0:
		return fmt.Errorf("%s/%s is empty: %w", imagesDir, inventoryFile, errdefs.ErrInvalidArgument)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no %s: %w: %w", filepath.Base(path), errdefs.ErrInvalidArgument, err)
		}
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", filepath.Base(path), errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// copyLog copies a log if there is one and there is none at its new place.
func copyLog(from, to string) (err error) {
	if from == "" || to == "" {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// isBind tells a bind mount. Its type says so, or one of its options.
func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}
