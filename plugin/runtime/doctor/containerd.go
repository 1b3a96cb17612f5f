// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/plugin/runtime/handler"
)

const (
	// oldestContainerd has the protocol that the shim speaks.
	oldestContainerd = "1.7"
	// oldestRestore can be told where a checkpoint is.
	oldestRestore = "2.1"
)

var errNoClient = errors.New("no connection to containerd")

func (d *Doctor) containerd(ctx context.Context) []Check {
	f := feature{"containerd", "everything", "start containerd, or name its socket (CONTAINERD_ADDRESS)", Missing}
	if d.Client == nil {
		return []Check{f.by(errNoClient, "")}
	}
	v, err := d.Client.Version(ctx)
	if err != nil {
		return []Check{f.by(err, "")}
	}
	version := strings.TrimPrefix(v.Version, "v")
	f.remedy = "install containerd " + oldestContainerd + " or newer"
	checks := []Check{
		f.is(atLeast(version, oldestContainerd), "version %s", version),
		feature{"restore of checkpoints", "berth container restore", "install containerd " + oldestRestore + " or newer", Warn}.
			is(atLeast(version, oldestRestore), "containerd %s", version),
	}
	for _, p := range []struct {
		kind, id, name, neededFor string
		without                   Status
	}{
		{"io.containerd.sandbox.controller.v1", "shim", "sandbox controller", "pods", Missing},
		{"io.containerd.snapshotter.v1", "overlayfs", "snapshotter", "file systems of containers", Warn},
		{"io.containerd.service.v1", "diff-service", "diff service", "checkpoints, commits", Warn},
	} {
		f := feature{p.name, p.neededFor, "do not disable the plugin " + p.kind + "." + p.id + " of containerd", p.without}
		checks = append(checks, f.by(d.plugin(ctx, p.kind, p.id), p.kind+"."+p.id))
	}
	return append(checks, d.shim(ctx))
}

// plugin returns why a plugin of containerd cannot be used.
func (d *Doctor) plugin(ctx context.Context, kind, id string) error {
	found, err := d.Client.IntrospectionService().Plugins(ctx, "type=="+kind+",id=="+id)
	if err != nil {
		return err
	}
	if len(found.Plugins) == 0 {
		return fmt.Errorf("containerd has no plugin %s.%s", kind, id)
	}
	if e := found.Plugins[0].InitErr; e != nil {
		return fmt.Errorf("%s.%s: %s", kind, id, e.Message)
	}
	return nil
}

// shim asks through containerd, which executes it: that it is found, runs, and
// finds its runtime.
func (d *Doctor) shim(ctx context.Context) Check {
	f := feature{"shim", "everything", "put containerd-shim-berth-v1 into containerd's PATH, or beside its program", Missing}
	info, err := d.Client.RuntimeInfo(ctx, handler.Shim, nil)
	if err != nil {
		return f.by(err, "")
	}
	return f.is(true, "%s %s", info.Name, info.Version.Version)
}

// criConfig is what matters of the configuration of containerd's CRI plugin.
type criConfig struct {
	Containerd struct {
		DefaultRuntimeName string `json:"defaultRuntimeName"`
		Runtimes           map[string]struct {
			Type                  string `json:"runtimeType"`
			Path                  string `json:"runtimePath"`
			Sandboxer             string `json:"sandboxer"`
			DisablePauseImagePull bool   `json:"disablePauseImagePull"`
		} `json:"runtimes"`
	} `json:"containerd"`
}

// cri looks at what the kubelet would get.
func (d *Doctor) cri(ctx context.Context) []Check {
	f := feature{"CRI handler", "pods of the kubelet", "add a handler of runtime_type " + handler.Shim + " to containerd's CRI plugin", Warn}
	config, err := d.criConfig(ctx)
	if err != nil {
		return []Check{f.by(err, "")}
	}
	pauseless := feature{"pods without pause", "pods of the kubelet without a pause container", `set sandboxer = "shim" and disable_pause_image_pull = true in the handler`, Warn}
	var ours, with []string
	for _, name := range slices.Sorted(maps.Keys(config.Containerd.Runtimes)) {
		r := config.Containerd.Runtimes[name]
		if r.Type != handler.Shim && !strings.HasPrefix(filepath.Base(r.Path), "containerd-shim-berth-") {
			continue
		}
		ours = append(ours, name)
		if r.Sandboxer == "shim" && r.DisablePauseImagePull {
			with = append(with, name)
		}
	}
	if len(ours) == 0 {
		return []Check{f.is(false, "no handler uses berth's shim")}
	}
	found := strings.Join(ours, ", ")
	if slices.Contains(ours, config.Containerd.DefaultRuntimeName) {
		found += "; the default is " + config.Containerd.DefaultRuntimeName
	}
	pause := "handlers: " + strings.Join(with, ", ")
	if len(with) == 0 {
		pause = "all handlers use pause containers"
	}
	return []Check{f.is(true, "handlers: %s", found), pauseless.is(len(with) > 0, "%s", pause)}
}

func (d *Doctor) criConfig(ctx context.Context) (*criConfig, error) {
	if d.Client == nil {
		return nil, errNoClient
	}
	conn, ok := d.Client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, errNoClient
	}
	r, err := cri.NewRuntimeServiceClient(conn).Status(ctx, &cri.StatusRequest{Verbose: true})
	if status.Code(err) == codes.Unimplemented {
		return nil, errors.New("containerd's CRI plugin is disabled")
	}
	if err != nil {
		return nil, err
	}
	var c criConfig
	if err := json.Unmarshal([]byte(r.Info["config"]), &c); err != nil {
		return nil, fmt.Errorf("configuration of containerd's CRI plugin: %w", err)
	}
	return &c, nil
}
