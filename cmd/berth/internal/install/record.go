// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// recordPath says what was installed, and backupDir has what was there before, in
	// files named by their digests.
	recordPath = "/var/lib/berth/install.json"
	backupDir  = "/var/lib/berth/install"
	// recordVersion changes with the meaning of the record's fields.
	recordVersion = 1
)

// phase is how far an installation has come.
type phase string

const (
	installing   phase = "installing"
	installed    phase = "installed"
	uninstalling phase = "uninstalling"
)

// record is what install has done to a tree. It is written before anything is done,
// so that whatever a kill leaves is undone by it, or done again.
type record struct {
	Version int   `json:"version"`
	Phase   phase `json:"phase"`
	// Directories were made by install, outermost first.
	Directories []string `json:"directories,omitempty"`
	Entries     []entry  `json:"entries"`
}

// entry is a path of which install has the say.
type entry struct {
	Path string `json:"path"`
	What string `json:"what"`
	// Before is what was there before the first installation, After what is there
	// now, Former what an installation that was cut short was to replace.
	Before state  `json:"before,omitzero"`
	After  state  `json:"after"`
	Former *state `json:"former,omitempty"`
	// Serves is the folder whose files are read because of this one.
	Serves string `json:"serves,omitempty"`
}

// owns tells whether install has put there what is there, or may still do so.
func (e entry) owns(current state) bool {
	return current.same(e.After) || current.same(e.Before) || e.Former != nil && current.same(*e.Former)
}

func (r *record) entry(path string) *entry {
	i := slices.IndexFunc(r.Entries, func(e entry) bool { return e.Path == path })
	if i < 0 {
		return nil
	}
	return &r.Entries[i]
}

// program returns the entry of a program or of a link to it, nil if it was not
// installed.
func (r *record) program(name string) *entry {
	i := slices.IndexFunc(r.Entries, func(e entry) bool { return filepath.Base(e.Path) == name })
	if i < 0 {
		return nil
	}
	return &r.Entries[i]
}

// load reads the record; there is none, nil, where nothing is installed.
func (t tree) load() (*record, error) {
	name := t.at(recordPath)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, errdefs.ErrDataLoss, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s is of version %d, and this berth knows %d: %w", name, r.Version, recordVersion, errdefs.ErrFailedPrecondition)
	}
	return &r, nil
}

func (t tree) save(r *record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return t.put(item{path: recordPath, data: append(text, '\n'), mode: 0o600})
}

// backup keeps the content of a file that is to be replaced.
func (t tree) backup(path string, s state) error {
	if s.Digest == "" {
		return nil
	}
	kept := filepath.Join(backupDir, s.Digest)
	if there, err := t.look(kept); err != nil || there.same(s) {
		return err
	}
	return t.put(item{path: kept, source: t.at(path), mode: 0o600})
}

func (t tree) backupOf(s state) string { return t.at(filepath.Join(backupDir, s.Digest)) }

// lock keeps others from installing or uninstalling in the tree at a time, until the
// file that it returns is closed. The record's folder has to be there.
func (t tree) lock() (*os.File, error) {
	dir, err := os.Open(t.at(filepath.Dir(recordPath)))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another installation is under way: %w", dir.Name(), errdefs.ErrUnavailable), dir.Close())
	}
	return dir, nil
}

// set replaces the entry of a path, or adds one.
func (r *record) set(e entry) {
	if old := r.entry(e.Path); old != nil {
		*old = e
		return
	}
	r.Entries = append(r.Entries, e)
}

// directory notes that a folder was made by install, after those that it is in.
func (r *record) directory(path string) {
	if !slices.Contains(r.Directories, path) {
		r.Directories = append(r.Directories, path)
	}
}

func (r *record) clone() *record {
	c := *r
	c.Directories, c.Entries = slices.Clone(r.Directories), slices.Clone(r.Entries)
	return &c
}
