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
