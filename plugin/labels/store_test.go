// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/anypb"
)

// stores are containerd's own, in this process.
func stores(t testing.TB) (context.Context, containers.Store, sandbox.Store) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	m := metadata.NewDB(db, nil, nil)
	ctx := namespaces.WithNamespace(t.Context(), "labels")
	return ctx, metadata.NewContainerStore(m), metadata.NewSandboxStore(m)
}

// create stores m as containerd has to take it.
func create(t testing.TB, ctx context.Context, store containers.Store, id string, m Metadata) containers.Container {
	t.Helper()
	c := containers.Container{ID: id, Spec: &anypb.Any{}, Runtime: containers.RuntimeInfo{Name: "io.containerd.berth.v1"}}
	if err := m.Encode(&c); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(ctx, c); err != nil {
		t.Fatal(err)
	}
	return get(t, ctx, store, id)
}

func get(t testing.TB, ctx context.Context, store containers.Store, id string) containers.Container {
	t.Helper()
	c, err := store.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantMetadata(t *testing.T, want Metadata, c containers.Container) {
	t.Helper()
	got, err := Decode(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
}

func TestStoreTakesAnyLength(t *testing.T) {
	ctx, store, _ := stores(t)
	for i, n := range []int{4096 - len(keyImageName), 4097 - len(keyImageName), 5000, 1 << 20} {
		m := member1()
		m.ImageName = strings.Repeat("n", n)
		m.Labels["k"] = strings.Repeat("v", n)
		wantMetadata(t, m, create(t, ctx, store, memberID+string(rune('a'+i)), m))
	}
	// containerd's limit is where this package thinks it is.
	c := containers.Container{ID: "long", Spec: &anypb.Any{}, Runtime: containers.RuntimeInfo{Name: "r"}}
	c.Labels = map[string]string{keyImageName: strings.Repeat("n", 4097-len(keyImageName))}
	if _, err := store.Create(ctx, c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a label too long: %v", err)
	}
}

// TestPartialUpdate: what others wrote after the record was read stays.
func TestPartialUpdate(t *testing.T) {
	ctx, store, _ := stores(t)
	m := member1()
	m.MountLabel, m.Created = "", false
	read := create(t, ctx, store, memberID, m)

	foreign := containers.Container{ID: memberID, Labels: map[string]string{"x": "y", "app": "theirs", "io.berth.later": "1"}}
	if _, err := store.Update(ctx, foreign, "labels.x", "labels.app", "labels.io.berth.later"); err != nil {
		t.Fatal(err)
	}
	other := m
	other.Created = true
	m.MountLabel = "s0:c1"
	for want, m := range map[string]Metadata{"labels.io.berth.mount-label": m, "labels.io.berth.created": other} {
		ch, err := m.Update(read) // both from the same reading
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{want}, ch.Paths()); diff != "" {
			t.Errorf("paths (-want +got):\n%s", diff)
		}
		if _, err := ch.Container(ctx, store); err != nil {
			t.Fatal(err)
		}
	}
	c := get(t, ctx, store, memberID)
	if c.Labels["x"] != "y" || c.Labels["app"] != "theirs" || c.Labels["io.berth.later"] != "1" {
		t.Errorf("others' labels: %v", c.Labels)
	}
	m.Created = true
	wantMetadata(t, m, c)

	ch, err := m.Update(c)
	if err != nil || len(ch.Paths()) != 0 {
		t.Errorf("nothing to change: %v, %v", ch.Paths(), err)
	}
	if got, err := ch.Container(ctx, store); err != nil || !got.UpdatedAt.Equal(c.UpdatedAt) {
		t.Errorf("nothing to change, but updated at %s: %v", got.UpdatedAt, err)
	}
}

// TestEachChange: whatever is changed is read back, and back again, by both kinds
// of update.
func TestEachChange(t *testing.T) {
	long := strings.Repeat("l", 5000)
	for name, edit := range map[string]func(*Metadata){
		"nothing":           func(*Metadata) {},
		"mount label":       func(m *Metadata) { m.MountLabel = "s0" },
		"no mount label":    func(m *Metadata) { m.MountLabel = "" },
		"long mount label":  func(m *Metadata) { m.MountLabel = long },
		"image":             func(m *Metadata) { m.ImageName, m.ImageID = long, "" },
		"names":             func(m *Metadata) { m.Name, m.MetadataName, m.Pod.Name = "n", "mn", "" },
		"flags":             func(m *Metadata) { m.Privileged, m.Created = !m.Privileged, !m.Created },
		"numbers":           func(m *Metadata) { m.Attempt, m.Pod.Attempt = 0, 0 },
		"time":              func(m *Metadata) { m.CreatedAt = m.CreatedAt.Add(1e9) },
		"user labels":       func(m *Metadata) { m.Labels = map[string]string{"app": "api", "more": "1"} },
		"no user labels":    func(m *Metadata) { m.Labels = nil },
		"long user label":   func(m *Metadata) { m.Labels = map[string]string{"app": long} },
		"empty user label":  func(m *Metadata) { m.Labels = map[string]string{"app": ""} },
		"user's pod name":   func(m *Metadata) { m.Labels = map[string]string{"io.kubernetes.pod.name": "x"} },
		"no annotations":    func(m *Metadata) { m.Annotations = nil },
		"no settings":       func(m *Metadata) { m.Settings = Settings{} },
		"another ID map":    func(m *Metadata) { m.IDMap.GIDs = m.IDMap.UIDs },
		"no ID map":         func(m *Metadata) { m.IDMap = IDMap{} },
		"only what is must": func(m *Metadata) { m.Labels, m.Annotations, m.Settings, m.IDMap = nil, nil, Settings{}, IDMap{} },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, store, _ := stores(t)
			before := member1()
			c := create(t, ctx, store, memberID, before)
			edited, err := Decode(c)
			if err != nil {
				t.Fatal(err)
			}
			edited.Labels = maps.Clone(edited.Labels)
			edit(&edited)
			for i, change := range []func(Metadata, containers.Container) (Change, error){Metadata.Update, Metadata.Replace} {
				for _, m := range []Metadata{edited, before} {
					ch, err := change(m, get(t, ctx, store, memberID))
					if err != nil {
						t.Fatal(err)
					}
					c, err := ch.Container(ctx, store)
					if err != nil {
						t.Fatal(err)
					}
					wantMetadata(t, m, c)
					wantMetadata(t, m, get(t, ctx, store, memberID))
					if i == 0 && name == "nothing" && len(ch.Paths()) > 0 {
						t.Errorf("changed %v", ch.Paths())
					}
					fresh := encoded(t, m)
					if diff := cmp.Diff(fresh.Labels, get(t, ctx, store, memberID).Labels); diff != "" {
						t.Errorf("labels, as if new (-want +got):\n%s", diff)
					}
				}
			}
		})
	}
}

