// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/images/reference"
)

const (
	// tagsPerPage is what a registry is asked for at once; it may send fewer.
	tagsPerPage = 100
	// maxPageBytes bounds an answer: a tag has at most 128 bytes.
	maxPageBytes = 4 << 20
	maxPages     = 10000
)

// Tags lists the tags of ref's repository in the registry's order: those of the
// first of its mirrors and its registry that answers. Errors are Classify's; a
// repository that does not exist is ErrNotFound.
func (r *Registry) Tags(ctx context.Context, ref reference.Reference, a Access) ([]string, error) {
	ctx = quiet(ctx)
	// Mirrors that are for digests alone know nothing of tags.
	tagged, err := ref.WithTag("latest")
	if err != nil {
		return nil, err
	}
	sources, err := r.sources(tagged)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, place := range sources {
		tags, err := r.tagsAt(ctx, place, a)
		if err == nil {
			return tags, nil
		}
		failed = after(failed, explain(ctx, place.ref, "tags of "+place.ref.Repository(), err))
	}
	return nil, failed
}

func (r *Registry) tagsAt(ctx context.Context, place source, a Access) ([]string, error) {
	hosts, err := r.hosts(ctx, place, a)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, host := range hosts {
		if !host.Capabilities.Has(docker.HostCapabilityResolve) {
			continue
		}
		tags, err := listTags(docker.WithScope(ctx, "repository:"+place.ref.Path()+":pull"), host, place.ref)
		if err == nil {
			return tags, nil
		}
		failed = after(failed, classify(err, host.Host))
	}
	if failed == nil {
		failed = fmt.Errorf("no host that resolves tags: %w", errdefs.ErrNotFound)
	}
	return nil, failed
}

// listTags asks a host page by page, as the distribution specification has it:
// each page has a link to the next.
func listTags(ctx context.Context, host docker.RegistryHost, ref reference.Reference) ([]string, error) {
	page := &url.URL{
		Scheme: host.Scheme, Host: host.Host, Path: path.Join("/", host.Path, ref.Path(), "tags/list"),
		RawQuery: url.Values{"n": {fmt.Sprint(tagsPerPage)}}.Encode(),
	}
	if host.Host != ref.Host() && ref.Host() != "docker.io" {
		page.RawQuery += "&ns=" + url.QueryEscape(ref.Host()) // for a proxy of several registries
	}
	var all []string
	for range maxPages {
		tags, next, err := tagsOfPage(ctx, host, page)
		if err != nil {
			return nil, err
		}
		all = append(all, tags...)
		if next == nil || len(tags) == 0 {
			return slices.Compact(all), nil
		}
		// A link may lead on, but nowhere else.
		page.Path, page.RawQuery = next.Path, next.RawQuery
	}
	return nil, fmt.Errorf("more than %d pages of tags: %w", maxPages, errdefs.ErrOutOfRange)
}

func tagsOfPage(ctx context.Context, host docker.RegistryHost, page *url.URL) (tags []string, next *url.URL, err error) {
	response, err := get(ctx, host, page)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, remoteerrors.NewUnexpectedStatusErr(response)
	}
	var list struct{ Tags []string }
	if err := json.NewDecoder(io.LimitReader(response.Body, maxPageBytes)).Decode(&list); err != nil {
		return nil, nil, fmt.Errorf("list of tags: %w", err)
	}
	next, err = nextPage(page, response.Header.Get("Link"))
	return list.Tags, next, err
}

// get sends a request; when the registry wants a login, once more with it.
func get(ctx context.Context, host docker.RegistryHost, address *url.URL) (*http.Response, error) {
	for try := 0; ; try++ {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
		if err != nil {
			return nil, err
		}
		for name, values := range host.Header {
			request.Header[name] = append(request.Header[name], values...)
		}
		if host.Authorizer != nil {
			if err := host.Authorizer.Authorize(ctx, request); err != nil {
				return nil, err
			}
		}
		response, err := host.Client.Do(request)
		if err != nil {
			return nil, err
		}
		if response.StatusCode != http.StatusUnauthorized || host.Authorizer == nil || try > 0 {
			return response, nil
		}
		err = host.Authorizer.AddResponses(ctx, []*http.Response{response})
		if errdefs.IsNotImplemented(err) { // nothing to log in with
			return response, nil
		}
		_ = response.Body.Close() // nobody reads it
		if err != nil {
			return nil, err
		}
	}
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

// nextPage reads a Link header (RFC 8288); nil when it has no next page.
func nextPage(page *url.URL, link string) (*url.URL, error) {
	found := nextLink.FindStringSubmatch(link)
	if found == nil {
		return nil, nil
	}
	next, err := page.Parse(found[1])
	if err != nil {
		return nil, fmt.Errorf("link to the next tags: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return next, nil
}
