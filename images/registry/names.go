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
// which to try them: those of Search, or the one of them that somebody has chosen
// where registries.conf wants that. See also the errors of this package. The caller
// says Pulled in the end.
func (r *Registry) Candidates(name string) ([]reference.Reference, error) {
	found, err := r.Search(name)
	if err != nil || len(found) == 1 {
		return found, err
	}
	mode, err := r.mode()
	switch {
	case err != nil:
		return nil, fmt.Errorf("image name %q: %w", name, err)
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

// mode is what registries.conf wants to be done about short names.
func (r *Registry) mode() (types.ShortNameMode, error) {
	mode, err := sysregistriesv2.GetShortNameMode(r.System(Access{}))
	if err != nil {
		return mode, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return mode, nil
}

// Search returns all references that a name may stand for, in the order in which to
// try them: one if the name has a registry or is an alias, else one for each
// unqualified-search registry of registries.conf. There is at least one. A name that
// cannot be one is ErrInvalidArgument; see also ErrNoSearchRegistries and
// reference.ErrCannotParseImageID. Nobody is asked, nor anything over a network.
func (r *Registry) Search(name string) ([]reference.Reference, error) {
	// This says why a name is wrong, better than the library does.
	if _, err := reference.Parse(name); err != nil {
		return nil, err
	}
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

// Pulled says that one of the Candidates for a name was pulled. If it was chosen, its
// repository is the only one that the name may stand for from now on, whatever its
// tag.
func (r *Registry) Pulled(name string, ref reference.Reference) error {
	mode, err := r.mode()
	if err != nil || mode == types.ShortNameModeDisabled || r.config.Choose == nil {
		return err
	}
	if found, err := r.Search(name); err != nil || len(found) == 1 {
		return err
	}
	short, _, _ := strings.Cut(name, "@")
	short, _, _ = strings.Cut(short, ":")
	if err := sysregistriesv2.AddShortNameAlias(r.System(Access{}), short, ref.Repository()); err != nil {
		return fmt.Errorf("alias %q for %s: %w: %w", short, ref.Repository(), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}
