// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	remote "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Stderr.WriteString("these tests mount: they need root\n")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// load reads a configuration whose paths are below dir.
func load(t testing.TB, dir, text string) *Config {
	t.Helper()
	path := filepath.Join(dir, "berth.toml")
	text = strings.ReplaceAll(text, "DIR", dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const paths = "[proxy]\naddress = 'DIR/s/proxy.sock'\n[snapshotter]\nroot_path = 'DIR/layers'\n"

// start serves, and returns a client and what ends both.
func start(t testing.TB, c *Config) (snapshots.Snapshotter, func() error) {
	t.Helper()
	l, err := listen(c.Proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := c.serve(ctx, l, nil)
		ended <- errors.Join(err, l.Close())
	}()
	conn, err := grpc.NewClient("unix://"+c.Proxy.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return remote.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "berth"), func() error {
		err := conn.Close()
		cancel()
		return errors.Join(err, <-ended)
	}
}

// containerd's conformance suite, over the socket.
func TestSuite(t *testing.T) {
	for name, keys := range map[string]string{
		"none":  "",
		"quota": "size = '32MiB'\nenforcement = 'quota'\n",
	} {
		t.Run(name, func(t *testing.T) {
			if name == "quota" && os.Getenv("BERTH_TEST_QUOTA") == "" {
				t.Skip("the machine of `make vm-test` has project quotas")
			}
			testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				s, stop := start(t, load(t, root, paths+keys))
				return s, stop, nil
			})
		})
	}
}

// Classes of errors arrive, and the socket is root's alone and goes with the server.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	c := load(t, dir, paths+"size = '8MiB'")
	s, stop := start(t, c)
	if _, err := s.Prepare(t.Context(), "a", "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown parent: %v", err)
	}
	if _, err := s.Prepare(t.Context(), "a", "", snapshots.WithLabels(map[string]string{"containerd.io/snapshot/berth.size": "x"})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad size: %v", err)
	}
	st, err := os.Stat(c.Proxy.Address)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", st.Mode())
	}
	if _, err := listen(c.Proxy.Address); err == nil || !strings.Contains(err.Error(), c.Proxy.Address) {
		t.Errorf("a second server: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.Proxy.Address); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestLoad(t *testing.T) {
	for name, text := range map[string]string{
		"proxy.address":            "[proxy]\naddress = 'x'",
		"proxy.containerd_address": "[proxy]\ncontainerd_address = ''",
		"size":                     "[snapshotter]\nsize = 'big'",
		"enforcement":              "[snapshotter]\nenforcement = 'maybe'",
		"unknown key proxy.adress": "[proxy]\nadress = '/x'",
		"images.global_auth_file":  "[images]\nglobal_auth_file = 'x'",
	} {
		path := filepath.Join(t.TempDir(), "berth.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// As the guide shows the key.
	empty := filepath.Join(t.TempDir(), "berth.toml")
	if err := os.WriteFile(empty, []byte("[snapshotter]\nroot_path = ''\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, empty + ".none"} {
		c, err := Load(path)
		if err != nil || c.Layers.RootPath != "/var/lib/berth/snapshotter" {
			t.Errorf("defaults: %+v, %v", c, err)
		}
	}
}

func TestSection(t *testing.T) {
	text, err := load(t, t.TempDir(), paths).Section()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[proxy_plugins.berth]", "type = 'snapshot'", "/s/proxy.sock'", "/layers'", "platform = 'linux/", "'remap-ids'"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
}
