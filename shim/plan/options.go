// SPDX-License-Identifier: Apache-2.0

package plan

import "github.com/berthd/berth/shim/wire"

// Sum is the FNV-1a hash by which options are recognised. They come from
// containerd, which is trusted: no cryptographic hash is needed.
func Sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// Knows tells whether options are those that the plan was made with. containerd
// passes the same to `start` and to Create, so almost always they are; else
// runc.Options makes a plan with them. No options at Create leave the plan as
// it is.
func (p *Plan) Knows(a *wire.Any) bool {
	return a.TypeURL == "" || a.Is(p.OptionsType) && Sum(a.Value) == p.OptionsSum
}
