// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/services/tasks/v1"
	ctd "github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/integration/host"
)

// kubeletDoc is the guide whose configuration is tested.
const kubeletDoc = "../docs/kubelet.md"

// TestKubeletDocument runs pods with the configuration that the guide shows, in
// the files that it names.
func TestKubeletDocument(t *testing.T) {
	const main, berth = "/etc/containerd/config.toml", "/etc/containerd/conf.d/berth.toml"
	for _, c := range []struct {
		name    string
		files   []string
		handler string
		pause   bool
		systemd bool // what the kubelet is told
	}{
		{name: "handler", files: []string{main, berth}, handler: "berth"},
		{name: "default", files: []string{main, berth, "/etc/containerd/conf.d/berth-default.toml"}},
		{name: "cgroups", files: []string{main, berth, "/etc/containerd/conf.d/cgroups.toml"}, handler: "berth", systemd: true},
		{name: "dropin", files: []string{main, "/etc/containerd/conf.d/berth-runc.toml"}, handler: "runc", pause: true, systemd: host.Systemd()},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := documentedNode(t, c.files, c.pause)
			n.sub(t, "pod", func(t *testing.T, n *node) { documentedPod(t, n, c.handler, c.pause) })
			answer, err := n.RuntimeConfig(n.ctx(t), &runtime.RuntimeConfigRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if got := answer.GetLinux().GetCgroupDriver() == runtime.CgroupDriver_SYSTEMD; got != c.systemd {
				t.Errorf("the kubelet is told %v", answer.GetLinux().GetCgroupDriver())
			}
		})
	}
}

// documentedNode is a containerd that imports documented files, which are where
// the guide says.
func documentedNode(t *testing.T, files []string, pause bool) *node {
	t.Helper()
	blocks := documented(t, kubeletDoc)
	t.Cleanup(func() {
		if err := os.RemoveAll("/etc/containerd"); err != nil { // it is this program's own, see host.Enter
			t.Error(err)
		}
	})
	for _, file := range files {
		text, ok := blocks[file]
		if !ok {
			t.Fatalf("%s shows no %s", kubeletDoc, file)
		}
		text = strings.ReplaceAll(text, "/usr/local/bin/containerd-shim-berth-v1", host.DropIn.Binary())
		if pause && !host.Systemd() {
			text = strings.ReplaceAll(text, "SystemdCgroup = true", "SystemdCgroup = false")
		}
		write(t, file, text)
	}
	return importingNode(t, files[0], pause, nil)
}

// importingNode is a containerd whose own configuration imports a file and adds only
// what makes it a private one. Programs in the folders of path come first.
func importingNode(t *testing.T, file string, pause bool, path []string) *node {
	t.Helper()
	conf, err := host.Network()
	if err != nil {
		t.Fatal(err)
	}
	d := host.Run(t, host.Options{CRI: true, Images: []string{}, Path: path, TOML: `
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + host.Pause + `'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # a machine may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['` + host.Deps("cni") + `']
    conf_dir = '` + conf + `'
`})
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.Dir + "/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.Dir+"/config.toml", "imports = ['"+file+"']\n"+string(text))
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	n := &node{env: &env{rt: host.Native, Daemon: d}}
	images := []string{"busybox"} // CRI learns of them in this order, and connect waits for it
	if pause || n.older(t) {
		images = []string{"pause", "busybox"}
	}
	for _, image := range images {
		out, err := d.Ctr("-n", criNamespace, "images", "import", host.Deps("images/"+image+".tar")).CombinedOutput()
		if err != nil {
			t.Fatalf("import %s: %v: %s", image, err, out)
		}
	}
	n.connect(t)
	t.Cleanup(func() { _ = n.Client.Close() })
	return n
}

// documentedPod runs a pod of two containers and looks at its processes.
func documentedPod(t *testing.T, n *node, handler string, pause bool) {
	pod := n.podOf(t, handler)
	ids := []string{startIn(t, n, pod, idle("a")), startIn(t, n, pod, idle("b"))}
	if got := n.check(t, ids[0], "hostname"); got != "pod" {
		t.Errorf("hostname %q, want the pod's", got)
	}
	var inits []int
	for _, id := range ids {
		ctx := ctd.WithNamespace(n.ctx(t), criNamespace)
		task, err := n.Daemon.Client().TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err != nil {
			t.Fatal(err)
		}
		inits = append(inits, int(task.GetProcess().GetPid()))
	}
	got := map[string]int{}
	for _, m := range host.Monitors(append(ids, pod.ID), inits) {
		got[m.Name]++
	}
	wantPauses := 0
	if pause {
		wantPauses = 1
	}
	if got["containerd-shim-berth-v1"] != 3 || got["pause"] != wantPauses || len(got) != 1+wantPauses {
		t.Errorf("processes beside the containers' own: %v, want 3 of berth's and %d pauses", got, wantPauses)
	}
}

// TestKubeletDocumentAgrees checks what no containerd reads.
func TestKubeletDocumentAgrees(t *testing.T) {
	blocks := documented(t, kubeletDoc)
	text, err := os.ReadFile(kubeletDoc)
	if err != nil {
		t.Fatal(err)
	}
	for _, handler := range regexp.MustCompile(`(?m)^handler: (\w+)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(blocks["/etc/containerd/conf.d/berth.toml"], "runtimes."+handler[1]+"]") {
			t.Errorf("RuntimeClass for the handler %s, which is not configured", handler[1])
		}
	}
}

// documented returns the TOML of a document by the file that it is for, which
// the first line names.
func documented(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```toml\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		first, _, _ := strings.Cut(m[1], "\n")
		file, ok := strings.CutPrefix(first, "# /")
		if !ok {
			t.Errorf("%s: a block does not say which file it is: %q", path, first)
		}
		blocks["/"+file] = m[1]
	}
	return blocks
}
