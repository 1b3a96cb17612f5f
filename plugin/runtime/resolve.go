// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
)

var errNoRef = errdefs.ErrInvalidArgument.WithMessage("neither name nor ID")

// foundPod is a pod, and the view that has it alone.
type foundPod struct {
	*labels.PodEntry
	view *view
}

// match is how well a ref fits a record.
type match uint8

const (
	noMatch match = iota
	byPrefix
	byName
	byFullName
	byID
)

// candidate is an ID that a ref may mean.
type candidate struct {
	id  string
	how match
}

// best returns the ID that fits best, or why there is none.
func best(ref string, all []candidate) (string, error) {
	how := noMatch
	for _, c := range all {
		how = max(how, c.how)
	}
	var ids []string
	for _, c := range all {
		if c.how == how && how > noMatch && !slices.Contains(ids, c.id) {
			ids = append(ids, c.id)
		}
	}
	switch len(ids) {
	case 0:
		return "", errdefs.ErrNotFound
	case 1:
		return ids[0], nil
	}
	return "", fmt.Errorf("may be %s: %w", strings.Join(ids, ", "), errdefs.ErrFailedPrecondition)
}

// findPod finds a pod, whoever made it, with its members. What is left of a pod
// whose sandbox record is lost is found too.
func (s *Service) findPod(ctx context.Context, ref string) (*foundPod, error) {
	if ref == "" {
		return nil, errNoRef
	}
	id, foreign, err := s.podID(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.allOfPod(ctx, id, foreign)
}

// glance is findPod that asks for the members that berth has noted, one by one,
// instead of searching all containers of the namespace for them: that takes 20 µs
// for each. It is for those who want to know, and do not remove anything on account
// of it. Without notes, or for pods of others, it searches.
func (s *Service) glance(ctx context.Context, ref string) (*foundPod, error) {
	if ref == "" {
		return nil, errNoRef
	}
	id, foreign, err := s.podID(ctx, ref)
	if err != nil {
		return nil, err
	}
	notes, err := os.ReadDir(s.membersDir(id))
	if foreign || err != nil {
		return s.allOfPod(ctx, id, foreign)
	}
	var cs []containers.Container
	for _, noted := range append([]string{id}, namesOf(notes)...) {
		c, err := s.containers.Get(ctx, noted)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("pod %q: %w", ref, err)
		}
		if err == nil {
			cs = append(cs, c)
		}
	}
	ss, err := s.sandboxes.store.List(ctx, labels.WithID(id))
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", ref, err)
	}
	v, err := s.join(ctx, cs, ss)
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", ref, err)
	}
	return v.only(id)
}

func namesOf(entries []os.DirEntry) (list []string) {
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// allOfPod reads all records of a pod. Containers cannot be found by their sandbox,
// and others' need have no label that tells it: for such a pod it reads all there are.
func (s *Service) allOfPod(ctx context.Context, id string, foreign bool) (*foundPod, error) {
	filters := []string{labels.WithID(id), labels.PodMembers(id)}
	if foreign {
		filters = nil
	}
	v, err := s.look(ctx, filters, []string{labels.WithID(id)})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", id, err)
	}
	return v.only(id)
}

