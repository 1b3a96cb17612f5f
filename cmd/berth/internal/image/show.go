// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/cmd/berth/internal/exit"
	"github.com/berthd/berth/cmd/berth/internal/report"
	"github.com/berthd/berth/cmd/berth/internal/session"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/images/check"
	"github.com/berthd/berth/images/reference"
)

// whole is all that is known of an image, as programs get it.
type whole struct {
	ID          string            `json:"id"`
	Target      v1.Descriptor     `json:"target"`
	Manifest    v1.Descriptor     `json:"manifest"`
	Names       []string          `json:"names"`
	Digests     []string          `json:"digests"`
	Records     []string          `json:"records"` // of containerd's image store
	Parent      string            `json:"parent,omitempty"`
	Platform    string            `json:"platform"`
	CreatedAt   *time.Time        `json:"createdAt,omitempty"`
	UpdatedAt   time.Time         `json:"updatedAt"`
	Size        int64             `json:"size"`
	Pinned      bool              `json:"pinned"`
	Snapshot    string            `json:"snapshot,omitempty"`
	Unpacked    bool              `json:"unpacked"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Config      v1.Image          `json:"config"`
	Manifests   []twig            `json:"manifests"`
}

// distant is what is known of an image in a registry.
type distant struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Target   v1.Descriptor `json:"target"`
	Manifest v1.Descriptor `json:"manifest"`
	Platform string        `json:"platform"`
	Size     int64         `json:"size"`
	Config   v1.Image      `json:"config"`
}

func inspect(s *session.Session) *cobra.Command {
	var a access
	var remote bool
	var platform string
	c := &cobra.Command{
		Use:   "inspect [flags] IMAGE...",
		Short: "Show all that is known of images, as JSON",
		Long: `Show all that is known of images, of the variant for this host or --platform: names,
digests, configuration, and which manifests there are. With --remote the registry is
asked, and nothing is stored.`,
		Example: `  berth image inspect nginx
  berth image inspect nginx | jq '.[0].config.config.Env'
  berth image inspect --remote registry.example/app:2 | jq -r '.[0].id'`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			access, err := a.access(cmd.Context(), s)
			if err != nil {
				return err
			}
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if remote {
					return session.Inspect(s, refs, func(name string) (distant, error) {
						return lookAt(ctx, service, images.PrepareRequest{Name: name, Platform: platform, Access: access})
					})
				}
				return session.Inspect(s, refs, func(ref string) (whole, error) {
					return tellAll(ctx, service, images.InspectRequest{Image: ref, Platform: platform})
				})
			})
		},
	}
	a.bind(c.Flags())
	c.Flags().BoolVar(&remote, "remote", false, "what registries have by these names")
	c.Flags().StringVar(&platform, "platform", "", "`PLATFORM` of the images, as linux/arm64")
	return c
}

func tellAll(ctx context.Context, service *images.Service, r images.InspectRequest) (whole, error) {
	d, err := service.Inspect(ctx, r)
	if err != nil {
		return whole{}, err
	}
	variants, err := service.Manifests(ctx, r.Image)
	if err != nil {
		return whole{}, err
	}
	w := whole{
		ID: d.ConfigDigest.Encoded(), Target: d.Target, Manifest: d.Manifest,
		Names: append([]string{}, d.RepoTags...), Digests: append([]string{}, d.RepoDigests...), Records: d.Records,
		Parent: d.Parent.String(), CreatedAt: d.Config.Created, UpdatedAt: d.Updated, Size: d.Size, Pinned: d.Pinned,
		Snapshot: d.Snapshot.String(), Unpacked: d.Unpacked, Annotations: d.Annotations, Config: d.Config,
		Manifests: twigs(variants),
	}
	if d.Manifest.Platform != nil {
		w.Platform = platformName(*d.Manifest.Platform)
	}
	return w, nil
}

// lookAt asks a registry for an image.
func lookAt(ctx context.Context, service *images.Service, r images.PrepareRequest) (d distant, err error) {
	img, err := service.Prepare(ctx, r)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	d = distant{ID: img.Config.Encoded(), Name: img.Reference.Text(), Target: img.Target, Manifest: img.Manifest.Descriptor()}
	if d.Config, err = img.Manifest.Config(ctx); err != nil {
		return d, err
	}
	if d.Size, err = img.Manifest.Size(ctx); err != nil {
		return d, err
	}
	p, err := img.Manifest.Platform(ctx)
	d.Platform = platformName(p)
	return d, err
}

// step is one of how an image was made, as programs get it.
type step struct {
	ID        string     `json:"id,omitempty"` // of the image here that ended with it
	Names     []string   `json:"names,omitempty"`
	CreatedAt *time.Time `json:"createdAt,omitempty"`
	CreatedBy string     `json:"createdBy"`
	Author    string     `json:"author,omitempty"`
	Comment   string     `json:"comment,omitempty"`
	Size      int64      `json:"size"` // of the layer unpacked
	Empty     bool       `json:"empty"`
}

func history(s *session.Session) *cobra.Command {
	l := report.Listing{Out: s.Out}
	var r images.InspectRequest
	c := &cobra.Command{
		Use:   "history [flags] IMAGE",
		Short: "Show how an image was made",
		Long: `Show the steps in which an image was made, the last one first, and what each has added to
it, unpacked. <missing> is a step that did not end with an image that is here.`,
		Example: `  berth image history nginx
  berth image history --no-trunc -o json nginx | jq -r '.[].createdBy'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: Names(s, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Image = args[0]
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				return report.Show(ctx, &l, func(ctx context.Context) (*report.List[step], error) {
					steps, err := service.History(ctx, r)
					if err != nil {
						return nil, err
					}
					return stepList(&l, steps), nil
				})
			})
		},
	}
	l.BindOnce(c.Flags())
	c.Flags().StringVar(&r.Platform, "platform", "", "`PLATFORM` of the image, as linux/arm64")
	return c
}

