// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

// shot is everything in a tree: modes, owners and times of files, contents.
func shot(t *testing.T, root tree) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(string(root), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path := "/" + strings.TrimPrefix(strings.TrimPrefix(name, string(root)), "/")
		if d.IsDir() {
			all[path] = "folder"
			return nil
		}
		s, err := root.look(path)
		all[path] = fmt.Sprintf("%s %s %v %d:%d %d", s.Digest, s.Target, s.Mode, s.UID, s.GID, s.Modified.UnixNano())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// furnished is a tree with a file that an installation replaces, and one that it
// leaves alone.
func furnished(t *testing.T) tree {
	t.Helper()
	root := tree(t.TempDir())
	for path, text := range map[string]string{"/etc/there.toml": "of somebody", "/etc/other": "other"} {
		if err := os.MkdirAll(root.at("/etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root.at(path), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		old := time.Unix(1234567890, 123456789)
		if err := os.Chtimes(root.at(path), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// edition is what an installation consists of.
func edition(text string) []item {
	return []item{
		{path: "/usr/bin/program", what: "program", data: []byte("program " + text), mode: 0o755},
		{path: "/etc/there.toml", what: "configuration", data: []byte(text), mode: 0o644},
		{path: "/opt/bin/link", what: "link", target: "../../usr/bin/program"},
	}
}

// killed is what an installation ends with in the middle.
type killed struct{}

// run installs, and is killed after a number of steps. It returns whether it was.
func run(t *testing.T, root tree, items []item, steps int) (wasKilled bool) {
	t.Helper()
	defer func() {
		if e := recover(); e != nil {
			if _, ok := e.(killed); !ok {
				panic(e)
			}
			wasKilled = true
		}
	}()
	r := load(t, root)
	changes, _, err := root.changes(items, r, false)
	if err != nil {
		t.Fatal(err)
	}
	made, err := root.missing(recordPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range made {
		if err := root.makeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.apply(r, made, changes, func(change) {
		if steps--; steps < 0 {
			panic(killed{})
		}
	}); err != nil {
		t.Fatal(err)
	}
	return false
}

func load(t *testing.T, root tree) *record {
	t.Helper()
	r, err := root.load()
	if err != nil {
		t.Fatal(err)
	}
	if r == nil {
		r = &record{Version: recordVersion}
	}
	return r
}

func remove(t *testing.T, root tree, force bool) {
	t.Helper()
	r := load(t, root)
	if len(r.Entries) == 0 {
		return
	}
	undos, err := root.undos(r, force)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.undo(r, undos, func(undo) {}); err != nil {
		t.Fatal(err)
	}
}

// Whatever a kill leaves, of a first installation or a later one, is finished by the
// next and undone by a removal, which itself may be killed.
func TestKilled(t *testing.T) {
	for steps := range len(edition("")) + 1 {
		for _, first := range []bool{true, false} {
			for _, finish := range []bool{true, false} {
				root := furnished(t)
				before := shot(t, root)
				if !first {
					run(t, root, edition("one"), 99)
				}
				run(t, root, edition("two"), steps)
				if err := os.WriteFile(root.at(draft("/etc/there.toml")), []byte("half"), 0o600); err != nil { // of a kill within a step
					t.Fatal(err)
				}
				if finish {
					run(t, root, edition("two"), 99)
					for _, i := range edition("two") {
						want, _ := i.state()
						if got, err := root.look(i.path); err != nil || !got.same(want) || got.Mode != want.Mode && i.target == "" {
							t.Errorf("%s is %+v, %v", i.path, got, err)
						}
					}
					if r := load(t, root); r.Phase != installed || len(r.Entries) != 3 {
						t.Errorf("record: %+v", r)
					}
				}
				func() {
					defer func() { _ = recover() }()
					r := load(t, root)
					undos, err := root.undos(r, false)
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					_, _ = root.undo(r, undos, func(undo) {
						if n++; n > steps {
							panic(killed{})
						}
					})
				}()
				remove(t, root, false)
				if diff := cmp.Diff(before, shot(t, root)); diff != "" {
					t.Errorf("%d steps, first %t, finished %t: %s", steps, first, finish, diff)
				}
			}
		}
	}
}

// A step that fails undoes those before it.
func TestFailure(t *testing.T) {
	for _, first := range []bool{true, false} {
		root := furnished(t)
		items := edition("two")
		items[2].target = strings.Repeat("x", 5000) // no such link can be
		if !first {
			run(t, root, edition("one"), 99)
		}
		before := shot(t, root)
		r := load(t, root)
		made, err := root.missing(recordPath)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range made {
			if err := root.makeDir(dir); err != nil {
				t.Fatal(err)
			}
		}
		changes, _, err := root.changes(items, r, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := root.apply(r, made, changes, func(change) {}); err == nil || !strings.Contains(err.Error(), "/opt/bin/link") {
			t.Errorf("error %v does not name the file", err)
		}
		after := shot(t, root)
		for _, all := range []map[string]string{before, after} { // files of ours get new times
			maps.DeleteFunc(all, func(path, _ string) bool { return !first && path != "/etc/other" })
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("first %t: %s", first, diff)
		}
		if !first {
			for _, i := range edition("one") {
				want, _ := i.state()
				if got, err := root.look(i.path); err != nil || !got.same(want) {
					t.Errorf("%s is %+v, %v", i.path, got, err)
				}
			}
		}
	}
}

// What somebody has changed is neither updated nor taken away, unless forced.
func TestChanged(t *testing.T) {
	root := furnished(t)
	before := shot(t, root)
	run(t, root, edition("one"), 99)
	if err := os.WriteFile(root.at("/etc/there.toml"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := load(t, root)
	_, _, err := root.changes(edition("two"), r, false)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), root.at("/etc/there.toml")+" was changed") {
		t.Errorf("update: %v", err)
	}
	found, err := root.obstacles(r, "")
	if err != nil || len(found) != 1 || !strings.Contains(found[0].Error(), "/etc/there.toml was changed") {
		t.Errorf("removal: %v, %v", found, err)
	}
	remove(t, root, true)
	if diff := cmp.Diff(before, shot(t, root)); diff != "" {
		t.Error(diff)
	}
}

// A main configuration that was made for ours stays if there are others' files.
func TestServes(t *testing.T) {
	root := furnished(t)
	items := []item{{path: "/etc/c/config.toml", data: []byte("imports"), mode: 0o644}, {path: "/etc/c/conf.d/berth.toml", data: []byte("x"), mode: 0o644}}
	r := load(t, root)
	changes, _, err := root.changes(items, r, false)
	if err != nil {
		t.Fatal(err)
	}
	changes[0].entry.Serves = "/etc/c/conf.d"
	made, err := root.missing(recordPath)
	for _, dir := range made {
		err = errors.Join(err, root.makeDir(dir))
	}
	if err := errors.Join(err, root.apply(r, made, changes, func(change) {})); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root.at("/etc/c/conf.d/x.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	remove(t, root, false)
	for path, want := range map[string]bool{"/etc/c/config.toml": true, "/etc/c/conf.d/x.toml": true, "/etc/c/conf.d/berth.toml": false, recordPath: false} {
		if got, err := root.look(path); err != nil || got.absent() == want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
}

// Files of containerd's configuration are read in its order, each once, and those of
// the installation are seen as if they were there.
func TestDocuments(t *testing.T) {
	root := tree(t.TempDir())
	for path, text := range map[string]string{
		"/etc/c/config.toml":   "imports = ['conf.d/*.toml', '/opt/one.toml', 'config.toml']",
		"/etc/c/conf.d/b.toml": "imports = ['../two.toml']",
		"/etc/c/conf.d/a.toml": "",
		"/etc/c/two.toml":      "",
		"/opt/one.toml":        "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(root.at(path)), 0o755), os.WriteFile(root.at(path), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	d := &daemon{tree: root, config: "/etc/c/config.toml"}
	for _, c := range []struct {
		name     string
		replaced map[string][]byte
		want     string
	}{
		{"as is", nil, "/etc/c/config.toml /etc/c/conf.d/a.toml /etc/c/conf.d/b.toml /opt/one.toml /etc/c/two.toml"},
		{
			"more and less",
			map[string][]byte{"/etc/c/conf.d/b.toml": nil, "/etc/c/conf.d/c.toml": {}, "/etc/c/elsewhere.toml": {}},
			"/etc/c/config.toml /etc/c/conf.d/a.toml /etc/c/conf.d/c.toml /opt/one.toml",
		},
		{"nothing", map[string][]byte{"/etc/c/config.toml": nil}, ""},
	} {
		docs, err := d.documents(c.replaced)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, doc := range docs {
			got = append(got, doc.path)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
	if _, err := d.documents(map[string][]byte{"/opt/one.toml": nil}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), root.at("/opt/one.toml")) {
		t.Errorf("a file that is missing: %v", err)
	}
	if _, err := d.documents(map[string][]byte{"/opt/one.toml": []byte("[x")}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), root.at("/opt/one.toml")) {
		t.Errorf("a file that is no TOML: %v", err)
	}
}

func TestCompare(t *testing.T) {
	added := key{"a", "b"}
	for _, c := range []struct{ name, before, after, want string }{
		{"as it should be", "[a]\nx=1", "[a]\nx=1\n[a.b]\ny='z'\nmore=1", ""},
		{"first of its table", "x=1", "x=1\n[a.b]\ny='z'", ""},
		{"not taken", "x=1", "x=1\n[a.b]\nother=1", "containerd does not take a.b.y = z of /f"},
		{"another value", "x=1", "x=1\n[a.b]\ny='q'", "containerd does not take a.b.y = z of /f"},
		{"list", "x=1", "x=1\n[[a.b.l]]\nm=1\nn=2", "containerd does not take a.b.y"},
		{"changed", "[a]\nx=1", "[a]\nx=2\n[a.b]\ny='z'", "containerd's a.x would change"},
		{"lost", "[a]\nx=1\n[c]\nd=1", "[a]\nx=1\n[a.b]\ny='z'", "containerd's c would change"},
		{"new", "[a]\nx=1", "n=1\n[a]\nx=1\n[a.b]\ny='z'", "containerd's n would change"},
	} {
		file := document{path: "/f", tables: tables(t, "[a.b]\ny='z'")}
		err := compare(tables(t, c.before), tables(t, c.after), []document{file}, []key{added})
		if c.want == "" && err != nil || c.want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func tables(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := toml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRecordOfOthers(t *testing.T) {
	for text, class := range map[string]func(error) bool{"{": errdefs.IsDataLoss, `{"version": 9}`: errdefs.IsFailedPrecondition} {
		root := tree(t.TempDir())
		if err := errors.Join(os.MkdirAll(root.at("/var/lib/berth"), 0o755), os.WriteFile(root.at(recordPath), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := root.load(); !class(err) || !strings.Contains(err.Error(), root.at(recordPath)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Lists of what is unpacked replace each other, so ours repeats the one before.
func TestUnpacking(t *testing.T) {
	section := tables(t, "[proxy_plugins.berth]\nplatform = 'linux/amd64'")
	for _, c := range []struct{ name, before, want string }{
		{"by default", "", "linux/amd64 overlayfs, linux(+erofs)/amd64 erofs, linux/amd64 berth"},
		{"of somebody", "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'p'\nsnapshotter = 's'", "p s, linux/amd64 berth"},
	} {
		text, err := unpacking(tables(t, c.before), section)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		list, _ := unpackKey.of(tables(t, text)).([]any)
		for _, each := range list {
			got = append(got, key{"platform"}.text(each.(map[string]any))+" "+key{"snapshotter"}.text(each.(map[string]any)))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
	if text, err := unpacking(nil, tables(t, "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'p'")); text != "" || err != nil {
		t.Errorf("a section with a list: %q, %v", text, err)
	}
}
