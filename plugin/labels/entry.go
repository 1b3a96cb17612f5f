// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
)

// Owner is who made a record, and looks after it.
type Owner uint8

const (
	// OwnerOther is ctr, nerdctl or some other client.
	OwnerOther Owner = iota
	// OwnerBerth is berth. Only its records may be changed.
	OwnerBerth
	// OwnerCRI is containerd's CRI plugin; mostly the kubelet asked it to.
	OwnerCRI
)

// String returns the owner as listings show it.
func (o Owner) String() string {
	switch o {
	case OwnerBerth:
		return "berth"
	case OwnerCRI:
		return "cri"
	}
	return "other"
}

// Entry is what a listing shows of a record, whoever made it.
type Entry struct {
	ID    string
	Owner Owner
	// Metadata is as much of it as the record tells. Pod.ID is empty without a
	// pod; foreign records are Created, and have no full names, except that
	// nerdctl's have a Name. Attempts may be unknown.
	Metadata Metadata
	// Warnings tell where the record contradicts itself.
	Warnings []string
	// Err is why a record of berth or CRI could not be decoded: ErrUndecodable.
	Err error
}

// Describe tells what a container's record says. It never fails.
func Describe(c containers.Container) Entry {
	r := recordOf(&c)
	e := Entry{ID: c.ID, Owner: r.owner()}
	switch e.Owner {
	case OwnerBerth:
		e.Metadata, e.Err = Decode(c)
	case OwnerCRI:
		e.fromCRI(r, &c)
	default:
		e.Metadata = Metadata{Name: c.Labels[nerdctlName], MetadataName: c.Labels[nerdctlName], ImageName: c.Image, Created: true}
	}
	if e.Metadata.CreatedAt.IsZero() {
		e.Metadata.CreatedAt = c.CreatedAt
	}
	e.membership(r, annotation(c.Spec, AnnotationSandboxID))
	return e
}

// DescribeSandbox tells what a record of the sandbox store says. It never fails.
func DescribeSandbox(s sandbox.Sandbox) Entry {
	r := recordOfSandbox(&s)
	e := Entry{ID: s.ID, Owner: r.owner()}
	switch e.Owner {
	case OwnerBerth:
		e.Metadata, e.Err = DecodeSandbox(s)
	case OwnerCRI:
		e.fromCRISandbox(r)
	default:
		e.Metadata = Metadata{Kind: KindInfra, Created: true}
	}
	if e.Metadata.CreatedAt.IsZero() {
		e.Metadata.CreatedAt = s.CreatedAt
	}
	e.Metadata.Pod.ID = s.ID
	return e
}

func (r record) owner() Owner {
	switch {
	case r.ours():
		return OwnerBerth
	case r.labels[criKind] != "", r.extensions[criStoreExt] != nil:
		return OwnerCRI
	}
	return OwnerOther
}

// membership decides to which pod a container belongs. SandboxID counts most, being
// unchangeable; then the label, the annotation that its process was started with,
// and that infra is its own pod.
func (e *Entry) membership(r record, annotated string) {
	claims := []struct{ by, id string }{
		{"SandboxID", r.sandboxID}, {"label " + keyPodID, ""}, {"annotation " + AnnotationSandboxID, annotated}, {"kind", ""},
	}
	if e.Owner == OwnerBerth { // who copies labels does not believe this one
		claims[1].id = r.labels[keyPodID]
	}
	if e.Owner != OwnerOther && e.Metadata.Kind == KindInfra {
		claims[3].id = r.id
	}
	e.Metadata.Pod.ID = ""
	var by string
	for _, claim := range claims {
		switch pod := &e.Metadata.Pod; {
		case claim.id == "":
		case pod.ID == "":
			pod.ID, by = claim.id, claim.by
		case pod.ID != claim.id:
			e.Warnings = append(e.Warnings, fmt.Sprintf("container %s: in pod %s by its %s, in %s by its %s", r.id, pod.ID, by, claim.id, claim.by))
		}
	}
}

