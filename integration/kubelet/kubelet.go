// SPDX-License-Identifier: Apache-2.0

// Package kubelet runs a real kubelet for tests: standalone, without an API
// server, so its pods are manifests in a folder, and what it knows of them is
// asked for over its own HTTPS interface. It is for a containerd of
// integration/host, in whose surroundings it runs.
//
// Nothing of the host's is changed or judged by it: swap, firewall, kernel
// parameters, oom scores and node resources are left alone.
package kubelet

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/integration/cri"
	"github.com/berthd/berth/integration/host"
)

// Node is the name of the kubelet's node: pods are called after their manifest,
// a dash, and this.
const Node = "node"

// startTimeout is generous: an emulated machine is up to twenty times slower.
const startTimeout = 2 * time.Minute

// Kubelet is a kubelet of one's own. It can be killed and started again; pods
// live on meanwhile. Not safe for concurrent use.
type Kubelet struct {
	// CollectImages has a kubelet that is started afterwards remove, within some
	// seconds, every image that no container uses and that is not pinned: it finds
	// the disk too full. Collection by age or threshold happens every five minutes.
	CollectImages bool
	// RuntimeStats has a kubelet that is started afterwards ask the runtime for pods'
	// figures rather than look itself.
	RuntimeStats bool

	d       *host.Daemon
	dir     string
	port    int
	address string // the node's, where the kubelet would find none
	cmd     *exec.Cmd
	exited  chan struct{} // closed once cmd has ended
	closed  bool
	client  *http.Client
	tls     *tls.Config
}

// New starts a kubelet for a containerd with its CRI plugin. Its files are below
// the daemon's folder and its cgroups below one called after the daemon's
// namespace, so that the daemon's census counts both. The caller ends it with
// Close, before the daemon.
func New(d *host.Daemon) (*Kubelet, error) {
	if _, err := os.Stat(host.Deps("bin/kubelet")); err != nil {
		return nil, fmt.Errorf("%w (run `make deps`)", err)
	}
	k := &Kubelet{d: d, dir: d.Dir + "/kubelet"}
	// Searchable by all: the root of a pod's user namespace looks up paths in it.
	for _, dir := range []string{k.dir, k.dir + "/root", k.dir + "/manifests", k.dir + "/logs"} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if err := makeCgroups(d.Namespace); err != nil {
		return nil, err
	}
	if err := places.take(); err != nil {
		return nil, err
	}
	var err error
	if k.address, err = nodeAddress(); err == nil {
		k.port, err = freePort()
	}
	if err == nil {
		err = k.Start()
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Start starts the kubelet and waits until it answers.
func (k *Kubelet) Start() error {
	if err := os.WriteFile(k.dir+"/config.yaml", []byte(k.config()), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(k.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(host.Deps("bin/kubelet"),
		"--config="+k.dir+"/config.yaml", "--root-dir="+k.dir+"/root", "--cert-dir="+k.dir+"/pki",
		"--hostname-override="+Node,
		// Where its cAdvisor asks which cgroup is which container, and how often it looks.
		"--containerd="+k.d.Socket, "--housekeeping-interval=2s")
	if k.address != "" {
		cmd.Args = append(cmd.Args, "--node-ip="+k.address)
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	k.cmd, k.exited = cmd, exited
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		if err = k.connect(); err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("kubelet ended: %s\n%s", cmd.ProcessState, k.Log(20))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kubelet does not answer: %w\n%s", err, k.Log(20))
		}
	}
}

func (k *Kubelet) connect() error {
	if k.client == nil {
		// Its own, made when it starts for the first time.
		text, err := os.ReadFile(k.dir + "/pki/kubelet.crt")
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return errors.New("no certificate in kubelet.crt")
		}
		k.tls = &tls.Config{RootCAs: roots, ServerName: Node}
		k.client = &http.Client{
			// A connection of its own for each request: the kubelet may be restarted.
			Transport: &http.Transport{TLSClientConfig: k.tls, DisableKeepAlives: true},
			Timeout:   10 * time.Minute, // of followed logs
		}
	}
	_, err := k.Get("/healthz")
	return err
}

// Kill ends the kubelet by SIGKILL; pods live on.
func (k *Kubelet) Kill() error { return k.end(unix.SIGKILL) }

func (k *Kubelet) end(sig unix.Signal) error {
	if k.cmd == nil {
		return nil
	}
	defer func() { k.cmd = nil }()
	_ = k.cmd.Process.Signal(sig)
	select {
	case <-k.exited:
		return nil
	case <-time.After(startTimeout):
		_ = k.cmd.Process.Kill()
		<-k.exited
		return fmt.Errorf("kubelet did not end on %v", sig)
	}
}

// Close ends the kubelet and removes the cgroups that it keeps pods' in. It does
// not end its pods: remove them before. It may be repeated.
func (k *Kubelet) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	errs := []error{k.end(unix.SIGTERM)}
	// The kubelet mounts this folder on itself, to share mounts in it with pods.
	for unix.Unmount(k.dir+"/root", unix.UMOUNT_NOFOLLOW) == nil {
	}
	for _, name := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods"} {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + k.d.Namespace + "/" + name)
		if host.Unified() {
			dirs = []string{"/sys/fs/cgroup/" + k.d.Namespace + "/" + name}
		}
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, places.leave())...)
}

// Log returns the last lines of the kubelet's log.
func (k *Kubelet) Log(lines int) string {
	text, err := os.ReadFile(k.dir + "/log")
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(text, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines-1):], nil))
}

