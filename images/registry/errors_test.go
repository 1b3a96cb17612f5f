// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/registry"
	server "github.com/berthd/berth/integration/registry"
)

// answers are faults whose errors are the same wherever they strike.
var answers = map[string]struct {
	do    server.Action
	class error
	head  error // class where the answer has no content, unless it is the same
	words []string
}{
	"401":       {server.Answer(401, "UNAUTHORIZED"), errdefs.ErrUnauthenticated, nil, []string{"access denied", "does not exist or needs a login"}},
	"403":       {server.Answer(403, "DENIED"), errdefs.ErrPermissionDenied, nil, []string{"access denied", "403"}},
	"404":       {server.Answer(404, "MANIFEST_UNKNOWN"), errdefs.ErrNotFound, nil, nil},
	"429":       {server.Answer(429, "TOOMANYREQUESTS", "Retry-After", "0"), errdefs.ErrResourceExhausted, errdefs.ErrResourceExhausted, []string{"429", "says the test"}},
	"429 later": {server.Answer(429, "TOOMANYREQUESTS", "Retry-After", "3600"), errdefs.ErrResourceExhausted, nil, []string{"429"}},
	"500":       {server.Answer(500, "UNKNOWN"), registry.ErrUnavailable, nil, []string{"500"}},
	"503":       {server.Answer(503, "UNAVAILABLE", "Retry-After", "0"), errdefs.ErrUnavailable, nil, []string{"503"}},
	"code":      {server.Answer(400, "UNSUPPORTED"), errdefs.ErrNotImplemented, errdefs.ErrInvalidArgument, []string{"400", "says the test"}},
	"redirects": {server.RedirectLoop, registry.ErrUnavailable, nil, []string{"redirects without end"}},
}

func TestAnswers(t *testing.T) {
	for name, test := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, server.Options{})
			r := open(t, registry.Config{})
			remove := s.Inject(server.Fault{Path: "/v2/", Do: test.do})
			var errs []error
			_, err := resolve(t, r, s.ref, registry.Access{})
			errs = append(errs, err)
			_, err = fetch(ctx(t), r, s.ref, s.manifest)
			errs = append(errs, err)
			_, err = fetch(ctx(t), r, s.ref, s.layer)
			errs = append(errs, err)
			_, err = r.Tags(ctx(t), s.ref, registry.Access{})
			errs = append(errs, err)
			for i, err := range errs {
				class, words := test.class, test.words
				if i == 0 && test.head != nil {
					class, words = test.head, words[:1]
				}
				if !errors.Is(err, class) {
					t.Errorf("%d: error %v, want %v", i, err, class)
				}
				mentions(t, err, append(slices.Clone(words), s.Address+"/team/app")...)
			}
			remove()
			if _, err := resolve(t, r, s.ref, registry.Access{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHopeless: a registry that names a late time is not waited for.
func TestHopeless(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	s.Inject(server.Fault{Do: server.Answer(429, "TOOMANYREQUESTS", "Retry-After", "3600")})
	start := time.Now()
	if _, err := resolve(t, r, s.ref, registry.Access{}); err == nil {
		t.Error("no error")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if n := len(s.Log()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestPassingFaults: what is over after some requests is not seen.
func TestPassingFaults(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	faults := map[string]server.Fault{
		"429":           {Times: 3, Do: server.Answer(429, "TOOMANYREQUESTS")},
		"429 with time": {Times: 1, Do: server.Answer(429, "TOOMANYREQUESTS", "Retry-After", "1")},
		"500":           {Times: 3, Do: server.Answer(500, "UNKNOWN")},
		"503 with date": {Times: 1, Do: server.Answer(503, "UNAVAILABLE", "Retry-After", time.Now().UTC().Format(http.TimeFormat))},
		"no answer":     {Times: 1, Do: server.CutAfter(0)},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			fault.Path = s.layer.Digest.String()
			defer s.Inject(fault)()
			got, err := fetch(ctx(t), r, s.ref, s.layer)
			if err != nil || sum(got) != s.layer.Digest {
				t.Errorf("layer: %d bytes, %v", len(got), err)
			}
			if name == "no answer" {
				return // a HEAD request's answer has no content to cut
			}
			fault.Path = "/manifests/"
			defer s.Inject(fault)()
			if desc, err := resolve(t, r, s.ref, registry.Access{}); err != nil || desc.Digest != s.manifest.Digest {
				t.Errorf("resolve: %v, %v", desc.Digest, err)
			}
		})
	}
}

// TestTokenServerIsBusy: whoever gives out tokens gets the same patience.
func TestTokenServerIsBusy(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{Auth: server.Token})
	r := open(t, registry.Config{})
	a := registry.Access{Credentials: &registry.Credentials{Username: server.Username, Password: server.Password}}
	defer s.Inject(server.Fault{Path: "/token", Times: 3, Do: server.Answer(503, "UNAVAILABLE", "Retry-After", "0")})()
	if _, err := resolve(t, r, s.ref, a); err != nil {
		t.Error(err)
	}
	s.Inject(server.Fault{Path: "/token", Do: server.Answer(429, "TOOMANYREQUESTS", "Retry-After", "0")})
	_, err := resolve(t, r, s.ref, a)
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v, want ErrResourceExhausted", err)
	}
	mentions(t, err, s.ref.Text(), "429")
}

// TestCut: a layer whose connection breaks is asked for from there on.
func TestCut(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	const cut = 100_000
	s.Inject(server.Fault{Path: s.layer.Digest.String(), Times: 3, Do: server.CutAfter(cut)})
	got, err := fetch(ctx(t), r, s.ref, s.layer)
	if err != nil || !bytes.Equal(got, s.content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	var ranges []string
	for _, q := range s.Log() {
		ranges = append(ranges, q.Range)
	}
	want := []string{"", fmt.Sprintf("bytes=%d-", cut), fmt.Sprintf("bytes=%d-", 2*cut), fmt.Sprintf("bytes=%d-", 3*cut)}
	if diff := cmp.Diff(want, ranges); diff != "" {
		t.Errorf("ranges (-want +got):\n%s", diff)
	}
}

// TestReset: nor does it matter how the connection breaks.
func TestReset(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]server.Options{"plain": {}, "TLS": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, o)
			s.Inject(server.Fault{Path: s.layer.Digest.String(), Times: 3, Do: server.ResetAfter(layerBytes / 2)})
			got, err := fetch(ctx(t), open(t, registry.Config{}), s.ref, s.layer)
			if err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := len(s.Log()); n < 2 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestCutForEver: without progress there is an end.
func TestCutForEver(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	s.Inject(server.Fault{Path: s.layer.Digest.String(), Do: server.CutAfter(0)})
	_, err := fetch(ctx(t), open(t, registry.Config{}), s.ref, s.layer)
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	mentions(t, err, s.ref.Repository(), s.layer.Digest.String(), "connection closed")
}

// TestLies: less or more than there should be is an error, other content is
// delivered: whoever stores it compares the digest.
func TestLies(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	lie := func(name string, do server.Action) ([]byte, error) {
		defer s.Inject(server.Fault{Path: s.layer.Digest.String(), Do: do})()
		got, err := fetch(ctx(t), r, s.ref, s.layer)
		t.Logf("%s: %d bytes, %v", name, len(got), err)
		return got, err
	}
	_, err := lie("truncate", server.Truncate(1000))
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("truncated: %v, want ErrUnavailable", err)
	}
	mentions(t, err, s.layer.Digest.String(), "ended after 1000 of", s.ref.Repository())
	if got, err := lie("lengthen", server.Lengthen(10)); err == nil || len(got) > layerBytes*2 {
		t.Errorf("lengthened: %d bytes, %v", len(got), err)
	}
	if got, err := lie("corrupt", server.Corrupt); err != nil || len(got) != int(s.layer.Size) || sum(got) == s.layer.Digest {
		t.Errorf("corrupt: %d bytes, %v", len(got), err)
	}
}

// TestStalls: who waits is let go by his context, and by the limit for the first
// byte.
func TestStalls(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	for name, do := range map[string]server.Action{"before": server.Stall, "amid": server.StallAfter(1000)} {
		t.Run(name, func(t *testing.T) {
			defer s.Inject(server.Fault{Path: s.layer.Digest.String(), Do: do})()
			short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			_, err := fetch(short, r, s.ref, s.layer)
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("error %v, want that of the context alone", err)
			}
			mentions(t, err, s.ref.Repository())
			gone, cancel := context.WithCancel(context.Background())
			time.AfterFunc(100*time.Millisecond, cancel)
			if _, err := fetch(gone, r, s.ref, s.layer); !errdefs.IsCanceled(err) {
				t.Errorf("error %v, want ErrCanceled", err)
			}
		})
	}
	t.Run("limit", func(t *testing.T) {
		defer s.Inject(server.Fault{Do: server.Stall})()
		_, err := resolve(t, open(t, registry.Config{Timeout: 100 * time.Millisecond}), s.ref, registry.Access{})
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("error %v, want ErrUnavailable", err)
		}
		mentions(t, err, s.ref.Text(), "no answer in time")
	})
}

