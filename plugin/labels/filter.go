// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The functions of this file return list filters for containerd's container,
// sandbox and lease stores. A store that is given several returns what matches any
// of them.

// Managed matches every record of berth.
func Managed() string { return has(keyManaged) }

// Unfinished matches what berth began to create and did not finish. Only what
// Decode then takes for berth's may be removed.
func Unfinished() string { return all(has(keyManaged), differs(keyCreated, yes)) }

// Named matches the container, of any kind, with that unique name.
func Named(name string) string { return equals(keyName, name) }

// PodNamed matches the infra container or sandbox of the pod with that unique
// name; its members carry the name too, and do not match.
func PodNamed(name string) string {
	return all(equals(keyPodFullName, name), equals(keyKind, kindInfra))
}

// PodMembers matches all of berth's containers in a pod, infra too. There is no
// filter for SandboxID, hence none for the containers of CRI's pods; [KubernetesPod]
// is the next best.
func PodMembers(id string) string { return equals(keyPodID, id) }

// KubernetesPod matches the records of all attempts of a pod, whoever made them, as
// long as nobody changed their labels.
func KubernetesPod(uid string) string { return equals(keyPodUID, uid) }

// PodLeases matches the leases of berth's pods.
func PodLeases() string { return equals(keyKind, kindLease) }

// PodCalled matches the records of all pods with that name, of pods themselves and of
// their containers, as KubernetesPod does.
func PodCalled(name string) string { return equals(keyPodName, name) }

// ContainerCalled matches the containers that have that name in their pods.
func ContainerCalled(name string) string { return equals(keyContainerName, name) }

// WithID matches the record with that ID.
func WithID(id string) string { return "id==" + quote(id) }

// Beginning matches records by the beginning of their IDs.
func Beginning(id string) string { return "id~=" + quote("^"+regexp.QuoteMeta(id)) }

// Selector matches what may have all those labels of a user's. It says yes too
// often, for labels that no record can have; compare with Metadata.Labels after.
func Selector(labels map[string]string) string {
	var parts []string
	for key, value := range labels {
		if key != "" && asLabel(key, value) {
			parts = append(parts, equals(key, value))
		}
	}
	slices.Sort(parts)
	return all(parts...)
}

func has(key string) string            { return "labels." + quote(key) }
func equals(key, value string) string  { return has(key) + "==" + quote(value) }
func differs(key, value string) string { return has(key) + "!=" + quote(value) }

func all(filters ...string) string { return strings.Join(filters, ",") }

// quote writes ASCII only: containerd's parser takes a literal U+FFFD for broken
// UTF-8.
func quote(s string) string { return strconv.QuoteToASCII(s) }
