// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// TestMain is the process that dies, too.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BERTH_CLAIM_DIR"); dir != "" {
		if _, err := Dir(dir).Take("id.x", Note{Owner: "x", Task: "create", Details: map[string]string{"pod": "p"}}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		time.Sleep(time.Hour) // until it is killed
	}
	os.Exit(m.Run())
}

func TestClaim(t *testing.T) {
	d := Dir(t.TempDir() + "/claims")
	a, err := d.Take("name.a\nb", Note{Owner: "one", Task: "create"})
	if err != nil || a.Left != nil {
		t.Fatalf("first: %v, %v", err, a)
	}
	_, err = d.Take("name.a\nb", Note{Owner: "two", Task: "create"})
	var held *HeldError
	if !errors.As(err, &held) || held.By.Owner != "one" || !errdefs.IsAlreadyExists(err) {
		t.Errorf("second: %v", err)
	}
	if !strings.Contains(err.Error(), "one (create)") {
		t.Errorf("the error does not tell the owner: %v", err)
	}
	if names, err := d.Abandoned(""); err != nil || len(names) > 0 {
		t.Errorf("abandoned while held: %v, %v", names, err)
	}
	a.Release()
	b, err := d.Take("name.a\nb", Note{Owner: "two"})
	if err != nil || b.Left != nil {
		t.Fatalf("after release: %v, %v", err, b)
	}
	b.Release()
	left, err := os.ReadDir(string(d))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDead: the claim of a process that was killed can be taken, and tells.
func TestDead(t *testing.T) {
	d := Dir(t.TempDir())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BERTH_CLAIM_DIR="+string(d))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("child said %q", line)
	}
	if _, err := d.Take("id.x", Note{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("while it lives: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Wait(ctx, "id.x", Note{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	if _, err := d.Wait(t.Context(), "id.x", Note{}, func(n Note) bool { return n.Task == "create" }); !errdefs.IsAlreadyExists(err) {
		t.Errorf("not waiting: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if names, err := d.Abandoned("id."); err != nil || !slices.Equal(names, []string{"id.x"}) {
		t.Errorf("abandoned: %v, %v", names, err)
	}
	if names, _ := d.Abandoned("name."); len(names) > 0 {
		t.Errorf("other prefix: %v", names)
	}
	c, err := d.Take("id.x", Note{Owner: "y"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Note{"x", "create", map[string]string{"pod": "p"}}, c.Left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	c.Leave()
	if names, _ := d.Abandoned(""); len(names) != 1 {
		t.Errorf("abandoned after Leave: %v", names)
	}
}

// TestCutShort: who died while it wrote its note has left a file without one, which
// goes, or the end of an earlier note behind its own.
func TestCutShort(t *testing.T) {
	d := Dir(t.TempDir())
	if err := os.WriteFile(d.path("id.x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := d.Abandoned(""); err != nil || len(names) > 0 {
		t.Errorf("abandoned: %v, %v", names, err)
	}
	if _, err := os.Stat(d.path("id.x")); err != nil {
		t.Errorf("a file that may be somebody's in a moment: %v", err)
	}
	before := time.Now().Add(-2 * begin)
	if err := os.Chtimes(d.path("id.x"), before, before); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Abandoned(""); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.path("id.x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without a note: %v", err)
	}
	if err := os.WriteFile(d.path("id.y"), []byte(`{"Name":"id.y","Owner":"y","Task":"t"}rest of it"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := d.Abandoned(""); err != nil || !slices.Equal(names, []string{"id.y"}) {
		t.Errorf("abandoned: %v, %v", names, err)
	}
}

// TestExclusive: at no time are there two holders, whatever the order of releases.
func TestExclusive(t *testing.T) {
	d := Dir(t.TempDir())
	var inside, rounds atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				c, err := d.Wait(t.Context(), "x", Note{Owner: "x"}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two holders")
				}
				rounds.Add(1)
				inside.Add(-1)
				c.Release()
			}
		})
	}
	wg.Wait()
	if rounds.Load() != 100 {
		t.Errorf("%d rounds", rounds.Load())
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	one, err := LockDir(t.Context(), dir, Shared)
	if err != nil {
		t.Fatal(err)
	}
	two, err := LockDir(t.Context(), dir, Shared)
	if err != nil {
		t.Fatal(err)
	}
	two()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockDir(ctx, dir, Exclusive); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	one()
	three, err := LockDir(t.Context(), dir, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := LockDir(t.Context(), dir, Shared)
		waited <- err
	}()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	three()
	if err := <-waited; !errdefs.IsNotFound(err) {
		t.Errorf("of a removed directory: %v", err)
	}
}
