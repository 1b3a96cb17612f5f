// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/integration/host"
)

// cli is berth's command line, on the shared daemon and with a network of tests.
type cli struct {
	*env
	conf string // CNI's
}

// cniConf is the network of all pods of these tests.
var cniConf = sync.OnceValues(host.Network)

// forCLI runs f and compares what is there before and after. Commands use berth's
// runtime, whatever is under test otherwise.
func forCLI(t *testing.T, f func(t *testing.T, c *cli)) {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	onDaemon(t, shared.d, f)
}

func onDaemon(t *testing.T, d *host.Daemon, f func(t *testing.T, c *cli)) {
	t.Helper()
	conf, err := cniConf()
	if err != nil {
		t.Fatal(err)
	}
	c := &cli{env: &env{Daemon: d, rt: host.Native}, conf: conf}
	if _, err := os.Stat("/run/berth/" + d.Namespace + "/containers"); err != nil {
		// Directories for all pods are there to stay.
		c.must(t, "pod", "rm", c.must(t, "pod", "create", "--network", "host"))
	}
	within(t, c.env, func(t *testing.T, _ *env) { f(t, c) })
}

// command is a call of berth that ends with the test.
func (c *cli) command(t testing.TB, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	all := append([]string{"--root", c.Dir + "/berth", "--config", c.Dir + "/berth.toml", "--cni-netconfpath", c.conf, "--cni-path", host.Deps("cni")}, args...)
	cmd := exec.CommandContext(ctx, host.Build("bin/berth"), all...)
	cmd.Env, cmd.Dir = c.Environ(), c.Dir
	return cmd
}

// result is how a call has ended.
type result struct {
	out, err string
	code     int
}

func (c *cli) run(t testing.TB, args ...string) result {
	t.Helper()
	return c.feed(t, "", args...)
}

// feed is run with input.
func (c *cli) feed(t testing.TB, in string, args ...string) result {
	t.Helper()
	cmd := c.command(t, args...)
	var out, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &stderr
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		t.Fatalf("berth %v: %v", args, err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must returns the output of a call that has to succeed, without its last newline.
func (c *cli) must(t testing.TB, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 || r.err != "" {
		t.Fatalf("berth %v: exit %d: %s%s", args, r.code, r.out, r.err)
	}
	return strings.TrimSuffix(r.out, "\n")
}

// fails wants an exit code and one line of an error, which holds words.
func (c *cli) fails(t testing.TB, code int, words string, args ...string) {
	t.Helper()
	r := c.run(t, args...)
	if r.code != code || !strings.Contains(r.err, words) {
		t.Errorf("berth %v: exit %d, want %d and %q: %s", args, r.code, code, words, r.err)
	}
	if !strings.HasPrefix(r.err, "berth: ") || strings.Count(r.err, "\n") != 1 || strings.Contains(r.err, "Usage:") {
		t.Errorf("berth %v: not one line of an error: %q", args, r.err)
	}
}

// object is a JSON object.
type object = map[string]any

// list decodes the JSON array that a call writes.
func (c *cli) list(t testing.TB, args ...string) []object {
	t.Helper()
	var all []object
	text := c.must(t, args...)
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("berth %v: %v: %s", args, err, text)
	}
	return all
}

// only is list for one object.
func (c *cli) only(t testing.TB, args ...string) object {
	t.Helper()
	all := c.list(t, args...)
	if len(all) != 1 {
		t.Fatalf("berth %v: %d objects, want 1", args, len(all))
	}
	return all[0]
}

// fields checks that an object has the values.
func fields(t testing.TB, got, want object) {
	t.Helper()
	some := object{}
	for key := range want {
		some[key] = got[key]
	}
	if diff := cmp.Diff(want, some); diff != "" {
		t.Errorf("JSON (-want +got):\n%s\nall keys: %v", diff, slices.Sorted(maps.Keys(got)))
	}
}

// pod makes a pod that goes with the test, and returns its ID.
func (c *cli) pod(t testing.TB, name string, flags ...string) string {
	t.Helper()
	made := c.must(t, append(append([]string{"pod", "create"}, flags...), name)...)
	t.Cleanup(func() { c.must(t, "pod", "rm", "-f", made) })
	return made
}

// A pod's life, as people and programs see it.
func TestCLIPod(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		made := c.pod(t, "web", "--label", "tier=front", "--hostname", "harbour")
		row := strings.Fields(strings.Split(c.must(t, "pod", "ls"), "\n")[1])
		if row[0] != made[:12] || row[1] != "web" || row[3] != "Ready" || row[4] != "0/0" || !strings.HasPrefix(row[5], "198.19.255.") {
			t.Errorf("row %q", row)
		}
		got := c.only(t, "pod", "ls", "-o", "json")
		fields(t, got, object{"id": made, "name": "web", "state": "Ready", "owner": "berth", "labels": object{"tier": "front"}})
		if ips, ok := got["ips"].([]any); !ok || len(ips) != 1 {
			t.Errorf("addresses %v", got["ips"])
		}
		for _, ref := range []string{made, made[:10], "web"} {
			fields(t, c.only(t, "pod", "inspect", ref), object{"id": made})
		}
		if got := c.must(t, "pods", "-q", "--no-trunc", "-f", "label=tier=front", "-f", "name=web", "-f", "state=ready"); got != made {
			t.Errorf("filtered: %q", got)
		}
		if got := c.list(t, "pods", "-o", "json", "-f", "label=tier=back"); len(got) != 0 {
			t.Errorf("filtered: %v", got)
		}
		c.fails(t, 125, "web", "pod", "create", "web") // and says who has it
		c.must(t, "pod", "stop", "web")
		c.must(t, "pod", "stop", "web")
		fields(t, c.only(t, "pod", "inspect", "web"), object{"state": "NotReady"})
		c.fails(t, 125, "NotReady", "pod", "port-forward", "web", ":80")
		c.must(t, "pod", "rm", "web")
		c.fails(t, 125, "web", "pod", "rm", "web")
		c.must(t, "pod", "rm", "-f", "web")
		if got := c.list(t, "pod", "ls", "-o", "json"); len(got) != 0 {
			t.Errorf("after its removal: %v", got)
		}
	})
}