// 27: the class
func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	s.Close()
	r := open(t, registry.Config{})
	for _, name := range []string{s.ref.Text(), "nowhere.invalid/a:1"} {
		ref := parse(t, name)
		_, err := resolve(t, r, ref, registry.Access{})
		if !errors.Is(err, registry.ErrUnavailable) || !errdefs.IsUnavailable(err) {
			t.Errorf("error %v, want ErrUnavailable", err)
		}
		mentions(t, err, ref.Text(), "registry "+ref.Host())
	}
	_, err := r.Tags(ctx(t), s.ref, registry.Access{})
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("tags: error %v, want ErrUnavailable", err)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	s := serve(t, server.Options{})
	r := open(t, registry.Config{})
	for _, name := range []string{"/team/app:2", "/other:1"} {
		ref := parse(t, s.Address+name)
		_, err := resolve(t, r, ref, registry.Access{})
		if !errdefs.IsNotFound(err) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
		mentions(t, err, ref.Text())
	}
	absent := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: sum([]byte("absent")), Size: 6}
	if _, err := fetch(ctx(t), r, s.ref, absent); !errdefs.IsNotFound(err) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	if _, err := r.Tags(ctx(t), parse(t, s.Address+"/other"), registry.Access{}); !errdefs.IsNotFound(err) {
		t.Errorf("tags: error %v, want ErrNotFound", err)
	}
}

func TestClassifyLeavesOthers(t *testing.T) {
	other := errors.New("other")
	if got := registry.Classify(other); got != other {
		t.Errorf("Classify: %v", got)
	}
	if got := registry.Classify(nil); got != nil {
		t.Errorf("Classify(nil) = %v", got)
	}
	once := registry.Classify(fmt.Errorf("x: %w", context.Canceled))
	if twice := registry.Classify(once); twice != once {
		t.Errorf("Classify of a classified error: %v", twice)
	}
}