func TestReplace(t *testing.T) {
	ctx, store, _ := stores(t)
	create(t, ctx, store, memberID, member1())
	damaged := containers.Container{ID: memberID, Labels: map[string]string{"x": "y", keyAttempt: "third"}}
	c, err := store.Update(ctx, damaged, "labels.x", "labels."+keyAttempt)
	if err != nil {
		t.Fatal(err)
	}
	m := member1()
	m.Privileged = false
	if _, err := m.Update(c); !errors.Is(err, ErrUndecodable) {
		t.Errorf("update of a damaged record: %v", err)
	}
	ch, err := m.Replace(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range append(slices.Clone(schemaKeys), keyManaged, "app") {
		if !slices.Contains(ch.Paths(), "labels."+key) {
			t.Errorf("label %s not replaced", key)
		}
	}
	if doc := ch.extensions[extMetadata]; doc == nil || strings.Contains(string(doc.GetValue()), keyPrivileged) {
		t.Errorf("document not refreshed: %s", doc)
	}
	if c, err = ch.Container(ctx, store); err != nil {
		t.Fatal(err)
	}
	wantMetadata(t, m, c)
	if _, ok := c.Labels[keyPrivileged]; ok || c.Labels["x"] != "y" {
		t.Errorf("labels: %v", c.Labels)
	}

	moved := m
	moved.Pod.ID = "elsewhere"
	if _, err := moved.Replace(c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("into another pod: %v", err)
	}
	if _, err := m.Replace(containers.Container{ID: "ctr"}); !errors.Is(err, ErrForeign) {
		t.Errorf("of a foreign record: %v", err)
	}
	gone := Change{id: "gone", paths: []string{"labels.x"}}
	if _, err := gone.Container(ctx, store); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("of a record that is gone: %v", err)
	}
}

