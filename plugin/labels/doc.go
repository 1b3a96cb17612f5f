// SPDX-License-Identifier: Apache-2.0

// Package labels is the schema of berth's records in containerd: which labels and
// extensions a container and a pod's sandbox carry, how they are written, read
// and changed, and what the records of others (containerd's CRI plugin, ctr,
// nerdctl) tell. No other package outside of the shim knows a key.
//
// It refuses to do anything with what it reads: it talks to no service except to
// hand a finished [Change] to a store.
//
// # Records
//
// A pod is a sandbox record, and an infra container if it has one, both with the
// pod's ID, and the containers whose SandboxID that is. All of them are described
// by one type, [Metadata].
//
//	field             label                        value
//	Schema            io.berth.managed             version of the schema: 1
//	Kind              io.berth.kind                infra or container
//	Pod.ID            io.berth.pod.id              ID
//	Pod.FullName      io.berth.pod.name            unique name of the pod
//	Pod.Name          io.kubernetes.pod.name
//	Pod.Namespace     io.kubernetes.pod.namespace
//	Pod.UID           io.kubernetes.pod.uid
//	Pod.Attempt       io.berth.pod.attempt         decimal; absent is 0
//	Name              io.berth.name                unique name of the container
//	MetadataName      io.kubernetes.container.name POD for infra, whose name is
//	                  io.berth.metadata-name       here
//	Attempt           io.berth.attempt             decimal; absent is 0
//	ImageName         io.berth.image.name          as the user typed it
//	ImageID           io.berth.image.id            64 hex digits
//	CreatedAt         io.berth.created-at          seconds since 1970, decimal
//	MountLabel        io.berth.mount-label         absent until set
//	Privileged        io.berth.privileged          true; absent is false
//	Created           io.berth.created             true; absent is false
//	Labels            (their own keys)             the user's, where they fit
//
//	field             extension
//	IDMap             io.berth.idmap               the maps, when there are any
//	all of them       io.berth.metadata            the document; see below
//
// Kind, Pod.ID, Pod.FullName, Name and CreatedAt are mandatory. Snapshots carry
// io.berth.layer-name ([SnapshotLabels]), a pod's lease io.berth.kind=pod-lease
// ([LeaseLabels]).
//
// # The document
//
// containerd refuses a label whose key and value have more than 4096 bytes, and
// drops one without a value. What cannot be a label for that reason, and what is
// never one (Annotations, Settings), is in the extension io.berth.metadata, a
// JSON document with a version. It repeats everything for whoever looks at the
// record; a label counts more than the copy, so that a label can be changed
// without the document. A value that is only there is named in its list
// "overflow". Its members that this berth does not know survive a change.
//
// Names and IDs must fit: filters find records by them.
//
// # Versions
//
// Unknown keys are ignored, and left alone by changes. A record of a newer schema
// is read as well as it goes and never changed ([ErrNewerSchema]).
//
// # Whose record it is
//
// Labels alone do not prove that a record is berth's: the labels of images and of
// the kubelet's pods come from strangers, and ctr, nerdctl and CRI copy them to
// records. So a record with CRI's own marks is CRI's whatever else it carries,
// and a container is berth's only if the record's SandboxID, which no label sets,
// or for infra its ID, makes it part of a pod.
package labels
