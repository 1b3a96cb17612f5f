// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	podID    = "0a6f9d1c7b3e"
	memberID = "5c41e2aa90f7"
)

var imageID = strings.Repeat("0123456789abcdef", 4)

func somePod() Pod {
	p := Pod{ID: podID, Name: "web", Namespace: "default", UID: "5f0c-11", Attempt: 2}
	p.FullName = p.KubernetesName()
	return p
}

// member1 has something in each field.
func member1() Metadata {
	return Metadata{
		Schema: Version, Kind: KindContainer, Pod: somePod(),
		Name: "k8s_app_web_default_5f0c-11_3", MetadataName: "app", Attempt: 3,
		ImageName: "docker.io/library/nginx", ImageID: imageID,
		MountLabel: "system_u:object_r:container_file_t:s0:c1,c2",
		CreatedAt:  time.Unix(1700000000, 0).UTC(), Privileged: true, Created: true,
		IDMap: IDMap{
			UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}},
			GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}},
		},
		Labels:      map[string]string{"app": "web", "empty": "", "example.com/tier": "front"},
		Annotations: map[string]string{"note": strings.Repeat("long ", 2000)},
		Settings: Settings{
			StopSignal: "SIGUSR1", LogPath: "app/3.log", Stdin: true, Terminal: true,
			Volumes: []Volume{{ContainerPath: "/data", HostPath: "/srv", Readonly: true}},
		},
	}
}

func infra1() Metadata {
	p := somePod()
	return Metadata{
		Schema: Version, Kind: KindInfra, Pod: p, Name: p.InfraName(), MetadataName: p.Name,
		Attempt: p.Attempt, CreatedAt: time.Unix(1699999999, 0).UTC(),
	}
}

