// SPDX-License-Identifier: Apache-2.0

package berth

import (
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/deps.txt")

const (
	module  = "github.com/berthd/berth"
	shimCmd = module + "/cmd/containerd-shim-berth-v1"
)

// transient are the packages below shim that no resident process executes. They
// are in its program nonetheless, with their init functions.
var transient = []string{"shim/bootstrap", "shim/options", "shim/pod", "shim/join", "shim/upgrade"}

// residentImports is all that the resident half may import besides packages
// below shim: what costs neither start-up time nor memory. (fmt is linked anyway
// and costs when it is called; it is for errors.)
var residentImports = []string{
	"bytes", "cmp", "encoding/binary", "errors", "fmt", "io", "io/fs", "maps", "math", "math/bits",
	"os", "os/signal", "path", "path/filepath", "runtime", "runtime/debug", "slices", "strconv",
	"strings", "sync", "sync/atomic", "syscall", "time", "unicode/utf16", "unicode/utf8", "unsafe",
	"golang.org/x/sys/unix",
}

// transientImports is what the transient half may import beyond that.
var transientImports = []string{
	"bufio", "crypto/sha256", "encoding/hex", "encoding/json", "flag",
	"github.com/opencontainers/runtime-spec/specs-go", "github.com/pelletier/go-toml/v2",
}

// strangers are folders that know nothing of each other; plugin and cmd join
// them.
var strangers = []string{"shim", "images", "snapshotter"}

// vague are names that say nothing about what a package owns.
var vague = []string{"util", "utils", "common", "helper", "helpers", "base", "types", "manager", "misc"}

type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
	Standard     bool
}

// folder is the package's place in the module, "" for the root.
func (p pkg) folder() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// list asks the go command about packages, for the platform that berth is for.
// Packages that do not build are listed too: the build reports them.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Doc,Imports,TestImports,XTestImports,GoFiles,Standard"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func within(folder, top string) bool { return folder == top || strings.HasPrefix(folder, top+"/") }

// allowed tells what a package below shim may import, apart from other packages
// below shim.
func allowed(p pkg, imported string) bool {
	if slices.Contains(residentImports, imported) {
		return true
	}
	return slices.Contains(transient, p.folder()) && slices.Contains(transientImports, imported)
}

func TestImportsOfShim(t *testing.T) {
	for _, p := range list(t, "./shim/...") {
		for _, imported := range p.Imports {
			folder, ours := strings.CutPrefix(imported, module+"/")
			switch {
			case !ours && !allowed(p, imported):
				t.Errorf("%s imports %s, which its half of the shim does without", p.folder(), imported)
			case ours && !within(folder, "shim"):
				t.Errorf("%s imports %s: the shim knows nothing of it", p.folder(), folder)
			case ours && slices.Contains(transient, folder) && !slices.Contains(transient, p.folder()):
				t.Errorf("%s is resident and imports %s, which is not", p.folder(), folder)
			}
		}
	}
}

func TestStrangers(t *testing.T) {
	for _, p := range list(t, "./...") {
		home := slices.IndexFunc(strangers, func(top string) bool { return within(p.folder(), top) })
		for _, imported := range p.Imports {
			folder, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			away := slices.IndexFunc(strangers, func(top string) bool { return within(folder, top) })
			if home >= 0 && away >= 0 && home != away {
				t.Errorf("%s imports %s: plugin or cmd should join them", p.folder(), folder)
			}
			if home >= 0 && (within(folder, "plugin") || within(folder, "cmd") || within(folder, "integration")) {
				t.Errorf("%s imports %s, which stands above it", p.folder(), folder)
			}
		}
	}
}

// TestIntegration: what integration tests know of berth is what a user knows.
func TestIntegration(t *testing.T) {
	for _, p := range list(t, "./integration/...") {
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			folder, ours := strings.CutPrefix(imported, module+"/")
			if ours && !within(folder, "integration") {
				t.Errorf("%s imports %s: integration sees programs only", p.folder(), folder)
			}
		}
	}
}

// TestShimDependencies keeps the list of everything that the shim's program is
// linked from in the repository, so that a review sees it grow. Packages that
// the standard library keeps to itself are left out: they change with Go.
func TestShimDependencies(t *testing.T) {
	var names []string
	for _, p := range list(t, "-deps", shimCmd) {
		private := p.Standard && (strings.HasPrefix(p.ImportPath, "vendor/") ||
			slices.Contains(strings.Split(p.ImportPath, "/"), "internal"))
		if !private && p.ImportPath != shimCmd {
			names = append(names, p.ImportPath)
		}
	}
	slices.Sort(names)
	got := strings.Join(names, "\n") + "\n"
	golden := filepath.Join("testdata", "deps.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the shim's dependencies changed; go test . -update rewrites %s (-want +got):\n%s", golden, diff)
	}
}

func TestPackages(t *testing.T) {
	for _, p := range list(t, "./...") {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s: no package comment", p.ImportPath)
		}
		if slices.Contains(vague, path.Base(p.ImportPath)) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
		for _, name := range p.GoFiles {
			checkFile(t, p, filepath.Join(p.Dir, name))
		}
	}
}

// checkFile wants a licence and no init, whose cost every program pays that
// links the package; registering with containerd, in plugin, needs it.
func checkFile(t *testing.T, p pkg, name string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return
	}
	if len(f.Comments) == 0 || f.Comments[0].Text() != "SPDX-License-Identifier: Apache-2.0\n" {
		t.Errorf("%s: the first line is not the licence's", name)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !within(p.folder(), "plugin") {
			t.Errorf("%s: init outside plugin", name)
		}
	}
}
