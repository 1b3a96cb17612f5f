// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/mountinfo"
	"github.com/berthd/berth/shim/wire"
)

// TestMain runs the tests in a mount namespace of their own, so that nothing they
// leave is seen outside.
func TestMain(m *testing.M) {
	const inside = "BERTH_ROOTFS_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	// A folder of their own too: others' mounts end here when their folders go.
	dir, err := os.MkdirTemp("", "rootfs")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1", "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	err = cmd.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace (needs root):", err)
		os.Exit(1)
	}
}

// counts are what a test may not leave more of.
type counts struct{ mounts, files, children, loops int }

func count(t *testing.T) counts {
	t.Helper()
	var c counts
	mine := []byte(os.TempDir() + "/")
	err := mountinfo.Each(mountinfo.Self, func(m *mountinfo.Mount) bool {
		if bytes.HasPrefix(m.Point, mine) {
			c.mounts++
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	c.files = len(files)
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range children {
		text, err := os.ReadFile(file)
		if err == nil { // threads come and go
			c.children += len(strings.Fields(string(text)))
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	for _, file := range loops {
		text, _ := os.ReadFile(file)
		if strings.HasPrefix(string(text), os.TempDir()+"/"+test) {
			c.loops++
		}
	}
	return c
}

// newTarget makes a bundle's rootfs directory. When the test ends, it is unmounted
// and everything is as before.
func newTarget(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	before := count(t)
	target := filepath.Join(dir, "rootfs")
	mkdir(t, target)
	t.Cleanup(func() {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
		// A loop device lets go of its file a moment after the last user.
		var after counts
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if after = count(t); after == before {
				break
			}
		}
		if after != before {
			t.Errorf("left behind: %+v, before %+v", after, before)
		}
		if _, err := os.Stat(mappedDir(target)); err == nil {
			t.Error("place of mapped layers left behind")
		}
	})
	return target
}

func mkdir(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// layer makes a directory with one file, which holds its own name.
func layer(t *testing.T, dir, file string) string {
	t.Helper()
	mkdir(t, dir)
	if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func mountOK(t *testing.T, target string, ms ...wire.Mount) {
	t.Helper()
	if err := Mount(ms, target, -1); err != nil {
		t.Fatal(err)
	}
}

// flags returns the mount flags that statfs tells of.
func flags(t *testing.T, path string) uintptr {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return uintptr(st.Flags) & (unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
}

func TestBind(t *testing.T) {
	for name, c := range map[string]struct {
		typ     string
		options []string
		want    uintptr // flags, beyond those of the source
		nested  bool
	}{
		"plain":             {"bind", []string{"bind"}, 0, false},
		"by type alone":     {"bind", nil, 0, false},
		"read-only":         {"bind", []string{"rbind", "ro"}, unix.MS_RDONLY, true},
		"recursive":         {"bind", []string{"rbind", "rw"}, 0, true},
		"flags":             {"bind", []string{"bind", "nosuid", "nodev", "noexec"}, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, false},
		"contradicting":     {"bind", []string{"bind", "ro", "rw", "defaults"}, 0, false},
		"with propagation":  {"bind", []string{"rbind", "rslave", "ro"}, unix.MS_RDONLY, true},
		"no type":           {"", []string{"rbind", "rprivate"}, 0, true},
		"relatime, noatime": {"bind", []string{"bind", "noatime"}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			target := newTarget(t)
			source := layer(t, filepath.Join(filepath.Dir(target), "source"), "file")
			mkdir(t, filepath.Join(source, "sub"))
			if err := unix.Mount("tmpfs", filepath.Join(source, "sub"), "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(filepath.Join(source, "sub"), unix.MNT_DETACH)
			layer(t, filepath.Join(source, "sub"), "nested")
			before := flags(t, source)
			mountOK(t, target, wire.Mount{Type: c.typ, Source: source, Options: c.options})
			if !exists(filepath.Join(target, "file")) {
				t.Error("source is not seen")
			}
			if got := flags(t, target); got != before|c.want {
				t.Errorf("flags %#x, want %#x", got, before|c.want)
			}
			if got := exists(filepath.Join(target, "sub/nested")); got != c.nested {
				t.Errorf("mount below the source: seen is %t", got)
			}
		})
	}
}

// A bind mount with options keeps what its source forbids.
func TestBindKeepsFlags(t *testing.T) {
	target := newTarget(t)
	source := filepath.Join(filepath.Dir(target), "source")
	mkdir(t, source)
	if err := unix.Mount("tmpfs", source, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(source, unix.MNT_DETACH)
	mountOK(t, target, wire.Mount{Type: "bind", Source: source, Options: []string{"bind", "ro", "dev"}})
	if got, want := flags(t, target), uintptr(unix.MS_RDONLY|unix.MS_NOSUID); got != want {
		t.Errorf("flags %#x, want %#x", got, want)
	}
}

// scratch is a directory on a file system of its own, where overlays and id-mapped
// mounts work whatever the temporary directory is.
func scratch(t *testing.T, target string) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(target), "scratch")
	mkdir(t, dir)
	image := filepath.Join(filepath.Dir(target), "scratch.ext4")
	makeImage(t, image)
	mountOK(t, dir, wire.Mount{Type: "ext4", Source: image, Options: []string{"loop"}})
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func makeImage(t *testing.T, image string) {
	t.Helper()
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(32 << 20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/mkfs.ext4", "-q", "-N", "4096", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4 (package e2fsprogs): %v: %s", err, out)
	}
}

func TestOverlay(t *testing.T) {
	target := newTarget(t)
	dir := scratch(t, target)
	a, b := layer(t, dir+"/a", "a"), layer(t, dir+"/b", "b")
	mkdir(t, dir+"/upper", dir+"/work")
	mountOK(t, target, wire.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + dir + "/work", "upperdir=" + dir + "/upper", "lowerdir=" + a + ":" + b,
	}})
	if !exists(target+"/a") || !exists(target+"/b") {
		t.Error("layers are not seen")
	}
	layer(t, target, "written")
	if !exists(dir + "/upper/written") {
		t.Error("writing does not reach the upper directory")
	}
}

func TestOverlayOptionsLongerThanAPage(t *testing.T) {
	target := newTarget(t)
	dir := scratch(t, target)
	long := filepath.Join(dir, strings.Repeat("n", 60), strings.Repeat("m:, ", 10))
	var lowers []string
	for i := range 150 {
		name := strconv.Itoa(i)
		lowers = append(lowers, escape(layer(t, filepath.Join(long, name, "fs"), "file"+name)))
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	mountOK(t, target, wire.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lowers, ":")}})
	for i := range lowers {
		if !exists(target + "/file" + strconv.Itoa(i)) {
			t.Errorf("layer %d is not seen", i)
		}
	}
	if now, err := os.Getwd(); err != nil || now != cwd {
		t.Errorf("working directory %s, %v, was %s", now, err, cwd)
	}
	if err := Mount([]wire.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + strings.Join(lowers, ":") + strings.Repeat(":/elsewhere", 2),
	}}}, target, -1); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("without a common directory: %v", err)
	}
}

