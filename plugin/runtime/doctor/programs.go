// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/go-cni"

	"github.com/berthd/berth/plugin/runtime/checkpoint"
	"github.com/berthd/berth/plugin/runtime/handler"
)

// Oldest runtimes that the shim is tested with.
const (
	oldestRunc = "1.1"
	oldestCrun = "1.14"
)

func (d *Doctor) programs(ctx context.Context) []Check {
	path := d.searchPath(ctx)
	var checks []Check
	for _, p := range []struct {
		name, oldest string
		without      Status
	}{{"runc", oldestRunc, Missing}, {"crun", oldestCrun, Warn}} {
		f := feature{p.name, "handlers with this runtime", "install " + p.name + " " + p.oldest + " or newer in containerd's PATH", p.without}
		version, err := d.version(ctx, path, p.name)
		if err != nil {
			checks = append(checks, f.by(err, ""))
			continue
		}
		checks = append(checks, f.is(atLeast(version, p.oldest), "version %s", version))
	}
	if checks[0].Status != OK && checks[1].Status == OK {
		checks[0].Status = Warn // one will do
	}
	f := feature{"CRIU", "checkpoint and restore", "install criu " + checkpoint.MinCRIU + " or newer in containerd's PATH", Warn}
	program, err := lookup(path, "criu")
	version := ""
	if err == nil {
		version, err = checkpoint.CRIUVersion(ctx, program)
	}
	if err != nil {
		return append(checks, f.by(err, ""))
	}
	return append(checks, f.is(atLeast(version, checkpoint.MinCRIU), "version %s", version))
}

// version asks a runtime: its first line ends with it.
func (d *Doctor) version(ctx context.Context, path, name string) (string, error) {
	program, err := lookup(path, name)
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	words := strings.Fields(string(line))
	if len(words) == 0 {
		return "", fmt.Errorf("%s tells no version", program)
	}
	return words[len(words)-1], nil
}

// searchPath is containerd's, which executes the shim, which executes the others.
func (d *Doctor) searchPath(ctx context.Context) string {
	if d.Path != "" {
		return d.Path
	}
	if d.Client != nil {
		if s, err := d.Client.IntrospectionService().Server(ctx); err == nil {
			for entry := range strings.SplitSeq(d.read(fmt.Sprintf("/proc/%d/environ", s.Pid)), "\x00") {
				if path, ok := strings.CutPrefix(entry, "PATH="); ok {
					return path
				}
			}
		}
	}
	return os.Getenv("PATH")
}

func lookup(path, name string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		program := filepath.Join(dir, name)
		if st, err := os.Stat(program); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return program, nil
		}
	}
	return "", fmt.Errorf("%s is in no folder of %s", name, path)
}

const (
	defaultConfDir = cni.DefaultNetDir
	defaultBinDir  = cni.DefaultCNIDir
)

// cni looks at the configuration that pods would get, and at the programs that it
// names.
func (d *Doctor) cni(ctx context.Context) []Check {
	confDir, binDirs := cmp.Or(d.ConfDir, defaultConfDir), d.BinDirs
	if len(binDirs) == 0 {
		binDirs = []string{defaultBinDir}
	}
	f := feature{"CNI configuration", "pods with a network of their own", "write a configuration to " + confDir, Warn}
	c, err := cni.New(cni.WithPluginDir(binDirs), cni.WithPluginConfDir(confDir), cni.WithDefaultConf)
	if err != nil {
		return []Check{f.by(err, "")}
	}
	plugins, names := pluginsOf(c.GetConfig())
	checks := []Check{f.is(true, "%s in %s", strings.Join(names, ", "), confDir)}
	path := strings.Join(binDirs, string(filepath.ListSeparator))
	var missing []error
	for _, name := range plugins {
		if _, err := lookup(path, name); err != nil {
			missing = append(missing, err)
		}
	}
	checks = append(checks, feature{"CNI plugins", "pods with a network of their own", "install the plugins into " + path, Warn}.
		by(errors.Join(missing...), strings.Join(plugins, ", ")))
	if slices.Contains(plugins, "portmap") {
		search := d.searchPath(ctx)
		_, err := lookup(search, "iptables")
		if _, nft := lookup(search, "nft"); nft == nil {
			err = nil
		}
		checks = append(checks, feature{"packet filter", "host ports of pods", "install iptables or nftables", Warn}.by(err, "there"))
	}
	return checks
}

// pluginsOf returns the programs that a configuration names, those for addresses
// too, and the names of its networks.
func pluginsOf(c *cni.ConfigResult) (plugins, names []string) {
	for _, n := range c.Networks {
		names = append(names, n.Config.Name)
		for _, p := range n.Config.Plugins {
			plugins = append(plugins, p.Network.Type)
			if p.Network.IPAM.Type != "" {
				plugins = append(plugins, p.Network.IPAM.Type)
			}
		}
	}
	return plugins, names
}

// configuration reads berth's own.
func (d *Doctor) configuration(context.Context) []Check {
	path := cmp.Or(d.Handlers, handler.DefaultPath)
	h, err := handler.Open(path)
	f := feature{"runtime handlers", "pods and containers of berth", "correct " + path, Missing}
	if err != nil {
		return []Check{f.by(err, "")}
	}
	return []Check{f.is(true, "%d, the default is %q", len(h.Config().Handlers), h.Config().DefaultHandler)}
}