// criMetadata is what is of use here in the extensions of CRI's records: the
// configuration that the kubelet sent, as cri-api's types are encoded.
type criMetadata struct {
	Version  string
	Metadata struct {
		ImageName, LogPath, RuntimeHandler string
		Config                             struct {
			Metadata struct {
				Name      string   `json:"name"`
				UID       string   `json:"uid"`
				Namespace string   `json:"namespace"`
				Attempt   *Attempt `json:"attempt"`
			} `json:"metadata"`
			Image struct {
				Typed string `json:"user_specified_image"`
			} `json:"image"`
			Labels       map[string]string `json:"labels"`
			Annotations  map[string]string `json:"annotations"`
			LogDirectory string            `json:"log_directory"`
		}
	}
}

// readCRI reads an extension as far as it goes. An unknown attempt comes with an
// error.
func readCRI(ext typeurl.Any) (criMetadata, Attempt, error) {
	var c criMetadata
	if ext == nil {
		return c, UnknownAttempt, errors.New("missing")
	}
	if err := json.Unmarshal(ext.GetValue(), &c); err != nil {
		return c, UnknownAttempt, err
	}
	if c.Version != "v1" {
		return c, UnknownAttempt, errors.New("version " + strconv.Quote(clip(c.Version)))
	}
	if a := c.Metadata.Config.Metadata.Attempt; a != nil {
		return c, *a, nil
	}
	return c, 0, nil
}

// fromCRI reads a container of CRI's: a pause container or an application's.
func (e *Entry) fromCRI(r record, c *containers.Container) {
	m := &e.Metadata
	name := criContainerExt
	if r.labels[criKind] == criKindSandbox {
		m.Kind, name = KindInfra, criSandboxExt
	}
	ext, attempt, err := readCRI(r.extensions[name])
	if err != nil {
		e.Err = r.wrap(fmt.Errorf("extension %s: %s: %w", name, err, ErrUndecodable))
	}
	e.addCRI(r, ext, attempt)
	m.Pod.Name = first(m.Pod.Name, annotation(c.Spec, annotationPodName))
	m.Pod.Namespace = first(m.Pod.Namespace, annotation(c.Spec, annotationNamespace))
	m.Pod.UID = first(m.Pod.UID, annotation(c.Spec, annotationUID))
	if m.Kind == KindContainer {
		m.MetadataName = first(m.MetadataName, r.labels[keyContainerName], annotation(c.Spec, annotationContainer))
	}
	m.ImageName = first(ext.Metadata.Config.Image.Typed, ext.Metadata.ImageName, c.Image)
}

// fromCRISandbox reads a record of the sandbox store.
func (e *Entry) fromCRISandbox(r record) {
	e.Metadata.Kind = KindInfra
	ext, attempt, err := readCRI(r.extensions[criStoreExt])
	if err != nil {
		e.Err = r.wrap(fmt.Errorf("extension %s: %s: %w", criStoreExt, err, ErrUndecodable))
		// The last part of the name tells as well.
		full := r.labels[criStoreName]
		n, err := strconv.ParseUint(full[strings.LastIndexByte(full, '_')+1:], 10, 32)
		if err == nil {
			attempt = Attempt(n)
		}
	}
	e.addCRI(r, ext, attempt)
}

func (e *Entry) addCRI(r record, ext criMetadata, attempt Attempt) {
	m, config := &e.Metadata, ext.Metadata.Config
	m.Created, m.Attempt, m.Pod.Attempt = true, attempt, UnknownAttempt
	m.Labels, m.Annotations = config.Labels, config.Annotations
	m.Settings.LogPath, m.Settings.LogDirectory = ext.Metadata.LogPath, config.LogDirectory
	m.Settings.RuntimeHandler = ext.Metadata.RuntimeHandler
	m.Pod.Name, m.Pod.Namespace, m.Pod.UID = r.labels[keyPodName], r.labels[keyPodNamespace], r.labels[keyPodUID]
	if m.Kind == KindInfra {
		m.Pod.Attempt = attempt
		m.Pod.Name = first(config.Metadata.Name, m.Pod.Name)
		m.Pod.Namespace = first(config.Metadata.Namespace, m.Pod.Namespace)
		m.Pod.UID = first(config.Metadata.UID, m.Pod.UID)
		m.MetadataName = m.Pod.Name
	} else {
		m.MetadataName = config.Metadata.Name
	}
}

// first returns the first text that is not empty.
func first(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}
