// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What the OCI form does not know is not lost.
func TestConfigure(t *testing.T) {
	var fields map[string]json.RawMessage
	const before = `{"os":"linux","docker_version":"1","config":{"User":"a","Env":["A=1"],"Healthcheck":{"Test":["CMD"]},"Shell":["sh"]}}`
	if err := json.Unmarshal([]byte(before), &fields); err != nil {
		t.Fatal(err)
	}
	d := draft{fields: fields}
	if err := d.configure(v1.ImageConfig{Cmd: []string{"new"}}); err != nil {
		t.Fatal(err)
	}
	raw, err := d.config()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"os": "linux", "docker_version": "1", "created": "0001-01-01T00:00:00Z", "history": nil,
		"config": map[string]any{"Cmd": []any{"new"}, "Healthcheck": map[string]any{"Test": []any{"CMD"}}, "Shell": []any{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": nil},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEmptied(t *testing.T) {
	history := []v1.History{{CreatedBy: "a"}, {CreatedBy: "b", EmptyLayer: true}, {CreatedBy: "c"}, {CreatedBy: "d"}}
	want := []v1.History{{CreatedBy: "a"}, {CreatedBy: "b", EmptyLayer: true}, {CreatedBy: "c", EmptyLayer: true}, {CreatedBy: "d", EmptyLayer: true}}
	if diff := cmp.Diff(want, emptied(history, 1)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if history[2].EmptyLayer {
		t.Error("changed what was given")
	}
}
