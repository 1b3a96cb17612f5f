// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/images/store"
)

// dockerSaved is an image in the form that `docker save` had before version 25.
type dockerSaved struct {
	layers [][]byte // not compressed
	tags   []string
}

func (s dockerSaved) config(t testing.TB) []byte {
	t.Helper()
	config := v1.Image{Platform: amd64, RootFS: v1.RootFS{Type: "layers"}}
	for _, layer := range s.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// dockerManifest is an entry of manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerArchive has a folder for each layer; a layer that was there before is a
// symbolic link, and manifest.json is the last.
func dockerArchive(t testing.TB, imgs ...dockerSaved) []byte {
	t.Helper()
	var entries []entry
	var list []dockerManifest
	seen := map[digest.Digest]string{}
	for _, img := range imgs {
		config := img.config(t)
		m := dockerManifest{Config: digest.FromBytes(config).Encoded() + ".json", RepoTags: img.tags}
		for i, layer := range img.layers {
			dir := digest.FromString(m.Config + string(rune('a'+i))).Encoded()
			entries = append(entries,
				entry{name: dir + "/", kind: tar.TypeDir},
				entry{name: dir + "/VERSION", data: []byte("1.0")},
				entry{name: dir + "/json", data: []byte(`{"id":"` + dir + `"}`)})
			path := dir + "/layer.tar"
			if before, ok := seen[digest.FromBytes(layer)]; ok {
				entries = append(entries, entry{name: path, kind: tar.TypeSymlink, link: "../" + before})
			} else {
				entries = append(entries, entry{name: path, data: layer})
				seen[digest.FromBytes(layer)] = path
			}
			m.Layers = append(m.Layers, path)
		}
		entries = append(entries, entry{name: m.Config, data: config})
		list = append(list, m)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return tarred(t, append(entries,
		entry{name: "manifest.json", data: text},
		entry{name: "repositories", data: []byte(`{}`)})...)
}

// podmanArchive is what `podman save` and `skopeo copy docker-archive:` write: layers
// by their digest, and the folders of Docker's first format with links to them.
func podmanArchive(t testing.TB, imgs ...dockerSaved) []byte {
	t.Helper()
	var entries []entry
	var list []dockerManifest
	seen := map[string]bool{}
	for _, img := range imgs {
		config := img.config(t)
		m := dockerManifest{Config: digest.FromBytes(config).Encoded() + ".json", RepoTags: img.tags}
		for _, layer := range img.layers {
			path := digest.FromBytes(layer).Encoded() + ".tar"
			if !seen[path] {
				dir := digest.FromString(path).Encoded()
				entries = append(entries,
					entry{name: path, data: layer},
					entry{name: dir + "/VERSION", data: []byte("1.0")},
					entry{name: dir + "/layer.tar", kind: tar.TypeSymlink, link: "../" + path},
					entry{name: dir + "/json", data: []byte(`{"id":"` + dir + `"}`)})
				seen[path] = true
			}
			m.Layers = append(m.Layers, path)
		}
		entries = append(entries, entry{name: m.Config, data: config})
		list = append(list, m)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return tarred(t, append(entries, entry{name: "repositories", data: []byte(`{}`)}, entry{name: "manifest.json", data: text})...)
}

// TestLoadDocker reads archives in Docker's format, as Docker and as Podman write it.
func TestLoadDocker(t *testing.T) {
	base := tarred(t, entry{name: "base", data: []byte("base")})
	top := tarred(t, entry{name: "top", data: []byte("top")})
	one := dockerSaved{layers: [][]byte{base, top}, tags: []string{"busybox:1", "berth.test/two:2"}}
	other := dockerSaved{layers: [][]byte{base, base}, tags: []string{"other:latest"}}
	nameless := dockerSaved{layers: [][]byte{top}}
	for name, archive := range map[string]func(testing.TB, ...dockerSaved) []byte{"docker": dockerArchive, "podman": podmanArchive} {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			loaded := r.load(t, archive(t, one, other, nameless))
			want := []string{"docker.io/library/busybox:1", "berth.test/two:2", "docker.io/library/other:latest"}
			for _, one := range loaded {
				if !one.Named {
					want = append(want, store.DanglingName(one.Image.Target.Digest))
				}
			}
			if len(want) != 4 {
				t.Errorf("loaded %+v, want one without a name", loaded)
			}
			r.wantNames(t, want...)
			for _, name := range want {
				r.wantComplete(t, name)
			}
		})
	}
	t.Run("gzip layer", func(t *testing.T) {
		r := open(t)
		files := untarred(t, podmanArchive(t, dockerSaved{layers: [][]byte{base}, tags: []string{"zipped:1"}}))
		var entries []entry
		for name, data := range files {
			if bytes.Equal(data, base) {
				data = compressed(t, "gzip", data)
			}
			if len(data) > 0 {
				entries = append(entries, entry{name: name, data: data})
			}
		}
		r.load(t, tarred(t, entries...))
		r.wantComplete(t, "docker.io/library/zipped:1")
	})
}
