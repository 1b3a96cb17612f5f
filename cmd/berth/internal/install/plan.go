// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/docs/systemd"
)

// Programs, by the names of their files.
const (
	cliProgram    = "berth"
	shimProgram   = "containerd-shim-berth-v1"
	verifyProgram = "berth-verify"
	daemonProgram = "berthd"
)

const (
	shimRuntime = "io.containerd.berth.v1"
	policyPath  = "/etc/containers/policy.json"
	unitDir     = "/etc/systemd/system"
	// handlerFile and proxyFile are put where containerd imports files from.
	handlerFile = "berth.toml"
	proxyFile   = "berth-proxy.toml"
	// importLine is relative to the file that it is in.
	importLine = "imports = ['conf.d/*.toml']"
	// tomlExt is that of containerd's configuration.
	tomlExt = ".toml"
)

// The oldest containerd that reads these files, has the sandboxer, and does not pull
// a pause image that nobody runs.
var (
	oldest     = version{2, 0}
	sandboxer  = version{2, 3}
	pauseImage = version{2, 4}
)

// Request says what is to be installed, and where.
type Request struct {
	// Root is the folder that is to become a host's file system; "/" is this one.
	Root string
	// From is the folder of the programs, BinDir the one they are put in.
	From, BinDir string
	// Containerd is its program, empty: that which is found. Config is its
	// configuration.
	Containerd, Config string
	// Handler is the name of the runtime handler.
	Handler string
	// What is installed.
	Shim, Verify, Proxy bool
	// Edit allows a line in Config where it does not import what is installed.
	Edit bool
	// Force goes on although the host lacks something or files were changed.
	Force bool
}

