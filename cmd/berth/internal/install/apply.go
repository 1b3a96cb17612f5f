// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
)

// change is what happens to a path.
type change struct {
	item    item
	current state
	entry   entry // as it will be recorded
	verb    string
}

// changes compares a plan with what is there. What somebody changed since it was
// installed is refused, unless force is set.
func (t tree) changes(items []item, r *record, force bool) (all []change, unchanged []item, err error) {
	var refused []error
	for _, i := range items {
		current, err := t.look(i.path)
		if err != nil {
			return nil, nil, err
		}
		after, err := i.state()
		if err != nil {
			return nil, nil, err
		}
		c := change{item: i, current: current, verb: "install", entry: entry{Path: i.path, What: i.what, Before: current, After: after}}
		if !current.absent() {
			c.verb = "replace"
		}
		if e := r.entry(i.path); e != nil {
			if !e.owns(current) && !force {
				refused = append(refused, fmt.Errorf("%s was changed since berth put it there", t.at(i.path)))
			}
			c.entry.Before, c.entry.Serves = e.Before, e.Serves
			if !current.absent() {
				c.verb, c.entry.Former = "update", &current
			}
		}
		if current.same(after) {
			unchanged = append(unchanged, i)
			continue
		}
		all = append(all, c)
	}
	if err := errors.Join(refused...); err != nil {
		return nil, nil, fmt.Errorf("%w: %w; --force puts berth's in their place", errdefs.ErrFailedPrecondition, err)
	}
	return all, unchanged, nil
}

// apply makes changes and records them: before, so that a kill loses nothing that was
// there, and after. When one fails those before it are undone.
func (t tree) apply(r *record, made []string, changes []change, done func(change)) (err error) {
	former := r.clone()
	r.Phase = installing
	for _, dir := range made {
		r.directory(dir)
	}
	for _, c := range changes {
		dirs, err := t.missing(c.item.path)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			r.directory(dir)
		}
		r.set(c.entry)
	}
	r.directory(backupDir)
	if err := t.save(r); err != nil {
		return errors.Join(err, t.forget(former, r))
	}
	if err := t.makeDir(backupDir); err != nil {
		return errors.Join(err, t.forget(former, r))
	}
	for i, c := range changes {
		err := t.backup(c.item.path, c.current)
		for _, dir := range r.Directories {
			if err == nil && within(c.item.path, dir) {
				err = t.makeDir(dir)
			}
		}
		if err == nil {
			err = t.put(c.item)
		}
		if err != nil {
			return errors.Join(err, t.revert(changes[:i]), t.forget(former, r))
		}
		done(c)
	}
	r.Phase = installed
	for i := range r.Entries {
		r.Entries[i].Former = nil
	}
	return errors.Join(t.save(r), t.sweep(r))
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// makeDir makes one folder, whose parent is there.
func (t tree) makeDir(path string) error {
	err := os.Mkdir(t.at(path), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(t.at(path)))
}

// revert undoes changes of an installation that failed.
func (t tree) revert(changes []change) error {
	var errs []error
	for _, c := range slices.Backward(changes) {
		errs = append(errs, t.restore(c.item.path, c.current, t.backupOf(c.current)))
	}
	return errors.Join(errs...)
}

// forget puts the record back to what it was, with folders that were made since.
func (t tree) forget(former, r *record) error {
	if len(former.Entries) > 0 {
		former.Directories = r.Directories
		return errors.Join(t.save(former), t.sweep(former))
	}
	_, err := t.clear(r)
	return err
}

