// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"strings"

	clabels "github.com/containerd/containerd/v2/pkg/labels"
)

// Version is the schema that this package writes.
const Version = 1

const (
	prefix = "io.berth."

	keyManaged      = prefix + "managed"
	keyKind         = prefix + "kind"
	keyPodID        = prefix + "pod.id"
	keyPodFullName  = prefix + "pod.name"
	keyPodAttempt   = prefix + "pod.attempt"
	keyName         = prefix + "name"
	keyMetadataName = prefix + "metadata-name"
	keyAttempt      = prefix + "attempt"
	keyImageName    = prefix + "image.name"
	keyImageID      = prefix + "image.id"
	keyCreatedAt    = prefix + "created-at"
	keyMountLabel   = prefix + "mount-label"
	keyPrivileged   = prefix + "privileged"
	keyCreated      = prefix + "created"
	keyLayerName    = prefix + "layer-name"

	keyPodName       = "io.kubernetes.pod.name"
	keyPodNamespace  = "io.kubernetes.pod.namespace"
	keyPodUID        = "io.kubernetes.pod.uid"
	keyContainerName = "io.kubernetes.container.name"

	extMetadata = prefix + "metadata"
	extIDMap    = prefix + "idmap"

	kindInfra     = "infra"
	kindContainer = "container"
	kindLease     = "pod-lease"

	// infraName is Kubernetes' container name for every infra container.
	infraName = "POD"
	yes       = "true"
)

// Keys of containerd's CRI plugin: read, never written (internal/cri/labels in
// containerd). It adopts every container that has its kind label.
const (
	criPrefix           = clabels.CRIContainerdPrefix
	criKind             = criPrefix + ".kind"
	criKindSandbox      = "sandbox"
	criContainerExt     = criPrefix + ".container.metadata"
	criSandboxExt       = criPrefix + ".sandbox.metadata"
	criStoreExt         = "metadata" // of a record in the sandbox store
	criStoreName        = "name"     // its label: <name>_<namespace>_<uid>_<attempt>
	nerdctlName         = "nerdctl/name"
	annotationPrefix    = "io.kubernetes.cri."
	annotationPodName   = annotationPrefix + "sandbox-name"
	annotationNamespace = annotationPrefix + "sandbox-namespace"
	annotationUID       = annotationPrefix + "sandbox-uid"
	annotationLogDir    = annotationPrefix + "sandbox-log-directory"
	annotationContainer = annotationPrefix + "container-name"
	annotationImage     = annotationPrefix + "image-name"
)

// Annotations of a runtime specification by which shims know a pod's containers.
const (
	// AnnotationContainerType is "sandbox" or "container".
	AnnotationContainerType = annotationPrefix + "container-type"
	// AnnotationSandboxID is the pod.
	AnnotationSandboxID = annotationPrefix + "sandbox-id"
)

// CapabilityPodAnnotations is the name under which CNI plugins get a pod's
// annotations.
const CapabilityPodAnnotations = annotationPrefix + "pod-annotations"

// Reserved tells whether a label may not come from a user or an image, since
// berth, containerd or its CRI plugin would believe it.
func Reserved(key string) bool {
	return strings.HasPrefix(key, prefix) || clabels.IsReserved(key)
}

// fits tells whether containerd takes a label, and keeps it: it drops a label
// without a value.
func fits(key, value string) bool {
	return value != "" && clabels.Validate(key, value) == nil
}

// FromImage returns the labels of an image's configuration that a container may
// carry: not what is reserved, not what this schema uses, not what is too long.
func FromImage(config map[string]string) map[string]string {
	kept := make(map[string]string, len(config))
	for k, v := range config {
		if k != "" && validText(k, v) && !Reserved(k) && !ofSchema(k) && fits(k, v) {
			kept[k] = v
		}
	}
	return kept
}

// SnapshotLabels are the labels of the writable layer of a container with that
// full name.
func SnapshotLabels(name string) map[string]string {
	return map[string]string{keyLayerName: layerName(name)}
}

func layerName(name string) string { return name + "-layer" }

// LeaseLabels are the labels of a pod's lease.
func LeaseLabels() map[string]string {
	return map[string]string{keyManaged: "1", keyKind: kindLease}
}
