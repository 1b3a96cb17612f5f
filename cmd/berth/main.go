// SPDX-License-Identifier: Apache-2.0

// Command berth makes, runs and shows pods, containers and images of containerd. Its
// parts are in the packages below; the work is done by plugin/runtime and images.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cmd/berth/internal/command"
	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/logdriver"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/plugin/runtime"
)

// version is set by the linker.
var version = "dev"

func main() {
	var err error
	if len(os.Args) == 3 && os.Args[1] == runtime.LogDriverCommand { // for shims, not for people
		err = logdriver.Run(os.Args[2])
	} else {
		err = run(context.Background())
	}
	if text := exit.Message(err); text != "" {
		fmt.Fprintln(os.Stderr, "berth: "+text)
	}
	os.Exit(exit.Of(err))
}

// run executes the command of the arguments. The first signal to end is heeded by
// the command, the second one ends the program as usual.
func run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1) // one is enough to end
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		cancel(exit.Signal(s.(unix.Signal)))
	}()
	s := &session.Session{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	err := command.Root(s, version).ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		// Whatever it says, this is why.
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}