// Apply makes a pod, or changes it.
func (k *Kubelet) Apply(name, manifest string) error {
	// The kubelet watches the folder, and would read half a file. It skips dot files.
	hidden := k.dir + "/manifests/." + name
	if err := os.WriteFile(hidden, []byte(manifest), 0o644); err != nil {
		return err
	}
	return os.Rename(hidden, k.manifest(name))
}

// Remove has the kubelet end a pod, which takes its grace period at most, and
// does not wait for it.
func (k *Kubelet) Remove(name string) error { return os.Remove(k.manifest(name)) }

func (k *Kubelet) manifest(name string) string { return k.dir + "/manifests/" + name + ".yaml" }

// Output returns what a container has written: its log, and the files that the
// kubelet has made of the log.
func (k *Kubelet) Output(pod *Pod, container string, attempt int) ([]cri.Piece, error) {
	current := fmt.Sprintf("%s/logs/%s_%s_%s/%s/%d.log",
		k.dir, pod.Metadata.Namespace, pod.Metadata.Name, pod.Metadata.UID, container, attempt)
	rotated, err := filepath.Glob(current + ".*") // their names are times
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(k.dir, "logs")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var paths []string
	for i, path := range rotated {
		switch filepath.Ext(path) {
		case ".tmp": // being compressed, and still there as it was
			continue
		case ".gz":
			plain := fmt.Sprintf("%s/%d", dir, i)
			if err := decompress(path, plain); err != nil {
				return nil, err
			}
			path = plain
		}
		paths = append(paths, path)
	}
	return cri.ReadLog(append(paths, current)...)
}

func decompress(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	plain, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, plain)
	return errors.Join(err, out.Close())
}

// Rotations counts the files that the kubelet has made of a container's log.
func (k *Kubelet) Rotations(pod *Pod, container string) int {
	rotated, _ := filepath.Glob(fmt.Sprintf("%s/logs/*_%s/%s/*.log.*", k.dir, pod.Metadata.UID, container))
	return len(rotated)
}

func (k *Kubelet) config() string {
	free := "0%"
	if k.CollectImages {
		free = "99.9%"
	}
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
volumePluginDir: %[1]s/plugins
fileCheckFrequency: 1s
syncFrequency: 2s
containerRuntimeEndpoint: unix://%[2]s

# One server, on loopback, for everybody.
address: 127.0.0.1
port: %[3]d
readOnlyPort: 0
healthzPort: 0
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }

# Fits a host with cgroup v1 and without CAP_SYS_RESOURCE as well.
failCgroupV1: false
cgroupRoot: /%[4]s
enforceNodeAllocatable: []
oomScoreAdj: 0

failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
evictionHard: { memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: %[5]s }
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 1ms

# Quick enough to be watched.
containerLogMaxSize: 32Ki
containerLogMaxFiles: 5
containerLogMonitorInterval: 3s
crashLoopBackOff: { maxContainerRestartPeriod: 2s }
featureGates: { PodAndContainerStatsFromCRI: %[6]v }
`, k.dir, k.d.Socket, k.port, k.d.Namespace, free, k.RuntimeStats)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// nodeAddress gives the node an address if it has no default route: the kubelet
// goes by it, and starts no pod of the host's network without.
func nodeAddress() (string, error) {
	routes, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(routes)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "00000000" {
			return "", nil
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	// Besides 127.0.0.1, which the kubelet refuses.
	request, err := unix.NewIfreq("lo:1")
	if err != nil {
		return "", err
	}
	address := net.IPv4(198, 18, 255, 1) // RFC 2544: for tests
	if err := request.SetInet4Addr(address.To4()); err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, request); err != nil {
		return "", fmt.Errorf("give the node an address: %w", err)
	}
	return address.String(), nil
}

// makeCgroups makes the kubelet's root, a cgroup of that name in each hierarchy,
// as it wants to find it: able to run something, with every controller.
func makeCgroups(name string) error {
	const mount = "/sys/fs/cgroup/"
	if host.Unified() {
		for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"} {
			// The kubelet names those that are missing.
			_ = os.WriteFile(mount+"cgroup.subtree_control", []byte("+"+controller), 0)
		}
		return os.MkdirAll(mount+name, 0o755)
	}
	hierarchies, _ := filepath.Glob(mount + "*/cgroup.procs")
	for _, h := range hierarchies {
		parent := filepath.Dir(h)
		dir := filepath.Join(parent, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(parent, file))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), text, 0)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// places are folders that a kubelet uses whatever its flags say. Empty file
// systems are mounted on them, in the mount namespace of host.Enter.
var places = fixed{dirs: []string{"/var/lib/kubelet", "/var/log/containers"}}

type fixed struct {
	dirs []string

	mu    sync.Mutex // guards what follows
	users int
	made  []string // did not exist before
}

func (f *fixed) take() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users++; f.users > 1 {
		return nil
	}
	for _, dir := range f.dirs {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			f.made = append(f.made, dir)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

func (f *fixed) leave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users--; f.users > 0 {
		return nil
	}
	var errs []error
	for _, dir := range f.dirs {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	for _, dir := range f.made {
		// Another process's kubelet may have come to use it.
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	f.made = nil
	return errors.Join(errs...)
}

// url is the address of something the kubelet serves.
func (k *Kubelet) url(path string) string {
	return fmt.Sprintf("https://127.0.0.1:%d/%s", k.port, strings.TrimPrefix(path, "/"))
}