func encoded(t *testing.T, m Metadata) containers.Container {
	t.Helper()
	c := containers.Container{ID: memberID}
	if m.Kind == KindInfra {
		c.ID = m.Pod.ID
	}
	if err := m.Encode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLabels(t *testing.T) {
	bare := member1()
	bare.Attempt, bare.MountLabel, bare.Privileged, bare.Created = 0, "", false, false
	bare.Pod.Attempt, bare.Labels, bare.MetadataName = 0, nil, ""
	pod := map[string]string{
		"io.berth.managed": "1", "io.berth.pod.id": podID, "io.berth.pod.name": "k8s_web_default_5f0c-11_2",
		"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "5f0c-11",
	}
	for _, tc := range []struct {
		name      string
		m         Metadata
		sandboxID string
		want      map[string]string
	}{
		{"member", member1(), podID, map[string]string{
			"io.berth.kind": "container", "io.berth.pod.attempt": "2", "io.berth.name": "k8s_app_web_default_5f0c-11_3",
			"io.kubernetes.container.name": "app", "io.berth.attempt": "3",
			"io.berth.image.name": "docker.io/library/nginx", "io.berth.image.id": imageID,
			"io.berth.created-at": "1700000000", "io.berth.privileged": "true", "io.berth.created": "true",
			"io.berth.mount-label": "system_u:object_r:container_file_t:s0:c1,c2",
			"app":                  "web", "example.com/tier": "front",
		}},
		{"what is zero is absent", bare, podID, map[string]string{
			"io.berth.kind": "container", "io.berth.name": "k8s_app_web_default_5f0c-11_3",
			"io.kubernetes.container.name": "k8s_app_web_default_5f0c-11_3",
			"io.berth.image.name":          "docker.io/library/nginx", "io.berth.image.id": imageID,
			"io.berth.created-at": "1700000000",
		}},
		{"infra", infra1(), "", map[string]string{
			"io.berth.kind": "infra", "io.berth.pod.attempt": "2", "io.berth.attempt": "2",
			"io.berth.name":                "k8s_POD_web_default_5f0c-11_2",
			"io.kubernetes.container.name": "POD", "io.berth.metadata-name": "web",
			"io.berth.created-at": "1699999999",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := encoded(t, tc.m)
			maps.Copy(tc.want, pod)
			if diff := cmp.Diff(tc.want, c.Labels); diff != "" {
				t.Errorf("labels (-want +got):\n%s", diff)
			}
			if c.SandboxID != tc.sandboxID {
				t.Errorf("SandboxID: got %q, want %q", c.SandboxID, tc.sandboxID)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	long := member1()
	long.ImageName, long.MountLabel = strings.Repeat("i", 5000), strings.Repeat("m", 5000)
	for name, m := range map[string]Metadata{"member": member1(), "infra": infra1(), "overflow": long} {
		got, err := Decode(encoded(t, m))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSandboxRoundTrip(t *testing.T) {
	m := infra1()
	m.Settings, m.Labels = Settings{NoProcess: true, RuntimeHandler: "berth"}, map[string]string{"app": "web"}
	s := sandbox.Sandbox{ID: podID, Labels: map[string]string{"x": "y"}}
	if err := m.EncodeSandbox(&s); err != nil {
		t.Fatal(err)
	}
	if _, named := s.Labels["name"]; named || s.Labels["x"] != "y" || s.Labels["app"] != "web" {
		t.Errorf("labels: %v", s.Labels)
	}
	got, err := DecodeSandbox(s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := member1().EncodeSandbox(&s); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a member as a sandbox: %v", err)
	}
}

// TestOverflow: at 4096 bytes of key and value it is a label, at 4097 no longer.
func TestOverflow(t *testing.T) {
	for _, tc := range []struct {
		bytes int
		label bool
	}{{4096, true}, {4097, false}, {6000, false}} {
		m := member1()
		m.ImageName = strings.Repeat("n", tc.bytes-len(keyImageName))
		m.Labels = map[string]string{"k": strings.Repeat("v", tc.bytes-1)}
		c := encoded(t, m)
		for _, key := range []string{keyImageName, "k"} {
			if _, ok := c.Labels[key]; ok != tc.label {
				t.Errorf("%d bytes: label %s: got %v, want %v", tc.bytes, key, ok, tc.label)
			}
		}
		got, err := Decode(c)
		if err != nil || got.ImageName != m.ImageName || got.Labels["k"] != m.Labels["k"] {
			t.Errorf("%d bytes: not read back: %v", tc.bytes, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, damage := range map[string]func(*Metadata){
		"no pod ID":              func(m *Metadata) { m.Pod.ID = "" },
		"pod ID with a slash":    func(m *Metadata) { m.Pod.ID = "a/b" },
		"no pod name":            func(m *Metadata) { m.Pod.FullName = "" },
		"no name":                func(m *Metadata) { m.Name = "" },
		"name that no label has": func(m *Metadata) { m.Name = strings.Repeat("n", 4080) },
		"long pod name":          func(m *Metadata) { m.Pod.FullName = strings.Repeat("n", 4090) },
		"no creation time":       func(m *Metadata) { m.CreatedAt = time.Time{} },
		"image ID with prefix":   func(m *Metadata) { m.ImageID = "sha256:" + imageID },
		"unknown attempt":        func(m *Metadata) { m.Attempt = UnknownAttempt },
		"another kind":           func(m *Metadata) { m.Kind = 7 },
		"infra is not its pod":   func(m *Metadata) { m.Kind, m.Attempt = KindInfra, m.Pod.Attempt },
		"broken UTF-8":           func(m *Metadata) { m.ImageName = "\xff" },
		"broken annotation":      func(m *Metadata) { m.Annotations = map[string]string{"k": "\xff"} },
		"broken setting":         func(m *Metadata) { m.Settings.Volumes[0].HostPath = "\xff" },
		"label of berth":         func(m *Metadata) { m.Labels["io.berth.kind"] = "infra" },
		"label of CRI":           func(m *Metadata) { m.Labels["io.cri-containerd.kind"] = "container" },
		"label like CRI":         func(m *Metadata) { m.Labels["io.cri-containerdx"] = "1" },
		"label of containerd":    func(m *Metadata) { m.Labels["containerd.io/gc.root"] = "1" },
		"label without key":      func(m *Metadata) { m.Labels[""] = "1" },
	} {
		t.Run(name, func(t *testing.T) {
			m := member1()
			damage(&m)
			c := containers.Container{ID: memberID, Labels: map[string]string{"x": "y"}}
			err := m.Encode(&c)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), memberID) {
				t.Errorf("got %v, want InvalidArgument naming the container", err)
			}
			if len(c.Labels) != 1 || c.SandboxID != "" || c.Extensions != nil {
				t.Errorf("the container was changed: %+v", c)
			}
		})
	}
}

func TestValidateTellsAll(t *testing.T) {
	err := Metadata{Labels: map[string]string{"io.berth.x": ""}}.Validate()
	for _, want := range []string{"pod ID", "no pod name", "no container name", "no creation time", "io.berth.x"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: nothing of %q", err, want)
		}
	}
}

// TestSchemaKeysOfUsers: a user's or an image's label with a key of Kubernetes' is
// no label of the record, where it would stand for the container's own.
func TestSchemaKeysOfUsers(t *testing.T) {
	m := member1()
	m.Pod.UID = ""
	m.Labels = map[string]string{"io.kubernetes.pod.uid": "theirs"}
	c := encoded(t, m)
	if v, ok := c.Labels["io.kubernetes.pod.uid"]; ok {
		t.Errorf("pod UID %q from a user's label", v)
	}
	got, err := Decode(c)
	if err != nil || got.Pod.UID != "" || got.Labels["io.kubernetes.pod.uid"] != "theirs" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFromImage(t *testing.T) {
	got := FromImage(map[string]string{
		"maintainer": "me", "containerd.io/gc.root": "1", "io.cri-containerd.kind": "container", "io.berth.managed": "1",
		"io.kubernetes.pod.uid": "u", "long": strings.Repeat("v", 4096), "": "v", "broken": "\xff", "empty": "",
	})
	if diff := cmp.Diff(map[string]string{"maintainer": "me"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEncodeKeepsLabels(t *testing.T) {
	c := containers.Container{ID: memberID, Labels: map[string]string{"image": "label", "app": "of the image", "io.berth.created": "true"}}
	before := maps.Clone(c.Labels)
	handed := c.Labels
	m := member1()
	m.Created = false
	if err := m.Encode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Labels["image"] != "label" || c.Labels["app"] != "web" || c.Labels[keyCreated] != "" {
		t.Errorf("got %v", c.Labels)
	}
	if diff := cmp.Diff(before, handed); diff != "" {
		t.Errorf("the caller's map changed:\n%s", diff)
	}
	c.Labels = map[string]string{"io.cri-containerd.kind": "container"}
	if err := m.Encode(&c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with CRI's label: %v", err)
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(*containers.Container)
		want   error
		text   string
	}{
		{"foreign", func(c *containers.Container) { c.Labels = nil }, ErrForeign, ""},
		{"no name", drop(keyName), ErrUndecodable, "label io.berth.name: missing"},
		{"no pod name", drop(keyPodFullName), ErrUndecodable, "label io.berth.pod.name: missing"},
		{"no pod", drop(keyPodID), ErrUndecodable, "label io.berth.pod.id: missing"},
		{"no kind", drop(keyKind), ErrUndecodable, "label io.berth.kind: missing"},
		{"no time", drop(keyCreatedAt), ErrUndecodable, "label io.berth.created-at: missing"},
		{"time", set(keyCreatedAt, "noon"), ErrUndecodable, `label io.berth.created-at: value "noon"`},
		{"attempt", set(keyAttempt, "-1"), ErrUndecodable, `label io.berth.attempt: value "-1"`},
		{"attempt too great", set(keyAttempt, "4294967295"), ErrUndecodable, `value "4294967295"`},
		{"kind", set(keyKind, "sidecar"), ErrUndecodable, `value "sidecar"`},
		{"flag", set(keyPrivileged, "maybe"), ErrUndecodable, `label io.berth.privileged: value "maybe"`},
		{"version", set(keyManaged, "yes"), ErrUndecodable, `label io.berth.managed: value "yes"`},
		{"document", extend(documentType, "{"), ErrUndecodable, "extension io.berth.metadata"},
		{"type", extend("other", "{}"), ErrUndecodable, `extension io.berth.metadata: type "other"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := encoded(t, member1())
			tc.damage(&c)
			_, err := Decode(c)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), memberID) {
				t.Errorf("got %v, want %v with %q naming the container", err, tc.want, tc.text)
			}
		})
	}
}

func TestErrorClasses(t *testing.T) {
	if !errdefs.IsDataLoss(ErrUndecodable) || !errdefs.IsFailedPrecondition(ErrNewerSchema) || !errdefs.IsFailedPrecondition(ErrForeign) {
		t.Error("a sentinel has lost its class")
	}
}

func drop(key string) func(*containers.Container) {
	return func(c *containers.Container) { delete(c.Labels, key) }
}

func set(key, value string) func(*containers.Container) {
	return func(c *containers.Container) { c.Labels[key] = value }
}

func extend(kind, value string) func(*containers.Container) {
	return func(c *containers.Container) {
		c.Extensions[extMetadata] = &anypb.Any{TypeUrl: kind, Value: []byte(value)}
	}
}

func TestNewerSchema(t *testing.T) {
	for name, age := range map[string]func(*containers.Container){
		"label":    set(keyManaged, "2"),
		"document": extend(documentType, `{"version":2,"settings":"of another shape"}`),
		"damaged":  func(c *containers.Container) { set(keyManaged, "2")(c); set(keyAttempt, "third")(c) },
	} {
		c := encoded(t, member1())
		age(&c)
		m, err := Decode(c)
		if err != nil || m.Schema != 2 || m.Name != member1().Name {
			t.Errorf("%s: read %+v, %v", name, m, err)
		}
		if e := Describe(c); e.Owner != OwnerBerth || e.Err != nil || e.Metadata.Pod.ID != podID {
			t.Errorf("%s: listed as %+v", name, e)
		}
		if _, err := m.Update(c); !errors.Is(err, ErrNewerSchema) {
			t.Errorf("%s: update: %v", name, err)
		}
		if _, err := m.Replace(c); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: replace: %v", name, err)
		}
	}
}

func TestUnknownKeysIgnored(t *testing.T) {
	c := encoded(t, member1())
	c.Labels["io.berth.colour"] = "blue"
	got, err := Decode(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(member1(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSandboxIDWins over the label, which anybody can change; the next update
// mends it.
func TestSandboxIDWins(t *testing.T) {
	c := encoded(t, member1())
	c.Labels[keyPodID] = "elsewhere"
	m, err := Decode(c)
	if err != nil || m.Pod.ID != podID {
		t.Errorf("in pod %q, %v", m.Pod.ID, err)
	}
	ch, err := m.Update(c)
	if diff := cmp.Diff([]string{"labels.io.berth.pod.id"}, ch.Paths()); diff != "" || err != nil {
		t.Errorf("%v, paths (-want +got):\n%s", err, diff)
	}
}

// TestForgery: labels that come from an image or a kubelet's pod make no record
// berth's.
func TestForgery(t *testing.T) {
	forged := encoded(t, member1()).Labels
	infra := encoded(t, infra1()).Labels
	for name, c := range map[string]containers.Container{
		"image run by ctr":        {ID: "ctr", Labels: forged},
		"infra run by ctr":        {ID: "ctr", Labels: infra},
		"label of a CRI pod":      {ID: memberID, SandboxID: podID, Labels: with(forged, criKind, "container")},
		"pause of a CRI pod":      {ID: podID, Labels: with(infra, criKind, "sandbox")},
		"nerdctl":                 {ID: "n", Labels: map[string]string{"nerdctl/name": "web", "nerdctl/namespace": "default"}},
		"CRI's, metadata unknown": {ID: memberID, SandboxID: podID, Labels: map[string]string{criKind: "container"}},
	} {
		if e := Describe(c); e.Owner == OwnerBerth {
			t.Errorf("%s: berth's: %+v", name, e)
		}
		if _, err := Decode(c); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: decoded: %v", name, err)
		}
	}
	s := sandbox.Sandbox{ID: podID, Labels: infra, Extensions: map[string]typeurl.Any{"metadata": &anypb.Any{}}}
	if _, err := DecodeSandbox(s); !errors.Is(err, ErrForeign) {
		t.Errorf("CRI's sandbox: %v", err)
	}
}

func with(labels map[string]string, key, value string) map[string]string {
	labels = maps.Clone(labels)
	labels[key] = value
	return labels
}

// TestCarryOver: what a newer berth of the same schema put into the document stays.
func TestCarryOver(t *testing.T) {
	c := encoded(t, member1())
	ext := c.Extensions[extMetadata].(*anypb.Any)
	text := string(ext.Value)
	text = strings.Replace(text, `"settings":{`, `"later":[1,2],"settings":{"niceness":7,`, 1)
	extend(documentType, text)(&c)
	m, err := Decode(c)
	if err != nil {
		t.Fatal(err)
	}
	m.Settings.StopSignal, m.Settings.Volumes = "", nil
	ch, err := m.Update(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"extensions.io.berth.metadata"}, ch.Paths()); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	var d struct {
		Later    []int          `json:"later"`
		Settings map[string]any `json:"settings"`
	}
	if err := json.Unmarshal(ch.extensions[extMetadata].GetValue(), &d); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"niceness": 7.0, "logPath": "app/3.log", "stdin": true, "terminal": true}
	if diff := cmp.Diff(want, d.Settings); diff != "" || len(d.Later) != 2 {
		t.Errorf("later: %v, settings (-want +got):\n%s", d.Later, diff)
	}
	// All known settings gone, the unknown one keeps its object.
	m.Settings = Settings{}
	ch, err = m.Update(c)
	if err != nil || !strings.Contains(string(ch.extensions[extMetadata].GetValue()), `"settings":{"niceness":7}`) {
		t.Errorf("got %s, %v", ch.extensions[extMetadata].GetValue(), err)
	}
}

func TestSpecAnnotations(t *testing.T) {
	want := map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": podID,
		"io.kubernetes.cri.sandbox-name": "web", "io.kubernetes.cri.sandbox-namespace": "default",
		"io.kubernetes.cri.sandbox-uid": "5f0c-11", "io.kubernetes.cri.container-name": "app",
		"io.kubernetes.cri.image-name": "docker.io/library/nginx",
	}
	if diff := cmp.Diff(want, member1().SpecAnnotations()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if a := infra1().SpecAnnotations(); a["io.kubernetes.cri.container-type"] != "sandbox" || a["io.kubernetes.cri.container-name"] != "" {
		t.Errorf("infra: %v", a)
	}
}

func TestNames(t *testing.T) {
	p := somePod()
	for got, want := range map[string]string{
		p.KubernetesName():        "k8s_web_default_5f0c-11_2",
		p.ContainerName("app", 0): "k8s_app_web_default_5f0c-11_0",
		p.InfraName():             "k8s_POD_web_default_5f0c-11_2",
		(Pod{FullName: "mine", Name: "web"}).InfraName(): "mine-infra",
		UnknownAttempt.String():                          "?",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if l := SnapshotLabels("n"); l["io.berth.layer-name"] != "n-layer" {
		t.Errorf("snapshot: %v", l)
	}
	if l := LeaseLabels(); l["io.berth.kind"] != "pod-lease" {
		t.Errorf("lease: %v", l)
	}
}
