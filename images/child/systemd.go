// SPDX-License-Identifier: Apache-2.0

package child

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// ErrSystemd says that there is no systemd that makes a scope. Its class is
// ErrUnavailable.
var ErrSystemd = errdefs.ErrUnavailable.WithMessage("systemd makes no scope")

// Systemd makes scopes by the system's manager, or by the user's own for one who is
// not root.
type Systemd struct{}

var _ Scopes = Systemd{}

// Start implements Scopes. Its error is ErrSystemd where there is none.
func (Systemd) Start(ctx context.Context, scope, slice string, pid int) error {
	connect := systemd.NewSystemConnectionContext
	if os.Geteuid() != 0 {
		connect = systemd.NewUserConnectionContext
	}
	manager, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSystemd, err)
	}
	defer manager.Close()
	properties := []systemd.Property{
		systemd.PropDescription("berth: pull of an image"),
		systemd.PropSlice(slice),
		systemd.PropPids(uint32(pid)),
		// A scope that has failed would stay otherwise, until somebody resets it.
		{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
	}
	done := make(chan string, 1)
	if _, err := manager.StartTransientUnitContext(ctx, scope, "fail", properties, done); err != nil {
		return fmt.Errorf("%w: %w", ErrSystemd, err)
	}
	select {
	case outcome := <-done:
		if outcome != "done" {
			return fmt.Errorf("%w: the job is %s", ErrSystemd, outcome)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
