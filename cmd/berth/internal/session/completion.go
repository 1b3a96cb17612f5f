// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/plugin/runtime"
)

// completionLimit is how long a shell is kept waiting.
const completionLimit = 2 * time.Second

// Pods completes references of pods, up to most of them; 0: any number.
func (s *Session) Pods(most int) cobra.CompletionFunc {
	return s.complete(most, func(ctx context.Context, service *runtime.Service) []cobra.Completion {
		pods, _ := service.Pods(ctx, runtime.PodFilter{}) // a shell cannot show errors
		var words []cobra.Completion
		for _, p := range pods {
			words = append(words, cobra.CompletionWithDesc(p.Name, "pod, "+string(p.State)))
		}
		return words
	})
}

// Containers completes references of containers in one of the states; none: any.
func (s *Session) Containers(most int, states ...runtime.ContainerState) cobra.CompletionFunc {
	return s.complete(most, func(ctx context.Context, service *runtime.Service) []cobra.Completion {
		containers, _ := service.Containers(ctx, runtime.ContainerFilter{AllOwners: true}) // as above
		var words []cobra.Completion
		for _, c := range containers {
			if len(states) == 0 || slices.Contains(states, c.State) {
				words = append(words, cobra.CompletionWithDesc(c.Name, c.Image+", "+string(c.State)))
			}
		}
		return words
	})
}

func (s *Session) complete(most int, list func(context.Context, *runtime.Service) []cobra.Completion) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begin string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		var words []cobra.Completion
		err := s.Do(ctx, func(ctx context.Context, service *runtime.Service) error {
			words = list(ctx, service)
			return nil
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		words = slices.DeleteFunc(words, func(word cobra.Completion) bool {
			name, _, _ := strings.Cut(word, "\t")
			return !strings.HasPrefix(name, begin) || slices.Contains(args, name)
		})
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
