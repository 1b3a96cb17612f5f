// SPDX-License-Identifier: Apache-2.0

// Package session is what all commands share: the streams, the global flags, and
// the way to containerd and berth's service. It knows no command.
package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"

	"github.com/berthd/berth/plugin/runtime"
	"github.com/berthd/berth/plugin/runtime/handler"
	"github.com/berthd/berth/plugin/runtime/network"
)

// Defaults of the flags, as ctr and nerdctl have them.
const (
	defaultAddress   = "/run/containerd/containerd.sock"
	defaultNamespace = "default"
	// dialLimit is how long containerd may take to answer at all.
	dialLimit = 10 * time.Second
)

// Session is one call of the command line. Not safe for concurrent use, but for
// the streams.
type Session struct {
	In, Out, Err *os.File

	// Address is containerd's socket, Namespace containerd's.
	Address, Namespace string
	Snapshotter        string
	// Root and State are the service's directories.
	Root, State string
	// ConfDir and BinDir are CNI's.
	ConfDir, BinDir string
	// Config is the file of berth's configuration.
	Config string
}

// Bind declares the global flags, with the environment's values.
func (s *Session) Bind(flags *pflag.FlagSet) {
	for _, f := range []struct {
		at                 *string
		name, env, initial string
		usage              string
	}{
		{&s.Address, "address", "CONTAINERD_ADDRESS", defaultAddress, "containerd's `SOCKET`"},
		{&s.Namespace, "namespace", "CONTAINERD_NAMESPACE", defaultNamespace, "containerd's `NAMESPACE`; the kubelet's is k8s.io"},
		{&s.Snapshotter, "snapshotter", "CONTAINERD_SNAPSHOTTER", runtime.DefaultSnapshotter, "`NAME` of what makes the containers' file systems"},
		{&s.Root, "root", "", runtime.DefaultRoot, "`DIRECTORY` for what outlives a reboot"},
		{&s.State, "state", "", runtime.DefaultState, "`DIRECTORY` for what does not"},
		{&s.ConfDir, "cni-netconfpath", "NETCONFPATH", "/etc/cni/net.d", "`DIRECTORY` of CNI's configurations"},
		{&s.BinDir, "cni-path", "CNI_PATH", "/opt/cni/bin", "`DIRECTORY` of CNI's plugins; several with colons between"},
		{&s.Config, "config", "", handler.DefaultPath, "`FILE` of berth's configuration"},
	} {
		usage := f.usage
		initial := f.initial
		if f.env != "" {
			usage += " [$" + f.env + "]"
			initial = cmp.Or(os.Getenv(f.env), initial)
		}
		flags.StringVar(f.at, f.name, initial, usage)
	}
}

// Do calls f with a service, which ends with it.
func (s *Session) Do(ctx context.Context, f func(context.Context, *runtime.Service) error) (err error) {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	handlers, err := handler.Open(s.Config)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	service, err := runtime.Open(ctx, runtime.Config{
		Client: c, LogDriver: self, Namespace: s.Namespace, Root: s.Root, State: s.State, Snapshotter: s.Snapshotter,
		Network:  network.Config{ConfDir: s.ConfDir, BinDirs: filepath.SplitList(s.BinDir)},
		Handlers: handlers,
		Prefixes: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Close()) }()
	return f(ctx, service)
}

// Client calls f with a client of containerd, for what needs no service.
func (s *Session) Client(ctx context.Context, f func(context.Context, *client.Client) error) (err error) {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return f(namespaces.WithNamespace(ctx, s.Namespace), c)
}

// connect makes sure that somebody answers: a client alone would wait for it.
func (s *Session) connect(ctx context.Context) (*client.Client, error) {
	path := strings.TrimPrefix(s.Address, "unix://")
	if _, err := os.Stat(path); err != nil {
		return nil, s.unreachable(err)
	}
	c, err := client.New(path, client.WithDefaultNamespace(s.Namespace), client.WithTimeout(dialLimit))
	if err != nil {
		return nil, s.unreachable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	if _, err := c.Version(ctx); err != nil {
		return nil, errors.Join(s.unreachable(err), c.Close())
	}
	return c, nil
}

func (s *Session) unreachable(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("containerd at %s: %w", s.Address, err)
	}
	return fmt.Errorf("containerd does not answer at %s: %w: %w", s.Address, errdefs.ErrUnavailable, err)
}
