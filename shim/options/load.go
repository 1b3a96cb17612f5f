// SPDX-License-Identifier: Apache-2.0

package options

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/wire"
)

// Load returns the defaults, overlaid by hostFile, which need not exist,
// overlaid by what a caller passed in a. Faults are InvalidArgument and name the
// file or type they are in. A type that is not known is one.
func Load(hostFile string, a *wire.Any) (*Options, error) {
	o := Default()
	b, err := os.ReadFile(hostFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.FailedPrecondition, "host settings", err)
	}
	if err := o.decode(hostFile, b); err != nil {
		return nil, err
	}
	if err := o.overlay(a); err != nil {
		return nil, err
	}
	return o, o.Validate()
}

// Known tells whether options of a's type are understood.
func Known(a *wire.Any) bool {
	return a.Is(wire.OptionsURL) || a.Is(wire.RuntimeOptionsURL)
}

func (o *Options) overlay(a *wire.Any) error {
	switch {
	case a.TypeURL == "" && len(a.Value) == 0:
		return nil
	case a.Is(wire.OptionsURL):
		var r wire.Options
		if err := r.Decode(a.Value); err != nil {
			return fault.In("runtime options of type "+wire.OptionsURL, err)
		}
		o.overlayRunc(&r)
		return nil
	case a.Is(wire.RuntimeOptionsURL):
		var r wire.RuntimeOptions
		if err := r.Decode(a.Value); err != nil {
			return fault.In("runtime options of type "+wire.RuntimeOptionsURL, err)
		}
		return o.overlayFile(&r)
	}
	return fault.New(fault.InvalidArgument, fmt.Sprintf("runtime options of unknown type %q", a.TypeURL))
}

// overlayRunc takes what is set in r. A zero there says nothing.
func (o *Options) overlayRunc(r *wire.Options) {
	set(&o.Runtime, r.BinaryName)
	if r.BinaryName != "" {
		o.PlatformRuntimePaths = nil // the caller's choice is the more precise one
	}
	set(&o.Root, r.Root)
	set(&o.SystemdCgroup, r.SystemdCgroup)
	set(&o.NoPivotRoot, r.NoPivotRoot)
	set(&o.NoNewKeyring, r.NoNewKeyring)
	set(&o.ShimCgroup, r.ShimCgroup)
	set(&o.IoUID, r.IoUID)
	set(&o.IoGID, r.IoGID)
	set(&o.CriuImagePath, r.CriuImagePath)
	set(&o.CriuWorkPath, r.CriuWorkPath)
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

// overlayFile takes the TOML that r names or, without a path, holds.
func (o *Options) overlayFile(r *wire.RuntimeOptions) error {
	if r.ConfigPath == "" {
		return o.decode("config_body", r.ConfigBody)
	}
	if !filepath.IsAbs(r.ConfigPath) {
		return fault.New(fault.InvalidArgument, fmt.Sprintf("config_path %q is not an absolute path", r.ConfigPath))
	}
	b, err := os.ReadFile(r.ConfigPath)
	if err != nil {
		return fault.Wrap(fault.InvalidArgument, "config_path", err)
	}
	return o.decode(r.ConfigPath, b)
}

// runcNames are the keys of a containerd options table for runc's shim whose
// names are not ours but for case. So a table survives the change of the
// runtime's name.
type runcNames struct {
	BinaryName    *string
	SystemdCgroup *bool
	NoPivotRoot   *bool
	NoNewKeyring  *bool
	ShimCgroup    *string
	IoUID         *uint32 `toml:"IoUid"`
	IoGID         *uint32 `toml:"IoGid"`
	CriuImagePath *string
	CriuWorkPath  *string
	// Deprecated in containerd and without meaning here.
	TaskAPIAddress any `toml:"TaskApiAddress"`
	TaskAPIVersion any `toml:"TaskApiVersion"`
}

func (n *runcNames) overlay(o *Options) {
	take(&o.Runtime, n.BinaryName)
	take(&o.SystemdCgroup, n.SystemdCgroup)
	take(&o.NoPivotRoot, n.NoPivotRoot)
	take(&o.NoNewKeyring, n.NoNewKeyring)
	take(&o.ShimCgroup, n.ShimCgroup)
	take(&o.IoUID, n.IoUID)
	take(&o.IoGID, n.IoGID)
	take(&o.CriuImagePath, n.CriuImagePath)
	take(&o.CriuWorkPath, n.CriuWorkPath)
}

func take[T any](dst, v *T) {
	if v != nil {
		*dst = *v
	}
}

// decode overlays o with the TOML in b, which is from where.
func (o *Options) decode(where string, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var names runcNames
	target := struct {
		*Options
		*runcNames
	}{o, &names}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(&target); err != nil {
		return fault.New(fault.InvalidArgument, where+": "+describe(err))
	}
	names.overlay(o)
	return nil
}

// describe says on one line what is wrong with a TOML document, by key and line.
func describe(err error) string {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		keys := make([]string, len(unknown.Errors))
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			line, _ := e.Position()
			keys[i] = fmt.Sprintf("%s (line %d)", strings.Join(e.Key(), "."), line)
		}
		return "unknown key " + strings.Join(keys, ", ")
	}
	var malformed *toml.DecodeError
	if errors.As(err, &malformed) {
		line, _ := malformed.Position()
		text := strings.TrimPrefix(malformed.Error(), "toml: ")
		if key := strings.Join(malformed.Key(), "."); key != "" {
			text = key + ": " + text
		}
		return fmt.Sprintf("line %d: %s", line, text)
	}
	return err.Error()
}
