// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/filters"
	clabels "github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// FuzzRoundTrip: what is accepted fits containerd and is read back as it was, also
// after it was changed to it from something else.
func FuzzRoundTrip(f *testing.F) {
	f.Add(podID, "pod", "name", "image", "key", "value", uint32(0), int64(1700000000), uint16(0), byte(0))
	f.Add(podID, "pod", "name", "image", "io.berth.x", "", uint32(7), int64(-1), uint16(5000), byte(255))
	f.Add(podID, "\xff", "a\x00", "\ufffd\u2028", "io.kubernetes.pod.uid", "<&>", uint32(1<<32-1), int64(0), uint16(4096), byte(3))
	f.Fuzz(func(t *testing.T, pod, full, name, image, key, value string, attempt uint32, created int64, pad uint16, bits byte) {
		on := func(bit int) bool { return bits&(1<<bit) != 0 }
		m := Metadata{
			Pod:  Pod{ID: pod, FullName: full, Name: name, Namespace: value, UID: key, Attempt: Attempt(attempt)},
			Name: name, MetadataName: value, Attempt: Attempt(attempt / 2), ImageName: image + strings.Repeat("i", int(pad)),
			MountLabel: value, CreatedAt: time.Unix(created, 999), Privileged: on(0), Created: on(1),
			Labels: map[string]string{key: value}, Annotations: map[string]string{value: key},
			Settings: Settings{LogPath: image, Stdin: on(2), Volumes: []Volume{{HostPath: value}}},
		}
		c := containers.Container{ID: memberID}
		if on(3) {
			m.Kind, m.Attempt, c.ID = KindInfra, m.Pod.Attempt, pod
		}
		if err := m.Encode(&c); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for k, v := range c.Labels {
			if err := clabels.Validate(k, v); err != nil || v == "" {
				t.Errorf("label %q=%q: %v", k, v, err)
			}
		}
		wantMetadata(t, normal(m), c)

		old := member1()
		old.Kind, old.Pod = m.Kind, m.Pod
		if m.Kind == KindInfra {
			old.Attempt = m.Pod.Attempt
		}
		for _, change := range []func(Metadata, containers.Container) (Change, error){Metadata.Update, Metadata.Replace} {
			was := containers.Container{ID: c.ID}
			if err := old.Encode(&was); err != nil {
				t.Fatal(err)
			}
			ch, err := change(m, was)
			if err != nil {
				t.Fatal(err)
			}
			wantMetadata(t, normal(m), apply(was, ch))
		}
	})
}

// normal returns m in the form in which it is read back.
func normal(m Metadata) Metadata {
	m.Schema = Version
	m.CreatedAt = time.Unix(m.CreatedAt.Unix(), 0).UTC()
	m.MetadataName = first(m.MetadataName, m.Name)
	m.dropEmpty()
	return m
}

// apply does what containerd's store does with field paths; TestEachChange shows
// it with the store itself.
func apply(c containers.Container, ch Change) containers.Container {
	c.Labels, c.Extensions = maps.Clone(c.Labels), maps.Clone(c.Extensions)
	for _, path := range ch.paths {
		if key, ok := strings.CutPrefix(path, "labels."); ok {
			c.Labels[key] = ch.labels[key]
		} else {
			key = strings.TrimPrefix(path, "extensions.")
			c.Extensions[key] = ch.extensions[key]
		}
	}
	maps.DeleteFunc(c.Labels, func(_, v string) bool { return v == "" })
	return c
}

// FuzzDecode: no record makes it panic, and what can be decoded can be stored,
// unless it is of a newer schema.
func FuzzDecode(f *testing.F) {
	f.Add("io.berth.attempt", "x", `{"version":1,"labels":{"a":"b"},"overflow":["io.berth.name"]}`, `{"version":1}`)
	f.Add("io.berth.managed", "2", `{"version":3,"settings":[]}`, `null`)
	f.Fuzz(func(t *testing.T, key, value, document, ids string) {
		c := containers.Container{ID: memberID}
		if err := member1().Encode(&c); err != nil {
			t.Fatal(err)
		}
		c.Labels[key] = value
		extend(documentType, document)(&c)
		c.Extensions[extIDMap] = &anypb.Any{TypeUrl: idMapType, Value: []byte(ids)}
		Describe(c)
		m, err := Decode(c)
		if err != nil || m.Schema > Version || m.Validate() != nil {
			return
		}
		ch, err := m.Update(c)
		if err != nil {
			t.Fatal(err)
		}
		wantMetadata(t, m, apply(c, ch))
	})
}

// FuzzFilter: containerd's parser understands every name as it is.
func FuzzFilter(f *testing.F) {
	f.Add("io.kubernetes.pod.uid", "a \"b\" \\ \n \x00 \ufffd é 😀")
	f.Fuzz(func(t *testing.T, key, value string) {
		if !validText(key, value) || key == "" {
			return
		}
		filter, err := filters.Parse(equals(key, value) + "," + has(key))
		if err != nil {
			t.Fatalf("%s: %v", equals(key, value), err)
		}
		record := func(has string) filters.Adaptor {
			return filters.AdapterFunc(func(path []string) (string, bool) {
				return has, cmp.Equal(path, []string{"labels", key})
			})
		}
		if !filter.Match(record(value)) || filter.Match(record(value+"x")) {
			t.Errorf("%s does not mean what it says", equals(key, value))
		}
	})
}

// FuzzAnnotation: looking for an annotation finds what decoding does.
func FuzzAnnotation(f *testing.F) {
	f.Add("v", `"k":"x"`, "k")
	f.Add(`"`, `\"k\":`, "k\\")
	f.Fuzz(func(t *testing.T, value, arg, env string) {
		text, err := json.Marshal(map[string]any{"process": []string{arg, env, "k", value}, "zannotations": map[string]string{"k": value}})
		if err != nil {
			t.Fatal(err)
		}
		var want struct{ Zannotations map[string]string }
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if got := annotation(&anypb.Any{Value: text}, "k"); got != want.Zannotations["k"] {
			t.Errorf("%s: got %q", text, got)
		}
	})
}
