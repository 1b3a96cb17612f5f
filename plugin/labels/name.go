// SPDX-License-Identifier: Apache-2.0

package labels

import "strings"

// KubernetesName is the unique name of a Kubernetes pod, for Pod.FullName:
// k8s_<pod>_<namespace>_<uid>_<attempt>. The parts have no underscores.
func (p Pod) KubernetesName() string {
	return strings.Join([]string{"k8s", p.Name, p.Namespace, p.UID, p.Attempt.String()}, "_")
}

// ContainerName is the unique name of a container in a Kubernetes pod:
// k8s_<container>_<pod>_<namespace>_<uid>_<attempt>, with the container's attempt.
func (p Pod) ContainerName(name string, attempt Attempt) string {
	return strings.Join([]string{"k8s", name, p.Name, p.Namespace, p.UID, attempt.String()}, "_")
}

// InfraName is the unique name of the pod's infra container: Kubernetes' with the
// name POD if the pod has its Kubernetes name, else made of the pod's full name.
func (p Pod) InfraName() string {
	if p.FullName == p.KubernetesName() {
		return p.ContainerName(infraName, p.Attempt)
	}
	return p.FullName + "-infra"
}