func TestSandboxStore(t *testing.T) {
	ctx, _, store := stores(t)
	m := infra1()
	m.Labels, m.Settings.NoProcess = map[string]string{"app": "web"}, true
	s := sandbox.Sandbox{ID: podID, Sandboxer: "shim", Spec: &anypb.Any{}, Runtime: sandbox.RuntimeOpts{Name: "r", Options: &anypb.Any{}}}
	if err := m.EncodeSandbox(&s); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(ctx, s); err != nil {
		t.Fatal(err)
	}
	s, err := store.Update(ctx, sandbox.Sandbox{ID: podID, Labels: map[string]string{"x": "y"}}, "labels.x")
	if err != nil {
		t.Fatal(err)
	}
	m.Created, m.Labels = true, nil
	ch, err := m.UpdateSandbox(s)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"extensions.io.berth.metadata", "labels.app", "labels.io.berth.created"}
	if diff := cmp.Diff(want, ch.Paths()); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	if _, err := ch.Sandbox(ctx, store); err != nil {
		t.Fatal(err)
	}
	m.Privileged = true
	if ch, err = m.ReplaceSandbox(s); err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Sandbox(ctx, store); err != nil {
		t.Fatal(err)
	}
	found, err := store.List(ctx, PodNamed(m.Pod.FullName))
	if err != nil || len(found) != 1 {
		t.Fatalf("found %d by the pod's name: %v", len(found), err)
	}
	got, err := DecodeSandbox(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" || found[0].Labels["x"] != "y" {
		t.Errorf("labels %v, metadata (-want +got):\n%s", found[0].Labels, diff)
	}
}

func TestFilters(t *testing.T) {
	ctx, store, _ := stores(t)
	odd := member1()
	odd.Name = "a \"b\\\n, \ufffd\u00e9==\x00"
	odd.Labels = map[string]string{"example.com/tier": "a,b==c|/'"}
	odd.Created = false
	create(t, ctx, store, podID, infra1())
	create(t, ctx, store, "plain", member1())
	create(t, ctx, store, "odd", odd)
	foreign := containers.Container{ID: "ctr", Spec: &anypb.Any{}, Runtime: containers.RuntimeInfo{Name: "r"}}
	if _, err := store.Create(ctx, foreign); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, filter string
		want         []string
	}{
		{"managed", Managed(), []string{podID, "odd", "plain"}},
		{"unfinished", Unfinished(), []string{podID, "odd"}},
		{"pod by name", PodNamed("k8s_web_default_5f0c-11_2"), []string{podID}},
		{"infra by name", Named("k8s_POD_web_default_5f0c-11_2"), []string{podID}},
		{"member by name", Named(member1().Name), []string{"plain"}},
		{"odd name", Named(odd.Name), []string{"odd"}},
		{"nobody", Named("k8s_web_default_5f0c-11_2"), nil},
		{"members", PodMembers(podID), []string{podID, "odd", "plain"}},
		{"uid", KubernetesPod("5f0c-11"), []string{podID, "odd", "plain"}},
		{"odd label", Selector(odd.Labels), []string{"odd"}},
		{"labels", Selector(map[string]string{"app": "web", "example.com/tier": "front"}), []string{"plain"}},
		{"label that the schema has", Selector(map[string]string{keyPodName: "the user's"}), []string{podID, "ctr", "odd", "plain"}},
		{"labels that none can have", Selector(map[string]string{"empty": "", "long": strings.Repeat("l", 5000)}), []string{podID, "ctr", "odd", "plain"}},
	} {
		found, err := store.List(ctx, tc.filter)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		var got []string
		for _, c := range found {
			got = append(got, c.ID)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", tc.name, tc.filter, diff)
		}
	}
}
