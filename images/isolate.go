// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"io"

	"github.com/berthd/berth/images/child"
	"github.com/berthd/berth/images/pull"
	"github.com/berthd/berth/images/transfer"
)

// ServePull is what the program of Config.PullCommand calls, with its standard input,
// output and error: it does one pull for the service that has started it. That one
// sends the events.
func (s *Service) ServePull(ctx context.Context, in io.Reader, out, text io.Writer) error {
	return child.Serve(ctx, in, out, text, s.puller.Pull)
}

// isolate is how a pull is done in another process, nil if there is no program
// for it.
func (s *Service) isolate() func(context.Context, pull.Request, func(transfer.Progress)) (pull.Result, error) {
	if len(s.config.PullCommand) == 0 {
		return nil
	}
	return child.Parent{Command: s.config.PullCommand, Scopes: child.Systemd{}}.Run
}
