// SPDX-License-Identifier: Apache-2.0

package process_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/shim/fault"
	"github.com/berthd/berth/shim/loop"
	"github.com/berthd/berth/shim/process"
)

func start(t *testing.T) (*loop.Loop, *process.Table) {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	table := process.New(l)
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Post(l.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l, table
}

func sh(script string) *process.Command {
	return &process.Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Files: []int{-1, -1, -1}, Group: true}
}

func TestExitCodes(t *testing.T) {
	_, table := start(t)
	for name, tc := range map[string]struct {
		script string
		want   process.Exit
	}{
		"success": {"true", process.Exit{}},
		"status":  {"exit 7", process.Exit{Code: 7}},
		"signal":  {"kill -9 $$", process.Exit{Code: 137, Signaled: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := table.Run(sh(tc.script), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if age := time.Since(time.Unix(0, got.At)); age < 0 || age > time.Minute {
				t.Errorf("got exit time %v ago", age)
			}
			got.At = 0
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestManyShortLivesAreAllSeen(t *testing.T) {
	_, table := start(t)
	for range 200 {
		if e, err := table.Run(&process.Command{Path: "/bin/true", Args: []string{"true"}}, time.Minute); err != nil || e.Code != 0 {
			t.Fatalf("got %+v, %v", e, err)
		}
	}
}

func TestRunKillsTheWholeGroupAtItsLimit(t *testing.T) {
	_, table := start(t)
	began := time.Now()
	_, err := table.Run(sh("sleep 60 & sleep 60"), 50*time.Millisecond)
	if fault.CodeOf(err) != fault.DeadlineExceeded || !strings.Contains(err.Error(), "50ms") {
		t.Errorf("got %v", err)
	}
	if time.Since(began) > 10*time.Second {
		t.Error("the group was not killed")
	}
}

func TestSpawnNamesTheProgramThatIsMissing(t *testing.T) {
	_, table := start(t)
	_, err := table.Run(&process.Command{Path: "/no/such/program"}, 0)
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("got %v", err)
	}
}

// onLoop runs f on the loop and waits for it.
func onLoop(l *loop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

func TestAdopt(t *testing.T) {
	l, table := start(t)
	if err := process.Subreaper(); err != nil {
		t.Fatal(err)
	}
	// A grandchild whose parent ends becomes ours.
	for name, script := range map[string]string{
		"still running":  "sleep 0.2; exit 5",
		"already exited": "sleep 0.02; exit 5",
	} {
		t.Run(name, func(t *testing.T) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(p[0])
			c := sh("( " + script + " ) & echo $!")
			c.Files[1] = p[1]
			if _, err := table.Run(c, time.Minute); err != nil {
				t.Fatal(err)
			}
			unix.Close(p[1])
			var b [32]byte
			n, _ := unix.Read(p[0], b[:])
			pid := 0
			for _, c := range b[:n-1] {
				pid = pid*10 + int(c-'0')
			}
			if name == "already exited" {
				for syscall.Kill(pid, 0) == nil {
				}
			}
			exits := make(chan process.Exit, 1)
			onLoop(l, func() { table.Adopt(pid, func(e process.Exit) { exits <- e }) })
			if e := <-exits; e.Code != 5 {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestAdoptOfAStrangerIsUnknown(t *testing.T) {
	l, table := start(t)
	exits := make(chan process.Exit, 1)
	onLoop(l, func() { table.Adopt(1, func(e process.Exit) { exits <- e }) })
	if e := <-exits; e.Code != process.Unknown {
		t.Errorf("got %+v, want code %d", e, process.Unknown)
	}
}

func TestSignal(t *testing.T) {
	l, table := start(t)
	exits := make(chan process.Exit, 1)
	pid, err := table.Spawn(sh("sleep 60"), func(process.Exit) {})
	if err != nil {
		t.Fatal(err)
	}
	var p *process.Process
	onLoop(l, func() { p = table.Adopt(pid, func(e process.Exit) { exits <- e }) })
	onLoop(l, func() {
		if err := p.Signal(0); err != nil {
			t.Errorf("probe: %v", err)
		}
		if err := p.Signal(1000); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("signal 1000: got %v", err)
		}
		if err := p.Signal(9); err != nil {
			t.Errorf("kill: %v", err)
		}
	})
	<-exits
	onLoop(l, func() {
		if err := p.Signal(0); err != process.ErrFinished {
			t.Errorf("after the end: got %v", err)
		}
	})
}
