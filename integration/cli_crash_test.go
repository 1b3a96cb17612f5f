// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/integration/host"
)

// moments is how often a call is killed, each time a little later.
const moments = 5

// killed runs a call and kills it after a part of the time that it takes.
func (c *cli) killed(t *testing.T, part, of int, takes time.Duration, args ...string) {
	t.Helper()
	cmd := c.command(t, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(takes*time.Duration(part)/time.Duration(of), func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
}

// takes is how long a call takes.
func (c *cli) takes(t *testing.T, args ...string) time.Duration {
	t.Helper()
	start := time.Now()
	c.must(t, args...)
	return time.Since(start)
}

// A call that is killed at any moment leaves nothing, or what `berth pod rm` clears,
// and its name is free then.
func TestCLIKilled(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		gone := func(t *testing.T, part int) {
			t.Helper()
			c.must(t, "pod", "rm", "-f", "p")
			if got := c.must(t, "pods", "-q") + c.must(t, "ps", "-aq"); got != "" {
				t.Fatalf("killed at %d/%d, and removed: %s is there", part, moments, got)
			}
		}
		t.Run("create pod", func(t *testing.T) {
			defer c.SettleKilled(t, c.Count(t))
			takes := c.takes(t, "pod", "create", "p")
			c.must(t, "pod", "rm", "-f", "p")
			for part := range moments {
				c.killed(t, part, moments, takes, "pod", "create", "p")
				if part%2 == 0 { // else the next one meets what is left
					gone(t, part)
				} else if r := c.run(t, "pod", "create", "p"); r.code != 0 && !strings.Contains(r.err, "p") {
					t.Errorf("killed at %d/%d: exit %d: %s", part, moments, r.code, r.err)
				} else {
					gone(t, part)
				}
			}
		})
		t.Run("remove pod", func(t *testing.T) {
			defer c.SettleKilled(t, c.Count(t))
			var takes time.Duration
			for part := -1; part < moments; part++ {
				c.must(t, "pod", "create", "p")
				c.must(t, "run", "-d", "--pod", "p", "--name", "a", host.Busybox, "sh", "-c", idling)
				if part < 0 {
					takes = c.takes(t, "pod", "rm", "-f", "p")
					continue
				}
				c.killed(t, part, moments, takes, "pod", "rm", "-f", "p")
				gone(t, part)
			}
		})
		t.Run("run container", func(t *testing.T) {
			defer c.SettleKilled(t, c.Count(t))
			c.must(t, "pod", "create", "p")
			takes := c.takes(t, "run", "-d", "--pod", "p", "--name", "a", host.Busybox, "sh", "-c", idling)
			gone(t, 0)
			for part := range moments {
				c.must(t, "pod", "create", "p")
				c.killed(t, part, moments, takes, "run", "-d", "--pod", "p", "--name", "a", host.Busybox, "sh", "-c", idling)
				if part%2 == 0 {
					c.must(t, "container", "rm", "-f", "a")
					c.must(t, "run", "-d", "--pod", "p", "--name", "a", host.Busybox, "sh", "-c", idling)
				}
				gone(t, part)
			}
		})
		t.Run("remove container", func(t *testing.T) {
			defer c.SettleKilled(t, c.Count(t))
			c.must(t, "pod", "create", "p")
			var takes time.Duration
			for part := -1; part < moments; part++ {
				c.must(t, "run", "-d", "--pod", "p", "--name", "a", host.Busybox, "sh", "-c", idling)
				if part < 0 {
					takes = c.takes(t, "container", "rm", "-f", "a")
					continue
				}
				c.killed(t, part, moments, takes, "container", "rm", "-f", "a")
				c.must(t, "container", "rm", "-f", "a")
			}
			gone(t, moments)
		})
		t.Run("container with a pod of its own", func(t *testing.T) {
			defer c.SettleKilled(t, c.Count(t))
			takes := c.takes(t, "run", "-d", "--name", "p", host.Busybox, "sh", "-c", idling)
			c.must(t, "container", "rm", "-f", "p")
			for part := range moments {
				c.killed(t, part, moments, takes, "run", "-d", "--name", "p", host.Busybox, "sh", "-c", idling)
				gone(t, part)
			}
		})
	})
}

// Of two who want one name at once, one gets it, and the other is told who has it.
func TestCLIOneName(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		const callers = 4
		c.pod(t, "shared", "--network", "host")
		for _, args := range [][]string{
			{"pod", "create", "--network", "host", "same"},
			{"container", "create", "--pod", "shared", "--name", "same", host.Busybox, "true"},
		} {
			results := make([]result, callers)
			var all sync.WaitGroup
			for i := range results {
				all.Go(func() { results[i] = c.run(t, args...) })
			}
			all.Wait()
			var winner strings.Builder
			for _, r := range results {
				if r.code == 0 {
					winner.WriteString(strings.TrimSpace(r.out))
				}
			}
			const idLength = 64
			if len(winner.String()) != idLength {
				t.Errorf("%v: made %q", args, winner.String())
			}
			for _, r := range results {
				if r.code != 0 && (r.code != 125 || !strings.Contains(r.err, winner.String())) {
					t.Errorf("%v: exit %d: %s, want to be told of %s", args, r.code, r.err, winner.String())
				}
			}
		}
		c.must(t, "pod", "rm", "same")
	})
}

