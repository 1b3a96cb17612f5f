// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// verifierName is how files begin that are berth's verifier, or a script that
// executes it.
const verifierName = "berth-verify"

// pullConfig is what matters of containerd's configuration for who verifies the
// images that it pulls.
type pullConfig struct {
	Plugins struct {
		Verifier struct {
			BinDir       string `toml:"bin_dir"`
			MaxVerifiers int    `toml:"max_verifiers"`
		} `toml:"io.containerd.image-verifier.v1.bindir"`
		CRI criPulls `toml:"io.containerd.cri.v1.images"`
	} `toml:"plugins"`
}

// criPulls are the options that make containerd's CRI plugin pull by itself. The
// pointers are nil in versions that do not have them.
type criPulls struct {
	Local         *bool `toml:"use_local_image_pull"`
	NoAnnotations *bool `toml:"disable_snapshot_annotations"`
	Discard       bool  `toml:"discard_unpacked_layers"`
	SyncFS        bool  `toml:"image_pull_with_sync_fs"`
	Downloads     *int  `toml:"max_concurrent_downloads"`
	Registry      struct {
		Mirrors map[string]any `toml:"mirrors"`
		Configs map[string]any `toml:"configs"`
		Auths   map[string]any `toml:"auths"`
	} `toml:"registry"`
}

// criDownloads is the only max_concurrent_downloads with which CRI leaves pulls to
// the transfer service, which has an option of its own.
const criDownloads = 3

// local returns the options because of which pulls are not verified.
func (c criPulls) local() []string {
	if c.Local == nil {
		return []string{"this containerd's CRI plugin always does"}
	}
	var forced []string
	for _, option := range []struct {
		name string
		set  bool
	}{
		{"use_local_image_pull = true", *c.Local},
		{"disable_snapshot_annotations = false", c.NoAnnotations != nil && !*c.NoAnnotations},
		{"discard_unpacked_layers = true", c.Discard},
		{"image_pull_with_sync_fs = true", c.SyncFS},
		{"registry.mirrors", len(c.Registry.Mirrors) > 0},
		{"registry.configs", len(c.Registry.Configs) > 0},
		{"registry.auths", len(c.Registry.Auths) > 0},
	} {
		if option.set {
			forced = append(forced, option.name)
		}
	}
	if c.Downloads != nil && *c.Downloads != criDownloads {
		forced = append(forced, fmt.Sprintf("max_concurrent_downloads = %d", *c.Downloads))
	}
	return forced
}

// verifier looks at whether signature policies hold for pulls that are not
// berth's own.
func (d *Doctor) verifier(ctx context.Context) []Check {
	installed := feature{
		"image verifier", "signature policies for images that containerd pulls",
		"install berth-verify into bin_dir of containerd's plugin io.containerd.image-verifier.v1.bindir", Warn,
	}
	config, err := d.pullConfig(ctx)
	if err != nil {
		return []Check{installed.by(err, "")}
	}
	found, err := verifierIn(config.Plugins.Verifier.BinDir, config.Plugins.Verifier.MaxVerifiers)
	checks := []Check{installed.by(err, found+"; not asked by `ctr images pull --local`, nerdctl and others that pull by themselves")}
	if d.plugin(ctx, "io.containerd.grpc.v1", "cri") != nil {
		return checks // see cri
	}
	forced := config.Plugins.CRI.local()
	text := "the transfer service pulls, and asks image verifiers"
	if len(forced) > 0 {
		text = "CRI pulls by itself and asks no image verifier: " + strings.Join(forced, ", ")
	}
	return append(checks, feature{
		"verified CRI pulls", "signature policies for images of the kubelet",
		"leave these options of containerd's plugin io.containerd.cri.v1.images at their defaults (containerd 2.1 or newer)", Warn,
	}.is(len(forced) == 0, "%s", text))
}

// verifierIn finds berth's verifier in a folder of which containerd executes the
// first files by name, or all if limit is negative.
func verifierIn(dir string, limit int) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for i, entry := range entries {
		if !strings.HasPrefix(entry.Name(), verifierName) {
			continue
		}
		if limit >= 0 && i >= limit {
			return "", fmt.Errorf("%s/%s: not executed, max_verifiers is %d", dir, entry.Name(), limit)
		}
		return lookup(dir, entry.Name())
	}
	return "", fmt.Errorf("%s is not in %s", verifierName, dir)
}

// pullConfig has containerd's own program say what it was configured with: no RPC
// tells.
func (d *Doctor) pullConfig(ctx context.Context) (*pullConfig, error) {
	if d.Client == nil {
		return nil, errNoClient
	}
	if err := d.plugin(ctx, "io.containerd.image-verifier.v1", "bindir"); err != nil {
		return nil, err
	}
	server, err := d.Client.IntrospectionService().Server(ctx)
	if err != nil {
		return nil, err
	}
	proc := fmt.Sprintf("/proc/%d", server.Pid)
	commandLine, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return nil, fmt.Errorf("containerd's process: %w", err)
	}
	args := append(configFlag(strings.Split(string(commandLine), "\x00")), "config", "dump")
	cmd := exec.CommandContext(ctx, proc+"/exe", args...)
	cmd.Dir = proc + "/cwd" // the file's name may be relative
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("containerd %s: %w: %s", strings.Join(args, " "), err, problems.Bytes())
	}
	var c pullConfig
	if err := toml.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("containerd %s: %w", strings.Join(args, " "), err)
	}
	if c.Plugins.Verifier.BinDir == "" {
		return nil, errors.New("containerd tells no bin_dir of its image verifiers")
	}
	return &c, nil
}

// configFlag returns the part of containerd's command line that names its
// configuration.
func configFlag(commandLine []string) []string {
	for i, arg := range commandLine {
		name, _, joined := strings.Cut(arg, "=")
		switch name {
		case "-c", "--c", "-config", "--config":
			if joined {
				return []string{arg}
			}
			if i+1 < len(commandLine) {
				return []string{arg, commandLine[i+1]}
			}
		}
	}
	return nil
}