// owner returns a file's ids, as "uid:gid".
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

const (
	uidmap = "uidmap=0:100000:1000,1000:200000:1000"
	gidmap = "gidmap=0:300000:65536"
)

func TestIDMapped(t *testing.T) {
	for _, kind := range []string{"bind", "overlay", "overlay of many layers", "ext4", "given namespace"} {
		t.Run(kind, func(t *testing.T) {
			target := newTarget(t)
			dir := scratch(t, target)
			a := layer(t, dir+"/a:1", "root")
			layer(t, a, "user")
			if err := os.Chown(a+"/user", 1001, 1001); err != nil {
				t.Fatal(err)
			}
			m := wire.Mount{Type: "bind", Source: a, Options: []string{"rbind", "nosuid", uidmap, gidmap}}
			userns := -1
			switch kind {
			case "overlay", "overlay of many layers":
				lowers := []string{escape(a)}
				n := 1
				if kind != "overlay" {
					n = 150
				}
				for i := range n {
					name := strconv.Itoa(i)
					lowers = append(lowers, layer(t, dir+"/"+name, "file"+name))
				}
				mkdir(t, dir+"/upper", dir+"/work")
				m = wire.Mount{Type: "overlay", Source: "overlay", Options: []string{
					"workdir=" + dir + "/work", "upperdir=" + dir + "/upper", "lowerdir=" + strings.Join(lowers, ":"), uidmap, gidmap,
				}}
			case "ext4":
				image := filepath.Dir(target) + "/image"
				makeImage(t, image)
				inside := filepath.Dir(target) + "/inside"
				mkdir(t, inside)
				mountOK(t, inside, wire.Mount{Type: "ext4", Source: image, Options: []string{"loop"}})
				layer(t, inside, "root")
				layer(t, inside, "user")
				if err := os.Chown(inside+"/user", 1001, 1001); err != nil {
					t.Fatal(err)
				}
				if err := Unmount(inside); err != nil {
					t.Fatal(err)
				}
				m = wire.Mount{Type: "ext4", Source: image, Options: []string{"loop", uidmap, gidmap}}
			case "given namespace":
				var err error
				if userns, err = newUserns("0:100000:1000,1000:200000:1000", "0:300000:65536"); err != nil {
					t.Fatal(err)
				}
				defer unix.Close(userns)
				m.Options = []string{"rbind", "uidmap=0:1:1", "gidmap=0:1:1"}
			}
			if err := Mount([]wire.Mount{m}, target, userns); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{"root": "100000:300000", "user": "200001:301001"} {
				if got := owner(t, filepath.Join(target, file)); got != want {
					t.Errorf("owner of %s is %s, want %s", file, got, want)
				}
			}
			if exists(mappedDir(target)) {
				t.Error("place of mapped layers left behind")
			}
		})
	}
}