// sweep removes copies that nobody needs any more.
func (t tree) sweep(r *record) error {
	files, err := os.ReadDir(t.at(backupDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, f := range files {
		if !slices.ContainsFunc(r.Entries, func(e entry) bool { return e.Before.Digest == f.Name() }) {
			errs = append(errs, os.Remove(filepath.Join(t.at(backupDir), f.Name())))
		}
	}
	return errors.Join(errs...)
}

// clear removes the copies, the folders that were made, and the record, which goes
// before its own folders only. It returns those that stay because something else is
// in them.
func (t tree) clear(r *record) (kept []string, err error) {
	errs := []error{t.sweep(&record{})}
	removeDir := func(dir string) {
		err := os.Remove(t.at(dir))
		if files, readErr := os.ReadDir(t.at(dir)); readErr == nil && len(files) > 0 {
			kept = append(kept, dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	var last []string
	for _, dir := range slices.Backward(r.Directories) {
		if within(recordPath, dir) {
			last = append(last, dir)
		} else {
			removeDir(dir)
		}
	}
	errs = append(errs, t.remove(draft(recordPath)), t.remove(recordPath))
	for _, dir := range last {
		removeDir(dir)
	}
	return kept, errors.Join(errs...)
}

func (t tree) remove(path string) error {
	if err := os.Remove(t.at(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// obstacles are reasons not to uninstall. The program at stopped ends before, if it
// runs.
func (t tree) obstacles(r *record, stopped string) ([]error, error) {
	var found []error
	for _, e := range r.Entries {
		current, err := t.look(e.Path)
		if err != nil {
			return nil, err
		}
		if !e.owns(current) {
			found = append(found, fmt.Errorf("%s was changed since berth put it there", t.at(e.Path)))
		}
		if current.same(e.Before) || e.Path == stopped {
			continue
		}
		if users := processesOf(t.at(e.Path)); len(users) > 0 {
			found = append(found, fmt.Errorf("%s runs for %s", t.at(e.Path), some(users)))
		}
	}
	return found, nil
}

// some names the first few processes.
func some(users []running) string {
	const few = 5
	text := ""
	for i, u := range users {
		switch {
		case i == few:
			return fmt.Sprintf("%s and %d more", text, len(users)-few)
		case i > 0:
			text += ", "
		}
		text += u.String()
	}
	return text
}

// undo is what happens to a path when it is uninstalled.
type undo struct {
	entry entry
	verb  string // "remove", "restore"; or empty: it stays
	why   string
}

// undos are in the order in which they should be done.
func (t tree) undos(r *record, force bool) ([]undo, error) {
	var all []undo
	for _, e := range slices.Backward(r.Entries) {
		current, err := t.look(e.Path)
		if err != nil {
			return nil, err
		}
		u := undo{entry: e, verb: "restore"}
		if e.Before.absent() {
			u.verb = "remove"
		}
		others, err := t.others(r, e.Serves)
		if err != nil {
			return nil, err
		}
		switch {
		case current.same(e.Before):
			u.verb, u.why = "", "it is as it was before"
		case others != "" && !force:
			u.verb, u.why = "", "containerd reads "+others+" because of it"
		}
		all = append(all, u)
	}
	return all, nil
}

// others returns a file of a folder that containerd imports and that is not
// installed by berth, or "".
func (t tree) others(r *record, folder string) (string, error) {
	if folder == "" {
		return "", nil
	}
	names, err := filepath.Glob(filepath.Join(t.at(folder), "*.toml"))
	for _, name := range names {
		path := filepath.Join(folder, filepath.Base(name))
		if r.entry(path) == nil {
			return path, err
		}
	}
	return "", err
}

// undo undoes an installation, and returns the folders that stay. What it was killed
// in it does when it is called again.
func (t tree) undo(r *record, undos []undo, done func(undo)) (kept []string, err error) {
	r.Phase = uninstalling
	if err := t.save(r); err != nil {
		return nil, err
	}
	for _, u := range undos {
		if err := t.remove(draft(u.entry.Path)); err != nil {
			return nil, err
		}
		if u.verb != "" {
			if err := t.restore(u.entry.Path, u.entry.Before, t.backupOf(u.entry.Before)); err != nil {
				return nil, err
			}
		}
		done(u)
	}
	return t.clear(r)
}
