// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/join"
)

const ownOOMScore = "/proc/self/oom_score_adj"

// tolerateOOMScore gives a container that wants a lower OOM score than the kernel
// lets this machine's containerd give the one that containerd has; the runtime
// would refuse to make it. Lowering takes CAP_SYS_RESOURCE, which a containerd in a
// container of its own has not. The kernel is asked by trying, on this process,
// whose score is set for the resident later.
func (inv *Invocation) tolerateOOMScore(s *spec) error {
	text, err := os.ReadFile(ownOOMScore)
	if err != nil {
		return nil // then let the runtime find out
	}
	text = bytes.TrimSpace(text)
	own, err := strconv.Atoi(string(text))
	want := s.Process.OOMScoreAdj
	if err != nil || want == nil || int(*want) >= own {
		return nil
	}
	err = os.WriteFile(ownOOMScore, strconv.AppendInt(nil, int64(*want), 10), 0)
	if err == nil {
		return os.WriteFile(ownOOMScore, text, 0)
	}
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return nil // no score at all: the runtime says it best
	}
	inv.note("debug", "oom_score_adj %d is %d: %v", *want, own, err)
	return setOOMScore(filepath.Join(inv.Bundle, "config.json"), text)
}

// setOOMScore changes that of the process in a config.json, and nothing else.
func setOOMScore(path string, score []byte) error {
	text, err := os.ReadFile(path)
	var config, process map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(text, &config)
	}
	if err == nil {
		err = json.Unmarshal(config["process"], &process)
	}
	if err == nil {
		process["oomScoreAdj"] = score
		config["process"], err = json.Marshal(process)
	}
	if err == nil {
		text, err = json.Marshal(config)
	}
	if err == nil {
		err = join.Replace(path, text)
	}
	if err != nil {
		return fault.Wrap(fault.Unknown, path, err)
	}
	return nil
}