// Pods as flags ask for them.
func TestCLIPodFlags(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		made := c.pod(t, "hosted", "--network", "host", "--pod-namespace", "team", "--uid", "u-1", "--attempt", "3", "--annotation", "a=b", "--id", "my-pod")
		if made != "my-pod" {
			t.Errorf("ID %q", made)
		}
		fields(t, c.only(t, "pod", "inspect", made), object{
			"name": "hosted", "namespace": "team", "uid": "u-1", "attempt": 3.0, "hostNetwork": true, "annotations": object{"a": "b"},
		})
		name := c.must(t, "pod", "create", "--network", "host")
		c.must(t, "pod", "rm", name)
	})
}

// What is wrong is said in one line, and the code tells whose fault it is.
func TestCLIErrors(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		for _, s := range []struct {
			name, words string
			args        []string
		}{
			{"command", "unknown command", []string{"nonsense"}},
			{"command of a group", "unknown command", []string{"pod", "nonsense"}},
			{"flag", "unknown flag", []string{"ps", "--nonsense"}},
			{"no argument", "requires at least 1 arg", []string{"pod", "rm"}},
			{"no pod", "nosuch", []string{"pod", "inspect", "nosuch"}},
			{"no container", "nosuch", []string{"container", "stop", "nosuch"}},
			{"no container to execute in", "nosuch", []string{"exec", "nosuch", "true"}},
			{"no container to unmount", "nosuch", []string{"container", "unmount", "nosuch"}},
			{"no signal", "NOPE", []string{"run", "--stop-signal", "NOPE", host.Busybox}},
			{"no log", "nosuch", []string{"logs", "nosuch"}},
			{"port", "HOSTPORT:PORT", []string{"pod", "create", "-p", "80", "x"}},
			{"volume", "no named volumes", []string{"run", "-v", "data:/data", host.Busybox}},
			{"memory", "512m", []string{"run", "--memory", "much", host.Busybox}},
			{"network", "cni, host or none", []string{"run", "--network", "bond", host.Busybox}},
			{"pod's flag for a member", "berth pod create", []string{"run", "--pod", "x", "-p", "1:1", host.Busybox}},
			{"nobody to remove it", "no daemon", []string{"run", "--rm", "-d", host.Busybox}},
			{"no terminal", "no terminal", []string{"run", "-it", host.Busybox}},
			{"detach keys", "ctrl-nonsense", []string{"run", "--detach-keys", "ctrl-nonsense", host.Busybox}},
			{"filter", "--filter", []string{"ps", "-f", "colour=red"}},
			{"format", "json", []string{"ps", "-o", "yaml"}},
			{"no limit", "no limit", []string{"container", "update", "x"}},
			{"no limit either", "unknown flag", []string{"container", "update", "--oom-score-adj", "5", "x"}},
			{"no target of a checkpoint", "--export", []string{"container", "checkpoint", "x"}},
			{"image", "nosuch", []string{"run", "example.com/nosuch:1"}},
		} {
			t.Run(s.name, func(t *testing.T) { c.fails(t, 125, s.words, s.args...) })
		}
		t.Run("address", func(t *testing.T) {
			c.fails(t, 125, "is containerd running?", "--address", "/nonsense.sock", "ps")
			c.fails(t, 125, "/nonsense.sock", "ps", "--address", "/nonsense.sock")
		})
	})
}

