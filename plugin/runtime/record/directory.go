// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/plugin/labels"
	"github.com/berthd/berth/plugin/runtime/record/claim"
)

const (
	dirMode = 0o700
	// parentMode lets others look up what they know the name of.
	parentMode = 0o711
)

func (s *Store) workDirs() string { return filepath.Join(s.o.Root, s.o.Namespace, "containers") }
func (s *Store) runDirs() string  { return filepath.Join(s.o.State, s.o.Namespace, "containers") }

// workDir and runDir are given IDs that containerd has accepted: they have neither
// slashes nor dots at the begin.
func (s *Store) workDir(id string) string { return filepath.Join(s.workDirs(), id) }
func (s *Store) runDir(id string) string  { return filepath.Join(s.runDirs(), id) }

// WorkDir returns the directory of a container that outlives a reboot. An unknown
// container is ErrInvalidContainerID; a directory that is missing DataLoss.
func (s *Store) WorkDir(ctx context.Context, ref string) (string, error) {
	c, err := s.known(s.in(ctx), ref)
	if err != nil {
		return "", err
	}
	dir := s.workDir(c.ID)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("container %s is damaged: %w: %w", c.ID, err, errdefs.ErrDataLoss)
	} else if err != nil {
		return "", system(err)
	}
	return dir, nil
}

// RunDir returns the directory of a container that does not outlive a reboot, made
// again if there was one. An unknown container is ErrInvalidContainerID.
func (s *Store) RunDir(ctx context.Context, ref string) (string, error) {
	ctx = s.in(ctx)
	c, err := s.known(ctx, ref)
	if err != nil {
		return "", err
	}
	unlock, err := s.lock(ctx, c.ID, claim.Shared)
	if err != nil {
		return "", err
	}
	unlock()
	return s.runDir(c.ID), nil
}

// lock locks the run directory of a container or pod whose record is there, making
// it if necessary. A record that has gone is ErrInvalidContainerID, one that is not
// berth's ErrForeign.
func (s *Store) lock(ctx context.Context, id string, mode claim.Mode) (func(), error) {
	if err := s.ours(ctx, id); err != nil {
		return nil, err
	}
	for {
		if err := makeDir(s.runDir(id)); err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, err
		}
		unlock, err := claim.LockDir(ctx, s.runDir(id), mode)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile, perhaps with the container
		}
		if err != nil {
			return nil, err
		}
		if err := s.ours(ctx, id); err != nil {
			if errdefs.IsNotFound(err) {
				_ = os.Remove(s.runDir(id)) // if it is empty, we made it
			}
			unlock()
			return nil, err
		}
		return unlock, nil
	}
}

// ours tells by an error that an ID is not that of a container of berth's.
func (s *Store) ours(ctx context.Context, id string) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%q: %w: %w", id, ErrInvalidContainerID, err)
	}
	if err != nil {
		return err
	}
	if _, err := labels.Decode(c); errors.Is(err, labels.ErrForeign) {
		return fmt.Errorf("container %s: %w", id, labels.ErrForeign)
	}
	return nil
}

// makeDir makes a directory of a container. One that is there is AlreadyExists.
func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), parentMode); err != nil {
		return system(err)
	}
	return system(os.Mkdir(path, dirMode))
}

// system gives an error of the operating system its class.
func system(err error) error {
	for is, class := range map[error]error{
		fs.ErrExist:      errdefs.ErrAlreadyExists,
		fs.ErrNotExist:   errdefs.ErrNotFound,
		fs.ErrPermission: errdefs.ErrPermissionDenied,
	} {
		if errors.Is(err, is) {
			return fmt.Errorf("%w: %w", err, class)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
	return nil
}
