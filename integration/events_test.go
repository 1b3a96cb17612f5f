// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	eventapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// recorder keeps containerd's task events, in their order.
type recorder struct {
	e  *env
	mu sync.Mutex
	// guarded by mu
	list   []record
	synced map[string]bool
}

// record is one event: "create", "start", "exit", ... or "exit:EXEC".
type record struct {
	id, name string
	event    any
	at       time.Time
}

// record subscribes to containerd's events and returns once they arrive.
func (e *env) record(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{e: e, synced: map[string]bool{}}
	ctx, cancel := context.WithCancel(e.Context(context.Background()))
	stream, errs := e.Client().Subscribe(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case envelope := <-stream:
				r.take(envelope)
			case <-errs:
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	r.sync(t, patience)
	return r
}

func (r *recorder) take(envelope *events.Envelope) {
	if envelope.Namespace != r.e.Namespace {
		return
	}
	event, err := typeurl.UnmarshalAny(envelope.Event)
	if err != nil {
		event = err // a type that nobody knows; the test will show it
	}
	name := strings.TrimPrefix(envelope.Topic, "/tasks/")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch x := event.(type) {
	case *eventapi.ContentDelete: // our own mark, see sync
		r.synced[x.Digest] = true
		return
	case *eventapi.TaskExit:
		if x.ID != x.ContainerID {
			name += ":" + x.ID
		}
	}
	var id string
	if v := reflect.Indirect(reflect.ValueOf(event)); v.Kind() == reflect.Struct {
		if f := v.FieldByName("ContainerID"); f.IsValid() {
			id = f.String()
		}
		if f := v.FieldByName("ExecID"); f.IsValid() {
			name += ":" + f.String()
		}
	}
	if strings.HasPrefix(envelope.Topic, "/tasks/") {
		r.list = append(r.list, record{id, name, event, envelope.Timestamp})
	}
}

// sync sends a mark through containerd until it comes back: everything
// containerd had before it has been recorded then.
func (r *recorder) sync(t *testing.T, limit time.Duration) {
	t.Helper()
	mark := fmt.Sprintf("mark %d", time.Now().UnixNano())
	eventually(t, limit, func() string {
		if err := r.e.Client().EventService().Publish(r.e.ctx(t), "/test/mark", &eventapi.ContentDelete{Digest: mark}); err != nil {
			return err.Error()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.synced[mark] {
			return "no events arrive"
		}
		return ""
	})
}

// names returns what happened to a container so far.
func (r *recorder) names(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, x := range r.list {
		if x.id == id {
			names = append(names, x.name)
		}
	}
	return names
}

// until waits until the last event of a container is called last, and returns
// all of its events.
func (r *recorder) until(t *testing.T, id, last string) []string {
	t.Helper()
	var names []string
	eventually(t, patience, func() string {
		names = r.names(id)
		if len(names) == 0 || names[len(names)-1] != last {
			return fmt.Sprintf("no %q at the end of %q", last, names)
		}
		return ""
	})
	return names
}

// event returns the first event of that name.
func (r *recorder) event(t *testing.T, id, name string) any {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.list {
		if x.id == id && x.name == name {
			return x.event
		}
	}
	t.Fatalf("no event %q", name)
	return nil
}
