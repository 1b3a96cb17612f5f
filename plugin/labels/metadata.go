// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Errors of this package; all others are of class InvalidArgument, or a store's.
var (
	// ErrUndecodable (DataLoss): a record of berth misses what it must have, or
	// has what makes no sense.
	ErrUndecodable = errdefs.ErrDataLoss.WithMessage("undecodable metadata")
	// ErrNewerSchema (FailedPrecondition): the record may be read, not changed.
	ErrNewerSchema = errdefs.ErrFailedPrecondition.WithMessage("written by a newer berth")
	// ErrForeign (FailedPrecondition): the record is not berth's.
	ErrForeign = errdefs.ErrFailedPrecondition.WithMessage("not made by berth")
)

// Metadata is what berth keeps of a container, or with KindInfra of a pod. Fields
// that are zero are not stored.
type Metadata struct {
	// Schema is the version that the record was written with; ignored when
	// writing.
	Schema uint32
	Kind   Kind
	// Pod is the same in all records of a pod.
	Pod Pod
	// Name is the unique name. Mandatory.
	Name string
	// MetadataName is the name in CRI's metadata, for infra the pod's. Empty
	// means Name.
	MetadataName string
	// Attempt is CRI's, for infra the pod's.
	Attempt Attempt
	// ImageName is what the user typed: it may mean another image by now.
	ImageName string
	// ImageID is the digest of the image's configuration, 64 hexadecimal digits,
	// empty without an image.
	ImageID string
	// MountLabel is the SELinux label of the root filesystem.
	MountLabel string
	// CreatedAt has seconds; the rest is cut off. Mandatory.
	CreatedAt  time.Time
	Privileged bool
	// Created is set once the runtime has made the container. Until then the
	// record is the rest of a creation that may have been cut short.
	Created bool
	IDMap   IDMap
	// Labels are the user's, verbatim. Those that fit are labels of the record as
	// well, except where the schema uses their key.
	Labels map[string]string
	// Annotations are the user's, verbatim.
	Annotations map[string]string
	Settings    Settings
}

// Pod identifies a pod.
type Pod struct {
	// ID is that of the sandbox and of the infra container. Mandatory.
	ID string
	// FullName is unique; see [Pod.KubernetesName]. Mandatory.
	FullName string
	// Name, Namespace, UID and Attempt are CRI's.
	Name, Namespace, UID string
	Attempt              Attempt
}

// Kind is what a record stands for.
type Kind uint8

const (
	// KindContainer is a container in a pod.
	KindContainer Kind = iota
	// KindInfra is the pod itself.
	KindInfra
)

// String returns the kind as the label has it.
func (k Kind) String() string {
	if k == KindInfra {
		return kindInfra
	}
	return kindContainer
}

// Attempt counts how often something was tried before.
type Attempt uint32

// UnknownAttempt is the attempt of a foreign record that does not tell. It cannot
// be stored.
const UnknownAttempt Attempt = math.MaxUint32

// String returns a decimal number, or "?" if unknown.
func (a Attempt) String() string {
	if a == UnknownAttempt {
		return "?"
	}
	return strconv.FormatUint(uint64(a), 10)
}

// IDMap are the maps of a user namespace, as they were chosen. Zero is none.
type IDMap struct {
	UIDs []specs.LinuxIDMapping `json:"uids,omitempty"`
	GIDs []specs.LinuxIDMapping `json:"gids,omitempty"`
}

func (m IDMap) equal(other IDMap) bool {
	return slices.Equal(m.UIDs, other.UIDs) && slices.Equal(m.GIDs, other.GIDs)
}

func (m IDMap) empty() bool { return m.equal(IDMap{}) }

// Settings is what else the runtime service remembers of a container or pod. They
// are stored in the document only, and a field may be added at any time: an older
// berth keeps what it does not know.
type Settings struct {
	// StopSignal as the image's configuration has it.
	StopSignal string `json:"stopSignal,omitempty"`
	LogPath    string `json:"logPath,omitempty"`
	// LogDirectory is the pod's.
	LogDirectory string `json:"logDirectory,omitempty"`
	Stdin        bool   `json:"stdin,omitempty"`
	StdinOnce    bool   `json:"stdinOnce,omitempty"`
	Terminal     bool   `json:"terminal,omitempty"`
	// User is the one that the process runs as.
	User string `json:"user,omitempty"`
	// SeccompProfile is the path of the profile, or "unconfined".
	SeccompProfile string `json:"seccompProfile,omitempty"`
	RuntimeHandler string `json:"runtimeHandler,omitempty"`
	// RuntimePath overrides the handler's path for the image's platform.
	RuntimePath string `json:"runtimePath,omitempty"`
	// NoProcess: the pod has no infra process. The stored value counts, not
	// today's configuration.
	NoProcess bool     `json:"noProcess,omitempty"`
	Volumes   []Volume `json:"volumes,omitempty"`
	// RestoredFrom is the archive or image of the checkpoint that the container
	// was made from.
	RestoredFrom string `json:"restoredFrom,omitempty"`
	// MadeFor is the ID of the container that the pod was made for, and is removed
	// with.
	MadeFor string `json:"madeFor,omitempty"`
}

