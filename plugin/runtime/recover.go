// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

// bootedFile is in the state directory, which a reboot empties, once everything was
// looked at.
const bootedFile = "recovered"

// quiet is how long after the death of a creation's process containerd may be about
// its last request, which it does not give up at once: what is removed before might
// be made once more. Measured: a tenth of that.
const quiet = 3 * time.Second

const (
	taskRecover = "recover"
	// detailSince says since when a claim is known to be abandoned.
	detailSince = "since"
)

// recover removes what processes left that died during a creation, if that is long
// enough ago. It costs the look at two directories if there was none. Errors are
// logged: they are not the caller's, who may want something else altogether.
func (s *Service) recover(ctx context.Context) error {
	_, err := s.sweep(ctx)
	return err
}

// recoverNow is recover that waits until all of it is removed, for those who need
// what it had: names, or a state that nobody changes.
func (s *Service) recoverNow(ctx context.Context) error {
	for {
		rest, err := s.sweep(ctx)
		if err != nil || rest == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of a creation that died: %w", context.Cause(ctx))
		case <-time.After(rest):
		}
	}
}

// sweep is one round of recover. It tells how long it takes until the next one would
// do more.
func (s *Service) sweep(ctx context.Context) (rest time.Duration, err error) {
	ids, err := s.claims.Abandoned("")
	if err != nil {
		return 0, fmt.Errorf("recover: %w", err)
	}
	var errs []error
	for _, id := range ids {
		left, err := s.recoverOne(ctx, id)
		rest, errs = max(rest, left), append(errs, err)
	}
	if rest == 0 {
		errs = append(errs, s.records.Recover(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		log.G(ctx).WithError(err).Warn("recover what a process left that died")
	}
	return rest, nil
}

// recoverOne ends what lives of a creation, so that its records can go.
func (s *Service) recoverOne(ctx context.Context, id string) (rest time.Duration, err error) {
	note := claim.Note{Owner: id, Task: taskRecover, Details: map[string]string{detailSince: time.Now().Format(time.RFC3339Nano)}}
	held, err := s.claims.Take(id, note)
	var by *claim.HeldError
	if errors.As(err, &by) {
		return 0, nil // somebody else does it
	}
	if err != nil {
		return 0, err
	}
	if s.finished(ctx, id) {
		held.Release()
		return 0, nil
	}
	if rest := quietRest(held.Left); rest > 0 {
		held.Leave()
		if held.Left.Task == taskRecover { // it is not dead for a shorter time than it was
			if again, err := s.claims.Take(id, *held.Left); err == nil {
				again.Leave()
			}
		}
		return rest, nil
	}
	if err := s.endLeft(ctx, id); err != nil {
		held.Leave()
		return 0, fmt.Errorf("recover %s: %w", id, err)
	}
	held.Release()
	return 0, nil
}

// quietRest is how long a creation with that note is to be left alone.
func quietRest(note *claim.Note) time.Duration {
	if note == nil {
		return 0
	}
	since, err := time.Parse(time.RFC3339Nano, note.Details[detailSince])
	if note.Task != taskRecover || err != nil {
		return quiet
	}
	return max(0, quiet-time.Since(since))
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
	return errors.Join(s.network.Remove(ctx, id), os.RemoveAll(s.restoreDir(id)), s.forgetExit(id))
}

// forgetNetworks removes networks that a reboot has ended, so that addresses are not
// kept for pods that cannot use them, and those of pods that there are no more.
func (s *Service) forgetNetworks(ctx context.Context) error {
	ids, err := s.network.List()
	errs := []error{err}
	for _, id := range ids {
		if _, err := s.containers.Get(ctx, id); errdefs.IsNotFound(err) || s.network.Dead(id) {
			errs = append(errs, s.network.Remove(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// forgetExits removes exit codes of containers that there are no more.
func (s *Service) forgetExits(ctx context.Context) error {
	codes, err := os.ReadDir(s.exitDir())
	errs := []error{err}
	for _, e := range codes {
		if _, err := s.containers.Get(ctx, e.Name()); errdefs.IsNotFound(err) {
			errs = append(errs, s.forgetExit(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// recoverOnce is recover for the first one since the machine has started.
func (s *Service) recoverOnce(ctx context.Context) error {
	path := filepath.Join(s.config.State, s.config.Namespace, bootedFile)
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return s.recover(ctx)
	}
	if err := s.recoverNow(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.records.RecoverAll(ctx), s.forgetExits(ctx), s.forgetNetworks(ctx)); err != nil {
		log.G(ctx).WithError(err).Warn("recover what was there before the machine started")
		if errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return nil // whoever comes next tries again
		}
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
