// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// network is a bridge for pods, and the folder of its CNI configuration.
type network struct {
	dir, bridge string
}

// newNetwork writes the configuration; CNI makes the bridge with the first pod.
// The caller ends it with remove.
func newNetwork() (*network, error) {
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		return nil, err
	}
	n := &network{dir: dir, bridge: fmt.Sprintf("bbench%d", os.Getpid())}
	// 198.18.0.0/15 is set aside for measurements of networks (RFC 2544).
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bench", "plugins": [{
		"type": "bridge", "bridge": %q, "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "198.19.%d.0/24"}]]}}]}`, n.bridge, dir+"/ipam", os.Getpid()%256)
	if err := os.WriteFile(dir+"/10-bench.conflist", []byte(text), 0o644); err != nil {
		return nil, errors.Join(err, n.remove())
	}
	return n, nil
}

func (n *network) remove() error { return errors.Join(n.removeBridge(), os.RemoveAll(n.dir)) }

// removeBridge deletes the bridge, if there is one: down first, as the kernel
// wants it.
func (n *network) removeBridge() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(n.bridge)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err == unix.ENODEV {
		return nil
	}
	request.SetUint16(request.Uint16() &^ unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCBRDELBR, request); err != nil {
		return fmt.Errorf("bridge %s: %w", n.bridge, err)
	}
	return nil
}
