// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
)

// Action is what happened to an image.
type Action string

// The actions that are told.
const (
	ActionPull   Action = "pull"
	ActionPush   Action = "push"
	ActionTag    Action = "tag"
	ActionUntag  Action = "untag"
	ActionDelete Action = "delete"
	ActionSave   Action = "save"
	ActionLoad   Action = "load"
	ActionImport Action = "import"
	ActionCommit Action = "commit"
	ActionPrune  Action = "prune"
)

// Event says what happened to an image.
type Event struct {
	Time   time.Time
	Action Action
	// ID is the digest of the image's target, empty for ActionPrune.
	ID digest.Digest
	// Ref is the name it happened to, as the record has it; empty if it
	// happened to the image as a whole.
	Ref string
	// Attributes are the labels of the image's configuration as far as they can
	// be read, and "name"; for ActionPrune "reclaimed", in bytes.
	Attributes map[string]string
}

// Emit tells that something happened to an image by that name; ref may be empty.
// That the image cannot be read (any more) is no error: there are fewer
// attributes then. A caller that removes an image reads its labels before with
// Labels and passes them.
func (s *Store) Emit(action Action, target digest.Digest, ref string, labels map[string]string) {
	attributes := maps.Clone(labels)
	if attributes == nil {
		attributes = map[string]string{}
	}
	if ref != "" {
		attributes["name"] = ref
	}
	s.Send(Event{Action: action, ID: target, Ref: ref, Attributes: attributes})
}

// Send tells an event, with the time if it has none.
func (s *Store) Send(e Event) {
	if e.Time.IsZero() {
		e.Time = s.options.Now()
	}
	s.options.Events(e)
}

// Labels are those of an image's configuration, nil if it cannot be read.
func (s *Store) Labels(ctx context.Context, img images.Image) map[string]string {
	ctx = s.Context(ctx)
	d, err := s.details(ctx, s.smallBlobs(ctx), img.Target)
	if err != nil {
		return nil
	}
	return d.Config.Config.Labels
}