// The namespace is where ctr and nerdctl have it.
func TestCLINamespace(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web", "--network", "host")
		for _, args := range [][]string{{"--namespace", "elsewhere", "pods", "-q"}, {"pods", "-q", "--namespace", "elsewhere"}} {
			if got := c.must(t, args...); got != "" {
				t.Errorf("%v: %q", args, got)
			}
		}
		cmd := c.command(t) // its flags stand before the command, as the short ones
		cmd.Args = append(cmd.Args, "-n", c.Namespace, "-a", c.Socket, "pods", "-q")
		cmd.Env = append(cmd.Env, "CONTAINERD_NAMESPACE=elsewhere", "CONTAINERD_ADDRESS=/nonsense.sock")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("-n, -a: %v: %q", err, out)
		}
	})
}

// Shells complete names; a help is there for each command, with an example.
func TestCLIHelp(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		c.pod(t, "web", "--network", "host")
		if got := c.run(t, "__completeNoDesc", "pod", "inspect", "w").out; !strings.HasPrefix(got, "web\n:4") {
			t.Errorf("completion of a pod: %q", got)
		}
		if got := c.run(t, "__completeNoDesc", "run", "--pod", "").out; !strings.HasPrefix(got, "web\n") {
			t.Errorf("completion of --pod: %q", got)
		}
		if got := c.run(t, "__completeNoDesc", "run", "berth.test/b").out; !strings.HasPrefix(got, host.Busybox+"\n") {
			t.Errorf("completion of an image: %q", got)
		}
		groups := map[string][]string{
			"pod": strings.Fields("create ls inspect stats stop rm logs port-forward"),
			"container": strings.Fields("create run start exec attach logs stop kill pause unpause update stats top inspect ls rm " +
				"checkpoint restore mount unmount"),
			"shim": {"upgrade"}, "": strings.Fields("run exec logs ps pods doctor"),
		}
		for group, commands := range groups {
			for _, command := range commands {
				args := strings.Fields(fmt.Sprintf("%s %s --help", group, command))
				if got := c.must(t, args...); !strings.Contains(got, "Examples:") || strings.Contains(got, "stringArray") {
					t.Errorf("%v: %s", args, got)
				}
			}
		}
	})
}

// What the machine has is said whether containerd runs or not.
func TestCLIDoctor(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		r := c.run(t, "doctor", "-o", "json")
		var checks []object
		if err := json.Unmarshal([]byte(r.out), &checks); err != nil || len(checks) < 10 {
			t.Fatalf("exit %d: %v: %s%s", r.code, err, r.out, r.err)
		}
		for _, check := range checks {
			if check["name"] == "containerd" {
				fields(t, check, object{"status": "ok"})
			}
		}
		r = c.run(t, "--address", "/nonsense.sock", "doctor")
		if r.code != 1 || !strings.Contains(r.out, "missing") || r.err != "" {
			t.Errorf("without containerd: exit %d: %s%s", r.code, r.out, r.err)
		}
	})
}
