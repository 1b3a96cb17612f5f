// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

// PodEntry is what a listing shows of a pod, whoever made it.
type PodEntry struct {
	// Entry describes the pod: its sandbox record, else its infra container, else
	// what its members tell.
	Entry
	// Sandbox tells whether there is a sandbox record.
	Sandbox bool
	// Infra is the infra container, nil if there is none.
	Infra *Entry
	// Members are the other containers, newest first.
	Members []Entry
	// Orphaned: there are members only.
	Orphaned bool
}

// Group sorts the records of a namespace into pods, and the rest, which is in no
// pod; both newest first.
func Group(cs []containers.Container, ss []sandbox.Sandbox) (pods []PodEntry, rest []Entry) {
	byID := make(map[string]*PodEntry)
	for _, s := range ss {
		byID[s.ID] = &PodEntry{Entry: DescribeSandbox(s), Sandbox: true}
	}
	for _, c := range cs {
		e := Describe(c)
		id := e.Metadata.Pod.ID
		if id == "" {
			rest = append(rest, e)
			continue
		}
		if byID[id] == nil {
			byID[id] = &PodEntry{Orphaned: true}
		}
		byID[id].add(e)
	}
	for _, p := range byID {
		p.finish()
		pods = append(pods, *p)
	}
	slices.SortFunc(pods, func(a, b PodEntry) int { return newest(a.Entry, b.Entry) })
	slices.SortFunc(rest, newest)
	return pods, rest
}

func (p *PodEntry) add(e Entry) {
	if e.ID != e.Metadata.Pod.ID {
		p.Members = append(p.Members, e)
		return
	}
	p.Infra = &e
	if p.Orphaned {
		p.Entry, p.Orphaned = e, false
	}
}

// finish describes the pod by its members, if it has nothing else.
func (p *PodEntry) finish() {
	slices.SortFunc(p.Members, newest)
	if p.Orphaned {
		p.Entry = rebuild(p.Members)
	}
}

func newest(a, b Entry) int {
	return cmp.Or(b.Metadata.CreatedAt.Compare(a.Metadata.CreatedAt), cmp.Compare(a.ID, b.ID))
}

// Rebuild describes a pod, whose sandbox record and infra container are lost, by
// the labels of its members. What only the pod's own record had, such as its labels
// and settings, is lost; the pod is as old as its oldest member. The warnings tell
// where members disagree: the oldest is believed. It returns NotFound if none of
// the containers is berth's.
func Rebuild(members []containers.Container) (Metadata, []string, error) {
	var entries []Entry
	for _, c := range members {
		e := Describe(c)
		if e.Owner == OwnerBerth && e.Err == nil {
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return Metadata{}, nil, fmt.Errorf("rebuild a pod: none of %d containers tells of it: %w", len(members), errdefs.ErrNotFound)
	}
	slices.SortFunc(entries, newest)
	e := rebuild(entries)
	return e.Metadata, e.Warnings, nil
}

// rebuild needs a member at least, newest first.
func rebuild(members []Entry) Entry {
	members = slices.Clone(members)
	slices.Reverse(members)
	source := members[0]
	if i := slices.IndexFunc(members, func(e Entry) bool { return e.Err == nil }); i >= 0 {
		source = members[i]
	}
	pod := source.Metadata.Pod
	e := Entry{ID: pod.ID, Owner: source.Owner, Metadata: Metadata{
		Schema: source.Metadata.Schema, Kind: KindInfra, Pod: pod, MetadataName: pod.Name,
		Attempt: pod.Attempt, CreatedAt: members[0].Metadata.CreatedAt, Created: true,
	}}
	if pod.FullName != "" {
		e.Metadata.Name = pod.InfraName()
	}
	for _, other := range members {
		if other.Err == nil && other.Metadata.Pod != pod {
			e.Warnings = append(e.Warnings, fmt.Sprintf("pod %s: containers %s and %s disagree about it", pod.ID, source.ID, other.ID))
		}
	}
	return e
}
