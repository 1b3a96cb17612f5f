// SPDX-License-Identifier: Apache-2.0

// Package mount owns mounts that several users share and that outlive the process
// that made them: each has a key, a count of its users in a file, and a place below
// one directory. It refuses to know what is mounted.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/atomicfile"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrNotMounted is the error of Unmount for what is not mounted. Its class is
// ErrFailedPrecondition.
var ErrNotMounted = errdefs.ErrFailedPrecondition.WithMessage("not mounted")

// Below the directory of a key.
const (
	rootName  = "root"  // the place
	countName = "count" // how many users, in digits
)

// lockName cannot be a key: those do not begin with a dot.
const lockName = ".lock"

// maxKeyBytes is what a file's name may have (NAME_MAX, limits.h).
const maxKeyBytes = 255

// validate wants the name of a file.
func validate(key string) error {
	if key == "" || len(key) > maxKeyBytes || key[0] == '.' || strings.ContainsAny(key, "/\x00") {
		return fmt.Errorf("mount %q: not the name of a file: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Mounts are the mounts below one directory. Processes that use the same directory
// share them. Safe for concurrent use.
type Mounts struct {
	dir     string
	manager mount.Manager
}

// New returns the mounts below a directory, which is made when it is needed. Kinds of
// mounts that the kernel does not know are prepared by containerd's manager, in the
// namespace of a call's ctx.
func New(dir string, manager mount.Manager) *Mounts { return &Mounts{dir: dir, manager: manager} }

// Dir is the directory that the mounts are below.
func (m *Mounts) Dir() string { return m.dir }

// Source says what to mount. It is called when there is no user yet.
type Source func(ctx context.Context) ([]mount.Mount, error)

// Mount adds a user to a mount, makes it if there was none, and returns its root. A
// key is the name of a file that is not hidden (ErrInvalidArgument).
func (m *Mounts) Mount(ctx context.Context, key string, source Source) (string, error) {
	if err := validate(key); err != nil {
		return "", err
	}
	unlock, err := m.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	root := m.root(key)
	users, err := m.users(key)
	if err != nil {
		return "", err
	}
	if users > 0 {
		return root, m.setUsers(key, users+1)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("mount %s: %w", key, err)
	}
	// The count first: a process that ends between the two leaves a count without a
	// mount, which the next takes for no user.
	if err := m.setUsers(key, 1); err != nil {
		return "", err
	}
	if err := m.mount(ctx, key, source); err != nil {
		return "", errors.Join(fmt.Errorf("mount %s: %w", key, err), m.unmount(context.WithoutCancel(ctx), key))
	}
	return root, nil
}

func (m *Mounts) mount(ctx context.Context, key string, source Source) error {
	mounts, err := source(ctx)
	if err != nil {
		return err
	}
	if mounts, err = m.activate(ctx, activation(key), mounts); err != nil {
		return err
	}
	return mount.All(mounts, m.root(key))
}

func (m *Mounts) activate(ctx context.Context, name string, mounts []mount.Mount, opts ...mount.ActivateOpt) ([]mount.Mount, error) {
	info, err := m.manager.Activate(ctx, name, mounts, opts...)
	if errdefs.IsNotImplemented(err) {
		return mounts, nil // the kernel knows them all
	}
	return info.System, err
}

func (m *Mounts) deactivate(ctx context.Context, name string) error {
	err := m.manager.Deactivate(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) {
		return nil
	}
	return err
}

// activation is the name of a mount to containerd's manager.
func activation(key string) string { return "berth-mount-" + key }

// Release gives back what a Source took; see Mounts.Unmount.
type Release func(ctx context.Context) error

// Unmount takes a user from a mount. With the last one it unmounts it and calls
// release, while nobody can mount it again; last tells that it did. Without a user
// the error is ErrNotMounted, and what others left of the mount goes all the same.
func (m *Mounts) Unmount(ctx context.Context, key string, release Release) (last bool, err error) {
	unlock, err := m.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	users, err := m.users(key)
	if err != nil {
		return false, err
	}
	if users > 1 {
		return false, m.setUsers(key, users-1)
	}
	if users == 0 {
		err = fmt.Errorf("unmount %s: %w", key, ErrNotMounted)
	}
	return users == 1, errors.Join(err, m.remove(ctx, key, release))
}

// Remove unmounts whatever the count of users, and calls release. That there is no
// such mount is no error.
func (m *Mounts) Remove(ctx context.Context, key string, release Release) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return m.remove(ctx, key, release)
}

// Sweep is Remove for a mount without users: one that went away by itself. It tells
// whether the mount was one.
func (m *Mounts) Sweep(ctx context.Context, key string, release Release) (bool, error) {
	unlock, err := m.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	users, err := m.users(key)
	if err != nil || users > 0 {
		return false, err
	}
	return true, m.remove(ctx, key, release)
}

func (m *Mounts) remove(ctx context.Context, key string, release Release) error {
	if err := validate(key); err != nil {
		return nil //nolint:nilerr // Mount has refused it, so there is nothing
	}
	if err := m.unmount(ctx, key); err != nil {
		return err
	}
	if release == nil {
		return nil
	}
	return release(ctx)
}

func (m *Mounts) unmount(ctx context.Context, key string) error {
	if err := mount.UnmountAll(m.root(key), 0); err != nil {
		return fmt.Errorf("unmount %s: %w: %w", key, errdefs.ErrFailedPrecondition, err)
	}
	if err := m.deactivate(ctx, activation(key)); err != nil {
		return fmt.Errorf("unmount %s: %w", key, err)
	}
	// Not RemoveAll: if something were mounted there after all it would be emptied.
	for _, path := range []string{m.root(key), m.path(key, countName), m.path(key, "")} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unmount %s: %w", key, err)
		}
	}
	return nil
}

