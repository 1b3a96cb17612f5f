// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/reference"
)

func verify(s *session.Session) *cobra.Command {
	var a access
	var rules acceptance
	var remote bool
	c := &cobra.Command{
		Use:   "verify [flags] NAME...",
		Short: "Hold images against the signature policy",
		Long: `Hold images that are here against the signature policy as it is now, and write the
digests of those that it accepts. Signatures are asked of the registry. Nothing is
changed; pulls do the same before they fetch a layer.`,
		Example: `  berth image verify registry.example/app:1
  berth image verify --remote --signature-policy ./policy.json registry.example/app:2`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			access, err := a.access(s)
			if err != nil {
				return err
			}
			return do(cmd.Context(), s, rules.configure, func(ctx context.Context, service *images.Service) error {
				return each(args, func(name string) error {
					ref, err := reference.Parse(name)
					if err != nil {
						return err
					}
					r := images.VerifyRequest{Reference: ref, PolicyNamespace: rules.namespace, Access: access}
					if !remote {
						stored, err := service.Store().Resolve(ctx, name)
						if err != nil {
							return err
						}
						r.Digest = stored.Target.Digest
					}
					judged, err := service.Verify(ctx, r)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintf(s.Out, "%s@%s\n", ref.Repository(), judged)
					return err
				})
			})
		},
	}
	a.bind(c.Flags())
	rules.bind(c.Flags())
	c.Flags().BoolVar(&remote, "remote", false, "what the registry has by that name now")
	return c
}