func TestLoop(t *testing.T) {
	target := newTarget(t)
	image := filepath.Join(filepath.Dir(target), "image")
	makeImage(t, image)
	mountOK(t, target, wire.Mount{Type: "ext4", Source: image, Options: []string{"loop", "rw"}})
	layer(t, target, "file")
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	mountOK(t, target, wire.Mount{Type: "ext4", Source: image, Options: []string{"ro", "loop"}})
	if !exists(target + "/file") {
		t.Error("what was written is not there")
	}
	if err := os.WriteFile(target+"/other", nil, 0o644); err == nil {
		t.Error("a read-only mount can be written")
	}
}

func TestSubTarget(t *testing.T) {
	target := newTarget(t)
	dir := filepath.Dir(target)
	root, sub := layer(t, dir+"/root", "root"), layer(t, dir+"/sub", "sub")
	mkdir(t, root+"/inside")
	if err := os.Symlink("/inside", root+"/link"); err != nil {
		t.Fatal(err)
	}
	mountOK(t, target,
		wire.Mount{Type: "bind", Source: root, Options: []string{"rbind"}},
		wire.Mount{Type: "bind", Source: sub, Target: "/../link", Options: []string{"rbind"}})
	if !exists(target + "/inside/sub") {
		t.Error("second mount is not within the first")
	}
	if err := Mount([]wire.Mount{{Type: "bind", Source: sub, Target: "missing", Options: []string{"rbind"}}}, target, -1); err == nil {
		t.Error("mounted on a missing target")
	}
}

func TestFailureUndoes(t *testing.T) {
	target := newTarget(t)
	dir := scratch(t, target)
	a := layer(t, dir+"/a", "a")
	good := wire.Mount{Type: "bind", Source: a, Options: []string{"rbind", "ro"}}
	before := count(t)
	for name, c := range map[string]struct {
		m    wire.Mount
		want fault.Code
	}{
		"missing source":     {wire.Mount{Type: "bind", Source: a + "/missing", Options: []string{"bind"}}, fault.Internal},
		"unknown type":       {wire.Mount{Type: "nosuchfs", Source: "x"}, fault.InvalidArgument},
		"mount manager's":    {wire.Mount{Type: "bind", Source: a, Options: []string{"bind", "X-containerd.mkdir.path=x"}}, fault.InvalidArgument},
		"template":           {wire.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir={{ mount 0 }}"}}, fault.InvalidArgument},
		"template in source": {wire.Mount{Type: "bind", Source: "{{ source 0 }}", Options: []string{"bind"}}, fault.InvalidArgument},
		"transformed type":   {wire.Mount{Type: "format/overlay", Source: "overlay"}, fault.InvalidArgument},
		"user space":         {wire.Mount{Type: "fuse3.fuse-overlayfs", Source: "overlay"}, fault.InvalidArgument},
		"one id map":         {wire.Mount{Type: "bind", Source: a, Options: []string{"bind", uidmap}}, fault.InvalidArgument},
		"malformed id map":   {wire.Mount{Type: "bind", Source: a, Options: []string{"bind", "uidmap=0:1", gidmap}}, fault.InvalidArgument},
		"refused id map":     {wire.Mount{Type: "bind", Source: a, Options: []string{"bind", "uidmap=0:1:5,2:9:9", gidmap}}, fault.Internal},
		"mapped overlay":     {wire.Mount{Type: "overlay", Source: "overlay", Options: []string{uidmap, gidmap}}, fault.InvalidArgument},
		"mapped lower":       {wire.Mount{Type: "overlay", Source: "overlay", Options: []string{uidmap, gidmap, "lowerdir=" + a + ":/nonexistent"}}, fault.Internal},
		"mapped upper":       {wire.Mount{Type: "overlay", Source: "overlay", Options: []string{uidmap, gidmap, "lowerdir=" + a, "upperdir=/nonexistent"}}, fault.Internal},
		"cannot be mapped":   {wire.Mount{Type: "proc", Source: "proc", Options: []string{uidmap, gidmap}}, fault.Internal},
		"overlay option":     {wire.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + a, "bla=1"}}, fault.Internal},
		"loop of nothing":    {wire.Mount{Type: "ext4", Source: dir + "/nothing", Options: []string{"loop"}}, fault.Internal},
		"loop of no image":   {wire.Mount{Type: "ext4", Source: a + "/a", Options: []string{"loop"}}, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			err := Mount([]wire.Mount{good, c.m}, target, -1)
			if fault.CodeOf(err) != c.want || !strings.Contains(err.Error(), c.m.Type) {
				t.Errorf("got %v of class %d, want class %d", err, fault.CodeOf(err), c.want)
			}
			if after := count(t); after != before {
				t.Errorf("left behind: %+v, before %+v", after, before)
			}
			if exists(mappedDir(target)) {
				t.Error("place of mapped layers left behind")
			}
		})
	}
}