// Find returns where a key is mounted, and false if it is not.
func (m *Mounts) Find(key string) (string, bool, error) {
	if err := validate(key); err != nil {
		return "", false, nil //nolint:nilerr // Mount has refused it
	}
	users, err := m.users(key)
	return m.root(key), users > 0, err
}

// Keys lists the keys of all mounts, those that have gone away by themselves too.
func (m *Mounts) Keys() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	var keys []string
	for _, e := range entries {
		if e.IsDir() {
			keys = append(keys, e.Name())
		}
	}
	return slices.Clip(keys), nil
}

func (m *Mounts) path(key, name string) string { return filepath.Join(m.dir, key, name) }

func (m *Mounts) root(key string) string { return m.path(key, rootName) }

// users is the count of what is mounted, 0 for what is not: a reboot leaves counts
// behind where the directory is not on a tmpfs.
func (m *Mounts) users(key string) (int, error) {
	mounted, err := mountinfo.Mounted(m.root(key))
	if errors.Is(err, os.ErrNotExist) || err == nil && !mounted {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("mount %s: %w", key, err)
	}
	data, err := os.ReadFile(m.path(key, countName))
	if err != nil {
		return 0, fmt.Errorf("mount %s: %w", key, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("mount %s: count of users: %w: %w", key, errdefs.ErrDataLoss, err)
	}
	return n, nil
}

func (m *Mounts) setUsers(key string, n int) error {
	f, err := atomicfile.New(m.path(key, countName), 0o644)
	if err != nil {
		return fmt.Errorf("mount %s: count of users: %w", key, err)
	}
	if _, err := fmt.Fprintln(f, n); err != nil {
		return errors.Join(fmt.Errorf("mount %s: count of users: %w", key, err), f.Cancel())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("mount %s: count of users: %w", key, err)
	}
	return nil
}

// lock keeps other processes, and other goroutines of this one, from the directory.
// It is held for a mount: a request to containerd and some system calls.
func (m *Mounts) lock() (unlock func(), err error) {
	// For root alone: an image may hold programs that run as their owner.
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(m.dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mounts: lock: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