// A pod of three containers lives through containerd's death.
func TestCLIContainerdKilled(t *testing.T) {
	onDaemon(t, host.Run(t, host.Options{}), func(t *testing.T, c *cli) {
		c.pod(t, "web")
		for _, name := range []string{"a", "b", "c"} {
			c.must(t, "run", "-d", "--pod", "web", "--name", name, host.Busybox, "sh", "-c", "echo begun; "+idling)
		}
		cmd := c.command(t, "run", "--rm", "--pod", "web", "--name", "d", host.Busybox, "sh", "-c", "echo ready; sleep 3; exit 5")
		var out lines
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() string { return out.lacks(1, "ready") })
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		c.fails(t, 125, "is containerd running?", "ps")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
			t.Errorf("a run in the foreground: exit %d, want 5", cmd.ProcessState.ExitCode())
		}
		fields(t, c.only(t, "pod", "inspect", "web"), object{"state": "Ready"})
		if got := c.list(t, "ps", "-o", "json"); len(got) != 3 {
			t.Errorf("running: %v", got)
		}
		for _, name := range []string{"a", "b", "c"} {
			if got := c.must(t, "exec", name, "ip", "-o", "-4", "addr", "show", "eth0"); !strings.Contains(got, "198.19.255.") {
				t.Errorf("address seen by %s: %q", name, got)
			}
			if got := c.must(t, "logs", name); got != "begun" {
				t.Errorf("log of %s: %q", name, got)
			}
		}
		c.must(t, "pod", "stop", "-t", "5", "web")
		if got := c.must(t, "ps", "-q"); got != "" {
			t.Errorf("after the stop: %s", got)
		}
	})
}

// ctr sees what berth has made and may change it; berth shows what ctr has made and
// leaves it alone.
func TestCLIWithCtr(t *testing.T) {
	forCLI(t, func(t *testing.T, c *cli) {
		made := c.start(t, "app", "--label", "a=b", host.Busybox, "sh", "-c", idling)
		ctr := func(args ...string) string {
			t.Helper()
			out, err := c.Ctr(args...).Output()
			if err != nil {
				t.Fatalf("ctr %v: %v: %s", args, err, out)
			}
			return string(out)
		}
		if got := ctr("containers", "ls"); !strings.Contains(got, made) || !strings.Contains(got, host.Busybox) {
			t.Errorf("ctr containers ls: %s", got)
		}
		if got := ctr("containers", "info", made); !strings.Contains(got, `"a": "b"`) || !strings.Contains(got, "io.containerd.berth.v1") {
			t.Errorf("ctr containers info: %s", got)
		}
		if got := ctr("tasks", "ls"); !strings.Contains(got, made) || !strings.Contains(got, "RUNNING") {
			t.Errorf("ctr tasks ls: %s", got)
		}
		if got := ctr("snapshots", "ls"); !strings.Contains(got, made) {
			t.Errorf("ctr snapshots ls: %s", got)
		}
		if got := ctr("tasks", "exec", "--exec-id", "x", "--fifo-dir", c.Dir+"/fifo", made, "echo", "hello"); got != "hello\n" {
			t.Errorf("ctr tasks exec: %q", got)
		}
		ctr("tasks", "pause", made)
		fields(t, c.only(t, "container", "inspect", "app"), object{"state": "Paused"})
		ctr("tasks", "resume", made)
		fields(t, c.only(t, "container", "inspect", "app"), object{"state": "Running"})
		ctr("tasks", "kill", "--signal", "KILL", made)
		eventually(t, patience, func() string {
			if got := c.only(t, "container", "inspect", "app"); got["state"] != "Exited" || got["exitCode"] != 137.0 {
				return fmt.Sprint(got["state"], got["exitCode"])
			}
			return ""
		})

		c.foreign(t, "ctrs")
		if got := c.only(t, "ps", "-o", "json", "-f", "owner=other"); got["id"] != "ctrs" || got["state"] != "Running" {
			t.Errorf("ctr's container: %v", got)
		}
		if got := c.must(t, "ps", "-aq", "--all-owners", "--no-trunc"); got != "ctrs\n"+made {
			t.Errorf("all owners: %q", got)
		}
		if got := c.must(t, "ps", "-aq", "--no-trunc"); got != made {
			t.Errorf("those in pods: %q", got)
		}
		c.fails(t, 125, "not made by berth", "container", "stop", "ctrs")
		c.fails(t, 125, "not made by berth", "container", "rm", "ctrs")
		c.fails(t, 125, "log", "logs", "ctrs")
		fields(t, c.only(t, "container", "inspect", "ctrs"), object{"state": "Running"})
	})
}

// foreign runs a container as ctr does, which goes with the test.
func (c *cli) foreign(t *testing.T, id string) {
	t.Helper()
	if out, err := c.Ctr("run", "-d", "--runtime", host.Native.Name, host.Busybox, id, "sleep", "1000").CombinedOutput(); err != nil {
		t.Fatalf("ctr run: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := c.Ctr("tasks", "rm", "-f", id).CombinedOutput(); err != nil {
			t.Errorf("ctr tasks rm: %v: %s", err, out)
		}
		if out, err := c.Ctr("containers", "rm", id).CombinedOutput(); err != nil {
			t.Errorf("ctr containers rm: %v: %s", err, out)
		}
	})
}