// only leaves one pod in the view, and returns it.
func (v *view) only(id string) (*foundPod, error) {
	v.pods = slices.DeleteFunc(v.pods, func(p labels.PodEntry) bool { return p.ID != id })
	if len(v.pods) == 0 {
		return nil, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	return &foundPod{&v.pods[0], v}, nil
}

// podID finds the ID of a pod, and whether it is another's than berth's.
func (s *Service) podID(ctx context.Context, ref string) (id string, foreign bool, err error) {
	sandboxes, err := s.sandboxesCalled(ctx, ref)
	if err != nil {
		return "", false, fmt.Errorf("pod %q: %w", ref, err)
	}
	pods, _ := labels.Group(nil, sandboxes)
	if len(pods) == 0 { // CRI's have the name in a label only if it is the kubelet that asked
		all, err := s.sandboxes.store.List(ctx)
		if err != nil {
			return "", false, fmt.Errorf("pod %q: %w", ref, err)
		}
		pods, _ = labels.Group(nil, all)
		pods = slices.DeleteFunc(pods, func(p labels.PodEntry) bool {
			return s.fits(ref, &p.Entry, p.Metadata.Pod.FullName, p.Metadata.Pod.Name) == noMatch
		})
	}
	if len(pods) == 0 { // only the containers may know it
		cs, err := s.containers.List(ctx, s.podFilters(ref, labels.PodMembers(ref))...)
		if err != nil {
			return "", false, fmt.Errorf("pod %q: %w", ref, err)
		}
		pods, _ = labels.Group(cs, nil)
	}
	var all []candidate
	for i := range pods {
		all = append(all, candidate{pods[i].ID, s.fits(ref, &pods[i].Entry, pods[i].Metadata.Pod.FullName, pods[i].Metadata.Pod.Name)})
	}
	if id, err = best(ref, all); err != nil {
		return "", false, fmt.Errorf("pod %q: %w", ref, err)
	}
	i := slices.IndexFunc(pods, func(p labels.PodEntry) bool { return p.ID == id })
	return id, pods[i].Owner != labels.OwnerBerth, nil
}

// sandboxesCalled returns the one with that ID, else all that may be meant.
func (s *Service) sandboxesCalled(ctx context.Context, ref string) ([]sandbox.Sandbox, error) {
	if identifiers.Validate(ref) == nil {
		b, err := s.sandboxes.store.Get(ctx, ref)
		if err == nil {
			return []sandbox.Sandbox{b}, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return s.sandboxes.store.List(ctx, s.podFilters(ref)...)
}

func (s *Service) podFilters(ref string, more ...string) []string {
	return append(s.filters(ref, labels.PodNamed(ref), labels.PodCalled(ref)), more...)
}

// filters adds the one for a beginning, if that is allowed.
func (s *Service) filters(ref string, named ...string) []string {
	if s.config.Prefixes {
		named = append(named, labels.Beginning(ref))
	}
	return append(named, labels.WithID(ref))
}

// fits compares a ref with what a record is called.
func (s *Service) fits(ref string, e *labels.Entry, fullName, name string) match {
	switch {
	case e.ID == ref:
		return byID
	case fullName == ref && e.Owner == labels.OwnerBerth:
		return byFullName
	case name == ref:
		return byName
	case s.config.Prefixes && strings.HasPrefix(e.ID, ref):
		return byPrefix
	}
	return noMatch
}

// findContainer finds a container that is not a pod's own, whoever made it.
func (s *Service) findContainer(ctx context.Context, ref string) (*view, *labels.Entry, error) {
	if ref == "" {
		return nil, nil, errNoRef
	}
	c, err := s.containerRecord(ctx, ref)
	if err != nil {
		return nil, nil, fmt.Errorf("container %q: %w", ref, err)
	}
	v, err := s.join(ctx, []containers.Container{c}, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("container %q: %w", ref, err)
	}
	entries := v.rest
	for _, p := range v.pods {
		entries = append(entries, p.Members...)
	}
	if len(entries) == 0 {
		return nil, nil, fmt.Errorf("container %q: it is a pod's own: %w", ref, errdefs.ErrNotFound)
	}
	return v, &entries[0], nil
}

func (s *Service) containerRecord(ctx context.Context, ref string) (none containers.Container, err error) {
	if identifiers.Validate(ref) == nil {
		c, err := s.containers.Get(ctx, ref)
		if err == nil || !errdefs.IsNotFound(err) {
			return c, err
		}
	}
	cs, err := s.containers.List(ctx, s.filters(ref, labels.Named(ref), labels.ContainerCalled(ref))...)
	if err != nil {
		return none, err
	}
	var all []candidate
	for _, c := range cs {
		if e := labels.Describe(c); e.Metadata.Kind != labels.KindInfra {
			all = append(all, candidate{c.ID, s.fits(ref, &e, e.Metadata.Name, e.Metadata.MetadataName)})
		}
	}
	id, err := best(ref, all)
	if err != nil {
		return none, err
	}
	return cs[slices.IndexFunc(cs, func(c containers.Container) bool { return c.ID == id })], nil
}

// Pod returns one, with its members.
func (s *Service) Pod(ctx context.Context, ref string) (Pod, error) {
	ctx = s.in(ctx)
	p, err := s.glance(ctx, ref)
	if err != nil {
		return Pod{}, err
	}
	return s.describePods(ctx, p.view)[0], nil
}

// Container returns one, with all that is known of it.
func (s *Service) Container(ctx context.Context, ref string) (Container, error) {
	v, e, err := s.findContainer(s.in(ctx), ref)
	if err != nil {
		return Container{}, err
	}
	return s.describe(v, *e), nil
}

// refuse is what a foreign record is told, unless it is forced.
func refuse(what string, e *labels.Entry, force bool) error {
	if e.Owner == labels.OwnerBerth || force {
		return nil
	}
	why := "it is " + e.Owner.String() + "'s"
	if e.Owner == labels.OwnerCRI {
		why = "it was made through CRI, and the kubelet would make it again"
	}
	return fmt.Errorf("%s %s: %s: %w", what, e.ID, why, ErrForeign)
}
