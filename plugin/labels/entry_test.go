// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"encoding/json"
	"errors"
	"fmt"
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
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	criPodID    = "c0ffee"
	criMemberID = "beef"
)

var kubernetesLabels = map[string]string{
	"io.kubernetes.pod.name": "dns", "io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.uid": "77",
}

// asAny is JSON in the way that typeurl encodes what is no message.
func asAny(t testing.TB, v any) typeurl.Any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "json", Value: text}
}

// criExtension is how containerd 2.4 stores the metadata of its CRI objects.
func criExtension(t testing.TB, version string, metadata map[string]any) typeurl.Any {
	return asAny(t, map[string]any{"Version": version, "Metadata": metadata})
}

func criSandboxExtension(t testing.TB) typeurl.Any {
	return criExtension(t, "v1", map[string]any{
		"ID": criPodID, "Name": "dns_kube-system_77_4", "RuntimeHandler": "berth",
		"Config": &runtime.PodSandboxConfig{
			Metadata:     &runtime.PodSandboxMetadata{Name: "dns", Namespace: "kube-system", Uid: "77", Attempt: 4},
			Labels:       map[string]string{"k8s-app": "dns"},
			LogDirectory: "/var/log/pods/dns",
		},
	})
}

func criSandbox(t testing.TB) sandbox.Sandbox {
	labels := maps.Clone(kubernetesLabels)
	labels["name"], labels["k8s-app"] = "dns_kube-system_77_4", "dns"
	return sandbox.Sandbox{
		ID: criPodID, Sandboxer: "shim", Labels: labels, CreatedAt: time.Unix(1600000000, 0),
		Extensions: map[string]typeurl.Any{"metadata": criSandboxExtension(t)},
	}
}

func criPause(t testing.TB) containers.Container {
	return containers.Container{
		ID: criPodID, Labels: with(kubernetesLabels, "io.cri-containerd.kind", "sandbox"), CreatedAt: time.Unix(1600000000, 0),
		Extensions: map[string]typeurl.Any{"io.cri-containerd.sandbox.metadata": criSandboxExtension(t)},
		Spec:       spec(t, criPodID),
	}
}

func criMember(t testing.TB) containers.Container {
	labels := with(kubernetesLabels, "io.cri-containerd.kind", "container")
	labels["io.kubernetes.container.name"] = "coredns"
	return containers.Container{
		ID: criMemberID, SandboxID: criPodID, Labels: labels, Image: "sha256:" + imageID, CreatedAt: time.Unix(1600000009, 0),
		Spec: spec(t, criPodID),
		Extensions: map[string]typeurl.Any{"io.cri-containerd.container.metadata": criExtension(t, "v1", map[string]any{
			"ID": criMemberID, "SandboxID": criPodID, "ImageName": "registry.k8s.io/coredns:v1", "LogPath": "coredns/1.log",
			"Config": &runtime.ContainerConfig{
				Metadata: &runtime.ContainerMetadata{Name: "coredns", Attempt: 1},
				Image:    &runtime.ImageSpec{Image: "sha256:" + imageID, UserSpecifiedImage: "coredns"},
				Labels:   map[string]string{"k8s-app": "dns"},
			},
		})},
	}
}

func spec(t testing.TB, sandboxID string) typeurl.Any {
	return asAny(t, &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: []string{AnnotationSandboxID, `"` + AnnotationSandboxID + `":"not this"`}},
		Annotations: map[string]string{
			AnnotationSandboxID: sandboxID, annotationPodName: "dns", annotationNamespace: "kube-system",
			annotationUID: "77", annotationContainer: "coredns",
		},
	})
}

func criPodMetadata() Metadata {
	m := Metadata{
		Kind: KindInfra, Created: true, MetadataName: "dns", Attempt: 4, Labels: map[string]string{"k8s-app": "dns"},
		Pod:       Pod{ID: criPodID, Name: "dns", Namespace: "kube-system", UID: "77", Attempt: 4},
		CreatedAt: time.Unix(1600000000, 0),
	}
	m.Settings.LogDirectory, m.Settings.RuntimeHandler = "/var/log/pods/dns", "berth"
	return m
}

func criMemberMetadata() Metadata {
	m := Metadata{
		Created: true, MetadataName: "coredns", Attempt: 1, ImageName: "coredns", Labels: map[string]string{"k8s-app": "dns"},
		Pod:       Pod{ID: criPodID, Name: "dns", Namespace: "kube-system", UID: "77", Attempt: UnknownAttempt},
		CreatedAt: time.Unix(1600000009, 0),
	}
	m.Settings.LogPath = "coredns/1.log"
	return m
}