// missingStep is what docker writes for a step without an image.
const missingStep = "<missing>"

func stepList(l *report.Listing, steps []images.HistoryEntry) *report.List[step] {
	t := &report.List[step]{Table: report.Table{Titles: []string{"IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"}}}
	for _, h := range steps {
		i := step{Names: h.Tags, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, Size: h.Size, Empty: h.Empty}
		id := missingStep
		if h.Image != "" {
			i.ID, id = h.Image.Encoded(), h.Image.Encoded()
		}
		if !h.Created.IsZero() {
			i.CreatedAt = &h.Created
		}
		t.Items = append(t.Items, i)
		t.IDs = append(t.IDs, id)
		t.Table.Rows = append(t.Table.Rows, []string{l.ID(id), l.Time(h.Created), abridged(l, h.CreatedBy), size(h.Size), h.Comment})
	}
	return t
}

// abridged shortens a command to what fits a column.
func abridged(l *report.Listing, text string) string {
	const most = 45 // as docker
	text = strings.Join(strings.Fields(text), " ")
	runes := []rune(text)
	if l.Whole || len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

// taken is what all images take, as programs get it; in bytes.
type taken struct {
	Images      int   `json:"images"`
	Content     int64 `json:"content"`
	Unpacked    int64 `json:"unpacked"`
	Reclaimable int64 `json:"reclaimable"`
}

// share is what one of them takes.
type share struct {
	ID         string   `json:"id"`
	Names      []string `json:"names"`
	Content    int64    `json:"content"`
	Unpacked   int64    `json:"unpacked"`
	Shared     int64    `json:"shared"` // of both, with other images
	Containers int      `json:"containers"`
}

func usage(s *session.Session) *cobra.Command {
	var each bool
	format := report.Tables
	c := &cobra.Command{
		Use:   "df [flags]",
		Short: "Show what images take on the disk",
		Long: `Show what all images of the namespace take on the disk: compressed layers and other blobs,
and layers unpacked, each counted once however many images have it, and how much would be
free without those that no container uses. With -v it is told of each image.`,
		Example: `  berth image df
  berth image df -v
  berth image df -o json | jq .reclaimable`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if each {
					return showShares(ctx, s, service, format)
				}
				u, err := service.DiskUsage(ctx)
				if err != nil {
					return err
				}
				if format == report.AsJSON {
					return report.JSON(s.Out, taken{Images: u.Images, Content: u.Content, Unpacked: u.Layers, Reclaimable: u.Reclaimable})
				}
				t := report.Table{
					Titles: []string{"IMAGES", "CONTENT", "UNPACKED", "RECLAIMABLE"},
					Rows:   [][]string{{strconv.Itoa(u.Images), size(u.Content), size(u.Layers), size(u.Reclaimable)}},
				}
				return t.Write(s.Out)
			})
		},
	}
	c.Flags().BoolVarP(&each, "verbose", "v", false, "of each image")
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

func showShares(ctx context.Context, s *session.Session, service *images.Service, format report.Format) error {
	all, err := service.Summaries(ctx, images.SummaryOptions{All: true, SharedSize: true, ContainerCount: true})
	if err != nil {
		return err
	}
	list := []share{}
	t := report.Table{Titles: []string{"IMAGE", "IMAGE ID", "CONTENT", "UNPACKED", "SHARED", "UNIQUE", "CONTAINERS"}}
	for i := range all {
		sum, b := &all[i], branchOf(&all[i])
		list = append(list, share{
			ID: b.ID, Names: b.Names, Content: sum.Content, Unpacked: sum.Unpacked, Shared: sum.Shared, Containers: sum.Containers,
		})
		name := none
		if len(b.Names) > 0 {
			name = short(b.Names[0])
		}
		t.Rows = append(t.Rows, []string{
			name, report.ID(b.ID), size(sum.Content), size(sum.Unpacked), size(sum.Shared), size(sum.Size() - sum.Shared), strconv.Itoa(sum.Containers),
		})
	}
	if format == report.AsJSON {
		return report.JSON(s.Out, list)
	}
	return t.Write(s.Out)
}

