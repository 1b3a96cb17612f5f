// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/images/reference"
)

// SourceLabel is the label of a blob that lists the repositories of one registry in
// which it has been seen. Registries are told apart without their ports, as
// containerd does.
func SourceLabel(ref reference.Reference) string {
	host := ref.Host()
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return labels.LabelDistributionSource + "." + host
}

// AddSource notes at a blob in the content store that the reference's repository
// has it. When the label would become too long for containerd the repositories
// that were noted first are forgotten.
func AddSource(ctx context.Context, store content.Manager, d digest.Digest, ref reference.Reference) error {
	info, err := store.Info(ctx, d)
	if err != nil {
		return fmt.Errorf("source of %s: %w", d, err)
	}
	key := SourceLabel(ref)
	value, changed := appendSource(key, info.Labels[key], ref.Path())
	if !changed {
		return nil
	}
	update := content.Info{Digest: d, Labels: map[string]string{key: value}}
	if _, err := store.Update(ctx, update, "labels."+key); err != nil {
		return fmt.Errorf("source of %s: %w", d, err)
	}
	return nil
}

func appendSource(key, list, repository string) (value string, changed bool) {
	var all []string
	if list != "" {
		all = strings.Split(list, ",")
	}
	if slices.Contains(all, repository) {
		return list, false
	}
	all = append(all, repository)
	for len(all) > 1 && labels.Validate(key, strings.Join(all, ",")) != nil {
		all = all[1:]
	}
	return strings.Join(all, ","), true
}
