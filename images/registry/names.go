// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/reference"
)

// ErrNoSearchRegistries says that a short name is no alias and registries.conf
// names no registry to look for it. Its class is ErrFailedPrecondition.
var ErrNoSearchRegistries = errdefs.ErrFailedPrecondition.WithMessage("no unqualified-search registries")

// ErrAmbiguousName says that a short name may stand for images of several
// registries, that registries.conf wants somebody to choose, and that there is
// nobody. Its class is ErrFailedPrecondition.
var ErrAmbiguousName = errdefs.ErrFailedPrecondition.WithMessage("short-name mode is enforcing and there is nobody to choose")

// Candidates returns the references that a name may stand for, in the order in
// which to try them: one if the name has a registry or is an alias, else one for
// each unqualified-search registry of registries.conf. There is at least one. A
// name that cannot be one is ErrInvalidArgument; see also the errors of this
// package, and reference.ErrCannotParseImageID. Nothing is asked for over a
// network.
func (r *Registry) Candidates(name string) ([]reference.Reference, error) {
	// This says why a name is wrong, better than the search does.
	if _, err := reference.Parse(name); err != nil {
		return nil, err
	}
	found, err := r.search(name)
	if err != nil {
		return nil, err
	}
	if len(found) == 1 {
		return found, nil
	}
	mode, err := sysregistriesv2.GetShortNameMode(r.System(Access{}))
	switch {
	case err != nil:
		return nil, fmt.Errorf("image name %q: %w: %w", name, err, errdefs.ErrFailedPrecondition)
	case mode == types.ShortNameModeEnforcing && r.config.Choose == nil:
		return nil, fmt.Errorf("image name %q: one of %v: %w", name, found, ErrAmbiguousName)
	case mode == types.ShortNameModeDisabled || r.config.Choose == nil:
		return found, nil
	}
	chosen, err := r.config.Choose(name, found)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", name, err)
	}
	return []reference.Reference{chosen}, nil
}

// search returns all references that a name may stand for, whatever the mode.
func (r *Registry) search(name string) ([]reference.Reference, error) {
	system := r.System(Access{})
	// The library would ask whoever sits at the terminal of the process.
	mode := types.ShortNameModeDisabled
	system.ShortNameMode = &mode
	resolved, err := shortnames.Resolve(system, name)
	if err != nil {
		if none, listErr := sysregistriesv2.UnqualifiedSearchRegistries(system); listErr == nil && len(none) == 0 {
			return nil, fmt.Errorf("image name %q: no alias and %w", name, ErrNoSearchRegistries)
		}
		return nil, fmt.Errorf("image name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	var found []reference.Reference
	for _, candidate := range resolved.PullCandidates {
		ref, err := reference.Parse(candidate.Value.String())
		if err != nil {
			return nil, err
		}
		if !slices.Contains(found, ref) {
			found = append(found, ref)
		}
	}
	return found, nil
}

// Record makes the repository of ref the only candidate for a short name from now
// on, whatever tag the name has. The caller does so after ref was pulled, when
// somebody chose it. A name with a registry is ErrInvalidArgument.
func (r *Registry) Record(name string, ref reference.Reference) error {
	short, err := shortName(name)
	if err != nil {
		return err
	}
	if err := sysregistriesv2.AddShortNameAlias(r.System(Access{}), short, ref.Repository()); err != nil {
		return fmt.Errorf("alias %q for %s: %w: %w", short, ref.Repository(), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// shortName is a name without registry, tag and digest.
func shortName(name string) (string, error) {
	if !shortnames.IsShortName(name) {
		return "", fmt.Errorf("image name %q: not a short name: %w", name, errdefs.ErrInvalidArgument)
	}
	name, _, _ = strings.Cut(name, "@")
	name, _, _ = strings.Cut(name, ":")
	return name, nil
}