func TestUnmount(t *testing.T) {
	target := newTarget(t)
	dir := filepath.Dir(target)
	a := layer(t, dir+"/a", "a")
	bind := wire.Mount{Type: "bind", Source: a, Options: []string{"rbind"}}
	t.Run("stacked", func(t *testing.T) {
		mountOK(t, target, bind, bind, bind)
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
		if exists(target + "/a") {
			t.Error("still mounted")
		}
	})
	t.Run("below only, and in use", func(t *testing.T) {
		deep := target + "/x/y with space"
		mkdir(t, deep)
		mountOK(t, deep, bind, bind)
		file, err := os.Open(deep + "/a")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
		if exists(deep + "/a") {
			t.Error("still mounted")
		}
	})
	t.Run("through a link", func(t *testing.T) {
		if err := os.Symlink(dir, dir+"/linked"); err != nil {
			t.Fatal(err)
		}
		mountOK(t, target+"/x", bind)
		if err := Unmount(dir + "/linked/rootfs"); err != nil {
			t.Fatal(err)
		}
		if exists(target + "/x/a") {
			t.Error("still mounted")
		}
	})
	t.Run("a link is not followed", func(t *testing.T) {
		if err := os.Symlink(target, dir+"/evil"); err != nil {
			t.Fatal(err)
		}
		mountOK(t, target, bind)
		if err := Unmount(dir + "/evil"); err != nil {
			t.Fatal(err)
		}
		if !exists(target + "/a") {
			t.Error("somebody else's mount was taken off")
		}
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("remains of an id-mapped overlay", func(t *testing.T) {
		mkdir(t, mappedDir(target)+"/0", mappedDir(target)+"/1")
		mountOK(t, mappedDir(target)+"/0", bind)
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
		if exists(mappedDir(target)) || !exists(a+"/a") {
			t.Error("not removed, or too much")
		}
	})
	for name, path := range map[string]string{"missing": dir + "/missing", "missing parent": dir + "/missing/rootfs", "a file": a + "/a"} {
		t.Run(name, func(t *testing.T) {
			if err := Unmount(path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSplitDirs(t *testing.T) {
	for in, want := range map[string][]string{
		"/a":           {"/a"},
		"/a:/b":        {"/a", "/b"},
		`/a\:1:/b\\:c`: {`/a\:1`, `/b\\`, "c"},
		"/a::/data":    {"/a", "", "/data"},
		`/a\`:          {`/a\`},
	} {
		if got := splitDirs(in); strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	for _, c := range []struct {
		dirs []string
		want string
	}{
		{[]string{"/s/12/fs", "/s/13/fs"}, "/s/"},
		{[]string{"/s/12/fs"}, "/s/12/"},
		{[]string{"/s/1", "/s/"}, ""},
		{[]string{"/a/1", "/b/1"}, ""},
		{[]string{"a/1", "a/2"}, ""},
		{[]string{"/a/1", "", "/a/2"}, ""},
		{nil, ""},
	} {
		if got := commonParent(c.dirs); got != c.want {
			t.Errorf("%q: got %q, want %q", c.dirs, got, c.want)
		}
	}
}
