// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// LabelPrune is the label of leases that a prune of images deletes: they keep what
// a pull has left for its next attempt.
const LabelPrune = "berth.io/prune.images"

// Labels of a pull's lease.
const (
	labelImage = "berth.io/pull.image" // the name that is pulled
	labelOwner = "berth.io/pull.owner" // the process that pulls, see owner
)

// leaseTime is how long what has arrived waits for the next attempt: as long as
// moby keeps it. A pull that takes longer fails.
const leaseTime = 8 * time.Hour

// cleanupTime bounds what is to be undone when a pull has ended.
const cleanupTime = 30 * time.Second

// lease creates the lease that protects what the pull of an image brings until it
// is recorded.
func (p *Puller) lease(ctx context.Context, image string) (leases.Lease, error) {
	labels := map[string]string{LabelPrune: "pull", labelImage: image, labelOwner: owner()}
	l, err := p.config.Client.LeasesService().Create(ctx,
		leases.WithRandomID(), leases.WithExpiration(leaseTime), leases.WithLabels(labels))
	if err != nil {
		return leases.Lease{}, fmt.Errorf("lease: %w", err)
	}
	return l, nil
}

// keep remembers the lease of a pull that may be tried again.
func (p *Puller) keep(image string, l leases.Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept[image] = append(p.kept[image], l.ID)
}

// drop deletes the lease of a pull that has failed for good, and waits until what
// it brought is gone.
func (p *Puller) drop(ctx context.Context, l leases.Lease) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := p.config.Client.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", l.ID, err)
	}
	return nil
}

// release deletes the lease of a pull that has succeeded, and those that earlier
// attempts have left. The image is recorded, so that a failure is not one of the
// pull: what is left expires.
func (p *Puller) release(ctx context.Context, image string, done leases.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	p.mu.Lock()
	ids := append([]string{done.ID}, p.kept[image]...)
	delete(p.kept, image)
	p.mu.Unlock()
	service := p.config.Client.LeasesService()
	left, err := service.List(ctx, fmt.Sprintf("labels.%q==%q", labelImage, image))
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", image).Warn("cannot look for leases of earlier pulls")
	}
	for _, l := range left {
		if !slices.Contains(ids, l.ID) && abandoned(l.Labels[labelOwner]) {
			ids = append(ids, l.ID)
		}
	}
	for _, id := range ids {
		if err := service.Delete(ctx, leases.Lease{ID: id}); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("image", image).Warn("lease of a pull is left to expire")
		}
	}
}

// owner names this process so that another one can tell whether it has ended:
// boot, PID namespace, process, and when that was started.
func owner() string {
	parts := ownerOf(os.Getpid())
	return strings.Join(parts[:], "/")
}

func ownerOf(pid int) (parts [4]string) {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	namespace, _ := os.Readlink("/proc/self/ns/pid")
	parts[0], parts[1] = strings.TrimSpace(string(boot)), namespace
	parts[2], parts[3] = strconv.Itoa(pid), startTime(pid)
	return parts
}

// abandoned tells whether the process that an owner names has surely ended.
func abandoned(owner string) bool {
	parts := strings.Split(owner, "/")
	if len(parts) != 4 {
		return false
	}
	pid, err := strconv.Atoi(parts[2])
	if err != nil {
		return false
	}
	now := ownerOf(pid)
	switch {
	case parts[0] == "" || now[0] == "" || parts[3] == "":
		return false
	case parts[0] != now[0]:
		return true // the machine was booted since
	case parts[1] != now[1]:
		return false // not to be seen from here
	}
	return parts[3] != now[3]
}

// startTime is field 22 of proc_pid_stat(5), empty for a process that has ended.
// The second field is in parentheses and may contain anything.
func startTime(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	if fields := strings.Fields(rest); len(fields) > 19 {
		return fields[19]
	}
	return ""
}
