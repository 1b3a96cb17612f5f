// SPDX-License-Identifier: Apache-2.0

package child_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/images/child"
	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/reference"
	"github.com/berthd/berth/images/registry"
	"github.com/berthd/berth/images/transfer"
)

const patience = 30 * time.Second

// envAct makes the program a child that pulls in a way of its own.
const envAct = "BERTH_CHILD_ACT"

func TestMain(m *testing.M) {
	if name := os.Getenv(envAct); name != "" {
		os.Exit(act(name))
	}
	os.Exit(m.Run())
}

var progress = transfer.Progress{Ref: "r.io/x:1", Digest: digest.FromString("l"), Status: transfer.Downloading, Offset: 1, Total: 2, Start: time.Unix(1, 0).UTC()}

func act(name string) int {
	switch name {
	case "silent":
		return 0
	case "crash":
		fmt.Fprintln(os.Stderr, "oh no")
		return 3
	}
	err := child.Serve(context.Background(), os.Stdin, os.Stdout, os.Stderr, acts[name])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var acts = map[string]func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error){
	"good": func(_ context.Context, r pull.Request, tell func(transfer.Progress)) (pull.Result, error) {
		tell(progress)
		// What has arrived of the request comes back in the result.
		d, err := r.Reference.WithDigest(digest.FromString("t"))
		return pull.Result{
			Reference: d, Target: v1.Descriptor{Digest: digest.FromString("t"), MediaType: r.Platform},
			Config:  digest.FromString(r.Access.Credentials.Password + r.Policy + r.PolicyNamespace + r.Keys + r.Timeout.String()),
			Updated: true, Skipped: 3, Bytes: map[string]int64{"m": 4},
		}, err
	},
	"rejected": func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) {
		return pull.Result{}, fmt.Errorf("pull x: %w: no signature", policy.ErrRejected)
	},
	"stalled": func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) {
		return pull.Result{}, fmt.Errorf("pull x: %w", pull.ErrStalled)
	},
	"odd": func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) {
		return pull.Result{}, errors.New("something else")
	},
	"sliced": func(_ context.Context, r pull.Request, _ func(transfer.Progress)) (pull.Result, error) {
		return pull.Result{}, fmt.Errorf("slice %q", r.Slice)
	},
	"patient": func(ctx context.Context, _ pull.Request, tell func(transfer.Progress)) (pull.Result, error) {
		tell(progress)
		<-ctx.Done()
		return pull.Result{}, ctx.Err()
	},
}

// scopes remembers the scopes that were made.
type scopes struct {
	made []string
	pid  int
	err  error
}

func (s *scopes) Start(_ context.Context, scope, slice string, pid int) error {
	s.made, s.pid = append(s.made, scope+" in "+slice), pid
	return s.err
}

func parent(t *testing.T, name string, s *scopes) child.Parent {
	t.Setenv(envAct, name)
	return child.Parent{Command: []string{"/proc/self/exe", "-test.run=^$"}, Scopes: s}
}

func request(t testing.TB) pull.Request {
	t.Helper()
	ref, err := reference.Parse("r.io/x:1")
	if err != nil {
		t.Fatal(err)
	}
	return pull.Request{
		Reference: ref, Access: registry.Access{Credentials: &registry.Credentials{Username: "u", Password: "secret"}},
		Platform: "linux/arm64", PolicyNamespace: "ns", Policy: "p", Keys: "k", Timeout: time.Second, Slice: "pulls.slice",
	}
}

// A32, as far as it can be seen without systemd.
func TestRun(t *testing.T) {
	s := &scopes{}
	var told []transfer.Progress
	got, err := parent(t, "good", s).Run(t.Context(), request(t), func(p transfer.Progress) { told = append(told, p) })
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{fmt.Sprintf("berth-pull-%d.scope in pulls.slice", s.pid)}; !cmp.Equal(s.made, want) {
		t.Errorf("scopes %v, want %v", s.made, want)
	}
	if diff := cmp.Diff([]transfer.Progress{progress}, told); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if got.Reference.Text() != "r.io/x@"+digest.FromString("t").String() || got.Target.MediaType != "linux/arm64" ||
		got.Config != digest.FromString("secretpnsk1s") || !got.Updated || got.Skipped != 3 || got.Bytes["m"] != 4 {
		t.Errorf("result %+v", got)
	}
	gone(t, s.pid)
}

func TestRunFails(t *testing.T) {
	tests := map[string]struct {
		is   func(error) bool
		text string
	}{
		"rejected": {func(err error) bool { return errors.Is(err, policy.ErrRejected) }, "no signature"},
		"stalled":  {func(err error) bool { return errors.Is(err, pull.ErrStalled) }, "no progress"},
		"odd":      {errdefs.IsUnknown, "something else"},
		"sliced":   {errdefs.IsUnknown, `slice ""`}, // or else it would look for a child again
		"silent":   {errdefs.IsInternal, "without a result"},
		"crash":    {errdefs.IsInternal, "oh no"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := &scopes{}
			_, err := parent(t, name, s).Run(t.Context(), request(t), nil)
			if !test.is(err) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want one with %q", err, test.text)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the error tells the password: %v", err)
			}
			gone(t, s.pid)
		})
	}
}

// Without its scope a child does nothing.
func TestNoScope(t *testing.T) {
	s := &scopes{err: errdefs.ErrUnavailable.WithMessage("no systemd")}
	_, err := parent(t, "good", s).Run(t.Context(), request(t), func(transfer.Progress) { t.Error("it has begun") })
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "pulls.slice") {
		t.Errorf("error %v, want Unavailable that names the slice", err)
	}
	gone(t, s.pid)
}

func TestRunIsCancelled(t *testing.T) {
	s := &scopes{}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := parent(t, "patient", s).Run(ctx, request(t), func(transfer.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
	gone(t, s.pid)
}

// A child whose parent is killed gives up.
func TestParentGoes(t *testing.T) {
	in, parent := io.Pipe()
	var out, text bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- child.Serve(t.Context(), in, &out, &text, acts["patient"]) }()
	if _, err := io.WriteString(parent, `{"Reference": "r.io/x:1"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := parent.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil || !strings.Contains(out.String(), `"canceled"`) {
			t.Errorf("it ended with %v and wrote %s", err, out.String())
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}

func TestBadRequest(t *testing.T) {
	for _, text := range []string{"", "x", `{"Reference": ""}`, `{"Reference": "UPPER"}`} {
		err := child.Serve(t.Context(), strings.NewReader(text), io.Discard, io.Discard, func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) {
			t.Error("it has pulled")
			return pull.Result{}, nil
		})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: error %v, want InvalidArgument", text, err)
		}
	}
}

// Where there is no systemd a pull in a scope fails, and says so.
func TestNoSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("there is one; see the machine's tests")
	}
	err := child.Systemd{}.Start(t.Context(), "berth-pull-1.scope", "x.slice", os.Getpid())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "systemd") {
		t.Errorf("error %v, want Unavailable", err)
	}
}

// gone checks that a child has been waited for.
func gone(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d is still there (%v)", pid, err)
	}
}
