// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"path/filepath"
)

// Network describes a network of pods, a bridge, for CNI and returns the folder
// of the configuration. Both go with the surroundings: call EnterOffline before.
func Network() (conf string, err error) {
	if conf, err = os.MkdirTemp(base, "net"); err != nil {
		return "", err
	}
	// 198.18.0.0/15 is set aside for tests of networks (RFC 2544).
	text := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "berth", "plugins": [{
		"type": "bridge", "bridge": "pods", "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "198.19.255.0/24"}]]}}]}`, filepath.Join(conf, "ipam"))
	return conf, os.WriteFile(filepath.Join(conf, "10-berth.conflist"), []byte(text), 0o644)
}

// PodTOML is a containerd's configuration for pods in the network of conf: with the
// handlers stock, berth (without a pause container) and dropin.
func PodTOML(conf string) string {
	return fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[1]q

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[2]q]
    conf_dir = %[3]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "stock"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
    runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berth]
    runtime_type = "io.containerd.berth.v1"
    sandboxer = "shim"
    disable_pause_image_pull = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dropin]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = %[4]q
`, Pause, Deps("cni"), conf, DropIn.Binary())
}
