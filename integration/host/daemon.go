// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

// startTimeout is generous: an emulated machine is up to twenty times slower.
const startTimeout = 60 * time.Second

// Options say what a Daemon is to be like. The zero value is a containerd
// without its CRI plugin.
type Options struct {
	CRI    bool     // keep the CRI plugin
	NRI    bool     // keep the NRI plugin; its socket is NRISocket
	TOML   string   // appended to the configuration (version 3)
	Env    []string // KEY=VALUE, for containerd and so for shims
	Path   []string // folders in front of PATH
	Images []string // archives below .deps/images; nil: busybox.tar
	Debug  bool

	Disabled []string // plugins to leave out, by URI
	// Program is the containerd; "": see Containerd.
	Program string
}

// Daemon is a containerd of one's own. It can be stopped, killed and started
// again; shims live on meanwhile. Not safe for concurrent use, except through
// its client.
type Daemon struct {
	Dir       string // below it is everything the daemon owns
	Namespace string // containerd's namespace; unique on the machine, so cgroups below /Namespace are too
	Socket    string // containerd's gRPC socket

	tag     string // Namespace as it was made, whatever a test makes of it: what names it is killed
	options Options
	cmd     *exec.Cmd
	exited  chan struct{} // closed once cmd has ended
	client  *client.Client
}

var daemons atomic.Int32

// New starts a daemon. The caller ends it with Close.
func New(o Options) (*Daemon, error) {
	if base == "" {
		return nil, errors.New("host.Enter was not called")
	}
	if err := check(Containerd(), Ctr(), Deps("bin/runc"), Deps("bin/containerd-shim-runc-v2")); err != nil {
		return nil, err
	}
	n := daemons.Add(1)
	d := &Daemon{
		Dir: fmt.Sprintf("%s/%d", base, n),
		// No dash: it would mean a parent to systemd's slices.
		// None is the beginning of another: it is looked for in command lines.
		Namespace: fmt.Sprintf("%sx%03d", filepath.Base(base), n),
		options:   o,
	}
	d.tag = d.Namespace
	d.Socket = d.Dir + "/c.sock"
	// Searchable by all: an id-mapped container's root looks up paths in it.
	for _, dir := range []string{d.Dir, d.Dir + "/tmp", d.Dir + "/fifo"} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(d.Dir+"/config.toml", []byte(d.config()), 0o644); err != nil {
		return nil, err
	}
	if err := d.Start(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	images := o.Images
	if images == nil {
		images = []string{"busybox.tar"}
	}
	for _, image := range images {
		if out, err := d.Ctr("images", "import", Deps("images/"+image)).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("import %s: %w: %s", image, err, out), d.Close())
		}
	}
	return d, nil
}

