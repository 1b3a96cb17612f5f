// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// bootedFile is in the state directory, which a reboot empties, once everything was
// looked at.
const bootedFile = "recovered"

// recover removes what processes left that died during a creation. It looks at two
// directories if there was none, and at all records after a reboot.
func (s *Service) recover(ctx context.Context) error {
	ids, err := s.claims.Abandoned("")
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, s.recoverOne(ctx, id))
	}
	// Errors here are not the caller's, who may want something else altogether.
	if err := errors.Join(append(errs, s.records.Recover(ctx))...); err != nil {
		log.G(ctx).WithError(err).Warn("recover what a process left that died")
	}
	return nil
}

// recoverOne ends what lives of a creation, so that its records can go.
func (s *Service) recoverOne(ctx context.Context, id string) error {
	held, err := s.claims.Take(id, claim.Note{Owner: id, Task: "recover"})
	var by *claim.HeldError
	if errors.As(err, &by) {
		return nil // somebody else does it
	}
	if err != nil {
		return err
	}
	if s.finished(ctx, id) {
		held.Release()
		return nil
	}
	if err := s.endLeft(ctx, id); err != nil {
		held.Leave()
		return fmt.Errorf("recover %s: %w", id, err)
	}
	held.Release()
	return nil
}

// finished tells whether the creation died after all was done.
func (s *Service) finished(ctx context.Context, id string) bool {
	c, err := s.containers.Get(ctx, id)
	if err != nil {
		return !errdefs.IsNotFound(err)
	}
	e := labels.Describe(c)
	return e.Owner != labels.OwnerBerth || e.Err != nil || e.Metadata.Created
}

// endLeft ends the task, the pod's shim and its network, whichever there is.
func (s *Service) endLeft(ctx context.Context, id string) error {
	if err := s.endTask(ctx, id); err != nil {
		return err
	}
	if err := s.sandboxes.shutdown(ctx, PodID(id)); err != nil {
		return err
	}
	return s.network.Remove(ctx, id)
}

// recoverOnce is recover for the first one since the machine has started.
func (s *Service) recoverOnce(ctx context.Context) error {
	path := filepath.Join(s.config.State, s.config.Namespace, bootedFile)
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return s.recover(ctx)
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	if err := s.records.RecoverAll(ctx); err != nil {
		log.G(ctx).WithError(err).Warn("recover what was there before the machine started")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// mend makes the sandbox record of a pod again that has lost it: containerd starts
// members of unknown sandboxes with a warning, and the pod would have no name there.
func (s *Service) mend(ctx context.Context, p *foundPod) error {
	if p.Sandbox || p.Owner != labels.OwnerBerth {
		return nil
	}
	m := p.Metadata
	run := p.view.containers[p.ID].Runtime
	for _, e := range p.Members { // if there is no infra container
		if run.Name == "" {
			run = p.view.containers[e.ID].Runtime
		}
	}
	b := sandbox.Sandbox{
		ID: p.ID, Sandboxer: sandboxer, CreatedAt: m.CreatedAt, UpdatedAt: m.CreatedAt,
		Runtime: sandbox.RuntimeOpts{Name: run.Name, Options: run.Options},
	}
	if err := m.EncodeSandbox(&b); err != nil {
		return fmt.Errorf("rebuild pod %s: %w", p.ID, err)
	}
	if _, err := s.sandboxes.store.Create(ctx, b); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("rebuild pod %s: %w", p.ID, err)
	}
	log.G(ctx).WithField("sandbox", p.ID).Warn("the pod's record was lost and is rebuilt from its containers")
	p.Sandbox = true
	return nil
}
