// SPDX-License-Identifier: Apache-2.0

// Package runtime is berth's service of pods and containers over containerd: what
// the command line and other programs use. It joins the packages below it, each of
// which owns one side of a container: its records (record, labels), its
// specification (oci), its process (process), its network (network), its
// checkpoints (checkpoint), and what it runs with (handler).
//
// It keeps nothing in memory that containerd and the directories do not hold: any
// number of processes may have a [Service] for the same namespace, be killed at any
// step, and be started again.
//
// # Pods
//
// A pod is a containerd sandbox without a pause container, and a container record
// of the same ID that has no process, for the names and settings. Its members are
// containers whose SandboxID it is. If the sandbox's record is lost, the pod is
// rebuilt from the labels of the rest.
//
// Pods and containers of others (the kubelet's, ctr's, nerdctl's) are listed and
// can be looked at. What would change one is refused with [ErrForeign], unless
// Force says that it is meant.
//
// # References
//
// A parameter called ref names a pod or container: by its ID, by its unique name,
// by its name where no other has it, or, if [Config.Prefixes] is set, by the
// beginning of its ID. No match is NotFound, several are FailedPrecondition.
//
// # Errors
//
// Errors have classes of containerd/errdefs and say which container and which step.
// Stopping and removing what is not there is success.
package runtime