func TestDescribeCRI(t *testing.T) {
	bare := criMember(t)
	bare.Labels = map[string]string{"io.cri-containerd.kind": "container"}
	fromSpec := criMemberMetadata()

	undecodable := criMember(t)
	undecodable.Extensions = map[string]typeurl.Any{criContainerExt: criExtension(t, "v9", nil)}
	unknown := criMemberMetadata()
	unknown.Attempt, unknown.ImageName, unknown.Labels, unknown.Settings = UnknownAttempt, "sha256:"+imageID, nil, Settings{}

	nerdctl := containers.Container{ID: "n", Image: "nginx", CreatedAt: time.Unix(1, 0), Labels: map[string]string{"nerdctl/name": "web"}}
	for _, tc := range []struct {
		name string
		c    containers.Container
		want Entry
	}{
		{"member", criMember(t), Entry{ID: criMemberID, Owner: OwnerCRI, Metadata: criMemberMetadata()}},
		{"member without labels", bare, Entry{ID: criMemberID, Owner: OwnerCRI, Metadata: fromSpec}},
		{"member with a strange extension", undecodable, Entry{ID: criMemberID, Owner: OwnerCRI, Metadata: unknown, Err: ErrUndecodable}},
		{"pause", criPause(t), Entry{ID: criPodID, Owner: OwnerCRI, Metadata: criPodMetadata()}},
		{"nerdctl", nerdctl, Entry{ID: "n", Metadata: Metadata{
			Name: "web", MetadataName: "web", ImageName: "nginx", Created: true, CreatedAt: time.Unix(1, 0),
		}}},
	} {
		t.Run(tc.name, func(t *testing.T) { wantEntry(t, tc.want, Describe(tc.c)) })
	}
}

func wantEntry(t *testing.T, want, got Entry) {
	t.Helper()
	if !errors.Is(got.Err, want.Err) || (want.Err == nil) != (got.Err == nil) {
		t.Errorf("error: got %v, want %v", got.Err, want.Err)
	}
	want.Err, got.Err = nil, nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDescribeCRISandbox(t *testing.T) {
	damaged := criSandbox(t)
	damaged.Extensions = map[string]typeurl.Any{"metadata": &anypb.Any{TypeUrl: "json", Value: []byte("{")}}
	byName := criPodMetadata()
	byName.Labels, byName.Settings = nil, Settings{}

	nothing := criSandbox(t)
	nothing.Extensions, nothing.Labels = damaged.Extensions, kubernetesLabels
	unknown := byName
	unknown.Attempt, unknown.Pod.Attempt = UnknownAttempt, UnknownAttempt
	for _, tc := range []struct {
		name string
		s    sandbox.Sandbox
		want Entry
	}{
		{"whole", criSandbox(t), Entry{Metadata: criPodMetadata()}},
		{"attempt by name", damaged, Entry{Metadata: byName, Err: ErrUndecodable}},
		{"no attempt", nothing, Entry{Metadata: unknown, Err: ErrUndecodable}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.ID, tc.want.Owner = criPodID, OwnerCRI
			wantEntry(t, tc.want, DescribeSandbox(tc.s))
		})
	}
}

func TestMembership(t *testing.T) {
	berth := encoded(t, member1())
	relabelled := encoded(t, member1())
	relabelled.Labels[keyPodID] = "elsewhere"
	respecified := encoded(t, member1())
	respecified.Spec = spec(t, "another")
	noSandbox := criMember(t)
	noSandbox.SandboxID = ""
	moved := criMember(t)
	moved.SandboxID = "other"
	for _, tc := range []struct {
		name     string
		c        containers.Container
		pod      string
		warnings []string
	}{
		{"SandboxID", berth, podID, nil},
		{"label against SandboxID", relabelled, podID, []string{"label io.berth.pod.id"}},
		{"annotation against both", respecified, podID, []string{"annotation io.kubernetes.cri.sandbox-id"}},
		{"annotation alone", noSandbox, criPodID, nil},
		{"annotation against SandboxID", moved, "other", []string{"in c0ffee by its annotation"}},
		{"infra", encoded(t, infra1()), podID, nil},
		{"pause", criPause(t), criPodID, nil},
		{"none", containers.Container{ID: "ctr"}, "", nil},
		{"a copied label", containers.Container{ID: "ctr", Labels: berth.Labels}, "", nil},
	} {
		e := Describe(tc.c)
		if e.Metadata.Pod.ID != tc.pod || len(e.Warnings) != len(tc.warnings) {
			t.Errorf("%s: got pod %q, %q; want %q, %q", tc.name, e.Metadata.Pod.ID, e.Warnings, tc.pod, tc.warnings)
			continue
		}
		for i, w := range tc.warnings {
			if !strings.Contains(e.Warnings[i], w) {
				t.Errorf("%s: warning %q says nothing of %q", tc.name, e.Warnings[i], w)
			}
		}
	}
}

