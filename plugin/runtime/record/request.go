// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/idmap"
)

// Runtime is what a pod's or container's shim is started with.
type Runtime struct {
	Name    string      // empty: the Store's
	Options typeurl.Any // nil: none
}

// IDMappings ask for a user namespace.
type IDMappings struct {
	// Auto has the maps chosen: of Size IDs, 0 for 65536, that no other pod of
	// berth's has. They are in Map after the creation.
	Auto bool
	Size uint32
	Map  labels.IDMap
}

// SpecFunc makes the specification of a container that is being created. Its
// Record has the ID, image, snapshot, runtime and sandbox that it is going to have,
// so that users are found in the root filesystem; nothing has been stored.
type SpecFunc func(ctx context.Context, c *Creation) (*specs.Spec, error)

// PauseImage is what an infra container with a process runs.
type PauseImage struct {
	// Reference as people write it. It is pulled unless containerd has it.
	Reference string
	// AuthFile is a file of credentials as docker and podman write it; empty: none.
	AuthFile string
}

// CreatePod asks for the records of a pod. Pod.ID and Pod.FullName are mandatory;
// Pod.Name, Namespace, UID and Attempt are Kubernetes'.
type CreatePod struct {
	Pod labels.Pod
	// Name is the unique name of the infra container; empty: Pod.InfraName.
	Name string
	// MetadataName in CRI's metadata; empty: Pod.Name, else Name.
	MetadataName string
	// Pause is the image of the infra container; nil: it has neither a root
	// filesystem nor a process, which is for the caller to put in Settings.
	Pause *PauseImage
	// IDs; nil: the host's. The chosen maps are written back.
	IDs *IDMappings
	// SELinux are options of Labeler.
	SELinux    []string
	Privileged bool
	// Labels and Annotations are the user's.
	Labels, Annotations map[string]string
	Settings            labels.Settings
	Runtime             Runtime
	// Spec of the infra container; nil: annotations alone.
	Spec SpecFunc
}

func (r *CreatePod) validate() error {
	if r.Pod.FullName == "" || r.Pod.ID == "" {
		return fmt.Errorf("create pod: name %q, ID %q: %w", r.Pod.FullName, r.Pod.ID, ErrInvalidPodName)
	}
	if r.name() == "" {
		return fmt.Errorf("create pod %s: %w", r.Pod.ID, ErrInvalidContainerName)
	}
	if r.Pause != nil && r.Pause.Reference == "" {
		return fmt.Errorf("create pod %s: pause image: %w", r.Pod.ID, ErrInvalidImageName)
	}
	if err := identifiers.Validate(r.Pod.ID); err != nil {
		return fmt.Errorf("create pod: ID: %w", err)
	}
	if err := r.IDs.validate(); err != nil {
		return fmt.Errorf("create pod %s: %w", r.Pod.ID, err)
	}
	m := r.metadata()
	return m.Validate()
}

func (r *CreatePod) name() string {
	if r.Name == "" {
		return r.Pod.InfraName()
	}
	return r.Name
}

func (r *CreatePod) metadata() labels.Metadata {
	m := labels.Metadata{
		Kind: labels.KindInfra, Pod: r.Pod, Name: r.name(), MetadataName: r.MetadataName, Attempt: r.Pod.Attempt,
		CreatedAt: time.Now(), Privileged: r.Privileged,
		Labels: r.Labels, Annotations: r.Annotations, Settings: r.Settings,
	}
	if m.MetadataName == "" {
		m.MetadataName = r.Pod.Name
	}
	if r.Pause != nil {
		m.ImageName = r.Pause.Reference
	}
	return m
}

// CreateContainer asks for the record of a container in a pod of berth's.
type CreateContainer struct {
	// PodName is the unique name, PodID the ID of the pod.
	PodName, PodID string
	// ID is new; Name is the unique name.
	ID, Name string
	// MetadataName in CRI's metadata; empty: Name.
	MetadataName string
	Attempt      labels.Attempt
	// Image of the root filesystem.
	Image Image
	// Snapshotter; empty: the Store's.
	Snapshotter string
	// IDs; nil: those of the pod. Other ones it cannot have; those of the pod are
	// written back.
	IDs *IDMappings
	// SELinux are options of Labeler.
	SELinux    []string
	Privileged bool
	// Labels and Annotations are the user's. Labels of the image are added to the
	// record.
	Labels, Annotations map[string]string
	// Settings; an empty StopSignal is taken from the image.
	Settings labels.Settings
	Runtime  Runtime
	// Spec is mandatory.
	Spec SpecFunc
}

// Image is an image that was resolved and pulled.
type Image struct {
	// Name is what the user typed.
	Name string
	// Record is the name of containerd's record. Mandatory.
	Record string
	// ID is the digest of its configuration, 64 digits, without algorithm. If it is
	// given and the record has another one by now, that is NotFound.
	ID string
}

func (r *CreateContainer) validate() error {
	if r.PodName == "" || r.PodID == "" {
		return fmt.Errorf("create container: pod %q, ID %q: %w", r.PodName, r.PodID, ErrInvalidPodName)
	}
	if r.Image.Record == "" {
		return fmt.Errorf("create container: %w", ErrInvalidImageName)
	}
	if r.Name == "" {
		return fmt.Errorf("create container: %w", ErrInvalidContainerName)
	}
	for _, id := range []string{r.ID, r.PodID} {
		if err := identifiers.Validate(id); err != nil {
			return fmt.Errorf("create container %q: ID: %w", r.Name, err)
		}
	}
	if r.ID == r.PodID {
		return fmt.Errorf("create container %q: it has the ID of its pod: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	if r.Spec == nil {
		return fmt.Errorf("create container %q: no specification: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	if err := r.IDs.validate(); err != nil {
		return fmt.Errorf("create container %q: %w", r.Name, err)
	}
	m := r.metadata(labels.Pod{ID: r.PodID, FullName: r.PodName})
	return m.Validate()
}

func (r *CreateContainer) metadata(pod labels.Pod) labels.Metadata {
	return labels.Metadata{
		Kind: labels.KindContainer, Pod: pod, Name: r.Name, MetadataName: r.MetadataName, Attempt: r.Attempt,
		ImageName: r.Image.Name, ImageID: strings.TrimPrefix(r.Image.ID, "sha256:"),
		CreatedAt: time.Now(), Privileged: r.Privileged,
		Labels: r.Labels, Annotations: r.Annotations, Settings: r.Settings,
	}
}

func (i *IDMappings) validate() error {
	if i == nil || i.Auto {
		return nil
	}
	return idmap.Validate(i.Map)
}