// Run is New for tests: it fails t on an error, closes the daemon when t ends,
// and shows the daemon's log if t failed.
func Run(t testing.TB, o Options) *Daemon {
	t.Helper()
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", d.Log(40))
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *Daemon) config() string {
	uris := slices.Clone(d.options.Disabled)
	if !d.options.NRI {
		uris = append(uris, "io.containerd.nri.v1.nri")
	}
	if !d.options.CRI {
		uris = append(uris, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images")
	}
	var disabled strings.Builder
	for _, uri := range uris {
		fmt.Fprintf(&disabled, "%q, ", uri)
	}
	level := "info"
	if d.options.Debug {
		level = "debug"
	}
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = [%[3]s]

[grpc]
  address = %[4]q

[ttrpc]
  address = %[5]q

[debug]
  level = %[6]q

[plugins.'io.containerd.shim.v1.manager']
  socket_dir = %[7]q

[plugins.'io.containerd.nri.v1.nri']
  socket_path = %[9]q

%[8]s
`, d.Dir+"/root", d.State(), disabled.String(), d.Socket, d.Socket+".ttrpc", level, d.Dir+"/s", d.options.TOML, d.NRISocket())
}

// NRISocket is where plugins of the NRI connect.
func (d *Daemon) NRISocket() string { return d.Dir + "/nri.sock" }

// State is containerd's state folder.
func (d *Daemon) State() string { return d.Dir + "/state" }

// Bundle is the folder of a container's bundle.
func (d *Daemon) Bundle(id string) string {
	return filepath.Join(d.State(), "io.containerd.runtime.v2.task", d.Namespace, id)
}

// Environ is the environment of containerd: programs under test come first in
// its PATH.
func (d *Daemon) Environ() []string {
	path := append(append([]string{}, d.options.Path...), Build("bin"), Deps("bin"), os.Getenv("PATH"))
	env := append(os.Environ(),
		"PATH="+strings.Join(path, ":"),
		"TMPDIR="+d.Dir+"/tmp",
		"CONTAINERD_ADDRESS="+d.Socket,
		"CONTAINERD_NAMESPACE="+d.Namespace,
	)
	return append(env, d.options.Env...)
}

// Start starts containerd and waits until it answers.
func (d *Daemon) Start() error {
	log, err := os.OpenFile(d.Dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	program := d.options.Program
	if program == "" {
		program = Containerd()
	}
	cmd := exec.Command(program, "--config", d.Dir+"/config.toml")
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = d.Environ(), log, log, "/"
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	d.cmd, d.exited = cmd, exited
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		if err = d.connect(); err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("containerd ended: %s\n%s", cmd.ProcessState, d.Log(20))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd does not answer: %w\n%s", err, d.Log(20))
		}
	}
}

func (d *Daemon) connect() error {
	if _, err := os.Stat(d.Socket); err != nil {
		return err
	}
	c, err := client.New(d.Socket, client.WithDefaultNamespace(d.Namespace), client.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if ok, err := c.IsServing(ctx); err != nil || !ok {
		_ = c.Close()
		return fmt.Errorf("not serving: %w", err)
	}
	d.client = c
	return nil
}

// Pid is containerd's process, 0 while it is not running.
func (d *Daemon) Pid() int {
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Stop ends containerd as an administrator would; shims live on.
func (d *Daemon) Stop() error { return d.end(unix.SIGTERM) }

// Kill ends containerd by SIGKILL; shims live on.
func (d *Daemon) Kill() error { return d.end(unix.SIGKILL) }

func (d *Daemon) end(sig unix.Signal) error {
	if d.client != nil {
		_ = d.client.Close()
		d.client = nil
	}
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(sig)
	defer func() { d.cmd = nil }()
	select {
	case <-d.exited:
		return nil
	case <-time.After(startTimeout):
		_ = d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("containerd did not end on %v", sig)
	}
}

// Client is a client of the running containerd, in the daemon's namespace. It
// becomes invalid when containerd is stopped.
func (d *Daemon) Client() *client.Client { return d.client }

// Context is parent in the daemon's namespace.
func (d *Daemon) Context(parent context.Context) context.Context {
	return namespaces.WithNamespace(parent, d.Namespace)
}

// Ctr returns a ctr command for this daemon.
func (d *Daemon) Ctr(args ...string) *exec.Cmd {
	cmd := exec.Command(Ctr(), args...)
	cmd.Env, cmd.Dir = d.Environ(), d.Dir
	return cmd
}

// Log returns the last lines of containerd's log, which holds the shims' too.
func (d *Daemon) Log(lines int) string {
	b, err := os.ReadFile(d.Dir + "/log")
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines-1):], nil))
}

// Close ends containerd and everything that belongs to it, and removes the
// daemon's folder, mounts and cgroups. It reports what should not have been
// there any more.
func (d *Daemon) Close() error {
	errs := []error{d.Stop()}
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		mine := d.processes()
		if len(mine) == 0 {
			break
		}
		for _, p := range mine {
			if left == nil {
				left = []string{}
			}
			left = append(left, p.String())
			end(p.pid)
		}
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("processes that cannot be killed: %v", mine))
			break
		}
	}
	for range 1000 {
		mounts := d.mounts()
		if len(mounts) == 0 {
			break
		}
		_ = unix.Unmount(mounts[len(mounts)-1], unix.MNT_DETACH)
	}
	for _, dir := range d.cgroups(true) {
		_ = os.Remove(dir)
	}
	return errors.Join(append(errs, os.RemoveAll(d.Dir))...)
}

func withNamespace(ctx context.Context, ns string) context.Context {
	return namespaces.WithNamespace(ctx, ns)
}
