// SPDX-License-Identifier: Apache-2.0

// Package settings reads berth's configuration file: it knows which tables there are
// and says by key and line what is wrong with a document. What a table means is its
// owner's.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is berth's configuration.
const DefaultPath = "/etc/berth/berth.toml"

// tables are those of the file. Each is read by its owner and passed over by the
// others; a table that nobody reads is a mistake.
var tables = []string{"runtime", "network", "images", "snapshotter", "proxy"}

// Read decodes the file at path, DefaultPath if empty, as Decode does. A file that
// does not exist says nothing.
func Read(path string, document any, own ...string) error {
	if path == "" {
		path = DefaultPath
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err := Decode(text, document, own...); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Decode overlays a struct with the tables of a configuration that are its own: it
// has a field for each of them. Unknown keys there, unknown tables and malformed
// text are InvalidArgument, all of them in one error.
func Decode(text []byte, document any, own ...string) error {
	err := describe(toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(document), own)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// describe says by key and line what is wrong, nil if it is only others' tables.
func describe(err error, own []string) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var faults []error
		for i := range unknown.Errors {
			key := unknown.Errors[i].Key()
			if !slices.Contains(own, key[0]) && slices.Contains(tables, key[0]) {
				continue
			}
			line, _ := unknown.Errors[i].Position()
			faults = append(faults, fmt.Errorf("line %d: unknown key %s", line, strings.Join(key, ".")))
		}
		return errors.Join(faults...)
	}
	var malformed *toml.DecodeError
	if errors.As(err, &malformed) {
		line, _ := malformed.Position()
		return fmt.Errorf("line %d: %s: %s", line, strings.Join(malformed.Key(), "."), strings.TrimPrefix(malformed.Error(), "toml: "))
	}
	return err
}