func TestGroup(t *testing.T) {
	younger := member1()
	younger.CreatedAt = younger.CreatedAt.Add(time.Minute)
	second := encoded(t, younger)
	second.ID = "second"
	lost := member1()
	lost.Pod.ID = "lost"
	orphan := encoded(t, lost)
	orphan.ID = "orphan"
	relabelled := criMember(t)
	relabelled.Labels = map[string]string{"io.cri-containerd.kind": "container"}

	s := sandbox.Sandbox{ID: podID}
	if err := infra1().EncodeSandbox(&s); err != nil {
		t.Fatal(err)
	}
	pods, rest := Group(
		[]containers.Container{encoded(t, member1()), second, orphan, relabelled, criPause(t), {ID: "ctr"}},
		[]sandbox.Sandbox{s})
	var got []string
	for _, p := range pods {
		var line strings.Builder
		line.WriteString(fmt.Sprint(p.ID, p.Owner, p.Metadata.Pod.Name, p.Metadata.Attempt, p.Sandbox, p.Orphaned, p.Infra != nil))
		for _, m := range p.Members {
			line.WriteString(" " + m.ID)
		}
		got = append(got, line.String())
	}
	want := []string{
		fmt.Sprint("lost", OwnerBerth, "web", Attempt(2), false, true, false) + " orphan",
		fmt.Sprint(podID, OwnerBerth, "web", Attempt(2), true, false, false) + " second " + memberID,
		fmt.Sprint(criPodID, OwnerCRI, "dns", Attempt(4), false, false, true) + " " + criMemberID,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	if len(rest) != 1 || rest[0].ID != "ctr" {
		t.Errorf("rest: %+v", rest)
	}
}

// TestGroupSandboxOnly: a kubelet's pod under the shim sandboxer is a record only.
func TestGroupSandboxOnly(t *testing.T) {
	pods, _ := Group([]containers.Container{criMember(t)}, []sandbox.Sandbox{criSandbox(t)})
	if len(pods) != 1 || len(pods[0].Members) != 1 || pods[0].Orphaned {
		t.Fatalf("got %+v", pods)
	}
	if diff := cmp.Diff(criPodMetadata(), pods[0].Metadata); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRebuild(t *testing.T) {
	young, renamed := member1(), member1()
	young.CreatedAt = young.CreatedAt.Add(time.Hour)
	renamed.CreatedAt = renamed.CreatedAt.Add(time.Minute)
	renamed.Pod.Name = "renamed"
	var members []containers.Container
	for i, m := range []Metadata{young, member1(), renamed} {
		c := encoded(t, m)
		c.ID, c.Extensions = fmt.Sprint("m", i), nil // labels alone
		members = append(members, c)
	}
	got, warnings, err := Rebuild(append(members, criMember(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := infra1()
	want.CreatedAt, want.Created = member1().CreatedAt, true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "m1 and m2") {
		t.Errorf("warnings: %q", warnings)
	}
	s := sandbox.Sandbox{ID: podID}
	if err := got.EncodeSandbox(&s); err != nil {
		t.Errorf("what was rebuilt cannot be stored: %v", err)
	}
	if _, _, err := Rebuild([]containers.Container{criMember(t)}); !errdefs.IsNotFound(err) {
		t.Errorf("from others' containers: %v", err)
	}
}

func TestAnnotation(t *testing.T) {
	for text, want := range map[string]string{
		`{"annotations":{"k":"v"}}`:                  "v",
		`{"annotations" : { "k" : "a\"b" } }`:        `a"b`,
		`{"args":["k","\"k\":\"x\""],"a":{"k":"v"}}`: "v",
		`{"args":["k"]}`:                             "",
		`{"k":1,"a":{"k":"v"}}`:                      "v",
		`{"k":`:                                      "",
		``:                                           "",
	} {
		if got := annotation(&anypb.Any{Value: []byte(text)}, "k"); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
	if got := annotation(nil, "k"); got != "" {
		t.Errorf("without a specification: %q", got)
	}
	var none *anypb.Any // as a store returns it
	if got := annotation(none, "k"); got != "" {
		t.Errorf("with none: %q", got)
	}
}

func TestText(t *testing.T) {
	for got, want := range map[string]string{
		OwnerOther.String(): "other", OwnerBerth.String(): "berth", OwnerCRI.String(): "cri",
		KindInfra.String(): "infra", KindContainer.String(): "container", Attempt(7).String(): "7",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// BenchmarkDescribe is the cost of one record in a listing.
func BenchmarkDescribe(b *testing.B) {
	c := containers.Container{ID: memberID, Spec: spec(b, podID)}
	m := member1()
	m.Annotations = nil
	if err := m.Encode(&c); err != nil {
		b.Fatal(err)
	}
	cri := criMember(b)
	for name, c := range map[string]containers.Container{"berth": c, "cri": cri} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Describe(c)
			}
		})
	}
}
