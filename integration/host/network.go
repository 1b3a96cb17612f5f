// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Network is a bridge for pods, described for CNI.
type Network struct {
	Conf   string // folder of the configuration, and of addresses given away
	Bridge string // interface, which the first pod's start makes
}

var networks atomic.Int32

// NewNetwork describes a network. The caller ends it with Remove, after its pods.
func NewNetwork() (*Network, error) {
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		return nil, err
	}
	number := os.Getpid()*4 + int(networks.Add(1))
	n := &Network{Conf: dir, Bridge: fmt.Sprintf("bnet%d", number)}
	// 198.18.0.0/15 is set aside for tests of networks (RFC 2544).
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "berth", "plugins": [{
		"type": "bridge", "bridge": %q, "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "198.19.%d.0/24"}]]}}]}`, n.Bridge, dir+"/ipam", number%256)
	if err := os.WriteFile(dir+"/10-berth.conflist", []byte(text), 0o644); err != nil {
		return nil, errors.Join(err, n.Remove())
	}
	return n, nil
}

// Remove removes the configuration and the bridge, if there is one.
func (n *Network) Remove() error {
	err := removeBridge(n.Bridge)
	if err != nil {
		err = fmt.Errorf("remove bridge %s: %w", n.Bridge, err)
	}
	return errors.Join(err, os.RemoveAll(n.Conf))
}

// removeBridge takes the bridge down first, as the kernel wants it.
func removeBridge(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err == unix.ENODEV {
		return nil
	}
	request.SetUint16(request.Uint16() &^ unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCBRDELBR, request)
}