func (s Settings) equal(other Settings) bool {
	volumes := slices.Equal(s.Volumes, other.Volumes)
	s.Volumes, other.Volumes = nil, nil
	return volumes && reflect.DeepEqual(s, other)
}

// Volume is a mount that the user asked for.
type Volume struct {
	ContainerPath     string `json:"containerPath"`
	HostPath          string `json:"hostPath,omitempty"`
	Image             string `json:"image,omitempty"`
	Propagation       string `json:"propagation,omitempty"`
	Readonly          bool   `json:"readonly,omitempty"`
	RecursiveReadonly bool   `json:"recursiveReadonly,omitempty"`
	Relabel           bool   `json:"relabel,omitempty"`
}

// dropEmpty makes empty maps and lists nil, as what is not stored is read.
func (m *Metadata) dropEmpty() {
	if len(m.Labels) == 0 {
		m.Labels = nil
	}
	if len(m.Annotations) == 0 {
		m.Annotations = nil
	}
	if len(m.IDMap.UIDs) == 0 {
		m.IDMap.UIDs = nil
	}
	if len(m.IDMap.GIDs) == 0 {
		m.IDMap.GIDs = nil
	}
	if len(m.Settings.Volumes) == 0 {
		m.Settings.Volumes = nil
	}
}

// Validate returns everything that keeps m from being stored, joined, of class
// InvalidArgument.
func (m Metadata) Validate() error {
	faults := []error{m.validateNames(), m.validateUser(), m.Settings.validate()}
	if m.CreatedAt.IsZero() {
		faults = append(faults, invalid("no creation time"))
	}
	if m.ImageID != "" && !isImageID(m.ImageID) {
		faults = append(faults, invalid("image ID %q: not 64 hexadecimal digits", clip(m.ImageID)))
	}
	if m.Attempt == UnknownAttempt || m.Pod.Attempt == UnknownAttempt {
		faults = append(faults, invalid("unknown attempt"))
	}
	if m.Kind > KindInfra {
		faults = append(faults, invalid("kind %d", m.Kind))
	}
	if m.Kind == KindInfra && m.Attempt != m.Pod.Attempt {
		faults = append(faults, invalid("attempt %s of infra in attempt %s of its pod", m.Attempt, m.Pod.Attempt))
	}
	for _, f := range fields {
		if !utf8.ValidString(f.get(&m)) {
			faults = append(faults, invalid("label %s: value %q: not UTF-8", f.key, clip(f.get(&m))))
		}
	}
	return errors.Join(faults...)
}

func (m Metadata) validateNames() error {
	var faults []error
	if err := identifiers.Validate(m.Pod.ID); err != nil {
		faults = append(faults, fmt.Errorf("pod ID: %w", err))
	}
	if m.Pod.FullName == "" {
		faults = append(faults, invalid("no pod name"))
	} else if !fits(keyPodFullName, m.Pod.FullName) {
		faults = append(faults, invalid("pod name %q: %d bytes are too long", clip(m.Pod.FullName), len(m.Pod.FullName)))
	}
	// The layer's name is the longest label made of it.
	if m.Name == "" {
		faults = append(faults, invalid("no container name"))
	} else if !fits(keyLayerName, layerName(m.Name)) {
		faults = append(faults, invalid("container name %q: %d bytes are too long", clip(m.Name), len(m.Name)))
	}
	return errors.Join(faults...)
}

func (m Metadata) validateUser() error {
	var faults []error
	for k, v := range m.Labels {
		switch {
		case k == "":
			faults = append(faults, invalid("label without a key"))
		case Reserved(k):
			faults = append(faults, invalid("label %s: reserved", clip(k)))
		case !validText(k, v):
			faults = append(faults, invalid("label %q=%q: not UTF-8", clip(k), clip(v)))
		}
	}
	for k, v := range m.Annotations {
		if !validText(k, v) {
			faults = append(faults, invalid("annotation %q=%q: not UTF-8", clip(k), clip(v)))
		}
	}
	return errors.Join(faults...)
}

// validate wants text that JSON does not change.
func (s Settings) validate() error {
	texts := []string{
		s.StopSignal, s.LogPath, s.LogDirectory, s.User, s.SeccompProfile,
		s.RuntimeHandler, s.RuntimePath, s.RestoredFrom, s.MadeFor,
	}
	for _, v := range s.Volumes {
		texts = append(texts, v.ContainerPath, v.HostPath, v.Image, v.Propagation)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return invalid("setting %q: not UTF-8", clip(text))
		}
	}
	return nil
}

func isImageID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

func validText(k, v string) bool { return utf8.ValidString(k) && utf8.ValidString(v) }

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// clip keeps what an error repeats short.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
