// SPDX-License-Identifier: Apache-2.0

// Package integration tests berth from outside: real containerd, ctr and runc,
// berth's shim as a program. Numbers in comments are the acceptance statements
// of the shim's specification.
//
// The tests need root. BERTH_TEST_RUNTIME=stock runs them against containerd's
// own shim, to test the tests; what only berth promises is then left out.
// BERTH_TEST_OCI=crun has berth's shim use crun.
package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/integration/crypt"
	"github.com/berthd/berth/integration/host"
)

// patience bounds every single call and every wait; nothing here should come
// near it but on an emulated machine.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	crypt.Main()
	host.EnterOffline()
	code := m.Run()
	if shared.d != nil {
		if err := shared.d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// shared is the daemon of all tests that do not ask for one of their own.
var shared struct {
	once sync.Once
	d    *host.Daemon
	err  error
}

// env is what a test case runs in.
type env struct {
	*host.Daemon
	rt host.Runtime
}

// forRuntimes runs f for each runtime under test, on the shared daemon, and
// compares what is there before and after.
func forRuntimes(t *testing.T, f func(t *testing.T, e *env)) {
	t.Helper()
	shared.once.Do(func() { shared.d, shared.err = host.New(host.Options{}) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	for _, rt := range host.Runtimes() {
		t.Run(rt.Label, func(t *testing.T) { within(t, &env{Daemon: shared.d, rt: rt}, f) })
	}
}

// ownDaemon is forRuntimes with a new daemon for each runtime, in parallel.
func ownDaemon(t *testing.T, o host.Options, f func(t *testing.T, e *env)) {
	t.Helper()
	for _, rt := range host.Runtimes() {
		t.Run(rt.Label, func(t *testing.T) {
			t.Parallel()
			within(t, &env{Daemon: host.Run(t, o), rt: rt}, f)
		})
	}
}

// within runs f and compares what is there before it and after its cleanups.
func within(t *testing.T, e *env, f func(t *testing.T, e *env)) {
	t.Helper()
	if _, err := os.Stat(e.rt.Binary()); err != nil {
		t.Fatalf("%v (run `make build`)", err)
	}
	before := e.Count(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log:\n%s", e.Log(15))
		}
		e.Settle(t, before)
	})
	f(t, e)
}

// berthOnly ends a case that containerd's own shim does not claim to pass.
func (e *env) berthOnly(t *testing.T) {
	t.Helper()
	if !e.rt.Berth {
		t.Skip("only berth promises this")
	}
}

// ctx is a context in the daemon's namespace that ends with the test.
func (e *env) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return e.Context(ctx)
}

// eventually polls until ok returns "", and fails with its last answer.
func eventually(t testing.TB, limit time.Duration, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := ok()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// id makes a container id out of the test's name.
func id(t testing.TB) string {
	name := strings.NewReplacer("/", "-", "#", "", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test"))
	return strings.Trim(name[max(0, len(name)-60):], "-.")
}
