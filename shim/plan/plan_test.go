// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/shim/plan"
	"github.com/berthd/berth/shim/wire"
)

// full sets every field to something, so that a field without a number in the
// codec does not go unnoticed.
func full(t *testing.T) *plan.Plan {
	t.Helper()
	p := &plan.Plan{}
	v := reflect.ValueOf(p).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name + "\xff")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int32, reflect.Int64:
			f.SetInt(int64(-1 - i))
		case reflect.Uint32, reflect.Uint64:
			f.SetUint(uint64(1 + i))
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{v.Type().Field(i).Name, "", "b"}))
		default:
			t.Fatalf("field %s has a kind that the test does not know", v.Type().Field(i).Name)
		}
	}
	return p
}

func TestEveryFieldSurvives(t *testing.T) {
	want := full(t)
	var got plan.Plan
	if err := got.Decode(want.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, &got); d != "" {
		t.Error(d)
	}
}

func TestDecodeOlderAndNewer(t *testing.T) {
	b := wire.AppendString(nil, 2, "id")
	b = wire.AppendString(b, 100000, "of a newer version")
	b = wire.AppendVarint(b, 3, 7) // another type than known
	got := plan.Plan{Namespace: "stale"}
	if err := got.Decode(b); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(plan.Plan{ID: "id"}, got); d != "" {
		t.Error(d)
	}
}

func TestDecodeMalformed(t *testing.T) {
	var p plan.Plan
	if err := p.Decode([]byte{0x0a, 200}); err == nil {
		t.Error("no error")
	}
}
