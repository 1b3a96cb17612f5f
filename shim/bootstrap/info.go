// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/options"
	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/runc"
	"github.com/berthd/berth/shim/wire"
)

// info answers what the runtime of the given options can do. There may be no
// bundle. A runtime that cannot tell its features has none.
func (h *Host) info() error {
	input, err := h.input()
	if err != nil {
		return err
	}
	info := wire.RuntimeInfo{Name: Name, Version: wire.RuntimeVersion{Version: h.Version}}
	if err := info.Options.Decode(input); err != nil {
		return fault.In("options on standard input", err)
	}
	o, err := options.Load(h.Settings, &info.Options)
	if err != nil {
		return err
	}
	p := plan.Plan{Bundle: "/"}
	o.Apply(&p)
	if p.Runtime, err = program(o.Program()); err != nil {
		return err
	}
	err = withRuntime(&p, func(r *runc.Runtime) error {
		features, err := r.Features()
		if err == nil && json.Valid(features) {
			info.Features = wire.Any{TypeURL: wire.FeaturesURL, Value: bytes.TrimSpace(features)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.answer(info.Append(nil))
}