// broken is the exit code when an image lacks something, as doctor's.
const broken = 1

// health is how whole an image is, as programs get it.
type health struct {
	Name     string   `json:"name"`
	Target   string   `json:"target"`
	Complete bool     `json:"complete"`
	Unpacked bool     `json:"unpacked"`
	Missing  []string `json:"missing,omitempty"`
	Problem  string   `json:"problem,omitempty"`
}

func checkAll(s *session.Session) *cobra.Command {
	var repair bool
	format := report.Tables
	c := &cobra.Command{
		Use:   "check [flags] [IMAGE...]",
		Short: "Find out whether images are whole",
		Long: `Look whether all that belongs to images is here, and unpacked: the variant for this host of
each. With --repair what can be is put in order without a registry: what is complete is
unpacked, records that the kubelet needs are written, and those of nothing are removed.
The exit code is 1 if something is missing nevertheless; "berth pull" fetches it.`,
		Example: `  berth image check
  berth -n k8s.io image check --repair
  berth image check -o json | jq -r '.[] | select(.complete | not) | .name'`,
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return do(cmd.Context(), s, nil, func(ctx context.Context, service *images.Service) error {
				if repair {
					return repairAll(ctx, s, service, refs, format)
				}
				found, err := service.Check(ctx, refs...)
				if err != nil {
					return err
				}
				return tellChecked(s, found, format)
			})
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "put in order what can be")
	c.Flags().VarP(&format, "output", "o", "table, or json for programs")
	return c
}

// tellChecked writes what was found. An image that lacks something is an exit code.
func tellChecked(s *session.Session, found []check.Status, format report.Format) error {
	list := []health{}
	t := report.Table{Titles: []string{"NAME", "STATUS", "UNPACKED", "MISSING"}}
	var lacking error
	for _, f := range found {
		h := health{Name: f.Name, Target: f.Target.String(), Complete: f.Complete, Unpacked: f.Unpacked}
		for _, blob := range f.Missing {
			h.Missing = append(h.Missing, blob.Digest.String())
		}
		if f.Problem != nil {
			h.Problem = f.Problem.Error()
		}
		if !f.Complete {
			lacking = exit.Code(broken)
		}
		list = append(list, h)
		t.Rows = append(t.Rows, []string{f.Name, statusOf(f), strconv.FormatBool(f.Unpacked), missing(f)})
	}
	if format == report.AsJSON {
		return cmp.Or(report.JSON(s.Out, list), lacking)
	}
	return cmp.Or(t.Write(s.Out), lacking)
}

func statusOf(f check.Status) string {
	switch {
	case f.Complete:
		return "complete"
	case f.Gone:
		return "gone"
	case f.Problem != nil:
		return "unreadable"
	}
	return "incomplete"
}

func missing(f check.Status) string {
	if len(f.Missing) == 0 {
		return ""
	}
	return strconv.Itoa(len(f.Missing)) + " blobs, " + report.Bytes(uint64(max(0, f.Size)))
}

// repairAll puts images in order, and says what it has done.
func repairAll(ctx context.Context, s *session.Session, service *images.Service, refs []string, format report.Format) error {
	type repaired struct {
		Name   string `json:"name"`
		Action string `json:"action"`
		Error  string `json:"error,omitempty"`
	}
	done, err := service.Repair(ctx, refs...)
	if err != nil {
		return err
	}
	list := []repaired{}
	t := report.Table{Titles: []string{"NAME", "ACTION", "ERROR"}}
	var lacking error
	for _, d := range done {
		r := repaired{Name: d.Name, Action: string(d.Action)}
		if d.Err != nil {
			r.Error = d.Err.Error()
		}
		if d.Err != nil || d.Action == check.NeedPull {
			lacking = exit.Code(broken)
		}
		list = append(list, r)
		t.Rows = append(t.Rows, []string{r.Name, r.Action, r.Error})
	}
	if format == report.AsJSON {
		return cmp.Or(report.JSON(s.Out, list), lacking)
	}
	return cmp.Or(t.Write(s.Out), lacking)
}

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
		ValidArgsFunction: Names(s, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			access, err := a.access(cmd.Context(), s)
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
