// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// dumpLimit is how long containerd may take to say its version or configuration: it
// reads files and starts nothing.
const dumpLimit = 20 * time.Second

// daemon is the containerd of a tree: a program, and a configuration that it would
// start with.
type daemon struct {
	program string // of this machine
	version version
	tree    tree
	config  string // the main file's path in the tree
}

// version is a program's, without what follows its second number.
type version struct{ major, minor int }

func (v version) atLeast(o version) bool {
	return v.major > o.major || v.major == o.major && v.minor >= o.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// ask runs containerd with arguments that have it print something.
func (d *daemon) ask(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dumpLimit)
	defer cancel()
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, d.program, args...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", d.program, strings.Join(args, " "), err, lastLine(problems.String()))
	}
	return out.String(), nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// findVersion asks the program. Its line is "containerd PACKAGE vMAJOR.MINOR.PATCH
// REVISION".
func (d *daemon) findVersion(ctx context.Context) error {
	line, err := d.ask(ctx, "--version")
	if err != nil {
		return err
	}
	found := regexp.MustCompile(`\sv?(\d+)\.(\d+)[.\-+\d]`).FindStringSubmatch(line)
	if found == nil {
		return fmt.Errorf("%s tells no version: %q", d.program, strings.TrimSpace(line))
	}
	_, err = fmt.Sscan(found[1]+" "+found[2], &d.version.major, &d.version.minor)
	return err
}

// document is one file of containerd's configuration, decoded.
type document struct {
	path   string // in the tree
	tables map[string]any
}

// imports are the patterns of files that containerd reads after a document, as paths
// of the tree.
func (d document) imports() []string {
	list, _ := d.tables["imports"].([]any)
	var patterns []string
	for _, each := range list {
		pattern, ok := each.(string)
		if !ok {
			continue // containerd says so
		}
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(d.path), pattern)
		}
		patterns = append(patterns, filepath.Clean(pattern))
	}
	return patterns
}

// documents are the files of the configuration in the order in which containerd
// reads them, with replaced in place of what is at these paths; nil for a path means
// that there is nothing.
func (d *daemon) documents(replaced map[string][]byte) ([]document, error) {
	var all []document
	seen := map[string]bool{}
	for pending := []string{d.config}; len(pending) > 0; pending = pending[1:] {
		path := pending[0]
		if seen[path] {
			continue
		}
		seen[path] = true
		text, err := d.read(path, replaced)
		if errors.Is(err, fs.ErrNotExist) && path == d.config {
			return nil, nil // containerd does without
		}
		if err != nil {
			return nil, err
		}
		doc := document{path: path}
		if err := toml.Unmarshal(text, &doc.tables); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", d.tree.at(path), errdefs.ErrInvalidArgument, err)
		}
		all = append(all, doc)
		for _, pattern := range doc.imports() {
			files, err := d.matches(pattern, replaced)
			if err != nil {
				return nil, fmt.Errorf("%s: import %s: %w", d.tree.at(path), pattern, err)
			}
			pending = append(pending, files...)
		}
	}
	return all, nil
}

func (d *daemon) read(path string, replaced map[string][]byte) ([]byte, error) {
	if text, ok := replaced[path]; ok {
		if text == nil {
			return nil, &fs.PathError{Op: "open", Path: d.tree.at(path), Err: fs.ErrNotExist}
		}
		return text, nil
	}
	return os.ReadFile(d.tree.at(path))
}

