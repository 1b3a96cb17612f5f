// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	eventapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/integration/host"
)

// receiver is where a shim sends its events, in containerd's place.
type receiver struct {
	mu     sync.Mutex
	topics []string // guarded by mu
}

// Forward is containerd's side of the protocol.
func (r *receiver) Forward(_ context.Context, in *eventapi.ForwardRequest) (*emptypb.Empty, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.topics = append(r.topics, strings.TrimPrefix(in.GetEnvelope().GetTopic(), "/tasks/"))
	return &emptypb.Empty{}, nil
}

func (r *receiver) received() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.topics...)
}

// listen serves at a socket until the test ends.
func (r *receiver) listen(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventapi.RegisterTTRPCEventsService(server, r)
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// elsewhere is e with another place for the shim's events, where nobody listens
// yet.
func (e *env) elsewhere(t *testing.T) *env {
	t.Helper()
	dir, err := os.MkdirTemp(e.Dir, "ev") // short, for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := *e.Daemon
	d.Socket = dir + "/c"
	return &env{Daemon: &d, rt: e.rt}
}

// TestEventsWithoutContainerd lets events happen while nobody takes them.
// 27: none is lost and their order is kept; when they are more than the queue
// holds, the shim lives and answers.
func TestEventsWithoutContainerd(t *testing.T) {
	away := 5 * time.Second
	if os.Getenv("BERTH_TEST_FULL") != "" {
		away = 30 * time.Second
	}
	ownDaemon(t, host.Options{}, func(t *testing.T, e *env) {
		e.berthOnly(t) // the stock shim keeps no order
		e.sub(t, "a hundred", func(t *testing.T) { manyEvents(t, e.elsewhere(t), away) })
		e.sub(t, "more than fit", func(t *testing.T) { tooManyEvents(t, e.elsewhere(t)) })
	})
}

func manyEvents(t *testing.T, e *env, away time.Duration) {
	const execs = 33
	back := time.After(away)
	s := e.shim(t)
	s.run(t, stdio{})
	want := []string{"create", "start"}
	for i := range execs {
		id := fmt.Sprintf("e%d", i)
		s.runExec(t, id, stdio{}, "true")
		if code := s.wait(t, id); code != 0 {
			t.Errorf("exec %d exits with %d", i, code)
		}
		s.delete(t, id)
		want = append(want, "exec-added", "exec-started", "exit")
	}
	<-back
	var r receiver
	r.listen(t, e.Socket+".ttrpc")
	eventually(t, patience, func() string {
		got := r.received()
		if len(got) < len(want) {
			return fmt.Sprintf("%d events of %d arrived", len(got), len(want))
		}
		return ""
	})
	if got := r.received(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("events %q, want %q", got, want)
	}
}

// queueLength is how many events a shim keeps (section 2.3 of its specification).
const queueLength = 2048

func tooManyEvents(t *testing.T, e *env) {
	s := e.shim(t)
	s.run(t, stdio{})
	for range queueLength/2 + 50 {
		if _, err := s.Pause(e.ctx(t), &taskapi.PauseRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Resume(e.ctx(t), &taskapi.ResumeRequest{ID: s.id}); err != nil {
			t.Fatal(err)
		}
	}
	s.status(t)
	var r receiver
	r.listen(t, e.Socket+".ttrpc")
	eventually(t, patience, func() string {
		if got := r.received(); len(got) < queueLength {
			return fmt.Sprintf("%d events arrived", len(got))
		}
		return ""
	})
	got := r.received()
	for i := 1; i < len(got); i++ {
		if got[i] == got[i-1] {
			t.Fatalf("%q twice, in places %d and %d of %d", got[i], i-1, i, len(got))
		}
	}
	if got[len(got)-1] != "resumed" {
		t.Errorf("the last event is %q", got[len(got)-1])
	}
}