func (r *Request) validate() error {
	var faults []error
	for name, path := range map[string]string{"--root": r.Root, "--from": r.From, "--bin-dir": r.BinDir, "--containerd-config": r.Config} {
		if !filepath.IsAbs(path) {
			faults = append(faults, fmt.Errorf("%s: %q is not an absolute path", name, path))
		}
	}
	if r.Handler == "" || strings.ContainsAny(r.Handler, "'\"\\ \n") {
		faults = append(faults, fmt.Errorf("--handler: %q is no name of a runtime handler", r.Handler))
	}
	if !r.Shim && !r.Verify && !r.Proxy {
		faults = append(faults, errors.New("nothing is to be installed"))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// plan is what an installation consists of.
type plan struct {
	items []item
	// serves is, for the main configuration, the folder it imports.
	serves map[string]string
	notes  []string // what somebody should know
	steps  []string // what is left to do for somebody
}

// planner makes a plan of a request.
type planner struct {
	request *Request
	tree    tree
	daemon  *daemon
	record  *record // of the installation before, or empty

	plan
}

// findContainerd finds the program: in the tree, where services are looked up, or in
// PATH.
func (p *planner) findContainerd(ctx context.Context) error {
	program := p.request.Containerd
	for _, dir := range []string{"/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"} {
		name := p.tree.at(dir + "/containerd")
		if info, err := os.Stat(name); program == "" && err == nil && info.Mode().IsRegular() {
			program = name
		}
	}
	if program == "" {
		found, err := exec.LookPath("containerd")
		if err != nil {
			return fmt.Errorf("%w: %w; --containerd names the program", errdefs.ErrNotFound, err)
		}
		program = found
	}
	p.daemon = &daemon{program: program, tree: p.tree, config: p.request.Config}
	if err := p.daemon.findVersion(ctx); err != nil {
		return err
	}
	if !p.daemon.version.atLeast(oldest) {
		return fmt.Errorf("%s is containerd %s, and %s or later is needed: %w", program, p.daemon.version, oldest, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// make decides what goes where.
func (p *planner) make(ctx context.Context) error {
	p.serves = map[string]string{}
	ours := p.without() // see what is there without them
	folder, imported, err := p.dropIns()
	if err != nil {
		return err
	}
	// A file that is replaced does not count either.
	ours[filepath.Join(folder, handlerFile)], ours[filepath.Join(folder, proxyFile)] = nil, nil
	docs, err := p.daemon.documents(ours)
	if err != nil {
		return err
	}
	before, err := p.daemon.dump(ctx, docs)
	if err != nil {
		return err
	}
	if err := p.conflict(docs); err != nil {
		return err
	}
	if err := p.programs(); err != nil {
		return err
	}
	if err := p.verifier(before); err != nil {
		return err
	}
	if err := p.proxy(ctx, before, folder); err != nil {
		return err
	}
	p.handler(before, folder)
	if !imported && (p.request.Shim || p.request.Proxy) {
		if err := p.imports(folder); err != nil {
			return err
		}
	}
	return p.check(ctx, before)
}

// without has the configuration lack what was installed before.
func (p *planner) without() map[string][]byte {
	lacking := map[string][]byte{}
	for _, e := range p.record.Entries {
		if filepath.Ext(e.Path) == tomlExt && e.Serves == "" {
			lacking[e.Path] = nil
		}
	}
	return lacking
}

// dropIns returns the folder for our files, and whether containerd imports it.
func (p *planner) dropIns() (folder string, imported bool, err error) {
	docs, err := p.daemon.documents(nil)
	if err != nil {
		return "", false, err
	}
	for _, doc := range docs {
		for _, pattern := range doc.imports() {
			ours, _ := filepath.Match(filepath.Base(pattern), handlerFile)
			also, _ := filepath.Match(filepath.Base(pattern), proxyFile)
			if ours && also && !strings.Contains(filepath.Dir(pattern), "*") {
				return filepath.Dir(pattern), true, nil
			}
		}
	}
	return filepath.Join(filepath.Dir(p.request.Config), "conf.d"), false, nil
}

// conflict refuses a handler or proxy that somebody else has configured.
func (p *planner) conflict(docs []document) error {
	for _, doc := range docs {
		for _, k := range []key{runtimesKey.with(p.request.Handler), olderRuntimesKey.with(p.request.Handler)} {
			if p.request.Shim && k.of(doc.tables) != nil {
				return fmt.Errorf("%s has a runtime handler %q: take it away, or choose another name with --handler: %w",
					p.tree.at(doc.path), p.request.Handler, errdefs.ErrAlreadyExists)
			}
		}
		if k := proxiesKey.with("berth"); p.request.Proxy && k.of(doc.tables) != nil {
			return fmt.Errorf("%s has %s: take it away: %w", p.tree.at(doc.path), strings.Join(k, "."), errdefs.ErrAlreadyExists)
		}
	}
	return nil
}

// programs are copied to their folder, unless they are there already.
func (p *planner) programs() error {
	names := []string{cliProgram}
	for _, c := range []struct {
		wanted bool
		name   string
	}{{p.request.Shim, shimProgram}, {p.request.Verify, verifyProgram}, {p.request.Proxy, daemonProgram}} {
		if c.wanted {
			names = append(names, c.name)
		}
	}
	for _, name := range names {
		source := filepath.Join(p.request.From, name)
		info, err := os.Stat(source)
		if err != nil {
			return fmt.Errorf("%w; --from names the folder of berth's programs", err)
		}
		if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("%s is no program: %w", source, errdefs.ErrFailedPrecondition)
		}
		path := filepath.Join(p.request.BinDir, name)
		if there, err := os.Stat(p.tree.at(path)); err == nil && os.SameFile(info, there) {
			p.notes = append(p.notes, path+" is there already, and stays when berth is uninstalled")
			continue
		}
		p.items = append(p.items, item{path: path, what: "program", source: source, mode: 0o755})
	}
	return nil
}

// verifier is a link where containerd executes what verifies images, which it does
// for every pull: without a policy that would end all of them.
func (p *planner) verifier(before map[string]any) error {
	if !p.request.Verify {
		return nil
	}
	dir := verifiersKey.text(before)
	if dir == "" {
		p.notes = append(p.notes, "this containerd has no image verifiers (io.containerd.image-verifier.v1.bindir): "+verifyProgram+" is not used")
		return nil
	}
	path := filepath.Join(dir, verifyProgram)
	// A link that is there stays without a policy: taking it away would let everything in.
	if _, err := os.Stat(p.tree.at(policyPath)); err != nil && p.record.entry(path) == nil {
		p.notes = append(p.notes, policyPath+" is not there: images are not verified. No link is made in "+dir+", with which all pulls would be refused")
		p.steps = append(p.steps, "To verify images write "+policyPath+" (docs/policy.md), and run `berth install` again.")
		return nil
	}
	target, err := filepath.Rel(dir, filepath.Join(p.request.BinDir, verifyProgram))
	if err != nil {
		return err
	}
	p.items = append(p.items, item{path: path, what: "image verifier", target: target})
	return nil
}

// proxy is `berthd proxy` and its units, and containerd's section for it.
func (p *planner) proxy(ctx context.Context, before map[string]any, folder string) error {
	if !p.request.Proxy {
		return nil
	}
	if compiledInKey.of(before) != nil {
		return fmt.Errorf("%s has berth's snapshotter built in, and needs no proxy: %w", p.daemon.program, errdefs.ErrFailedPrecondition)
	}
	program := filepath.Join(p.request.From, daemonProgram)
	cmd := exec.CommandContext(ctx, program, "config", "proxy", "--config", p.tree.at("/etc/berth/berth.toml"))
	var problems strings.Builder
	cmd.Stderr = &problems
	section, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s config proxy: %w: %s", program, err, lastLine(problems.String()))
	}
	var tables map[string]any
	if err := toml.Unmarshal(section, &tables); err != nil {
		return fmt.Errorf("%s config proxy: %w", program, err)
	}
	local := strings.NewReplacer("/usr/local/bin", p.request.BinDir, "/run/berth/berthd.sock", proxiesKey.with("berth", "address").text(tables))
	for name, text := range map[string]string{systemd.ProxyServiceName: systemd.ProxyService, systemd.ProxySocketName: systemd.ProxySocket} {
		p.items = append(p.items, item{path: filepath.Join(unitDir, name), what: "unit of systemd", data: []byte(local.Replace(text)), mode: 0o644})
	}
	slices.SortFunc(p.items[len(p.items)-2:], func(a, b item) int { return strings.Compare(a.path, b.path) })
	if !p.tree.isHost() {
		p.notes = append(p.notes, "the snapshotter's capabilities are those of this machine's kernel: see `berthd config proxy` on the host itself")
	}
	unpack, err := unpacking(before, tables)
	if err != nil {
		return err
	}
	p.dropIn(folder, proxyFile, string(section)+unpack)
	return nil
}

// unpacking has containerd's transfer service, which pulls for the kubelet, unpack into
// the snapshotter, and into what it did before: a list replaces the one before it.
func unpacking(before, section map[string]any) (string, error) {
	if unpackKey.of(section) != nil {
		return "", nil
	}
	platform := proxiesKey.with("berth", "platform").text(section)
	list, ok := unpackKey.of(before).([]any)
	if !ok { // containerd's own, which it does not say
		system, architecture, _ := strings.Cut(platform, "/")
		list = []any{
			map[string]any{"platform": platform, "snapshotter": "overlayfs", "differ": "walking"},
			map[string]any{"platform": system + "(+erofs)/" + architecture, "snapshotter": "erofs", "differ": "erofs", "optional": true},
		}
	}
	// A differ of the same kind for layers of the usual types.
	list = append(slices.Clone(list), map[string]any{"platform": platform, "snapshotter": "berth", "differ": "walking"})
	text, err := toml.Marshal(map[string]any{"unpack_config": list})
	if err != nil {
		return "", err
	}
	table := fmt.Sprintf("[[plugins.'%s'.unpack_config]]", unpackKey[1])
	return "\n" + strings.ReplaceAll(string(text), "[[unpack_config]]", table), nil
}

func (p *planner) dropIn(folder, name, text string) {
	p.items = append(p.items, item{
		path: filepath.Join(folder, name), what: "configuration of containerd", mode: 0o644,
		data: []byte("# Made by `berth install`; `berth uninstall` takes it away.\n" + text),
	})
}

// handler is the runtime handler, as this containerd can have it.
func (p *planner) handler(before map[string]any, folder string) {
	if !p.request.Shim {
		return
	}
	text := fmt.Sprintf("version = 3\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'%s']\n  runtime_type = '%s'\n", p.request.Handler, shimRuntime)
	if p.daemon.version.atLeast(sandboxer) {
		text += "  sandboxer = 'shim'\n"
	} else {
		p.notes = append(p.notes, fmt.Sprintf("pods have pause containers: containerd %s is older than %s", p.daemon.version, sandboxer))
	}
	if p.daemon.version.atLeast(pauseImage) {
		text += "  disable_pause_image_pull = true\n"
	} else if p.daemon.version.atLeast(sandboxer) {
		p.notes = append(p.notes, fmt.Sprintf("containerd %s pulls the pause image, though nothing runs it; %s does not", p.daemon.version, pauseImage))
	}
	if p.request.Proxy {
		text += "  snapshotter = 'berth'\n"
	}
	p.dropIn(folder, handlerFile, text)
	disabled, _ := disabledKey.of(before).([]any)
	for _, uri := range disabled {
		if uri == "io.containerd.grpc.v1.cri" || uri == "io.containerd.cri.v1.runtime" {
			p.notes = append(p.notes, fmt.Sprintf("containerd has no pods of a kubelet: %v is disabled", uri))
		}
	}
	p.driver(before)
}

// driver says what the kubelet is told of cgroups: containerd looks at handlers of
// runc's type alone.
func (p *planner) driver(before map[string]any) {
	name := defaultKey.text(before)
	runtimes, _ := runtimesKey.of(before).(map[string]any)
	for _, candidate := range []string{name, "runc"} {
		k := key{candidate, "options", "SystemdCgroup"}
		if on, ok := k.of(runtimes).(bool); ok {
			driver := "cgroupfs"
			if on {
				driver = "systemd"
			}
			p.notes = append(p.notes, fmt.Sprintf("the kubelet is told the cgroup driver %s (SystemdCgroup = %t of the handler %s)", driver, on, candidate))
			return
		}
	}
}

// imports has containerd read our files, where it does not.
func (p *planner) imports(folder string) error {
	path := p.request.Config
	text, err := p.daemon.read(path, nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
		text = []byte("# Made by `berth install`; `berth uninstall` takes it away.\nversion = 3\n" + importLine + "\n")
	case err != nil:
		return err
	case p.request.Edit:
		var tables map[string]any
		if err := toml.Unmarshal(text, &tables); err != nil {
			return fmt.Errorf("%s: %w", p.tree.at(path), err)
		}
		if tables["imports"] != nil {
			return fmt.Errorf("%s has imports already: add 'conf.d/*.toml' to them: %w", p.tree.at(path), errdefs.ErrFailedPrecondition)
		}
		// The first line of a file is above its first table.
		text = append([]byte(importLine+" # by `berth install`\n"), text...)
	default:
		p.steps = append(p.steps, fmt.Sprintf("%s does not import %s/*.toml, so containerd does not read what was put there. "+
			"Above its first [table] add this line, or 'conf.d/*.toml' to its imports; or run `berth install --edit-config`:\n\n    %s\n", p.tree.at(path), folder, importLine))
		return nil
	}
	info, err := os.Stat(p.tree.at(path))
	mode := os.FileMode(0o644)
	if err == nil {
		mode = info.Mode().Perm()
	}
	p.serves[path] = folder
	p.items = append(p.items, item{path: path, what: "configuration of containerd", data: text, mode: mode})
	return nil
}

// check has containerd read the result before it is there.
func (p *planner) check(ctx context.Context, before map[string]any) error {
	result, ours := p.without(), []document{}
	for _, i := range p.items {
		if filepath.Ext(i.path) != tomlExt {
			continue
		}
		result[i.path] = i.data
		doc := document{path: i.path}
		if err := toml.Unmarshal(i.data, &doc.tables); err != nil {
			return fmt.Errorf("%s: %w", i.path, err)
		}
		ours = append(ours, doc)
	}
	if len(ours) == 0 {
		return nil
	}
	docs, err := p.daemon.documents(result)
	if err != nil {
		return err
	}
	if len(docs) == 0 {
		docs = []document{{path: p.request.Config, tables: map[string]any{"version": int64(3)}}}
	}
	for _, doc := range ours { // those of a folder that is not imported yet
		if !slices.ContainsFunc(docs, func(d document) bool { return d.path == doc.path }) {
			docs = append(docs, doc)
		}
	}
	after, err := p.daemon.dump(ctx, docs)
	if err != nil {
		return fmt.Errorf("the configuration with berth's files: %w", err)
	}
	return compare(before, after, ours, []key{runtimesKey.with(p.request.Handler), proxiesKey.with("berth"), unpackKey})
}
