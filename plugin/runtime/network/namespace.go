// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/netns"
	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace below dir, owned by a new user
// namespace with the given maps if there are any, and raises loopback in it.
func newNamespace(dir string, maps *IDMaps) (path string, err error) {
	n, err := mountNamespace(dir, maps)
	if err != nil {
		return "", err
	}
	if err := n.Do(func(ns.NetNS) error { return raiseLoopback() }); err != nil {
		return "", errors.Join(fmt.Errorf("loopback: %w", err), n.Remove())
	}
	return n.GetPath(), nil
}

func mountNamespace(dir string, maps *IDMaps) (n *netns.NetNS, err error) {
	if maps == nil {
		return netns.NewNetNS(dir)
	}
	err = sys.UnshareAfterEnterUserns(maps.UID.String(), maps.GID.String(), unix.CLONE_NEWNET, func(pid int) (err error) {
		n, err = netns.NewNetNSFromPID(dir, uint32(pid))
		return err
	})
	if err != nil && n != nil {
		err = errors.Join(err, n.Remove())
	}
	return n, err
}

func (m IDMap) String() string { return fmt.Sprintf("%d:%d:%d", m.Container, m.Host, m.Size) }

// raiseLoopback does what CNI's plugin of that name does, without needing it.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// isNamespace returns nil if a namespace is mounted at path, NotFound if there
// is none or nothing.
func isNamespace(path string) error {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("network namespace %s: %w", path, err)
	case st.Type != unix.NSFS_MAGIC:
		return fmt.Errorf("network namespace %s: nothing is mounted there: %w", path, errdefs.ErrNotFound)
	}
	return nil
}

// namespacesIn returns the network namespaces that newNamespace has made in dir,
// mounted or not.
func namespacesIn(dir string) ([]string, error) { return filepath.Glob(filepath.Join(dir, "cni-*")) }

// removeNamespaces unmounts and removes all of dir's.
func removeNamespaces(dir string) error {
	paths, err := namespacesIn(dir)
	errs := []error{err}
	for _, path := range paths {
		errs = append(errs, netns.LoadNetNS(path).Remove())
	}
	return errors.Join(errs...)
}

// removeEmpty removes a directory and is content if there is none.
func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
