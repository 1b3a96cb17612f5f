// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/filter"
	"github.com/berthd/berth/images/reference"
)

// item is an image of a list, as programs get it.
type item struct {
	ID        string     `json:"id"`
	Names     []string   `json:"names"`
	Digests   []string   `json:"digests"`
	Target    string     `json:"target"`
	Platform  string     `json:"platform,omitempty"`
	Size      *int64     `json:"size,omitempty"` // of its blobs
	CreatedAt *time.Time `json:"createdAt,omitempty"`
	Pinned    bool       `json:"pinned"`
}

// list is what `ls` was told.
type list struct {
	report.Listing

	all, digests, tree bool
	filters            []string
}

// List is `berth image ls`.
func List(s *session.Session) *cobra.Command {
	l := list{Listing: report.Listing{Out: s.Out}}
	c := &cobra.Command{
		Use:     "ls [flags] [NAME]",
		Aliases: []string{"list"},
		Short:   "List images",
		Long: `List the images of a namespace, or those of a name: a repository, with or without a tag, in
which * and ? stand for anything. The size is that of the compressed layers. --tree shows
all platforms of each image, what they take unpacked too, and which containers use them.
Filters are reference, dangling, label, label!, before, since and until.`,
		Example: `  berth images
  berth image ls --tree
  berth image ls -f dangling=true -q
  berth image ls -f label=tier=front -f until=24h
  berth -n k8s.io image ls -o json | jq -r '.[] | select(.pinned) | .names[]'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: Names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			filters, err := filterMap(l.filters)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				filters[filter.KeyReference] = append(filters[filter.KeyReference], args[0])
			}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if l.tree {
					return report.Show(ctx, &l.Listing, func(ctx context.Context) (*report.List[branch], error) {
						return l.grown(ctx, service, filters)
					})
				}
				return report.Show(ctx, &l.Listing, func(ctx context.Context) (*report.List[item], error) {
					return l.flat(ctx, service, filters)
				})
			})
		},
	}
	l.Bind(c.Flags())
	c.Flags().BoolVarP(&l.all, "all", "a", false, "also those without a name that others were made from")
	c.Flags().BoolVar(&l.digests, "digests", false, "show the digests of what names stand for")
	c.Flags().BoolVar(&l.tree, "tree", false, "show all platforms of each image")
	c.Flags().StringArrayVarP(&l.filters, "filter", "f", nil, "`KEY=VALUE` that images must have")
	return c
}

// flat is the list of images, a row for each name.
func (l *list) flat(ctx context.Context, service *images.Service, filters map[string][]string) (*report.List[item], error) {
	all, err := service.List(ctx, images.ListOptions{Brief: true})
	if err != nil {
		return nil, err
	}
	if all, err = l.choose(ctx, service, filters, all); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b images.Image) int { return b.Created.Compare(a.Created) })
	t := &report.List[item]{Table: report.Table{Titles: []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"}}}
	if l.digests {
		t.Table.Titles = slices.Insert(t.Table.Titles, 2, "DIGEST")
	}
	for i := range all {
		t.Items = append(t.Items, itemOf(&all[i]))
		t.IDs = append(t.IDs, all[i].ID.Hex())
		t.Table.Rows = append(t.Table.Rows, l.rows(&all[i])...)
	}
	return t, nil
}

// choose leaves out what filters do not let pass, and what is hidden without --all.
// It costs more than the list: mostly nothing is left out.
func (l *list) choose(ctx context.Context, service *images.Service, filters map[string][]string, all []images.Image) ([]images.Image, error) {
	nameless := slices.ContainsFunc(all, func(img images.Image) bool { return img.Name == nil })
	if len(filters) == 0 && (l.all || !nameless) {
		return all, nil
	}
	passing, err := service.Summaries(ctx, images.SummaryOptions{Filters: filters, All: l.all})
	if err != nil {
		return nil, err
	}
	records := map[string]bool{}
	for _, p := range passing {
		for _, name := range p.Records {
			records[name] = true
		}
	}
	all = slices.DeleteFunc(all, func(img images.Image) bool {
		return !slices.ContainsFunc(img.Records, func(name string) bool { return records[name] })
	})
	if patterns := filters[filter.KeyReference]; len(patterns) > 0 {
		for i := range all {
			all[i].RepoTags = slices.DeleteFunc(all[i].RepoTags, func(name string) bool {
				return !slices.ContainsFunc(patterns, func(pattern string) bool { return filter.MatchName(pattern, name) })
			})
		}
	}
	return all, nil
}

func itemOf(img *images.Image) item {
	i := item{
		ID: img.ID.Hex(), Names: append([]string{}, img.RepoTags...), Digests: append([]string{}, img.RepoDigests...),
		Target: img.Target.Digest.String(), Platform: platformName(img.Platform), Size: img.Size, Pinned: img.Pinned,
	}
	if !img.Created.IsZero() {
		i.CreatedAt = &img.Created
	}
	return i
}

func platformName(p v1.Platform) string {
	if p.OS == "" {
		return ""
	}
	return platforms.Format(p)
}

// none is what docker writes for a name that is not there.
const none = "<none>"

// rows are those of an image: one for each tag, else for each repository, else one.
func (l *list) rows(img *images.Image) (rows [][]string) {
	size := ""
	if img.Size != nil {
		size = report.Bytes(uint64(*img.Size))
	}
	add := func(repository, tag string) {
		row := []string{repository, tag, l.ID(img.ID.Hex()), l.Time(img.Created), size}
		if l.digests {
			row = slices.Insert(row, 2, img.Target.Digest.String())
		}
		rows = append(rows, row)
	}
	for _, name := range img.RepoTags {
		ref, err := reference.Parse(name)
		if err != nil {
			add(name, "")
			continue
		}
		add(familiar(ref), ref.Tag())
	}
	if len(rows) > 0 {
		return rows
	}
	if len(img.RepoDigests) > 0 {
		repository, _, _ := strings.Cut(img.RepoDigests[0], "@")
		if ref, err := reference.Parse(repository); err == nil {
			repository = familiar(ref)
		}
		add(repository, none)
		return rows
	}
	add(none, none)
	return rows
}

// familiar is a repository as people write it.
func familiar(ref reference.Reference) string {
	return strings.TrimSuffix(strings.TrimSuffix(ref.Familiar(), "@"+ref.Digest().String()), ":"+ref.Tag())
}

// branch is an image with its variants, as programs get it.
type branch struct {
	ID        string    `json:"id"`
	Target    string    `json:"target"`
	MediaType string    `json:"mediaType"`
	Names     []string  `json:"names"`
	Digests   []string  `json:"digests"`
	Content   int64     `json:"content"`  // bytes of blobs
	Unpacked  int64     `json:"unpacked"` // bytes of unpacked layers
	CreatedAt time.Time `json:"createdAt"`
	Pinned    bool      `json:"pinned"`
	Manifests []twig    `json:"manifests"`
}

// twig is one variant of an image.
type twig struct {
	Digest     string   `json:"digest"`
	Kind       string   `json:"kind"`
	Platform   string   `json:"platform,omitempty"`
	Subject    string   `json:"subject,omitempty"` // what an attestation is about
	Available  bool     `json:"available"`
	Content    int64    `json:"content"`
	Unpacked   int64    `json:"unpacked"`
	Containers []string `json:"containers"`
}

// grown is the list of images with their variants.
func (l *list) grown(ctx context.Context, service *images.Service, filters map[string][]string) (*report.List[branch], error) {
	all, err := service.Summaries(ctx, images.SummaryOptions{Filters: filters, All: l.all, Manifests: true})
	if err != nil {
		return nil, err
	}
	t := &report.List[branch]{Table: report.Table{Titles: []string{"IMAGE", "ID", "CONTENT", "UNPACKED", "HERE", "USED BY"}}}
	for i := range all {
		b := branchOf(&all[i])
		t.Items = append(t.Items, b)
		t.IDs = append(t.IDs, b.ID)
		t.Table.Rows = append(t.Table.Rows, l.treeRows(&all[i], &b)...)
	}
	return t, nil
}

func branchOf(sum *images.Summary) branch {
	return branch{
		ID: cmp.Or(sum.Config, sum.Target.Digest).Encoded(), Target: sum.Target.Digest.String(), MediaType: sum.Target.MediaType,
		Names: append([]string{}, sum.RepoTags...), Digests: append([]string{}, sum.RepoDigests...),
		Content: sum.Content, Unpacked: sum.Unpacked, CreatedAt: sum.Created, Pinned: sum.Pinned, Manifests: twigs(sum.Manifests),
	}
}

func twigs(variants []images.Variant) []twig {
	list := []twig{}
	for _, v := range variants {
		list = append(list, twig{
			Digest: v.Descriptor.Digest.String(), Kind: string(v.Kind), Platform: platformName(v.Platform), Subject: v.Subject.String(),
			Available: v.Available, Content: v.Content, Unpacked: v.Unpacked, Containers: append([]string{}, v.Containers...),
		})
	}
	return list
}

// treeRows are an image's names, the first with what all its variants have, and its
// variants below.
func (l *list) treeRows(sum *images.Summary, b *branch) [][]string {
	names := slices.Clone(sum.RepoTags)
	if len(names) == 0 {
		names = []string{none}
	}
	rows := [][]string{{short(names[0]), l.ID(b.ID), size(b.Content), size(b.Unpacked), " ", " "}}
	for _, name := range names[1:] {
		rows = append(rows, []string{short(name), l.ID(b.ID), " ", " ", " ", " "})
	}
	for i, twig := range b.Manifests {
		stem := "├─ "
		if i == len(b.Manifests)-1 {
			stem = "└─ "
		}
		var users []string
		for _, id := range twig.Containers {
			users = append(users, l.ID(id))
		}
		_, digits, _ := strings.Cut(twig.Digest, ":")
		rows = append(rows, []string{
			stem + cmp.Or(twig.Platform, twig.Kind), l.ID(digits), size(twig.Content), size(twig.Unpacked),
			map[bool]string{true: "yes", false: "no"}[twig.Available], strings.Join(users, ","),
		})
	}
	return rows
}

// short is a name as people write it.
func short(name string) string {
	if ref, err := reference.Parse(name); err == nil {
		return ref.Familiar()
	}
	return name
}

func size(n int64) string { return report.Bytes(uint64(max(0, n))) }