// matches returns the files that an import means, in order.
func (d *daemon) matches(pattern string, replaced map[string][]byte) ([]string, error) {
	if !strings.Contains(pattern, "*") { // as containerd has it
		return []string{pattern}, nil
	}
	names, err := filepath.Glob(d.tree.at(pattern))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, name := range names {
		path := filepath.Join("/", strings.TrimPrefix(name, strings.TrimSuffix(string(d.tree), "/")))
		if _, ok := replaced[path]; !ok {
			files = append(files, path)
		}
	}
	for path, text := range replaced {
		if ok, _ := filepath.Match(pattern, path); ok && text != nil {
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files, nil
}

// dump has containerd read documents and say what it makes of them.
func (d *daemon) dump(ctx context.Context, docs []document) (map[string]any, error) {
	dir, err := os.MkdirTemp("", "berth-install")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	main := filepath.Join(dir, "config.toml")
	var names []string
	for i := range docs {
		names = append(names, filepath.Join(dir, fmt.Sprintf("%d.toml", i)))
	}
	for i, doc := range docs {
		tables := map[string]any{}
		maps.Copy(tables, doc.tables)
		delete(tables, "imports")
		if i == 0 {
			names[0] = main
			tables["imports"] = names[1:]
		}
		text, err := toml.Marshal(tables)
		if err == nil {
			err = os.WriteFile(names[i], text, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doc.path, err)
		}
	}
	out, err := d.ask(ctx, "--config", main, "config", "dump")
	if err != nil {
		return nil, err
	}
	var dumped map[string]any
	if err := toml.Unmarshal([]byte(out), &dumped); err != nil {
		return nil, fmt.Errorf("%s config dump: %w", d.program, err)
	}
	delete(dumped, "imports") // ours
	return dumped, nil
}

// key is a place in a configuration: names of tables from the outside in.
type key []string

// Places in containerd's configuration of version 3 and 4.
var (
	runtimesKey   = key{"plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes"}
	defaultKey    = key{"plugins", "io.containerd.cri.v1.runtime", "containerd", "default_runtime_name"}
	verifiersKey  = key{"plugins", "io.containerd.image-verifier.v1.bindir", "bin_dir"}
	proxiesKey    = key{"proxy_plugins"}
	unpackKey     = key{"plugins", "io.containerd.transfer.v1.local", "unpack_config"}
	compiledInKey = key{"plugins", "io.containerd.snapshotter.v1.berth"}
	disabledKey   = key{"disabled_plugins"}
	// olderRuntimesKey is where a file of version 2 has handlers.
	olderRuntimesKey = key{"plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes"}
)

func (k key) with(more ...string) key { return append(slices.Clone(k), more...) }

// of returns the value at the key, nil if there is none.
func (k key) of(tables map[string]any) any {
	var value any = tables
	for _, name := range k {
		table, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = table[name]
	}
	return value
}

func (k key) text(tables map[string]any) string {
	s, _ := k.of(tables).(string)
	return s
}

// remove deletes the value at the key, and tables that have become empty.
func (k key) remove(tables map[string]any) {
	if len(k) > 1 {
		inner, ok := tables[k[0]].(map[string]any)
		if !ok {
			return
		}
		k[1:].remove(inner)
		if len(inner) > 0 {
			return
		}
	}
	delete(tables, k[0])
}

// compare checks what containerd makes of a configuration with the installation's
// files against what it made of it before: all that they say is there, and nothing
// else has changed. added are the tables that are new.
func compare(before, after map[string]any, files []document, added []key) error {
	for _, file := range files {
		for _, k := range added {
			want := k.of(file.tables)
			if want == nil {
				continue
			}
			if path := lost(want, k.of(after)); path != "" {
				return fmt.Errorf("containerd does not take %s%s of %s: %w", strings.Join(k, "."), path, file.path, errdefs.ErrFailedPrecondition)
			}
		}
	}
	for _, k := range added {
		k.remove(before)
		k.remove(after)
	}
	if path := changed(before, after, nil); path != nil {
		return fmt.Errorf("with berth's files, containerd's %s would change as well: %w", strings.Join(path, "."), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// lost returns the key of a value that is wanted and not there as it should be.
func lost(want, got any) string {
	if list, ok := want.([]any); ok {
		there, _ := got.([]any)
		for i, value := range list {
			if i >= len(there) {
				return fmt.Sprintf("[%d]", i)
			}
			if path := lost(value, there[i]); path != "" {
				return fmt.Sprintf("[%d]%s", i, path)
			}
		}
		return ""
	}
	table, ok := want.(map[string]any)
	if !ok {
		if reflect.DeepEqual(want, got) {
			return ""
		}
		return " = " + fmt.Sprint(want)
	}
	there, _ := got.(map[string]any)
	for name, value := range table {
		if path := lost(value, there[name]); path != "" {
			return "." + name + path
		}
	}
	return ""
}

// changed returns the key at which two configurations differ, nil if nowhere.
func changed(a, b any, at key) key {
	left, ok := a.(map[string]any)
	right, also := b.(map[string]any)
	if !ok || !also {
		if reflect.DeepEqual(a, b) {
			return nil
		}
		return at.with()
	}
	for name := range left {
		if path := changed(left[name], right[name], at.with(name)); path != nil {
			return path
		}
	}
	for name := range right {
		if _, ok := left[name]; !ok {
			return at.with(name)
		}
	}
	return nil
}
