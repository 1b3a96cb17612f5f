// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthd/berth/plugin/runtime"
)

// atOnce is how many things are done at the same time: most of the time of
// stopping is waiting.
const atOnce = 8

// Each calls f for each reference, and writes those for which it succeeded, as
// docker does. It goes on after an error; the errors come back joined.
func (s *Session) Each(ctx context.Context, refs []string, f func(context.Context, *runtime.Service, string) error) error {
	return s.Do(ctx, func(ctx context.Context, service *runtime.Service) error {
		return s.each(refs, func(ref string) error { return f(ctx, service, ref) })
	})
}

// each calls f for each reference, some at once, and writes them in their order.
func (s *Session) each(refs []string, f func(string) error) error {
	answers := make([]chan error, len(refs))
	turns := make(chan struct{}, atOnce)
	for i, ref := range refs {
		answers[i] = make(chan error, 1) // one answer; nobody need wait for it
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			answers[i] <- f(ref)
		}()
	}
	var faults []error
	for i, ref := range refs {
		err := <-answers[i]
		if err == nil {
			_, err = fmt.Fprintln(s.Out, ref)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}
