// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// MinCRIU is the oldest CRIU that containers of pods can be restored with: it
// joins the namespaces of others (its release notes for 3.16).
const MinCRIU = "3.16"

// Supported tells whether CRIU is there and new enough: NotImplemented says why
// not.
func (e *Engine) Supported(ctx context.Context) error {
	version, err := CRIUVersion(ctx, e.CRIU)
	if err != nil {
		return fmt.Errorf("criu: %w: %w", errdefs.ErrNotImplemented, err)
	}
	if older(version, MinCRIU) {
		return fmt.Errorf("criu %s is older than %s: %w", version, MinCRIU, errdefs.ErrNotImplemented)
	}
	return nil
}

// CRIUVersion asks a program, "criu" if empty, for its version, such as "3.17.1".
func CRIUVersion(ctx context.Context, program string) (string, error) {
	if program == "" {
		program = "criu"
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Version:"); ok {
			return strings.TrimSpace(version), nil
		}
	}
	return "", fmt.Errorf("%s tells no version: %w", program, errdefs.ErrUnknown)
}

// older compares versions number by number. What is no number counts as 0.
func older(version, than string) bool {
	a, b := strings.Split(version, "."), strings.Split(than, ".")
	for i := range max(len(a), len(b)) {
		x, y := number(a, i), number(b, i)
		if x != y {
			return x < y
		}
	}
	return false
}

func number(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	n, _ := strconv.Atoi(parts[i])
	return n
}

// maxReasons bounds what of a log gets into an error.
const maxReasons = 5

// withReasons adds to err the first errors in CRIU's log. The shim has the log's
// end, where they usually no longer are: cleaning up comes after them.
func withReasons(err error, log string) error {
	b, rerr := os.ReadFile(log)
	if rerr != nil {
		return err // CRIU has not come that far
	}
	var reasons []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "Error (") && len(reasons) < maxReasons {
			reasons = append(reasons, strings.TrimSpace(line))
		}
	}
	if len(reasons) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s: %s)", err, filepath.Base(log), strings.Join(reasons, "; "))
}

// Features in which runtimes say whether they were built with CRIU.
var checkpointFeatures = []string{"org.opencontainers.runc.checkpoint.enabled", "run.oci.checkpoint.enabled"}

// runtimeSupports refuses a runtime that says it cannot. One that says nothing is
// tried.
func (e *Engine) runtimeSupports(ctx context.Context, info *containers.Container) error {
	var options any // not a nil value in an interface
	if info.Runtime.Options != nil {
		options = info.Runtime.Options
	}
	found, err := e.Client.RuntimeInfo(ctx, info.Runtime.Name, options)
	if err != nil {
		return nil //nolint:nilerr // the runtime itself has the last word
	}
	f, ok := found.Features.(*features.Features)
	if !ok {
		return nil
	}
	for _, name := range checkpointFeatures {
		if f.Annotations[name] == "false" {
			return fmt.Errorf("runtime %s was built without CRIU: %w", info.Runtime.Name, errdefs.ErrNotImplemented)
		}
	}
	return nil
}
