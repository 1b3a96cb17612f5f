// SPDX-License-Identifier: Apache-2.0

// Command berth-verify tells containerd whether an image may be pulled. It is an
// image verifier as the plugin io.containerd.image-verifier.v1.bindir executes
// them: once for each pull by the transfer service, after the name was resolved
// and before anything is fetched. The rules are those of policy.json, see package
// policy; docs/policy.md says how to install it.
//
// It prints one line, the reason, which containerd shows to who asked for the
// image. Exit code 0 accepts the image, 1 refuses it, and 2 says that nothing
// could be found out, which containerd takes for a refusal.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/berthd/berth/images/policy"
	"github.com/berthd/berth/images/reference"
)

const (
	// defaultTimeout leaves time to tell the reason: containerd kills a verifier
	// after per_verifier_timeout, 10 s, and then has none to show.
	defaultTimeout = 8 * time.Second
	// maxDescriptorBytes bounds what is read. Descriptors have a few hundred bytes,
	// but their annotations have no limit.
	maxDescriptorBytes = 1 << 20
)

const (
	exitRefused   = 1
	exitUndecided = 2
)

// request is what the command line says.
type request struct {
	name, digest, stdinMediaType string
	policy                       policy.Config
	system                       types.SystemContext
	timeout                      time.Duration
}

func main() {
	r := request{}
	flag.StringVar(&r.name, "name", "", "`reference` of the image")
	flag.StringVar(&r.digest, "digest", "", "`digest` that it was resolved to")
	flag.StringVar(&r.stdinMediaType, "stdin-media-type", "", "`type` of what is on standard input; empty: nothing is read")
	flag.StringVar(&r.policy.Path, "policy", "", "`file` with the policy (default: policy.json of the system)")
	flag.StringVar(&r.policy.RegistriesDir, "registries-d", "", "`folder` that says where signatures are (default: the system's)")
	flag.StringVar(&r.system.SystemRegistriesConfPath, "registries-conf", "", "`file` about registries and mirrors (default: the system's)")
	flag.StringVar(&r.system.AuthFilePath, "authfile", "", "`file` with credentials (default: root's auth.json or docker configuration)")
	flag.DurationVar(&r.timeout, "timeout", defaultTimeout, "give up after this `duration`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	reason, code := r.run(ctx, os.Stdin)
	stop()
	fmt.Println(reason)
	os.Exit(code)
}

// run returns the reason, one line, and the exit code.
func (r *request) run(ctx context.Context, stdin io.Reader) (string, int) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	err := r.verify(ctx, stdin)
	switch {
	case err == nil:
		return "signature policy allows " + r.name, 0
	case errors.Is(err, policy.ErrRejected):
		return oneLine(err), exitRefused
	case errdefs.IsDeadlineExceeded(err):
		return fmt.Sprintf("gave up after %v: %s", r.timeout, oneLine(err)), exitUndecided
	}
	return oneLine(err), exitUndecided
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (r *request) verify(ctx context.Context, stdin io.Reader) error {
	if err := r.checkDescriptor(stdin); err != nil {
		return err
	}
	ref, err := reference.Parse(r.name)
	if err != nil {
		return err
	}
	rules, err := policy.Load(r.policy, "") // containerd tells no namespace
	if err != nil {
		return err
	}
	if loopback(ref.Host()) {
		// As containerd has it, which does not ask for TLS there either.
		r.system.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return rules.Verify(ctx, policy.Subject{Reference: ref, Digest: digest.Digest(r.digest), System: &r.system})
}

// loopback tells whether a registry, "host" or "host:port", is on this machine.
func loopback(registry string) bool {
	name := registry
	if host, _, err := net.SplitHostPort(registry); err == nil {
		name = host
	}
	address, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && address.IsLoopback()
}

// checkDescriptor holds the descriptor that containerd is going to pull against
// the digest on the command line.
func (r *request) checkDescriptor(stdin io.Reader) error {
	switch r.stdinMediaType {
	case "":
		return nil
	case ocispec.MediaTypeDescriptor:
	default:
		return fmt.Errorf("standard input of type %q: %w", r.stdinMediaType, errdefs.ErrNotImplemented)
	}
	var desc ocispec.Descriptor
	if err := json.NewDecoder(io.LimitReader(stdin, maxDescriptorBytes)).Decode(&desc); err != nil {
		return fmt.Errorf("descriptor on standard input: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if string(desc.Digest) != r.digest {
		return fmt.Errorf("descriptor on standard input is of %q, not of %q: %w", desc.Digest, r.digest, errdefs.ErrInvalidArgument)
	}
	return nil
}
